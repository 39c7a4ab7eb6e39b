"""The books, published again and again, so that a late joiner need not read the day from its start.

`SnapshotPublisher` reads the live queue on a hot thread of its own and publishes one symbol at a
time: `SnapshotBegin`, its levels, `SnapshotEnd`, all within one call, so that they stand together
in the queue. After the last symbol comes a `SnapshotCycle`, and then the first one again. It does
so when nothing else is to be done, at most every `interval_ns`, and at least every
`every_messages`.

The joiner's side is `chronicle.feeds.books.Books`: give it a reader of the live queue and one of
the snapshots, and tell it (`JoinLive`) where the live one starts. `find_cycle` tells where the last
whole round stands, for those who do not want to wait for the next one; so does the publisher's own
next life.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from chronicle.feeds.books import (
    BUY,
    Books,
    JoinLive,
    SnapshotBegin,
    SnapshotCycle,
    SnapshotEnd,
    SnapshotLevel,
)
from chronicle.feeds.iex import (
    AuctionInfo,
    OfficialPrice,
    OperationalHalt,
    SecurityDirectory,
    SecurityEvent,
    ShortSaleTest,
    SystemEvent,
    Trade,
    TradeBreak,
    TradingStatus,
)
from chronicle.feeds.stream import Read, search_end
from chronicle.feeds.type_ids import IEX_RAW
from chronicle.hot import Bytes, Info, Output, SourceGap, on
from chronicle.message import i64, u32

__all__ = [
    "SNAPSHOT_CLASSES",
    "Cycle",
    "JoinLive",
    "SnapshotPublisher",
    "find_cycle",
    "state_at_cycle",
]

SNAPSHOT_CLASSES = (SnapshotBegin, SnapshotLevel, SnapshotEnd, SnapshotCycle)
"""The schema of a snapshot queue."""


class SnapshotPublisher(Books):
    """Keeps all books and publishes them, a symbol at a time, to its output `snapshot`."""

    interval_ns: i64 = 5_000_000
    every_messages: u32 = 256
    next_ns: i64
    since: u32
    turn: u32
    """Which symbol is next, in the order in which they came up."""
    told: u32
    """Symbols told in this round."""
    begun: u32
    """1 once a round has begun."""
    whole: u32
    """1 as long as nobody was left out in this round."""
    snapshot: Output

    @on.idle
    def tell_when_idle(self) -> None:
        """Publish one symbol, if it is time."""
        if self.now_ns >= self.next_ns:
            self.next_ns = self.now_ns + self.interval_ns
            self.tell_next()

    def changed(self, _slot: int, _info: Info) -> None:
        """Publish one symbol after so many messages, however busy it is."""
        self.since += 1
        if self.since >= self.every_messages:
            self.since = 0
            self.tell_next()

    def tell_next(self) -> None:
        """Publish the next symbol; or the end of the round and the beginning of the next."""
        # A book that began anew has another list of symbols.
        if self.begun == 0 or self.turn >= self.symbols_used:
            complete = 1 if self.begun == 1 and self.whole == 1 and self.from_beginning else 0
            self.snapshot.publish(
                SnapshotCycle(live_seq=self.seen_seq, symbols=self.told, complete=complete)
            )
            self.turn = 0
            self.told = 0
            self.begun = 1
            self.whole = 1
            return
        slot = self.order[self.turn]
        self.turn += 1
        if self.symbols[slot].ready == 0:
            self.whole = 0
            return
        self.told += 1
        self.tell(slot)

    def tell(self, slot: int) -> None:
        """Publish one book."""
        row = self.symbols[slot]
        self.snapshot.publish(
            SnapshotBegin(live_seq=self.seen_seq, symbol=row.symbol, levels=row.levels)
        )
        for side in range(2):
            node = row.bids if side == BUY else row.asks
            while node != 0:
                level = self.levels[node]
                self.snapshot.publish(
                    SnapshotLevel(symbol=row.symbol, price=level.price, size=level.size, side=side)
                )
                node = level.next
        self.snapshot.publish(SnapshotEnd(live_seq=self.seen_seq, symbol=row.symbol))

    def forget(self) -> None:
        """Empty all books; the round that was begun says nothing any more."""
        self.forget_books()
        self.turn = 0
        self.told = 0
        self.begun = 0

    @on(SourceGap)
    def source_gap(self, gap: SourceGap) -> None:
        """Forget what cannot be known any more. The live queue is source 0."""
        if gap.source == 0:
            self.forget()
            self.from_beginning = False
            self.live_from = gap.next
        else:
            self.loading = -1
            self.round_from = -1

    # Messages that change no book: they only move the number that snapshots count from.

    @on(Trade)
    def trade(self, _message: Trade, info: Info) -> None:
        """Note the number."""
        self.note_live(info.seq)

    @on(TradeBreak)
    def trade_break(self, _message: TradeBreak, info: Info) -> None:
        """Note the number."""
        self.note_live(info.seq)

    @on(SystemEvent)
    def system_event(self, _message: SystemEvent, info: Info) -> None:
        """Note the number."""
        self.note_live(info.seq)

    @on(SecurityDirectory)
    def security_directory(self, _message: SecurityDirectory, info: Info) -> None:
        """Note the number."""
        self.note_live(info.seq)

    @on(TradingStatus)
    def trading_status(self, _message: TradingStatus, info: Info) -> None:
        """Note the number."""
        self.note_live(info.seq)

    @on(OperationalHalt)
    def operational_halt(self, _message: OperationalHalt, info: Info) -> None:
        """Note the number."""
        self.note_live(info.seq)

    @on(ShortSaleTest)
    def short_sale_test(self, _message: ShortSaleTest, info: Info) -> None:
        """Note the number."""
        self.note_live(info.seq)

    @on(OfficialPrice)
    def official_price(self, _message: OfficialPrice, info: Info) -> None:
        """Note the number."""
        self.note_live(info.seq)

    @on(AuctionInfo)
    def auction_info(self, _message: AuctionInfo, info: Info) -> None:
        """Note the number."""
        self.note_live(info.seq)

    @on.bytes(IEX_RAW)
    def raw(self, _data: Bytes, info: Info) -> None:
        """Note the number."""
        self.note_live(info.seq)

    @on(SecurityEvent)
    def security_event(self, _message: SecurityEvent, info: Info) -> None:
        """Note the number."""
        self.note_live(info.seq)


class Cycle(NamedTuple):
    """Where a whole round of snapshots stands.

    Attributes
    ----------
    snapshot_seq
        Number of the message that begins it, in the snapshot queue.
    live_seq
        Newest live message that was in the books then: read the live queue from the next one on.
    """

    snapshot_seq: int
    live_seq: int


def state_at_cycle(cycle: Cycle | None) -> dict[str, int]:
    """Return the state with which `SnapshotPublisher` goes on from a round of snapshots.

    >>> state_at_cycle(None), state_at_cycle(Cycle(5, 99))
    ({}, {'live_from': 100})
    """
    return {} if cycle is None else {"live_from": cycle.live_seq + 1}


def find_cycle(path: str | os.PathLike[str]) -> Cycle | None:
    """Find the newest whole round of snapshots in a queue; ``None`` if there is none.

    Reads backwards from the end until it is found: as many messages as two rounds have. Opens an
    unregistered reader; blocks for the disk.
    """
    return search_end(path, _last_cycle)


def _last_cycle(messages: Iterable[Read]) -> Cycle | None:
    """Return the last round that begins and ends in a run of messages."""
    found = begun = None
    for seq, type_id, payload in messages:
        if type_id == SnapshotCycle.type_id:
            mark = SnapshotCycle.view(payload)
            if begun is not None and mark.complete:
                found = begun
            begun = Cycle(seq, mark.live_seq)
    return found
