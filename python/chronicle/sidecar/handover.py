"""Hand-over: what discovery finds becomes sources of a hot thread, and comes back when it is gone.

Everything slow is done here: opening, mapping, prefaulting, provisioning. The hot thread gets a
reader that only has to be read. One task keeps each queue; what happens to it meanwhile (the hot
thread's answers, the queue's end) comes into the task's inbox.

A reader is taken back when it has read everything: a queue may vanish, or its owner die, right
behind its last message. Where the queue itself stays (its owner has died, and its next life is
awaited), the reader is kept for that next life, which so begins exactly behind the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from chronicle._core import Prefault
from chronicle.errors import (
    BadArgument,
    ChannelFull,
    ChronicleError,
    Closed,
    HotThreadFailed,
    Moved,
)
from chronicle.hot.acks import ReaderAdded, ReaderRemoved, Refused, SourceFailed
from chronicle.queue import Provisioner, Queue, QueueReader, Start
from chronicle.sidecar.discovery import Change, Discovery, OnChange, Ready, Vanished
from chronicle.sidecar.hotcare import HotCare
from chronicle.sidecar.scan import queue_at
from chronicle.sidecar.supervise import Backoff, Service, Stage
from chronicle.sidecar.workers import in_worker

__all__ = ["Admission", "Admit", "HandOver", "OnGone"]

_log = logging.getLogger("chronicle.sidecar")

#: How much of a segment is prefaulted before its reader is handed over.
_PREFAULT_BYTES = 1 << 20
#: How long to wait for a turn in which the hot thread finds nothing, before a reader is taken back
#: to see whether it has read everything.
_SETTLE_S = 0.25
_TAG_MAX = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Admission:
    """How a queue that was discovered is to be read.

    Parameters
    ----------
    start
        Where to begin, as for `Queue.open_subscriber`; ``None``: where this process stopped
        reading the same queue, and otherwise what `Sidecar.discover` was told.
    tag
        Number of the application's own choice, 0 to 4_294_967_295, that handlers see with each
        message of this source.

    Examples
    --------
    >>> from chronicle.sidecar import Admission
    >>> Admission(start="latest", tag=7)
    Admission(start='latest', tag=7)
    """

    start: Start | None = None
    tag: int = 0

    def __post_init__(self) -> None:
        """Refuse a tag that does not fit."""
        if type(self.tag) is not int or not 0 <= self.tag <= _TAG_MAX:
            raise BadArgument(f"bad tag: found={self.tag!r} expected=an integer of 0 to {_TAG_MAX}")


#: Asked, in a worker thread, before a queue's reader is opened.
Admit: TypeAlias = Callable[[str], Admission]
#: Told, in a worker thread, once a queue that was admitted is read no more.
OnGone: TypeAlias = Callable[[str], object]

_WITHOUT_ADMIT = Admission()


@dataclass(eq=False)
class _Kept:
    """A queue that is kept at the hot thread while it is there."""

    path: str
    identity: str
    state: str = "opening"
    source: int | None = None
    error: str | None = None
    is_admitted: bool = False
    #: Of the queue that was there when it was found ready.
    queue_id: str | None = None
    is_gone: asyncio.Event = field(default_factory=asyncio.Event)
    #: Answers of the hot thread: (kind, what it carries).
    inbox: asyncio.Queue[tuple[str, Any]] = field(default_factory=asyncio.Queue)


class HandOver:
    """Keeps every queue that matches a pattern at a hot thread.

    Parameters
    ----------
    care
        Of the hot thread.
    name
        Of the readers; ``None``: unregistered.
    start
        Where a reader begins that is opened for the first time. One that is opened again, after an
        error, resumes if it has a name.
    provisioner
        Gets the readers' next segments ready.
    on_change
        Told of each change as well.
    admit
        Asked before each opening; see `Sidecar.discover`.
    on_gone
        Called once for each time that `admit` has returned.
    in_order
        A queue's next life begins when its last one has been taken back. Always so with `admit` or
        `on_gone`.
    """

    def __init__(
        self,
        care: HotCare,
        *,
        name: str | None,
        start: Start,
        provisioner: Callable[[], Provisioner],
        backoff: Backoff,
        on_change: OnChange | None = None,
        admit: Admit | None = None,
        on_gone: OnGone | None = None,
        in_order: bool = False,
    ) -> None:
        self.opened = 0
        self._care = care
        self._name = name
        self._start = start
        self._provisioner = provisioner
        self._backoff = backoff
        self._on_change = on_change
        self._admit = admit
        self._on_gone = on_gone
        self._in_order = in_order or admit is not None or on_gone is not None
        self._kept: dict[str, _Kept] = {}
        #: Those that have vanished, and are not let go yet.
        self._leaving: set[_Kept] = set()
        #: Readers of queues that are still there, for their owners' next lives.
        self._waiting: dict[str, QueueReader] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_task: dict[str, asyncio.Task[None]] = {}
        self._by_ticket: dict[int, _Kept] = {}
        self._by_source: dict[int, _Kept] = {}
        #: Every reader that was opened here and not closed yet.
        self._readers: set[QueueReader] = set()
        self._discovery: Discovery | None = None
        care.listen(self._on_event)

    def service(self, name: str, discovery: Discovery) -> Service:
        """Make the service that discovers and hands over."""
        self._discovery = discovery
        service = discovery.service(name)
        service.stage = Stage.INPUT
        service.finish = self._finish
        service.examine = self._examine
        return service

    @property
    def attached(self) -> list[str]:
        """Paths of the queues that the hot thread reads now."""
        return sorted(k.path for k in list(self._kept.values()) if k.state == "attached")

    def _examine(self) -> str | None:
        known = [*list(self._kept.values()), *list(self._leaving)]
        failing = [k for k in known if k.error is not None]
        if not failing:
            return None
        first = failing[0]
        what = "let go" if first.state == "leaving" else "read"
        return f"{len(failing)} queues cannot be {what}, '{first.path}': {first.error}"

    # --- What happens ---

    async def on_change(self, change: Change) -> None:
        """Take a change of the discovery in."""
        match change:
            case Ready(path, identity):
                self._begin(path, identity)
            case Vanished(path):
                if path in self._kept:
                    kept = self._kept.pop(path)
                    self._leaving.add(kept)
                    kept.is_gone.set()
                    kept.inbox.put_nowait(("gone", None))
                elif path in self._waiting:
                    # It was waiting for a next life, and now the queue itself is gone.
                    self._retire(self._waiting.pop(path))
        if self._on_change is not None:
            result = self._on_change(change)
            if inspect.isawaitable(result):
                await result

    def _begin(self, path: str, identity: str) -> None:
        kept = self._kept[path] = _Kept(path, identity)
        last = self._last_task.get(path) if self._in_order else None
        task = asyncio.get_running_loop().create_task(
            self._keep(kept, last), name=f"hand-over {path}"
        )
        self._tasks.add(task)
        self._last_task[path] = task

        def end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._leaving.discard(kept)
            if self._last_task.get(path) is task:
                del self._last_task[path]

        task.add_done_callback(end)

    def _on_event(self, event: Any) -> None:
        """Give an answer of the hot thread to the task that waits for it."""
        match event:
            case ReaderAdded() if event.ticket in self._by_ticket:
                kept = self._by_ticket.pop(event.ticket)
                self._by_source[event.source] = kept
                kept.inbox.put_nowait(("added", event.source))
            case Refused() if event.ticket in self._by_ticket:
                kept = self._by_ticket.pop(event.ticket)
                kept.inbox.put_nowait(("refused", event.reason))
            case SourceFailed() if event.source in self._by_source:
                kept = self._by_source.pop(event.source)
                kept.inbox.put_nowait(("failed", event.error))
            case ReaderRemoved() if event.source in self._by_source:
                kept = self._by_source.pop(event.source)
                kept.inbox.put_nowait(("removed", None))
            case HotThreadFailed():
                for kept in self._kept.values():
                    kept.inbox.put_nowait(("ended", event))

    # --- One queue ---

    async def _keep(self, kept: _Kept, last: asyncio.Task[None] | None) -> None:
        """Keep one queue at the hot thread until it is gone, or the hot thread is."""
        if self._in_order:
            kept.queue_id = await in_worker(None, queue_at, kept.path)
        if last is not None:
            await asyncio.wait({last})
        start = self._start
        attempt = 0
        while True:
            began_s = asyncio.get_running_loop().time()
            kept.state = "opening"
            outcome, carried = await self._try(kept, start)
            if outcome == "ended":
                kept.state = "ended"
                return
            if outcome != "gone":
                self._note(kept, outcome, carried)
            await self._tell_gone(kept)
            if outcome == "gone":
                break
            if asyncio.get_running_loop().time() - began_s >= self._backoff.reset_after_s:
                attempt = 0
            kept.state = "backoff"
            await self._pause(kept, attempt)
            if kept.is_gone.is_set():
                break
            attempt += 1
            if self._name is not None and outcome != "error":
                start = "resume"
        waiting = self._waiting.get(kept.path)
        if waiting is not None and not await self._may_come_again(kept.path, waiting):
            # The queue has gone after its owner.
            self._retire(self._waiting.pop(kept.path))

    async def _try(self, kept: _Kept, start: Start) -> tuple[str, Any]:
        """Have a queue admitted, opened and read; return how that ended."""
        reader: QueueReader | None = None
        if await self._is_nothing_left(kept):
            return "gone", None
        try:
            admission = await self._ask(kept)
        except Exception as error:
            if self._care.thread.status.state in ("stopped", "failed"):
                return "ended", None
            if not isinstance(error, ChronicleError | OSError):
                _log.exception("'%s' was not admitted", kept.path)
            return "error", error
        if await self._is_nothing_left(kept):
            return "gone", None
        try:
            reader, rest = await self._open(kept.path, start, admission.start)
            outcome, carried = await self._lend(kept, reader, rest, admission.tag)
        except (Closed, HotThreadFailed):
            # The hot thread has ended: nobody is left to read.
            self._close(reader)
            return "ended", None
        except (ChronicleError, OSError) as error:
            outcome, carried = "error", error
        if outcome not in ("gone", "ended"):
            # The name is free for the next try only if this reader is closed.
            self._close(reader)
        return outcome, carried

    async def _is_nothing_left(self, kept: _Kept) -> bool:
        """Whether it is gone, and no queue of it is left either that could hold messages."""
        if not kept.is_gone.is_set():
            return False
        if not self._in_order or kept.queue_id is None:
            return True
        return await in_worker(None, queue_at, kept.path) != kept.queue_id

    async def _ask(self, kept: _Kept) -> Admission:
        if self._admit is None:
            # Whoever wants to hear of an end does so without having been asked at the beginning.
            kept.is_admitted = True
            return _WITHOUT_ADMIT
        admission = await in_worker(None, self._admit, kept.path)
        # From here on somebody waits for `on_gone`.
        kept.is_admitted = True
        if not isinstance(admission, Admission):
            raise BadArgument(f"bad admission: found={admission!r} expected=an Admission")
        return admission

    async def _tell_gone(self, kept: _Kept) -> None:
        """Say that what was admitted is read no more; as often as it takes."""
        if not kept.is_admitted:
            return
        kept.is_admitted = False
        if self._on_gone is None:
            return
        attempt = 0
        while True:
            try:
                await in_worker(None, self._on_gone, kept.path)
            except Exception as error:
                if self._care.thread.status.state in ("stopped", "failed"):
                    return
                kept.state, kept.error = "leaving", f"{type(error).__name__}: {error}"
                _log.exception("'%s' could not be let go; trying again", kept.path)
                await asyncio.sleep(self._backoff.pause_s(attempt))
                attempt += 1
                continue
            return

    async def _open(
        self, path: str, start: Start, wanted: Start | None
    ) -> tuple[QueueReader, Prefault]:
        waiting = self._waiting.pop(path, None)
        if waiting is not None:
            if await in_worker(None, queue_at, path) == waiting.queue_id:
                # It begins where the last life was read to, whatever `start` says of the first one.
                if wanted is not None:
                    await in_worker(None, waiting.seek, wanted)
                return waiting, await in_worker(None, _prefault, waiting)
            self._retire(waiting)
        begin = start if wanted is None else wanted
        reader, rest = await in_worker(None, self._open_here, path, begin)
        self._readers.add(reader)
        self.opened += 1
        return reader, rest

    def _open_here(self, path: str, start: Start) -> tuple[QueueReader, Prefault]:
        reader = Queue.open_subscriber(
            path, self._name, start=start, provisioner=self._provisioner()
        )
        try:
            return reader, _prefault(reader)
        except OSError:
            reader.close()
            raise

    async def _lend(
        self, kept: _Kept, reader: QueueReader, rest: Prefault, tag: int
    ) -> tuple[str, Any]:
        """Have the hot thread read this; return how that ended."""
        kept.state = "offered"
        if not await self._offer(kept, reader, tag, even_if_gone=self._in_order):
            self._close(reader)
            return "gone", None
        await in_worker(None, rest.finish)
        outcome, carried = await self._answer(kept)
        if outcome != "added":
            return outcome, carried
        kept.state, kept.error = "attached", None
        _log.info("hot thread '%s' reads '%s'", self._care.thread.name, kept.path)
        if not kept.is_gone.is_set():
            outcome, carried = await kept.inbox.get()
            if outcome != "gone":
                kept.source = None
                return outcome, carried
        return await self._let_go(kept, reader, tag)

    async def _offer(
        self, kept: _Kept, reader: QueueReader, tag: int, *, even_if_gone: bool = False
    ) -> bool:
        """Hand a reader over; ``False`` if the queue is gone before the channel had room."""
        attempt = 0
        while even_if_gone or not kept.is_gone.is_set():
            try:
                self._by_ticket[self._care.thread.add_reader(reader, tag=tag)] = kept
            except ChannelFull as error:
                # The reader is still ours.
                kept.error = str(error)
                await self._pause(kept, attempt, even_if_gone=even_if_gone)
                attempt += 1
                continue
            return True
        return False

    async def _pause(self, kept: _Kept, attempt: int, *, even_if_gone: bool = False) -> None:
        pause_s = self._backoff.pause_s(attempt)
        if even_if_gone:
            await asyncio.sleep(pause_s)
        else:
            await _happens(kept.is_gone, pause_s)

    async def _answer(self, kept: _Kept) -> tuple[str, Any]:
        """Wait for the hot thread's answer. If the queue vanishes before: it says what to do."""
        outcome, carried = await kept.inbox.get()
        while outcome == "gone":
            outcome, carried = await kept.inbox.get()
        if outcome == "added":
            kept.source = carried
        return outcome, carried

    async def _let_go(self, kept: _Kept, reader: QueueReader, tag: int) -> tuple[str, Any]:
        """Take the reader back once the hot thread has read everything that there is."""
        attempt = 0
        while True:
            await self._care.settle(_SETTLE_S)
            outcome, carried = await self._take_back(kept)
            if outcome != "removed" or not await in_worker(None, _has_more, reader):
                break
            # The hot thread was busy elsewhere. It comes to this source only if it has it.
            await self._offer(kept, reader, tag, even_if_gone=True)
            outcome, carried = await self._answer(kept)
            if outcome != "added":
                break
            await self._pause(kept, attempt, even_if_gone=True)
            attempt += 1
        if outcome == "ended":
            return outcome, carried
        _log.info("hot thread '%s' reads '%s' no more", self._care.thread.name, kept.path)
        if not await self._may_come_again(kept.path, reader):
            self._retire(reader)
        elif outcome == "removed":
            self._waiting[kept.path] = reader
        else:
            # It failed. The next life gets another one, for which the name must be free.
            self._close(reader)
        return "gone", None

    async def _take_back(self, kept: _Kept) -> tuple[str, Any]:
        kept.state = "removing"
        assert kept.source is not None
        attempt = 0
        while True:
            try:
                self._care.thread.remove_reader(kept.source)
            except ChannelFull:
                await self._pause(kept, attempt, even_if_gone=True)
                attempt += 1
                continue
            break
        outcome, carried = await self._answer(kept)
        kept.source = None
        return outcome, carried

    async def _may_come_again(self, path: str, reader: QueueReader) -> bool:
        """Whether the queue is still there, without its owner."""
        return self._in_order and await in_worker(None, queue_at, path) == reader.queue_id

    def _retire(self, reader: QueueReader) -> None:
        """Keep it mapped until the hot thread has stopped, or somebody says `release_retired`."""
        self._readers.discard(reader)
        self._care.retired.append(reader)

    def _note(self, kept: _Kept, outcome: str, carried: Any) -> None:
        kept.error = f"{type(carried).__name__}: {carried}" if outcome != "refused" else carried
        _log.warning(
            "'%s' is not read by hot thread '%s': %s; trying again",
            kept.path,
            self._care.thread.name,
            kept.error,
        )

    def _close(self, reader: QueueReader | None) -> None:
        if reader is not None:
            self._readers.discard(reader)
            reader.close()

    # --- The end ---

    async def _finish(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        """Close what the hot thread has given back at its end."""
        for reader in list(self._readers):
            with contextlib.suppress(Moved):
                # A hot thread that could not be stopped still has it.
                reader.close()


def _has_more(reader: QueueReader) -> bool:
    try:
        return reader.wait(0)
    except ChronicleError:
        # The queue was removed, and nothing is left in what is mapped.
        return False


def _prefault(reader: QueueReader) -> Prefault:
    # The rest of a large segment takes milliseconds: that must not delay the hand-over.
    return reader._prefault(ahead_bytes=_PREFAULT_BYTES)


async def _happens(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for something, so long at most; whether it happened."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()
