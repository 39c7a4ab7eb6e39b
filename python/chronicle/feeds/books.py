"""Order books in the typed state of a handler: price levels of every symbol, exact and bounded.

`Books` is a base for handlers. It takes the price levels of DEEP and the quotes of TOPS, and keeps
both sides of each symbol sorted, best price first. A strategy derives from it, says what it does in
`changed`, and asks `best_bid` and its kin.

**From the beginning, or joining late.** A book that has seen the stream from a `FeedMark` that says
*joined* or *restarted* knows everything. One that joins later knows nothing until a snapshot of the
symbol comes (`chronicle.feeds.snapshot`), which says up to which message of the live queue it
counts. Live messages and snapshots come from two queues, in any order; so what comes live for a
symbol that is not ready yet is kept in a ring, and what lies behind the snapshot's number is
applied to it. If the ring was too small, or the reader had joined too late for that snapshot, the
snapshot is left alone, and the next one serves. Once a whole round of snapshots was read, symbols
that were not in it are known to be new. So a book never misses a message, and never applies one
twice.

**Memory.** Levels are nodes of one table, linked within each side; a symbol costs nothing but its
row. When a table is full the message is counted (`overflows`), and the symbol is not ready any
more: it is never shown wrong. A snapshot that fits makes it ready again.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from chronicle.feeds.iex import BuyLevel, QuoteUpdate, SellLevel
from chronicle.feeds.stream import JOINED, RESTARTED, FeedGap, FeedMark
from chronicle.feeds.type_ids import STREAM
from chronicle.hot import Cells, Counter, Handler, Info, Table, mix64, on, symbol_key
from chronicle.message import Array, MessageBase, bool_, char8, i64, message, u8, u32

__all__ = [
    "BookLevel",
    "BookSymbol",
    "Books",
    "JoinLive",
    "RecentUpdate",
    "SnapshotBegin",
    "SnapshotCycle",
    "SnapshotEnd",
    "SnapshotLevel",
]

SYMBOLS: Final = 16_384
"""Rows of the symbol table; three quarters of them can be used."""
LEVELS: Final = 65_536
"""Price levels of all books together. Row 0 is never used: 0 means none."""
RECENT: Final = 4_096
"""Live messages that are kept for symbols whose snapshot has not come yet."""

BUY: Final = 1
SELL: Final = 0


@message(STREAM + 8)
class SnapshotBegin(MessageBase):
    """The book of one symbol follows, as it is after message `live_seq` of the live queue."""

    live_seq: i64
    symbol: char8
    levels: u32


@message(STREAM + 9)
class SnapshotLevel(MessageBase):
    """One price level, best first; `side` is 1 buy, 0 sell."""

    symbol: char8
    price: i64
    size: u32
    side: u8


@message(STREAM + 10)
class SnapshotEnd(MessageBase):
    """The book of this symbol is complete."""

    live_seq: i64
    symbol: char8


@message(STREAM + 15)
class SnapshotCycle(MessageBase):
    """All symbols have been told once; the next round begins, after live message `live_seq`.

    `symbols` were told since the last of these; `complete` says that these were all there are.
    """

    live_seq: i64
    symbols: u32
    complete: u8


@message(STREAM + 11)
class JoinLive(MessageBase):
    """Command: forget all books; the live queue is read from message `live_from` on."""

    live_from: i64


@message(STREAM + 12)
class BookSymbol(MessageBase):
    """Row: one symbol. Not published.

    `missed_seq` is the newest live message of it that the ring has lost; `live_seq` the newest that
    is in the book.
    """

    symbol: char8
    live_seq: i64
    missed_seq: i64
    bids: u32
    asks: u32
    levels: u32
    used: u8
    ready: u8


@message(STREAM + 13)
class BookLevel(MessageBase):
    """Row: one price level, and the next worse one of its side. Not published."""

    price: i64
    size: u32
    next: u32


@message(STREAM + 14)
class RecentUpdate(MessageBase):
    """Row: a live message of a symbol that is not ready. Not published."""

    seq: i64
    price: i64
    slot: u32
    size: u32
    side: u8


class Books(Handler):
    """The books of all symbols. Derive from it, and override `changed`."""

    symbols: Annotated[Any, Table(BookSymbol, SYMBOLS)]
    levels: Annotated[Any, Table(BookLevel, LEVELS)]
    recent: Annotated[Any, Table(RecentUpdate, RECENT)]
    recent_count: i64
    order: Annotated[Cells[int], Array(u32, SYMBOLS)]
    """Rows of the symbols, in the order in which they came up."""
    symbols_used: u32
    levels_used: u32 = 1
    free_level: u32
    from_beginning: bool_
    """Whether a symbol that was never heard of has an empty book."""
    empty_at: i64
    """The live message after which it was empty; 0: at the beginning."""
    live_from: i64
    """The first live message that this book can have seen; 0: not known."""
    loading: i64 = -1
    """The symbol whose snapshot is being taken in."""
    loading_left: u32
    seen_seq: i64
    """The newest live message that was seen."""
    round_from: i64 = -1
    """Live message after which the round of snapshots began that is being read; -1: not known."""
    round_symbols: u32
    applied: Counter
    snapshots: Counter
    snapshots_unused: Counter
    overflows: Counter

    # --- What a strategy asks ---

    def find(self, symbol: bytes) -> int:
        """Return the row of a symbol, or -1."""
        index = self.place_of(symbol)
        if index >= 0 and self.symbols[index].used == 0:
            return -1
        return index

    def is_ready(self, slot: int) -> bool:
        """Whether the book of this row is complete."""
        return slot >= 0 and self.symbols[slot].ready == 1

    def best_bid(self, slot: int) -> int:
        """Return the highest price to buy, or 0."""
        price: int = self.levels[self.symbols[slot].bids].price
        return price

    def best_ask(self, slot: int) -> int:
        """Return the lowest price to sell, or 0."""
        price: int = self.levels[self.symbols[slot].asks].price
        return price

    def best_bid_size(self, slot: int) -> int:
        """Return the size at the best bid, or 0."""
        size: int = self.levels[self.symbols[slot].bids].size
        return size

    def best_ask_size(self, slot: int) -> int:
        """Return the size at the best ask, or 0."""
        size: int = self.levels[self.symbols[slot].asks].size
        return size

    def changed(self, _slot: int, _info: Info) -> None:
        """Take note: the book of this row is ready and has changed. For derived classes."""

    # --- What comes ---

    @on(BuyLevel)
    def buy_level(self, level: BuyLevel, info: Info) -> None:
        """Take a level of the buy side."""
        self.live(level.symbol, BUY, level.price, level.size, info)

    @on(SellLevel)
    def sell_level(self, level: SellLevel, info: Info) -> None:
        """Take a level of the sell side."""
        self.live(level.symbol, SELL, level.price, level.size, info)

    @on(QuoteUpdate)
    def quote_update(self, quote: QuoteUpdate, info: Info) -> None:
        """Take a quote: it is the whole book of a symbol, so that no snapshot is needed."""
        self.note_live(info.seq)
        slot = self.slot_of(quote.symbol)
        if slot < 0 or info.seq <= self.symbols[slot].live_seq:
            return
        self.clear(slot)
        fits = True
        if quote.bid_size > 0:
            fits = self.set_level(slot, BUY, quote.bid_price, quote.bid_size)
        if quote.ask_size > 0:
            fits = self.set_level(slot, SELL, quote.ask_price, quote.ask_size) and fits
        if fits:
            self.symbols[slot].ready = 1
        self.done(slot, info)

    @on(FeedMark)
    def feed_mark(self, mark: FeedMark, info: Info) -> None:
        """Begin anew if the feed does."""
        self.note_live(info.seq)
        if mark.reason == JOINED or mark.reason == RESTARTED:
            self.forget()
            self.from_beginning = True

    @on(FeedGap)
    def feed_gap(self, _gap: FeedGap, info: Info) -> None:
        """Forget the books: nobody knows what they are any more. What comes now is shown."""
        self.note_live(info.seq)
        self.forget()
        self.from_beginning = True

    @on.command(JoinLive)
    def join_live(self, command: JoinLive) -> None:
        """Forget all books; they come back from snapshots."""
        self.forget()
        self.from_beginning = False
        self.live_from = command.live_from

    @on(SnapshotBegin)
    def snapshot_begin(self, begin: SnapshotBegin) -> None:
        """Begin to take a snapshot in, if it is of use."""
        self.loading = -1
        self.round_symbols += 1
        slot = self.slot_of(begin.symbol)
        if slot < 0 or self.symbols[slot].ready == 1:
            return
        in_time = self.live_from > 0 and begin.live_seq >= self.live_from - 1
        if not in_time or self.symbols[slot].missed_seq > begin.live_seq:
            self.snapshots_unused.add(1)
            return
        self.clear(slot)
        self.loading = slot
        self.loading_left = begin.levels

    @on(SnapshotLevel)
    def snapshot_level(self, level: SnapshotLevel) -> None:
        """Take one level of the snapshot."""
        slot = self.loading
        if slot < 0 or self.symbols[slot].symbol != level.symbol:
            return
        # A live quote, which is a whole book, may have come in between.
        if self.loading_left == 0 or self.symbols[slot].ready == 1:
            self.loading = -1
            return
        self.loading_left -= 1
        if not self.set_level(slot, level.side, level.price, level.size):
            self.loading = -1

    @on(SnapshotEnd)
    def snapshot_end(self, end: SnapshotEnd, info: Info) -> None:
        """Make the symbol ready: the snapshot, and what came live behind it."""
        slot = self.loading
        self.loading = -1
        if slot < 0 or self.loading_left > 0 or self.symbols[slot].symbol != end.symbol:
            return
        if self.symbols[slot].ready == 1:
            return
        # The ring may have turned over while the snapshot came in.
        if self.symbols[slot].missed_seq > end.live_seq:
            self.snapshots_unused.add(1)
            self.clear(slot)
            return
        if self.complete(slot, end.live_seq):
            self.snapshots.add(1)
            self.changed(slot, info)

    @on(SnapshotCycle)
    def snapshot_cycle(self, cycle: SnapshotCycle, info: Info) -> None:
        """Conclude, after a whole round: who was not in it did not exist when it began."""
        whole = self.round_from >= 0 and cycle.symbols == self.round_symbols
        if whole and cycle.complete == 1 and not self.from_beginning:
            for number in range(self.symbols_used):
                slot = self.order[number]
                row = self.symbols[slot]
                if row.ready == 0 and row.missed_seq == 0 and self.complete(slot, self.round_from):
                    self.changed(slot, info)
            self.from_beginning = True
            self.empty_at = self.round_from
        in_time = self.live_from > 0 and cycle.live_seq >= self.live_from - 1
        self.round_from = cycle.live_seq if in_time else -1
        self.round_symbols = 0

    def complete(self, slot: int, live_seq: int) -> bool:
        """Put what came live behind `live_seq` onto a book; it is ready then."""
        row = self.symbols[slot]
        row.live_seq = live_seq
        first = max(0, self.recent_count - len(self.recent))
        for number in range(first, self.recent_count):
            update = self.recent[number % len(self.recent)]
            if update.slot == slot and update.seq > live_seq:
                if not self.set_level(slot, update.side, update.price, update.size):
                    return False
                row.live_seq = update.seq
        row.ready = 1
        return True

    # --- Live ---

    def note_live(self, seq: int) -> None:
        """Remember which live messages were seen."""
        if self.live_from == 0:
            self.live_from = seq
        self.seen_seq = seq

    def live(self, symbol: bytes, side: int, price: int, size: int, info: Info) -> None:
        """Apply a level to a book, or keep it until the book is ready."""
        self.note_live(info.seq)
        slot = self.slot_of(symbol)
        if slot < 0 or info.seq <= self.symbols[slot].live_seq:
            return
        if self.symbols[slot].ready == 0:
            self.keep(slot, side, price, size, info.seq)
            return
        if self.set_level(slot, side, price, size):
            self.done(slot, info)
        else:
            # What did not fit is missing from now on; only a later snapshot can tell.
            self.symbols[slot].missed_seq = info.seq

    def done(self, slot: int, info: Info) -> None:
        """Say that a book has changed."""
        self.symbols[slot].live_seq = info.seq
        self.applied.add(1)
        self.changed(slot, info)

    def keep(self, slot: int, side: int, price: int, size: int, seq: int) -> None:
        """Keep a live message for the snapshot that is to come."""
        update = self.recent[self.recent_count % len(self.recent)]
        if self.recent_count >= len(self.recent):
            self.symbols[update.slot].missed_seq = update.seq
        update.seq = seq
        update.slot = slot
        update.side = side
        update.price = price
        update.size = size
        self.recent_count += 1

    # --- Symbols ---

    def place_of(self, symbol: bytes) -> int:
        """Return where a symbol is, or would be; -1 if the table is full."""
        size = len(self.symbols)
        start = mix64(symbol_key(symbol)) % size
        for step in range(size):
            index = (start + step) % size
            row = self.symbols[index]
            if row.used == 0 or row.symbol == symbol:
                return index
        return -1

    def slot_of(self, symbol: bytes) -> int:
        """Return the row of a symbol, made if it is new; -1 if there is no room."""
        index = self.place_of(symbol)
        if index < 0 or self.symbols[index].used == 1:
            return index
        if self.symbols_used >= len(self.symbols) * 3 // 4:
            self.overflows.add(1)
            return -1
        self.order[self.symbols_used] = index
        self.symbols_used += 1
        row = self.symbols[index]
        row.symbol = symbol
        row.used = 1
        if self.from_beginning:
            row.ready = 1
            row.live_seq = self.empty_at
        return index

    def forget(self) -> None:
        """Empty all books. For derived classes that have more to forget."""
        self.forget_books()

    def forget_books(self) -> None:
        """Empty every table."""
        for number in range(self.symbols_used):
            self.symbols[self.order[number]] = BookSymbol(
                symbol=b"", live_seq=0, missed_seq=0, bids=0, asks=0, levels=0, used=0, ready=0
            )
        self.symbols_used = 0
        self.levels_used = 1
        self.free_level = 0
        self.recent_count = 0
        self.loading = -1
        self.round_from = -1
        self.empty_at = 0

    # --- Levels ---

    def clear(self, slot: int) -> None:
        """Give the levels of a symbol back; it is not ready then."""
        row = self.symbols[slot]
        row.ready = 0
        row.levels = 0
        for side in range(2):
            node = row.bids if side == BUY else row.asks
            while node != 0:
                following = self.levels[node].next
                self.release(node)
                node = following
        row.bids = 0
        row.asks = 0

    def release(self, node: int) -> None:
        """Give one level back."""
        self.levels[node].size = 0
        self.levels[node].next = self.free_level
        self.free_level = node

    def set_level(self, slot: int, side: int, price: int, size: int) -> bool:
        """Set one price level, or delete it (size 0). False: no room, and not ready any more."""
        row = self.symbols[slot]
        sign = 1 if side == BUY else -1
        before = 0
        node = row.bids if side == BUY else row.asks
        while node != 0 and sign * self.levels[node].price > sign * price:
            before = node
            node = self.levels[node].next
        if node != 0 and self.levels[node].price == price:
            if size > 0:
                self.levels[node].size = size
            else:
                self.link(slot, side, before, self.levels[node].next)
                self.release(node)
                row.levels -= 1
            return True
        if size == 0:
            return True
        made = self.free_level
        if made != 0:
            self.free_level = self.levels[made].next
        elif self.levels_used < len(self.levels):
            made = self.levels_used
            self.levels_used += 1
        else:
            self.overflows.add(1)
            self.clear(slot)
            # Not empty, not known: only a snapshot can say what it is.
            row.missed_seq = max(row.missed_seq, 1)
            return False
        self.levels[made] = BookLevel(price=price, size=size, next=node)
        self.link(slot, side, before, made)
        row.levels += 1
        return True

    def link(self, slot: int, side: int, before: int, node: int) -> None:
        """Make `node` follow `before`, or be the first of its side."""
        if before != 0:
            self.levels[before].next = node
        elif side == BUY:
            self.symbols[slot].bids = node
        else:
            self.symbols[slot].asks = node
