"""What all benchmarks share: sizes, cores, medians, interleaved timing."""

from __future__ import annotations

import os
import shutil
import statistics
import timeit
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CALLS_PER_LOOP = 10


@dataclass(frozen=True)
class Run:
    """Where and how large."""

    folder: Path
    quick: bool = False

    def size(self, full: int, quick: int) -> int:
        """Return the full size, or the one for a test."""
        return quick if self.quick else full

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Give a path for one queue; remove what is there afterwards, come what may."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep this thread on one core."""
    before = os.sched_getaffinity(0)
    pin(core)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin(core: int) -> None:
    """Keep this thread on one core; on a machine with fewer, on another."""
    os.sched_setaffinity(0, {core % (os.cpu_count() or 1)})


def quantile(ordered: Sequence[float], q: float) -> float:
    """Return the smallest value that at least `q` of the sorted values do not exceed."""
    return ordered[min(len(ordered) - 1, max(0, -int(-q * len(ordered) // 1) - 1))]


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def interleaved_ns(
    statements: Mapping[str, str], names: Mapping[str, Any], *, rounds: int, calls: int
) -> dict[str, list[float]]:
    """Time statements in turns; nanoseconds per call of each round.

    A loop holds each statement ten times, so that the loop itself weighs next to nothing: it would
    flatter every ratio.
    """
    timers = {
        name: timeit.Timer("\n".join([text] * CALLS_PER_LOOP), globals=dict(names))
        for name, text in statements.items()
    }
    found: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds = timer.timeit(calls // CALLS_PER_LOOP)
            found[name].append(seconds * 1e9 / calls)
    return found


def median_ratio(candidate: Sequence[float], floor: Sequence[float]) -> float:
    """Return the median of candidate / floor, each pair from one round."""
    return median([c / f for c, f in zip(candidate, floor, strict=True)])
