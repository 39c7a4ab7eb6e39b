"""Who writes a queue, who reads it, do they live, do they work, and how far behind they are.

Looks only: nothing is locked, and readers opened here are unregistered, so they pin nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from chronicle.errors import ChronicleError
from chronicle.heartbeat import Heartbeat, read_heartbeat
from chronicle.queue import Queue, inspect

__all__ = [
    "Ends",
    "QueueStatus",
    "ReaderStatus",
    "WriterStatus",
    "find_ends",
    "lag",
    "missing_segments",
    "queue_status",
]


@dataclass(frozen=True)
class WriterStatus:
    """What a look at a queue has told of its writer.

    Attributes
    ----------
    state
        ``"alive"``; ``"stalled"``: it lives, and does not work; ``"dead"``: it has ended;
        ``"absent"``: there never was one; ``"damaged"``: nobody can write or read this.
    reason
        Why that is thought; empty if alive. ``"no such queue"``, ``"no queue"`` (a directory
        without one), ``"never opened"``, ``"lock free"``, ``"heartbeat stale"``,
        ``"segment missing: ..."``, ``"damaged: ..."``.
    pid
        Of the writer, or of the last one; 0: not known.
    epoch
        How many writers have ever opened the queue.
    heartbeat
        The last one, if there is one.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> from chronicle.bus import queue_status
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> seq = writer.append(1, b"hello")
    >>> reader = chronicle.Queue.open_subscriber(path, "risk")
    >>> status = queue_status(path)
    >>> status.writer.state, status.writer.epoch
    ('alive', 1)
    >>> reader.close(); writer.close(); folder.cleanup()
    """

    state: Literal["alive", "stalled", "dead", "absent", "damaged"]
    reason: str
    pid: int = 0
    epoch: int = 0
    heartbeat: Heartbeat | None = None


@dataclass(frozen=True)
class ReaderStatus:
    """What a look at a queue has told of one of its named readers.

    Attributes
    ----------
    name
        Of the reader.
    state
        ``"alive"``, ``"dead"``, or ``"damaged"``.
    reason
        Why that is thought; empty if alive. ``"lock free"``, ``"never placed"`` (it died before it
        had found its place), ``"messages deleted"`` (what it would read next is gone),
        ``"damaged: ..."``.
    pid
        Of the process that has it, or had it.
    next_seq
        What it reads next, as far as it has committed.
    lag_messages, lag_bytes
        How far that is from the end.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> from chronicle.bus import queue_status
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> seq = writer.append(1, b"hello")
    >>> reader = chronicle.Queue.open_subscriber(path, "risk")
    >>> status = queue_status(path)
    >>> status.readers[0].name, status.readers[0].state, status.readers[0].lag_messages
    ('risk', 'alive', 1)
    >>> reader.close(); writer.close(); folder.cleanup()
    """

    name: str
    state: Literal["alive", "dead", "damaged"]
    reason: str
    pid: int = 0
    next_seq: int = 0
    lag_messages: int = 0
    lag_bytes: int = 0


@dataclass(frozen=True)
class QueueStatus:
    """What a look at a queue has told.

    Attributes
    ----------
    path
        Of the queue.
    queue_id
        Empty if it cannot be read.
    first_seq, next_seq
        Of the oldest message that exists, and of the next one that will be written.
    writer, readers
        Who uses it; readers by name.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> from chronicle.bus import queue_status
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> seq = writer.append(1, b"hello")
    >>> reader = chronicle.Queue.open_subscriber(path, "risk")
    >>> status = queue_status(path)
    >>> status.first_seq, status.next_seq, len(status.readers)
    (1, 2, 1)
    >>> reader.close(); writer.close(); folder.cleanup()
    """

    path: str
    queue_id: str
    first_seq: int
    next_seq: int
    writer: WriterStatus
    readers: tuple[ReaderStatus, ...]


def queue_status(path: str | os.PathLike[str], *, missed_max: int = 3) -> QueueStatus:
    """Look at a queue. Some hundred microseconds, more with many segments; may block as files do.

    Whether somebody lives is told by his lock, exactly. Whether a writer works is told by its
    heartbeat, if it has one (`Sidecar.heartbeat`).

    Parameters
    ----------
    path
        Directory of the queue. That there is none is an answer, not an error.
    missed_max
        So many heartbeats may be late.

    Examples
    --------
    >>> queue_status("/nowhere").writer
    WriterStatus(state='absent', reason='no such queue', pid=0, epoch=0, heartbeat=None)
    """
    path = os.fspath(path)
    try:
        facts = inspect(path)
    except (FileNotFoundError, NotADirectoryError):
        reason = "no queue" if Path(path).is_dir() else "no such queue"
        return QueueStatus(path, "", 0, 0, WriterStatus("absent", reason), ())
    except (ChronicleError, OSError) as error:
        return QueueStatus(path, "", 0, 0, WriterStatus("damaged", f"damaged: {error}"), ())
    if not facts["epoch"]:
        writer = WriterStatus("absent", "never opened")
        return QueueStatus(path, facts["queue_id"], 0, 0, writer, ())
    ends = find_ends(path, facts)
    readers = tuple(_reader_status(reader, ends) for reader in facts["readers"])
    writer = _writer_status(path, facts, ends, missed_max)
    return QueueStatus(path, facts["queue_id"], ends.first_seq, ends.next_seq, writer, readers)


def _writer_status(path: str, facts: dict[str, Any], ends: Ends, missed_max: int) -> WriterStatus:
    pid, epoch, heartbeat = facts["writer_pid"], facts["epoch"], read_heartbeat(path)
    if missing := missing_segments(facts):
        names = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in missing)
        return WriterStatus("damaged", f"segment missing: {names}", pid, epoch, heartbeat)
    if ends.error is not None:
        return WriterStatus("damaged", f"damaged: {ends.error}", pid, epoch, heartbeat)
    if not facts["writer_live"]:
        return WriterStatus("dead", "lock free", pid, epoch, heartbeat)
    # One that its predecessor has left behind says nothing about this one.
    is_its_own = heartbeat is not None and heartbeat.pid == pid
    if heartbeat is not None and is_its_own and heartbeat.is_late(missed_max=missed_max):
        return WriterStatus("stalled", "heartbeat stale", pid, epoch, heartbeat)
    return WriterStatus("alive", "", pid, epoch, heartbeat)


def _reader_status(reader: dict[str, Any], ends: Ends) -> ReaderStatus:
    name = reader["name"]
    if reader["error"] is not None:
        return ReaderStatus(name, "damaged", f"damaged: {reader['error']}")
    pid, next_seq = reader["pid"], reader["next_seq"]
    messages, bytes_behind = lag(reader, ends)
    state: Literal["alive", "dead"] = "alive" if reader["live"] else "dead"
    reason = "" if reader["live"] else "lock free"
    if not reader["live"] and not reader["placed"]:
        reason = "never placed"
    elif reader["placed"] and next_seq < ends.first_seq:
        reason = "messages deleted"
    return ReaderStatus(name, state, reason, pid, next_seq, messages, bytes_behind)


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a queue begins and ends.

    Attributes
    ----------
    first_seq
        Of the oldest message that exists; equals `next_seq` if there is none.
    next_seq, next_position
        Of the next message to be written.
    newest_ns
        Highest timestamp that is known; 0 if there is none.
    error
        Why the end could not be read.
    """

    first_seq: int
    next_seq: int
    next_position: int
    newest_ns: int
    error: str | None = None


