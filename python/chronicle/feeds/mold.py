"""MoldUDP64 with TotalView-ITCH 5.0 inside: UDP payloads to typed messages.

A downstream packet is a header of 20 bytes (session, sequence number, count; big-endian) and
message blocks. Count 0 is a heartbeat, count 0xFFFF the end of the session, which comes as
`chronicle.feeds.continuity.StreamEnd`. A packet of the bare header with another count is a
client's request for retransmission; it is counted and skipped.

Streams are told apart by destination address and port, so a change of session on one address is a
restart. A capture that holds both the A and the B feed gives two streams. Records are stamped
with the capture time of their packet.

Source: MoldUDP64 protocol specification 1.00.
"""

from __future__ import annotations

import numpy as np

from chronicle.feeds.batch import I64, U8, Batch, Bools
from chronicle.feeds.continuity import Headers
from chronicle.feeds.itch import TABLE
from chronicle.feeds.packets import Framed, PacketDecoder, decode_framed
from chronicle.feeds.pcap import Packets
from chronicle.feeds.wire import windows

HEADER_BYTES = 20
COUNT_END_OF_SESSION = 0xFFFF

HEADER = np.dtype([("session", "S10"), ("sequence", ">u8"), ("count", ">u2")])
"""The downstream packet header as it is on the wire."""


class MoldDecoder(PacketDecoder):
    """Decodes chunks of UDP payloads of a capture."""

    def decode(self, packets: Packets) -> Batch | None:
        """Return the records of one chunk, or ``None`` if no packet in it is MoldUDP64."""
        ours = _are_mold(packets.raw, packets.starts, packets.ends)
        self._counts.skip("not MoldUDP64", int((~ours).sum()))
        starts, ends = packets.starts[ours], packets.ends[ours]
        times, keys = packets.timestamps_ns[ours], packets.destinations[ours]
        if not len(starts):
            return None
        heads = windows(packets.raw, f"V{HEADER_BYTES}")[starts].view(HEADER)
        count = heads["count"].astype(np.int64)
        closes = count == COUNT_END_OF_SESSION
        request = (ends - starts == HEADER_BYTES) & (count > 0) & ~closes
        # A sequence number near the top of its range would overflow the sums.
        sound = heads["sequence"] < np.uint64(1 << 62)
        self._counts.skip("request", int(request.sum()))
        self._counts.skip("malformed packet", int((~request & ~sound).sum()))
        keep = sound & ~request
        if not keep.all():
            heads, starts, ends, times = heads[keep], starts[keep], ends[keep], times[keep]
            keys, count, closes = keys[keep], count[keep], closes[keep]
        sequences = heads["sequence"].astype(np.uint64)
        headers = Headers(
            keys=keys,
            sessions=heads["session"],
            sequences=sequences,
            counts=np.where(closes, 0, count),
            sent_ns=None,
            first=sequences == 1,
            ends=closes,
        )
        framed = Framed(packets.raw, starts + HEADER_BYTES, ends, times, headers, ">")
        return decode_framed(framed, TABLE, self._continuity, self._counts)


def _are_mold(raw: U8, starts: I64, ends: I64) -> Bools:
    """Tell which payloads can be MoldUDP64: room for the header, and a session in plain text."""
    large = ends - starts >= HEADER_BYTES
    ours = large.copy()
    sessions = windows(raw, "V10")[starts[large]].view(np.uint8).reshape(-1, 10)
    ours[large] = ((sessions >= 0x20) & (sessions < 0x7F)).all(axis=1)
    return ours
