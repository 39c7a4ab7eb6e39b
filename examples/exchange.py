"""A simulated exchange: takes what a gateway forwards, and answers each once, whatever happens.

    python examples/exchange.py BUS --name sim --gateway main

It makes up its own counterparty: what happens to an order is a function of its number (some are
refused, some rest until they are cancelled, most are filled, in up to three parts). So it can be
killed at any instruction: the next life reads its own executions to the end, has its book back, and
knows which forward it was at, and how far.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Annotated, Any

import chronicle
from chronicle import HotThread, Queue, Sidecar
from chronicle.bus import Bus
from chronicle.hot import WAITS, Counter, CountersFile, Info, Output, Table, choose_wait, mix64
from chronicle.hot.rebuild import Past, rebuild
from chronicle.message import MessageBase, char8, i64, u8, u32
from chronicle.sidecar import Admission
from orders import Action, Execution, Forward, Kind, Reason

#: The book is a table of buckets: an order is in the bucket that its number leads to.
BUCKETS = 1024
WAYS = 16


@chronicle.message(110)
class Resting(MessageBase):
    """An order in the book; `order_id` 0 is an empty place."""

    session: i64
    order_id: i64
    request: i64
    price: i64
    quantity: i64
    remaining: i64
    symbol: char8
    side: u8


class Exchange(chronicle.Handler):
    """What it does for each forward; what it knows is what its own executions say."""

    #: Whether it has read its own past, and reads others now.
    is_live: u8
    book: Annotated[Any, Table(Resting, BUCKETS * WAYS)]
    #: The forward that it is at, how many executions it has published for it, and whether all.
    cause: i64
    done: u32
    is_finished: u8 = 1
    execution_id: i64
    out: Output
    orders: Counter
    fills: Counter
    repeated: Counter
    #: Messages in a queue where they have no business.
    strangers: Counter

    # --- What it has published itself: read again by the next life --------------------------------

    @chronicle.on(Execution)
    def remember(self, e: Execution) -> None:
        if self.is_live:
            self.strangers.add(1)
            return
        place = self.find(e.session, e.order_id)
        if e.kind == Kind.ACK and place < 0:
            place = self.find_room(e.session, e.order_id)
            self.book[place] = Resting(
                session=e.session,
                order_id=e.order_id,
                request=e.request,
                price=e.price,
                quantity=e.quantity,
                remaining=e.remaining,
                symbol=e.symbol,
                side=e.side,
            )
        self.note(place, e.cause, e.execution_id, e.remaining, e.last, e.closed)

    def note(
        self, place: int, cause: int, execution_id: int, remaining: int, last: int, closed: int
    ) -> None:
        """Take in one execution, just published or read again."""
        self.done = self.done + 1 if cause == self.cause else 1
        self.cause = cause
        self.is_finished = last
        self.execution_id = max(self.execution_id, execution_id)
        if place >= 0:
            self.book[place].remaining = remaining
            if closed:
                self.book[place].order_id = 0

    # --- What it is asked -------------------------------------------------------------------------

    @chronicle.on(Forward)
    def forward(self, f: Forward, info: Info) -> None:
        if info.seq < self.cause or (info.seq == self.cause and self.is_finished):
            self.repeated.add(1)
            return
        if info.seq > self.cause:
            self.done = 0
        if f.action == Action.CANCEL:
            self.cancel(f, info.seq)
        else:
            self.take(f, info.seq)

    def cancel(self, f: Forward, seq: int) -> None:
        place = self.find(f.session, f.order_id)
        if place < 0:
            self.tell(f, seq, -1, Kind.CANCEL_REJECT, 0, 0, 0, Reason.NOT_OPEN, 1, 0)
        else:
            self.tell(f, seq, place, Kind.CANCELLED, 0, 0, 0, Reason.NONE, 1, 1)

    def take(self, f: Forward, seq: int) -> None:
        fate = mix64(f.session ^ f.order_id)
        place = self.find(f.session, f.order_id)
        if self.done == 0:
            reason = self.refusal(f, fate, place)
            if reason != Reason.NONE:
                self.tell(f, seq, -1, Kind.REJECT, 0, f.quantity, 0, reason, 1, 1)
                return
        # What will be filled, and in how many parts: all of it, half of it, or nothing.
        parts = min((fate >> 8) % 4, f.quantity)
        fill = f.quantity if fate & 1 else f.quantity // 2
        if parts == 0 or fill < parts:
            parts = fill = 0
        if self.done == 0:
            self.orders.add(1)
            place = self.find_room(f.session, f.order_id)
            self.book[place] = Resting(
                session=f.session,
                order_id=f.order_id,
                request=f.cause,
                price=f.price,
                quantity=f.quantity,
                remaining=f.quantity,
                symbol=f.symbol,
                side=f.side,
            )
            last = int(parts == 0)
            self.tell(f, seq, place, Kind.ACK, 0, f.quantity, f.quantity, Reason.NONE, last, 0)
        # An earlier life may have published some of the parts.
        for part in range(self.done, parts + 1):
            quantity = fill // parts if part < parts else fill - fill // parts * (parts - 1)
            remaining = self.book[place].remaining - quantity
            self.fills.add(1)
            self.tell(
                f,
                seq,
                place,
                Kind.FILL,
                self.execution_id + 1,
                quantity,
                remaining,
                Reason.NONE,
                int(part == parts),
                int(remaining == 0),
            )

    def refusal(self, f: Forward, fate: int, place: int) -> int:
        if self.now_ns > f.expires_ns:
            return Reason.EXPIRED
        if place >= 0:
            return Reason.ORDER_ID
        if self.find_room(f.session, f.order_id) < 0:
            return Reason.BOOK_FULL
        if (fate >> 16) % 32 == 0:
            return Reason.MARKET
        return Reason.NONE

    def tell(
        self,
        f: Forward,
        seq: int,
        place: int,
        kind: int,
        execution_id: int,
        quantity: int,
        remaining: int,
        reason: int,
        last: int,
        closed: int,
    ) -> None:
        self.out.publish(
            Execution(
                cause=seq,
                request=f.cause,
                session=f.session,
                order_id=f.order_id,
                execution_id=execution_id,
                price=f.price,
                quantity=quantity,
                remaining=remaining,
                symbol=f.symbol,
                seat=f.seat,
                kind=kind,
                side=f.side,
                reason=reason,
                last=last,
                closed=closed,
            )
        )
        self.note(place, seq, execution_id, remaining, last, closed)

    # --- The book ---------------------------------------------------------------------------------

    def find(self, session: int, order_id: int) -> int:
        first = mix64(session ^ order_id) % BUCKETS * WAYS
        for place in range(first, first + WAYS):
            if self.book[place].order_id == order_id and self.book[place].session == session:
                return place
        return -1

    def find_room(self, session: int, order_id: int) -> int:
        first = mix64(session ^ order_id) % BUCKETS * WAYS
        for place in range(first, first + WAYS):
            if self.book[place].order_id == 0:
                return place
        return -1


# --- The cold half: on the sidecar ---------------------------------------------------------------


def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="Simulate an exchange for one gateway.")
    parser.add_argument("bus", type=Path)
    parser.add_argument("--name", default="sim", help="of the exchange")
    parser.add_argument("--gateway", default="main")
    parser.add_argument("--core", type=int)
    parser.add_argument("--wait", default="auto", choices=WAITS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="exchange: %(message)s")
    bus = Bus(options.bus)
    sidecar = Sidecar()
    endpoint = bus.open_endpoint(f"exchanges/{options.name}")
    sidecar.serve_endpoint(endpoint)
    counters = CountersFile.create(endpoint.path / "COUNTERS")
    sidecar.publish_counters(counters)
    out = Queue.open_publisher(
        endpoint.path / options.gateway,
        schema=[Execution],
        segment_bytes=1 << 20,
        provisioner=sidecar.provisioner,
    )
    sidecar.close_at_stop(out.close)
    # What earlier lives have published says where this one goes on.
    state = rebuild(Exchange(), [Past(out.path)])
    state["is_live"] = 1
    first = int(state["cause"]) + int(state["is_finished"])
    hot = HotThread(
        Exchange(),
        state=state,
        outputs={"out": out},
        name="exchange",
        core=options.core,
        wait=choose_wait(options.wait),
        guard="enforce",
        counters_file=counters,
        provisioner=sidecar.provisioner,
    )
    # Without it nothing is left to do. Whoever supervises us starts us.
    sidecar.attach(hot, stop_on_failure=True)
    sidecar.discover(
        bus.path / "gateways" / options.gateway / "exchange",
        hot,
        name=f"exchange-{options.name}",
        admit=lambda _path: Admission(start=first),
    )
    endpoint.ready([options.gateway])
    sidecar.serve()
    if hot.failure is not None:
        raise SystemExit(f"exchange: {hot.failure}")


if __name__ == "__main__":
    main()
