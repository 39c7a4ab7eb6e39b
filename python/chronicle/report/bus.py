"""What a bus does: counters files, markers and queues below a directory, as a `Run`.

Only looks, through what others leave to be seen: counters files and control blocks are read, locks
asked about; no reader is registered. Nothing that is found is trusted: what cannot be read stands
in the report with the reason.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from chronicle.bus import Bus
from chronicle.bus.liveness import QueueStatus, queue_status
from chronicle.errors import BadArgument, ChronicleError
from chronicle.hot.counters import COUNTERS_FILE, ProcessCounters, ThreadCounts, read_counters
from chronicle.hot.meter import Histogram
from chronicle.report.document import Mark, Run, Series, Table, Timeline, Window, within_bounds
from chronicle.sidecar import files

__all__ = ["Found", "collect", "find"]

_DEPTH_MAX: Final = 8
_DIRECTORIES_MAX: Final = 10_000
_WINDOWS: Final = 120
_INTERVAL_S_MIN: Final = 0.1

_Cell: TypeAlias = str | float | int | None


@dataclass
class Found:
    """What there is below a directory, by paths relative to it.

    Attributes
    ----------
    counters, endpoints, queues
        Directories that have a counters file, that have an endpoint's markers, that are queues.
    unread
        Directories that could not be listed, and why.
    is_cut
        There was more than anybody wants in a report.
    """

    root: Path
    counters: list[str] = field(default_factory=list)
    endpoints: list[str] = field(default_factory=list)
    queues: list[str] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    is_cut: bool = False


def find(root: Path) -> Found:
    """Walk through a bus. Follows no links, and looks into no queue."""
    found = Found(root)
    waiting = [(".", 0)]
    for seen, (name, depth) in enumerate(waiting):
        if seen >= _DIRECTORIES_MAX:
            found.is_cut = True
            break
        try:
            with os.scandir(root / name) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            found.unread[name] = error.strerror or str(error)
            continue
        names = {entry.name for entry in entries}
        if COUNTERS_FILE in names:
            found.counters.append(name)
        if names & {"LOCK", "LEASE"}:
            found.endpoints.append(name)
        if {"control", "segments"} <= names:
            found.queues.append(name)
            continue
        below = [e.name for e in entries if e.is_dir(follow_symlinks=False) and e.name[0] != "."]
        if below and depth >= _DEPTH_MAX:
            found.is_cut = True
            continue
        waiting += [(below_of(name, part), depth + 1) for part in below]
    return found


def below_of(name: str, part: str) -> str:
    """Return the name of something below.

    >>> below_of(".", "orders"), below_of("orders", "alpha")
    ('orders', 'orders/alpha')
    """
    return part if name == "." else f"{name}/{part}"


@dataclass
class _Watched:
    """A hot thread over time."""

    first: ThreadCounts
    last: ThreadCounts
    windows: list[Window] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


class _Watch:
    """Looks again and again, and keeps what changed between looks."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self.threads: dict[str, _Watched] = {}
        self.processes: dict[str, ProcessCounters] = {}
        self.refused: dict[str, str] = {}
        self.rolls: list[Mark] = []
        self._segments: dict[str, int] = {}
        self._at_s = 0.0

    def look(self, at_s: float) -> None:
        """Look once, so long after the beginning."""
        for name in self._found.queues:
            self._look_at_queue(name, at_s)
        for name in self._found.counters:
            try:
                process = read_counters(self._found.root / name / COUNTERS_FILE)
            except (ChronicleError, OSError) as error:
                self.refused[name] = str(error)
                continue
            before = self.processes.get(name)
            is_new = before is not None and before.instance != process.instance
            self.processes[name] = process
            alike: Counter[str] = Counter()
            for thread in process.threads:
                key = thread.name if name == "." else f"{name}: {thread.name}"
                alike[key] += 1
                if alike[key] > 1:
                    key += f" ({alike[key]})"
                if is_new or key not in self.threads:
                    self.threads[key] = _Watched(thread, thread)
                else:
                    self._go_on(self.threads[key], thread, at_s)
        self._at_s = at_s

    def _look_at_queue(self, name: str, at_s: float) -> None:
        try:
            segment = files.Control.read(self._found.root / name).tail_segment
        except (ChronicleError, OSError):
            return  # The table of queues says why.
        before = self._segments.get(name, segment)
        if segment > before:
            self.rolls.append(Mark(at_s, "roll", f"{name}: segment {segment}"))
        self._segments[name] = segment

    def _go_on(self, watched: _Watched, thread: ThreadCounts, at_s: float) -> None:
        gaps = thread.loop_gap.since(watched.last.loop_gap)
        values = (gaps.quantile(0.5), gaps.quantile(0.99), gaps.max_ns)
        watched.windows.append(Window(self._at_s, gaps.count, *values))
        faults = _faults_of(thread) - _faults_of(watched.last)
        if faults > 0:
            watched.marks.append(Mark(at_s, "fault", f"{faults} page faults"))
        watched.last = thread


