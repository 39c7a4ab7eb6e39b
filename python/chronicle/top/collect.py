"""Looks at a bus: its endpoints, counters files and queues.

A look walks the tree below the bus, whatever stands in it, and never follows a link. What vanishes
while it is looked at is not told; what is damaged, foreign or refused is told as such. Files are
read, not mapped; locks are asked about, not taken; no reader is registered; nothing is done on a
hot thread.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from chronicle._core import clock_ns
from chronicle.bus import Bus, Status
from chronicle.bus.names import MARKERS
from chronicle.errors import BadArgument, ChronicleError
from chronicle.hot.counters import COUNTERS_FILE, ProcessCounters, ThreadCounts, read_counters
from chronicle.sidecar import files
from chronicle.top.messages import printable
from chronicle.top.model import (
    BusLook,
    KernelCounts,
    LogLine,
    ProcessLook,
    ProcessState,
    QueueLook,
    ServiceLook,
    ThreadLook,
)
from chronicle.top.queues import look_at_queue

__all__ = ["Collector"]

_DEPTH_MAX: Final = 12
_ENTRIES_MAX: Final = 100_000
#: Without a lease: a process whose sidecar has told nothing for so long is called stalled.
_TOLD_S_MAX: Final = 5.0
_TEXT_MAX: Final = 2_000
_KERNEL: Final = ("faults_minor", "faults_major", "switches_voluntary", "switches_involuntary")
#: What can go wrong with a file that somebody else writes.
_BAD_FILE: Final = (OSError, ChronicleError, ValueError, RecursionError)


class _Places(NamedTuple):
    endpoints: list[str]
    counters: list[str]
    queues: list[str]
    problems: list[tuple[str, str]]


class Collector:
    """Looks at a bus, as often as it is asked.

    Parameters
    ----------
    path
        Of the bus. Any directory will do; links in it are not followed.

    Raises
    ------
    BadArgument
        If it is no directory.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> tmp = tempfile.TemporaryDirectory()
    >>> with chronicle.Queue.open_publisher(f"{tmp.name}/a/ticks", segment_bytes=1 << 16) as writer:
    ...     seq = writer.append(1, b"hello")
    ...     [queue.name for queue in Collector(tmp.name).look().queues]
    ['a/ticks']
    >>> tmp.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        if not self.path.is_dir():
            raise BadArgument(f"no such directory: bus='{self.path}'; name the directory of a bus")
        self._bus = Bus(self.path)
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def look(self) -> BusLook:
        """Look at everything once. Some 0.2 ms for each queue and hot thread."""
        at_ns, taken_ns = clock_ns(), time.monotonic_ns()
        places = _places(self.path)
        problems = places.problems
        counted: dict[str, ProcessCounters] = {}
        for name in places.counters:
            try:
                counted[name] = read_counters(self.path / name / COUNTERS_FILE)
            except FileNotFoundError:
                continue
            except _BAD_FILE as error:
                problems.append((f"{name}/{COUNTERS_FILE}", _line(error)))
        endpoints = set(places.endpoints)
        names, of_threads = _Names(), _Names()
        processes, threads = [], []
        for name in sorted({*endpoints, *counted}):
            shown, found = names.shown(name), counted.get(name)
            processes.append(
                self._process(name, shown, found, is_endpoint=name in endpoints, at_ns=at_ns)
            )
            threads += [
                # As `thread_name` puts the two together.
                _thread(shown, of_threads.shown(thread.name, within=f"{shown}:"), thread)
                for thread in (found.threads if found is not None else ())
            ]
        return BusLook(
            _text(str(self.path)),
            at_ns,
            taken_ns,
            tuple(processes),
            tuple(sorted(threads, key=lambda thread: thread.key)),
            tuple(self._queues(places)),
            tuple((_text(path), reason) for path, reason in problems),
        )

    def _queues(self, places: _Places) -> Iterator[QueueLook]:
        names = _Names()
        for name in sorted(places.queues):
            try:
                found = look_at_queue(self.path / name, name)
            except FileNotFoundError:
                continue
            except _BAD_FILE as error:
                found = QueueLook(name, str(self.path / name), problem=str(error))
            readers = _Names()
            yield replace(
                found,
                name=names.shown(name),
                problem=_text(found.problem),
                held_by=_text(found.held_by),
                readers=tuple(
                    replace(reader, name=readers.shown(reader.name), problem=_text(reader.problem))
                    for reader in found.readers
                ),
            )

    def _process(
        self,
        name: str,
        shown: str,
        counted: ProcessCounters | None,
        *,
        is_endpoint: bool,
        at_ns: int,
    ) -> ProcessLook:
        document: Mapping[str, Any] = {} if counted is None else counted.document
        told_age_s = self._told_age_s(counted, at_ns)
        state, reason, status = self._state(name, counted, told_age_s, is_endpoint=is_endpoint)
        lease = None if status is None else status.lease
        pid = lease.pid if lease is not None else counted.pid if counted is not None else 0
        if lease is not None:
            instance = lease.instance
        else:
            instance = "" if counted is None else counted.instance
        return ProcessLook(
            shown,
            state,
            _text(reason),
            instance,
            pid,
            ready=status is not None and status.ready,
            epoch=None if lease is None else lease.epoch,
            told_age_s=told_age_s,
            cpu_s=_number(document.get("cpu_s")),
            services=tuple(_services(document.get("services"))),
            log=tuple(_log(document.get("log"))),
        )

    def _told_age_s(self, counted: ProcessCounters | None, at_ns: int) -> float | None:
        """Return how long ago a process has told; of this boot, whatever the wall clock did."""
        if counted is None:
            return None
        told_ns = _whole(counted.document.get("at_boottime_ns"))
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if told_ns is None or counted.boot != self._boot:
            told_ns, now_ns = _whole(counted.document.get("at_ns")), at_ns
        return None if told_ns is None else max(0.0, (now_ns - told_ns) / 1e9)

    def _status(self, name: str) -> Status:
        if name == ".":
            # A look at one endpoint, whose name is that of the directory.
            return Bus(self.path.parent).status(self.path.name)
        return self._bus.status(name)

    def _state(
        self,
        name: str,
        counted: ProcessCounters | None,
        told_age_s: float | None,
        *,
        is_endpoint: bool,
    ) -> tuple[ProcessState, str, Status | None]:
        gone = self._gone(counted)
        if is_endpoint:
            try:
                status = self._status(name)
            except (OSError, ChronicleError) as error:
                return "refused", _line(error), None
            # Closed in order, the lease with it: what it has counted stays where it is.
            if status.state != "absent" or gone:
                return status.state, status.reason, status
        assert counted is not None
        if gone:
            return "dead", gone, None
        if told_age_s is None or told_age_s > _TOLD_S_MAX:
            return "stalled", "counters not told", None
        return "alive", "", None

    def _gone(self, counted: ProcessCounters | None) -> str:
        """Return why the process of a counters file is there no more; empty if it is."""
        if counted is None:
            return "no counters file"
        if counted.boot != self._boot:
            return "another boot"
        return "" if os.path.lexists(f"/proc/{counted.pid}") else "no such process"


