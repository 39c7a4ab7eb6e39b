"""The latencies of `chronicle bench --report`: this library's and its peers', over processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from chronicle.cli import transports
from chronicle.report import Mark, Series, Timeline, bucket_counts, timeline_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GROUP: Final = "One-way latency, Python to Python"
OURS: Final = "chronicle"
_WINDOWS: Final = 120
_POLLING: Final = "_polling"

NOTE: Final = (
    "Latencies are one-way, between two processes, 64-byte payloads at "
    f"{transports.RATE_PER_S:,} messages a second, from the time at which each message was due: a "
    "message that waits behind a late one counts its wait (corrected for coordinated omission). "
    "Segments are small (128 KiB), so that rolls happen; they are prepared by a provisioner. "
    "Page faults are those of the two threads, by the kernel's count. Peers that can wait or be "
    "polled were measured both ways; unless they were named, the better one is shown."
)


def peers() -> list[str]:
    """Return the names of the peers that are installed."""
    return [peer.name for peer in transports.TRANSPORTS if peer.is_available and peer.name != OURS]


def measure(
    folder: str,
    names: Sequence[str],
    seconds: float,
    say: Callable[[str], None],
    *,
    best_only: bool = False,
) -> tuple[list[Series], list[Timeline]]:
    """Measure the library and these peers, one after another, each for so long.

    With `best_only`, of a peer that was measured polling and blocking only the better one is kept.
    """
    count = max(100, int(seconds * transports.RATE_PER_S))
    series, lines = [], []
    for name in (OURS, *names):
        say(f"latency of {name} ...")
        place = Path(folder) / f"latency-{name}"
        place.mkdir()
        transport = transports.ROLLING.name if name == OURS else name
        found = transports.record(transport, place, count, watch_faults=True)
        series.append(Series(GROUP, name, bucket_counts(found.late_ns), max(found.late_ns)))
        if name != OURS:
            continue
        marks = [
            *(Mark(at / transports.RATE_PER_S, "roll", "the queue rolls") for at in found.rolls),
            *(
                Mark(at / transports.RATE_PER_S, "fault", f"{side}: {faults} page faults")
                for side, at, faults in found.faults
            ),
        ]
        title = f"Latency of {name}"
        lines.append(
            timeline_of(title, found.late_ns, transports.RATE_PER_S, marks, windows=_WINDOWS)
        )
    return (better(series) if best_only else series), lines


def better(series: Sequence[Series]) -> list[Series]:
    """Keep of each peer its better way, by the median.

    >>> both = [Series("", "pipe", [(9, 1)], 9), Series("", "pipe_polling", [(5, 1)], 5)]
    >>> [one.name for one in better(both)]
    ['pipe_polling']
    """
    best: dict[str, Series] = {}
    for one in series:
        peer = one.name.removesuffix(_POLLING)
        if peer not in best or one.histogram.quantile(0.5) < best[peer].histogram.quantile(0.5):
            best[peer] = one
    return list(best.values())