def _faults_of(thread: ThreadCounts) -> int:
    return sum(_kernel(thread, key) or 0 for key in ("faults_minor", "faults_major"))


def _kernel(thread: ThreadCounts, key: str) -> int | None:
    kernel = thread.about.get("kernel")
    return _whole(kernel, key) if isinstance(kernel, dict) else None


def collect(
    bus: str | os.PathLike[str],
    *,
    seconds: float = 0.0,
    taken: str,
    machine: Mapping[str, str] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Run:
    """Look at a bus, once or for a while.

    Parameters
    ----------
    bus
        Its directory, or that of one endpoint.
    seconds
        For how long; some 120 looks. 0: one look.
    taken
        The time, for people.
    machine
        Facts to be shown.
    sleep
        How to wait between looks.

    Raises
    ------
    BadArgument
        If there is no such directory, or nothing in it that could be reported.
    """
    root = Path(bus).absolute()
    if not root.is_dir():
        raise BadArgument(f"no such directory: bus='{bus}'; name the directory of a bus")
    found = find(root)
    if not (found.counters or found.endpoints or found.queues):
        unread = "".join(f" cannot_list='{name}' ({why})" for name, why in found.unread.items())
        raise BadArgument(
            f"nothing to report: bus='{bus}' has no counters file, no endpoint and no queue"
            f"{unread}; check the path"
        )
    watch = _Watch(found)
    before = {name: queue_status(root / name) for name in found.queues}
    start = time.monotonic()
    watch.look(0.0)
    interval_s = max(_INTERVAL_S_MIN, seconds / _WINDOWS)
    # At least one more look, however long the first one took on a busy machine.
    is_over = not seconds
    while not is_over:
        left_s = start + seconds - time.monotonic()
        sleep(max(0.0, min(interval_s, left_s)))
        watch.look(time.monotonic() - start)
        is_over = time.monotonic() - start >= seconds
    length_s = time.monotonic() - start if seconds else 0.0
    after = {name: queue_status(root / name) for name in found.queues} if seconds else before
    made = Run(
        title=f"Chronicle bus {bus}",
        taken=taken,
        machine=dict(machine or {}),
        notes=list(_notes(found, length_s)),
        series=list(_series(watch, is_watched=bool(seconds))),
        timelines=list(_timelines(watch, length_s)) if seconds else [],
        tables=list(_tables(found, watch, before, after, length_s)),
    )
    return within_bounds(made)


def _notes(found: Found, seconds: float) -> Iterator[str]:
    if seconds:
        yield f"Watched for {seconds:.1f} seconds; histograms have what happened meanwhile."
    else:
        yield "One look; histograms and counts are from the start of each hot thread on."
    if not found.counters:
        yield (
            "No process here has a counters file, so nothing is known of hot threads: make one "
            "with CountersFile.create and give it to HotThread(counters_file=...)."
        )
    if found.is_cut:
        yield "There are more directories than a report looks into; some are missing here."


def _series(watch: _Watch, *, is_watched: bool) -> Iterator[Series]:
    for group, attribute in (("Loop gap", "loop_gap"), ("Handler time", "handler_time")):
        for name, thread in watch.threads.items():
            times: Histogram = getattr(thread.last, attribute)
            if is_watched:
                times = times.since(getattr(thread.first, attribute))
            if times.count:
                yield Series(group, name, list(times.buckets), times.max_ns)


def _timelines(watch: _Watch, seconds: float) -> Iterator[Timeline]:
    for name, thread in watch.threads.items():
        if thread.windows:
            marks = sorted([*thread.marks, *watch.rolls], key=lambda mark: mark.at_s)
            yield Timeline(f"Loop gap of {name}", seconds, thread.windows, marks)


# --- Tables ---


def _tables(
    found: Found,
    watch: _Watch,
    before: Mapping[str, QueueStatus],
    after: Mapping[str, QueueStatus],
    seconds: float,
) -> Iterator[Table]:
    if watch.threads:
        yield _threads(watch, seconds)
        yield _kernel_table(watch)
        yield from _handler_counters(watch)
    if found.endpoints:
        yield _endpoints(found, watch)
    services = list(_services(watch))
    if services:
        columns = ["process", "service", "state", "restarts", "last error"]
        yield Table("Services of sidecars", columns, services)
    if after:
        yield _queues(before, after, seconds)
        readers: list[list[_Cell]] = [
            [name, one.name, f"{one.state} {one.reason}".strip(), one.next_seq, one.lag_messages]
            for name, status in after.items()
            for one in status.readers
        ]
        if readers:
            columns = ["queue", "reader", "state", "next message", "messages behind"]
            yield Table("Readers", columns, readers)
    refused: list[list[_Cell]] = [
        [name, why] for name, why in {**found.unread, **watch.refused}.items()
    ]
    if refused:
        yield Table("What could not be read", ["where", "why"], refused)


_COUNTS: Final = (
    ("messages", "messages"),
    ("appends", "published"),
    ("gaps", "gaps"),
    ("parks", "parks"),
    ("log_drops", "log drops"),
    ("allocations", "allocations"),
)


def _threads(watch: _Watch, seconds: float) -> Table:
    columns = ["hot thread", "state", "core", *(text for _, text in _COUNTS)]
    columns += ["messages/s"] if seconds else []
    rows: list[list[_Cell]] = []
    for name, thread in watch.threads.items():
        last = thread.last
        core = _whole(last.about, "core")
        row: list[_Cell] = [name, last.state, "not pinned" if core is None else core]
        row += [last.words.get(word) for word, _ in _COUNTS]
        if seconds:
            many = last.words.get("messages", 0) - thread.first.words.get("messages", 0)
            row.append(round(max(0, many) / seconds, 1))
        rows.append(row)
    failures = [
        f"{name}: {thread.last.about['failure']}"
        for name, thread in watch.threads.items()
        if thread.last.about.get("failure")
    ]
    return Table("Hot threads", columns, rows, "; ".join(failures))


_KERNEL_COUNTS: Final = (
    "faults_minor",
    "faults_major",
    "switches_voluntary",
    "switches_involuntary",
)


def _kernel_table(watch: _Watch) -> Table:
    columns = ["hot thread", "system calls", "of them refused", "minor faults", "major faults"]
    columns += ["switches, own will", "switches, forced", "core's interrupts", "late rolls"]
    rows: list[list[_Cell]] = []
    for name, thread in watch.threads.items():
        about = thread.last.about
        row: list[_Cell] = [name, _whole(about, "guard_seen"), _whole(about, "guard_refused")]
        row += [_kernel(thread.last, key) for key in _KERNEL_COUNTS]
        rows.append([*row, _whole(about, "interrupts"), _whole(about, "rolls_late")])
    note = "By the guard's and the kernel's count, from the start of each thread on."
    return Table("What the kernel did for hot threads", columns, rows, note)


def _whole(about: Mapping[str, object], key: str) -> int | None:
    value = about.get(key)
    return value if type(value) is int and value >= 0 else None


def _handler_counters(watch: _Watch) -> Iterator[Table]:
    rows: list[list[_Cell]] = [
        [name, counter, value]
        for name, thread in watch.threads.items()
        for counter, value in thread.last.counters.items()
    ]
    if rows:
        yield Table("Counters of handlers", ["hot thread", "counter", "value"], rows)


def _endpoints(found: Found, watch: _Watch) -> Table:
    rows: list[list[_Cell]] = []
    for name in found.endpoints:
        try:
            if name == ".":
                status = Bus(found.root.parent).status(found.root.name)
            else:
                status = Bus(found.root).status(name)
        except ChronicleError as error:
            rows.append([name, "refused", None, None, None, str(error)])
            continue
        lease = status.lease
        ready = "ready" if status.ready else "not ready"
        # A pid is a name: no commas in it.
        pid, epoch = (None, None) if lease is None else (str(lease.pid), lease.epoch)
        rows.append([name, status.state, ready, pid, epoch, status.reason])
    columns = ["endpoint", "state", "queues", "pid", "epoch", "why"]
    dead = [n for n in watch.processes if n not in found.endpoints]
    note = f"Counters files without an endpoint: {', '.join(dead)}." if dead else ""
    return Table("Endpoints", columns, rows, note)


def _services(watch: _Watch) -> Iterator[list[_Cell]]:
    for process, counters in watch.processes.items():
        services = counters.document.get("services")
        for name, about in services.items() if isinstance(services, dict) else ():
            if isinstance(about, dict):
                restarts = _whole(about, "restarts")
                state, error = str(about.get("state", "")), about.get("last_error")
                why = "" if error is None else str(error)
                yield [process, str(name), state, restarts, why]


def _queues(
    before: Mapping[str, QueueStatus], after: Mapping[str, QueueStatus], seconds: float
) -> Table:
    columns = ["queue", "writer", "epoch", "first message", "next message"]
    columns += ["messages/s"] if seconds else []
    rows: list[list[_Cell]] = []
    for name, status in after.items():
        writer = f"{status.writer.state} {status.writer.reason}".strip()
        row: list[_Cell] = [name, writer, status.writer.epoch]
        row += [status.first_seq, status.next_seq]
        if seconds:
            row.append(round(max(0, status.next_seq - before[name].next_seq) / seconds, 1))
        rows.append(row)
    return Table("Queues", columns, rows)
