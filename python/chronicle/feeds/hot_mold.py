"""MoldUDP64 with TotalView-ITCH 5.0 for handlers: one packet at a time, compiled.

As `chronicle.feeds.hot_iex`, for the packets that `chronicle.feeds.mold` decodes.
"""

from __future__ import annotations

from typing import Final

from chronicle.feeds.itch import TABLE
from chronicle.feeds.mold import COUNT_END_OF_SESSION, HEADER_BYTES
from chronicle.hot.buffers import Bytes
from chronicle.hot.outputs import Output

__all__ = [
    "FOREIGN",
    "HEADER_BYTES",
    "MALFORMED",
    "REQUEST",
    "SOUND",
    "WIRES",
    "check_packet",
    "first_sequence",
    "is_end_of_session",
    "messages_count",
    "publish_message",
    "publish_messages",
]

SOUND: Final = 0
"""A packet of this protocol, whose blocks are exactly what its header says."""
FOREIGN: Final = 1
"""Something else."""
MALFORMED: Final = 2
"""A packet of this protocol that contradicts itself."""
REQUEST: Final = 3
"""A client's request for retransmission."""

WIRES: Final = TABLE.for_handlers()
"""The messages by type byte."""

_SEQUENCE_MAX: Final = 1 << 62


def check_packet(data: Bytes) -> int:
    """Return `SOUND`, `FOREIGN`, `MALFORMED` or `REQUEST`.

    The other functions are for sound packets.
    """
    end = len(data)
    if end < HEADER_BYTES:
        return FOREIGN
    for place in range(10):
        # The session is plain text.
        letter = data.u8(place)
        if letter < 0x20 or letter >= 0x7F:
            return FOREIGN
    count = messages_count(data)
    if end == HEADER_BYTES and count > 0:
        return REQUEST
    # One of 64 bits without a sign is negative here.
    sequence = data.i64_be(10)
    if sequence < 0 or sequence >= _SEQUENCE_MAX:
        return MALFORMED
    at = HEADER_BYTES
    for _ in range(count):
        if at + 2 > end:
            return MALFORMED
        at += 2 + data.u16_be(at)
    return SOUND if at == end else MALFORMED


def first_sequence(data: Bytes) -> int:
    """Return the sequence number of the first message, or else of the next one."""
    return data.i64_be(10)


def is_end_of_session(data: Bytes) -> bool:
    """Tell whether the packet ends the session; it has no messages."""
    return data.u16_be(18) == COUNT_END_OF_SESSION


def messages_count(data: Bytes) -> int:
    """Return how many messages there are; 0 is a heartbeat, or the end of the session."""
    count = data.u16_be(18)
    return 0 if count == COUNT_END_OF_SESSION else count


def publish_messages(output: Output, data: Bytes, skip: int) -> int:
    """Publish the messages of a sound packet but for the first `skip`; return how many."""
    count = messages_count(data)
    at = HEADER_BYTES
    for number in range(count):
        length = data.u16_be(at)
        if number >= skip:
            publish_message(output, data, at + 2, length)
        at += 2 + length
    return max(count - max(skip, 0), 0)


def publish_message(output: Output, data: Bytes, at: int, length: int) -> int:
    """Publish one message, without its block's length; return its sequence number in the queue."""
    return WIRES.publish(output, data, at, length)
