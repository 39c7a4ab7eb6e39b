"""An order router: one gateway through which strategies reach an exchange.

    python examples/router.py BUS --name main --exchange sim

It reads the orders of every strategy that attaches (`orders/*/out`), checks each, passes it on or
refuses it with a reason, and tells each strategy what became of its own orders, in
`orders/<strategy>/in/<name>`.

**Exactly once.** For each order or cancel it publishes one message that names it: a `Forward` to
the exchange, or a refusal to the strategy. For each execution it publishes one report. So whoever
kills it at any instruction loses nothing: the next life reads both outputs to the end, and goes on
behind the last message that they name.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import threading
from pathlib import Path
from typing import Annotated, Any

import chronicle
from chronicle import Busy, HotThread, Queue, Sidecar, inspect
from chronicle.bus import Bus
from chronicle.hot import (
    WAITS,
    Counter,
    CountersFile,
    Info,
    Output,
    Outputs,
    Slots,
    SourceGap,
    Table,
    choose_wait,
)
from chronicle.hot.rebuild import Past, rebuild
from chronicle.hot.waits import Wait
from chronicle.message import MessageBase, char8, i64, u8, u32
from chronicle.sidecar import Admission
from chronicle.sidecar.discovery import OnChange
from chronicle.sidecar.settings import read_settings
from orders import (
    BUY,
    SELL,
    Action,
    Cancel,
    Execution,
    Forward,
    Kind,
    Order,
    Reason,
    Report,
    session_of,
)

#: How many strategies can sit at a router at a time.
SEATS = 256
#: The tag of the exchange; the tag of a strategy is its seat.
EXCHANGE = SEATS
NS_PER_S = 1_000_000_000
PRICE_MAX = 1_000_000_000_000
QUANTITY_MAX = 1_000_000


@chronicle.message(120)
class Seat(MessageBase):
    """What the router knows of one strategy. `session` 0 is an empty seat."""

    session: i64
    #: The last message of the strategy that it has handled, and the last order id.
    cause: i64
    order_id: i64
    open_orders: i64
    open_cancels: i64
    #: Of the rate limit: how much time it has saved up, and when that was.
    saved_ns: i64
    saved_at_ns: i64
    is_known: u8


@chronicle.message(121)
class Sit(MessageBase):
    """Command: a strategy takes a seat. `is_known` says whether it may trade."""

    session: i64
    seat: u32
    is_known: u8


@chronicle.message(122)
class Leave(MessageBase):
    """Command: a seat is free again."""

    seat: u32


@chronicle.message(123)
class Limits(MessageBase):
    """Command: what is let through, for each strategy; the keys of the settings file."""

    price_min: i64
    price_max: i64
    quantity_max: i64
    notional_max: i64
    open_orders_max: i64
    orders_per_s: i64
    burst: i64
    stale_ms: i64


#: What a settings file may say.
RANGES = {
    "price_min": (1, PRICE_MAX),
    "price_max": (1, PRICE_MAX),
    "quantity_max": (1, QUANTITY_MAX),
    "notional_max": (1, PRICE_MAX * QUANTITY_MAX),
    "open_orders_max": (1, 1_000_000),
    "orders_per_s": (1, 1_000_000),
    "burst": (1, 1_000_000),
    "stale_ms": (1, 3_600_000),
}


class Router(chronicle.Handler):
    """The hot half: checks, passes on, tells. `info.tag` of a strategy's message is its seat."""

    name: char8
    #: Whether it has read its own past, and reads others now.
    is_live: u8
    seats: Annotated[Any, Table(Seat, SEATS)]
    #: The last execution that a strategy was told of.
    cause: i64
    price_min: i64 = 1
    price_max: i64 = PRICE_MAX
    quantity_max: i64 = 10_000
    notional_max: i64 = PRICE_MAX
    open_orders_max: i64 = 64
    interval_ns: i64 = NS_PER_S // 10_000
    burst: i64 = 1_000
    stale_ns: i64 = NS_PER_S
    forwards: Output
    reports: Annotated[Outputs, Slots(SEATS)]
    forwarded: Counter
    rejected: Counter
    told: Counter
    #: Messages that were handled before: by an earlier life, or before their reader came again.
    repeated: Counter
    #: Orders that name another gateway.
    others: Counter
    #: Executions for a strategy that has no seat.
    orphans: Counter
    #: Messages in a queue where they have no business.
    strangers: Counter
    missed: Counter

    # --- What it has published itself: read again by the next life --------------------------------

    @chronicle.on(Forward)
    def remember_forward(self, f: Forward) -> None:
        if self.is_live:
            self.strangers.add(1)
            return
        seat = self.find(f.session, f.seat)
        if seat >= 0:
            self.note_forward(seat, f.cause, f.order_id, f.action)

    @chronicle.on(Report)
    def remember_report(self, r: Report, info: Info) -> None:
        if self.is_live:
            self.strangers.add(1)
            return
        self.cause = max(self.cause, r.cause)
        seat = self.seats[info.tag]
        if r.session != seat.session:
            return
        if r.cause == 0:
            seat.cause = max(seat.cause, r.request)
            seat.order_id = max(seat.order_id, r.order_id)
        else:
            self.note_told(info.tag, r.kind, r.closed)

    def note_forward(self, place: int, cause: int, order_id: int, action: int) -> None:
        seat = self.seats[place]
        seat.cause = max(seat.cause, cause)
        if action == Action.CANCEL:
            seat.open_cancels += 1
        else:
            seat.order_id = max(seat.order_id, order_id)
            seat.open_orders += 1

    def note_told(self, place: int, kind: int, closed: int) -> None:
        seat = self.seats[place]
        if kind in (Kind.CANCELLED, Kind.CANCEL_REJECT):
            seat.open_cancels -= 1
        if closed:
            seat.open_orders -= 1

    # --- Who is there, and what is allowed --------------------------------------------------------

    @chronicle.on.command(Sit)
    def sit(self, command: Sit) -> None:
        seat = self.seats[command.seat]
        if seat.session != command.session:
            self.clear(command.seat)
            seat.session = command.session
        seat.is_known = command.is_known

    @chronicle.on.command(Leave)
    def leave(self, command: Leave) -> None:
        self.clear(command.seat)

    def clear(self, place: int) -> None:
        self.seats[place] = Seat(
            session=0,
            cause=0,
            order_id=0,
            open_orders=0,
            open_cancels=0,
            saved_ns=0,
            saved_at_ns=0,
            is_known=0,
        )

    @chronicle.on.command(Limits)
    def limit(self, limits: Limits) -> None:
        self.price_min = limits.price_min
        self.price_max = limits.price_max
        self.quantity_max = limits.quantity_max
        self.notional_max = limits.notional_max
        self.open_orders_max = limits.open_orders_max
        self.interval_ns = NS_PER_S // limits.orders_per_s
        self.burst = limits.burst
        self.stale_ns = limits.stale_ms * 1_000_000

    # --- From strategies to the exchange ----------------------------------------------------------

    @chronicle.on(Order)
    def order(self, o: Order, info: Info) -> None:
        if not self.is_due(o.gateway, info):
            return
        reason = self.refusal(o, info)
        if reason == Reason.NONE:
            self.forwards.publish(
                Forward(
                    cause=info.seq,
                    session=self.seats[info.tag].session,
                    order_id=o.order_id,
                    expires_ns=info.timestamp_ns + self.stale_ns,
                    price=o.price,
                    quantity=o.quantity,
                    symbol=o.symbol,
                    seat=info.tag,
                    action=Action.NEW,
                    side=o.side,
                )
            )
            self.forwarded.add(1)
            self.note_forward(info.tag, info.seq, o.order_id, Action.NEW)
        else:
            self.refuse(info, o.order_id, o.price, o.quantity, o.symbol, o.side, reason)

    @chronicle.on(Cancel)
    def cancel(self, c: Cancel, info: Info) -> None:
        if not self.is_due(c.gateway, info):
            return
        # However old it is, and whoever wants it: what is cancelled does no harm.
        self.forwards.publish(
            Forward(
                cause=info.seq,
                session=self.seats[info.tag].session,
                order_id=c.order_id,
                expires_ns=0,
                price=0,
                quantity=0,
                symbol=b"",
                seat=info.tag,
                action=Action.CANCEL,
                side=0,
            )
        )
        self.forwarded.add(1)
        self.note_forward(info.tag, info.seq, c.order_id, Action.CANCEL)

    def is_due(self, gateway: bytes, info: Info) -> bool:
        """Whether a message is for this router, and was not handled before."""
        if info.tag >= SEATS or self.seats[info.tag].session == 0:
            self.strangers.add(1)
            return False
        seat = self.seats[info.tag]
        if info.seq <= seat.cause:
            self.repeated.add(1)
            return False
        if gateway == self.name:
            return True
        self.others.add(1)
        seat.cause = info.seq
        return False

    def refusal(self, o: Order, info: Info) -> int:
        """Return why an order is not passed on. The cheap checks that bound the others first."""
        seat = self.seats[info.tag]
        if not seat.is_known:
            return Reason.UNKNOWN_STRATEGY
        if o.order_id <= seat.order_id:
            return Reason.ORDER_ID
        if self.now_ns - info.timestamp_ns > self.stale_ns:
            return Reason.STALE
        if o.side not in (BUY, SELL):
            return Reason.SIDE
        if not max(1, self.price_min) <= o.price <= min(PRICE_MAX, self.price_max):
            return Reason.PRICE_BAND
        if not 1 <= o.quantity <= min(QUANTITY_MAX, self.quantity_max):
            return Reason.QUANTITY
        if o.price * o.quantity > self.notional_max:
            return Reason.NOTIONAL
        if seat.open_orders >= self.open_orders_max:
            return Reason.OPEN_ORDERS
        if not self.has_time(info.tag):
            return Reason.RATE
        return Reason.NONE

    def has_time(self, place: int) -> bool:
        """Spend the time that an order should take, if that much was saved up: a token bucket."""
        seat = self.seats[place]
        most = self.interval_ns * self.burst
        if seat.saved_at_ns == 0:
            seat.saved_ns = most
        else:
            passed = min(max(0, self.now_ns - seat.saved_at_ns), most)
            seat.saved_ns = min(seat.saved_ns + passed, most)
        seat.saved_at_ns = self.now_ns
        if seat.saved_ns < self.interval_ns:
            return False
        seat.saved_ns -= self.interval_ns
        return True

    def refuse(
        self,
        info: Info,
        order_id: int,
        price: int,
        quantity: int,
        symbol: bytes,
        side: int,
        reason: int,
    ) -> None:
        seat = self.seats[info.tag]
        self.reports[info.tag].publish(
            Report(
                cause=0,
                request=info.seq,
                session=seat.session,
                order_id=order_id,
                execution_id=0,
                price=price,
                quantity=quantity,
                remaining=0,
                symbol=symbol,
                kind=Kind.REJECT,
                side=side,
                reason=reason,
                closed=1,
            )
        )
        self.rejected.add(1)
        seat.cause = info.seq
        seat.order_id = max(seat.order_id, order_id)

    # --- From the exchange to strategies ----------------------------------------------------------

    @chronicle.on(Execution)
    def execution(self, e: Execution, info: Info) -> None:
        if info.tag != EXCHANGE:
            self.strangers.add(1)
            return
        if info.seq <= self.cause:
            self.repeated.add(1)
            return
        self.cause = info.seq
        seat = self.find(e.session, e.seat)
        if seat < 0:
            self.orphans.add(1)
            return
        seq = self.reports[seat].publish(
            Report(
                cause=info.seq,
                request=e.request,
                session=e.session,
                order_id=e.order_id,
                execution_id=e.execution_id,
                price=e.price,
                quantity=e.quantity,
                remaining=e.remaining,
                symbol=e.symbol,
                kind=e.kind,
                side=e.side,
                reason=e.reason,
                closed=e.closed,
            )
        )
        if seq == 0:
            # The seat has no queue: that cannot be, and must not be silent.
            self.orphans.add(1)
        self.told.add(1)
        self.note_told(seat, e.kind, e.closed)

    def find(self, session: int, guess: int) -> int:
        """Return the seat of a session. An earlier life may have given it another one."""
        if guess < SEATS and self.seats[guess].session == session:
            return guess
        for place in range(SEATS):
            if self.seats[place].session == session:
                return place
        return -1

    @chronicle.on(SourceGap)
    def gap(self, gap: SourceGap) -> None:
        self.missed.add(gap.next - gap.first_missing)
        self.log.error("source {} lost {} to {}", gap.source, gap.first_missing, gap.next)


