"""Two looks at a bus: what happened in between, as rates and as events.

An event is told once, in the look that shows it first. What came and went between two looks was
never there, except where a counter tells of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, TypeVar

from chronicle.hot.meter import Histogram
from chronicle.top.model import (
    NO_TIMES,
    BusLook,
    ProcessLook,
    QueueLook,
    ThreadLook,
)

__all__ = [
    "NO_RATES",
    "Changes",
    "Event",
    "QueueRates",
    "Severity",
    "ThreadRates",
    "compare",
    "thread_name",
]

T = TypeVar("T")

Severity: TypeAlias = Literal["note", "warning", "error"]

#: What a hot thread should not do, by the counts that tell: severity and text.
_UNWANTED: Final[Mapping[str, tuple[Severity, str]]] = {
    "guard_refused": ("error", "system calls refused"),
    "guard_dropped": ("warning", "reports of system calls dropped"),
    "allocations": ("error", "heap allocations"),
    "gaps": ("warning", "gaps in its sources"),
    "sources_failed": ("error", "sources failed"),
    "appends_dropped": ("warning", "messages dropped: an output has no writer"),
    "log_drops": ("warning", "log records dropped"),
    "rolls_late": ("warning", "rolls waited for the provisioner"),
}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has changed.

    Attributes
    ----------
    at_ns
        Wall clock of the look that shows it.
    severity
        ``"note"``, ``"warning"`` or ``"error"``.
    kind, subject
        ``"process"``, ``"thread"``, ``"queue"`` or ``"bus"``, and which.
    code
        A short name that stays the same, for scripts.
    text
        For people.
    """

    at_ns: int
    severity: Severity
    kind: str
    subject: str
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class ThreadRates:
    """What a hot thread did between two looks.

    Attributes
    ----------
    messages_per_s, turns_per_s, appends_per_s
        Rates.
    system_calls
        That the guard has seen.
    faults, switches_voluntary, switches_involuntary
        By the kernel's count; ``None`` if its process did not tell.
    loop_gap, handler_time
        Times of this interval only.
    """

    messages_per_s: float
    turns_per_s: float
    appends_per_s: float
    system_calls: int
    faults: int | None
    switches_voluntary: int | None
    switches_involuntary: int | None
    loop_gap: Histogram
    handler_time: Histogram


