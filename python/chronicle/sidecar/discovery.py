"""Discovery: which queues there are, each change told exactly once.

A `Ledger` compares what a look has seen with the look before, and tells the difference; it is the
only place that decides about changes. A `Discovery` is the service around it: it looks when the
kernel says that a directory has changed (inotify), and at an interval in any case. Hints may be
lost, doubled or late without harm: they only say when to look.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from chronicle.sidecar.scan import DirectoryId, Found, Look, Pattern, Readiness, queue_identity
from chronicle.sidecar.supervise import Service
from chronicle.sidecar.workers import in_worker
from chronicle.values import Value

if TYPE_CHECKING:
    import asyncinotify

__all__ = ["Appeared", "Change", "Discovery", "Ledger", "OnChange", "Ready", "Vanished"]

_log = logging.getLogger("chronicle.sidecar")

#: A look is followed by a rest of this many times its length, so that a directory in which names
#: never stop changing costs a third of the worker at most.
_REST = 2.0
_REST_MIN_S = 0.0005
#: First pause for queues that are about to be ready; it doubles.
_ALMOST_S = 0.0005
#: So often to look, at growing pauses, after somebody has closed a file that matters.
_CLOSING_LOOKS = 9


class Appeared(Value):
    """A directory is there that matches the pattern. It may not be a queue yet.

    Parameters
    ----------
    path
        Absolute.
    """

    __slots__ = ("path",)
    path: str

    def __init__(self, path: str) -> None:
        self._set(path)


class Ready(Value):
    """A queue can be opened.

    Parameters
    ----------
    path
        Absolute.
    identity
        Of the queue: another one at the same path has another.
    """

    __slots__ = ("path", "identity")  # noqa: RUF023  # the order of the arguments
    path: str
    identity: str

    def __init__(self, path: str, identity: str) -> None:
        self._set(path, identity)


class Vanished(Value):
    """What had appeared is gone.

    Parameters
    ----------
    path
        Absolute.
    identity
        Of the queue, if it had been ready.
    """

    __slots__ = ("path", "identity")  # noqa: RUF023  # the order of the arguments
    path: str
    identity: str | None

    def __init__(self, path: str, identity: str | None) -> None:
        self._set(path, identity)


Change: TypeAlias = Appeared | Ready | Vanished
#: Told of each change, in order, on the sidecar's loop.
OnChange: TypeAlias = Callable[[Change], object]


class Ledger:
    """What was there at the last look.

    >>> ledger = Ledger()
    >>> list(ledger.update({"/a": Found((1, 7), None)}))
    [Appeared(path='/a')]
    >>> list(ledger.update({"/a": Found((1, 7), "id")}))
    [Ready(path='/a', identity='id')]
    >>> list(ledger.update({"/a": Found((1, 7), "id")})), list(ledger.update({}))
    ([], [Vanished(path='/a', identity='id')])
    """

    def __init__(self) -> None:
        self.known: dict[str, Found] = {}

    def update(self, found: dict[str, Found]) -> list[Change]:
        """Take a new look in; return what has changed, what is gone first, then by path."""
        gone: list[Change] = []
        come: list[Change] = []
        for path in sorted(self.known.keys() | found.keys()):
            before, now = self.known.get(path), found.get(path)
            if before is not None and (now is None or _is_another(before, now)):
                gone.append(Vanished(path, before.identity))
                before = None
            if now is None:
                continue
            if before is None:
                come.append(Appeared(path))
            if now.identity is not None and (before is None or before.identity is None):
                come.append(Ready(path, now.identity))
        self.known = dict(found)
        return gone + come


def _is_another(before: Found, now: Found) -> bool:
    """Whether this is another incarnation; that one becomes ready is the same."""
    if before.directory != now.directory:
        return True
    return before.identity is not None and before.identity != now.identity


class Discovery:
    """Finds queues that match a pattern and tells of each change.

    Parameters
    ----------
    pattern
        As for `Pattern`.
    on_change
        Called with each `Change`; plain or ``async def``. What it raises is logged; the change
        counts as told.
    interval_s
        Looks at least this often.
    watch
        Look when the kernel tells of changes, too.
    readiness
        Tells the identity of what is ready at a path.

    Attributes
    ----------
    looks, hints, overflows
        Counters: looks, events of the kernel, and how often it could not keep up.
    unwatched
        Directories that could not be watched, and why; seen at the interval only.
    refused
        Paths that match and are not taken, and why, as the last look has told.
    """

    def __init__(
        self,
        pattern: Pattern,
        on_change: OnChange,
        *,
        interval_s: float = 1.0,
        watch: bool = True,
        readiness: Readiness | None = None,
    ) -> None:
        self.pattern = pattern
        self.ledger = Ledger()
        self.looks = 0
        self.hints = 0
        self.overflows = 0
        self.unwatched: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self._on_change = on_change
        self._interval_s = interval_s
        self._watch = watch
        self._readiness = readiness or queue_identity()
        self._service: Service | None = None
        self._almost: set[str] = set()
        self._almost_pause_s = _ALMOST_S
        self._closings = 0

    def service(self, name: str) -> Service:
        """Make the service that looks."""
        self._service = Service(name, self._run)
        return self._service

    async def look(self) -> Look:
        """Look once, and tell what has changed."""
        look = await in_worker(None, self.pattern.look, self._readiness)
        self.looks += 1
        for path, why in look.refused.items():
            if self.refused.get(path) != why:
                _log.warning("discovery of '%s': %s", self.pattern.text, why)
        self.refused = look.refused
        for change in self.ledger.update(look.found):
            await self._tell(change)
        if self._service is not None:
            ready = sum(found.identity is not None for found in look.found.values())
            self._service.beat(f"{len(look.found)} there, {ready} ready{self._blind_spots()}")
        return look

    def _blind_spots(self) -> str:
        text = ""
        if self.refused:
            text = f"; {len(self.refused)} refused, {next(iter(self.refused.values()))}"
        if self.unwatched:
            path, why = next(iter(self.unwatched.items()))
            text += f"; {len(self.unwatched)} directories not watched, '{path}': {why}"
        return text

    def _pause_s(self, look: Look) -> float:
        """Return how long to wait for an event: not for long if none will come."""
        if not look.almost or look.almost != self._almost:
            self._almost = look.almost
            self._almost_pause_s = _ALMOST_S
        else:
            # Its maker may have died.
            self._almost_pause_s = min(2 * self._almost_pause_s, self._interval_s)
        if self._closings > 0:
            # The kernel tells of a file that is closed just before it frees the lock on it.
            self._closings -= 1
            return min(_ALMOST_S * (1 << (_CLOSING_LOOKS - self._closings)), self._interval_s)
        return min(self._almost_pause_s if look.almost else self._interval_s, self._interval_s)

    async def _tell(self, change: Change) -> None:
        try:
            result = self._on_change(change)
            if inspect.isawaitable(result):
                await result
        except Exception:
            _log.exception(
                "discovery of '%s': the callback failed on %r", self.pattern.text, change
            )

    async def _run(self) -> None:
        if not self._watch:
            while True:
                await asyncio.sleep(self._pause_s(await self.look()))
        with Watches(self._readiness) as watches:
            while True:
                begin_s = time.monotonic()
                look = await self.look()
                self.unwatched = {}
                is_new = watches.follow(look.directories, self.unwatched)
                await asyncio.sleep(max(_REST_MIN_S, _REST * (time.monotonic() - begin_s)))
                # Something may have come into a new directory before it was watched.
                if not is_new:
                    await watches.wait(self._pause_s(look))
                    self._closings = _CLOSING_LOOKS if watches.take_closed() else self._closings
                self.hints, self.overflows = watches.hints, watches.overflows


class Watches:
    """The kernel's events for a set of directories, as one flag."""

    def __init__(self, readiness: Readiness) -> None:
        # Imported here: the module is only needed where there is something to watch.
        import asyncinotify

        self.hints = 0
        self.overflows = 0
        self._quiet: frozenset[str] = getattr(readiness, "quiet_names", frozenset())
        self._closing: frozenset[str] = getattr(readiness, "closing_names", frozenset())
        self._closed = False
        self._masks = asyncinotify.Mask
        self._mask = (
            self._masks.CREATE
            | self._masks.DELETE
            | self._masks.MOVE
            | self._masks.DELETE_SELF
            | self._masks.MOVE_SELF
            | self._masks.ONLYDIR
            | self._masks.DONT_FOLLOW
        )
        if self._closing:
            self._mask |= self._masks.CLOSE_WRITE
        # With a timeout of zero, sync_get returns what is there.
        self._inotify = asyncinotify.Inotify(cache_size=64, sync_timeout=0)
        self._set: dict[tuple[str, DirectoryId], asyncinotify.Watch] = {}
        self._flag = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._inotify.fd, self._drain)

    def follow(self, directories: dict[str, DirectoryId], failed: dict[str, str]) -> bool:
        """Watch these directories and no others; whether there is a new one among them."""
        wanted = set(directories.items())
        for key in self._set.keys() - wanted:
            # Of a directory that is gone the kernel has removed the watch itself.
            with contextlib.suppress(OSError):
                self._inotify.rm_watch(self._set.pop(key))
        is_new = False
        for path, directory in sorted(wanted - self._set.keys()):
            try:
                self._set[path, directory] = self._inotify.add_watch(path, self._mask)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    failed[path] = _explain(error)
                continue
            is_new = True
        return is_new

    async def wait(self, timeout_s: float) -> None:
        """Wait until something has changed, at most so long. Changes since the last call count."""
        try:
            # Not wait_for, which before Python 3.12 may swallow a cancellation.
            async with asyncio.timeout(timeout_s):
                await self._flag.wait()
        except TimeoutError:
            return
        self._flag.clear()

    def _drain(self) -> None:
        """Take what the kernel has to say. Called by the loop when there is something."""
        while (event := self._inotify.sync_get()) is not None:
            self.hints += 1
            self.overflows += bool(event.mask & self._masks.Q_OVERFLOW)
            if event.mask & self._masks.IGNORED:
                # The watch has ended. Where inodes are used again, as on ext4, the same key may
                # soon mean another directory.
                self._set = {key: w for key, w in self._set.items() if w is not event.watch}
            if self._matters(event):
                self._flag.set()

    def _matters(self, event: asyncinotify.Event) -> bool:
        name = None if event.name is None else str(event.name)
        if event.mask & self._masks.CLOSE_WRITE:
            if name not in self._closing:
                return False
            self._closed = True
            return True
        return name not in self._quiet

    def take_closed(self) -> bool:
        """Whether somebody has closed a file that matters, since the last call."""
        closed, self._closed = self._closed, False
        return closed

    def __enter__(self) -> Watches:
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.remove_reader(self._inotify.fd)
        self._inotify.close()


def _explain(error: OSError) -> str:
    text = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        return f"{text}; raise fs.inotify.max_user_watches"
    if error.errno == errno.EMFILE:
        return f"{text}; raise fs.inotify.max_user_instances"
    return text
