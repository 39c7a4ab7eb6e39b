"""What IEX-TP and MoldUDP64 have in common once their headers are read.

Both put message blocks behind a header with a session, a sequence number and a count. From there
on one path serves both: split the blocks, drop packets that contradict themselves, follow the
sequence, drop what was seen before, make typed records.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from chronicle.feeds.batch import I64, U8, U64, Batch, Bools, Counts, Event
from chronicle.feeds.blocks import split_packets
from chronicle.feeds.continuity import Continuity, Headers
from chronicle.feeds.pcap import Packets
from chronicle.feeds.wire import MessageTable


class PacketDecoder(ABC):
    """Decodes chunks of UDP payloads of a capture.

    Parameters
    ----------
    counts
        Running counts, shared with the reader of the capture.
    """

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._continuity = Continuity(counts)

    def batches(self, chunks: Iterable[Packets]) -> Iterator[Batch]:
        """Yield a batch for each chunk that has records."""
        for packets in chunks:
            batch = self.decode(packets)
            if batch is not None and len(batch):
                yield batch

    @abstractmethod
    def decode(self, packets: Packets) -> Batch | None:
        """Return the records of one chunk, or ``None`` if no packet in it is of the feed."""


@dataclass(frozen=True, slots=True)
class Framed:
    """The packets of one chunk that carry the feed.

    Attributes
    ----------
    raw
        The chunk.
    starts, ends
        Bounds of each packet's message blocks.
    timestamps_ns
        Capture time of each packet.
    headers
        What their headers say.
    order
        Byte order of block lengths.
    unknown
        Packets whose messages belong to a protocol that has no table, or ``None``.
    """

    raw: U8
    starts: I64
    ends: I64
    timestamps_ns: U64
    headers: Headers
    order: str
    unknown: Bools | None = None


def decode_framed(
    framed: Framed, table: MessageTable, continuity: Continuity, counts: Counts
) -> Batch:
    """Make a batch of all new messages of one chunk, with control messages in their places.

    A packet whose blocks do not add up to its count and length is skipped whole. Its messages
    then show as a gap, because the next packet's sequence number is ahead.
    """
    headers = framed.headers
    positions, lengths, sound = split_packets(
        framed.raw, framed.starts, framed.ends, headers.counts, order=framed.order
    )
    times, unknown = framed.timestamps_ns, framed.unknown
    if not sound.all():
        counts.skip("malformed packet", int((~sound).sum()))
        headers = _select(headers, sound)
        times = times[sound]
        unknown = None if unknown is None else unknown[sound]
    counts.heartbeats += int(((headers.counts == 0) & ~headers.ends).sum())

    drop, found = continuity.check(headers)
    per_packet = headers.counts
    packets = np.repeat(np.arange(len(per_packet)), per_packet)
    if drop.any():
        first = np.cumsum(per_packet) - per_packet
        keep = np.arange(len(positions)) - first[packets] >= drop[packets]
        positions, lengths, packets = positions[keep], lengths[keep], packets[keep]
        per_packet = per_packet - drop
    events: list[Event] = []
    if found:
        before = np.cumsum(per_packet) - per_packet
        events = [Event(int(before[p]), message, int(times[p])) for p, message in found]
    return table.assemble(
        framed.raw,
        positions,
        lengths,
        times[packets],
        counts,
        events=events,
        unknown=None if unknown is None else unknown[packets],
    )


def _select(headers: Headers, keep: Bools) -> Headers:
    return Headers(
        headers.keys[keep],
        headers.sessions[keep],
        headers.sequences[keep],
        headers.counts[keep],
        None if headers.sent_ns is None else headers.sent_ns[keep],
        headers.first[keep],
        headers.ends[keep],
    )
