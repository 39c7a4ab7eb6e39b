"""Nasdaq TotalView-ITCH 5.0: message blocks to typed messages.

All numbers are big-endian on the wire and native in the records. Prices have four implied
decimals (eight in `MwcbDeclineLevel`), `time_ns` counts from midnight in New York, `locate` is
the exchange's number for the stock of the day. Messages of unknown type, or shorter than their
layout, are kept raw under `chronicle.feeds.type_ids.ITCH_RAW`.

`ItchFileDecoder` reads Nasdaq's daily files, which are bare message blocks. There a record's
timestamp is the midnight of the day plus `time_ns`; the day is not in the file, so it is given, or
else the epoch stands in for it. ITCH in packets is read by `chronicle.feeds.mold`.

Source: Nasdaq TotalView-ITCH 5.0 specification. Types J, K, V, W, h, N, O, B, Q, I and C follow
the specification only; the others have been checked against real messages.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Annotated, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from chronicle.errors import ChronicleError
from chronicle.feeds.batch import I64, U8, U64, Batch, Counts
from chronicle.feeds.blocks import split_run
from chronicle.feeds.type_ids import ITCH, ITCH_RAW, wire_type_id
from chronicle.feeds.wire import MessageTable, WireLayout, windows
from chronicle.message import (
    MessageBase,
    Scale,
    char1,
    char2,
    char4,
    char8,
    message,
    u16,
    u32,
    u64,
)

Price = Annotated[u32, Scale(4)]
Price8 = Annotated[u64, Scale(8)]

CHUNK_BYTES = 1 << 20


@message(wire_type_id(ITCH, "S"))
class SystemEvent(MessageBase):
    """`event`: O start of messages, S system, Q market, M end market, E end system, C end."""

    time_ns: u64
    locate: u16
    tracking: u16
    event: char1


@message(wire_type_id(ITCH, "R"))
class StockDirectory(MessageBase):
    """A stock of the day."""

    time_ns: u64
    stock: char8
    round_lot: u32
    etp_leverage: u32
    locate: u16
    tracking: u16
    market_category: char1
    financial_status: char1
    round_lots_only: char1
    issue_class: char1
    issue_subtype: char2
    authenticity: char1
    short_sale_threshold: char1
    ipo: char1
    luld_tier: char1
    etp: char1
    inverse: char1


@message(wire_type_id(ITCH, "H"))
class TradingAction(MessageBase):
    """`state`: H halted, P paused, Q quotation only, T trading."""

    time_ns: u64
    stock: char8
    reason: char4
    locate: u16
    tracking: u16
    state: char1
    reserved: char1


@message(wire_type_id(ITCH, "Y"))
class RegSho(MessageBase):
    """Short sale price test restriction: `action` 0, 1 or 2."""

    time_ns: u64
    stock: char8
    locate: u16
    tracking: u16
    action: char1


@message(wire_type_id(ITCH, "L"))
class MarketParticipant(MessageBase):
    """State of a market maker in a stock."""

    time_ns: u64
    stock: char8
    participant: char4
    locate: u16
    tracking: u16
    primary: char1
    mode: char1
    state: char1


@message(wire_type_id(ITCH, "V"))
class MwcbDeclineLevel(MessageBase):
    """Market-wide circuit breaker levels of the day."""

    time_ns: u64
    level_1: Price8
    level_2: Price8
    level_3: Price8
    locate: u16
    tracking: u16


@message(wire_type_id(ITCH, "W"))
class MwcbStatus(MessageBase):
    """A market-wide circuit breaker level was breached."""

    time_ns: u64
    locate: u16
    tracking: u16
    level: char1


@message(wire_type_id(ITCH, "K"))
class IpoQuotingPeriod(MessageBase):
    """Planned release of an IPO for quotation; `release_time_s` counts from midnight."""

    time_ns: u64
    stock: char8
    release_time_s: u32
    price: Price
    locate: u16
    tracking: u16
    qualifier: char1


@message(wire_type_id(ITCH, "J"))
class LuldCollar(MessageBase):
    """Auction collar of a stock that is in a limit-up-limit-down pause."""

    time_ns: u64
    stock: char8
    reference_price: Price
    upper_price: Price
    lower_price: Price
    extension: u32
    locate: u16
    tracking: u16


@message(wire_type_id(ITCH, "h"))
class MarketHalt(MessageBase):
    """Operational halt of a stock at one market: `action` H halted or T resumed."""

    time_ns: u64
    stock: char8
    locate: u16
    tracking: u16
    market: char1
    action: char1


@message(wire_type_id(ITCH, "A"))
class AddOrder(MessageBase):
    """A new order, without attribution."""

    time_ns: u64
    order_ref: u64
    stock: char8
    shares: u32
    price: Price
    locate: u16
    tracking: u16
    side: char1


@message(wire_type_id(ITCH, "F"))
class AddOrderAttributed(MessageBase):
    """A new order, with the market participant's name."""

    time_ns: u64
    order_ref: u64
    stock: char8
    shares: u32
    price: Price
    participant: char4
    locate: u16
    tracking: u16
    side: char1


