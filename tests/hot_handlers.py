"""Handlers that people would write, for the tests: each over messages of IEX DEEP.

They use the whole language of handlers between them: arrays, tables, text, integers of all widths,
floats, helpers, several outputs, counters, the log, the clock, commands, events and hooks. All are
in `HANDLERS`; tests run each in both ways over the same inputs.
"""

from __future__ import annotations

import enum
import math
from typing import Annotated, Any, Final

from chronicle.feeds.iex import (
    BuyLevel,
    QuoteUpdate,
    SecurityEvent,
    SellLevel,
    SystemEvent,
    Trade,
    TradingStatus,
)
from chronicle.hot import (
    Cells,
    Counter,
    Handler,
    Info,
    Output,
    SourceAdded,
    SourceGap,
    SourceRemoved,
    Table,
    mix64,
    on,
    symbol_key,
)
from chronicle.message import (
    Array,
    bool_,
    char1,
    char8,
    f32,
    f64,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)

from tests.hot_books import CrossDetector, Imbalance, OrderBook, SpreadStatistics, TopOfBook
from tests.hot_messages import (
    NS_PER_SECOND,
    SCALE,
    Bar,
    Position,
    SetLimit,
    Signal,
    Slot,
)


class Side(enum.IntEnum):
    FLAT = 0
    LONG = 1
    SHORT = -1


class Ewma(Handler):
    """An exponentially weighted mean, and a signal when a trade is far from it."""

    alpha: f64 = 0.05
    mean: f64
    deviation: f64
    seen_any: bool_
    signals: Output
    trades: Counter
    far: Counter

    @on(Trade)
    def trade(self, trade: Trade, info: Info) -> None:
        self.trades.add()
        price = trade.price / SCALE
        if not self.seen_any:
            self.mean = price
            self.seen_any = True
            return
        error = price - self.mean
        self.mean += self.alpha * error
        self.deviation += self.alpha * (abs(error) - self.deviation)
        if abs(error) > 3.0 * self.deviation > 0.0:
            self.far.add(1)
            self.signals.publish(Signal(symbol=trade.symbol, cause=info.seq, value=error))
            self.log.info("{} is {:.4f} from {}", trade.symbol, error, self.mean)


class RingWindow(Handler):
    """Mean, variance, lowest and highest of the last 32 prices, from a ring."""

    prices: Annotated[Cells[float], Array(f64, 32)]
    count: u32
    mean: f64
    variance: f64
    low: f64
    high: f64

    @on(Trade)
    def trade(self, trade: Trade) -> None:
        self.prices[self.count % len(self.prices)] = trade.price / SCALE
        self.count += 1
        filled = min(self.count, len(self.prices))
        total = 0.0
        low = math.inf
        high = -math.inf
        for i in range(filled):
            price = self.prices[i]
            total += price
            low = min(low, price)
            high = max(high, price)
        mean = total / filled
        squares = 0.0
        for i in range(filled):
            squares += (self.prices[i] - mean) ** 2
        self.mean, self.variance = mean, squares / filled
        self.low, self.high = low, high


class SymbolTable(Handler):
    """Per-symbol totals in an open-addressed table."""

    slots: Annotated[Any, Table(Slot, 256)]
    used: u16
    full: Counter

    @on(Trade)
    def trade(self, trade: Trade) -> None:
        index = self.find(trade.symbol)
        if index < 0:
            self.full.add(1)
            return
        slot = self.slots[index]
        slot.last_price = trade.price
        slot.volume += trade.size
        slot.high = max(slot.high, trade.price / SCALE)
        slot.count = min(slot.count + 1, 65_535)

    def find(self, symbol: bytes) -> int:
        size = len(self.slots)
        start = mix64(symbol_key(symbol)) % size
        for step in range(size):
            index = (start + step) % size
            slot = self.slots[index]
            if slot.count > 0 and slot.symbol == symbol:
                return index
            if slot.count == 0:
                if self.used >= size * 3 // 4:
                    return -1
                slot.symbol = symbol
                self.used += 1
                return index
        return -1


