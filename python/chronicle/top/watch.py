"""Looks again and again: what the dashboard and `--once` show is a `View`."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from chronicle.top.changes import Changes, Event, ThreadRates, compare
from chronicle.top.model import BusLook, LogLine, ThreadLook

__all__ = ["Looks", "ProcessLine", "View", "Watch"]

_EVENTS_MAX: Final = 1_000
_LINES_MAX: Final = 1_000


class Looks(Protocol):
    """Whatever gives looks: a `Collector`, or a test."""

    def look(self) -> BusLook:
        """Look once."""


class ProcessLine(NamedTuple):
    """A line of the log of a process."""

    process: str
    line: LogLine


@dataclass(frozen=True, slots=True)
class View:
    """A look, and what led to it.

    Attributes
    ----------
    look
        The last one.
    changes
        Since the one before it.
    since
        What each hot thread did since it was first seen, by its key.
    events
        All so far, oldest first.
    log
        Lines of all processes, oldest first.
    """

    look: BusLook
    changes: Changes
    since: dict[tuple[str, str], ThreadRates]
    events: tuple[Event, ...]
    log: tuple[ProcessLine, ...]


class Watch:
    """Keeps the looks before this one, as far as they matter.

    >>> watch = Watch()
    >>> watch.add(BusLook("/bus", at_ns=0, taken_ns=0)).changes.seconds
    0.0
    """

    def __init__(self) -> None:
        self._last: BusLook | None = None
        self._first: dict[tuple[str, str], tuple[ThreadLook, int]] = {}
        self._events: deque[Event] = deque(maxlen=_EVENTS_MAX)
        self._lines: deque[ProcessLine] = deque(maxlen=_LINES_MAX)
        self._lines_seen: dict[tuple[str, str], int] = {}

    def add(self, look: BusLook) -> View:
        """Add a look; return what there is to show."""
        changes = Changes() if self._last is None else compare(self._last, look)
        self._events.extend(changes.events)
        self._add_lines(look)
        self._last = look
        return View(look, changes, self._since(look), tuple(self._events), tuple(self._lines))

    def restart(self) -> None:
        """Forget what was seen so far: counts since the first look begin with the last one."""
        self._first.clear()
        self._events.clear()

    def _since(self, look: BusLook) -> dict[tuple[str, str], ThreadRates]:
        result = {}
        for thread in look.threads:
            first, taken_ns = self._first.get(thread.key, (thread, look.taken_ns))
            before = BusLook(look.path, 0, taken_ns, threads=(first,))
            now = BusLook(look.path, 0, look.taken_ns, threads=(thread,))
            rates = compare(before, now).threads.get(thread.key)
            if rates is None or thread.key not in self._first:
                # New, or another thread of this name.
                self._first[thread.key] = (thread, look.taken_ns)
                rates = compare(now, now).threads[thread.key]
            result[thread.key] = rates
        return result

    def _add_lines(self, look: BusLook) -> None:
        new = []
        for process in look.processes:
            key = process.name, process.instance
            seen = self._lines_seen.get(key, 0)
            new += [ProcessLine(process.name, line) for line in process.log if line.number > seen]
            if process.log:
                self._lines_seen[key] = max(seen, process.log[-1].number)
        self._lines.extend(sorted(new, key=lambda one: one.line.at_ns))
