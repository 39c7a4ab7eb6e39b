"""The counters file: what all hot threads of a process count, in one mapped file.

A process makes one with `CountersFile.create` and gives it to its hot threads, which store their
counts into it as they otherwise do into their own memory: no system call, no copy. Whoever may read
the file can look at any time (`read_counters`), also after the process has died. The layout is in
docs/internals/format.md.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self

from chronicle._core import clock_ns, counters_layout
from chronicle.errors import BadArgument, Closed, DecodeError, Forked
from chronicle.hot.meter import Histogram, HotStatus

__all__ = [
    "COUNTERS_FILE",
    "CountersFile",
    "ProcessCounters",
    "ThreadCounts",
    "describe",
    "read_counters",
]

COUNTERS_FILE: Final = "COUNTERS"
"""The usual name, in the directory of an endpoint."""

_MAGIC: Final = b"CHRNCNT1"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sIIQQQ16s36s")
_DOCUMENT_HEAD: Final = struct.Struct("<IIQ")
_PAGE: Final = 4096
_BLOCK: Final = 1 << 16
_FIRST_BLOCK: Final = 4
_BLOCKS: Final = 64
_DOCUMENT_BYTES: Final = (_FIRST_BLOCK * _BLOCK - _PAGE) // 2
_FILE_BYTES: Final = (_FIRST_BLOCK + _BLOCKS) * _BLOCK
#: In a block.
_STATE, _WORDS, _LOOP_GAP, _HANDLER_TIME, _COUNTERS = 64, 72, 4096, 19520, 34944
_HISTOGRAM_COUNTS, _LINEAR, _BUCKETS = 64, 32, 1920
_STATES: Final = ("new", "starting", "running", "parked", "stopped", "failed")
#: What a status tells that is not in the block.
_OUTSIDE: Final = (
    "rolls_late",
    "wakes_inline",
    "segments_kept",
    "guard_seen",
    "guard_refused",
    "guard_made",
    "guard_dropped",
    "guard_lost",
    "supervised",
    "interrupts",
)
#: How often to look again at a document that is just being written.
_TRIES: Final = 100


class CountersFile:
    """A counters file of this process, for up to 64 hot threads at a time.

    Parameters
    ----------
    path
        Where; what was there is replaced. Best on a tmpfs, like the queues: on a disk the kernel's
        write-back makes stores fault.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> tmp = tempfile.TemporaryDirectory()
    >>> counters = CountersFile.create(f"{tmp.name}/COUNTERS")
    >>> with chronicle.HotThread(print, name="echo", counters_file=counters) as hot:
    ...     counters.publish({"threads": [describe(hot)]})
    ...     print([thread.name for thread in read_counters(counters.path).threads])
    ['echo']
    >>> counters.close(); tmp.cleanup()
    """

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self.path = path
        self._view = view
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._serial = 0
        self._free = list(range(_FIRST_BLOCK, _FIRST_BLOCK + _BLOCKS))

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, group_readable: bool = False) -> Self:
        """Make the file, under a hidden name first, so that it is seen whole or not at all.

        Parameters
        ----------
        path
            Where; see the class.
        group_readable
            Mode 0640 instead of 0600: whoever is in the group of the directory may look, too.

        Raises
        ------
        OSError
            If the directory is not there or may not be written.
        """
        path = Path(path).absolute()
        hidden = path.with_name(f".{path.name}.{os.getpid()}")
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(hidden, flags, 0o640 if group_readable else 0o600)
        try:
            os.ftruncate(descriptor, _FILE_BYTES)
            # Allocated in full, so that a disk that is full shows here and not in a store.
            os.posix_fallocate(descriptor, 0, _FIRST_BLOCK * _BLOCK)
            view = mmap.mmap(descriptor, _FIRST_BLOCK * _BLOCK)
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().encode()
            q32 = counters_layout()[1]
            head = (_MAGIC, _VERSION, _BLOCKS, os.getpid(), clock_ns(), q32, os.urandom(16), boot)
            view[: _HEAD.size] = _HEAD.pack(*head)
            counters = cls(path, view)
            # Before it has its name: whoever finds it finds a document in it.
            counters.publish({})
            hidden.rename(path)
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return counters

    def _check_owner(self) -> None:
        # Before the lock, which nobody may be left to free in a child.
        if os.getpid() != self._pid:
            raise Forked(
                f"the counters file belongs to the parent process: path={self.path} "
                f"pid={self._pid}; make one after forking"
            )

    def claim(self) -> int:
        """Take a block for a hot thread: its number.

        Raises
        ------
        BadArgument
            If 64 hot threads of this process have one.
        Forked
            In a child of the process that made the file.
        """
        self._check_owner()
        with self._lock:
            if not self._free:
                raise BadArgument(
                    f"no block left: path={self.path} blocks={_BLOCKS}; stop a hot thread, or "
                    "make another counters file"
                )
            return self._free.pop(0)

    def release(self, block: int) -> None:
        """Give a block back; what it counted stays to be seen until it is needed again.

        Nothing in a forked child, where it happens as its interpreter ends: the blocks are its
        parent's.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._free.append(block)

    def place_of(self, block: int) -> tuple[str, str, int]:
        """Directory, name and offset of a block."""
        return str(self.path.parent), self.path.name, block * _BLOCK

    def publish(self, document: Mapping[str, Any]) -> None:
        """Store what only the sidecar knows: names of threads and counters, health, and so on.

        Two places take turns, so a whole one is there at any moment.

        Raises
        ------
        BadArgument
            If it is longer than 126 KiB.
        Forked
            In a child of the process that made the file.
        Closed
            After `close`.
        """
        self._check_owner()
        since_boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        moment = {"at_ns": clock_ns(), "at_boottime_ns": since_boot_ns}
        text = json.dumps({"words": counters_layout()[0], **moment, **document})
        data = text.encode()
        if len(data) > _DOCUMENT_BYTES - _DOCUMENT_HEAD.size:
            raise BadArgument(
                f"document too long: path={self.path} bytes={len(data)} "
                f"max={_DOCUMENT_BYTES - _DOCUMENT_HEAD.size}; say less of each service"
            )
        with self._lock:
            if self._view.closed:
                raise Closed(f"the counters file was closed: path={self.path}; make another one")
            self._serial += 1
            at = _PAGE + self._serial % 2 * _DOCUMENT_BYTES
            head = _DOCUMENT_HEAD.pack(len(data), zlib.crc32(data, self._serial), self._serial)
            self._view[at + len(head) : at + len(head) + len(data)] = data
            self._view[at : at + len(head)] = head

    def close(self) -> None:
        """Let go of the file. It stays, with the last counts, until the next life replaces it."""
        self._view.close()