class Vwap(Handler):
    """Volume-weighted price in fixed-point integers, restarted each million shares."""

    notional: i64
    volume: i64
    restarts: u32
    vwap: i64
    prices: Output

    @on(Trade)
    def trade(self, trade: Trade, info: Info) -> None:
        if trade.flags & 0x80:
            return
        self.notional += trade.price * trade.size
        self.volume += trade.size
        if self.volume:
            self.vwap = (self.notional + self.volume // 2) // self.volume
        if self.volume >= 1_000_000:
            self.prices.publish(
                Signal(symbol=b"VWAP", cause=info.seq, value=self.vwap / SCALE, kind=1)
            )
            self.notional = self.volume = 0
            self.restarts += 1


class TokenBucket(Handler):
    """Lets at most so many trades a second through, by the handler's clock."""

    rate: i64 = 50
    burst: i64 = 100
    tokens: i64 = 100
    last_ns: i64
    passed: Counter
    held: Counter
    out: Output

    @on(Trade)
    def trade(self, trade: Trade, info: Info) -> None:
        now = self.now_ns
        if self.last_ns == 0:
            self.last_ns = now
        earned = (now - self.last_ns) * self.rate // NS_PER_SECOND
        if earned > 0:
            self.tokens = min(self.burst, self.tokens + earned)
            self.last_ns += earned * NS_PER_SECOND // self.rate
        if self.tokens > 0:
            self.tokens -= 1
            self.passed.add(1)
            self.out.publish(trade)
        else:
            self.held.add(1)

    @on.command(SetLimit)
    def set_limit(self, command: SetLimit) -> None:
        if command.limit > 0:
            self.rate = command.limit % 10_000 + 1
            self.log.warning("rate is {}, active {}", self.rate, command.active)


class PositionKeeper(Handler):
    """Quantity, cost and realized profit by symbol; sides alternate by trade id."""

    positions: Annotated[Any, Table(Position, 128)]
    realized: i64
    out: Output
    rejected: Counter

    @on(Trade)
    def trade(self, trade: Trade) -> None:
        key = symbol_key(trade.symbol)
        index = self.slot(key)
        if index < 0:
            self.rejected.add(1)
            return
        position = self.positions[index]
        if not position.used:
            position.used = True
            position.key = key
            position.symbol = trade.symbol
        side = 1 if trade.trade_id & 1 else -1
        before = position.realized
        self.fill(position, side * (trade.size % 1_000), trade.price % 100_000_000)
        self.realized += position.realized - before
        if position.trades % 16 == 0:
            self.out.publish(position)

    def slot(self, key: int) -> int:
        for step in range(8):
            index = (mix64(key) + step) % len(self.positions)
            if not self.positions[index].used or self.positions[index].key == key:
                return index
        return -1

    def fill(self, position: Any, quantity: int, price: int) -> None:
        position.trades += 1
        held = position.quantity
        if held == 0 or (held > 0) == (quantity > 0):
            position.quantity = held + quantity
            position.cost += quantity * price
            return
        closed = min(abs(held), abs(quantity))
        average = position.cost // held
        sign = 1 if held > 0 else -1
        position.realized += sign * closed * (price - average)
        position.quantity = held + quantity
        if (position.quantity > 0) == (held > 0) and position.quantity != 0:
            position.cost = average * position.quantity
        else:
            position.cost = price * position.quantity


class Bracket(Handler):
    """Entry, stop and target as a state machine; a command arms it."""

    side: i16
    armed: bool_ = True
    entry: i64
    stop_price: i64
    target: i64
    wins: Counter
    losses: Counter
    out: Output

    @on.command(SetLimit)
    def arm(self, command: SetLimit) -> None:
        self.armed = command.active

    @on(Trade)
    def trade(self, trade: Trade, info: Info) -> None:
        price = trade.price
        if self.side == Side.FLAT:
            if self.armed and trade.size >= 100:
                self.enter(Side.LONG if trade.trade_id % 2 == 0 else Side.SHORT, price)
            return
        reached = price >= self.target if self.side == Side.LONG else price <= self.target
        stopped = price <= self.stop_price if self.side == Side.LONG else price >= self.stop_price
        if not reached and not stopped:
            return
        if reached:
            self.wins.add(1)
        else:
            self.losses.add(1)
        gain = self.side * (price - self.entry)
        self.out.publish(
            Signal(
                symbol=trade.symbol, cause=info.seq, value=gain / SCALE, kind=2 if reached else 3
            )
        )
        self.side = Side.FLAT

    def enter(self, side: int, price: int) -> None:
        self.side = side
        self.entry = price
        self.target = price + side * (price // 200)
        self.stop_price = price - side * (price // 400)


class GapTracker(Handler):
    """Sequence numbers by source, gaps that the loop reports, and sources that come and go."""

    last_seq: Annotated[Cells[int], Array(i64, 8)]
    missing: u64
    active: u8
    jumps: Counter
    gaps: Counter

    @on(Trade)
    def trade(self, trade: Trade, info: Info) -> None:
        if info.source >= len(self.last_seq):
            return
        last = self.last_seq[info.source]
        if last and info.seq != last + 1:
            self.jumps.add(1)
        self.last_seq[info.source] = info.seq

    @on(SourceGap)
    def gap(self, gap: SourceGap) -> None:
        self.gaps.add(1)
        self.missing += gap.next - gap.first_missing
        self.log.warning("source {} lost {} to {}", gap.source, gap.first_missing, gap.next)

    @on(SourceAdded)
    def added(self, event: SourceAdded) -> None:
        self.active += 1

    @on(SourceRemoved)
    def removed(self, event: SourceRemoved) -> None:
        if self.active:
            self.active -= 1
        if event.source < 8:
            self.last_seq[event.source] = 0


class Session(Handler):
    """The phase of the day, and which symbols are halted, by a small table."""

    phase: char1 = b"?"
    opened_ns: i64
    halted: Annotated[Cells[bool], Array(bool_, 64)]
    halted_count: i32
    changes: Counter

    @on(SystemEvent)
    def system(self, event: SystemEvent) -> None:
        if event.event in (b"O", b"S", b"R", b"M", b"E", b"C"):
            if event.event != self.phase:
                self.changes.add(1)
                self.log.info("phase {} after {}", event.event, self.phase)
            self.phase = event.event
        if event.event == b"R":
            self.opened_ns = event.time_ns

    @on(TradingStatus)
    def status(self, status: TradingStatus) -> None:
        slot = symbol_key(status.symbol) & 63
        now_halted = status.status == b"H" or status.status == b"P"
        if self.halted[slot] != now_halted:
            self.halted[slot] = now_halted
            self.halted_count += 1 if now_halted else -1

    @on(SecurityEvent)
    def event(self, event: SecurityEvent) -> None:
        if len(event.symbol) > 0 and event.symbol[0] >= 0x41:
            self.changes.add(event.symbol[len(event.symbol) - 1] & 1)


class Histogram(Handler):
    """Trade sizes in buckets of powers of two."""

    buckets: Annotated[Cells[int], Array(u32, 33)]
    largest: u32

    @on(Trade)
    def trade(self, trade: Trade) -> None:
        bucket = 0
        size = trade.size
        while size:
            size >>= 1
            bucket += 1
        self.buckets[bucket] += 1
        self.largest = max(self.largest, trade.size)

    @on.stop
    def tell(self) -> None:
        for bucket, count in enumerate(self.buckets):
            if count:
                self.log.debug("up to {}: {}", (1 << bucket) - 1, count)


class MinMaxDeque(Handler):
    """Lowest and highest of the last 64 prices, by monotonic deques in arrays."""

    low_price: Annotated[Cells[int], Array(i64, 64)]
    low_at: Annotated[Cells[int], Array(i64, 64)]
    high_price: Annotated[Cells[int], Array(i64, 64)]
    high_at: Annotated[Cells[int], Array(i64, 64)]
    low_head: i64
    low_tail: i64
    high_head: i64
    high_tail: i64
    count: i64
    low: i64
    high: i64

    @on(Trade)
    def trade(self, trade: Trade) -> None:
        now = self.count
        self.count += 1
        while self.low_tail > self.low_head:
            if self.low_price[(self.low_tail - 1) % 64] < trade.price:
                break
            self.low_tail -= 1
        self.low_price[self.low_tail % 64] = trade.price
        self.low_at[self.low_tail % 64] = now
        self.low_tail += 1
        if self.low_at[self.low_head % 64] <= now - 64:
            self.low_head += 1
        while self.high_tail > self.high_head:
            if self.high_price[(self.high_tail - 1) % 64] > trade.price:
                break
            self.high_tail -= 1
        self.high_price[self.high_tail % 64] = trade.price
        self.high_at[self.high_tail % 64] = now
        self.high_tail += 1
        if self.high_at[self.high_head % 64] <= now - 64:
            self.high_head += 1
        self.low = self.low_price[self.low_head % 64]
        self.high = self.high_price[self.high_head % 64]


class TrailingStop(Handler):
    """A stop that follows the price up by a fraction."""

    fraction: f64 = 0.01
    peak: f64
    stop_at: f64
    hits: u32
    out: Output

    @on(Trade)
    def trade(self, trade: Trade, info: Info) -> None:
        price = trade.price / SCALE
        if price > self.peak:
            self.peak = price
            self.stop_at = price * (1.0 - self.fraction)
        elif price < self.stop_at:
            self.hits += 1
            self.out.publish(Signal(symbol=trade.symbol, cause=info.seq, value=price - self.peak))
            self.peak = self.stop_at = 0.0


def clamp(value: float, low: float = -1.0, high: float = 1.0) -> float:
    """A helper with defaults."""
    if value < low:
        return low
    if value > high:
        return high
    return value


def ratio(a: float, b: float) -> float:
    """A helper that calls nothing."""
    return a / b if b != 0.0 else 0.0


class Momentum(Handler):
    """Fast against slow mean, through helper functions."""

    fast: f64
    slow: f64
    strength: f32
    out: Output

    @on(Trade)
    def trade(self, trade: Trade, info: Info) -> None:
        price = float(trade.price)
        self.fast = self.step(self.fast, price, 0.2)
        self.slow = self.step(self.slow, price, high_first(0.02, 0.01))
        self.strength = clamp(ratio(self.fast - self.slow, self.slow) * 100.0)
        if clamp(self.strength, high=0.5) == 0.5:
            self.out.publish(Signal(symbol=trade.symbol, cause=info.seq, value=self.strength))

    @staticmethod
    def step(mean: float, value: float, weight: float) -> float:
        return mean + weight * (value - mean)


def high_first(a: float, b: float) -> float:
    """A helper that returns a tuple's first element."""
    pair = (a, b) if a > b else (b, a)
    return pair[0]


class FanOut(Handler):
    """Sends trades on by symbol: four outputs, one message passed on as it is."""

    first: Output
    second: Output
    third: Output
    rest: Output
    counts: Annotated[Cells[int], Array(u32, 4)]

    @on(Trade)
    def trade(self, trade: Trade) -> None:
        group = mix64(symbol_key(trade.symbol)) % 4
        self.counts[group] += 1
        if group == 0:
            self.first.publish(trade)
        elif group == 1:
            self.second.publish(trade)
        elif group == 2:
            self.third.publish(trade)
        else:
            self.rest.publish(trade)


class Volatility(Handler):
    """Root of the mean square of logarithmic returns, of one symbol."""

    symbol: char8 = b"MSFT"
    last: i64
    squares: f64
    count: i64
    annual: f64

    @on(Trade)
    def trade(self, trade: Trade) -> None:
        if trade.symbol != self.symbol or trade.price <= 0:
            return
        if self.last > 0:
            change = math.log(trade.price / self.last)
            self.squares += change * change
            self.count += 1
            self.annual = math.sqrt(self.squares / self.count) * math.sqrt(252.0 * 23_400.0)
        self.last = trade.price


class RateCounter(Handler):
    """Messages in each of the last 60 seconds of exchange time; the idle hook tells the peak."""

    seconds: Annotated[Cells[int], Array(u32, 60)]
    current: i64
    peak: u32
    told: u32
    idles: Counter

    @on(Trade)
    def trade(self, trade: Trade) -> None:
        self.count(trade.time_ns // NS_PER_SECOND)

    @on(BuyLevel)
    def buy(self, level: BuyLevel) -> None:
        self.count(level.time_ns // NS_PER_SECOND)

    def count(self, second: int) -> None:
        if second > self.current:
            first = max(self.current + 1, second - 59)
            for each in range(first, second + 1):
                self.seconds[each % 60] = 0
            self.current = second
        if second > self.current - 60:
            self.seconds[second % 60] += 1
            self.peak = max(self.peak, self.seconds[second % 60])

    @on.idle
    def idle(self) -> None:
        self.idles.add(1)
        if self.peak > self.told:
            self.told = self.peak
            self.log.info("peak {} a second", self.peak)


class Summary(Handler):
    """Start and stop hooks, and a summary published at the end."""

    started_ns: i64
    first_ns: i64
    last_ns: i64
    volume: i64
    out: Output

    @on.start
    def start(self) -> None:
        self.started_ns = self.now_ns
        self.log.info("started at {}", self.started_ns)

    @on(Trade)
    def trade(self, trade: Trade) -> None:
        if self.first_ns == 0:
            self.first_ns = trade.time_ns
        self.last_ns = trade.time_ns
        self.volume += trade.size

    @on.stop
    def stopped(self) -> None:
        seconds = (self.last_ns - self.first_ns) / NS_PER_SECOND
        rate = self.volume / seconds if seconds > 0.0 else 0.0
        self.out.publish(Signal(symbol=b"SUMMARY", cause=self.volume, value=rate))


class RiskLimits(Handler):
    """Stops the thread at a soft limit, and fails at a hard one."""

    soft: i64 = 40_000_000_000
    hard: i64 = 4_000_000_000_000_000
    exposure: i64
    active: bool_ = True
    breaches: Counter

    @on(Trade)
    def trade(self, trade: Trade) -> None:
        if not self.active:
            return
        self.exposure += trade.price * (trade.size % 1_000)
        if self.exposure > self.hard:
            self.log.error("exposure {} over {}", self.exposure, self.hard)
            self.fail("the hard limit was passed")
        if self.exposure > self.soft:
            self.breaches.add(1)
            self.stop()

    @on.command(SetLimit)
    def set_limit(self, command: SetLimit) -> None:
        self.active = command.active
        if command.limit > 0:
            self.soft = command.limit


class QuoteAge(Handler):
    """How old messages are when they are handled: mixed int and float arithmetic."""

    total_us: f64
    count: u64
    oldest_ms: i32
    negative: Counter

    @on(Trade)
    def trade(self, trade: Trade) -> None:
        age_ns = self.now_ns - trade.time_ns
        if age_ns < 0:
            self.negative.add(1)
            age_ns = 0
        self.total_us += age_ns / 1_000
        self.count += 1
        self.oldest_ms = max(self.oldest_ms, int(min(age_ns / 1e6, 2e9)))

    @on(QuoteUpdate)
    def quote(self, quote: QuoteUpdate) -> None:
        if quote.time_ns / 1e9 > math.floor(self.total_us) + 0.5:
            self.count += round(quote.bid_price / (quote.ask_price or 1)) & 7


class Resampler(Handler):
    """Bars of one second and one symbol, with an array in the message."""

    symbol: char8 = b"ZXIET"
    start_ns: i64
    prices: Annotated[Any, Array(i64, 4)]
    volume: u64
    count: u32
    bars: Output

    @on(Trade)
    def trade(self, trade: Trade) -> None:
        if trade.symbol != self.symbol:
            return
        start = trade.time_ns - trade.time_ns % NS_PER_SECOND
        if start != self.start_ns:
            if self.count:
                self.emit()
            self.start_ns = start
            self.prices = (trade.price, trade.price, trade.price, trade.price)
            self.volume = self.count = 0
        self.prices[1] = max(self.prices[1], trade.price)
        self.prices[2] = min(self.prices[2], trade.price)
        self.prices[-1] = trade.price
        self.volume += trade.size
        self.count += 1

    def emit(self) -> None:
        self.bars.publish(
            Bar(
                symbol=self.symbol,
                start_ns=self.start_ns,
                prices=self.prices,
                volume=self.volume,
                count=self.count,
            )
        )

    @on.stop
    def last(self) -> None:
        if self.count:
            self.emit()


class Checksum(Handler):
    """A running hash of everything, in 32 bits, with the mask that makes both ways agree."""

    MASK = 0xFFFF_FFFF
    value: u32 = 2_166_136_261
    rounds: u64

    @on(Trade)
    def trade(self, trade: Trade) -> None:
        self.feed(trade.price)
        self.feed(trade.size ^ (trade.flags << 24))
        self.feed(symbol_key(trade.symbol))

    @on(SellLevel)
    def sell(self, level: SellLevel) -> None:
        self.feed(~level.price | 1)

    def feed(self, word: int) -> None:
        for shift in (0, 16, 32, 48):
            self.value = ((self.value ^ ((word >> shift) & 0xFFFF)) * 16_777_619) & self.MASK
        self.rounds += 1


class LastTrades(Handler):
    """Keeps whole messages in a table, and publishes one again."""

    trades: Annotated[Any, Table(Trade, 8)]
    next: u8
    out: Output

    @on(Trade)
    def trade(self, trade: Trade) -> None:
        self.trades[self.next] = trade
        self.next = (self.next + 1) % 8
        oldest = self.trades[self.next]
        if oldest.price > trade.price:
            oldest.flags |= 1
            self.out.publish(oldest)


class PairSpread(Handler):
    """The difference of two symbols, with constants from the module."""

    last: Annotated[Cells[int], Array(i64, 2)]
    high: i64
    low: i64
    out: Output

    @on(Trade)
    def trade(self, trade: Trade, info: Info) -> None:
        if trade.symbol == PAIR_FIRST:
            self.last[0] = trade.price
        elif trade.symbol == PAIR_SECOND:
            self.last[1] = trade.price
        else:
            return
        if self.last[0] == 0 or self.last[1] == 0:
            return
        spread = self.last[0] - self.last[1]
        self.high, self.low = max(self.high, spread), min(self.low, spread)
        for i, limit in enumerate(PAIR_LIMITS):
            if spread > limit:
                self.out.publish(
                    Signal(symbol=b"PAIR", cause=info.seq, value=float(spread), kind=i)
                )


PAIR_FIRST: Final = b"ZXIET"
PAIR_SECOND: Final = b"ZIEXT"
PAIR_LIMITS: Final = (-1_000_000, 0, 500)


HANDLERS: Final[tuple[type[Handler], ...]] = (
    Ewma,
    RingWindow,
    OrderBook,
    SymbolTable,
    Vwap,
    TopOfBook,
    SpreadStatistics,
    TokenBucket,
    PositionKeeper,
    Bracket,
    GapTracker,
    Session,
    Histogram,
    MinMaxDeque,
    TrailingStop,
    Imbalance,
    CrossDetector,
    Momentum,
    FanOut,
    Volatility,
    RateCounter,
    Summary,
    RiskLimits,
    QuoteAge,
    Resampler,
    Checksum,
    LastTrades,
    PairSpread,
)