@message(wire_type_id(ITCH, "E"))
class OrderExecuted(MessageBase):
    """An order was executed at its own price, in part or whole."""

    time_ns: u64
    order_ref: u64
    match: u64
    shares: u32
    locate: u16
    tracking: u16


@message(wire_type_id(ITCH, "C"))
class OrderExecutedWithPrice(MessageBase):
    """An order was executed at another price."""

    time_ns: u64
    order_ref: u64
    match: u64
    shares: u32
    price: Price
    locate: u16
    tracking: u16
    printable: char1


@message(wire_type_id(ITCH, "X"))
class OrderCancel(MessageBase):
    """Some `shares` of an order were cancelled."""

    time_ns: u64
    order_ref: u64
    shares: u32
    locate: u16
    tracking: u16


@message(wire_type_id(ITCH, "D"))
class OrderDelete(MessageBase):
    """An order is gone."""

    time_ns: u64
    order_ref: u64
    locate: u16
    tracking: u16


@message(wire_type_id(ITCH, "U"))
class OrderReplace(MessageBase):
    """An order was replaced; side and stock are those of the old one."""

    time_ns: u64
    order_ref: u64
    new_order_ref: u64
    shares: u32
    price: Price
    locate: u16
    tracking: u16


@message(wire_type_id(ITCH, "P"))
class TradeNonCross(MessageBase):
    """A trade against an order that was not displayed."""

    time_ns: u64
    order_ref: u64
    stock: char8
    match: u64
    shares: u32
    price: Price
    locate: u16
    tracking: u16
    side: char1


@message(wire_type_id(ITCH, "Q"))
class CrossTrade(MessageBase):
    """All trades of one cross."""

    time_ns: u64
    shares: u64
    stock: char8
    match: u64
    price: Price
    locate: u16
    tracking: u16
    cross: char1


@message(wire_type_id(ITCH, "B"))
class BrokenTrade(MessageBase):
    """A trade is taken back."""

    time_ns: u64
    match: u64
    locate: u16
    tracking: u16


@message(wire_type_id(ITCH, "I"))
class Imbalance(MessageBase):
    """Net order imbalance before a cross."""

    time_ns: u64
    paired_shares: u64
    imbalance_shares: u64
    stock: char8
    far_price: Price
    near_price: Price
    reference_price: Price
    locate: u16
    tracking: u16
    direction: char1
    cross: char1
    variation: char1


@message(wire_type_id(ITCH, "N"))
class RetailInterest(MessageBase):
    """Retail price improvement: `interest` B, S, A (both) or N."""

    time_ns: u64
    stock: char8
    locate: u16
    tracking: u16
    interest: char1