# --- The cold half: on the sidecar ---------------------------------------------------------------


class Seats:
    """Which strategy sits where, and the queues in which they are told what became of orders."""

    def __init__(self, bus: Path, gateway: str, allowed: list[str]) -> None:
        self.bus = bus
        self.gateway = gateway
        self.allowed = allowed
        self.seats: dict[str, int] = {}
        self.writers: dict[int, chronicle.QueueWriter] = {}
        self.gone: set[str] = set()
        #: Seats whose writers the hot thread does not have yet.
        self.waiting: set[int] = set()
        self.provisioner: chronicle.Provisioner | None = None
        self.hot: HotThread | None = None
        self.causes: dict[int, int] = {}
        self._lock = threading.Lock()

    def sit(self, name: str) -> int:
        """Give a strategy a seat, and open the queue of its reports."""
        seat = next((n for n in range(SEATS) if n not in self.writers), None)
        if seat is None:
            seat = self.reclaim()
        self.writers[seat] = Queue.open_publisher(
            self.bus / "orders" / name / "in" / self.gateway,
            schema=[Report],
            segment_bytes=1 << 18,
            provisioner=self.provisioner,
        )
        self.seats[name] = seat
        return seat

    def session(self, name: str) -> int:
        return session_of(inspect(self.bus / "orders" / name / "out")["queue_id"])

    def rebuild(self, router: Router, forwards: Path) -> Any:
        """Read what earlier lives of this router have published; return the state after that."""
        for path in sorted(self.bus.glob("orders/*/out/control")):
            name = path.parents[1].name
            seat = self.sit(name)
            router.seats[seat].session = self.session(name)
        past = [Past(writer.path, seat) for seat, writer in self.writers.items()]
        state = rebuild(router, [Past(forwards), *past])
        state["is_live"] = 1
        self.causes = {seat: int(state["seats"][seat]["cause"]) for seat in self.seats.values()}
        return state

    def admit(self, path: str) -> Admission:
        """Seat a strategy that has attached, before its first order is read."""
        assert self.hot is not None
        name = Path(path).parent.name
        with self._lock:
            self.gone.discard(name)
            seat = self.seats.get(name)
            if seat is None:
                seat = self.sit(name)
                self.waiting.add(seat)
            if seat in self.waiting:
                # If there is no room for it, this is tried again.
                self.hot.add_writer("reports", self.writers[seat], slot=seat, timeout=1.0)
                self.waiting.discard(seat)
            is_known = any(fnmatch.fnmatchcase(name, pattern) for pattern in self.allowed)
            command = Sit(session=self.session(name), seat=seat, is_known=is_known)
            self.hot.send(command, timeout=1.0)
            # The first time in this life behind what the last one has handled, then as it comes.
            cause = self.causes.pop(seat, None)
        return Admission(start=None if cause is None else cause + 1, tag=seat)

    def leave(self, path: str) -> None:
        """Note that a strategy is gone. It keeps its seat until somebody else needs it."""
        with self._lock:
            self.gone.add(Path(path).parent.name)

    def close(self) -> None:
        """Close the queues of reports."""
        for writer in self.writers.values():
            writer.close()

    def reclaim(self) -> int:
        """Free the seat of a strategy that is gone and has nothing open."""
        assert self.hot is not None
        seats = self.hot.state["seats"]
        for name in sorted(self.gone):
            seat = self.seats[name]
            if seats[seat]["open_orders"] == 0 and seats[seat]["open_cancels"] == 0:
                self.hot.send(Leave(seat=seat), timeout=1.0)
                ticket = self.hot.remove_writer("reports", slot=seat, timeout=1.0)
                self.hot.wait_for(ticket, timeout=5.0)
                self.writers.pop(seat).close()
                self.gone.discard(name)
                del self.seats[name]
                self.causes.pop(seat, None)
                return seat
        raise Busy(f"all {SEATS} seats are taken; start another router, or wait")


