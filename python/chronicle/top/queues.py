"""A queue's files, read with pread: nothing is mapped, so nothing that happens to a file hurts.

A reader of the core maps segments, and a file that is cut short under a mapping kills the process
that loads from it. Whoever only looks at other people's queues must survive that too. What is
needed of the format is little (docs/internals/format.md): control block, cursors, and of the
segments the way to the last record, which the sparse index makes short.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

from chronicle.errors import ChronicleError, FormatError
from chronicle.heartbeat import read_heartbeat
from chronicle.sidecar import files
from chronicle.top.model import QueueLook, ReaderLook

__all__ = ["Record", "last_records", "look_at_queue"]

#: ``struct flock`` of 64-bit Linux: type, whence, start, length, pid.
_FLOCK: Final = struct.Struct("@hhqqi4x")
_WRITE_LOCK_OF_BYTE_0: Final = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
_SHIFTS: Final = range(16, 31)
_U64_MAX: Final = (1 << 64) - 1
#: commit, type id, flags, sequence, timestamp
_RECORD: Final = struct.Struct("<IHHQQ8x")
_ROLLED: Final = 0xFFFF_FFFF
_FIRST_SEQUENCE: Final = 48
_CHUNK_BYTES: Final = 1 << 16
#: So far is a writer followed that goes on while we look; then what is known is told.
_ROLLS_FOLLOWED: Final = 16
_RECORDS_FOLLOWED: Final = 100_000
#: Of the control block: epoch, tail_segment, writer_pid.
_EPOCH, _WRITER_PID, _FLOOR, _DURABLE, _COUNTERS = 128, 144, 384, 512, 640
_CURSOR_MAGIC: Final = b"CHRNCUR1"
#: Of a cursor: next_sequence, next_position, pid, placed.
_CURSOR: Final = struct.Struct("<QQII")
_CURSOR_WORDS: Final = 128


class Record(NamedTuple):
    """A message as it stands in a segment.

    Attributes
    ----------
    seq, timestamp_ns, type_id
        Of the message.
    position
        Of its header.
    payload
        Its bytes; those behind `payload_bytes_max` of the look are left out.
    payload_bytes
        How many there are.
    """

    seq: int
    timestamp_ns: int
    type_id: int
    position: int
    payload: bytes
    payload_bytes: int


class _Tail(NamedTuple):
    next_seq: int
    position: int
    newest_ns: int
    problem: str


def look_at_queue(path: Path, name: str) -> QueueLook:
    """Look at a queue. Never raises for what is wrong with it: that stands in the result.

    Raises
    ------
    FileNotFoundError
        If it is gone.
    """
    try:
        control = _control(path)
    except FileNotFoundError:
        raise
    except (OSError, ChronicleError) as error:
        return QueueLook(name, str(path), problem=str(error))
    word = control.page
    rolls, inline, recoveries, cuts, cut_bytes, deleted = struct.unpack_from("<6Q", word, _COUNTERS)
    tail = _find_tail(path, control)
    readers = tuple(_readers(path, tail))
    beat = read_heartbeat(path)
    return QueueLook(
        name,
        str(path),
        queue_id=control.queue_id,
        epoch=struct.unpack_from("<Q", word, _EPOCH)[0],
        writer_live=_is_locked(path / files.LOCK),
        writer_pid=struct.unpack_from("<I", word, _WRITER_PID)[0],
        first_seq=_first_seq(path, control, tail.next_seq),
        next_seq=tail.next_seq,
        position=tail.position,
        newest_ns=tail.newest_ns,
        durable_seq=control.durable[0],
        segment_bytes=control.geometry.segment_bytes,
        segments=_count_segments(path),
        floor_segment=control.floor_segment,
        tail_segment=control.tail_segment,
        rolls=rolls,
        rolls_inline=inline,
        recoveries=recoveries,
        cuts=cuts,
        cut_bytes=cut_bytes,
        segments_deleted=deleted,
        readers=readers,
        held_by=_held_by(readers, control),
        beat_age_s=None if beat is None else beat.age_s,
        beat_late=beat is not None and beat.is_late(),
        problem=tail.problem,
    )


def last_records(path: Path, count: int, *, payload_bytes_max: int = 4096) -> list[Record]:
    """Return the last messages of a queue, oldest first; fewer if there are fewer, or damage.

    Raises
    ------
    OSError, ChronicleError
        If there is no queue that can be read.
    """
    control = _control(path)
    found: deque[Record] = deque(maxlen=count)
    index = control.tail_segment
    # Backwards until there are enough, at most so far.
    for _ in range(_ROLLS_FOLLOWED):
        try:
            with _Segment(path, control.geometry, index) as segment:
                newer = list(segment.last(count - len(found), payload_bytes_max))
        except FileNotFoundError:
            break
        found.extendleft(reversed(newer))
        if len(found) >= count or index <= control.floor_segment:
            break
        index -= 1
    return list(found)


def _control(path: Path) -> files.Control:
    control = files.Control(files.read_whole(path / files.CONTROL, files.CONTROL_BYTES), str(path))
    if control.geometry.shift not in _SHIFTS:
        raise FormatError(
            f"'{path}' cannot be read: segment_shift={control.geometry.shift} expected=16 to 30; "
            "restore the control file from a copy",
            field="segment_shift",
            found=str(control.geometry.shift),
            expected="16 to 30",
        )
    return control


def _is_locked(path: Path) -> bool:
    """Ask about the lock without taking it."""
    try:
        descriptor = files.open_for_reading(path)
    except OSError:
        return False
    try:
        found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WRITE_LOCK_OF_BYTE_0)
    finally:
        os.close(descriptor)
    kind: int = _FLOCK.unpack(found)[0]
    return kind != fcntl.F_UNLCK


def _count_segments(path: Path) -> int:
    with contextlib.suppress(OSError):
        with os.scandir(path / files.SEGMENTS) as entries:
            return sum(files.segment_index(entry.name) is not None for entry in entries)
    return 0


# --- Readers ---


def _readers(path: Path, tail: _Tail) -> Iterator[ReaderLook]:
    try:
        names = sorted(entry.name for entry in (path / files.READERS).iterdir())
    except OSError:
        return
    for file in names:
        name = file.removesuffix(files.CURSOR_SUFFIX)
        if name != file:
            with contextlib.suppress(FileNotFoundError):
                yield _reader(path / files.READERS / file, name, tail)


def _reader(path: Path, name: str, tail: _Tail) -> ReaderLook:
    try:
        page = files.read_whole(path, files.PAGE_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        return ReaderLook(name, live=False, problem=str(error))
    live = _is_locked(path)
    if len(page) != files.PAGE_BYTES or page[:8] not in (_CURSOR_MAGIC, bytes(8)):
        return ReaderLook(name, live, problem=f"'{path}' is no cursor")
    next_seq, position, pid, placed = _CURSOR.unpack_from(page, _CURSOR_WORDS)
    if not placed:
        return ReaderLook(name, live, pid)
    behind = max(0, tail.next_seq - next_seq)
    lag_bytes = max(0, tail.position - position) if behind else 0
    return ReaderLook(name, live, pid, next_seq, position, behind, lag_bytes)


def _held_by(readers: tuple[ReaderLook, ...], control: files.Control) -> str:
    """Name the live reader that needs the oldest sealed segment, as retention sees it."""
    live = [reader for reader in readers if reader.live and reader.next_seq is not None]
    if not live or control.floor_segment >= control.tail_segment:
        return ""
    last = min(live, key=lambda reader: reader.position)
    return last.name if control.geometry.split(last.position)[0] <= control.floor_segment else ""


# --- Segments ---


def _find_tail(path: Path, control: files.Control) -> _Tail:
    """Find the end of a queue, as far as it is not damaged."""
    geometry, index = control.geometry, control.tail_segment
    next_seq, offset, newest_ns, problem = 1, geometry.data_offset, 0, ""
    try:
        segment = _Segment(path, geometry, index)
        if segment.first_seq == 0 and index > control.floor_segment:
            # Prepared, not entered.
            segment.close()
            segment = _Segment(path, geometry, index - 1)
        for _ in range(_ROLLS_FOLLOWED):
            with segment:
                index = segment.index
                offset, next_seq, at_ns, rolled = segment.end()
                newest_ns = at_ns or newest_ns
            if not rolled:
                break
            segment = _Segment(path, geometry, index + 1)
            index, offset = segment.index, geometry.data_offset
        segment.close()
    except FileNotFoundError as error:
        if control.tail_segment or _count_segments(path):
            problem = f"a segment is missing: '{error.filename}'"
    except (OSError, ChronicleError) as error:
        problem = str(error)
    return _Tail(next_seq, geometry.position(index, offset), newest_ns, problem)


def _first_seq(path: Path, control: files.Control, next_seq: int) -> int:
    try:
        with _Segment(path, control.geometry, control.floor_segment) as segment:
            return segment.first_seq or next_seq
    except (OSError, ChronicleError):
        return next_seq


class _Segment:
    """A segment file that is open for looking."""

    def __init__(self, path: Path, geometry: files.Geometry, index: int) -> None:
        self.index = index
        self._geometry = geometry
        self._path = path / files.SEGMENTS / files.segment_name(index)
        self._descriptor = files.open_for_reading(self._path)
        try:
            head = self._read(0, files.PAGE_BYTES)
            if head[:8] != b"CHRNSEG1":
                raise self._damaged(0, "no header of a segment")
        except BaseException:
            self.close()
            raise
        self.first_seq: int = struct.unpack_from("<Q", head, _FIRST_SEQUENCE)[0]

    def close(self) -> None:
        """Close the file; may be repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def end(self) -> tuple[int, int, int, bool]:
        """Find where the records end: offset, next number, time of the last, and if by a roll."""
        offset, seq, newest_ns = self._entry(self._last_entry())
        for _ in range(_RECORDS_FOLLOWED):
            head = self._record(offset, seq)
            if not isinstance(head, tuple):
                return offset, seq, newest_ns, head
            length, _, newest_ns = head
            offset, seq = _behind(offset, length), seq + 1
        return offset, seq, newest_ns, False

    def last(self, count: int, payload_bytes_max: int) -> Iterator[Record]:
        """Yield the last records."""
        entry, back = self._last_entry(), 1
        while True:
            offset, seq, _ = self._entry(entry)
            found: deque[tuple[int, int, int, int, int]] = deque(maxlen=count)
            total = 0
            while total < _RECORDS_FOLLOWED:
                try:
                    head = self._record(offset, seq)
                except ChronicleError:
                    break
                if not isinstance(head, tuple):
                    break
                length, type_id, at_ns = head
                found.append((offset, seq, at_ns, type_id, length))
                offset, seq, total = _behind(offset, length), seq + 1, total + 1
            if total >= count or entry < 0:
                break
            entry, back = max(-1, entry - back), back * 4
        for offset, seq, at_ns, type_id, length in found:
            payload = self._read(offset + 32, min(length, payload_bytes_max))
            position = self._geometry.position(self.index, offset)
            yield Record(seq, at_ns, type_id, position, payload, length)

    def _last_entry(self) -> int:
        """Find the last entry of the index that is there: they are stored in order; -1 if none."""
        low, high = -1, self._geometry.index_entries - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._raw_entry(middle)[0]:
                low = middle
            else:
                high = middle - 1
        return low

    def _entry(self, number: int) -> tuple[int, int, int]:
        """Return offset, number and a time of the record that an entry speaks of."""
        first = self._geometry.data_offset
        if number < 0:
            return first, self.first_seq or 1, 0
        offset, seq, at_ns = self._raw_entry(number)
        if not first <= offset < self._geometry.segment_bytes or offset % 8:
            raise self._damaged(offset, f"entry {number} of the index")
        return offset, seq, at_ns

    def _raw_entry(self, number: int) -> tuple[int, int, int]:
        raw = self._read(files.PAGE_BYTES + number * files.INDEX_ENTRY.size, files.INDEX_ENTRY.size)
        offset, seq, at_ns = files.INDEX_ENTRY.unpack(raw)
        return offset, seq, at_ns

    def _record(self, offset: int, seq: int) -> tuple[int, int, int] | bool:
        """Return length, type and time of a record; without one, whether there is a roll."""
        end = self._geometry.segment_bytes
        if offset + files.ROLL_MARKER_BYTES > end:
            raise self._damaged(offset, "no roll marker")
        raw = self._cached(offset, min(_RECORD.size, end - offset))
        commit = int.from_bytes(raw[:4], "little")
        if commit == 0 or commit == _ROLLED:
            return commit == _ROLLED
        if len(raw) < _RECORD.size or offset + _RECORD.size + commit - 1 > end:
            raise self._damaged(offset, f"a record of {commit - 1} bytes")
        _, type_id, _, found, at_ns = _RECORD.unpack(raw)
        if found != seq:
            raise self._damaged(offset, f"found seq={found} expected={seq}")
        return commit - 1, type_id, at_ns

    _chunk: bytes = b""
    _chunk_at: int = 0

    def _cached(self, offset: int, count: int) -> bytes:
        """Read some bytes, and many behind them in advance."""
        at = offset - self._chunk_at
        if at < 0 or at + count > len(self._chunk):
            room = self._geometry.segment_bytes - offset
            self._chunk = self._read(offset, min(_CHUNK_BYTES, room))
            self._chunk_at, at = offset, 0
        return self._chunk[at : at + count]

    def _read(self, offset: int, count: int) -> bytes:
        data = os.pread(self._descriptor, count, offset)
        if len(data) != count:
            raise self._damaged(offset, "the file is too short")
        return data

    def _damaged(self, offset: int, what: str) -> FormatError:
        return FormatError(
            f"'{self._path}' is damaged at offset={offset}: {what}; see `chronicle doctor`",
            field="record",
            found=what,
            expected="a record",
        )


def _behind(offset: int, length: int) -> int:
    return offset + (_RECORD.size + length + 7) // 8 * 8