def find_ends(path: str, facts: dict[str, Any]) -> Ends:
    """Find both ends of a queue, as far as it is not damaged."""
    entered = [s["first_seq"] for s in facts["segments"] if s["first_seq"]]
    first_seq = entered[0] if entered else 1
    newest_ns = max((s["timestamp_max_ns"] for s in facts["segments"]), default=0)
    try:
        with Queue.open_subscriber(path, None, start="latest") as reader:
            next_seq, position = reader.next_seq, reader.position
        if next_seq > first_seq:
            with Queue.open_subscriber(path, None, start=next_seq - 1) as reader:
                message = reader.next()
                newest_ns = max(newest_ns, 0 if message is None else message.timestamp_ns)
    except (ChronicleError, OSError) as error:
        return Ends(first_seq, entered[-1] if entered else 1, 0, newest_ns, str(error))
    return Ends(min(first_seq, next_seq), next_seq, position, newest_ns)


def lag(reader: dict[str, Any], ends: Ends) -> tuple[int, int]:
    """Return how many messages, and bytes of files, a reader has before it."""
    if not reader.get("placed"):
        return 0, 0
    behind = max(0, ends.next_seq - max(reader["next_seq"], ends.first_seq))
    bytes_behind = max(0, ends.next_position - reader["next_position"]) if behind else 0
    return behind, bytes_behind


def missing_segments(facts: dict[str, Any]) -> list[tuple[int, int]]:
    """Return runs of segments, first and last, that are gone and that retention did not delete."""
    present = [s["index"] for s in facts["segments"]]
    due = facts["floor_segment"]
    result = []
    for index in (i for i in present if i >= due):
        if index > due:
            result.append((due, index - 1))
        due = index + 1
    if due <= facts["tail_segment"]:
        result.append((due, facts["tail_segment"]))
    return result