@message(wire_type_id(ITCH, "O"))
class DirectListing(MessageBase):
    """Price discovery of a direct listing with capital raise."""

    time_ns: u64
    stock: char8
    near_execution_time: u64
    minimum_price: Price
    maximum_price: Price
    near_execution_price: Price
    lower_collar: Price
    upper_collar: Price
    locate: u16
    tracking: u16
    eligible: char1


def _layout(
    cls: type[MessageBase], code: str, size_bytes: int, **fields: tuple[int, str]
) -> WireLayout:
    return WireLayout(
        cls,
        code,
        size_bytes,
        ">",
        locate=(1, "u2"),
        tracking=(3, "u2"),
        time_ns=(5, "u6"),
        **fields,
    )


_REF = (11, "u8")
_STOCK = (11, "S8")
_ADD: dict[str, tuple[int, str]] = {
    "order_ref": _REF,
    "side": (19, "S1"),
    "shares": (20, "u4"),
    "stock": (24, "S8"),
    "price": (32, "u4"),
}
_EXECUTED: dict[str, tuple[int, str]] = {
    "order_ref": _REF,
    "shares": (19, "u4"),
    "match": (23, "u8"),
}

_REFERENCE_LAYOUTS = (
    _layout(SystemEvent, "S", 12, event=(11, "S1")),
    _layout(
        StockDirectory,
        "R",
        39,
        stock=_STOCK,
        market_category=(19, "S1"),
        financial_status=(20, "S1"),
        round_lot=(21, "u4"),
        round_lots_only=(25, "S1"),
        issue_class=(26, "S1"),
        issue_subtype=(27, "S2"),
        authenticity=(29, "S1"),
        short_sale_threshold=(30, "S1"),
        ipo=(31, "S1"),
        luld_tier=(32, "S1"),
        etp=(33, "S1"),
        etp_leverage=(34, "u4"),
        inverse=(38, "S1"),
    ),
    _layout(
        TradingAction,
        "H",
        25,
        stock=_STOCK,
        state=(19, "S1"),
        reserved=(20, "S1"),
        reason=(21, "S4"),
    ),
    _layout(RegSho, "Y", 20, stock=_STOCK, action=(19, "S1")),
    _layout(
        MarketParticipant,
        "L",
        26,
        participant=(11, "S4"),
        stock=(15, "S8"),
        primary=(23, "S1"),
        mode=(24, "S1"),
        state=(25, "S1"),
    ),
    _layout(MwcbDeclineLevel, "V", 35, level_1=(11, "u8"), level_2=(19, "u8"), level_3=(27, "u8")),
    _layout(MwcbStatus, "W", 12, level=(11, "S1")),
    _layout(
        IpoQuotingPeriod,
        "K",
        28,
        stock=_STOCK,
        release_time_s=(19, "u4"),
        qualifier=(23, "S1"),
        price=(24, "u4"),
    ),
    _layout(
        LuldCollar,
        "J",
        35,
        stock=_STOCK,
        reference_price=(19, "u4"),
        upper_price=(23, "u4"),
        lower_price=(27, "u4"),
        extension=(31, "u4"),
    ),
    _layout(MarketHalt, "h", 21, stock=_STOCK, market=(19, "S1"), action=(20, "S1")),
    _layout(RetailInterest, "N", 20, stock=_STOCK, interest=(19, "S1")),
    _layout(
        DirectListing,
        "O",
        48,
        stock=_STOCK,
        eligible=(19, "S1"),
        minimum_price=(20, "u4"),
        maximum_price=(24, "u4"),
        near_execution_price=(28, "u4"),
        near_execution_time=(32, "u8"),
        lower_collar=(40, "u4"),
        upper_collar=(44, "u4"),
    ),
)

