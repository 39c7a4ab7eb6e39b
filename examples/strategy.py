"""A strategy: watches one symbol's book, sends orders, and knows what to do when things go away.

    python examples/strategy.py BUS alpha --symbol ZXIET --venue iex --risk risk.toml

Its rule: where one side of the book is much larger than the other, it takes the smaller one. The
rest of this file is what a strategy needs around its rule:

- *Feed*: lost (its process died, or nothing came for a while): cancel everything in that very call,
  and wait. Back: forget the book, get it again from snapshot and live, and go on.
- *Gateways* come and go. Orders go to one that is there; what was open at one that was away is
  cancelled when it is back.
- *Limits* come as one command from `risk.toml`, whenever the file changes.
- *Killed*: the next life reads its own orders and what it was told about them, so that it knows its
  position, what is open, and the next order id; then it cancels what is open, and goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import threading
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import chronicle
from chronicle import HotThread, Queue, QueueWriter, Sidecar, inspect
from chronicle.bus import Bus, Connected, Lost, Reconnected
from chronicle.feeds.books import Books
from chronicle.hot import WAITS, Counter, CountersFile, Info, Output, Table, choose_wait
from chronicle.hot.rebuild import Past, rebuild
from chronicle.message import MessageBase, bool_, char8, f64, i64, u8, u32
from chronicle.sidecar import Admission, Service
from chronicle.sidecar.discovery import Change, Ready
from orders import BUY, SELL, Cancel, Kind, Order, Reason, Report, session_of

#: Orders that may be open at a time: order n has row n % ORDERS.
ORDERS = 64
GATEWAYS = 8
MS = 1_000_000

#: The tag of the feed; the tag of a gateway is its row + 1.
FEED = 0

#: Phases: reading its own past; waiting for the feed or the book; trading; on its way out.
PAST, WAITING, TRADING, LEAVING = 0, 1, 2, 3


@chronicle.message(130)
class OpenOrder(MessageBase):
    """A row: an order that may still be open. `order_id` 0 is an empty row."""

    order_id: i64
    remaining: i64
    sent_ns: i64
    gateway: u32
    side: u8
    cancelling: u8


@chronicle.message(131)
class Gateway(MessageBase):
    """A row: a gateway, and the last report of it that was taken in."""

    name: char8
    seen: i64
    is_up: u8


@chronicle.message(132)
class GatewayUp(MessageBase):
    """Command: this gateway is there."""

    name: char8
    index: u32


@chronicle.message(133)
class GatewayDown(MessageBase):
    """Command: this gateway is gone, or does not answer."""

    index: u32


@chronicle.message(134)
class FeedFound(MessageBase):
    """Command: the feed is there; the books begin anew."""


@chronicle.message(135)
class FeedLost(MessageBase):
    """Command: the feed is gone, or does not answer."""


@chronicle.message(136)
class Leave(MessageBase):
    """Command: cancel everything and send nothing more."""


@chronicle.message(137)
class Risk(MessageBase):
    """Command: the limits; the keys of `risk.toml`."""

    trading: bool_
    #: How much larger one side must be.
    ratio: f64
    quantity: i64
    position_max: i64
    open_orders_max: i64
    #: Pause between two orders, longest life of an order, and age at which the feed counts as lost.
    pause_ms: i64
    life_ms: i64
    stale_ms: i64


class Strategy(Books):
    """The hot half. What is in its state, its own queue and its reports can say again."""

    symbol: char8
    session: i64
    phase: u8
    is_fed: bool_
    feed_ns: i64
    orders: Annotated[Any, Table(OpenOrder, ORDERS)]
    gateways: Annotated[Any, Table(Gateway, GATEWAYS)]
    order_id: i64
    open_orders: i64
    position: i64
    sent_ns: i64
    trading: bool_
    ratio: f64 = 3.0
    quantity: i64 = 10
    position_max: i64 = 1_000
    open_orders_max: i64 = 32
    pause_ns: i64 = 10 * MS
    life_ns: i64 = 500 * MS
    stale_ns: i64 = 1_000 * MS
    out: Output
    #: Changes of the symbol's book; those at which the rule wants an order; those with one.
    looks: Counter
    signals: Counter
    sent: Counter
    #: Why the others went without: `signals` is the sum of these and `sent`.
    held_waiting: Counter
    held_old: Counter
    held_pause: Counter
    held_gateway: Counter
    held_open: Counter
    held_position: Counter
    cancels: Counter
    fills: Counter
    refused: Counter
    feeds_lost: Counter
    repeated: Counter
    #: Messages in a queue where they have no business.
    strangers: Counter

    # --- The rule ---------------------------------------------------------------------------------

    def changed(self, slot: int, info: Info) -> None:
        """Look whether to trade: the book of a symbol has changed."""
        if self.symbols[slot].symbol != self.symbol:
            return
        self.looks.add(1)
        if self.phase == WAITING and self.is_fed and self.is_fresh(info):
            self.phase = TRADING
        bid_size = self.best_bid_size(slot)
        ask_size = self.best_ask_size(slot)
        if bid_size > self.ratio * ask_size and ask_size > 0:
            self.want(BUY, self.best_ask(slot), info)
        elif ask_size > self.ratio * bid_size and bid_size > 0:
            self.want(SELL, self.best_bid(slot), info)

    def want(self, side: int, price: int, info: Info) -> None:
        """Send an order, or count what it is that holds it back."""
        self.signals.add(1)
        signed = self.quantity if side == BUY else -self.quantity
        row = self.orders[(self.order_id + 1) % ORDERS]
        gateway = self.choose_gateway()
        if self.phase != TRADING or not self.trading:
            self.held_waiting.add(1)
        elif not self.is_fresh(info):
            self.held_old.add(1)
        elif self.now_ns - self.sent_ns < self.pause_ns:
            self.held_pause.add(1)
        elif gateway < 0:
            self.held_gateway.add(1)
        elif row.order_id != 0 or self.open_orders >= self.open_orders_max:
            self.held_open.add(1)
        elif abs(self.position + self.on_its_way(side) + signed) > self.position_max:
            self.held_position.add(1)
        else:
            self.send(side, price, info.seq, gateway)

    def is_fresh(self, info: Info) -> bool:
        """Whether a message is of now. After a pause there may be a backlog: that is history."""
        return self.now_ns - info.timestamp_ns < self.stale_ns

    def send(self, side: int, price: int, cause: int, gateway: int) -> None:
        self.out.publish(
            Order(
                order_id=self.order_id + 1,
                cause=cause,
                price=price,
                quantity=self.quantity,
                symbol=self.symbol,
                gateway=self.gateways[gateway].name,
                side=side,
            )
        )
        self.sent.add(1)
        self.note_order(self.order_id + 1, self.quantity, gateway, side, self.now_ns)

    def on_its_way(self, side: int) -> int:
        """Return what the position would change by if all open orders of a side were filled."""
        total = 0
        for i in range(ORDERS):
            if self.orders[i].order_id != 0 and self.orders[i].side == side:
                total += self.orders[i].remaining
        return total if side == BUY else -total

    # --- Orders -----------------------------------------------------------------------------------

    def note_order(
        self, order_id: int, quantity: int, gateway: int, side: int, sent_ns: int
    ) -> None:
        row = self.orders[order_id % ORDERS]
        if row.order_id == 0:
            self.open_orders += 1
        row.order_id = order_id
        row.remaining = quantity
        row.sent_ns = sent_ns
        row.gateway = gateway
        row.side = side
        row.cancelling = 0
        self.order_id = max(self.order_id, order_id)
        self.sent_ns = sent_ns

    def cancel_all(self) -> None:
        for i in range(ORDERS):
            self.cancel(i)

    def cancel(self, place: int) -> None:
        """Ask for an order back, once, if its gateway is there."""
        row = self.orders[place]
        if row.order_id == 0 or row.cancelling or not self.gateways[row.gateway].is_up:
            return
        row.cancelling = 1
        gateway = self.gateways[row.gateway].name
        self.out.publish(Cancel(order_id=row.order_id, gateway=gateway))
        self.cancels.add(1)

    @chronicle.on(Report)
    def report(self, r: Report, info: Info) -> None:
        """Take in what a gateway says; the next life reads it again."""
        if info.tag == FEED:
            self.strangers.add(1)
            return
        gateway = self.gateways[info.tag - 1]
        if info.seq <= gateway.seen or r.session != self.session:
            self.repeated.add(1)
            return
        gateway.seen = info.seq
        if r.kind == Kind.FILL:
            self.fills.add(1)
            self.position += r.quantity if r.side == BUY else -r.quantity
        if r.kind == Kind.REJECT:
            self.refused.add(1)
        row = self.orders[r.order_id % ORDERS]
        if row.order_id != r.order_id:
            return
        if r.kind == Kind.FILL:
            row.remaining = r.remaining
        # A cancel that comes too late says so: the order is at its end either way.
        if r.closed or (r.kind == Kind.CANCEL_REJECT and r.reason == Reason.NOT_OPEN):
            row.order_id = 0
            self.open_orders -= 1
        elif r.kind == Kind.CANCEL_REJECT:
            row.cancelling = 0

    # --- Its own past -----------------------------------------------------------------------------

    @chronicle.on(Order)
    def remember_order(self, o: Order, info: Info) -> None:
        if self.phase != PAST:
            self.strangers.add(1)
            return
        gateway = self.find_gateway(o.gateway)
        if gateway < 0:
            self.order_id = max(self.order_id, o.order_id)
        else:
            self.note_order(o.order_id, o.quantity, gateway, o.side, info.timestamp_ns)

    @chronicle.on(Cancel)
    def remember_cancel(self, c: Cancel) -> None:
        if self.phase != PAST:
            self.strangers.add(1)
            return
        row = self.orders[c.order_id % ORDERS]
        if row.order_id == c.order_id:
            row.cancelling = 1

    # --- What comes and goes ----------------------------------------------------------------------

    def choose_gateway(self) -> int:
        for i in range(GATEWAYS):
            if self.gateways[i].is_up:
                return i
        return -1

    def find_gateway(self, name: bytes) -> int:
        for i in range(GATEWAYS):
            if self.gateways[i].name == name:
                return i
        return -1

    @chronicle.on.command(GatewayUp)
    def gateway_up(self, command: GatewayUp) -> None:
        gateway = self.gateways[command.index]
        gateway.name = command.name
        gateway.is_up = 1
        # Nobody knows what became of them meanwhile.
        for i in range(ORDERS):
            if self.orders[i].gateway == command.index:
                self.cancel(i)

    @chronicle.on.command(GatewayDown)
    def gateway_down(self, command: GatewayDown) -> None:
        self.gateways[command.index].is_up = 0

    @chronicle.on.command(FeedFound)
    def feed_found(self, _command: FeedFound) -> None:
        self.forget()
        # What comes next is the first that the new books see; snapshots say what was before.
        self.from_beginning = False
        self.live_from = 0
        self.is_fed = True
        self.feed_ns = self.now_ns
        if self.phase == PAST:
            self.phase = WAITING

    @chronicle.on.command(FeedLost)
    def feed_lost(self, _command: FeedLost) -> None:
        self.is_fed = False
        self.lose_feed()

    def lose_feed(self) -> None:
        """Take back what is out there, at once: nobody knows what the market does."""
        if self.phase == TRADING:
            self.phase = WAITING
            self.feeds_lost.add(1)
            self.log.warning("feed lost, {} orders are cancelled", self.open_orders)
        if self.phase != PAST:
            self.cancel_all()

    def note_live(self, seq: int) -> None:
        """Note that something of the feed has come, and look how long nothing had."""
        self.look_at_clock()
        self.feed_ns = self.now_ns
        if self.live_from == 0:
            self.live_from = seq
        self.seen_seq = seq

    @chronicle.on.idle
    def look_at_clock(self) -> None:
        if self.phase == TRADING:
            if self.now_ns - self.feed_ns > self.stale_ns:
                self.lose_feed()
            else:
                self.take_back_old()

    def take_back_old(self) -> None:
        for i in range(ORDERS):
            row = self.orders[i]
            if row.order_id != 0 and self.now_ns - row.sent_ns > self.life_ns:
                self.cancel(i)

    @chronicle.on.command(Risk)
    def risk(self, risk: Risk) -> None:
        if self.trading and not risk.trading:
            self.cancel_all()
        self.trading = risk.trading
        self.ratio = risk.ratio
        self.quantity = risk.quantity
        self.position_max = risk.position_max
        self.open_orders_max = risk.open_orders_max
        self.pause_ns = risk.pause_ms * MS
        self.life_ns = risk.life_ms * MS
        self.stale_ns = risk.stale_ms * MS

    @chronicle.on.command(Leave)
    def leave(self, _command: Leave) -> None:
        self.phase = LEAVING
        self.cancel_all()


#: What a settings file may say.
RANGES = {
    "ratio": (1.0, 1_000.0),
    "quantity": (1, 1_000_000),
    "position_max": (0, 1_000_000_000),
    "open_orders_max": (0, ORDERS),
    "pause_ms": (0, 3_600_000),
    "life_ms": (1, 3_600_000),
    "stale_ms": (1, 3_600_000),
}


# --- The cold half: on the sidecar ---------------------------------------------------------------


class Surroundings:
    """What is around the hot thread: its gateways and its feed, as they come and go."""

    def __init__(self, sidecar: Sidecar, bus: Bus, name: str) -> None:
        self.sidecar = sidecar
        self.bus = bus
        self.name = name
        self.watched: set[str] = set()
        self.rows: dict[str, int] = {}
        self.seen: dict[int, int] = {}
        self.hot: HotThread | None = None
        self._lock = threading.Lock()

    def row(self, gateway: str) -> int:
        with self._lock:
            return self.rows.setdefault(gateway, len(self.rows))

    def rebuild(self, strategy: Strategy, out: QueueWriter) -> Any:
        """Read what earlier lives have sent, and what they were told; return the state then."""
        past = [Past(out.path)]
        for path in sorted((self.bus.path / "orders" / self.name / "in").glob("*/control")):
            row = self.row(path.parent.name)
            strategy.gateways[row].name = path.parent.name.encode()
            past.append(Past(path.parent, row + 1))
        state = rebuild(strategy, past)
        self.seen = {row: int(state["gateways"][row]["seen"]) for row in self.rows.values()}
        return state

    def send(self, command: Any) -> None:
        assert self.hot is not None
        # No room is an error: the service begins again, and tells from the beginning how it is.
        self.hot.send(command)

    def admit_reports(self, path: str) -> Admission:
        """Read the reports of a gateway: behind what was read again, then as they come."""
        row = self.row(Path(path).name)
        return Admission(start=self.seen.pop(row, 0) + 1, tag=row + 1)

    def on_gateway(self, change: Change) -> None:
        """Keep an eye on each gateway that comes up."""
        match change:
            case Ready(path) if (name := Path(path).parent.name) not in self.watched:
                self.watched.add(name)
                watch = partial(self.watch_gateway, name)
                self.sidecar.add_service(Service(f"gateway {name}", watch))

    async def watch_gateway(self, name: str) -> None:
        """Tell the hot thread whether a gateway is there, and works."""
        row = self.row(name)
        # Not there until it is seen: an earlier try may have told otherwise, and not its loss.
        self.send(GatewayDown(index=row))
        async for event in self.bus.observe(f"gateways/{name}", "exchange").events():
            match event:
                case Connected() | Reconnected():
                    self.send(GatewayUp(name=name.encode(), index=row))
                case Lost(reason=reason):
                    logging.warning("gateway %s is lost: %s", name, reason)
                    self.send(GatewayDown(index=row))

    async def watch_feed(self, venue: str) -> None:
        """Tell the hot thread whether the feed is there, and works."""
        self.send(FeedLost())
        async for event in self.bus.observe(f"streams/{venue}", "live").events():
            match event:
                case Connected() | Reconnected():
                    self.send(FeedFound())
                case Lost(reason=reason):
                    logging.warning("feed %s is lost: %s", venue, reason)
                    self.send(FeedLost())


def main() -> None:
    """Run until SIGTERM or Ctrl-C; then cancel what is open, and go."""
    parser = argparse.ArgumentParser(description="Trade one symbol by a simple rule.")
    parser.add_argument("bus", type=Path)
    parser.add_argument("name")
    parser.add_argument("--symbol", default="ZXIET")
    parser.add_argument("--venue", default="iex")
    parser.add_argument("--risk", type=Path, required=True, help="a TOML file: the fields of Risk")
    parser.add_argument("--leave-s", type=float, default=5.0, help="longest wait for cancels")
    parser.add_argument("--core", type=int)
    parser.add_argument("--wait", default="auto", choices=WAITS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format=f"{options.name}: %(message)s")
    bus = Bus(options.bus)
    sidecar = Sidecar()
    endpoint = bus.open_endpoint(f"orders/{options.name}")
    sidecar.serve_endpoint(endpoint)
    counters = CountersFile.create(endpoint.path / "COUNTERS")
    sidecar.publish_counters(counters)
    out = Queue.open_publisher(
        endpoint.path / "out",
        schema=[Order, Cancel],
        segment_bytes=1 << 20,
        provisioner=sidecar.provisioner,
    )
    sidecar.close_at_stop(out.close)
    around = Surroundings(sidecar, bus, options.name)
    session = session_of(inspect(out.path)["queue_id"])
    strategy = Strategy(symbol=options.symbol.encode(), session=session)
    state = around.rebuild(strategy, out)
    around.hot = hot = HotThread(
        strategy,
        state=state,
        outputs={"out": out},
        name=options.name,
        core=options.core,
        wait=choose_wait(options.wait),
        guard="enforce",
        counters_file=counters,
        provisioner=sidecar.provisioner,
    )
    # Without it nothing is left to do. Whoever supervises us starts us.
    sidecar.attach(hot, stop_on_failure=True)
    sidecar.settings(options.risk, Risk, hot, ranges=RANGES)
    reports = endpoint.path / "in" / "*"
    sidecar.discover(reports, hot, name=options.name, admit=around.admit_reports)
    sidecar.watch(bus.path / "gateways" / "*" / "exchange", around.on_gateway)
    # Joined at its end: what was before is in the snapshots.
    venue = bus.path / "streams" / options.venue
    sidecar.discover(venue / "live", hot, name=None, start="latest")
    sidecar.discover(venue / "snapshot", hot, name=None, start="latest")
    sidecar.add_service(Service("feed", partial(around.watch_feed, options.venue)))
    endpoint.ready(["out"])
    # In the first stage of the shutdown, as long as the hot thread still runs.
    goodbye = Service("leave", _nothing, finish=lambda: leave(hot, options.leave_s))
    sidecar.add_service(goodbye)
    sidecar.serve()
    if hot.failure is not None:
        raise SystemExit(f"{options.name}: {hot.failure}")


async def leave(hot: HotThread, patience_s: float) -> None:
    """Have everything cancelled, and wait for the answers."""
    hot.send(Leave())
    end_s = time.monotonic() + patience_s
    while int(hot.state["open_orders"]) > 0 and time.monotonic() < end_s:
        await asyncio.sleep(0.01)


async def _nothing() -> None:
    """Run nothing: it is there for its end."""


if __name__ == "__main__":
    main()
