"""The measurements of `chronicle bench`."""

from __future__ import annotations

import mmap
import statistics
import time
from collections.abc import Callable
from itertools import repeat
from typing import TYPE_CHECKING, Any

from chronicle._core import Floor
from chronicle.queue import Provisioner, Queue, inspect

if TYPE_CHECKING:
    from chronicle.queue import QueueReader, QueueWriter

PAYLOAD = bytes(range(64))
RECORD_BYTES = 96
"""A payload of 64 bytes with its header."""
CALLS = 100_000
ROUNDS = 7
BATCH_COUNT = 200_000
ROLLS = 60

Figure = dict[str, Any]


def _figure(name: str, value: float, floor: float, floor_name: str, *, unit: str = "ns") -> Figure:
    # For a time more is worse, for a rate less.
    ratio = value / floor if unit == "ns" else floor / value
    return {
        "name": name,
        "value": round(value, 2),
        "unit": unit,
        "floor": round(floor, 2),
        "floor_name": floor_name,
        "ratio": round(ratio, 3),
    }


def _per_call(loop: Callable[[int], None], count: int = CALLS) -> float:
    """Return nanoseconds for one turn of a loop."""
    start = time.perf_counter_ns()
    loop(count)
    return (time.perf_counter_ns() - start) / count


def _both(floor: Callable[[int], None], real: Callable[[int], None]) -> tuple[float, float]:
    """Measure floor and figure in turn, so that both see the same machine; return the medians."""
    pairs = [(_per_call(floor), _per_call(real)) for _ in range(ROUNDS)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def measure_all(folder: str) -> list[Figure]:
    """Measure everything below `folder`; some seconds."""
    with (
        Provisioner() as provisioner,
        Queue.open_publisher(f"{folder}/calls", provisioner=provisioner) as writer,
        Queue.open_subscriber(f"{folder}/calls", "bench", provisioner=provisioner) as reader,
    ):
        figures = [measure_append(writer)]
        figures += measure_reading(reader)
        figures += measure_batches(writer, reader)
    return figures + measure_rolls(folder)


def measure_append(writer: QueueWriter) -> Figure:
    """Measure one message at a time."""
    nothing = Floor()

    def floor(count: int, append: Callable[..., Any] = nothing.append) -> None:
        for _ in repeat(None, count):
            append(1, PAYLOAD)

    def real(count: int, append: Callable[..., Any] = writer.append) -> None:
        for _ in repeat(None, count):
            append(1, PAYLOAD)

    empty, value = _both(floor, real)
    return _figure("append(bytes)", value, empty, "empty call, same arguments")


def measure_reading(reader: QueueReader) -> list[Figure]:
    """Measure reading what was appended, one message at a time; then commits."""
    nothing = Floor()

    def floor(count: int, empty: Callable[[], None] = nothing.next) -> None:
        for _ in repeat(None, count):
            empty()

    def take(count: int, take_next: Callable[[], Any] = reader.next) -> None:
        for _ in repeat(None, count):
            take_next()

    def view(count: int, take_next: Callable[[], Any] = reader.next) -> None:
        for _ in repeat(None, count):
            take_next().payload  # noqa: B018  (making the view is what is measured)

    def commit(count: int, commit: Callable[[], None] = reader.commit) -> None:
        for _ in repeat(None, count):
            commit()

    figures = []
    for name, real in (("next()", take), ("next().payload", view), ("commit()", commit)):
        reader.seek("earliest")
        empty, value = _both(floor, real)
        figures.append(_figure(name, value, empty, "empty call"))
    return figures


def measure_batches(writer: QueueWriter, reader: QueueReader) -> list[Figure]:
    """Measure many messages in one call; messages per second."""
    payloads = PAYLOAD * BATCH_COUNT
    image = memoryview(bytes(RECORD_BYTES * BATCH_COUNT))
    target = mmap.mmap(-1, len(image), flags=mmap.MAP_PRIVATE | mmap.MAP_POPULATE)
    pairs = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        target[:] = image
        between = time.perf_counter_ns()
        writer._append_many(1, payloads, len(PAYLOAD))
        pairs.append((between - start, time.perf_counter_ns() - between))
    copy, append = (BATCH_COUNT * 1e9 / statistics.median(p[i] for p in pairs) for i in (0, 1))
    figures = [_figure("append_many", append, copy, "bare copy of these records", unit="per_s")]
    rates = []
    reader.seek("earliest")
    for _ in range(ROUNDS):
        reader.seek("earliest")
        start, count = time.perf_counter_ns(), 0
        while (run := reader.next_run(count_max=65_536)) is not None:
            count += run.count
        rates.append(count * 1e9 / (time.perf_counter_ns() - start))
    read = statistics.median(rates)
    figures.append(_figure("next_run", read, copy, "bare copy of these records", unit="per_s"))
    target.close()
    return figures


def measure_rolls(folder: str) -> list[Figure]:
    """Measure the append that rolls into the next segment, with a provisioner and without."""
    figures = []
    for name, provisioned in (("append at a roll", True), ("the same, inline", False)):
        path = f"{folder}/{'prepared' if provisioned else 'inline'}"
        rolls, others, late = _time_rolls(path, provisioned=provisioned)
        if not rolls:
            continue  # The machine is so busy that the provisioner was late every time.
        figure = _figure(
            name, statistics.median(rolls), _quantile(others, 0.999), "p99.9 of appends elsewhere"
        )
        figures.append(figure | {"max": max(rolls), "rolls": len(rolls), "late": late})
    return figures


def _quantile(values: list[int], quantile: float) -> int:
    return sorted(values)[int(len(values) * quantile)]


def _time_rolls(path: str, *, provisioned: bool) -> tuple[list[int], list[int], int]:
    """Return the times of appends that roll, of the others, and how often the provisioner was late.

    A roll for which the provisioner was late is an inline one, and not among the first.
    """
    segment_bytes = 1 << 20
    provisioner = Provisioner() if provisioned else None
    rolls: list[int] = []
    others: list[int] = []
    inline = 0
    clock = time.perf_counter_ns
    payload = bytes(4_000)
    with Queue.open_publisher(path, segment_bytes=segment_bytes, provisioner=provisioner) as writer:
        for _ in range(ROLLS):
            _wait_for_next_segment(path, provisioned=provisioned)
            segment = writer.position // segment_bytes
            while writer.position // segment_bytes == segment:
                start = clock()
                writer.append(1, payload)
                others.append(clock() - start)
            taken = others.pop()
            inline_before, inline = inline, inspect(path)["rolls_inline"]
            if not provisioned or inline == inline_before:
                rolls.append(taken)
    if provisioner is not None:
        provisioner.close()
    return rolls, others, inline if provisioned else 0


def _wait_for_next_segment(path: str, *, provisioned: bool) -> None:
    """Give the provisioner the time that a market would give it; at most 50 ms."""
    for _ in range(25):
        time.sleep(0.002)
        facts = inspect(path)
        if not provisioned or facts["segments"][-1]["index"] > facts["tail_segment"]:
            break
    time.sleep(0.002)
