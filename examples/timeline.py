"""Chaos's witness: who was up when, what was traded, and what kept a strategy from trading.

`Witness` looks at a bus some times a second, from outside: at endpoints, at how far the market is,
at what strategies have sent and were told, and at their counters files. `Timeline` makes a table
of these looks, a row for each few seconds, and says when trading ought to have begun again.

**When that is.** A strategy needs the feed, the exchange, the router and itself. Only while all of
them are up does its clock run, and that clock is the market: the messages that the feed has
published since the strategy's last order was acknowledged. `PATIENCE` of them without one, and it
is overdue, whatever the reason; so is a feed that is up and publishes nothing for so many looks.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import chronicle
from chronicle.bus import Bus
from chronicle.hot import read_counters
from orders import Kind, Order, Report

__all__ = ["BURST", "PATIENCE", "STILL", "Look", "Sight", "Timeline", "Witness"]

PATIENCE: Final = 4_000
"""Market messages that may pass without an order of a strategy for which everybody was up.

Chaos has some 500 of them in a second. In no 2,000 does the rule find nothing to do: the tests of
`feed_sender.py` hold that. The others are for beginnings: who is up still has to notice who else
is, and to get its book. On a quiet machine 360 are used up.
"""
BURST: Final = 100
"""Messages that count for one look, at most.