_ORDER_LAYOUTS = (
    _layout(AddOrder, "A", 36, **_ADD),
    _layout(AddOrderAttributed, "F", 40, participant=(36, "S4"), **_ADD),
    _layout(OrderExecuted, "E", 31, **_EXECUTED),
    _layout(OrderExecutedWithPrice, "C", 36, printable=(31, "S1"), price=(32, "u4"), **_EXECUTED),
    _layout(OrderCancel, "X", 23, order_ref=_REF, shares=(19, "u4")),
    _layout(OrderDelete, "D", 19, order_ref=_REF),
    _layout(
        OrderReplace,
        "U",
        35,
        order_ref=_REF,
        new_order_ref=(19, "u8"),
        shares=(27, "u4"),
        price=(31, "u4"),
    ),
    _layout(TradeNonCross, "P", 44, match=(36, "u8"), **_ADD),
    _layout(
        CrossTrade,
        "Q",
        40,
        shares=(11, "u8"),
        stock=(19, "S8"),
        price=(27, "u4"),
        match=(31, "u8"),
        cross=(39, "S1"),
    ),
    _layout(BrokenTrade, "B", 19, match=(11, "u8")),
    _layout(
        Imbalance,
        "I",
        50,
        paired_shares=(11, "u8"),
        imbalance_shares=(19, "u8"),
        direction=(27, "S1"),
        stock=(28, "S8"),
        far_price=(36, "u4"),
        near_price=(40, "u4"),
        reference_price=(44, "u4"),
        cross=(48, "S1"),
        variation=(49, "S1"),
    ),
)

TABLE = MessageTable(ITCH_RAW, _REFERENCE_LAYOUTS + _ORDER_LAYOUTS)

LENGTHS: I64 = np.zeros(256, np.int64)
"""Length of a message by type byte, 0 for unknown types."""
for _code, _known in TABLE.layouts.items():
    LENGTHS[_code] = _known.size_bytes


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def midnight_ns(date: dt.date | None) -> int:
    """Return the start of `date` in New York, in ns since the epoch; 0 without a date.

    >>> midnight_ns(dt.date(2020, 1, 30))
    1580360400000000000
    """
    if date is None:
        return 0
    try:
        zone = ZoneInfo("America/New_York")
    except ZoneInfoNotFoundError:
        raise ChronicleError(
            "this system has no time zone data for America/New_York; "
            "install tzdata, or import without a date"
        ) from None
    start = dt.datetime.combine(date, dt.time(), zone)
    return int(start.timestamp()) * 1_000_000_000


class ItchFileDecoder:
    """Decodes a daily file of message blocks.

    Parameters
    ----------
    source
        Anything with ``read``, at the first block.
    counts
        Running counts.
    date
        The trading day.
    chunk_bytes
        Bytes to read at a time. Memory use is a small multiple of it.
    """

    def __init__(
        self,
        source: _Readable,
        counts: Counts,
        *,
        date: dt.date | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._source = source
        self._counts = counts
        self._midnight_ns = midnight_ns(date)
        self._chunk_bytes = max(chunk_bytes, 1)
        self._last_ns = self._midnight_ns

    def batches(self) -> Iterator[Batch]:
        """Yield batches until the file ends. A block that the file's end cuts is not decoded."""
        rest = b""
        while piece := self._source.read(self._chunk_bytes):
            data = rest + piece if rest else piece
            raw = np.frombuffer(data, np.uint8)
            positions, lengths, end = split_run(raw, LENGTHS)
            rest = data[end:]
            if len(positions):
                times = self._times(raw, positions, lengths)
                yield TABLE.assemble(raw, positions, lengths, times, self._counts)
        if rest:
            self._counts.truncated = 1

    def _times(self, raw: U8, positions: I64, lengths: I64) -> U64:
        """Return the records' timestamps; a message too short for a time takes the last one."""
        dated = lengths >= 11
        at = positions[dated]
        wire = windows(raw, "V6")[at + 5].view([("high", ">u2"), ("low", ">u4")])
        times: U64 = (wire["high"].astype(np.uint64) << np.uint64(32)) | wire["low"]
        times += np.uint64(self._midnight_ns)
        if len(times) < len(positions):
            known = np.concatenate([np.array([self._last_ns], np.uint64), times])
            times = known[np.cumsum(dated)]
        self._last_ns = int(times[-1])
        return times
