"""The bytes of a queue's files, as the mirror needs them, and the one way in which it writes.

Offsets are those of docs/internals/format.md. Only copying is done here: what a record means, and
how far it can be trusted, is asked of the core.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from chronicle.errors import DiskFull, FormatError, NotAQueue, WriterActive

__all__ = [
    "CONTROL",
    "CONTROL_BYTES",
    "CURSOR_SUFFIX",
    "INDEX_BLOCK_BYTES",
    "INDEX_ENTRY",
    "LOCK",
    "PAGE_BYTES",
    "READERS",
    "ROLL_MARKER",
    "ROLL_MARKER_BYTES",
    "SCHEMA",
    "SEGMENTS",
    "TABLE",
    "Control",
    "Disk",
    "Geometry",
    "TableEntry",
    "WriterLock",
    "open_for_reading",
    "read_whole",
    "segment_index",
    "segment_name",
]

CONTROL = "control"
TABLE = "segments.table"
LOCK = "writer.lock"
SEGMENTS = "segments"
READERS = "readers"
SCHEMA = "queue.json"
CURSOR_SUFFIX = ".cursor"

PAGE_BYTES = 4096
CONTROL_BYTES = 4096
INDEX_BLOCK_BYTES = 16_384
ROLL_MARKER_BYTES = 8
ROLL_MARKER = b"\xff\xff\xff\xff\0\0\0\0"
#: offset, sequence, timestamp_max
INDEX_ENTRY = struct.Struct("<QQQ")

_CONTROL_MAGIC = b"CHRNCTL1"
_FORMAT_VERSION = 1
_TABLE_HEADER_BYTES = 64
#: index + 1, first_sequence, timestamp_max, timestamp_first, end_offset
_TABLE_ENTRY = struct.Struct("<QQQQQ")
_U64 = struct.Struct("<Q")
_EPOCH, _TAIL, _BOOT_ID, _DOORBELL, _FLOOR, _DURABLE = 128, 136, 152, 256, 384, 512
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: ``struct flock`` of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")


@dataclass(frozen=True)
class Geometry:
    """Where things stand in a segment of ``1 << shift`` bytes."""

    shift: int

    @property
    def segment_bytes(self) -> int:
        """Size of every segment file."""
        return 1 << self.shift

    @property
    def index_entries(self) -> int:
        """Entries of the sparse index."""
        return self.segment_bytes // INDEX_BLOCK_BYTES

    @property
    def data_offset(self) -> int:
        """Where records begin."""
        return (PAGE_BYTES + self.index_entries * INDEX_ENTRY.size + 63) // 64 * 64

    def split(self, position: int) -> tuple[int, int]:
        """Return segment index and offset of a position."""
        return position >> self.shift, position & (self.segment_bytes - 1)

    def position(self, index: int, offset: int) -> int:
        """Return the position of an offset in a segment."""
        return index << self.shift | offset


class Control:
    """A copy of a control block."""

    def __init__(self, page: bytes, path: str) -> None:
        if len(page) != CONTROL_BYTES or page[:8] != _CONTROL_MAGIC:
            raise NotAQueue(f"'{path}' is not a queue: its control file is not one")
        version, shift = struct.unpack_from("<II", page, 8)
        if version != _FORMAT_VERSION:
            raise FormatError(
                f"'{path}' cannot be read by this version: "
                f"version={version} expected={_FORMAT_VERSION}",
                field="version",
                found=str(version),
                expected=str(_FORMAT_VERSION),
            )
        self.page = bytearray(page)
        self.geometry = Geometry(shift)

    @classmethod
    def read(cls, queue: Path) -> Control:
        """Read the control block of a queue.

        Raises
        ------
        NotAQueue
            If there is none.
        """
        try:
            page = read_whole(queue / CONTROL, CONTROL_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            raise NotAQueue(
                f"'{queue}' is not a queue: there is no control file; check the path"
            ) from None
        return cls(page, str(queue))

    def _word(self, offset: int) -> int:
        value: int = _U64.unpack_from(self.page, offset)[0]
        return value

    @property
    def queue_id(self) -> str:
        """The queue's random identity."""
        return self.page[16:32].hex()

    @property
    def table_capacity(self) -> int:
        """Segments that can exist at a time."""
        capacity: int = struct.unpack_from("<I", self.page, 44)[0]
        return capacity

    @property
    def floor_segment(self) -> int:
        """The oldest segment that exists."""
        return self._word(_FLOOR)

    @floor_segment.setter
    def floor_segment(self, index: int) -> None:
        _U64.pack_into(self.page, _FLOOR, index)

    @property
    def tail_segment(self) -> int:
        """The segment that is being written."""
        return self._word(_TAIL)

    @tail_segment.setter
    def tail_segment(self, index: int) -> None:
        _U64.pack_into(self.page, _TAIL, index)

    @property
    def durable(self) -> tuple[int, int]:
        """The last sequence number that is on disk for certain, and the position behind it."""
        return self._word(_DURABLE), self._word(_DURABLE + 8)

    @durable.setter
    def durable(self, value: tuple[int, int]) -> None:
        struct.pack_into("<QQ", self.page, _DURABLE, *value)

    @property
    def was_opened_for_writing(self) -> bool:
        """Whether a writer has opened this copy: it leaves its boot id, which a mirror clears."""
        return any(self.page[_BOOT_ID : _BOOT_ID + 16])

    def forget_the_machine(self) -> None:
        """Make every writer recover as after a power loss, and nobody asleep."""
        self.page[_BOOT_ID : _BOOT_ID + 16] = bytes(16)
        self.page[_DOORBELL : _DOORBELL + 8] = bytes(8)


