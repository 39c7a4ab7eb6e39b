"""The strategy's handler, uncompiled: its rule, and what it does when things go away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import chronicle
import pytest
from chronicle.bus import Connected, Lost
from chronicle.feeds.books import SnapshotBegin, SnapshotEnd, SnapshotLevel
from chronicle.feeds.iex import BuyLevel, QuoteUpdate, SellLevel
from chronicle.hot import Info
from orders import BUY, SELL, Cancel, Kind, Order, Reason, Report
from strategy import (
    FEED,
    MS,
    ORDERS,
    TRADING,
    WAITING,
    FeedFound,
    FeedLost,
    GatewayDown,
    GatewayUp,
    Leave,
    Risk,
    Strategy,
    Surroundings,
)

from tests.orders_support import changed, made

NOW = 1_000_000_000_000
MAIN = 1
RISK = Risk(
    trading=True,
    ratio=2.0,
    quantity=10,
    position_max=1_000,
    open_orders_max=ORDERS,
    pause_ms=0,
    life_ms=100_000,
    stale_ms=50,
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.getLogger("chronicle.hot.Strategy").setLevel(logging.ERROR)
    yield
    logging.getLogger("chronicle.hot.Strategy").setLevel(logging.NOTSET)


class Desk:
    """A strategy with a gateway and a feed, and a clock."""

    def __init__(self, risk: Risk = RISK) -> None:
        self.strategy = Strategy(symbol=b"ZXIET", session=77)
        self.now_ns = NOW
        self.seq = 0
        self.told = 0
        self.at(0)
        for command in (risk, GatewayUp(name=b"main", index=0), FeedFound()):
            self.command(command)

    def at(self, passed_ns: int) -> None:
        self.now_ns += passed_ns
        self.strategy.set_clock(self.now_ns)

    def command(self, command: Any) -> None:
        assert self.strategy.receive(command, kind="command")

    def quote(self, bid_size: int, ask_size: int, *, age_ns: int = 0, **fields: Any) -> None:
        self.seq += 1
        values: dict[str, Any] = {"symbol": b"ZXIET", "bid_price": 100, "ask_price": 101} | fields
        quote = made(QuoteUpdate, bid_size=bid_size, ask_size=ask_size, **values)
        info = Info(seq=self.seq, timestamp_ns=self.now_ns - age_ns, tag=FEED)
        assert self.strategy.receive(quote, info)

    def tell(self, kind: Kind, order_id: int, *, seq: int | None = None, **fields: Any) -> None:
        self.told = self.told + 1 if seq is None else seq
        values: dict[str, Any] = {"session": 77, "side": BUY} | fields
        report = made(Report, kind=kind, order_id=order_id, **values)
        assert self.strategy.receive(report, Info(seq=self.told, tag=MAIN))

    def take(self) -> list[Any]:
        """What it has published since the last time."""
        found = list(self.strategy.out.published)
        self.strategy.out.published.clear()
        return found


def ids(messages: list[Any], cls: type[Order | Cancel]) -> list[int]:
    return [message.order_id for message in messages if isinstance(message, cls)]


def test_the_smaller_side_is_taken():
    desk = Desk()
    desk.quote(500, 200)
    desk.quote(200, 500)
    desk.quote(300, 200)
    first, second = desk.take()
    assert (first.side, first.price, first.quantity, first.cause) == (BUY, 101, 10, 1)
    assert (second.side, second.price, second.gateway, second.cause) == (SELL, 100, b"main", 2)
    assert ids([first, second], Order) == [1, 2]


def test_nothing_is_sent_for_other_symbols_old_news_or_without_a_gateway():
    desk = Desk()
    desk.quote(500, 200, symbol=b"OTHER")
    desk.quote(500, 200, age_ns=60 * MS)
    desk.command(GatewayDown(index=0))
    desk.quote(500, 200)
    assert desk.take() == []
    desk.command(GatewayUp(name=b"main", index=0))
    desk.quote(500, 200)
    assert ids(desk.take(), Order) == [1]


def test_each_signal_without_an_order_is_counted_under_its_reason():
    desk = Desk(changed(RISK, position_max=45, open_orders_max=3, pause_ms=5))
    desk.quote(200, 200)
    desk.quote(500, 200, symbol=b"OTHER")
    counted: dict[str, int] = {"sent": 0}

    def signal(reason: str, **more: Any) -> None:
        desk.quote(500, 200, **more)
        counted[reason] = counted.get(reason, 0) + 1
        names = Strategy.SPEC.counters
        counters = {name: getattr(desk.strategy, name).value for name in names}
        assert {name: counters[name] for name in counted} == counted
        held = sum(count for name, count in counters.items() if name.startswith("held_"))
        assert counters["signals"] == counters["sent"] + held == counters["looks"] - 1

    signal("sent")
    signal("held_pause")
    desk.at(5 * MS)
    signal("held_old", age_ns=60 * MS)
    desk.command(GatewayDown(index=0))
    signal("held_gateway")
    desk.command(GatewayUp(name=b"main", index=0))
    for _ in range(2):
        signal("sent")
        desk.at(5 * MS)
    signal("held_open")
    desk.command(changed(RISK, position_max=35))
    signal("held_position")
    desk.command(changed(RISK, trading=False))
    signal("held_waiting")
    desk.command(changed(RISK, position_max=100))
    signal("sent")
    desk.command(FeedLost())
    signal("held_waiting")


def test_limits_hold():
    desk = Desk(changed(RISK, position_max=25, pause_ms=1))
    for _ in range(4):
        desk.quote(500, 200)
        desk.at(MS)
    assert ids(desk.take(), Order) == [1, 2]
    desk.command(changed(RISK, open_orders_max=3))
    for _ in range(4):
        desk.quote(500, 200)
    assert ids(desk.take(), Order) == [3]
    desk.command(changed(RISK, trading=False))
    assert ids(desk.take(), Cancel) == [1, 2, 3]
    desk.quote(500, 200)
    assert desk.take() == []


def test_the_pause_between_orders_holds():
    desk = Desk(changed(RISK, pause_ms=5))
    for _ in range(10):
        desk.quote(500, 200)
        desk.at(MS)
    assert ids(desk.take(), Order) == [1, 2]


def test_fills_make_the_position_and_the_end_frees_the_row():
    desk = Desk()
    desk.quote(500, 200)
    desk.quote(200, 500)
    desk.tell(Kind.ACK, 1, remaining=10)
    desk.tell(Kind.FILL, 1, quantity=4, remaining=6)
    desk.tell(Kind.FILL, 2, quantity=10, remaining=0, closed=1, side=SELL)
    assert (desk.strategy.position, desk.strategy.open_orders) == (-6, 1)
    assert desk.strategy.orders[1].remaining == 6
    desk.tell(Kind.FILL, 1, quantity=6, remaining=0, closed=1, seq=3)
    assert (desk.strategy.position, desk.strategy.repeated.value) == (-6, 1)


def test_a_report_of_another_session_or_from_the_feed_is_not_believed():
    desk = Desk()
    desk.quote(500, 200)
    desk.tell(Kind.FILL, 1, quantity=4, session=78)
    report = made(Report, kind=Kind.FILL, order_id=1, quantity=4, session=77)
    desk.strategy.receive(report, Info(seq=9, tag=FEED))
    assert (desk.strategy.position, desk.strategy.strangers.value) == (0, 1)
    desk.strategy.receive(made(Order, order_id=50), Info(seq=9, tag=FEED))
    desk.strategy.receive(made(Cancel, order_id=1), Info(seq=9, tag=FEED))
    assert (desk.strategy.order_id, desk.strategy.strangers.value) == (1, 3)


def test_a_lost_feed_cancels_everything_in_the_same_call_and_trading_waits():
    desk = Desk()
    for _ in range(3):
        desk.quote(500, 200)
    desk.tell(Kind.REJECT, 2, closed=1)
    desk.take()
    desk.command(FeedLost())
    assert ids(desk.take(), Cancel) == [1, 3]
    assert desk.strategy.phase == WAITING
    desk.quote(500, 200)
    desk.command(FeedLost())
    assert desk.take() == []


def test_a_feed_that_is_silent_is_lost_by_the_strategys_own_clock():
    desk = Desk()
    desk.quote(500, 200)
    desk.take()
    desk.at(50 * MS)
    desk.strategy.look_at_clock()
    assert desk.take() == []
    desk.at(1)
    desk.strategy.look_at_clock()
    assert ids(desk.take(), Cancel) == [1]
    assert desk.strategy.feeds_lost.value == 1


def test_the_first_message_after_a_silence_tells_it_as_well():
    desk = Desk()
    desk.quote(500, 200)
    desk.take()
    desk.at(60 * MS)
    desk.quote(500, 200)
    found = desk.take()
    assert ids(found, Cancel) == [1]
    # And what has come is news again.
    assert ids(found, Order) == [2]


def test_a_feed_that_is_back_is_traded_on_with_a_new_book():
    desk = Desk()
    desk.quote(500, 200)
    desk.command(FeedLost())
    desk.tell(Kind.CANCELLED, 1, closed=1)
    desk.take()
    desk.command(FeedFound())
    slot = desk.strategy.find(b"ZXIET")
    assert slot < 0
    desk.quote(200, 500)
    assert desk.strategy.phase == TRADING
    assert ids(desk.take(), Order) == [2]


def test_what_was_open_at_a_gateway_is_cancelled_when_it_is_back():
    desk = Desk()
    desk.quote(500, 200)
    desk.quote(500, 200)
    desk.take()
    desk.command(GatewayDown(index=0))
    desk.command(FeedLost())
    assert desk.take() == []
    desk.command(GatewayUp(name=b"main", index=0))
    assert ids(desk.take(), Cancel) == [1, 2]
    desk.command(GatewayUp(name=b"main", index=0))
    assert desk.take() == []


def test_another_gateway_takes_over():
    desk = Desk()
    desk.command(GatewayUp(name=b"spare", index=1))
    desk.command(GatewayDown(index=0))
    desk.quote(500, 200)
    (order,) = desk.take()
    assert order.gateway == b"spare"


def test_orders_that_are_too_old_are_taken_back():
    desk = Desk(changed(RISK, life_ms=20))
    desk.quote(500, 200)
    desk.at(20 * MS)
    desk.strategy.look_at_clock()
    assert ids(desk.take(), Cancel) == []
    desk.at(1)
    desk.strategy.look_at_clock()
    assert ids(desk.take(), Cancel) == [1]


def test_a_cancel_that_was_refused_may_be_sent_again_unless_the_order_has_ended():
    desk = Desk()
    desk.quote(500, 200)
    desk.quote(500, 200)
    desk.command(FeedLost())
    desk.take()
    desk.tell(Kind.CANCEL_REJECT, 1, reason=Reason.RATE)
    desk.tell(Kind.CANCEL_REJECT, 2, reason=Reason.NOT_OPEN)
    assert desk.strategy.open_orders == 1
    desk.command(Leave())
    assert ids(desk.take(), Cancel) == [1]


def test_who_leaves_cancels_and_sends_nothing_more():
    desk = Desk()
    desk.quote(500, 200)
    desk.take()
    desk.command(Leave())
    assert ids(desk.take(), Cancel) == [1]
    desk.command(FeedFound())
    desk.quote(500, 200)
    assert desk.take() == []


def test_an_order_waits_for_its_row():
    desk = Desk(changed(RISK, position_max=10_000))
    for _ in range(ORDERS):
        desk.quote(500, 200)
    for order_id in range(2, ORDERS + 1):
        desk.tell(Kind.REJECT, order_id, closed=1)
    desk.take()
    # Row 1 still holds order 1; order 65 would need it.
    desk.quote(500, 200)
    assert desk.take() == []
    desk.tell(Kind.REJECT, 1, closed=1)
    desk.quote(500, 200)
    assert ids(desk.take(), Order) == [ORDERS + 1]


def test_a_late_joiner_waits_for_the_snapshot_and_puts_what_came_live_on_top():
    desk = Desk()

    def live(message: Any) -> None:
        desk.seq += 1
        info = Info(seq=desk.seq, timestamp_ns=desk.now_ns, tag=FEED)
        assert desk.strategy.receive(message, info)

    def snapshot(message: Any) -> None:
        assert desk.strategy.receive(message, Info(seq=1, timestamp_ns=desk.now_ns, tag=FEED))

    desk.seq = 1_000
    live(made(BuyLevel, symbol=b"ZXIET", price=100, size=500))
    live(made(SellLevel, symbol=b"ZXIET", price=101, size=100))
    # Only a part of the book is known: nobody trades on that.
    assert desk.take() == []
    snapshot(made(SnapshotBegin, symbol=b"ZXIET", live_seq=1_001, levels=2))
    snapshot(made(SnapshotLevel, symbol=b"ZXIET", price=100, size=500, side=1))
    snapshot(made(SnapshotLevel, symbol=b"ZXIET", price=102, size=900, side=0))
    assert desk.take() == []
    snapshot(made(SnapshotEnd, symbol=b"ZXIET", live_seq=1_001))
    # Message 1,002 came behind the snapshot: the best price to sell is 101, not 102.
    (order,) = desk.take()
    assert (order.side, order.price) == (BUY, 101)
    desk.command(FeedLost())
    desk.take()
    desk.command(FeedFound())
    live(made(BuyLevel, symbol=b"ZXIET", price=100, size=800))
    assert desk.take() == []


# --- The cold half --------------------------------------------------------------------------------


class FullOnce:
    """A hot thread that has no room for one command, and notes the others."""

    def __init__(self, refused: type[Any]) -> None:
        self.refused: type[Any] | None = refused
        self.got: list[Any] = []

    def send(self, command: Any) -> None:
        if self.refused is not None and isinstance(command, self.refused) and self.got:
            self.refused = None
            raise chronicle.ChannelFull("no room")
        self.got.append(command)


class Observed:
    """A bus on which one thing is seen, each time that somebody begins to observe."""

    def __init__(self, *times: list[Any]) -> None:
        self.times = list(times)

    def observe(self, _endpoint: str, _queue: str) -> Observed:
        return self

    async def events(self) -> AsyncIterator[Any]:
        for event in self.times.pop(0):
            yield event


@pytest.mark.parametrize(
    ("watch", "up", "down"),
    [("watch_gateway", GatewayUp, GatewayDown), ("watch_feed", FeedFound, FeedLost)],
)
def test_a_loss_for_which_there_was_no_room_is_told_when_its_service_begins_again(
    watch: str, up: type[Any], down: type[Any]
):
    hot: Any = FullOnce(down)
    bus: Any = Observed([Connected("somewhere", 1), Lost("somewhere", "lock free")], [])
    sidecar: Any = None
    around = Surroundings(sidecar, bus, "alpha")
    around.hot = hot
    with pytest.raises(chronicle.ChannelFull):
        asyncio.run(getattr(around, watch)("main"))
    assert [type(command) for command in hot.got] == [down, up]
    # The observer of the next try says nothing as long as there is nothing.
    asyncio.run(getattr(around, watch)("main"))
    assert [type(command) for command in hot.got] == [down, up, down]
