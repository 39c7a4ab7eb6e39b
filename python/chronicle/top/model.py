"""A bus at a moment, as plain data. Nothing here looks at anything or shows anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from chronicle.hot.meter import Histogram

__all__ = [
    "NO_TIMES",
    "BusLook",
    "KernelCounts",
    "LogLine",
    "ProcessLook",
    "ProcessState",
    "QueueLook",
    "ReaderLook",
    "ServiceLook",
    "ThreadLook",
]

ProcessState: TypeAlias = Literal["alive", "stalled", "dead", "absent", "refused"]

NO_TIMES: Final = Histogram((), 0)
"""A histogram of nothing."""


@dataclass(frozen=True, slots=True)
class ServiceLook:
    """A service of a sidecar, as its process tells.

    Attributes
    ----------
    name, state, restarts, detail
        As in `Health`.
    last_error
        Empty if there was none.
    healthy
        It runs and does not complain.
    """

    name: str
    state: str
    restarts: int
    last_error: str
    detail: str
    healthy: bool


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a process's log.

    Attributes
    ----------
    number
        Counts the lines of the process.
    at_ns
        Wall clock.
    level, logger, text
        As in `logging`.
    """

    number: int
    at_ns: int
    level: str
    logger: str
    text: str


@dataclass(frozen=True, slots=True)
class ProcessLook:
    """A process: an endpoint of the bus, a counters file, or both.

    Attributes
    ----------
    name
        Its directory below the bus.
    state, reason
        As in `Status`. Without a lease the state follows from the counters file: whether the
        process exists, and when it has last told of itself. ``"refused"``: what is there does not
        belong on a bus.
    instance
        Identity of this life; empty if unknown.
    pid
        0 if unknown.
    ready
        Whether its queues can be opened, as far as markers tell.
    epoch
        How often the endpoint was opened; ``None`` without a lease.
    told_age_s
        Seconds since the sidecar has last told of itself in the counters file; ``None`` without.
    cpu_s
        Seconds of CPU that the process has used; ``None`` if it does not tell.
    services
        Of its sidecar.
    log
        Its last lines, oldest first, if it tells them.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> tmp = tempfile.TemporaryDirectory()
    >>> with chronicle.bus.Bus(tmp.name).open_endpoint("orders/alpha"):
    ...     (process,) = chronicle.top.Collector(tmp.name).look().processes
    >>> process.name, process.state, process.ready, process.epoch
    ('orders/alpha', 'alive', False, 1)
    >>> tmp.cleanup()
    """

    name: str
    state: ProcessState
    reason: str = ""
    instance: str = ""
    pid: int = 0
    ready: bool = False
    epoch: int | None = None
    told_age_s: float | None = None
    cpu_s: float | None = None
    services: tuple[ServiceLook, ...] = ()
    log: tuple[LogLine, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelCounts:
    """What the kernel counts of a thread since it started."""

    faults_minor: int = 0
    faults_major: int = 0
    switches_voluntary: int = 0
    switches_involuntary: int = 0


@dataclass(frozen=True, slots=True)
class ThreadLook:
    """A hot thread. Numbers count from its start.

    Attributes
    ----------
    process
        `ProcessLook.name` of its process.
    name, state, core
        Role name, state as in `HotStatus`, the core that it is pinned to.
    guard, wait, meter
        Its settings; empty if its process does not tell them.
    thread_id
        The kernel's.
    words
        What it counts itself, by the names of `HotStatus`.
    outside
        What its process counts of it: guard, rolls and so on.
    counters
        The handler's own.
    loop_gap, handler_time
        Histograms.
    kernel
        ``None`` if its process does not tell.
    supervised
        Somebody polls it; ``None`` if its process does not tell.
    warnings
        What the kernel refused at its start.
    failure
        What it failed with; empty if it did not.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> tmp = tempfile.TemporaryDirectory()
    >>> counters = chronicle.hot.CountersFile.create(f"{tmp.name}/COUNTERS")
    >>> with chronicle.Sidecar() as sidecar:
    ...     hot = chronicle.HotThread(print, name="echo", counters_file=counters)
    ...     service = sidecar.publish_counters(counters)
    ...     hot = sidecar.attach(hot)
    >>> (thread,) = chronicle.top.Collector(tmp.name).look().threads
    >>> thread.name, thread.state, thread.count("messages"), thread.guard
    ('echo', 'stopped', 0, 'off')
    >>> counters.close(); tmp.cleanup()
    """

    process: str
    name: str
    state: str
    core: int | None = None
    guard: str = ""
    wait: str = ""
    meter: str = ""
    thread_id: int = 0
    words: Mapping[str, int] = field(default_factory=dict)
    outside: Mapping[str, int] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    loop_gap: Histogram = NO_TIMES
    handler_time: Histogram = NO_TIMES
    kernel: KernelCounts | None = None
    supervised: bool | None = None
    warnings: tuple[str, ...] = ()
    failure: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What finds it again in the next look."""
        return self.process, self.name

    def count(self, name: str) -> int:
        """Return one of its counts, whoever keeps it; 0 if nobody does."""
        return self.words.get(name, self.outside.get(name, 0))


@dataclass(frozen=True, slots=True)
class ReaderLook:
    """A registered reader of a queue.

    Attributes
    ----------
    name, live, pid
        A reader lives as long as it holds its lock.
    next_seq
        The first message that it has not committed; ``None`` before it is placed.
    position
        The same as a position.
    lag_messages, lag_bytes
        How far it is behind the writer.
    problem
        Why its cursor cannot be read; empty if it can.

    Examples
    --------
    >>> reader = ReaderLook("risk", live=True, pid=4_300, next_seq=90, lag_messages=11)
    >>> QueueLook("ticks", "/bus/ticks", readers=(reader,)).lag_messages
    11
    """

    name: str
    live: bool
    pid: int = 0
    next_seq: int | None = None
    position: int = 0
    lag_messages: int = 0
    lag_bytes: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class QueueLook:
    """A queue.

    Attributes
    ----------
    name, path
        Below the bus, and in full.
    queue_id, epoch
        Identity, and how many writers have opened it.
    writer_live, writer_pid
        A writer lives as long as it holds its lock.
    first_seq, next_seq
        Of the oldest message that exists, and of the next one to be written.
    position
        Where that will stand.
    newest_ns
        Time of the newest message; 0 if there is none.
    durable_seq
        The last one that is on disk for certain.
    segment_bytes, segments
        Size of one, and how many files there are.
    floor_segment, tail_segment
        The oldest, and the one that is written.
    rolls, rolls_inline
        Rolls that the provisioner had prepared, and those that the writer made itself.
    recoveries, cuts, cut_bytes, segments_deleted
        As in the control block.
    readers
        Registered ones.
    held_by
        The live reader that keeps the oldest segments from being deleted; empty if none does.
    beat_age_s
        Seconds since the last heartbeat; ``None`` without heartbeats.
    beat_late
        Three heartbeats are missing.
    problem
        Why it cannot be read, in whole or in part; empty if it can.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> tmp = tempfile.TemporaryDirectory()
    >>> with chronicle.Queue.open_publisher(f"{tmp.name}/ticks", segment_bytes=1 << 16) as writer:
    ...     seq = writer.append(1, b"hello")
    ...     (queue,) = chronicle.top.Collector(tmp.name).look().queues
    >>> queue.name, queue.writer_live, queue.next_seq, queue.size_bytes
    ('ticks', True, 2, 65536)
    >>> tmp.cleanup()
    """

    name: str
    path: str
    queue_id: str = ""
    epoch: int = 0
    writer_live: bool = False
    writer_pid: int = 0
    first_seq: int = 1
    next_seq: int = 1
    position: int = 0
    newest_ns: int = 0
    durable_seq: int = 0
    segment_bytes: int = 0
    segments: int = 0
    floor_segment: int = 0
    tail_segment: int = 0
    rolls: int = 0
    rolls_inline: int = 0
    recoveries: int = 0
    cuts: int = 0
    cut_bytes: int = 0
    segments_deleted: int = 0
    readers: tuple[ReaderLook, ...] = ()
    held_by: str = ""
    beat_age_s: float | None = None
    beat_late: bool = False
    problem: str = ""

    @property
    def size_bytes(self) -> int:
        """Size of all segment files."""
        return self.segments * self.segment_bytes

    @property
    def lag_messages(self) -> int:
        """How far the last of the live readers is behind."""
        return max((reader.lag_messages for reader in self.readers if reader.live), default=0)


@dataclass(frozen=True, slots=True)
class BusLook:
    """A bus at a moment.

    Attributes
    ----------
    path
        Of the bus.
    at_ns
        Wall clock of the look.
    taken_ns
        The monotonic clock's, for rates.
    processes, threads, queues
        Sorted by name.
    problems
        What could not be looked at: path and reason.

    Examples
    --------
    >>> look = BusLook("/bus", 0, 0, queues=(QueueLook("ticks", "/bus/ticks"),))
    >>> [queue.name for queue in look.queues], look.problems
    (['ticks'], ())
    """

    path: str
    at_ns: int
    taken_ns: int
    processes: tuple[ProcessLook, ...] = ()
    threads: tuple[ThreadLook, ...] = ()
    queues: tuple[QueueLook, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()