@dataclass(frozen=True)
class TableEntry:
    """What the segment table says about a segment."""

    index: int
    first_sequence: int
    timestamp_max: int
    end_offset: int

    def pack(self) -> bytes:
        """Return its bytes."""
        return _TABLE_ENTRY.pack(
            self.index + 1, self.first_sequence, self.timestamp_max, 0, self.end_offset
        )

    @staticmethod
    def offset(index: int, capacity: int) -> int:
        """Return where the entry of a segment stands in the table."""
        return _TABLE_HEADER_BYTES + index % capacity * _TABLE_ENTRY.size

    @classmethod
    def read(cls, descriptor: int, index: int, capacity: int) -> TableEntry | None:
        """Read the entry of a segment; ``None`` if its slot is another segment's by now."""
        raw = os.pread(descriptor, _TABLE_ENTRY.size, cls.offset(index, capacity))
        if len(raw) < _TABLE_ENTRY.size:
            return None
        index_plus_1, first_sequence, timestamp_max, _, end_offset = _TABLE_ENTRY.unpack(raw)
        if index_plus_1 != index + 1:
            return None
        return cls(index, first_sequence, timestamp_max, end_offset)


def segment_name(index: int) -> str:
    """Return the file name of a segment."""
    return f"{index:020}.seg"


def segment_index(name: str) -> int | None:
    """Return the index that a file name stands for; ``None`` if it is no segment's."""
    digits, dot, suffix = name.partition(".")
    is_one = dot and suffix == "seg" and len(digits) == 20 and digits.isascii() and digits.isdigit()
    return int(digits) if is_one else None


def open_for_reading(path: Path) -> int:
    """Open a regular file; not through a symbolic link, and not a pipe."""
    descriptor = os.open(path, _READ_FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_whole(path: Path, bytes_max: int) -> bytes:
    """Read a small file."""
    descriptor = open_for_reading(path)
    try:
        return os.pread(descriptor, bytes_max, 0)
    finally:
        os.close(descriptor)


class WriterLock:
    """The lock of a queue's writer: the kernel frees it when this process dies.

    Parameters
    ----------
    queue
        The directory.
    shared
        Only keep writers out. Where there is no lock file there is no writer, and nothing is made.

    Raises
    ------
    WriterActive
        If somebody has it.
    """

    def __init__(self, queue: Path, *, shared: bool = False) -> None:
        self._path = queue / LOCK
        flags = (os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT) | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor: int | None = None
        try:
            self._descriptor = descriptor = os.open(self._path, flags, 0o600)
        except FileNotFoundError:
            if shared:
                return
            raise
        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        wanted = _FLOCK.pack(kind, os.SEEK_SET, 0, 1, 0)
        try:
            # Of the open file, not of the process: as the core's own.
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            raise WriterActive(
                f"'{queue}' is being written to; stop its writer or its mirror first", pid=0
            ) from None

    def close(self) -> None:
        """Give it back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Disk:
    """Every change that a mirror makes. A test that plays the device derives from it.

    Files are addressed by path; descriptors of those in use are kept open.
    """

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def _descriptor(self, path: Path) -> int:
        found = self._open.get(path)
        if found is None:
            found = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._open[path] = found
        return found

    def make_directory(self, path: Path, mode: int) -> None:
        """Make a directory, and those above it, if they are missing."""
        path.mkdir(mode=mode, parents=True, exist_ok=True)

    def create(self, path: Path, len_bytes: int, mode: int) -> None:
        """Make a file of so many zeros, with all its room allocated. It replaces one that is there.

        Raises
        ------
        DiskFull
            If there is no room.
        """
        with contextlib.suppress(FileNotFoundError):
            self.remove(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._open[path] = descriptor = os.open(path, flags, mode)
        os.fchmod(descriptor, mode)
        with _disk_full(path, len_bytes):
            if len_bytes:
                os.posix_fallocate(descriptor, 0, len_bytes)

    def write(self, path: Path, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write bytes at an offset. Not on the device yet."""
        view = memoryview(data)
        descriptor = self._descriptor(path)
        while view:
            with _disk_full(path, len(view)):
                written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written

    def read(self, path: Path, len_bytes: int, offset: int) -> bytes:
        """Read bytes back."""
        return os.pread(self._descriptor(path), len_bytes, offset)

    def sync(self, path: Path) -> None:
        """Bring what was written into this file to the device."""
        os.fdatasync(self._descriptor(path))

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name. Not on the device yet."""
        old.rename(new)
        self.forget(new)
        if (descriptor := self._open.pop(old, None)) is not None:
            self._open[new] = descriptor

    def remove(self, path: Path) -> None:
        """Remove a file. Not on the device yet."""
        self.forget(path)
        path.unlink()

    def sync_names(self, directory: Path) -> None:
        """Bring the names in a directory to the device."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def forget(self, path: Path) -> None:
        """Close a file that is not needed any more."""
        if (descriptor := self._open.pop(path, None)) is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Close all files."""
        for path in list(self._open):
            self.forget(path)


@contextlib.contextmanager
def _disk_full(path: Path, needed_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"no room for '{path}': needed_bytes={needed_bytes}; free some space",
            needed_bytes=needed_bytes,
        ) from None