def start(
    sidecar: Sidecar,
    bus: Bus,
    name: str,
    exchange: str,
    *,
    allowed: list[str],
    limits: Path | None = None,
    core: int | None = None,
    wait: Wait = "sleep",
    on_change: OnChange | None = None,
) -> HotThread:
    """Set a router up on a sidecar; return its hot thread."""
    endpoint = bus.open_endpoint(f"gateways/{name}")
    sidecar.serve_endpoint(endpoint)
    counters = CountersFile.create(endpoint.path / "COUNTERS")
    sidecar.publish_counters(counters)
    seats = Seats(bus.path, name, allowed)
    seats.provisioner = sidecar.provisioner
    forwards = Queue.open_publisher(
        endpoint.path / "exchange",
        schema=[Forward],
        segment_bytes=1 << 20,
        provisioner=sidecar.provisioner,
    )
    sidecar.close_at_stop(forwards.close)
    sidecar.close_at_stop(seats.close)
    router = Router(name=name.encode())
    if limits is not None:
        # From the first order on; later changes come as commands.
        router.limit(read_settings(limits, Limits, RANGES))
    state = seats.rebuild(router, endpoint.path / "exchange")
    seats.hot = hot = HotThread(
        router,
        state=state,
        outputs={"forwards": forwards, "reports": seats.writers},
        name="router",
        core=core,
        wait=wait,
        guard="enforce",
        counters_file=counters,
        sources_max=SEATS + 1,
        provisioner=sidecar.provisioner,
    )
    # Without it nothing is left to do. Whoever supervises us starts us.
    sidecar.attach(hot, stop_on_failure=True)
    sidecar.discover(
        bus.path / "orders" / "*" / "out",
        hot,
        name=f"router-{name}",
        admit=seats.admit,
        on_gone=seats.leave,
        on_change=on_change,
        readiness=bus.readiness,
    )
    sidecar.discover(
        bus.path / "exchanges" / exchange / name,
        hot,
        name=f"router-{name}",
        admit=lambda _path: Admission(start=int(hot.state["cause"]) + 1, tag=EXCHANGE),
    )
    if limits is not None:
        sidecar.settings(limits, Limits, hot, ranges=RANGES)
    endpoint.ready(["exchange"])
    return hot


def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="Route orders of strategies to an exchange.")
    parser.add_argument("bus", type=Path)
    parser.add_argument("--name", default="main", help="of the gateway, up to 8 characters")
    parser.add_argument("--exchange", default="sim")
    parser.add_argument("--limits", type=Path, help="a TOML file with the fields of Limits")
    parser.add_argument("--allow", action="append", help="pattern of strategies that may trade")
    parser.add_argument("--core", type=int)
    parser.add_argument("--wait", default="auto", choices=WAITS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="router: %(message)s")
    sidecar = Sidecar()
    hot = start(
        sidecar,
        Bus(options.bus),
        options.name,
        options.exchange,
        allowed=options.allow or ["*"],
        limits=options.limits,
        core=options.core,
        wait=choose_wait(options.wait),
    )
    sidecar.serve()
    if hot.failure is not None:
        raise SystemExit(f"router: {hot.failure}")


if __name__ == "__main__":
    main()
