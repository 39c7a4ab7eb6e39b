"""Calls from Python, against native methods that take the same arguments and do nothing."""

from __future__ import annotations

import time

import chronicle
from chronicle import _core
from chronicle.message import MessageBase, f64

from benches.common import Run, interleaved_ns, median, median_ratio, pinned

PAYLOAD_BYTES = 64
TYPE_ID = 7
COLUMN_BATCH_RECORDS = 8_192


@chronicle.message(TYPE_ID)
class Tick(MessageBase):
    """Sixty-four bytes."""

    price: f64
    bid: f64
    ask: f64
    bid_size: f64
    ask_size: f64
    volume: f64
    turnover: f64
    vwap: f64


def measure(run: Run) -> dict[str, float]:
    """Append, next, commit."""
    with pinned(0):
        return _append(run) | _next(run)


def _append(run: Run) -> dict[str, float]:
    rounds, calls = run.size(30, 2), run.size(20_000, 200)
    payload = bytes(range(PAYLOAD_BYTES))
    with (
        run.scratch("append-python") as path,
        # One segment: rolls are measured by themselves.
        chronicle.Queue.open_publisher(path, segment_bytes=run.size(128 << 20, 1 << 20)) as writer,
    ):
        statements = {
            "floor": "floor(7, payload)",
            "append": "append(7, payload)",
            "floor_time": "floor(7, payload, timestamp_ns=5)",
            "append_time": "append(7, payload, timestamp_ns=5)",
        }
        names = {"floor": _core.Floor().append, "append": writer.append, "payload": payload}
        found = interleaved_ns(statements, names, rounds=rounds, calls=calls)
        assert writer.next_seq == 2 * rounds * calls + 1
        with chronicle.Queue.open_subscriber(path, None) as reader:
            count = 0
            for message in reader:
                assert message.payload == payload
                count += 1
        assert count == 2 * rounds * calls
    return {
        "empty_append_python_median_ns": median(found["floor"]),
        "append_python_median_ns": median(found["append"]),
        "append_python_min_ns": min(found["append"]),
        "append_python_given_time_median_ns": median(found["append_time"]),
        "append_python_over_empty_ratio": median_ratio(found["append"], found["floor"]),
        "append_python_given_time_over_empty_ratio": median_ratio(
            found["append_time"], found["floor_time"]
        ),
    }


def _next(run: Run) -> dict[str, float]:
    import numpy as np

    rounds, calls = run.size(30, 2), run.size(10_000, 200)
    total = rounds * calls * 2
    numbers = np.arange(total * 8, dtype="<u8")
    with (
        run.scratch("next-python") as path,
        chronicle.Queue.open_publisher(path, segment_bytes=run.size(128 << 20, 1 << 20)) as writer,
    ):
        writer.append_many(numbers.view("V64"), type_id=TYPE_ID)
        with chronicle.Queue.open_subscriber(path, "bench") as reader:
            statements = {
                "floor": "floor()",
                "next_payload": "next_().payload",
                "next": "next_()",
                "commit": "commit()",
                # The least that a view costs, in CPython itself.
                "view": "memoryview(some)",
                "slice": "view[window]",
            }
            some = bytes(PAYLOAD_BYTES)
            names = {
                "floor": _core.Floor().next,
                "next_": reader.next,
                "commit": reader.commit,
                "some": some,
                "view": memoryview(some),
                "window": slice(8, PAYLOAD_BYTES),
            }
            found = interleaved_ns(statements, names, rounds=rounds, calls=calls)
            assert reader.next_seq == total + 1
            assert reader.next() is None
            reader.seek(total)
            last = reader.next()
            assert last is not None
            assert last.payload == numbers[-8:].tobytes()
    return {
        "empty_next_python_median_ns": median(found["floor"]),
        "next_payload_python_median_ns": median(found["next_payload"]),
        "next_payload_python_min_ns": min(found["next_payload"]),
        "next_python_median_ns": median(found["next"]),
        "commit_python_median_ns": median(found["commit"]),
        "memoryview_python_median_ns": median(found["view"]),
        "memoryview_slice_python_median_ns": median(found["slice"]),
        "next_payload_python_over_empty_ratio": median_ratio(found["next_payload"], found["floor"]),
        "next_python_over_empty_ratio": median_ratio(found["next"], found["floor"]),
        "memoryview_python_over_empty_ratio": median_ratio(found["view"], found["floor"]),
        "memoryview_slice_python_over_empty_ratio": median_ratio(found["slice"], found["floor"]),
        "commit_python_over_empty_ratio": median_ratio(found["commit"], found["floor"]),
    }


def measure_column(run: Run) -> dict[str, float]:
    """Sum one column of typed records, in batches over the mapping."""
    import numpy as np

    count = run.size(1_000_000, 10_000)
    records = np.zeros(count, dtype=Tick.dtype)
    records["price"] = np.arange(count)
    expected = float(records["price"].sum())
    # The floor: the same column, as far apart, in memory of our own.
    spaced = np.zeros(count, dtype=np.dtype([("header", "V32"), ("price", "<f8"), ("rest", "V56")]))
    spaced["price"] = records["price"]
    floor_s: list[float] = []
    batched_s: list[float] = []
    default_s: list[float] = []
    with run.scratch("column") as path, pinned(0):
        segment_bytes = run.size(128 << 20, 2 << 20)
        with chronicle.Queue.open_publisher(
            path, schema=[Tick], segment_bytes=segment_bytes
        ) as writer:
            writer.append_many(records)
        with chronicle.Provisioner() as provisioner:
            for _ in range(run.size(21, 1)):
                started = time.perf_counter()
                total = float(spaced["price"].sum())
                floor_s.append(time.perf_counter() - started)
                assert total == expected
                for batch, seconds in ((COLUMN_BATCH_RECORDS, batched_s), (65_536, default_s)):
                    with chronicle.Queue.open_subscriber(
                        path, None, provisioner=provisioner
                    ) as reader:
                        # The provisioner maps the pages meanwhile; the floor's are mapped as well.
                        time.sleep(0.05)
                        started = time.perf_counter()
                        total, seen = _sum(reader, batch)
                        seconds.append(time.perf_counter() - started)
                    assert (total, seen) == (expected, count)
    return {
        "column_records_count": count,
        "column_sum_floor_median_per_s": count / median(floor_s),
        "column_sum_python_median_per_s": count / median(batched_s),
        "column_sum_python_max_per_s": count / min(batched_s),
        "column_sum_python_default_batch_median_per_s": count / median(default_s),
        "column_sum_python_over_floor_ratio": median_ratio(batched_s, floor_s),
    }


def _sum(reader: chronicle.QueueReader, batch: int) -> tuple[float, int]:
    total, seen = 0.0, 0
    while (records := reader.read_batch(Tick, count_max=batch)).size:
        total += float(records["price"].sum())
        seen += records.size
    return total, seen