class _Described(Protocol):
    name: str
    core: int | None
    counters_block: int | None

    @property
    def settings(self) -> Mapping[str, str]: ...
    @property
    def status(self) -> HotStatus: ...
    @property
    def counters(self) -> Mapping[str, int]: ...
    @property
    def failure(self) -> Exception | None: ...


def describe(thread: _Described) -> dict[str, Any]:
    """Return what the document of a counters file says of a hot thread.

    That is what is not in its block: names, settings, and what kernel and sidecar count.
    """
    status = thread.status
    failure = thread.failure
    kernel = status.kernel
    return {
        "block": thread.counters_block,
        "name": thread.name,
        "core": thread.core,
        "settings": dict(thread.settings),
        "counters": list(thread.counters),
        "warnings": list(status.warnings),
        "failure": None if failure is None else str(failure),
        "kernel": None if kernel is None else kernel._asdict(),
        **{key: getattr(status, key) for key in _OUTSIDE},
    }


class ThreadCounts(NamedTuple):
    """What a hot thread of some process counts.

    Attributes
    ----------
    name
        Role name.
    state
        As in `HotStatus`.
    words
        The words of its status page: turns, messages, parks and so on.
    counters
        The handler's own.
    loop_gap, handler_time
        Histograms, in nanoseconds.
    about
        What its process says of it, a while ago: core, settings, and the counts that the kernel
        and the sidecar keep.
    """

    name: str
    state: str
    words: dict[str, int]
    counters: dict[str, int]
    loop_gap: Histogram
    handler_time: Histogram
    about: dict[str, Any]


class ProcessCounters(NamedTuple):
    """A counters file at a moment.

    Attributes
    ----------
    pid, started_ns, boot, instance
        Whose it is.
    threads
        Its hot threads.
    document
        What the process says of itself.
    """

    pid: int
    started_ns: int
    boot: str
    instance: str
    threads: tuple[ThreadCounts, ...]
    document: dict[str, Any]


def read_counters(path: str | os.PathLike[str]) -> ProcessCounters:
    """Look at a counters file. Disturbs nobody; some 300 µs for each thread.

    Raises
    ------
    OSError
        If it cannot be opened.
    DecodeError
        If it is no counters file, one of another version, or damaged.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> from chronicle.hot import CountersFile, read_counters
    >>> counters = CountersFile.create(f"{folder.name}/COUNTERS")
    >>> read_counters(counters.path).threads
    ()
    >>> counters.close(); folder.cleanup()
    """
    with _File(path) as file:
        _, _, blocks, pid, started_ns, q32, instance, boot = _head(file, path)
        document = _document(file, path)
        threads = tuple(
            _thread(file, about, document, q32) for about in _threads_of(document, blocks)
        )
    return ProcessCounters(
        pid, started_ns, boot.decode("ascii", "replace"), instance.hex(), threads, document
    )


