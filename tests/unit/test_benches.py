"""The benchmarks run, and their results are plausible: counts, sums, order. No time is asserted.

Each benchmark checks what it reads while it measures; these tests run them in small sizes and look
at the counts that come out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from chronicle.hot.meter import Histogram

from benches import (
    calls,
    feed,
    frames,
    handoff,
    hot,
    hot_compile,
    independence,
    native,
    packets,
    peers,
    report,
    sources,
    startup,
    tick,
    wire,
)
from benches.common import Run, median_ratio, quantile
from benches.figures import FIGURES


@pytest.fixture
def run(folder: Path) -> Iterator[Run]:
    yield Run(folder, quick=True)
    assert not [path for path in folder.iterdir() if path.is_dir()], "a benchmark left a queue"


def assert_plausible(results: dict[str, float]) -> None:
    assert results
    for name, value in results.items():
        assert math.isfinite(value), name
        assert value >= 0, name
        assert name.endswith(("_ns", "_ms", "_per_s", "_ratio", "_count")), f"{name}: no unit"


@pytest.mark.skipif(not native.is_available(), reason="no cargo to build the benchmarks with")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("subject", "counts"),
    [
        ("append", {"append_count": 5_000}),
        ("latency", {}),
        ("throughput", {"throughput_count": 20_000}),
        ("fan", {"fan_in_count": 1 << 13}),
        ("open", {"open_segments_count": 20}),
        ("seek", {"seek_messages_count": 100_000, "seek_by_time_count": 100}),
        ("roll", {"append_at_roll_count": 6}),
        ("guard", {"guard_turns_count": 10_000}),
        ("hot", {"hot_count": 1 << 17}),
    ],
)
def test_a_native_benchmark_checks_out(run: Run, subject: str, counts: dict[str, float]) -> None:
    results = native.measure(run, subject)
    assert_plausible(results)
    assert {name: results[name] for name in counts} == counts
    if subject == "latency":
        received = results["one_way_rust_count"] + results["one_way_rust_at_roll_count"]
        assert received == 2 * 1_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "measure",
    [
        hot.measure_compiled,
        handoff.measure,
        hot.measure_hops,
        hot_compile.measure,
        independence.measure,
        sources.measure,
        tick.measure,
    ],
)
def test_a_benchmark_of_the_hot_thread_checks_out(run: Run, measure) -> None:
    if measure is hot.measure_hops and not native.is_available():
        pytest.skip("no cargo to build the other side with")
    assert_plausible(measure(run))


@pytest.mark.parametrize(
    "measure", [calls.measure, calls.measure_column, frames.measure, startup.measure]
)
def test_a_python_benchmark_checks_out(run: Run, measure) -> None:
    assert_plausible(measure(run))


@pytest.mark.needs_root
@pytest.mark.slow
@pytest.mark.skipif(not packets.is_available(), reason="no network namespaces, or no cargo")
def test_the_benchmark_of_packets_reads_every_packet(run: Run) -> None:
    results = packets.measure(run)
    assert_plausible(results)
    assert results["packet_ring_read_count"] == 100


@pytest.mark.needs_root
@pytest.mark.slow
@pytest.mark.skipif(not packets.is_available(), reason="no network namespaces, or no cargo")
def test_the_benchmark_from_wire_to_queue_publishes_every_message(run: Run) -> None:
    results = wire.measure(run)
    assert_plausible(results)
    assert results["wire_to_queue_count"] == 100


@pytest.mark.needs_data
@pytest.mark.skipif(not feed.is_available(), reason="the sample capture is missing")
def test_the_feed_benchmark_finds_every_message(run: Run) -> None:
    assert_plausible(feed.measure(run))


@pytest.mark.skipif(not feed.is_available(), reason="the sample capture is missing")
def test_the_decoder_and_its_floor_publish_every_message(run: Run) -> None:
    assert_plausible(feed.measure_decode(run))


@pytest.mark.parametrize("transport", peers.TRANSPORTS, ids=lambda transport: transport.name)
def test_every_message_arrives_once_and_in_order(folder: Path, transport: peers.Transport) -> None:
    if not transport.is_available:
        pytest.skip(f"{transport.module} is not installed; `make bench` installs it")
    late_ns = peers.latencies_ns(transport.name, folder, 200)
    assert len(late_ns) == 200
    assert late_ns == sorted(late_ns)


def test_every_figure_is_measured_by_some_benchmark_and_has_a_note_or_none() -> None:
    names = [figure.name for figure in FIGURES]
    assert len(names) == len(set(names))
    assert set(report.load_notes()) <= set(names)


def test_missed_figures_come_first_and_bring_their_notes() -> None:
    results = {figure.judged: figure.target for figure in FIGURES}
    late = FIGURES[-1]
    results[late.judged] = late.target * (2 if late.bound == "max" else 0.5)
    text = report.table(results)
    assert text.splitlines()[1].startswith("MISSED")
    assert text.count("MISSED") == 1
    facts = {"cpu": "c", "cores": "2", "kernel": "k", "python": "p", "file_system": "f"}
    page = report.page(results, facts, "today")
    assert page.index("**MISSED**") < page.index("| met |")
    assert "What is missed" in page


def test_quantiles_are_in_zero_to_one_and_never_between_values() -> None:
    ordered = [1, 2, 3, 4]
    assert [quantile(ordered, q) for q in (0, 0.25, 0.26, 0.5, 1)] == [1, 1, 2, 2, 4]


def test_ratios_are_taken_round_by_round() -> None:
    assert median_ratio([2, 20, 4], [1, 10, 1]) == 2


def test_a_rare_long_gap_is_nothing_to_the_turns_and_much_to_the_moments() -> None:
    gaps = Histogram([(10, 1_000_000), (1_000_000, 1)], 1_000_000)
    assert gaps.quantile(0.999) == 10
    assert independence.moment_quantile_ns(gaps, 0.999) == 1_000_000
    assert independence.moment_quantile_ns(gaps, 0.9) == 10
    assert independence.moment_quantile_ns(Histogram([], 0), 0.999) == 0
