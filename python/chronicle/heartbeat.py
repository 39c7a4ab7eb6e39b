"""The bytes of a heartbeat: a small file beside a queue that says "its owner works".

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
48     u64    beat_boottime_ns: the same moment by ``CLOCK_BOOTTIME``; 0 if unknown
56     8      spare
====== ====== =======================================================
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from pathlib import Path
from typing import NamedTuple

from chronicle._core import clock_ns

__all__ = ["HEARTBEAT_FILE", "Heartbeat", "read_heartbeat"]

HEARTBEAT_FILE = "heartbeat"

_MAGIC = b"CHRNBEA1"
_VERSION = 1
_HEAD = struct.Struct("<8sII")
_BODY = struct.Struct("<QQQQQ8x")
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
    beat_boottime_ns
        When it was written, by a clock that nobody sets; 0 if unknown.
    """

    beat_ns: int
    interval_ns: int
    pid: int
    number: int
    beat_boottime_ns: int = 0

    @property
    def age_s(self) -> float:
        """Seconds since it was written, also if the wall clock was set back meanwhile."""
        ages_ns = [0, clock_ns() - self.beat_ns]
        if self.beat_boottime_ns:
            # Of another boot it says too little, and then the wall clock says more.
            ages_ns.append(time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self.beat_boottime_ns)
        return max(ages_ns) / 1e9

    def is_late(self, *, missed_max: int = 3) -> bool:
        """Whether so many in a row are missing."""
        return self.age_s > missed_max * self.interval_ns / 1e9

    def pack(self) -> bytes:
        """Return the file's bytes."""
        body = _BODY.pack(*self)
        return _HEAD.pack(_MAGIC, _VERSION, zlib.crc32(body)) + body


def read_heartbeat(queue: str | os.PathLike[str]) -> Heartbeat | None:
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
