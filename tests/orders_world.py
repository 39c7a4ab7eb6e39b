"""A whole system of strategies, router and exchange, uncompiled and in one thread, for tests.

Each life is a handler object that may be dropped at any moment, also in the middle of a message,
before or after any publication. The next one gets what the last one had published, and nothing
else. What is written stands on tapes; `World.log` shows them to the accounts.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from accounts import Log
from chronicle.feeds.iex import QuoteUpdate
from chronicle.hot import Handler, Info
from exchange import Exchange
from orders import Cancel, Order
from router import EXCHANGE, Router, Sit
from strategy import FeedFound, FeedLost, GatewayUp, Leave, Risk, Strategy

from tests.orders_support import Fuse, Killed, Tape

MS = 1_000_000
GATEWAY = b"main"


class Life:
    """A handler, and how far it has read each of its sources."""

    def __init__(self, handler: Handler, sources: dict[str, tuple[Tape, int, int]]) -> None:
        self.handler = handler
        #: Tape, tag, and the next sequence number.
        self.sources = dict(sources)

    def step(self, name: str) -> bool:
        """Take the next message of a source, if there is one."""
        tape, tag, seq = self.sources[name]
        if seq > len(tape.entries):
            return False
        self.sources[name] = (tape, tag, seq + 1)
        tape.give(self.handler, seq, tag)
        return True


class World:
    """Strategies that trade by their rule, clients that write whatever they like, and the rest."""

    def __init__(self, seed: int, *, strategies: int = 2, clients: int = 3) -> None:
        self.chance = random.Random(seed)
        self.now_ns = 1_000_000_000_000
        self.kills = 0
        self.fuse = Fuse()
        names = [f"s{n}" for n in range(strategies)] + [f"c{n}" for n in range(clients)]
        self.sessions = {name: 1_000 + 7 * n for n, name in enumerate(names)}
        self.clients = names[strategies:]
        self.strategies = names[:strategies]
        self.out = {name: Tape(self.clock, self.fuse) for name in names}
        self.told = {name: Tape(self.clock, self.fuse) for name in names}
        self.forwards = Tape(self.clock, self.fuse)
        self.executions = Tape(self.clock, self.fuse)
        self.live = Tape(self.clock)
        self.last_id = dict.fromkeys(self.clients, 0)
        self.lives: dict[str, Life] = {}
        for name in ("router", "exchange", *self.strategies):
            self.begin(name)

    def clock(self) -> int:
        return self.now_ns

    # --- Lives ---

    def begin(self, name: str) -> None:
        """Begin a life from what stands on the tapes; and another, if that is killed at once."""
        begin = {"router": self._begin_router, "exchange": self._begin_exchange}
        while True:
            try:
                self.lives[name] = begin.get(name, lambda: self._begin_strategy(name))()
            except Killed:
                self.kills += 1
                continue
            return

    def _tell_again(self, handler: Handler, past: list[tuple[Tape, int]]) -> None:
        """Give a handler its past, merged by time, as `rebuild` does."""
        handler.set_clock(self.now_ns)
        entries = [
            (tape.times[seq - 1], number, seq, tape, tag)
            for number, (tape, tag) in enumerate(past)
            for seq, _ in tape.entries
        ]
        for _, _, seq, tape, tag in sorted(entries, key=lambda entry: entry[:3]):
            tape.give(handler, seq, tag)

    def _start(self, first: int) -> int:
        """Begin where it must, or before: what was handled is left alone."""
        return self.chance.choice((first, max(1, first - 3), 1))

    def _begin_router(self) -> Life:
        router = Router(name=GATEWAY, stale_ns=200 * MS, open_orders_max=8, quantity_max=100)
        # Seats differ from life to life.
        names = self.chance.sample(sorted(self.out), len(self.out))
        for seat, name in enumerate(names):
            router.seats[seat].session = self.sessions[name]
        told = [(self.told[name], seat) for seat, name in enumerate(names)]
        self._tell_again(router, [(self.forwards, EXCHANGE), *told])
        router.is_live = 1
        router.forwards.attach(self.forwards)
        sources: dict[str, tuple[Tape, int, int]] = {}
        for seat, name in enumerate(names):
            router.reports[seat].attach(self.told[name])
            router.receive(
                Sit(session=self.sessions[name], seat=seat, is_known=name != "c2"), kind="command"
            )
            sources[name] = (self.out[name], seat, self._start(router.seats[seat].cause + 1))
        sources["exchange"] = (self.executions, EXCHANGE, self._start(router.cause + 1))
        return Life(router, sources)

    def _begin_exchange(self) -> Life:
        exchange = Exchange()
        self._tell_again(exchange, [(self.executions, 0)])
        exchange.is_live = 1
        exchange.out.attach(self.executions)
        first = self._start(exchange.cause + exchange.is_finished)
        return Life(exchange, {"router": (self.forwards, 0, first)})

    def _begin_strategy(self, name: str) -> Life:
        strategy = Strategy(symbol=b"ZXIET", session=self.sessions[name])
        strategy.gateways[0].name = GATEWAY
        self._tell_again(strategy, [(self.out[name], 0), (self.told[name], 1)])
        strategy.out.attach(self.out[name])
        risk = Risk(
            trading=True,
            ratio=2.0,
            quantity=10,
            position_max=200,
            open_orders_max=16,
            pause_ms=0,
            life_ms=40,
            stale_ms=60,
        )
        first = len(self.live.entries) + 1
        first_report = self._start(strategy.gateways[0].seen + 1)
        sources = {"live": (self.live, 0, first), "router": (self.told[name], 1, first_report)}
        # It may be killed while it learns what is around it.
        self.lives[name] = Life(strategy, sources)
        for command in (risk, GatewayUp(name=GATEWAY, index=0), FeedFound()):
            strategy.receive(command, kind="command")
        return self.lives[name]

    def _try(self, name: str, act: Callable[[], Any]) -> None:
        """Do something that may kill; if so, the next life begins."""
        try:
            act()
        except Killed:
            self.kills += 1
            self.begin(name)

    # --- What happens ---

    def happen(self) -> None:
        """Let one thing happen, at random."""
        self.now_ns += self.chance.choice((0, 1, MS, 3 * MS))
        what = self.chance.random()
        if what < 0.02:
            self.kill(self.chance.choice(sorted(self.lives)))
        elif what < 0.06:
            self.fuse.set(self.chance.randrange(4), is_before=self.chance.random() < 0.5)
        elif what < 0.07:
            # Everybody stands still for a while.
            self.now_ns += 300 * MS
        elif what < 0.20:
            self.quote()
        elif what < 0.40:
            self.ask(self.chance.choice(("c0", "c0", "c1", "c1", "c2")))
        elif what < 0.41:
            self.command(self.chance.choice(self.strategies), FeedLost())
            self.command(self.chance.choice(self.strategies), FeedFound())
        else:
            name = self.chance.choice(sorted(self.lives))
            for _ in range(self.chance.randint(1, 8)):
                self.step(name, self.chance.choice(sorted(self.lives[name].sources)))

    def kill(self, name: str) -> None:
        """Kill between two messages: the next life must know what this one had known."""
        self.kills += 1
        before = self.knows(name)
        self.begin(name)
        assert self.knows(name) == before, name

    def knows(self, name: str) -> Any:
        """What a life knows that its outputs and its reports must be able to say."""
        handler: Any = self.lives[name].handler
        if name == "router":
            seats = [seat for seat in handler.seats if seat.session]
            numbers = {s.session: (s.order_id, s.open_orders, s.open_cancels) for s in seats}
            return handler.cause, numbers
        if name == "exchange":
            book = {(r.session, r.order_id): r.remaining for r in handler.book if r.order_id}
            return handler.cause, handler.is_finished, handler.execution_id, book
        # Reports that it had not read yet are read by the next life at once: not its open orders.
        return handler.order_id

    def step(self, name: str, source: str) -> bool:
        life = self.lives[name]
        life.handler.set_clock(self.now_ns)
        moved: list[bool] = []
        self._try(name, lambda: moved.append(life.step(source)))
        return moved != [False]

    def command(self, name: str, command: Any) -> None:
        handler = self.lives[name].handler
        handler.set_clock(self.now_ns)
        self._try(name, lambda: handler.receive(command, Info(), kind="command"))

    def quote(self) -> None:
        sizes = (100, 400, 1_600)
        bid = 100_000 + 100 * self.chance.randrange(10)
        self.live.add(
            QuoteUpdate(
                time_ns=self.now_ns,
                symbol=self.chance.choice((b"ZXIET", b"ZXIET", b"OTHER")),
                bid_price=bid,
                ask_price=bid + 100,
                bid_size=self.chance.choice(sizes),
                ask_size=self.chance.choice(sizes),
                flags=0,
            )
        )

    def ask(self, name: str) -> None:
        """A client writes something, sensible or not."""
        chance, tape = self.chance, self.out[name]
        gateway = chance.choice((GATEWAY,) * 15 + (b"other",)) if name == "c0" else GATEWAY
        if self.last_id[name] and chance.random() < 0.4:
            tape.add(Cancel(order_id=chance.randint(1, self.last_id[name]), gateway=gateway))
            return
        self.last_id[name] += 1
        tape.add(
            Order(
                order_id=self.last_id[name],
                cause=0,
                price=chance.choice((100, 2_000, 10**12, 0, -5, 10**12 + 1)),
                quantity=chance.choice((1, 2, 3, 10, 100, 101, 0, -1)),
                symbol=b"ZXIET",
                gateway=gateway,
                side=chance.choice((1, 1, 2, 2, 3)),
            )
        )

    def end(self) -> None:
        """Have everything cancelled, and everything read to its end."""
        self.fuse.set(None)
        for name in self.strategies:
            self.command(name, Leave())
        for name in self.clients:
            for order_id in range(1, self.last_id[name] + 1):
                self.out[name].add(Cancel(order_id=order_id, gateway=GATEWAY))
        has_moved = True
        while has_moved:
            self.now_ns += 1
            has_moved = False
            for name, life in sorted(self.lives.items()):
                for source in sorted(life.sources):
                    has_moved = self.step(name, source) or has_moved

    def log(self) -> Log:
        """What stands on the tapes, without what names another gateway."""
        return Log(
            sessions=self.sessions,
            requests={
                name: [entry for entry in tape.entries if entry[1].gateway == GATEWAY]
                for name, tape in self.out.items()
            },
            reports={(name, "main"): tape.entries for name, tape in self.told.items()},
            forwards={"main": self.forwards.entries},
            executions={("sim", "main"): self.executions.entries},
        )