A feed that comes back publishes what it has missed all at once, thousands of messages, before
anybody can have noticed that it is up.
"""
STILL: Final = 300
"""Looks in a row at which the feed may be up and have published nothing."""

#: Counters of a strategy, and the words for them in the table.
_HELD: Final = {
    "held_waiting": "not trading",
    "held_old": "old news",
    "held_pause": "pause",
    "held_gateway": "no gateway",
    "held_open": "too many open",
    "held_position": "position",
}


@dataclass(frozen=True)
class Sight:
    """What a strategy has done in all of its lives: orders, acknowledgements, counters."""

    orders: int = 0
    acked: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)

    def since(self, before: Sight) -> Sight:
        """Return what was done since an earlier look."""
        counters = {
            name: count - before.counters.get(name, 0) for name, count in self.counters.items()
        }
        return Sight(self.orders - before.orders, self.acked - before.acked, counters)

    def why_not(self) -> str:
        """Say what has kept it from trading."""
        changes, signals = self.counters.get("looks", 0), self.counters.get("signals", 0)
        if not changes:
            return "no book"
        held = {word: self.counters.get(name, 0) for name, word in _HELD.items()}
        held_by = ", ".join(f"{word} {count:,}" for word, count in held.items() if count)
        return f"{signals or 'no'} signals in {changes:,} changes" + (held_by and f": {held_by}")


@dataclass(frozen=True)
class Look:
    """The system at a moment.

    Attributes
    ----------
    at_s
        Since the beginning.
    up
        Processes that are up, and their ids: another id is another life.
    market
        Messages that the feed has published.
    sights
        By strategy.
    """

    at_s: float
    up: Mapping[str, int]
    market: int
    sights: Mapping[str, Sight]


@dataclass
class _Clock:
    """For how much of the market a strategy has had everybody up, and not traded."""

    messages: int = 0
    #: The most that it has ever stood at.
    most: int = 0
    #: When its last order was acknowledged.
    since: Look | None = None


class Timeline:
    """The table, and who is overdue.

    Parameters
    ----------
    others
        Processes that every strategy needs; the feed is the first.
    strategies
        Each of them needs itself as well.
    window_s
        Length of a row.
    """

    def __init__(
        self, others: Sequence[str], strategies: Sequence[str], window_s: float = 5.0
    ) -> None:
        self.others = tuple(others)
        self.strategies = tuple(strategies)
        self.wrong: list[str] = []
        self._window_s = window_s
        self._window: list[Look] = []
        self._clocks = {name: _Clock() for name in strategies}
        self._still = 0

    @property
    def heading(self) -> str:
        """The first line of the table."""
        names = "".join(f"{name[:5]:>6}" for name in (*self.others, *self.strategies))
        orders = "".join(f"{name:>7}" for name in self.strategies)
        return f"{'seconds':>9} {'market':>7}  up %{names}  orders{orders}  why not"

    @property
    def longest(self) -> dict[str, int]:
        """The longest that each strategy had everybody up and did not trade: market messages."""
        return {name: clock.most for name, clock in self._clocks.items()}

    def note(self, look: Look) -> str | None:
        """Take a look in; return the row that has ended with it, if one has."""
        if not self._window:
            self._window = [look]
            return None
        before = self._window[-1]
        self._window.append(look)
        for name, clock in self._clocks.items():
            self._run(name, clock, before, look)
        self._watch_market(before, look)
        return self.end(self._window_s)

    def end(self, least_s: float = 1.0) -> str | None:
        """End the row here and return it, if it is long enough to say something."""
        if self._window[-1].at_s - self._window[0].at_s < least_s:
            return None
        row, self._window = self._row(), self._window[-1:]
        return row

    def _run(self, name: str, clock: _Clock, before: Look, look: Look) -> None:
        if clock.since is None or look.sights[name].acked > before.sights[name].acked:
            clock.since, clock.messages = look, 0
        elif self._were_up(name, before, look):
            clock.messages += min(look.market - before.market, BURST)
            clock.most = max(clock.most, clock.messages)
        if clock.messages >= PATIENCE:
            why = look.sights[name].since(clock.since.sights[name]).why_not()
            self.wrong.append(
                f"{name} has not traded from second {clock.since.at_s:.0f} to {look.at_s:.0f}, in "
                f"{clock.messages:,} market messages with everybody up: {why}"
            )
            clock.since, clock.messages = look, 0

    def _were_up(self, strategy: str, before: Look, look: Look) -> bool:
        return all(
            name in before.up and before.up[name] == look.up.get(name)
            for name in (*self.others, strategy)
        )

    def _watch_market(self, before: Look, look: Look) -> None:
        feed = self.others[0]
        stands = feed in before.up and before.up[feed] == look.up.get(feed)
        self._still = self._still + 1 if stands and look.market == before.market else 0
        if self._still >= STILL:
            self.wrong.append(
                f"{feed} is up, and has published nothing in {STILL} looks until {look.at_s:.0f} s"
            )
            self._still = 0

    def _row(self) -> str:
        first, last = self._window[0], self._window[-1]
        looks = self._window[1:]
        shares = "".join(
            f"{sum(name in look.up for look in looks) / len(looks):6.0%}"
            for name in (*self.others, *self.strategies)
        )
        orders, why = "", []
        for name in self.strategies:
            done = last.sights[name].since(first.sights[name])
            orders += f"{done.orders:7,}"
            if done.orders == 0:
                never = not any(
                    self._were_up(name, *pair) for pair in zip(self._window, looks, strict=False)
                )
                why.append(f"{name}: {'not all up' if never else done.why_not()}")
        seconds = f"{first.at_s:.0f}-{last.at_s:.0f}"
        market = last.market - first.market
        return f"{seconds:>9} {market:7,}      {shares}        {orders}  {'; '.join(why)}".rstrip()


class Witness:
    """Looks at a bus. It only reads, and registers nowhere.

    Parameters
    ----------
    bus
        Its directory.
    endpoints
        Of each process.
    strategies
        Which of the processes are strategies.
    gateway
        Name of the router that they trade through.
    live
        The queue of the feed.
    """

    def __init__(
        self,
        bus: Path,
        endpoints: Mapping[str, str],
        strategies: Sequence[str],
        gateway: str,
        live: Path,
    ) -> None:
        self._bus = Bus(bus)
        self._endpoints = endpoints
        self._market = Tail(live)
        self._past = {name: Past(bus / "orders" / name, gateway) for name in strategies}

    def look(self, at_s: float, running: Mapping[str, int]) -> Look:
        """Look at everything.

        Parameters
        ----------
        at_s
            Since the beginning.
        running
            Ids of the processes that run and are not stopped, by name. Of those are up who own
            their endpoint, keep its lease, and have said READY.
        """
        up = {name: pid for name, pid in running.items() if self._is_up(name, pid)}
        sights = {name: past.look() for name, past in self._past.items()}
        return Look(at_s, up, self._market.last(), sights)

    def _is_up(self, name: str, pid: int) -> bool:
        try:
            status = self._bus.status(self._endpoints[name])
        except chronicle.BusRefused:
            # As long as its markers are not whole.
            return False
        if status.lease is None or status.lease.pid != pid:
            return False
        return status.state == "alive" and status.ready

    def close(self) -> None:
        """Let go of the queues."""
        self._market.close()
        for past in self._past.values():
            past.close()


class Tail:
    """The end of a queue that may not be there yet."""

    def __init__(self, queue: Path) -> None:
        self._queue = queue
        self._reader: chronicle.QueueReader | None = None

    def reader(self) -> chronicle.QueueReader | None:
        """Return a reader from the first message on, or ``None`` as long as there is no queue."""
        if self._reader is None:
            with contextlib.suppress(FileNotFoundError, chronicle.NotAQueue):
                self._reader = chronicle.Queue.open_subscriber(self._queue, None, start="earliest")
        return self._reader

    def last(self) -> int:
        """Return the number of the last message."""
        reader = self.reader()
        if reader is None:
            return 0
        reader.seek("latest")
        return reader.next_seq - 1

    def close(self) -> None:
        """Let go of the queue."""
        if self._reader is not None:
            self._reader.close()


class Past:
    """What a strategy has done so far: read on at each look."""

    def __init__(self, endpoint: Path, gateway: str) -> None:
        self._out = Tail(endpoint / "out")
        self._told = Tail(endpoint / "in" / gateway)
        self._counters_file = endpoint / "COUNTERS"
        self._orders = self._acked = 0
        #: Counters of each life: the last that was seen of them.
        self._lives: dict[str, dict[str, int]] = {}

    def look(self) -> Sight:
        """Read what is new."""
        for message in self._out.reader() or ():
            self._orders += message.type_id == Order.type_id
        for message in self._told.reader() or ():
            self._acked += Report.view(bytes(message.payload)).kind == Kind.ACK
        # Not there yet, or about to be replaced.
        with contextlib.suppress(OSError, chronicle.DecodeError):
            found = read_counters(self._counters_file)
            for thread in found.threads:
                self._lives[found.instance] = thread.counters
        total: Counter[str] = Counter()
        for counters in self._lives.values():
            total.update(counters)
        return Sight(self._orders, self._acked, total)

    def close(self) -> None:
        """Let go of the queues."""
        self._out.close()
        self._told.close()
