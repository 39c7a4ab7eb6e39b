"""Handlers on the sides of a book, for the tests; see `tests.hot_handlers`."""

from __future__ import annotations

from typing import Annotated, Any

from chronicle.feeds.iex import BuyLevel, QuoteUpdate, SellLevel
from chronicle.hot import Cells, Counter, Handler, Info, Output, Table, on
from chronicle.message import Array, char8, f32, f64, i32, i64, u8, u32

from tests.hot_messages import SCALE, Level, Signal


class OrderBook(Handler):
    """The ten best levels of one symbol, each side sorted in a fixed table."""

    symbol: char8 = b"ZXIET"
    bids: Annotated[Any, Table(Level, 10)]
    asks: Annotated[Any, Table(Level, 10)]
    bid_count: i32
    ask_count: i32
    best: Output
    dropped: Counter

    @on(BuyLevel)
    def buy(self, level: BuyLevel, info: Info) -> None:
        if level.symbol == self.symbol:
            self.bid_count = self.update(self.bids, self.bid_count, 1, level.price, level.size)
            self.tell(info.seq)

    @on(SellLevel)
    def sell(self, level: SellLevel, info: Info) -> None:
        if level.symbol == self.symbol:
            self.ask_count = self.update(self.asks, self.ask_count, -1, level.price, level.size)
            self.tell(info.seq)

    def update(self, levels: Any, count: int, sign: int, price: int, size: int) -> int:
        place = 0
        while place < count and sign * levels[place].price > sign * price:
            place += 1
        found = place < count and levels[place].price == price
        if size == 0:
            if not found:
                return count
            for i in range(place, count - 1):
                levels[i] = levels[i + 1]
            levels[count - 1] = Level(price=0, size=0)
            return count - 1
        if found:
            levels[place].size = size
            return count
        if place == len(levels):
            self.dropped.add(1)
            return count
        last = min(count, len(levels) - 1)
        for i in range(last, place, -1):
            levels[i] = levels[i - 1]
        levels[place] = Level(price=price, size=size)
        return last + 1

    def tell(self, cause: int) -> None:
        if self.bid_count > 0 and self.ask_count > 0:
            middle = (self.bids[0].price + self.asks[0].price) / (2 * SCALE)
            self.best.publish(Signal(symbol=self.symbol, cause=cause, value=middle))


class TopOfBook(Handler):
    """The best price of each side, published where it changes, on an output of its own."""

    bid: i64
    ask: i64 = 1 << 40
    bids: Output
    asks: Output
    quotes: Counter

    @on(QuoteUpdate)
    def quote(self, quote: QuoteUpdate, info: Info) -> None:
        self.quotes.add(1)
        self.set_bid(quote.bid_price, info)
        self.set_ask(quote.ask_price, info)

    @on(BuyLevel)
    def buy(self, level: BuyLevel, info: Info) -> None:
        if level.size > 0 and level.price > self.bid:
            self.set_bid(level.price, info)

    @on(SellLevel)
    def sell(self, level: SellLevel, info: Info) -> None:
        if level.size > 0 and level.price < self.ask:
            self.set_ask(level.price, info)

    def set_bid(self, price: int, info: Info) -> None:
        if price != self.bid:
            self.bid = price
            self.bids.publish(Signal(symbol=b"BID", cause=info.seq, value=float(price)))

    def set_ask(self, price: int, info: Info) -> None:
        if price != self.ask:
            self.ask = price
            self.asks.publish(Signal(symbol=b"ASK", cause=info.seq, value=float(price)))


class SpreadStatistics(Handler):
    """Welford's mean and variance of the spread."""

    bid: i64
    ask: i64
    count: i64
    mean: f64
    m2: f64
    worst: i64

    @on(BuyLevel)
    def buy(self, level: BuyLevel) -> None:
        self.bid = level.price
        self.add()

    @on(SellLevel)
    def sell(self, level: SellLevel) -> None:
        self.ask = level.price
        self.add()

    def add(self) -> None:
        if self.bid <= 0 or self.ask <= 0:
            return
        spread = self.ask - self.bid
        self.count += 1
        delta = spread - self.mean
        self.mean += delta / self.count
        self.m2 += delta * (spread - self.mean)
        self.worst = max(self.worst, abs(spread))


class Imbalance(Handler):
    """Size on the bid against size on the ask, of the last levels seen."""

    bid_sizes: Annotated[Cells[int], Array(u32, 16)]
    ask_sizes: Annotated[Cells[int], Array(u32, 16)]
    bid_next: u8
    ask_next: u8
    value: f32
    out: Output

    @on(BuyLevel)
    def buy(self, level: BuyLevel, info: Info) -> None:
        self.bid_sizes[self.bid_next] = level.size
        self.bid_next = (self.bid_next + 1) % 16
        self.measure(info.seq)

    @on(SellLevel)
    def sell(self, level: SellLevel, info: Info) -> None:
        self.ask_sizes[self.ask_next] = level.size
        self.ask_next = (self.ask_next + 1) % 16
        self.measure(info.seq)

    def measure(self, cause: int) -> None:
        bids = sum_of(self.bid_sizes)
        asks = sum_of(self.ask_sizes)
        if bids + asks == 0:
            return
        self.value = (bids - asks) / (bids + asks)
        if abs(self.value) > 0.9:
            self.out.publish(Signal(symbol=b"IMB", cause=cause, value=self.value, kind=4))


def sum_of(cells: Any) -> int:
    """A helper at module level that takes an array."""
    total = 0
    for value in cells:
        total += value
    return total


class CrossDetector(Handler):
    """Finds a best bid at or over the best ask, and how long that lasts."""

    bid: i64
    ask: i64
    crossed_since_ns: i64
    longest_ns: i64
    crossings: Counter

    @on(QuoteUpdate)
    def quote(self, quote: QuoteUpdate) -> None:
        self.bid, self.ask = quote.bid_price, quote.ask_price
        self.look(quote.time_ns)

    @on(BuyLevel)
    def buy(self, level: BuyLevel) -> None:
        self.bid = level.price if level.size else 0
        self.look(level.time_ns)

    @on(SellLevel)
    def sell(self, level: SellLevel) -> None:
        self.ask = level.price if level.size else 0
        self.look(level.time_ns)

    def look(self, now_ns: int) -> None:
        crossed = 0 < self.ask <= self.bid
        if crossed and not self.crossed_since_ns:
            self.crossed_since_ns = now_ns
            self.crossings.add(1)
        elif not crossed and self.crossed_since_ns:
            self.longest_ns = max(self.longest_ns, now_ns - self.crossed_since_ns)
            self.crossed_since_ns = 0