@dataclass(frozen=True, slots=True)
class QueueRates:
    """What came into a queue between two looks."""

    messages_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference of two looks.

    Attributes
    ----------
    seconds
        Between them; 0 if there is only one.
    cpu
        Share of one core that each process used, by name.
    threads, queues
        Rates, by key and by name; those that were not there before, or are another now, are
        missing.
    events
        In the order of processes, threads, queues.

    Examples
    --------
    >>> ticks = QueueLook("ticks", "/bus/ticks", queue_id="ab", next_seq=100)
    >>> before = BusLook("/bus", at_ns=0, taken_ns=0, queues=(ticks,))
    >>> more = QueueLook("ticks", "/bus/ticks", queue_id="ab", next_seq=150)
    >>> after = BusLook("/bus", at_ns=5, taken_ns=2 * 10**9, queues=(more,))
    >>> compare(before, after).queues["ticks"].messages_per_s
    25.0
    """

    seconds: float = 0.0
    cpu: Mapping[str, float] = field(default_factory=dict)
    threads: Mapping[tuple[str, str], ThreadRates] = field(default_factory=dict)
    queues: Mapping[str, QueueRates] = field(default_factory=dict)
    events: tuple[Event, ...] = ()


def compare(before: BusLook, after: BusLook) -> Changes:
    """Compare two looks at a bus.

    Examples
    --------
    >>> look = BusLook("/bus", at_ns=0, taken_ns=0)
    >>> grown = BusLook("/bus", 1, 10**9, queues=(QueueLook("ticks", "/bus/ticks"),))
    >>> [event.text for event in compare(look, grown).events]
    ['appeared']
    """
    seconds = max(1e-9, (after.taken_ns - before.taken_ns) / 1e9)
    processes = {process.name: process for process in before.processes}
    threads = {thread.key: thread for thread in before.threads}
    queues = {queue.name: queue for queue in before.queues}
    return Changes(
        seconds,
        cpu={
            process.name: max(0.0, (process.cpu_s - old.cpu_s) / seconds)
            for process in after.processes
            if (old := processes.get(process.name)) is not None
            and old.instance == process.instance
            and old.cpu_s is not None
            and process.cpu_s is not None
        },
        threads={
            thread.key: _thread_rates(was, thread, seconds)
            for thread in after.threads
            if (was := threads.get(thread.key)) is not None and _is_same_thread(was, thread)
        },
        queues={
            queue.name: QueueRates(
                max(0, queue.next_seq - had.next_seq) / seconds,
                max(0, queue.position - had.position) / seconds,
            )
            for queue in after.queues
            if (had := queues.get(queue.name)) is not None
            and had.queue_id == queue.queue_id
            and not had.problem
            and not queue.problem
        },
        events=tuple(_events(before, after)),
    )


def _is_same_thread(old: ThreadLook, new: ThreadLook) -> bool:
    return (
        old.thread_id == new.thread_id
        and old.count("started_ns") == new.count("started_ns")
        and old.count("turns") <= new.count("turns")
    )


def _thread_rates(old: ThreadLook, new: ThreadLook, seconds: float) -> ThreadRates:
    def rate(name: str) -> float:
        return max(0, new.count(name) - old.count(name)) / seconds

    faults = voluntary = involuntary = None
    if old.kernel is not None and new.kernel is not None:
        now, then = new.kernel, old.kernel
        faults = max(0, now.faults_minor - then.faults_minor)
        faults += max(0, now.faults_major - then.faults_major)
        voluntary = max(0, now.switches_voluntary - then.switches_voluntary)
        involuntary = max(0, now.switches_involuntary - then.switches_involuntary)
    return ThreadRates(
        rate("messages"),
        rate("turns"),
        rate("appends"),
        max(0, new.count("guard_seen") - old.count("guard_seen")),
        faults,
        voluntary,
        involuntary,
        new.loop_gap.since(old.loop_gap) if old.loop_gap.count else new.loop_gap,
        new.handler_time.since(old.handler_time) if old.handler_time.count else new.handler_time,
    )


def thread_name(thread: ThreadLook) -> str:
    """Return the name of a thread on its bus, as events and keys have it."""
    return f"{thread.process}:{thread.name}"


# --- Events ---


def _events(before: BusLook, after: BusLook) -> Iterator[Event]:
    for name, process, process_now in _pairs(before.processes, after.processes, lambda p: p.name):
        for severity, code, text in _about_process(process, process_now):
            yield Event(after.at_ns, severity, "process", name, code, text)
    for name, thread, thread_now in _pairs(before.threads, after.threads, thread_name):
        for severity, code, text in _about_thread(thread, thread_now):
            yield Event(after.at_ns, severity, "thread", name, code, text)
    for name, queue, queue_now in _pairs(before.queues, after.queues, lambda q: q.name):
        for severity, code, text in _about_queue(queue, queue_now):
            yield Event(after.at_ns, severity, "queue", name, code, text)
    known = dict(before.problems)
    for path, reason in after.problems:
        if known.get(path) != reason:
            yield Event(after.at_ns, "error", "bus", path, "unreadable", reason)


def _pairs(
    olds: Iterable[T], news: Iterable[T], key: Callable[[T], str]
) -> Iterator[tuple[str, T | None, T | None]]:
    """Yield key, old and new of everything that is in one of the looks."""
    before = {key(item): item for item in olds}
    now = {key(item): item for item in news}
    for name in sorted({*before, *now}):
        yield name, before.get(name), now.get(name)


_Told: TypeAlias = Iterator[tuple[Severity, str, str]]


def _about_process(old: ProcessLook | None, new: ProcessLook | None) -> _Told:
    if new is None:
        yield "note", "vanished", "its directory is gone"
        return
    if old is None or old.state != new.state or old.instance != new.instance:
        yield from _about_state(old, new)
    elif new.state == "alive" and new.ready and not old.ready:
        yield "note", "ready", "ready: its queues can be opened"
    sick = {} if old is None else {s.name: s for s in old.services if not s.healthy}
    for service in new.services:
        if not service.healthy and service.name not in sick:
            why = service.last_error or service.detail
            yield "warning", "service-sick", f"service '{service.name}' is {service.state}: {why}"
        elif service.healthy and service.name in sick:
            yield "note", "service-well", f"service '{service.name}' works again"


def _about_state(old: ProcessLook | None, new: ProcessLook) -> _Told:
    why = f": {new.reason}" if new.reason else ""
    if new.state == "alive":
        if old is not None and old.state == "stalled" and old.instance == new.instance:
            yield "note", "recovered", "makes progress again"
        elif old is not None and old.instance != new.instance and old.state != "absent":
            yield "warning", "restarted", f"up again, pid {new.pid}"
        else:
            yield "note", "up", f"up, pid {new.pid}"
    elif new.state == "stalled":
        yield "warning", "stalled", f"stalled{why}"
    elif new.state == "dead":
        yield "error", "dead", f"dead{why}"
    elif new.state == "refused":
        yield "error", "refused", f"refused{why}"
    elif old is not None:
        yield "note", "closed", "closed in order"


def _about_thread(old: ThreadLook | None, new: ThreadLook | None) -> _Told:
    if new is None:
        yield "note", "vanished", "is told of no more"
        return
    if old is not None and not _is_same_thread(old, new):
        yield "warning", "restarted", f"another thread of this name: {new.state}"
        old = None
    if old is None or (old.state != new.state and {old.state, new.state} != {"running", "parked"}):
        if new.state == "failed":
            yield "error", "failed", f"failed: {new.failure}"
        elif old is not None or new.state != "stopped":
            yield "note", "state", new.state
    if old is None:
        return
    if (calls := new.count("guard_seen") - old.count("guard_seen")) > 0:
        severity: Severity = "error" if new.guard == "enforce" else "warning"
        yield severity, "system-calls", f"system calls: {calls}"
    for name, (severity, text) in _UNWANTED.items():
        if (added := new.count(name) - old.count(name)) > 0:
            yield severity, name.replace("_", "-"), f"{text}: {added}"
    if new.count("guard_lost") and not old.count("guard_lost"):
        yield "error", "guard-lost", "another library has taken over the guard's signal"
    if old.supervised and new.supervised is False:
        yield "warning", "unsupervised", "nobody polls it any more"
    if old.kernel is not None and new.kernel is not None:
        minor = new.kernel.faults_minor - old.kernel.faults_minor
        major = new.kernel.faults_major - old.kernel.faults_major
        if minor > 0 or major > 0:
            yield "warning", "page-faults", f"page faults: {minor} minor, {major} major"


def _about_queue(old: QueueLook | None, new: QueueLook | None) -> _Told:
    if new is None:
        yield "note", "vanished", "vanished"
        return
    if new.problem and (old is None or old.problem != new.problem):
        yield "error", "unreadable", new.problem
    if old is None:
        if not new.problem:
            yield "note", "appeared", "appeared"
        return
    if old.problem and not new.problem:
        yield "note", "readable", "can be read again"
    if old.queue_id != new.queue_id:
        if not new.problem and not old.problem:
            yield "warning", "replaced", "another queue stands in its place"
        return
    yield from _about_writer(old, new)
    if new.cuts > old.cuts:
        cut = new.cut_bytes - old.cut_bytes
        yield "error", "cut", f"a recovery has cut off {cut:,} bytes"
    elif new.recoveries > old.recoveries:
        yield "warning", "recovered", "recovered after a crash"
    if (inline := new.rolls_inline - old.rolls_inline) > 0:
        yield "warning", "rolls-inline", f"rolls made by the writer itself: {inline}"
    if new.beat_late and not old.beat_late:
        yield "warning", "heartbeat", "its heartbeat is late"
    yield from _about_readers(old, new)


def _about_writer(old: QueueLook, new: QueueLook) -> _Told:
    if new.epoch != old.epoch:
        yield "note", "writer-up", f"opened by a writer, pid {new.writer_pid}"
        if not new.writer_live:
            yield "note", "writer-gone", "its writer is gone"
    elif old.writer_live and not new.writer_live:
        yield "warning", "writer-gone", "its writer is gone"


def _about_readers(old: QueueLook, new: QueueLook) -> _Told:
    before = {reader.name: reader for reader in old.readers}
    for reader in new.readers:
        was = before.pop(reader.name, None)
        if reader.problem and (was is None or was.problem != reader.problem):
            yield "error", "cursor", f"reader '{reader.name}': {reader.problem}"
        elif reader.live and (was is None or not was.live):
            yield "note", "reader-up", f"reader '{reader.name}' is there, pid {reader.pid}"
        elif was is not None and was.live and not reader.live:
            yield "note", "reader-gone", f"reader '{reader.name}' is gone"
        if _misses(reader.next_seq, new.first_seq) and (
            was is None or not _misses(was.next_seq, old.first_seq)
        ):
            missing = new.first_seq - (reader.next_seq or 0)
            yield "warning", "gap", f"reader '{reader.name}' has missed {missing:,} messages"
    for name in before:
        yield "note", "reader-removed", f"reader '{name}' was removed"


def _misses(next_seq: int | None, first_seq: int) -> bool:
    return next_seq is not None and next_seq < first_seq


NO_RATES: Final = ThreadRates(0.0, 0.0, 0.0, 0, None, None, None, NO_TIMES, NO_TIMES)
"""Of a thread that was not there before."""
