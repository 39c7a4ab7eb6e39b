"""Reports: the page is whole, loads nothing, believes no name, and says what was measured."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from chronicle.bus import Bus
from chronicle.cli import latency
from chronicle.errors import BadArgument, DecodeError
from chronicle.hot import CountersFile
from chronicle.hot.counters import describe
from chronicle.hot.meter import Histogram
from chronicle.report import (
    Figure,
    Mark,
    Run,
    Series,
    Table,
    Timeline,
    Window,
    bucket_counts,
    page,
    read_run,
    timeline_of,
)
from chronicle.report import bus as report_bus
from chronicle.report.charts import percentiles
from chronicle.report.document import within_bounds
from chronicle.report.page import hgrm
from chronicle.report.scales import LogScale, seconds_ticks
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.queue_support import fill, publisher
from tests.unit.test_hot_counters import run_some

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}
LOADS = {"src", "srcset", "poster", "data", "action", "formaction", "background", "xlink:href"}
#: What a run can count.
MOST = (1 << 63) - 1
HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "\"><svg onload='alert(1)'>",
    "</style><style>@import 'http://example.org'",
    "<!-- a\x00\x1b[2J\u202eb -->",
    "javascript:alert(1)",
    "&lt;b&gt; &amp; ]]>",
]


class Page(HTMLParser):
    """What a browser would find in a page. Refuses what is not nested well."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data!r}")

    def handle_data(self, data):
        where = self._open[-1] if self._open else ""
        {"script": self.scripts, "style": self.styles}.get(where, self.text).append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def assert_loads_nothing(text: str) -> Page:
    """Check that a browser has nothing to fetch and nothing to run."""
    found = Page(text)
    for tag, attributes in found.tags:
        assert tag not in {"img", "link", "iframe", "object", "embed", "base", "use", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in LOADS, (tag, name)
            assert name != "style", tag
            if name == "href":
                assert tag == "a"
                assert value is not None
                assert value.startswith("data:")
                assert "download" in attributes
    assert [script["type"] for script in found.named("script")] == ["application/json"]
    for style in found.styles:
        assert "@import" not in style
        assert "url(" not in style
    policies = [m for m in found.named("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert [str(policy["content"]).split(";")[0] for policy in policies] == ["default-src 'none'"]
    return found


def series(name: str = "one", values: list[int] | None = None, group: str = "Latency") -> Series:
    values = values or [100] * 90 + [5_000] * 9 + [2_000_000]
    return Series(group, name, bucket_counts(values), max(values))


def full_run(name: str = "one") -> Run:
    """Make a run with something of everything."""
    return Run(
        title=f"All about {name}",
        taken="2026-01-02 03:04:05 UTC",
        machine={"cpu": name, "cores": "2"},
        notes=[name],
        series=[series(name), series("other", [7, 8, 9]), series("none", group="Empty")],
        timelines=[
            Timeline(
                name,
                2.0,
                [Window(0.0, 3, 10, 20, 30), Window(1.0, 0, 0, 0, 0), Window(1.5, 1, 5, 5, 5)],
                [Mark(0.5, "roll", name), Mark(1.0, "fault", name)],
            )
        ],
        figures=[Figure(name, 100.0, "ns", 50.0, name, 2.0)],
        tables=[Table(name, ["", name], [[name, 1234567], ["b", None]], name)],
    )


def test_a_page_is_well_nested_and_loads_nothing() -> None:
    found = assert_loads_nothing(page(full_run(), [("before", full_run())]))
    titles = [attributes for tag, attributes in found.tags if tag == "h1"]
    assert len(titles) == 1
    assert found.named("html") == [{"lang": "en"}]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_text(name: str) -> None:
    text = page(full_run(name), [(name, full_run(name))])
    found = assert_loads_nothing(text)
    shown = "".join(found.text)
    plain = "".join(c for c in name if c.isprintable())
    assert plain[:3] in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert json.loads(found.scripts[0])["machine"]["cpu"] == name


def test_every_chart_is_sound_xml_and_says_in_words_what_it_shows() -> None:
    text = page(full_run())
    charts = re.findall(r"<svg class=\"chart .*?</svg>", text, re.DOTALL)
    assert len(charts) == 2 * (3 + 1)  # wide and narrow: curves twice, one comparison, one timeline
    for chart in charts:
        root = ET.fromstring(chart)
        assert root.get("role") == "img"
        label = root.get("aria-label") or ""
        assert "2 ms" in label or "7 ns" in label or "30 ns" in label


def test_the_table_has_the_quantiles_of_the_input() -> None:
    values = sorted(range(1, 10_001))
    text = page(Run(title="t", taken="now", series=[series("x", values)]))
    row = re.search(r'<th scope="row">x</th>(.*?)</tr>', text, re.DOTALL)
    assert row is not None
    cells = re.findall(r"<td.*?>(.*?)</td>", row[1])
    assert cells[0] == "10,000"
    assert cells[-1] == "10 µs"
    for cell, q in zip(cells[1:], (0.5, 0.9, 0.99, 0.999, 0.9999), strict=False):
        true = values[math.ceil(q * len(values)) - 1]
        number, unit = cell.split()
        shown = float(number) * {"ns": 1, "µs": 1_000}[unit]
        assert true * 0.99 <= shown <= true * 1.04


def test_a_curve_goes_through_the_input() -> None:
    values = [10] * 50 + [100] * 40 + [1_000] * 9 + [10_000]
    (wide, _) = percentiles([("x", Histogram(bucket_counts(values), 10_000))])
    (path,) = [one for one in wide.iter("path") if one.get("class") == "line s0"]
    numbers = [float(n) for n in re.findall(r"[\d.]+", path.get("d") or "")]
    starts, heights, ends = numbers[0::3], numbers[1::3], numbers[2::3]
    assert starts[1:] == ends[:-1]
    left, right, bottom, top = 66, 742, 334, 14
    nines = [0, math.log10(100 / 50), math.log10(100 / 10), math.log10(100 / 1)]
    expected = [left + (right - left) * n / 2.25 for n in nines]
    assert starts == pytest.approx(expected, abs=0.06)
    # The axis begins at the decade of the lowest value and ends at that of the highest.
    places = [(math.log10(high) - 1) / 3 for high, _ in bucket_counts(values)]
    assert heights == pytest.approx([bottom - (bottom - top) * n for n in places], abs=0.06)


def test_the_attached_data_are_the_input() -> None:
    run = full_run()
    found = Page(page(run))
    links = {a["download"]: str(a["href"]) for a in found.named("a")}
    data = {name: base64.b64decode(url.partition(",")[2]) for name, url in links.items()}
    assert json.loads(data["run.json"]) == json.loads(run.to_json())
    for index, one in enumerate(run.series, start=1):
        stored = json.loads(data[f"histogram-{index}.json"])
        assert [tuple(bucket) for bucket in stored["buckets"]] == one.buckets
        rows = data[f"histogram-{index}.hgrm"].decode().splitlines()[2:-3]
        parsed = [(float(row.split()[0]), int(row.split()[2])) for row in rows]
        seen, cumulated = 0, []
        for high, count in one.buckets:
            seen += count
            cumulated.append((float(high), seen))
        assert parsed == cumulated


def test_the_distribution_of_an_empty_histogram_is_empty() -> None:
    assert b"Total count    =            0" in hgrm(Histogram([], 0))


@given(st.lists(st.integers(0, 1 << 40), max_size=60), st.integers(0, 60))
def test_what_was_counted_since_is_the_difference(values: list[int], first: int) -> None:
    def counted(some: list[int]) -> Histogram:
        return Histogram(bucket_counts(some), max(some, default=0))

    since = counted(values).since(counted(values[:first]))
    # By the buckets of the whole: its last one ends at its highest value, not at that of a part.
    wanted = dict(counted(values).buckets)
    for high, count in counted(values[:first]).buckets:
        wanted[min(h for h in wanted if h >= high)] -= count
    assert dict(since.buckets) == {high: count for high, count in wanted.items() if count}


@pytest.mark.parametrize(
    "buckets",
    [
        pytest.param([], id="none"),
        pytest.param([(0, 1)], id="one, of nothing"),
        pytest.param([(1, 1)], id="one"),
        pytest.param([(40, 6 * 10**12), (90_000, 1)], id="a week of turns"),
        pytest.param([(40, MOST), (90, 1)], id="2^63 and one"),
        pytest.param([(40, MOST), (MOST, MOST)], id="2^63 twice"),
        pytest.param([(40, 0)], id="an empty bucket"),
        pytest.param([(40, 0), (90, 5), (200, 0)], id="empty buckets around"),
        pytest.param([(90, 5), (40, 3)], id="out of order"),
    ],
)
def test_a_histogram_of_any_counts_makes_a_page(buckets: list[tuple[int, int]]) -> None:
    odd = Series("Latency", "one", buckets, max((high for high, _ in buckets), default=0))
    run = Run(title="odd", taken="now", series=[odd, series("other")])
    assert_loads_nothing(page(run, [("before", full_run()), ("odd", run)]))
    # The reference for what a page tells is the histogram itself.
    assert odd.histogram.count == sum(count for _, count in buckets)


def test_a_report_of_too_much_says_what_it_leaves_out(tmp_path: Path) -> None:
    marks = [Mark(n / 1e5, "roll", "ticks") for n in range(100_001)]
    run = Run(
        title="much",
        taken="now",
        notes=["as ever"],
        series=[series(str(n)) for n in range(1_001)],
        timelines=[Timeline("gaps", 11.0, [Window(0.0, 1, 1, 1, 1)], marks)],
        tables=[Table("Counters", ["n"], [[n] for n in range(-1, 12_000)])],
    )
    found = within_bounds(run)
    assert found.notes == [
        "as ever",
        "More than a report holds, and left out: 1 of 1,001 histograms, "
        "1 of 100,001 marks of gaps, 2,001 of 12,001 rows of 'Counters'.",
    ]
    assert (len(found.series), len(found.tables[0].rows)) == (1_000, 10_000)
    assert len(run.series) == 1_001
    file = tmp_path / "run.json"
    file.write_bytes(found.to_json())
    assert read_run(file) == found


#: A page takes some ten milliseconds.
few = settings(max_examples=25, deadline=None)
counts = st.integers(0, (1 << 63) - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@few
@given(
    st.builds(
        Run,
        title=texts,
        taken=texts,
        machine=st.dictionaries(texts, texts, max_size=3),
        series=st.lists(
            st.builds(
                lambda group, name, values: series(name, values, group),
                texts,
                texts,
                st.lists(counts, min_size=1, max_size=10),
            ),
            max_size=4,
        ),
        timelines=st.lists(
            st.builds(
                Timeline,
                texts,
                st.floats(0, 1e18),
                st.lists(st.builds(Window, st.floats(0, 1e18), counts, counts, counts, counts)),
                st.lists(st.builds(Mark, st.floats(0, 1e18), st.just("roll"), texts)),
            ),
            max_size=2,
        ),
        tables=st.lists(
            st.builds(
                Table,
                texts,
                st.lists(texts, min_size=2, max_size=2),
                st.lists(st.tuples(texts, counts | st.none() | texts).map(list), max_size=3),
            ),
            max_size=2,
        ),
    )
)
def test_a_page_gives_its_run_back(tmp_path_factory: pytest.TempPathFactory, run: Run) -> None:
    file = tmp_path_factory.mktemp("report") / "page.html"
    text = page(run, [("same", run)])
    assert_loads_nothing(text)
    file.write_text(text, encoding="utf-8")
    assert read_run(file) == run


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "<html></html>",
        "<script id='chronicle-run'>{</script>",
        '{"format":"chronicle-report-1","title":"t","taken":"x","series":[{"group":"a"}]}',
        '{"format":"chronicle-report-2","title":"t","taken":"x"}',
        '{"format":"chronicle-report-1","title":"t","taken":"x","more":1}',
        "[" * 100_000,
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.html"
    file.write_text(text)
    with pytest.raises(DecodeError, match=r"not a report: .*name a page or JSON"):
        read_run(file)


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=200), st.sampled_from([0.5, 0.99, 1]))
def test_buckets_are_three_percent_wide_and_lose_nothing(values: list[int], q: float) -> None:
    times = Histogram(bucket_counts(values), max(values))
    assert times.count == len(values)
    true = sorted(values)[math.ceil(q * len(values)) - 1]
    assert true <= times.quantile(q) <= true * 1.032


@given(
    st.lists(st.integers(0, 10**9), min_size=1, max_size=300),
    st.integers(1, 50),
)
def test_windows_have_every_message_once(values: list[int], windows: int) -> None:
    line = timeline_of("x", values, 1_000.0, [], windows=windows)
    assert sum(window.count for window in line.windows) == len(values)
    start = 0
    for window in line.windows:
        part = sorted(values[start : start + window.count])
        assert window.at_s == start / 1_000
        assert (window.p50_ns, window.max_ns) == (part[(len(part) - 1) // 2], part[-1])
        start += window.count


@given(st.lists(st.floats(0, 1e18), min_size=1, max_size=5))
def test_a_scale_keeps_order_and_bounds(values: list[float]) -> None:
    scale = LogScale(values, 0, 100)
    places = [scale(value) for value in sorted(values)]
    assert places == sorted(places)
    assert 0 <= places[0] <= places[-1] <= 100
    assert scale.ticks[0] <= max(1, min(values)) * (1 + 1e-9)
    assert scale.ticks[-1] >= max(values) * (1 - 1e-6)


@given(st.floats(0, 1e6), st.integers(2, 10))
def test_ticks_of_seconds_are_few_and_within(seconds: float, count_max: int) -> None:
    ticks = seconds_ticks(seconds, count_max)
    assert 1 <= len(ticks) <= count_max
    assert ticks[0] == 0
    assert ticks[-1] <= seconds * (1 + 1e-6) + 1e-9


# --- Colours ---


def colours() -> dict[str, dict[str, str]]:
    css = (Path(report_bus.__file__).with_name("style.css")).read_text()
    themes = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    named = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", theme)) for theme in themes]
    return dict(zip(("light", "dark", "print"), named, strict=True))


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_text_and_lines_can_be_told_from_the_page(theme: str) -> None:
    named = colours()[theme]
    page_light = luminance(named["page"])
    for name in ("ink", "quiet", "link", *(f"s{i}" for i in range(8))):
        light, dark = sorted((page_light, luminance(named[name])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (theme, name, named[name])


# --- Of a bus ---


def table(run: Run, title: str) -> list[list[object]]:
    (found,) = [table for table in run.tables if table.title == title]
    return [list(row) for row in found.rows]


def test_a_bus_is_reported_as_it_is(tmp_path: Path) -> None:
    bus = Bus(tmp_path / "bus")
    with bus.open_endpoint("orders/alpha", valid_s=60) as endpoint:
        counters = CountersFile.create(endpoint.path / "COUNTERS")
        hot = run_some(endpoint.path, counters, 100)
        hot.stop()
        counters.publish(
            {
                "threads": [describe(hot)],
                "services": {"x": {"state": "running", "restarts": 2, "last_error": "<b>"}},
            }
        )
        with publisher(tmp_path / "bus" / "streams" / "x" / "ticks") as writer:
            fill(writer, 10)
            run = report_bus.collect(bus.path, taken="now")
    assert {(s.group, s.name) for s in run.series} == {
        ("Loop gap", "orders/alpha: Tally"),
        ("Handler time", "orders/alpha: Tally"),
    }
    by_group = {s.group: s.histogram for s in run.series}
    assert by_group["Loop gap"] == hot.loop_gap
    assert by_group["Handler time"] == hot.handler_time
    (thread,) = table(run, "Hot threads")
    assert thread[:4] == ["orders/alpha: Tally", "stopped", "not pinned", 100]
    assert table(run, "Counters of handlers") == [
        ["orders/alpha: Tally", "ticks", 100],
        ["orders/alpha: Tally", "total", 4950],
    ]
    (one,) = table(run, "Endpoints")
    assert one[:3] == ["orders/alpha", "alive", "not ready"]
    assert table(run, "Services of sidecars") == [["orders/alpha", "x", "running", 2, "<b>"]]
    queues = {str(row[0]): row[1:5] for row in table(run, "Queues")}
    assert queues["streams/x/ticks"] == ["alive", 1, 1, 11]
    assert_loads_nothing(page(run))


def test_watching_marks_rolls_and_faults_and_counts_only_what_happened_meanwhile(
    tmp_path: Path,
) -> None:
    counters = CountersFile.create(tmp_path / "COUNTERS")
    hot = run_some(tmp_path, counters, 10)
    told = describe(hot) | {"kernel": {"faults_minor": 5, "faults_major": 0}}
    counters.publish({"threads": [told]})
    looks = 0
    with publisher(tmp_path / "ticks") as writer:

        def sleep(seconds: float) -> None:
            nonlocal looks
            looks += 1
            assert 0 <= seconds <= 0.1
            if looks == 1:
                fill(writer, 2_000)  # More than one segment.
                told["kernel"] = {"faults_minor": 7, "faults_major": 1}
                counters.publish({"threads": [told]})
            before = hot.status.turns
            hot.nudge()
            while hot.status.turns == before:
                pass

        # Nobody really waits; the looks take their own time.
        run = report_bus.collect(tmp_path, seconds=1e-9, taken="now", sleep=sleep)
    hot.stop()
    (line,) = run.timelines
    assert len(line.windows) == looks
    assert [mark.text for mark in line.marks if mark.kind == "fault"] == ["3 page faults"]
    assert [mark.text.partition(":")[0] for mark in line.marks if mark.kind == "roll"] == ["ticks"]
    gaps = next(s.histogram for s in run.series if s.group == "Loop gap")
    assert gaps.count == sum(window.count for window in line.windows)
    assert gaps.count < hot.loop_gap.count
    queues = {str(row[0]): row for row in table(run, "Queues")}
    assert isinstance(rate := queues["ticks"][-1], float)
    assert rate > 0


def test_what_is_hostile_in_a_bus_stands_in_the_report_with_the_reason(tmp_path: Path) -> None:
    bad = tmp_path / "<b>bad"
    (bad / "queue" / "segments").mkdir(parents=True)
    (bad / "queue" / "control").write_bytes(b"x" * 4096)
    (bad / "COUNTERS").write_bytes(b"x")
    (bad / "LEASE").write_text("{")
    (tmp_path / "loop").symlink_to(tmp_path)
    good = CountersFile.create(tmp_path / "COUNTERS")
    thread = {"name": "<i>\ud800" + "x" * 10_000, "block": 4, "counters": ["\x1b[2J"], "core": "x"}
    more = {"kernel": {"faults_minor": -1}, "failure": ["odd"], "guard_seen": 1 << 70}
    alike = {"name": "y", "core": True, "guard_seen": True, "kernel": {"faults_minor": True}}
    threads = [thread | more, alike | {"block": 5}, alike | {"block": 6}, {"block": "no"}, 3]
    good.publish({"threads": threads, "services": {"s": {"restarts": 10**400}}})
    run = report_bus.collect(tmp_path, taken="now")
    refused = {str(row[0]): str(row[1]) for row in table(run, "What could not be read")}
    assert "no counters file" in refused["<b>bad"]
    assert table(run, "Endpoints")[0][1] == "refused"
    assert str(table(run, "Queues")[0][1]).startswith("damaged")
    assert [row[2] for row in table(run, "Hot threads")] == ["not pinned"] * 3
    assert [row[0] for row in table(run, "Hot threads")][1:] == ["y", "y (2)"]
    text = page(run)
    assert_loads_nothing(text)
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    assert read_run(file) == run


def test_a_directory_without_a_bus_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="nothing to report: bus="):
        report_bus.collect(tmp_path, taken="now")
    with pytest.raises(BadArgument, match="no such directory: bus="):
        report_bus.collect(tmp_path / "no", taken="now")


def test_a_bus_that_may_not_be_listed_is_an_error_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(BadArgument, match=r"cannot_list='\.' \(Permission denied\); check"):
        report_bus.collect(tmp_path, taken="now")


# --- Of latencies ---


def test_latencies_are_recorded_with_the_rolls_that_the_queue_had(folder: Path) -> None:
    said: list[str] = []
    found, lines = latency.measure(str(folder), ["pipe"], 0.3, said.append)
    assert [one.name for one in found] == ["chronicle", "pipe"]
    assert all(one.histogram.count == 3_000 for one in found)
    (line,) = lines
    assert sum(window.count for window in line.windows) == 3_000
    rolls = [mark for mark in line.marks if mark.kind == "roll"]
    # A record takes 96 bytes of 128 KiB, less the header and a marker.
    assert len(rolls) == 2
    assert all(0 < mark.at_s < 0.3 for mark in rolls)
    assert len(said) == 2
