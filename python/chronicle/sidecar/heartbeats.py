"""Heartbeats: a small file beside a queue that says "its owner works", again and again.

Whether a writer *lives* is told by its lock, which the kernel frees at its death; that is exact and
needs no heartbeat. A heartbeat tells what a lock cannot: that somebody who lives also works. It
stops when its owner hangs, when the owner's hot thread has ended, and when the sidecar has died.

The file is described in `chronicle.heartbeat`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from chronicle._core import clock_ns
from chronicle.heartbeat import HEARTBEAT_FILE, Heartbeat
from chronicle.queue import StrPath
from chronicle.sidecar.supervise import Service, Stage
from chronicle.sidecar.workers import in_worker

__all__ = ["Heartbeats"]


class Heartbeats:
    """Writes the heartbeat of one queue for as long as its owner works.

    Parameters
    ----------
    queue
        Directory of the queue.
    interval_s
        Pause between two beats.
    works
        Asked before each beat; no beat if it says no.
    """

    def __init__(self, queue: StrPath, *, interval_s: float, works: Callable[[], bool]) -> None:
        self.count = 0
        self._path = Path(queue) / HEARTBEAT_FILE
        self._interval_s = interval_s
        self._works = works

    def service(self, name: str) -> Service:
        """Make the service. It beats until the very end of the shutdown."""
        self._service = Service(
            name, self._run, Stage.WATCH, self._finish, expected=(OSError,), examine=self._examine
        )
        self._missing: str | None = None
        return self._service

    def _examine(self) -> str | None:
        return self._missing

    async def _run(self) -> None:
        while True:
            if self._works():
                self._missing = None
                await in_worker(None, self.beat)
                self._service.beat(f"{self.count} beats")
            else:
                self._missing = "no beat: its owner does not work"
            await asyncio.sleep(self._interval_s)

    async def _finish(self) -> None:
        """Take the heartbeat away: an orderly end is no silence."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def beat(self) -> None:
        """Write one."""
        self.count += 1
        boottime_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        interval_ns = int(self._interval_s * 1e9)
        beat = Heartbeat(clock_ns(), interval_ns, os.getpid(), self.count, boottime_ns)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.pwrite(descriptor, beat.pack(), 0)
        finally:
            os.close(descriptor)
