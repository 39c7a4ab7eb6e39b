"""What is shown of one thread, queue or process: lines of text, and a histogram in characters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from chronicle.hot.meter import Histogram
from chronicle.top.changes import NO_RATES
from chronicle.top.model import ProcessLook, QueueLook, ThreadLook
from chronicle.top.tables import (
    Cell,
    Column,
    Row,
    Table,
    bytes_short,
    clock_text,
    number_short,
    time_short,
)
from chronicle.top.watch import View

__all__ = [
    "histogram_lines",
    "process_lines",
    "queue_lines",
    "readers_table",
    "services_table",
    "thread_lines",
    "times_lines",
]

_QUANTILES: Final = (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999))
_STEPS: Final = (1, 2, 5)


def histogram_lines(times: Histogram, *, width: int, rows: int) -> list[str]:
    """Draw a histogram: one line for each bin, bars on a logarithmic scale of counts.

    Bins end at 1, 2, 5, 10, ... nanoseconds; where that needs more lines than there are, only at
    powers of ten.

    >>> for line in histogram_lines(Histogram([(15, 1), (40, 90), (90, 9)], 90), width=30, rows=5):
    ...     print(line)
     <20ns █▍            1   1.00%
     <50ns █████████    90  90.00%
    <100ns ████▋         9   9.00%
    """
    if not times.buckets:
        return ["(nothing counted)"]
    bins = _bins(times, _STEPS)
    if len(bins) > rows:
        bins = _bins(times, (1,))
    if len(bins) > rows:
        # The lowest are one bin.
        cut = len(bins) - rows
        bins = [(bins[cut][0], sum(count for _, count in bins[: cut + 1])), *bins[cut + 1 :]]
    most = math.log1p(max(count for _, count in bins))
    total = times.count
    room = max(4, width - 21)
    lines = []
    for high, count in bins:
        bar = _bar(math.log1p(count) / most * room) if count else ""
        share = f"{100 * count / total:.2f}%" if count else ""
        lines.append(
            f"{'<' + time_short(high):>6} {bar:<{room}} {number_short(count):>5} {share:>7}"
        )
    return lines


def _bins(times: Histogram, steps: tuple[int, ...]) -> list[tuple[int, int]]:
    highest = times.buckets[-1][0]
    bins: list[tuple[int, int]] = []
    left = list(times.buckets)
    for power in range(20):
        for step in steps:
            high = step * 10**power
            count = 0
            while left and left[0][0] < high:
                count += left.pop(0)[1]
            if count or bins:
                bins.append((high, count))
            if high > highest:
                return bins
    return [*bins, (highest, sum(count for _, count in left))]


def _bar(length: float) -> str:
    whole, part = divmod(round(length * 8), 8)
    return "█" * whole + (" ▏▎▍▌▋▊▉"[part] if part else "")


def times_lines(name: str, times: Histogram, *, width: int, rows: int) -> list[str]:
    """Draw a histogram under a head with its quantiles."""
    if not times.buckets:
        return [f"{name}: (nothing counted)"]
    found = "  ".join(f"{title} {time_short(times.quantile(q))}" for title, q in _QUANTILES)
    head = f"{name}  {found}  max {time_short(times.max_ns)}"
    return [head, *histogram_lines(times, width=width, rows=rows)]


def thread_lines(thread: ThreadLook, view: View) -> list[str]:
    """Return what is known of a hot thread, besides its times."""
    rates = view.changes.threads.get(thread.key, NO_RATES)
    since = view.since.get(thread.key, NO_RATES)
    core = "not pinned" if thread.core is None else f"core {thread.core}"
    lines = [
        f"{thread.process}:{thread.name}  {thread.state}, {core}, thread id {thread.thread_id}, "
        f"wait {thread.wait or '?'}, guard {thread.guard or '?'}, meter {thread.meter or '?'}",
        f"messages {thread.count('messages'):,} ({number_short(rates.messages_per_s)}/s)  "
        f"turns {number_short(thread.count('turns'))} ({number_short(rates.turns_per_s)}/s)  "
        f"published {thread.count('appends'):,} ({number_short(rates.appends_per_s)}/s)",
        _counts(
            thread,
            ("system calls", "guard_seen"),
            ("refused", "guard_refused"),
            ("made", "guard_made"),
            ("reports dropped", "guard_dropped"),
            ("allocations", "allocations"),
        ),
        *_kernel_lines(thread, since.faults, since.switches_involuntary),
        _counts(
            thread,
            ("commands", "commands"),
            ("events", "events"),
            ("sources", "sources"),
            ("failed", "sources_failed"),
            ("unhandled", "unhandled"),
            ("gaps", "gaps"),
            ("parks", "parks"),
        ),
        _counts(
            thread,
            ("rolls late", "rolls_late"),
            ("wakes inline", "wakes_inline"),
            ("segments kept", "segments_kept"),
            ("log records", "log_records"),
            ("dropped", "log_drops"),
            ("outputs dropped", "appends_dropped"),
        ),
    ]
    if thread.counters:
        own = "  ".join(f"{name} {value:,}" for name, value in thread.counters.items())
        lines.append(f"counters: {own}")
    if thread.failure:
        lines.append(f"FAILED: {thread.failure}")
    lines += [f"warning: {warning}" for warning in thread.warnings]
    return lines


def _counts(thread: ThreadLook, *names: tuple[str, str]) -> str:
    return "  ".join(f"{title} {thread.count(name):,}" for title, name in names)


def _kernel_lines(thread: ThreadLook, faults: int | None, switches: int | None) -> Iterator[str]:
    kernel = thread.kernel
    if kernel is None:
        yield "faults and switches: not told"
        return
    yield (
        f"faults {kernel.faults_minor:,} minor, {kernel.faults_major:,} major "
        f"({faults or 0:,} since top looks)  switches {kernel.switches_voluntary:,} voluntary, "
        f"{kernel.switches_involuntary:,} involuntary ({switches or 0:,})"
    )


def queue_lines(queue: QueueLook, view: View) -> list[str]:
    """Return what is known of a queue, besides its readers and messages."""
    rates = view.changes.queues.get(queue.name)
    rate = "" if rates is None else f" ({number_short(rates.messages_per_s)}/s)"
    speed = "" if rates is None else f", {bytes_short(rates.bytes_per_s)}/s"
    writer = f"pid {queue.writer_pid}" if queue.writer_live else "none"
    beat = "" if queue.beat_age_s is None else f", heartbeat {queue.beat_age_s:.1f} s ago"
    held = f", the oldest held by reader '{queue.held_by}'" if queue.held_by else ""
    lines = [
        f"{queue.name}  id {queue.queue_id[:8]}  writer {writer}, epoch {queue.epoch}{beat}",
        f"messages {queue.first_seq:,} to {queue.next_seq - 1:,}{rate}{speed}  "
        f"on disk for certain up to {queue.durable_seq:,}",
        f"segments {queue.segments} of {bytes_short(queue.segment_bytes)}, "
        f"{bytes_short(queue.size_bytes)} together, index {queue.floor_segment} to "
        f"{queue.tail_segment}{held}",
        f"rolls {queue.rolls:,} prepared, {queue.rolls_inline:,} inline  "
        f"deleted by retention {queue.segments_deleted:,}  recoveries {queue.recoveries}, "
        f"cuts {queue.cuts} ({bytes_short(queue.cut_bytes)})",
    ]
    if queue.newest_ns:
        lines.append(f"newest message {clock_text(queue.newest_ns)} UTC")
    if queue.problem:
        lines.append(f"PROBLEM: {queue.problem}")
    return lines


_READERS: Final = (
    Column("reader", False, "its name"),
    Column("state", False, "live while it holds its lock"),
    Column("pid", True, "of the reader that opened it last"),
    Column("next", True, "the first message that it has not committed"),
    Column("lag", True, "messages that it has before it"),
    Column("lag B", True, "the same in bytes of the queue"),
    Column("note", False, "what is wrong"),
)


def readers_table(queue: QueueLook) -> Table:
    """Make a table of the registered readers of a queue."""
    rows = []
    for reader in queue.readers:
        missed = queue.first_seq - reader.next_seq if reader.next_seq is not None else 0
        note = reader.problem or (f"has missed {missed:,}" if missed > 0 else "")
        placed = reader.next_seq is not None
        cells = (
            Cell(reader.name, reader.name),
            Cell("live", 1, "good") if reader.live else Cell("gone", 0, "dim"),
            Cell(str(reader.pid or "-"), reader.pid),
            Cell(f"{reader.next_seq:,}" if placed else "-", reader.next_seq or 0),
            Cell(f"{reader.lag_messages:,}", reader.lag_messages),
            Cell(bytes_short(reader.lag_bytes), reader.lag_bytes),
            Cell(note, note, "bad"),
        )
        rows.append(Row(reader.name, cells))
    return Table("readers", _READERS, tuple(rows))


def process_lines(process: ProcessLook, view: View) -> list[str]:
    """Return what is known of a process, besides its services and log."""
    cpu = view.changes.cpu.get(process.name)
    told = "never" if process.told_age_s is None else f"{process.told_age_s:.1f} s ago"
    share = "?" if cpu is None else f"{100 * cpu:.0f} %"
    hot = [thread.name for thread in view.look.threads if thread.process == process.name]
    return [
        f"{process.name}  {process.state}{f': {process.reason}' if process.reason else ''}",
        f"pid {process.pid}, epoch {process.epoch or '-'}, "
        f"{'ready' if process.ready else 'not ready'}, instance {process.instance[:8] or '-'}",
        f"CPU {share}, told {told}, hot threads: {', '.join(hot) or 'none'}",
    ]


_SERVICES: Final = (
    Column("service", False, "its name"),
    Column("state", False, "what it is doing"),
    Column("restarts", True, "how often it was started again after an error"),
    Column("detail", False, "what it says of itself, or its last error"),
)


def services_table(process: ProcessLook) -> Table:
    """Make a table of the services of a process's sidecar."""
    rows = []
    for service in process.services:
        detail = service.detail if service.healthy else service.last_error or service.detail
        cells = (
            Cell(service.name, service.name),
            Cell(service.state, service.state, "good" if service.healthy else "bad"),
            Cell(str(service.restarts), service.restarts, "warn" if service.restarts else ""),
            Cell(detail, detail, "" if service.healthy else "bad"),
        )
        rows.append(Row(service.name, cells))
    return Table("services", _SERVICES, tuple(rows))
