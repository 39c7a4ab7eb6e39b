"""Looking after a hot thread: poll it, hear what comes back, stop it in order.

Polling drains answers, log records and reports of the guard, and tells the thread's status that
somebody is there. What the thread gives back is kept mapped until it has stopped: unmapping
interrupts every core of the process, the hot one too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from chronicle.errors import Closed, HotThreadFailed, Moved
from chronicle.packets import PacketRing
from chronicle.queue import QueueReader, QueueWriter
from chronicle.sidecar.supervise import Service, Stage
from chronicle.sidecar.workers import in_worker

__all__ = ["HotCare", "HotLike", "OnEvent"]

_log = logging.getLogger("chronicle.sidecar")

#: Pauses between polls: this after something came back, growing to that while nothing does.
_POLL_MIN_S = 0.001
_POLL_MAX_S = 0.008
#: How long the shutdown waits for a hot thread to take what is there, and then for its end.
_DRAIN_S = 5.0
_LOOK_S = 0.0005
#: So many readers that are kept mapped are a complaint: a process has 65,530 mappings by default.
_RETIRED_MANY = 4096
#: How often helper threads are moved off its core.
_KEEP_OFF_S = 5.0

#: Told of everything that comes back from a hot thread, on the sidecar's loop.
OnEvent: TypeAlias = Callable[[Any], object]


class HotLike(Protocol):
    """What the sidecar needs of a `chronicle.HotThread`. Tests have another one."""

    @property
    def name(self) -> str:
        """Role name."""

    @property
    def core(self) -> int | None:
        """The core it is pinned to."""

    @property
    def status(self) -> Any:
        """A `HotStatus`."""

    @property
    def failure(self) -> HotThreadFailed | None:
        """What it failed with, if it ended by itself."""

    @property
    def sources(self) -> Mapping[int, QueueReader]:
        """Readers that it has."""

    @property
    def packets(self) -> Sequence[PacketRing]:
        """Packet rings that it has, or had when it stopped."""

    @property
    def outputs(self) -> Mapping[str, QueueWriter]:
        """Writers that it has, or had when it stopped."""

    @property
    def loop_gap(self) -> Any:
        """A `Histogram`."""

    @property
    def handler_time(self) -> Any:
        """A `Histogram`."""

    @property
    def counters(self) -> Mapping[str, int]:
        """The handler's counters."""

    @property
    def guard_counts(self) -> Mapping[tuple[str, str], int]:
        """System calls that were reported, by name and place."""

    def start(self) -> object:
        """Start it."""

    def release_retired(self) -> int:
        """Unmap the segments that it has left behind; return how many."""

    def nudge(self) -> None:
        """Wake it if it sleeps."""

    def stop(self, timeout: float | None = None) -> None:
        """Stop it; give everything back."""

    def poll(self) -> Sequence[Any]:
        """Take what has come back."""

    def add_reader(self, reader: QueueReader, *, tag: int = 0, timeout: float | None = None) -> int:
        """Hand a reader over; return a ticket."""

    def remove_reader(self, source: int, *, timeout: float | None = None) -> int:
        """Ask for a reader back; return a ticket."""


class HotCare:
    """Looks after one hot thread.

    Parameters
    ----------
    thread
        The hot thread.
    drain_s
        How long its end may wait for it to take what is there.
    keep_off
        Called at an interval: keeps other threads off its core.

    Attributes
    ----------
    retired
        Readers that it has given back, and that are kept until the end, or `release`.
    """

    def __init__(
        self,
        thread: HotLike,
        *,
        drain_s: float = _DRAIN_S,
        keep_off: Callable[[], object] | None = None,
    ) -> None:
        self.thread = thread
        self._keep_off = keep_off
        self._keep_off_due_s = 0.0
        self.retired: list[QueueReader] = []
        self._listeners: list[OnEvent] = []
        self._drain_s = drain_s
        self._service: Service | None = None
        self._ended = False

    def service(self, name: str) -> Service:
        """Make the service that polls, and stops the thread at the end."""
        self._service = Service(name, self._run, Stage.HOT, self._finish, examine=self._examine)
        return self._service

    def flush_service(self, name: str) -> Service:
        """Make the service that brings the thread's outputs to their disks once it has stopped."""
        return Service(name, asyncio.Event().wait, Stage.FLUSH, self._flush)

    async def _flush(self) -> None:
        for writer in self.thread.outputs.values():
            # A thread that could not be stopped still has them; that was told before.
            with contextlib.suppress(Moved, Closed):
                await in_worker(None, writer.flush)

    def listen(self, on_event: OnEvent) -> None:
        """Have this called with everything that comes back."""
        self._listeners = [*self._listeners, on_event]

    def release(self) -> int:
        """Close what the thread has given back, and unmap what it has left behind; return how many.

        Interrupts its core.
        """
        return self._close_retired() + self.thread.release_retired()

    def _close_retired(self) -> int:
        retired, self.retired = self.retired, []
        for reader in retired:
            reader.close()
        return len(retired)

    def _examine(self) -> str | None:
        failure = self.thread.failure
        if failure is not None:
            return str(failure)
        if len(self.retired) >= _RETIRED_MANY:
            return (
                f"{len(self.retired)} readers that came back are kept mapped; call "
                "release_retired() when an interruption of the hot core does not matter"
            )
        return None

    async def _run(self) -> None:
        pause_s = _POLL_MIN_S
        while True:
            if self._keep_off is not None and time.monotonic() >= self._keep_off_due_s:
                # Threads that were started meanwhile run where their makers do.
                self._keep_off_due_s = time.monotonic() + _KEEP_OFF_S
                self._keep_off()
            pause_s = _POLL_MIN_S if self._poll() else min(_POLL_MAX_S, pause_s * 1.5)
            await asyncio.sleep(pause_s)

    def _poll(self) -> bool:
        """Take what has come back, and tell the listeners; whether there was anything."""
        events = self.thread.poll()
        for event in events:
            self._tell(event)
        if self._service is not None:
            self._service.beat()
        if not self._ended and self.thread.failure is not None:
            # It has given everything back; tell once.
            self._ended = True
            self._tell(self.thread.failure)
        return bool(events)

    def _tell(self, event: Any) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                _log.exception("hot thread '%s': a listener failed on %r", self.thread.name, event)

    async def _finish(self) -> None:
        """Let the thread take what was there when this began; stop it; hear its last words."""
        late = None if await self.settle(self._drain_s) else "had not taken everything"
        try:
            await in_worker(None, self.thread.stop, self._drain_s)
        except TimeoutError:
            # It still stops when its handler returns; what it holds cannot be given back now.
            self._poll()
            raise
        self._poll()
        self._close_retired()
        if late is not None:
            raise TimeoutError(
                f"hot thread '{self.thread.name}' {late} after {self._drain_s:g} s; what is left "
                "stays in its queues"
            )

    async def settle(self, timeout_s: float) -> bool:
        """Wait for a turn of its loop in which nothing was there, or its end; whether that came.

        In such a turn it has looked at every source, so whatever was committed before is handled.
        """
        end_s = time.monotonic() + timeout_s
        before = now = self.thread.status
        # One that has ended, by itself or meanwhile, takes nothing more.
        while now.state in ("starting", "running", "parked"):
            self.thread.nudge()
            self._poll()
            await asyncio.sleep(_LOOK_S)
            now = self.thread.status
            if now.messages != before.messages:
                before = now
            elif now.turns >= before.turns + 2:
                # Two turns: the first of them may have begun before the look.
                return True
            if time.monotonic() >= end_s:
                return False
        return True
