"""Cursors: what readers have committed, brought to the disk at an interval.

A commit is two stores into a mapped page. They survive the death of the reader; a power loss takes
those of the last seconds, and the reader sees messages again. This bounds how many. On a tmpfs
there is nothing to bring anywhere; a mirror takes the cursors along.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from chronicle.sidecar import files
from chronicle.sidecar.supervise import Service, Stage
from chronicle.sidecar.workers import in_worker

__all__ = ["CursorFlush"]

#: The two words that a commit stores.
_PLACE = slice(128, 144)


class CursorFlush:
    """Flushes cursors of queues that have moved since the last time.

    Parameters
    ----------
    queues
        Called each time: directories of the queues.
    interval_s
        Pause between two rounds.

    Attributes
    ----------
    flushes
        Cursor files that were brought to the disk.
    """

    def __init__(self, queues: Callable[[], Iterable[Path]], *, interval_s: float) -> None:
        self.flushes = 0
        self._queues = queues
        self._interval_s = interval_s
        self._known: dict[Path, bytes] = {}

    def service(self, name: str) -> Service:
        """Make the service; it flushes once more after the hot threads have stopped."""
        self._service = Service(name, self._run, Stage.FLUSH, self._finish, expected=(OSError,))
        return self._service

    async def _run(self) -> None:
        while True:
            await self._finish()
            await asyncio.sleep(self._interval_s)

    async def _finish(self) -> None:
        await in_worker(None, self.flush)
        self._service.beat(f"{self.flushes} flushes")

    def flush(self) -> None:
        """Flush what has moved. Blocks on the device."""
        for queue in self._queues():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for path in sorted((queue / files.READERS).glob(f"*{files.CURSOR_SUFFIX}")):
                    self._flush(path)

    def _flush(self, path: Path) -> None:
        try:
            descriptor = files.open_for_reading(path)
        except FileNotFoundError:
            return  # Removed meanwhile.
        try:
            place = os.pread(descriptor, files.PAGE_BYTES, 0)[_PLACE]
            if self._known.get(path) != place:
                # Writes back the pages that were stored into by mappings, too.
                os.fsync(descriptor)
                self._known[path] = place
                self.flushes += 1
        finally:
            os.close(descriptor)
