"""A million messages as tables, each against the copy of the same columns with NumPy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import chronicle
from chronicle.message import MessageBase, Scale, char8, f64, i64, u32

from benches.common import Run, median, median_ratio, pinned


@chronicle.message(1)
class Trade(MessageBase):
    """What a feed delivers: numbers, a price with implied decimals, a symbol."""

    price: Annotated[i64, Scale(4)]
    value: f64
    qty: i64
    symbol: char8
    flags: u32


def _copied(queue: chronicle.Queue) -> Any:
    """Take the columns out of the file, and nothing else: the floor of every table."""
    import numpy as np

    array = queue.to_numpy(Trade)
    return {name: np.ascontiguousarray(array[name]) for name in Trade.dtype.names or ()}


def measure(run: Run) -> dict[str, float]:
    """Make tables of a queue, in turns with the copy."""
    import numpy as np

    count = run.size(1_000_000, 10_000)
    records = np.zeros(count, dtype=Trade.dtype)
    records["price"] = np.arange(count)
    records["symbol"] = np.array([b"AAPL", b"MSFT", b"GOOGL"])[np.arange(count) % 3]
    makers: dict[str, Callable[[chronicle.Queue], Any]] = {
        "copy": _copied,
        "numpy": lambda queue: queue.to_numpy(Trade),
        "arrow": lambda queue: queue.to_arrow(Trade, headers=False),
        "arrow_numbers": lambda queue: queue.to_arrow(
            Trade, headers=False, scaled="raw", text="bytes"
        ),
        "polars": lambda queue: queue.to_polars(Trade, headers=False),
        "pandas": lambda queue: queue.to_pandas(Trade, headers=False),
    }
    found: dict[str, list[float]] = {name: [] for name in makers}
    with run.scratch("frames") as path, pinned(0):
        segment_bytes = run.size(128 << 20, 2 << 20)
        with chronicle.Queue.open_publisher(
            path, schema=[Trade], segment_bytes=segment_bytes
        ) as writer:
            writer.append_many(records)
        queue = chronicle.Queue(path)
        for turn in range(run.size(8, 2)):
            for name, make in makers.items():
                started = time.perf_counter_ns()
                made = make(queue)
                taken = time.perf_counter_ns() - started
                assert len(made["price"]) == count, name
                # The first turn imports libraries.
                if turn:
                    found[name].append(taken)
    figures: dict[str, float] = {"frames_messages_count": count}
    for name, times in found.items():
        figures[f"frames_{name}_median_ms"] = median(times) / 1e6
        if name != "copy":
            figures[f"frames_{name}_over_copy_ratio"] = median_ratio(times, found["copy"])
    return figures
