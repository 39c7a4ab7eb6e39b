"""What `inspect` and `doctor` know about a queue beyond the core's `inspect`: ends, lags, schema.

Only looks: readers opened here are unregistered, so they pin nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chronicle.errors import ChronicleError

if TYPE_CHECKING:
    from chronicle.queue import QueueReader


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


def open_at(path: str, seq: int) -> QueueReader:
    """Open an unregistered reader at a sequence number."""
    from chronicle.queue import Queue

    return Queue.open_subscriber(path, None, start=seq)


def find_ends(path: str, facts: dict[str, Any]) -> Ends:
    """Find both ends of a queue, as far as it is not damaged."""
    from chronicle.queue import Queue

    entered = [s["first_seq"] for s in facts["segments"] if s["first_seq"]]
    first_seq = entered[0] if entered else 1
    newest_ns = max((s["timestamp_max_ns"] for s in facts["segments"]), default=0)
    try:
        with Queue.open_subscriber(path, None, start="latest") as reader:
            next_seq, position = reader.next_seq, reader.position
        if next_seq > first_seq:
            with open_at(path, next_seq - 1) as reader:
                message = reader.next()
                newest_ns = max(newest_ns, 0 if message is None else message.timestamp_ns)
    except (ChronicleError, OSError) as error:
        return Ends(first_seq, entered[-1] if entered else 1, 0, newest_ns, str(error))
    return Ends(min(first_seq, next_seq), next_seq, position, newest_ns)


def age_of_message(path: str, seq: int) -> float | None:
    """Return how long ago a message was published, in seconds; ``None`` if it cannot be told."""
    try:
        with open_at(path, seq) as reader:
            message = reader.next()
    except (ChronicleError, OSError):
        return None
    return None if message is None else age(message.timestamp_ns)


def age(timestamp_ns: int) -> float:
    """Return how long ago a time was, in seconds; 0 for times to come."""
    return max(0.0, (time.time_ns() - timestamp_ns) / 1e9)


def lag(reader: dict[str, Any], ends: Ends) -> tuple[int, int]:
    """Return how many messages, and bytes of files, a reader has before it."""
    if not reader.get("placed"):
        return 0, 0
    behind = max(0, ends.next_seq - max(reader["next_seq"], ends.first_seq))
    bytes_behind = max(0, ends.next_position - reader["next_position"]) if behind else 0
    return behind, bytes_behind


def state_of(segment: dict[str, Any], facts: dict[str, Any]) -> str:
    """Say in a word what a segment is."""
    if segment["error"] is not None:
        return "unreadable"
    if segment["index"] < facts["floor_segment"]:
        return "left over"
    if segment["index"] == facts["tail_segment"]:
        return "tail"
    if segment["first_seq"] == 0 or segment["index"] > facts["tail_segment"]:
        return "ready"
    return "sealed"
