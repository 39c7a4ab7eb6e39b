"""IEX-TP with DEEP 1.0 and TOPS 1.6 for handlers: one packet at a time, compiled.

A handler calls these functions; uncompiled they are ordinary ones. They publish the records that
`chronicle.feeds.iex` makes of the same packets, byte for byte: both have their layouts from the one
table there. No packet can make them read outside or fail, as long as `check_packet` is asked first:

>>> from chronicle.feeds import hot_iex
>>> from chronicle.hot import Bytes, Counter, Handler, Info, Output, on
>>> class Decode(Handler):
...     live: Output
...     malformed: Counter
...
...     @on.datagram
...     def packet(self, data: Bytes) -> None:
...         if hot_iex.check_packet(data) == hot_iex.SOUND:
...             hot_iex.publish_messages(self.live, data, 0)
...         else:
...             self.malformed.add()
>>> decode = Decode()
>>> heartbeat = bytes.fromhex("0100 0380 01000000 09000000 0000 0000") + bytes(24)
>>> decode.receive(heartbeat, kind="datagram"), decode.malformed.value
(True, 0)

Which messages of a packet are new is for the caller to say: `first_sequence`, `messages_count`.
"""

from __future__ import annotations

from typing import Final

from chronicle.feeds.iex import DEEP_1_0, HEADER_BYTES, PROTOCOLS, TABLE, TOPS_1_6
from chronicle.feeds.type_ids import IEX_RAW
from chronicle.hot.buffers import Bytes
from chronicle.hot.outputs import Output

__all__ = [
    "FOREIGN",
    "HEADER_BYTES",
    "MALFORMED",
    "SOUND",
    "WIRES",
    "channel",
    "check_packet",
    "first_sequence",
    "messages_count",
    "payload_bytes",
    "protocol",
    "publish_message",
    "publish_messages",
    "sent_ns",
    "session",
    "stream_offset",
]

SOUND: Final = 0
"""A packet of this protocol, whose blocks are exactly what its header says."""
FOREIGN: Final = 1
"""Something else."""
MALFORMED: Final = 2
"""A packet of this protocol that contradicts itself."""

WIRES: Final = TABLE.for_handlers()
"""The messages by type byte."""

_SEQUENCE_MAX: Final = 1 << 62


def check_packet(data: Bytes) -> int:
    """Return `SOUND`, `FOREIGN` or `MALFORMED`. The other functions are for sound packets."""
    end = len(data)
    if end < HEADER_BYTES or data.u8(0) != 1 or data.u16(2) not in PROTOCOLS:
        return FOREIGN
    sequence = data.i64(24)
    if data.u16(12) != end - HEADER_BYTES or sequence < 0 or sequence >= _SEQUENCE_MAX:
        return MALFORMED
    at = HEADER_BYTES
    for _ in range(data.u16(14)):
        if at + 2 > end:
            return MALFORMED
        at += 2 + data.u16(at)
    return SOUND if at == end else MALFORMED


def protocol(data: Bytes) -> int:
    """Return the protocol of the messages: `chronicle.feeds.iex.DEEP_1_0`, for example."""
    return data.u16(2)


def channel(data: Bytes) -> int:
    """Return the channel."""
    return data.u32(4)


def session(data: Bytes) -> int:
    """Return the session."""
    return data.u32(8)


def payload_bytes(data: Bytes) -> int:
    """Return the length of the message blocks."""
    return data.u16(12)


def messages_count(data: Bytes) -> int:
    """Return how many messages there are; 0 is a heartbeat."""
    return data.u16(14)


def stream_offset(data: Bytes) -> int:
    """Return the place of the first message block in the stream's bytes."""
    return data.i64(16)


def first_sequence(data: Bytes) -> int:
    """Return the sequence number of the first message; of a heartbeat that of the next one."""
    return data.i64(24)


def sent_ns(data: Bytes) -> int:
    """Return when the packet was sent, by the sender's clock."""
    return data.i64(32)


def publish_messages(output: Output, data: Bytes, skip: int) -> int:
    """Publish the messages of a sound packet but for the first `skip`; return how many."""
    kind = data.u16(2)
    count = data.u16(14)
    at = HEADER_BYTES
    for number in range(count):
        length = data.u16(at)
        if number >= skip:
            publish_message(output, kind, data, at + 2, length)
        at += 2 + length
    return max(count - max(skip, 0), 0)


def publish_message(output: Output, kind: int, data: Bytes, at: int, length: int) -> int:
    """Publish one message, without its block's length; return its sequence number in the queue.

    Parameters
    ----------
    output
        Where to.
    kind
        The packet's protocol. Messages of one without a table are published raw.
    data, at, length
        The message's bytes.
    """
    if kind in (DEEP_1_0, TOPS_1_6):
        return WIRES.publish(output, data, at, length)
    return output.publish_bytes(IEX_RAW, data.part(at, length))
