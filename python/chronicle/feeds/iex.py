"""IEX-TP with DEEP 1.0 and TOPS 1.6: UDP payloads to typed messages.

A packet is a segment header of 40 bytes and message blocks, little-endian. Prices carry four
implied decimals, times are ns since the epoch. Records are stamped with the capture time of their
packet; the exchange's own time is in each message (`time_ns`), the segment's send time is not
kept.

Messages of another protocol in IEX-TP (TOPS 1.5, DEEP+) are sequenced like the rest and kept raw,
because their layouts are not known here; so are unknown message types.

Sources: IEX-TP 1.25, DEEP 1.0 and TOPS 1.6 specifications. `OfficialPrice` and `AuctionInfo`
follow the specification only; the other DEEP layouts have been checked against a real capture.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from chronicle.feeds.batch import Batch
from chronicle.feeds.continuity import Headers
from chronicle.feeds.packets import Framed, PacketDecoder, decode_framed
from chronicle.feeds.pcap import Packets
from chronicle.feeds.type_ids import IEX, IEX_RAW, wire_type_id
from chronicle.feeds.wire import MessageTable, WireLayout, windows
from chronicle.message import (
    MessageBase,
    Scale,
    char1,
    char4,
    char8,
    i64,
    message,
    u8,
    u32,
)

Price = Annotated[i64, Scale(4)]

TOPS_1_6 = 0x8003
DEEP_1_0 = 0x8004
PROTOCOLS = (0x8002, TOPS_1_6, DEEP_1_0, 0x8005)
HEADER_BYTES = 40

HEADER = np.dtype(
    [
        ("version", "u1"),
        ("reserved", "u1"),
        ("protocol", "<u2"),
        ("channel", "<u4"),
        ("session", "<u4"),
        ("payload_bytes", "<u2"),
        ("count", "<u2"),
        ("offset", "<i8"),
        ("sequence", "<i8"),
        ("sent_ns", "<i8"),
    ]
)
"""The segment header as it is on the wire."""


@message(wire_type_id(IEX, "S"))
class SystemEvent(MessageBase):
    """Start or end of messages, system hours or regular hours: `event` O, S, R, M, E or C."""

    time_ns: i64
    event: char1


@message(wire_type_id(IEX, "D"))
class SecurityDirectory(MessageBase):
    """A security of the day. `flags`: 0x80 test, 0x40 when issued, 0x20 ETP."""

    time_ns: i64
    symbol: char8
    adjusted_close: Price
    round_lot: u32
    flags: u8
    luld_tier: u8


@message(wire_type_id(IEX, "H"))
class TradingStatus(MessageBase):
    """`status` is H halted, O order acceptance, P paused or T trading."""

    time_ns: i64
    symbol: char8
    reason: char4
    status: char1


@message(wire_type_id(IEX, "O"))
class OperationalHalt(MessageBase):
    """`status` is O halted by IEX or N not halted."""

    time_ns: i64
    symbol: char8
    status: char1


@message(wire_type_id(IEX, "P"))
class ShortSaleTest(MessageBase):
    """Short sale price test. `status` is 1 in effect or 0; `detail` is space, A, C, D or N."""

    time_ns: i64
    symbol: char8
    status: u8
    detail: char1


@message(wire_type_id(IEX, "T"))
class Trade(MessageBase):
    """A trade. `flags`: 0x80 ISO, 0x40 extended hours, 0x20 odd lot, 0x10 exempt, 0x08 cross."""

    time_ns: i64
    symbol: char8
    price: Price
    trade_id: i64
    size: u32
    flags: u8


@message(wire_type_id(IEX, "B"))
class TradeBreak(MessageBase):
    """A trade that is taken back; the fields are the trade's."""

    time_ns: i64
    symbol: char8
    price: Price
    trade_id: i64
    size: u32
    flags: u8


@message(wire_type_id(IEX, "X"))
class OfficialPrice(MessageBase):
    """IEX official opening (`kind` Q) or closing (M) price."""

    time_ns: i64
    symbol: char8
    price: Price
    kind: char1


@message(wire_type_id(IEX, "A"))
class AuctionInfo(MessageBase):
    """State of an auction. `side` of the imbalance is B, S or N."""

    time_ns: i64
    symbol: char8
    reference_price: Price
    indicative_price: Price
    book_price: Price
    collar_reference: Price
    collar_lower: Price
    collar_upper: Price
    paired_size: u32
    imbalance_size: u32
    scheduled_time_s: u32
    auction: char1
    side: char1
    extension: u8


@message(wire_type_id(IEX, "Q"))
class QuoteUpdate(MessageBase):
    """Top of book (TOPS). `flags`: 0x80 halted or inactive, 0x40 before or after the session."""

    time_ns: i64
    symbol: char8
    bid_price: Price
    ask_price: Price
    bid_size: u32
    ask_size: u32
    flags: u8


@message(wire_type_id(IEX, "8"))
class BuyLevel(MessageBase):
    """A price level of the buy side (DEEP); size 0 deletes it. `flags` bit 0: event complete."""

    time_ns: i64
    symbol: char8
    price: Price
    size: u32
    flags: u8


