"""Hand-over: what discovery finds becomes sources of a hot thread, and comes back when it is gone.

Everything slow is done here: opening, mapping, prefaulting, provisioning. The hot thread gets a
reader that only has to be read. One task keeps each queue; what happens to it meanwhile (the hot
thread's answers, the queue's end) comes into the task's inbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chronicle._core import Prefault
from chronicle.errors import ChannelFull, ChronicleError, Closed, HotThreadFailed, Moved
from chronicle.hot.acks import ReaderAdded, ReaderRemoved, Refused, SourceFailed
from chronicle.queue import Provisioner, Queue, QueueReader, Start
from chronicle.sidecar.discovery import Change, Discovery, OnChange, Ready, Vanished
from chronicle.sidecar.hotcare import HotCare
from chronicle.sidecar.supervise import Backoff, Service, Stage
from chronicle.sidecar.workers import in_worker

__all__ = ["HandOver"]

_log = logging.getLogger("chronicle.sidecar")

#: How much of a segment is prefaulted before its reader is handed over.
_PREFAULT_BYTES = 1 << 20


@dataclass
class _Kept:
    """A queue that is kept at the hot thread while it is there."""

    path: str
    identity: str
    state: str = "opening"
    source: int | None = None
    error: str | None = None
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
    ) -> None:
        self.opened = 0
        self._care = care
        self._name = name
        self._start = start
        self._provisioner = provisioner
        self._backoff = backoff
        self._on_change = on_change
        self._kept: dict[str, _Kept] = {}
        self._tasks: set[asyncio.Task[None]] = set()
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
        failing = [k for k in list(self._kept.values()) if k.error is not None]
        if not failing:
            return None
        return f"{len(failing)} queues cannot be read, '{failing[0].path}': {failing[0].error}"

    # --- What happens ---

    async def on_change(self, change: Change) -> None:
        """Take a change of the discovery in."""
        match change:
            case Ready(path, identity):
                kept = self._kept[path] = _Kept(path, identity)
                task = asyncio.get_running_loop().create_task(
                    self._keep(kept), name=f"hand-over {path}"
                )
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case Vanished(path) if path in self._kept:
                kept = self._kept.pop(path)
                kept.is_gone.set()
                kept.inbox.put_nowait(("gone", None))
        if self._on_change is not None:
            result = self._on_change(change)
            if inspect.isawaitable(result):
                await result

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

    async def _keep(self, kept: _Kept) -> None:
        """Keep one queue at the hot thread until it is gone, or the hot thread is."""
        start = self._start
        attempt = 0
        while not kept.is_gone.is_set():
            began_s = asyncio.get_running_loop().time()
            kept.state = "opening"
            reader: QueueReader | None = None
            try:
                reader, rest = await self._open(kept.path, start)
                outcome, carried = await self._lend(kept, reader, rest)
            except (Closed, HotThreadFailed):
                # The hot thread has ended: nobody is left to read.
                self._close(reader)
                kept.state = "ended"
                return
            except (ChronicleError, OSError) as error:
                outcome, carried = "error", error
            if outcome == "gone":
                return
            if outcome == "ended":
                kept.state = "ended"
                return
            self._note(kept, outcome, carried)
            # The name is free for the next try only if this reader is closed.
            self._close(reader)
            if asyncio.get_running_loop().time() - began_s >= self._backoff.reset_after_s:
                attempt = 0
            kept.state = "backoff"
            if await _happens(kept.is_gone, self._backoff.pause_s(attempt)):
                return
            attempt += 1
            if self._name is not None and outcome != "error":
                start = "resume"

    async def _open(self, path: str, start: Start) -> tuple[QueueReader, Prefault]:
        reader, rest = await in_worker(None, self._open_here, path, start)
        self._readers.add(reader)
        self.opened += 1
        return reader, rest

    def _open_here(self, path: str, start: Start) -> tuple[QueueReader, Prefault]:
        reader = Queue.open_subscriber(
            path, self._name, start=start, provisioner=self._provisioner()
        )
        try:
            # The rest of a large segment takes milliseconds: that must not delay the hand-over.
            rest = reader._prefault(ahead_bytes=_PREFAULT_BYTES)
        except OSError:
            reader.close()
            raise
        return reader, rest

    async def _lend(self, kept: _Kept, reader: QueueReader, rest: Prefault) -> tuple[str, Any]:
        """Have the hot thread read this; return how that ended."""
        kept.state = "offered"
        attempt = 0
        while True:
            if kept.is_gone.is_set():
                self._close(reader)
                return "gone", None
            try:
                self._by_ticket[self._care.thread.add_reader(reader)] = kept
            except ChannelFull as error:
                # The reader is still ours.
                kept.error = str(error)
                await _happens(kept.is_gone, self._backoff.pause_s(attempt))
                attempt += 1
                continue
            break
        await in_worker(None, rest.finish)
        outcome, carried = await kept.inbox.get()
        while outcome == "gone":
            # It vanished before the answer came. The answer says what to take back.
            outcome, carried = await kept.inbox.get()
        if outcome != "added":
            return outcome, carried
        kept.state, kept.source, kept.error = "attached", carried, None
        _log.info("hot thread '%s' reads '%s'", self._care.thread.name, kept.path)
        if not kept.is_gone.is_set():
            outcome, carried = await kept.inbox.get()
            if outcome != "gone":
                kept.source = None
                return outcome, carried
        return await self._take_back(kept, reader)

    async def _take_back(self, kept: _Kept, reader: QueueReader) -> tuple[str, Any]:
        kept.state = "removing"
        assert kept.source is not None
        attempt = 0
        while True:
            try:
                self._care.thread.remove_reader(kept.source)
            except ChannelFull:
                await asyncio.sleep(self._backoff.pause_s(attempt))
                attempt += 1
                continue
            break
        outcome, carried = await kept.inbox.get()
        kept.source = None
        if outcome == "ended":
            return outcome, carried
        # Kept mapped until the hot thread has stopped.
        self._readers.discard(reader)
        self._care.retired.append(reader)
        _log.info("hot thread '%s' reads '%s' no more", self._care.thread.name, kept.path)
        return "gone", None

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


async def _happens(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for something, so long at most; whether it happened."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()
