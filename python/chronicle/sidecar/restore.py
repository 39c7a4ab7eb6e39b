"""The way back from a mirror: copy it, let the ordinary recovery run, and put it in place.

The target appears whole or not at all: everything is done in a hidden directory beside it, which
is renamed at the end, and which a later restore clears away if this one dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chronicle.errors import BadArgument, NotAQueue, WriterActive
from chronicle.queue import Queue, Recovery, StrPath
from chronicle.sidecar import files
from chronicle.sidecar.files import Control, Disk, WriterLock

__all__ = ["RestoreReport", "restore"]

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class RestoreReport:
    """What came back.

    Attributes
    ----------
    queue
        The directory that was restored.
    durable_seq
        The last message that the mirror had promised to have.
    next_seq
        The number that the next message will get.
    segments, bytes_copied
        How much was copied.
    readers
        Names whose cursors came along.
    recovery
        What the recovery has found, and what it has cut.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> writer.append(1, b"kept")
    1
    >>> writer.close()
    >>> from chronicle.sidecar import Mirror, restore
    >>> with Mirror(path, f"{folder.name}/mirror") as mirror:
    ...     _ = mirror.turn()
    >>> report = restore(f"{folder.name}/mirror", f"{folder.name}/again")
    >>> report.durable_seq, report.next_seq, report.lost
    (1, 2, None)
    >>> folder.cleanup()
    """

    queue: str
    durable_seq: int
    next_seq: int
    segments: int
    bytes_copied: int
    readers: tuple[str, ...]
    recovery: Recovery

    @property
    def beyond(self) -> int:
        """Messages behind the mirror's promise that checksums have proved to be whole."""
        return max(0, self.next_seq - 1 - self.durable_seq)

    @property
    def lost(self) -> str | None:
        """What is missing against the mirror's promise, or was cut; ``None`` for nothing.

        What had never reached the mirror is not known here.
        """
        if self.next_seq - 1 < self.durable_seq:
            missing = self.durable_seq - (self.next_seq - 1)
            return f"{missing} messages that the mirror had promised: {self.recovery.why}"
        if self.recovery.bytes_discarded:
            return (
                f"{self.recovery.bytes_discarded} bytes behind seq={self.next_seq - 1} that could "
                f"not be verified: {self.recovery.why}"
            )
        return None


def restore(mirror: StrPath, queue: StrPath) -> RestoreReport:
    """Make a queue out of its mirror, where there is none. Blocks as long as copying takes.

    Parameters
    ----------
    mirror
        The mirror's directory. It is only read.
    queue
        Where the queue was, normally on a tmpfs. There must be nothing, or an empty directory.

    Raises
    ------
    NotAQueue
        If `mirror` is not a mirror.
    BadArgument
        If there is something at `queue`.
    WriterActive
        If a mirror is still being written.
    DiskFull
        If there is no room.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> writer.append(1, b"kept")
    1
    >>> writer.close()
    >>> from chronicle.sidecar import Mirror, restore
    >>> with Mirror(path, f"{folder.name}/mirror") as mirror:
    ...     _ = mirror.turn()
    >>> report = restore(f"{folder.name}/mirror", f"{folder.name}/again")
    >>> with chronicle.Queue.open_subscriber(report.queue, None) as reader:
    ...     bytes(reader.next().payload)
    b'kept'
    >>> folder.cleanup()
    """
    source, target = Path(mirror), Path(queue).absolute()
    control = Control.read(source)
    _refuse_what_is_there(target)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.restoring")
    disk = Disk()
    try:
        staging.mkdir(mode=0o700, exist_ok=True)
        with _only_one(staging, target):
            with WriterLock(source, shared=True):
                _clear(staging)
                segments, bytes_copied, readers = _copy(disk, source, staging, control)
            disk.close()
            with Queue.open_publisher(staging) as writer:
                recovery = writer.recovery
                next_seq = writer.next_seq
                writer.flush()
            staging.rename(target)
            disk.sync_names(target.parent)
    finally:
        disk.close()
    return RestoreReport(
        queue=str(queue),
        durable_seq=control.durable[0],
        next_seq=next_seq,
        segments=segments,
        bytes_copied=bytes_copied,
        readers=readers,
        recovery=recovery._replace(
            set_aside=tuple(
                str(target / Path(name).relative_to(staging)) for name in recovery.set_aside
            )
        ),
    )


def _refuse_what_is_there(target: Path) -> None:
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir() or any(target.iterdir()):
        what = "a queue" if (target / files.CONTROL).exists() else "something else"
        raise BadArgument(
            f"cannot restore to '{target}': there is {what}; move it away, or restore elsewhere"
        )


@contextlib.contextmanager
def _only_one(staging: Path, target: Path) -> Iterator[None]:
    """Keep a second restore of the same queue out, until this one ends or dies."""
    descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WriterActive(
                f"'{target}' is being restored already; wait for it", pid=0
            ) from None
        yield
    finally:
        os.close(descriptor)


def _clear(staging: Path) -> None:
    """Remove what a restore has left behind that died."""
    for found in staging.iterdir():
        if found.is_dir() and not found.is_symlink():
            shutil.rmtree(found)
        else:
            found.unlink()


def _copy(
    disk: Disk, source: Path, staging: Path, control: Control
) -> tuple[int, int, tuple[str, ...]]:
    """Copy a mirror, its control block last; return counts and the readers' names."""
    for name in (files.SEGMENTS, files.READERS):
        disk.make_directory(staging / name, 0o700)
    size = (source / files.TABLE).stat().st_size
    copied = _copy_file(disk, source / files.TABLE, staging / files.TABLE, size)
    segments = 0
    for path in sorted((source / files.SEGMENTS).iterdir()):
        index = files.segment_index(path.name)
        if index is None or index < control.floor_segment:
            continue
        to = staging / files.SEGMENTS / path.name
        copied += _copy_file(disk, path, to, control.geometry.segment_bytes)
        disk.forget(to)
        segments += 1
    readers = []
    for path in sorted((source / files.READERS).glob(f"*{files.CURSOR_SUFFIX}")):
        copied += _copy_file(disk, path, staging / files.READERS / path.name, files.PAGE_BYTES)
        readers.append(path.name.removesuffix(files.CURSOR_SUFFIX))
    if (source / files.SCHEMA).exists():
        size = (source / files.SCHEMA).stat().st_size
        copied += _copy_file(disk, source / files.SCHEMA, staging / files.SCHEMA, size)
    disk.create(staging / files.LOCK, 0, 0o600)
    control.forget_the_machine()
    disk.create(staging / files.CONTROL, files.CONTROL_BYTES, 0o600)
    disk.write(staging / files.CONTROL, control.page, 0)
    return segments, copied, tuple(readers)


def _copy_file(disk: Disk, source: Path, to: Path, len_bytes: int) -> int:
    """Copy a file that must have this size; return the bytes that were not zero, in chunks."""
    descriptor = files.open_for_reading(source)
    try:
        found = os.fstat(descriptor).st_size
        if found != len_bytes:
            raise NotAQueue(
                f"'{source}' has not the size of a queue's file: found={found} "
                f"expected={len_bytes}; restore from another mirror"
            )
        disk.create(to, len_bytes, 0o600)
        copied = 0
        for at in range(0, len_bytes, _CHUNK_BYTES):
            data = os.pread(descriptor, min(_CHUNK_BYTES, len_bytes - at), at)
            # The file is made of zeros.
            if data.count(0) != len(data):
                disk.write(to, data, at)
                copied += len(data)
        return copied
    finally:
        os.close(descriptor)
