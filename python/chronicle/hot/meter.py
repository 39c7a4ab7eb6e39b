"""What a hot thread shows of itself: status and histograms.

Reading any of it never disturbs the hot thread: it stores into words of its own memory, and these
are loaded from there.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from chronicle.values import Value

if TYPE_CHECKING:
    from chronicle.hot.kernel import ThreadCounters
    from chronicle.packets import PacketStatistics

__all__ = ["Histogram", "HotStatus"]


class Histogram(Value):
    """Times in nanoseconds, counted in buckets that are 3 % wide.

    Parameters
    ----------
    buckets
        ``(highest value of the bucket in ns, count)`` of those that are not empty, lowest first.
    max_ns
        The highest value since the start.

    Examples
    --------
    >>> times = Histogram([(100, 98), (1_000, 1), (50_000, 1)], 50_000)
    >>> times.count, times.quantile(0.5), times.quantile(0.99), times.quantile(1.0)
    (100, 100, 1000, 50000)
    """

    __slots__ = ("buckets", "max_ns")
    buckets: tuple[tuple[int, int], ...]
    max_ns: int

    def __init__(self, buckets: Iterable[tuple[int, int]], max_ns: int) -> None:
        self._set(tuple(buckets), max_ns)

    @property
    def count(self) -> int:
        """Values counted."""
        return sum(count for _, count in self.buckets)

    def quantile(self, q: float) -> int:
        """Return the value in ns that a share `q` of all values does not exceed.

        At most 3 % too high; 0 if there are none.

        Parameters
        ----------
        q
            0 to 1: ``0.5`` is the median, ``1.0`` the highest value.
        """
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"quantile out of range: q={q} range=0.0..1.0")
        wanted = max(1, -int(-q * self.count // 1))
        seen = 0
        for high, count in self.buckets:
            seen += count
            if seen >= wanted:
                return high
        return 0

    @property
    def mean_ns(self) -> float:
        """The mean, at most 3 % too high."""
        count = self.count
        return sum(high * n for high, n in self.buckets) / count if count else 0.0

    def since(self, earlier: Histogram) -> Histogram:
        """Return what was counted after `earlier` was taken from the same thread.

        Its `max_ns` is that of its highest bucket.
        """
        # The bucket that held the highest value then may have been cut to that value.
        before: dict[int, int] = {}
        highs = [high for high, _ in self.buckets]
        for high, count in earlier.buckets:
            index = bisect.bisect_left(highs, high)
            target = highs[index] if index < len(highs) else high
            before[target] = before.get(target, 0) + count
        counts = [(high, count - before.get(high, 0)) for high, count in self.buckets]
        left = [(high, count) for high, count in counts if count > 0]
        return Histogram(left, left[-1][0] if left else 0)


class HotStatus(NamedTuple):
    """A hot thread at a moment. Numbers count from the start.

    Attributes
    ----------
    state
        ``"new"``, ``"starting"``, ``"running"``, ``"parked"`` (asleep until something is there),
        ``"stopped"`` or ``"failed"``.
    warnings
        What the kernel refused at the start.
    turns, messages, datagrams, commands, events, idles
        Rounds of the loop, and what was given to the handler in them.
    unhandled
        Messages and commands that the handler had no method for.
    gaps, gaps_unreported
        Stretches of messages that were gone, and those that neither the handler nor an ack took.
    sources, sources_failed
        Readers now, and those that failed.
    parks
        Times the loop went to sleep.
    appends, appends_dropped
        Messages published, and those for outputs without a writer.
    log_records, log_drops
        Log lines, and those dropped because nobody drained the ring.
    allocations
        Uses of the heap by this package's native code on the hot thread.
    rolls_late, wakes_inline
        Rolls that waited for the provisioner, and wake-ups that the hot thread made itself, of the
        readers and writers that it has now.
    segments_kept
        Mappings left behind that are kept until the stop, or `HotThread.release_retired`.
    guard_seen, guard_refused, guard_made, guard_dropped
        System calls of the hot thread: all, refused, made although they stop the thread (under
        ``guard="enforce"``, if their refusal would endanger the process), and reported to nobody
        (full ring).
    guard_lost
        Another library has put its SIGSYS handler in the place of the guard's while the thread ran:
        since then system calls of the thread are not seen, and return whatever that handler leaves.
    journal_records
        Inputs written down.
    thread_id, started_ns
        The kernel's id of the thread, and when it started.
    supervised
        Somebody has called `HotThread.poll` within the last second, as a sidecar does. Otherwise
        nobody reads the log, the answers and the guard's reports; the thread itself runs on.
    packets
        What each of its packet rings has counted, by place.
    kernel
        The kernel's counts of the thread; ``None`` if it does not run.
    interrupts
        All that the core took since it came up; ``None`` if the thread is not pinned to one.
    """

    state: str
    warnings: tuple[str, ...] = ()
    turns: int = 0
    messages: int = 0
    datagrams: int = 0
    commands: int = 0
    events: int = 0
    idles: int = 0
    unhandled: int = 0
    gaps: int = 0
    gaps_unreported: int = 0
    sources: int = 0
    sources_failed: int = 0
    parks: int = 0
    appends: int = 0
    appends_dropped: int = 0
    log_records: int = 0
    log_drops: int = 0
    allocations: int = 0
    rolls_late: int = 0
    wakes_inline: int = 0
    segments_kept: int = 0
    guard_seen: int = 0
    guard_refused: int = 0
    guard_made: int = 0
    guard_dropped: int = 0
    guard_lost: bool = False
    journal_records: int = 0
    thread_id: int = 0
    started_ns: int = 0
    supervised: bool = False
    packets: tuple[PacketStatistics, ...] = ()
    kernel: ThreadCounters | None = None
    interrupts: int | None = None
