"""Heartbeats: a small file beside a queue that says "its owner works", again and again.

Whether a writer *lives* is told by its lock, which the kernel frees at its death; that is exact and
needs no heartbeat. A heartbeat tells what a lock cannot: that somebody who lives also works. It
stops when its owner hangs, when the owner's hot thread has ended, and when the sidecar has died.

The file is ``heartbeat`` in the queue's directory, 64 bytes, written as a whole; whoever reads one
that is being written sees that by its checksum, and reads again.

====== ====== =======================================================
offset type   field
====== ====== =======================================================
0      8 bytes magic ``CHRNBEA1``
8      u32    version, 1
12     u32    CRC-32 of the bytes 16 to 63
16     u64    beat_ns: wall clock, ns since 1970
24     u64    interval_ns: when to expect the next one
32     u64    pid
40     u64    number: beats since the owner began
48     16     spare
====== ====== =======================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from chronicle._core import clock_ns
from chronicle.queue import StrPath
from chronicle.sidecar.supervise import Service, Stage
from chronicle.sidecar.workers import in_worker

__all__ = ["HEARTBEAT_FILE", "Heartbeat", "Heartbeats", "read_heartbeat"]

HEARTBEAT_FILE = "heartbeat"

_MAGIC = b"CHRNBEA1"
_VERSION = 1
_HEAD = struct.Struct("<8sII")
_BODY = struct.Struct("<QQQQ16x")
_BYTES = _HEAD.size + _BODY.size
#: How often to read a file that is just being written.
_TRIES = 100


class Heartbeat(NamedTuple):
    """What a heartbeat says.

    Attributes
    ----------
    beat_ns
        When it was written: wall clock, nanoseconds since 1970.
    interval_ns
        After which the next one is due.
    pid
        Of the process that writes it.
    number
        Beats since its owner began.
    """

    beat_ns: int
    interval_ns: int
    pid: int
    number: int

    @property
    def age_s(self) -> float:
        """Seconds since it was written."""
        return max(0, clock_ns() - self.beat_ns) / 1e9

    def is_late(self, *, missed_max: int = 3) -> bool:
        """Whether so many in a row are missing."""
        return self.age_s > missed_max * self.interval_ns / 1e9

    def pack(self) -> bytes:
        """Return the file's bytes."""
        body = _BODY.pack(*self)
        return _HEAD.pack(_MAGIC, _VERSION, zlib.crc32(body)) + body


def read_heartbeat(queue: StrPath) -> Heartbeat | None:
    """Read the heartbeat of a queue; ``None`` if it has none, or what is there is none."""
    with contextlib.suppress(OSError):
        descriptor = os.open(
            Path(queue) / HEARTBEAT_FILE,
            os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
        )
        try:
            for _ in range(_TRIES):
                raw = os.pread(descriptor, _BYTES + 1, 0)
                if len(raw) != _BYTES:
                    return None
                magic, version, crc = _HEAD.unpack_from(raw)
                if magic != _MAGIC or version != _VERSION:
                    return None
                if zlib.crc32(raw[_HEAD.size :]) == crc:
                    return Heartbeat(*_BODY.unpack_from(raw, _HEAD.size))
                time.sleep(0)
        finally:
            os.close(descriptor)
    return None


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
        beat = Heartbeat(clock_ns(), int(self._interval_s * 1e9), os.getpid(), self.count)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.pwrite(descriptor, beat.pack(), 0)
        finally:
            os.close(descriptor)