class _File:
    """Reads stretches of a file.

    It is not mapped: somebody may cut it short at any moment, and a load behind the end of a mapped
    file kills the process that makes it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        self._descriptor = os.open(path, flags)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def read(self, at: int, count: int) -> memoryview:
        data = os.pread(self._descriptor, count, at)
        if len(data) != count:
            raise DecodeError(
                f"no counters file: path={self._path} bytes<{at + count} expected={_FILE_BYTES}"
            )
        return memoryview(data)


def _head(file: _File, path: object) -> tuple[Any, ...]:
    file.read(_FILE_BYTES - 1, 1)
    head = _HEAD.unpack(file.read(0, _HEAD.size))
    if head[0] != _MAGIC or head[1] != _VERSION or not 0 < head[2] <= _BLOCKS:
        raise DecodeError(
            f"no counters file of version {_VERSION}: path={path} magic={head[0]!r} "
            f"version={head[1]} blocks={head[2]}; read it with the version that wrote it"
        )
    return head


def _document(file: _File, path: object) -> dict[str, Any]:
    for _ in range(_TRIES):
        found = []
        for at in (_PAGE, _PAGE + _DOCUMENT_BYTES):
            length, crc, serial = _DOCUMENT_HEAD.unpack(file.read(at, _DOCUMENT_HEAD.size))
            if 0 < length <= _DOCUMENT_BYTES - _DOCUMENT_HEAD.size:
                data = file.read(at + _DOCUMENT_HEAD.size, length)
                if zlib.crc32(data, serial & 0xFFFF_FFFF) == crc:
                    found.append((serial, data))
        if found:
            document = _parsed(bytes(max(found, key=lambda one: one[0])[1]))
            if document is not None:
                return document
    raise DecodeError(f"damaged counters file: path={path}; no document in it is whole")


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        # Its checksum holds, and yet nobody of ours wrote it.
        return None
    return document if isinstance(document, dict) else None


def _threads_of(document: dict[str, Any], blocks: int) -> Iterable[dict[str, Any]]:
    """Return what is said of each block; of one that is named twice, by whom had it last."""
    threads = document.get("threads", ())
    by_block: dict[int, dict[str, Any]] = {}
    for about in threads if isinstance(threads, list) else ():
        block = about.get("block") if isinstance(about, dict) else None
        if isinstance(block, int) and _FIRST_BLOCK <= block < _FIRST_BLOCK + blocks:
            by_block[block] = about
    return by_block.values()


def _thread(file: _File, about: dict[str, Any], document: dict[str, Any], q32: int) -> ThreadCounts:
    at = about["block"] * _BLOCK
    state = int.from_bytes(file.read(at + _STATE, 4), "little")
    return ThreadCounts(
        str(about.get("name", "")),
        _STATES[state] if state < len(_STATES) else f"unknown ({state})",
        _named(file, at + _WORDS, document.get("words")),
        _named(file, at + _COUNTERS, about.get("counters")),
        _histogram(file, at + _LOOP_GAP, q32),
        _histogram(file, at + _HANDLER_TIME, q32),
        {key: value for key, value in about.items() if key not in ("block", "name", "counters")},
    )


def _words(file: _File, at: int, count: int) -> memoryview:
    return file.read(at, 8 * count).cast("Q")


def _named(file: _File, at: int, names: object) -> dict[str, int]:
    listed = [str(name) for name in names] if isinstance(names, list) else []
    listed = listed[: (_BLOCK - at % _BLOCK) // 8]
    return dict(zip(listed, _words(file, at, len(listed)), strict=True))


def _histogram(file: _File, at: int, q32: int) -> Histogram:
    highest = _words(file, at, 1)[0]
    counts = _words(file, at + _HISTOGRAM_COUNTS, _BUCKETS)
    buckets = [
        (min(_bucket_high(bucket), highest) * q32 >> 32, count)
        for bucket, count in enumerate(counts)
        if count
    ]
    return Histogram(buckets, highest * q32 >> 32)


def _bucket_high(bucket: int) -> int:
    """Return the highest value of a bucket, as `bucket_high` of the core does."""
    group, within = divmod(bucket + 1, _LINEAR)
    return (within if group == 0 else (_LINEAR + within) << (group - 1)) - 1