@message(wire_type_id(IEX, "5"))
class SellLevel(MessageBase):
    """A price level of the sell side (DEEP); size 0 deletes it. `flags` bit 0: event complete."""

    time_ns: i64
    symbol: char8
    price: Price
    size: u32
    flags: u8


@message(wire_type_id(IEX, "E"))
class SecurityEvent(MessageBase):
    """Opening (`event` O) or closing (C) process of a security is done (DEEP)."""

    time_ns: i64
    symbol: char8
    event: char1


def _layout(
    cls: type[MessageBase], code: str, size_bytes: int, **fields: tuple[int, str]
) -> WireLayout:
    common = {"time_ns": (2, "i8")}
    if cls is not SystemEvent:
        common["symbol"] = (10, "S8")
    return WireLayout(cls, code, size_bytes, "<", **common, **fields)


def _trade(cls: type[MessageBase], code: str) -> WireLayout:
    return _layout(
        cls, code, 38, flags=(1, "u1"), size=(18, "u4"), price=(22, "i8"), trade_id=(30, "i8")
    )


def _level(cls: type[MessageBase], code: str) -> WireLayout:
    return _layout(cls, code, 30, flags=(1, "u1"), size=(18, "u4"), price=(22, "i8"))


TABLE = MessageTable(
    IEX_RAW,
    (
        _layout(SystemEvent, "S", 10, event=(1, "S1")),
        _layout(
            SecurityDirectory,
            "D",
            31,
            flags=(1, "u1"),
            round_lot=(18, "u4"),
            adjusted_close=(22, "i8"),
            luld_tier=(30, "u1"),
        ),
        _layout(TradingStatus, "H", 22, status=(1, "S1"), reason=(18, "S4")),
        _layout(OperationalHalt, "O", 18, status=(1, "S1")),
        _layout(ShortSaleTest, "P", 19, status=(1, "u1"), detail=(18, "S1")),
        _trade(Trade, "T"),
        _trade(TradeBreak, "B"),
        _layout(OfficialPrice, "X", 26, kind=(1, "S1"), price=(18, "i8")),
        _layout(
            AuctionInfo,
            "A",
            80,
            auction=(1, "S1"),
            paired_size=(18, "u4"),
            reference_price=(22, "i8"),
            indicative_price=(30, "i8"),
            imbalance_size=(38, "u4"),
            side=(42, "S1"),
            extension=(43, "u1"),
            scheduled_time_s=(44, "u4"),
            book_price=(48, "i8"),
            collar_reference=(56, "i8"),
            collar_lower=(64, "i8"),
            collar_upper=(72, "i8"),
        ),
        _layout(
            QuoteUpdate,
            "Q",
            42,
            flags=(1, "u1"),
            bid_size=(18, "u4"),
            bid_price=(22, "i8"),
            ask_price=(30, "i8"),
            ask_size=(38, "u4"),
        ),
        _level(BuyLevel, "8"),
        _level(SellLevel, "5"),
        _layout(SecurityEvent, "E", 18, event=(1, "S1")),
    ),
)


class IexDecoder(PacketDecoder):
    """Decodes chunks of UDP payloads of a capture.

    Streams are told apart by protocol and channel and not by address, so that a capture of both
    the A and the B feed gives every message once.
    """

    def decode(self, packets: Packets) -> Batch | None:
        """Return the records of one chunk, or ``None`` if no packet in it is IEX-TP."""
        raw, starts, ends, times = (
            packets.raw,
            packets.starts,
            packets.ends,
            packets.timestamps_ns,
        )
        large = ends - starts >= HEADER_BYTES
        if not large.all():
            self._counts.skip("not IEX-TP", int((~large).sum()))
            starts, ends, times = starts[large], ends[large], times[large]
        if not len(starts):
            return None
        heads = windows(raw, f"V{HEADER_BYTES}")[starts].view(HEADER)
        ours = (heads["version"] == 1) & np.isin(heads["protocol"], PROTOCOLS)
        sound = ours & (heads["payload_bytes"] == ends - starts - HEADER_BYTES)
        # A negative sequence number cannot be; a huge one would overflow the sums.
        sound &= (heads["sequence"] >= 0) & (heads["sequence"] < 1 << 62)
        if not sound.all():
            self._counts.skip("not IEX-TP", int((~ours).sum()))
            self._counts.skip("malformed packet", int((ours & ~sound).sum()))
            heads, starts, ends, times = heads[sound], starts[sound], ends[sound], times[sound]
            if not len(starts):
                return None
        protocol = heads["protocol"]
        headers = Headers(
            keys=protocol.astype(np.uint64) << np.uint64(32) | heads["channel"],
            sessions=heads["session"],
            sequences=heads["sequence"].astype(np.uint64),
            counts=heads["count"].astype(np.int64),
            sent_ns=heads["sent_ns"],
            first=(heads["offset"] == 0) & (heads["sequence"] == 1),
            ends=np.zeros(len(heads), np.bool_),
        )
        unknown = (protocol != DEEP_1_0) & (protocol != TOPS_1_6)
        framed = Framed(raw, starts + HEADER_BYTES, ends, times, headers, "<", unknown)
        return decode_framed(framed, TABLE, self._continuity, self._counts)
