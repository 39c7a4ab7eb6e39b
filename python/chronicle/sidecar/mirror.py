"""Mirrors: a queue on a tmpfs, copied to a disk while it is written; same bytes, same positions.

`Mirror` does the work, turn by turn, in whatever thread calls it; `MirrorService` has the sidecar
call it. The protocol, and the argument why a crash at any point leaves a mirror from which the
ordinary recovery comes back, stand in docs/internals/sidecar.md. In short: what the mirror's
control block promises was synced before it was stored, and nothing of another life of the queue
ever stands behind it.

A mirror never writes into its source, and never makes anybody wait, unless it is given a name:
then it is a registered reader there, and retention waits for it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from chronicle.errors import (
    BadArgument,
    Closed,
    Gap,
    MirrorDiverged,
    NotAQueue,
    QueueFull,
    QueueRemoved,
)
from chronicle.queue import Queue, QueueReader, StrPath
from chronicle.sidecar import files
from chronicle.sidecar.files import Control, Disk, TableEntry, WriterLock

__all__ = ["Mirror", "MirrorStatus"]

_log = logging.getLogger("chronicle.sidecar")

_CHUNK_BYTES = 1 << 20
_TURN_BYTES_MAX = 64 << 20
#: Messages of one step of the walk to the end; between steps the interpreter lock is free.
_RUN_MESSAGES_MAX = 1 << 16
_SCHEMA_BYTES_MAX = 64 << 20
#: What a directory may hold in which a mirror begins.
_OURS = {
    files.CONTROL,
    files.TABLE,
    files.LOCK,
    files.SEGMENTS,
    files.READERS,
    files.SCHEMA,
}
_GAP_SUFFIX = ".gap.cut"


@dataclass(frozen=True)
class MirrorStatus:
    """How far a mirror is, and how far behind.

    Attributes
    ----------
    durable_seq, durable_position
        The last message that is on the disk for certain, and the position behind it.
    lag_messages, lag_bytes
        What is being copied beyond that right now. Bytes count whole segments.
    behind_s
        Everything that was committed so many seconds ago is on the disk; ``inf`` before the first
        turn has caught up.
    bytes_copied, turns
        Since this mirror was opened.
    gaps
        How often messages were deleted before they could be mirrored.

    Examples
    --------
    >>> from chronicle.sidecar import MirrorStatus
    >>> MirrorStatus().durable_seq, MirrorStatus().behind_s
    (0, inf)
    """

    durable_seq: int = 0
    durable_position: int = 0
    lag_messages: int = 0
    lag_bytes: int = 0
    behind_s: float = float("inf")
    bytes_copied: int = 0
    turns: int = 0
    gaps: int = 0


class Mirror:
    """Copies one queue into one directory. One thread at a time; only `status` is for all.

    Parameters
    ----------
    source
        The queue.
    target
        The mirror's directory. Made if it is missing; continued if it is a mirror of this queue.
    name
        Register under this name at the source, so that retention waits for the mirror.
    keep_bytes, keep_age_s
        Delete the mirror's oldest segments while all take more than so many bytes, or once they
        were last written so many seconds ago. By default nothing is deleted.
    cursor_interval_s
        Take the readers' cursors along this often, in seconds.
    turn_bytes_max
        Copy so many bytes at a time, or a little more, before they are made durable.
    disk
        Where changes go; for tests.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> writer.append(1, b"kept")
    1
    >>> from chronicle.sidecar import Mirror
    >>> with Mirror(path, f"{folder.name}/mirror") as mirror:
    ...     while mirror.status.durable_seq < 1:
    ...         _ = mirror.turn()
    >>> writer.close(); folder.cleanup()
    """

    def __init__(
        self,
        source: StrPath,
        target: StrPath,
        *,
        name: str | None = None,
        keep_bytes: int | None = None,
        keep_age_s: float | None = None,
        cursor_interval_s: float = 1.0,
        turn_bytes_max: int = _TURN_BYTES_MAX,
        disk: Disk | None = None,
    ) -> None:
        self.source = Path(source)
        self.target = Path(target)
        if self.source.absolute() == self.target.absolute():
            raise BadArgument(f"bad mirror: source and target are both '{source}'")
        self._name = name
        self._keep_bytes = keep_bytes
        self._keep_age_s = keep_age_s
        self._cursor_interval_s = cursor_interval_s
        self._turn_bytes_max = turn_bytes_max
        self._disk = disk or Disk()
        self._open: _Open | None = None
        self._status = MirrorStatus()
        self._caught_up_s: float | None = None

    @property
    def status(self) -> MirrorStatus:
        """How far it is. Any thread."""
        at, opened = self._caught_up_s, self._open
        behind_s = float("inf") if at is None else max(0.0, time.monotonic() - at)
        if opened is None:
            return replace(self._status, behind_s=behind_s)
        return replace(
            self._status,
            behind_s=behind_s,
            lag_messages=opened.lag_messages,
            lag_bytes=opened.lag_bytes,
        )

    def open(self) -> None:
        """Begin, or continue where an earlier mirror has stopped. Nothing if it is open.

        Raises
        ------
        NotAQueue
            If the source is not a queue (yet), or the target holds something else.
        MirrorDiverged
            If the target is not a former state of the source.
        WriterActive
            If another mirror, or a writer, works on the target.
        """
        if self._open is not None:
            return
        with contextlib.ExitStack() as stack:
            stack.callback(self._disk.close)
            opened = _Open(self, stack)
            self._status = replace(
                self._status,
                durable_seq=opened.next_sequence - 1,
                durable_position=opened.position if opened.exists else 0,
            )
            opened.stack = stack.pop_all()
            self._open = opened

    def turn(self) -> bool:
        """Copy what is new, bounded, and make it durable; whether the mirror has caught up.

        Blocks on the device.

        Raises
        ------
        DiskFull, QueueFull, OSError, CorruptRecord, QueueRemoved
            The mirror is as it was, or further; close it, and try again by `open`.
        """
        opened = self._open
        if opened is None:
            raise Closed(f"the mirror '{self.target}' is not open")
        begin_s = time.monotonic()
        caught_up = opened.turn()
        self._status = replace(
            self._status,
            durable_seq=opened.next_sequence - 1,
            durable_position=opened.position,
            bytes_copied=self._status.bytes_copied + opened.take_bytes_copied(),
            turns=self._status.turns + 1,
            gaps=self._status.gaps + opened.take_gaps(),
        )
        if caught_up:
            self._caught_up_s = begin_s
        return caught_up

    def catch_up(self) -> None:
        """Take turns until nothing is left to copy, cursors included. Blocks."""
        self.open()
        while not self.turn():
            pass
        if self._open is not None:
            self._open.cursors_are_due()
        self.turn()

    def close(self) -> None:
        """Let go of both sides. What is durable stays so; what is not is copied again later."""
        if self._open is not None:
            self._open.stack.close()
            self._open = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Open:
    """A mirror at work: both sides open, and where it stands."""

    stack: contextlib.ExitStack

    def __init__(self, mirror: Mirror, stack: contextlib.ExitStack) -> None:
        self.mirror = mirror
        self.disk = mirror._disk
        self.source = mirror.source
        self.target = mirror.target
        self.control = Control.read(self.source)
        self.geometry = self.control.geometry
        self.capacity = self.control.table_capacity
        self.exists = (self.target / files.CONTROL).exists()
        #: What is written to files, and not synced.
        self.dirty: set[Path] = set()
        self.names_dirty = False
        self._bytes_copied = 0
        self._gaps = 0
        self.lag_messages = self.lag_bytes = 0
        self._cursors: dict[str, bytes] = {}
        self._schema: bytes | None = None
        self._cursors_due_s = 0.0
        self._buffer = bytearray(_CHUNK_BYTES)
        #: Index entries that are copied, by segment.
        self._indexed: dict[int, int] = {}
        #: Open segments of the source: what retention deletes can still be read to its end.
        self._segments: dict[int, int] = {}
        stack.callback(self._close_segments)
        self._source_control = files.open_for_reading(self.source / files.CONTROL)
        stack.callback(os.close, self._source_control)
        self._source_table = files.open_for_reading(self.source / files.TABLE)
        stack.callback(os.close, self._source_table)
        self._make_directories()
        stack.callback(WriterLock(self.target).close)
        if self.exists:
            self._continue()
        else:
            self._begin()
        self._reader = self._open_reader()
        stack.callback(self._reader.close)
        self._settle()

    # --- Beginning and continuing ---

    def _make_directories(self) -> None:
        if not self.exists and self.target.exists():
            for found in sorted(self.target.iterdir()):
                if found.name not in _OURS and found.suffix != ".tmp":
                    raise NotAQueue(
                        f"'{self.target}' holds '{found.name}': it is neither a mirror nor empty; "
                        "choose another directory"
                    )
        self._made = [p for p in (self.target, *self.target.parents) if not p.exists()]
        for folder in (self.target, self.target / files.SEGMENTS, self.target / files.READERS):
            self.disk.make_directory(folder, 0o700)

    def _source_page(self) -> Control:
        return Control(os.pread(self._source_control, files.CONTROL_BYTES, 0), str(self.source))

    def _begin(self) -> None:
        """Make an empty mirror. It has no control block before its first turn is durable."""
        # What a mirror has left behind that died before it was one.
        for folder in (self.target / files.SEGMENTS, self.target / files.READERS):
            for found in sorted(folder.iterdir()):
                self.disk.remove(found)
        size = (self.source / files.TABLE).stat().st_size
        table = self.target / files.TABLE
        self.disk.create(table, size, 0o600)
        self.disk.write(table, os.pread(self._source_table, 64, 0), 0)
        self.dirty.add(table)
        self.floor = self.control.floor_segment
        self.index, self.offset = self.floor, self.geometry.data_offset
        self.next_sequence = 0  # Told by the reader.

    def _continue(self) -> None:
        """Take an existing mirror up at its durable position."""
        ours = Control.read(self.target)
        if ours.queue_id != self.control.queue_id:
            raise MirrorDiverged(
                f"'{self.target}' mirrors another queue than '{self.source}': "
                f"queue_id={ours.queue_id} expected={self.control.queue_id}; "
                "restore that queue first, or choose another directory"
            )
        if ours.was_opened_for_writing:
            raise MirrorDiverged(
                f"'{self.target}' was opened for writing since it was a mirror of "
                f"'{self.source}'; choose another directory"
            )
        durable_sequence, durable_position = ours.durable
        self.next_sequence = durable_sequence + 1
        self.index, self.offset = self.geometry.split(durable_position)
        self.floor = ours.floor_segment
        if self._source_page().floor_segment <= self.index:
            self._check_same_history()
        self._drop_what_was_never_promised()

    def _drop_what_was_never_promised(self) -> None:
        """Zero what stands behind the durable position.

        It may be of another life of the queue, one whose end was lost with the machine; recovery
        could not tell.
        """
        for path, index in self._segment_files():
            if index > self.index:
                self.disk.remove(path)
            elif index < self.floor:
                self.disk.rename(path, path.with_name(path.name + _GAP_SUFFIX))
        self.disk.sync_names(self.target / files.SEGMENTS)
        path = self._segment(self.index)
        entries = files.PAGE_BYTES
        self._zero(path, entries, self.geometry.data_offset)
        self._zero(path, self.offset, self.geometry.segment_bytes)
        self.disk.sync(path)

    def _zero(self, path: Path, begin: int, end: int) -> None:
        """Make a range zero. What is zero already is only read."""
        for at in range(begin, end, _CHUNK_BYTES):
            found = self.disk.read(path, min(_CHUNK_BYTES, end - at), at)
            if found.count(0) != len(found):
                self.disk.write(path, bytes(len(found)), at)

    def _segment_files(self) -> list[tuple[Path, int]]:
        paths = sorted((self.target / files.SEGMENTS).iterdir())
        numbered = ((path, files.segment_index(path.name)) for path in paths)
        return [(path, index) for path, index in numbered if index is not None]

    def _open_reader(self) -> QueueReader:
        """Open the source where the mirror stands.

        Raises
        ------
        MirrorDiverged
            If the source has not got there, or got there by other messages.
        """
        name = self.mirror._name
        if not self.exists:
            return Queue.open_subscriber(self.source, name, start=self._earliest())
        if self._source_page().floor_segment > self.index:
            self._seal_what_was_complete()
            return Queue.open_subscriber(self.source, name, start=self.next_sequence)
        reader = Queue.open_subscriber(self.source, name, start=self.next_sequence)
        index, offset = self.geometry.split(reader.position)
        # Behind a roll the same place is the beginning of the next segment.
        if (index, offset) not in (
            (self.index, self.offset),
            (self.index + 1, self.geometry.data_offset),
        ):
            reader.close()
            raise self._diverged("its messages stand at other positions")
        return reader

    def _seal_what_was_complete(self) -> None:
        """If all that retention has deleted is a segment that is here but for its marker, end it.

        The table still has its entry: slots are used again only after a whole turn of the ring.
        """
        sealed = TableEntry.read(self._source_table, self.index, self.capacity)
        if sealed is None or sealed.end_offset != self.offset:
            return
        path = self._segment(self.index)
        self.disk.write(path, files.ROLL_MARKER, self.offset)
        self.disk.sync(path)
        self._write_table([sealed])
        self.index, self.offset = self.index + 1, self.geometry.data_offset

    def _earliest(self) -> int:
        """Return the number of the oldest message that exists: where a new mirror begins."""
        floor = self._source_page().floor_segment
        entry = TableEntry.read(self._source_table, floor, self.capacity)
        return entry.first_sequence if entry is not None else 1

    def _check_same_history(self) -> None:
        """Compare the last segment up to the durable position with the source's, byte by byte."""
        theirs = self._source_segment(self.index)
        if theirs is None:
            raise self._diverged(f"it has no segment {self.index}")
        ours = self._segment(self.index)
        for at in range(self.geometry.data_offset, self.offset, _CHUNK_BYTES):
            size = min(_CHUNK_BYTES, self.offset - at)
            if os.pread(theirs, size, at) != self.disk.read(ours, size, at):
                raise self._diverged(f"segment {self.index} holds other messages")

    def _diverged(self, why: str) -> MirrorDiverged:
        return MirrorDiverged(
            f"'{self.target}' is not a former state of '{self.source}': {why} "
            f"(the mirror ends at seq={self.next_sequence - 1}); "
            "restore the queue from it, or choose another directory"
        )

    def _settle(self) -> None:
        """Agree with the reader on where to begin."""
        if self.exists:
            return
        self.next_sequence = self._reader.next_seq
        self.index, self.offset = self.geometry.split(self._reader.position)
        self.floor = self.index

    # --- One turn ---

    @property
    def position(self) -> int:
        """Up to where the mirror is durable."""
        return self.geometry.position(self.index, self.offset)

    def take_bytes_copied(self) -> int:
        """Return the bytes copied since the last call."""
        count, self._bytes_copied = self._bytes_copied, 0
        return count

    def take_gaps(self) -> int:
        """Return the gaps found since the last call."""
        count, self._gaps = self._gaps, 0
        return count

    def turn(self) -> bool:
        """Copy what is new and make it durable; whether that was all."""
        is_removed = self._is_removed()
        cursors = self._read_cursors()
        schema = self._read_schema()
        caught_up = self._walk()
        end, next_sequence = self._reader.position, self._reader.next_seq
        self.lag_messages = max(0, next_sequence - self.next_sequence)
        self.lag_bytes = max(0, end - self.position)
        has_new = end != self.position or not self.exists or self._gaps > 0
        entries = self._copy_segments(end) if has_new else []
        for path in sorted(self.dirty):
            self.disk.sync(path)
        self.dirty.clear()
        if self.names_dirty:
            self.disk.sync_names(self.target / files.SEGMENTS)
            self.names_dirty = False
        if entries:
            self._write_table(entries)
        self._write_schema(schema)
        floor = self._floor_by_policy()
        if has_new or floor != self.floor:
            self._promise(end, next_sequence, floor)
            self._delete_below(floor)
        if caught_up and cursors is not None:
            # Not before the promise, and not after a turn that was bounded: a cursor is never ahead
            # of the messages that it speaks of.
            self._write_cursors(cursors)
        if self.mirror._name is not None and has_new:
            self._reader.commit()
        self.lag_messages = self.lag_bytes = 0
        if is_removed and not has_new:
            raise QueueRemoved(
                f"the queue '{self.source}' was removed while it was mirrored; "
                f"the mirror has it up to seq={self.next_sequence - 1}"
            )
        return caught_up

    def _is_removed(self) -> bool:
        """Whether the source's directory holds this queue no more: the reader would not notice."""
        try:
            there = (self.source / files.CONTROL).stat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        ours = os.fstat(self._source_control)
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _walk(self) -> bool:
        """Move the reader to the end of what is committed; whether it got there."""
        limit = self.position + self.mirror._turn_bytes_max
        while True:
            try:
                run = self._reader.next_run(count_max=_RUN_MESSAGES_MAX)
            except Gap as gap:
                self._note_gap(gap)
                return False
            if run is None:
                return True
            if self._reader.position >= limit:
                return False

    def _note_gap(self, gap: Gap) -> None:
        """Messages were deleted before they were mirrored: go on at what there is."""
        self._gaps += 1
        self.next_sequence = self._reader.next_seq
        self.index, self.offset = self.geometry.split(self._reader.position)
        _log.error(
            "mirror '%s' missed messages of '%s': first_missing=%d next=%d reason=%s; "
            "what it had is set aside; give the mirror a name=, so that retention waits for it",
            self.target,
            self.source,
            gap.first_missing,
            gap.next,
            gap.reason,
        )

    def _copy_segments(self, end: int) -> list[TableEntry]:
        """Copy everything from the durable position to `end`; return the table's new entries."""
        end_index, end_offset = self.geometry.split(end)
        heads: list[tuple[Path, bytes, int]] = []
        entries = []
        for index in range(self.index, end_index + 1):
            begin = self.offset if index == self.index else self.geometry.data_offset
            sealed = self._sealed(index) if index < end_index else None
            stop = end_offset if index == end_index else self._marker_end(sealed)
            entries.append(self._copy_segment(index, begin, stop, sealed, heads))
        # Last what makes the rest visible to whoever reads the mirror, and there last the first.
        for path, head, offset in reversed(heads):
            self.disk.write(path, head, offset)
        return entries

    def _sealed(self, index: int) -> TableEntry | None:
        entry = TableEntry.read(self._source_table, index, self.capacity)
        return entry if entry is not None and entry.end_offset else None

    def _marker_end(self, sealed: TableEntry | None) -> int:
        # Without the entry the whole file is copied: behind the marker there are zeros.
        if sealed is None:
            return self.geometry.segment_bytes
        return sealed.end_offset + files.ROLL_MARKER_BYTES

    def _copy_segment(
        self,
        index: int,
        begin: int,
        stop: int,
        sealed: TableEntry | None,
        heads: list[tuple[Path, bytes, int]],
    ) -> TableEntry:
        source = self._source_segment(index)
        if source is None:
            # Retention was faster. Who opens the mirror again begins at what is left.
            raise OSError(errno.ENOENT, "segment deleted while it was copied", str(self.source))
        path = self._segment(index)
        header = os.pread(source, files.PAGE_BYTES, 0)
        if not path.exists():
            self._check_room(index)
            self._create_segment(path, header)
        if begin < stop:
            heads.append((path, os.pread(source, 8, begin), begin))
            self._copy(source, path, begin + 8, stop)
        self._copy_index(source, path, index, stop)
        self.dirty.add(path)
        first_sequence = int.from_bytes(header[48:56], "little")
        if sealed is not None:
            return replace(sealed, first_sequence=first_sequence)
        return TableEntry(index, first_sequence, 0, 0)

    def _create_segment(self, path: Path, header: bytes) -> None:
        tmp = path.with_name(path.name + ".tmp")
        self.disk.create(tmp, self.geometry.segment_bytes, 0o600)
        self.disk.write(tmp, header, 0)
        # Its name must not reach the device before its size.
        self.disk.sync(tmp)
        self.disk.rename(tmp, path)
        self.names_dirty = True

    def _check_room(self, index: int) -> None:
        """Refuse a segment for which the table, which is a ring, would forget another one."""
        if index - self.floor < self.capacity or self._gaps:
            return
        floor = self._floor_by_policy()
        if index - floor < self.capacity:
            self._promise(self.position, self.next_sequence, floor)
            self._delete_below(floor)
        else:
            raise QueueFull(
                f"the mirror '{self.target}' holds as many segments as its table has room for: "
                f"segments_max={self.capacity}; give it keep_bytes= or keep_age_s="
            )

    def _copy(self, source: int, path: Path, begin: int, stop: int) -> None:
        view = memoryview(self._buffer)
        while begin < stop:
            count = os.preadv(source, [view[: min(_CHUNK_BYTES, stop - begin)]], begin)
            if count == 0:
                raise OSError(5, "a segment is shorter than it must be", str(self.source))
            self.disk.write(path, view[:count], begin)
            begin += count
            self._bytes_copied += count

    def _copy_index(self, source: int, path: Path, index: int, stop: int) -> None:
        """Copy the entries of the sparse index that do not point beyond what is copied."""
        size = files.INDEX_ENTRY.size
        done = self._indexed.get(index, 0)
        # An entry for each block that begins before the end, and that is all there can be.
        due = min(self.geometry.index_entries, -(-stop // files.INDEX_BLOCK_BYTES)) - done
        raw = os.pread(source, max(0, due) * size, files.PAGE_BYTES + done * size)
        count = 0
        for offset, _, _ in files.INDEX_ENTRY.iter_unpack(raw[: len(raw) // size * size]):
            if not 0 < offset < stop:
                break
            count += 1
        if count:
            self.disk.write(path, raw[: count * size], files.PAGE_BYTES + done * size)
            self._indexed[index] = done + count

    def _source_segment(self, index: int) -> int | None:
        """Return a descriptor of a segment of the source; ``None`` if it is gone."""
        found = self._segments.get(index)
        if found is None:
            path = self.source / files.SEGMENTS / files.segment_name(index)
            with contextlib.suppress(FileNotFoundError):
                found = self._segments[index] = files.open_for_reading(path)
        return found

    def _close_segments(self, below: int | None = None) -> None:
        for index in list(self._segments):
            if below is None or index < below:
                os.close(self._segments.pop(index))
                self._indexed.pop(index, None)

    def _segment(self, index: int) -> Path:
        return self.target / files.SEGMENTS / files.segment_name(index)

    # --- What goes with the messages ---

    def _write_table(self, entries: list[TableEntry]) -> None:
        table = self.target / files.TABLE
        for entry in entries:
            at = TableEntry.offset(entry.index, self.capacity)
            packed = entry.pack()
            self.disk.write(table, packed[8:], at + 8)
            self.disk.write(table, packed[:8], at)
        self.disk.sync(table)

    def _read_cursors(self) -> dict[str, bytes] | None:
        """Return the source's cursors if they are due.

        A page that is stored into meanwhile may be half old: either number resumes rightly.
        """
        if time.monotonic() < self._cursors_due_s:
            return None
        own = f"{self.mirror._name}{files.CURSOR_SUFFIX}"
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for path in (self.source / files.READERS).iterdir():
                if path.suffix != files.CURSOR_SUFFIX or path.name == own:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    found[path.name] = files.read_whole(path, files.PAGE_BYTES)
        return found

    def _write_cursors(self, cursors: dict[str, bytes]) -> None:
        folder = self.target / files.READERS
        names_changed = False
        for name, page in cursors.items():
            path = folder / name
            if self._cursors.get(name) == page or len(page) != files.PAGE_BYTES:
                continue
            if path.exists():
                # In place: all that counts stands in one sector.
                self.disk.write(path, page, 0)
                self.disk.sync(path)
                self.disk.forget(path)
            else:
                self._replace(path, page)
                names_changed = True
        for name in self._cursors.keys() - cursors.keys():
            with contextlib.suppress(FileNotFoundError):
                self.disk.remove(folder / name)
            names_changed = True
        if names_changed:
            self.disk.sync_names(folder)
        self._cursors = cursors
        self._cursors_due_s = time.monotonic() + self.mirror._cursor_interval_s

    def cursors_are_due(self) -> None:
        """Take the cursors along in the next turn, however long ago the last time was."""
        self._cursors_due_s = 0.0

    def _read_schema(self) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return files.read_whole(self.source / files.SCHEMA, _SCHEMA_BYTES_MAX)
        return None

    def _write_schema(self, schema: bytes | None) -> None:
        if schema is not None and schema != self._schema:
            self._replace(self.target / files.SCHEMA, schema)
            self.disk.sync_names(self.target)
            self._schema = schema

    def _replace(self, path: Path, content: bytes) -> None:
        tmp = path.with_name(path.name + ".tmp")
        self.disk.create(tmp, 0, 0o600)
        self.disk.write(tmp, content, 0)
        self.disk.sync(tmp)
        self.disk.rename(tmp, path)
        self.disk.forget(path)

    # --- The promise ---

    def _promise(self, end: int, next_sequence: int, floor: int) -> None:
        """Say in the control block that everything up to `end` is on the disk, and sync that."""
        control = self._source_page()
        control.forget_the_machine()
        control.durable = (next_sequence - 1, end)
        control.floor_segment = floor
        control.tail_segment = self.geometry.split(end)[0]
        path = self.target / files.CONTROL
        if self.exists:
            self.disk.write(path, control.page, 0)
            self.disk.sync(path)
        else:
            # Last, by rename: a directory without it is not a mirror yet.
            self._replace(path, bytes(control.page))
            self.disk.sync_names(self.target)
            for made in self._made:
                self.disk.sync_names(made.parent)
            self.exists = True
        left = self.index
        self.index, self.offset = self.geometry.split(end)
        self.next_sequence = next_sequence
        self._close_segments(self.index)
        for index in range(left, self.index):
            self.disk.forget(self._segment(index))

    def _floor_by_policy(self) -> int:
        """Return the oldest segment to keep. The one that is durable last always stays."""
        if self._gaps:
            # What stands before the gap does not belong to what comes behind it.
            return self.index
        floor, tail = self.floor, self.index
        mirror = self.mirror
        if mirror._keep_bytes is not None:
            fit = max(1, mirror._keep_bytes >> self.geometry.shift)
            floor = max(floor, tail + 1 - fit)
        if mirror._keep_age_s is not None:
            oldest_s = time.time() - mirror._keep_age_s
            while floor < tail and _modified_s(self._segment(floor)) < oldest_s:
                floor += 1
        return min(floor, tail)

    def _delete_below(self, floor: int) -> None:
        if floor == self.floor:
            return
        for path, index in self._segment_files():
            if index >= floor:
                continue
            if self._gaps:
                self.disk.rename(path, path.with_name(path.name + _GAP_SUFFIX))
                self.disk.forget(path.with_name(path.name + _GAP_SUFFIX))
            else:
                self.disk.remove(path)
        self.disk.sync_names(self.target / files.SEGMENTS)
        self.floor = floor


def _modified_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