# --- What stands where ---


def _places(root: Path) -> _Places:
    """Walk the tree: what could be an endpoint, a counters file, a queue."""
    places = _Places([], [], [], [])
    left = [("", 0)]
    seen = 0
    while left:
        name, depth = left.pop()
        try:
            with os.scandir(root / name) as entries:
                listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except FileNotFoundError:
            continue
        except OSError as error:
            places.problems.append((name or ".", _line(error)))
            continue
        names = {entry for entry, _ in listed}
        if files.CONTROL in names:
            # What is inside of a queue is nobody else's.
            places.queues.append(name or ".")
            continue
        if names & MARKERS:
            places.endpoints.append(name or ".")
        if COUNTERS_FILE in names:
            places.counters.append(name or ".")
        below = [entry for entry, is_directory in listed if is_directory and entry[0] != "."]
        seen += len(listed)
        if seen > _ENTRIES_MAX or (below and depth == _DEPTH_MAX):
            places.problems.append((name or ".", "too much to look at: what is below is left out"))
            continue
        left += [(f"{name}/{entry}" if name else entry, depth + 1) for entry in below]
    return places


# --- From documents that somebody else wrote to data ---


class _Names:
    """Names that can be shown, and that are told apart.

    Directories and threads are called what somebody else likes: two threads alike, or so that only
    what must be escaped tells two names apart.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def shown(self, name: str, *, within: str = "") -> str:
        """Return what to show of a name; of one that is taken, with its number."""
        text = first = _text(name)
        number = 1
        while within + text in self._taken:
            number += 1
            text = f"{first} ({number})"
        self._taken.add(within + text)
        return text


def _thread(process: str, name: str, counts: ThreadCounts) -> ThreadLook:
    about = counts.about
    kernel = about.get("kernel")
    settings = about.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    warnings = about.get("warnings")
    supervised = about.get("supervised")
    return ThreadLook(
        process,
        name,
        counts.state,
        core=_whole(about.get("core")),
        guard=_text(settings.get("guard")),
        wait=_text(settings.get("wait")),
        meter=_text(settings.get("meter")),
        thread_id=counts.words.get("thread_id", 0),
        words={_text(name): value for name, value in counts.words.items()},
        outside={_text(name): int(value) for name, value in about.items() if _is_count(value)},
        counters={_text(name): value for name, value in counts.counters.items()},
        loop_gap=counts.loop_gap,
        handler_time=counts.handler_time,
        kernel=_kernel(kernel) if isinstance(kernel, dict) else None,
        supervised=supervised if isinstance(supervised, bool) else None,
        warnings=tuple(_text(item) for item in warnings) if isinstance(warnings, list) else (),
        failure=_text(about.get("failure")),
    )


def _kernel(found: Mapping[str, Any]) -> KernelCounts:
    return KernelCounts(*(_whole(found.get(name)) or 0 for name in _KERNEL))


def _services(found: object) -> Iterator[ServiceLook]:
    names = _Names()
    for name, service in found.items() if isinstance(found, dict) else ():
        if isinstance(service, dict):
            yield ServiceLook(
                names.shown(name),
                _text(service.get("state")),
                _whole(service.get("restarts")) or 0,
                _text(service.get("last_error")),
                _text(service.get("detail")),
                healthy=service.get("healthy") is True,
            )


def _log(found: object) -> Iterator[LogLine]:
    for line in found if isinstance(found, list) else ():
        if isinstance(line, dict):
            yield LogLine(
                _whole(line.get("number")) or 0,
                _whole(line.get("at_ns")) or 0,
                _text(line.get("level")),
                _text(line.get("logger")),
                _text(line.get("text")),
            )


def _text(value: object) -> str:
    """Return text that cannot steer a terminal."""
    if not isinstance(value, str):
        return ""
    return printable(value[:_TEXT_MAX])


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 64


def _whole(value: object) -> int | None:
    return value if type(value) is int and _is_count(value) else None


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _line(error: BaseException) -> str:
    return _text(str(error)) or type(error).__name__
