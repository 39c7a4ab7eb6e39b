"""What `inspect` and `doctor` know about a queue beyond the core's `inspect` and the bus.

Only looks: readers opened here are unregistered, so they pin nothing.
"""

from __future__ import annotations

import time
from typing import Any

from chronicle.errors import ChronicleError


def age_of_message(path: str, seq: int) -> float | None:
    """Return how long ago a message was published, in seconds; ``None`` if it cannot be told."""
    try:
        from chronicle.queue import Queue

        with Queue.open_subscriber(path, None, start=seq) as reader:
            message = reader.next()
    except (ChronicleError, OSError):
        return None
    return None if message is None else age(message.timestamp_ns)


def age(timestamp_ns: int) -> float:
    """Return how long ago a time was, in seconds; 0 for times to come."""
    return max(0.0, (time.time_ns() - timestamp_ns) / 1e9)


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
