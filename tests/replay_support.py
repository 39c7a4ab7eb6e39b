"""What the tests of replay share: handlers that see everything, and a journalled run of them.

The handlers are at the top of a module, so that a journal can name them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import chronicle
from chronicle.hot import (
    Cells,
    Counter,
    Handler,
    Info,
    Output,
    SourceAdded,
    SourceGap,
    SourceRemoved,
    on,
)
from chronicle.hot.acks import ReaderAdded
from chronicle.hot.thread import HotThread
from chronicle.message import Array, MessageBase, char8, f64, i64, message, u32

from tests.queue_support import PATIENCE_S, SEGMENT_BYTES, publisher, subscriber

MASK = 0x7FFF_FFFF


@message(61)
class Tick(MessageBase):
    price: i64
    qty: u32


@message(62)
class Seen(MessageBase):
    fold: i64
    count: i64
    mean: f64
    now_ns: i64
    symbol: char8


@message(63)
class SetAlpha(MessageBase):
    alpha: f64


@message(64)
class Told(MessageBase):
    kind: u32
    source: u32
    number: i64


class Folds(Handler):
    """Folds everything that a handler can see into its state, and publishes it."""

    alpha: f64 = 0.5
    fold: i64
    count: i64
    mean: f64
    last: Annotated[Cells[int], Array(i64, 8)]
    seen: Output
    told: Output
    ticks: Counter

    @on(Tick)
    def tick(self, tick: Tick, info: Info) -> None:
        self.ticks.add(1)
        self.count += 1
        self.mean += self.alpha * (tick.price - self.mean)
        self.last[self.count % 8] = tick.price
        mixed = (tick.price & MASK) ^ (info.seq & MASK) ^ (info.timestamp_ns & MASK)
        self.fold = ((self.fold * 31) & MASK) ^ mixed ^ (info.source & MASK) ^ (self.now_ns & MASK)
        number = self.seen.publish(
            Seen(
                fold=self.fold,
                count=self.count,
                mean=self.mean,
                now_ns=self.now_ns,
                symbol=b"TICK",
            )
        )
        self.fold = self.fold ^ (number & MASK)

    @on.command(SetAlpha)
    def set_alpha(self, command: SetAlpha, info: Info) -> None:
        self.alpha = command.alpha
        self.fold = ((self.fold * 31) & MASK) ^ (info.timestamp_ns & MASK)
        self.told.publish(Told(kind=1, source=0, number=self.fold))

    @on(SourceAdded)
    def added(self, event: SourceAdded, info: Info) -> None:
        self.fold = ((self.fold * 31) & MASK) ^ (info.timestamp_ns & MASK)
        self.told.publish(Told(kind=2, source=event.source, number=self.fold))

    @on(SourceRemoved)
    def removed(self, event: SourceRemoved) -> None:
        self.told.publish(Told(kind=3, source=event.source, number=self.fold))

    @on(SourceGap)
    def gap(self, event: SourceGap) -> None:
        self.told.publish(Told(kind=4, source=event.source, number=event.next))

    @on.idle
    def idle(self) -> None:
        self.fold = ((self.fold * 31) & MASK) ^ (self.now_ns & MASK)

    @on.start
    def begin(self) -> None:
        self.told.publish(Told(kind=5, source=0, number=self.now_ns))

    @on.stop
    def end(self) -> None:
        self.told.publish(Told(kind=6, source=0, number=self.now_ns))


class FoldsChanged(Folds):
    """As `Folds`, but for one line."""

    @on(Tick)
    def tick(self, tick: Tick, info: Info) -> None:
        self.ticks.add(1)
        self.count += 1
        if tick.price == 1_000:
            self.mean = 0.0
        self.mean += self.alpha * (tick.price - self.mean)
        self.last[self.count % 8] = tick.price
        mixed = (tick.price & MASK) ^ (info.seq & MASK) ^ (info.timestamp_ns & MASK)
        self.fold = ((self.fold * 31) & MASK) ^ mixed ^ (info.source & MASK) ^ (self.now_ns & MASK)
        number = self.seen.publish(
            Seen(
                fold=self.fold,
                count=self.count,
                mean=self.mean,
                now_ns=self.now_ns,
                symbol=b"TICK",
            )
        )
        self.fold = self.fold ^ (number & MASK)


class Plain(Handler):
    """Publishes what it gets; fails on a price of 13."""

    total: i64
    last: Annotated[Cells[int], Array(i64, 4)]
    out: Output
    seen: Counter

    @on(Tick)
    def tick(self, tick: Tick) -> None:
        self.seen.add(1)
        self.total += tick.price
        self.last[self.total % 4] = tick.price
        self.out.publish(Told(kind=0, source=0, number=tick.price))
        if tick.price == 13:
            self.fail("thirteen")


class PlainQuiet(Plain):
    """Does not publish the last one."""

    @on(Tick)
    def tick(self, tick: Tick) -> None:
        self.seen.add(1)
        self.total += tick.price
        self.last[self.total % 4] = tick.price
        if tick.price != 9:
            self.out.publish(Told(kind=0, source=0, number=tick.price))


class PlainLoud(Plain):
    """Publishes once too often."""

    @on(Tick)
    def tick(self, tick: Tick) -> None:
        self.seen.add(1)
        self.total += tick.price
        self.last[self.total % 4] = tick.price
        self.out.publish(Told(kind=0, source=0, number=tick.price))
        if tick.price == 9:
            self.out.publish(Told(kind=0, source=0, number=tick.price))


class PlainState(Plain):
    """Ends in another state."""

    @on(Tick)
    def tick(self, tick: Tick) -> None:
        self.seen.add(1)
        self.total += tick.price
        self.last[self.total % 4] = tick.price
        if tick.price == 9:
            self.last[2] = 77
        self.out.publish(Told(kind=0, source=0, number=tick.price))


class PlainCount(Plain):
    """Counts twice."""

    @on(Tick)
    def tick(self, tick: Tick) -> None:
        self.seen.add(2)
        self.total += tick.price
        self.last[self.total % 4] = tick.price
        self.out.publish(Told(kind=0, source=0, number=tick.price))


class PlainFails(Plain):
    """Fails earlier."""

    @on(Tick)
    def tick(self, tick: Tick) -> None:
        self.seen.add(1)
        self.total += tick.price
        self.last[self.total % 4] = tick.price
        self.out.publish(Told(kind=0, source=0, number=tick.price))
        if tick.price == 5:
            self.fail("five")


class PlainWider(Handler):
    """Has another state: one field more, in front, and one of another size."""

    extra: f64 = 7.0
    total: i64
    last: Annotated[Cells[int], Array(i64, 5)]
    out: Output
    seen: Counter

    @on(Tick)
    def tick(self, tick: Tick) -> None:
        self.seen.add(1)
        self.total += tick.price
        self.out.publish(Told(kind=0, source=0, number=tick.price))


class PlainFixed(Plain):
    """Does not fail."""

    @on(Tick)
    def tick(self, tick: Tick) -> None:
        self.seen.add(1)
        self.total += tick.price
        self.last[self.total % 4] = tick.price
        self.out.publish(Told(kind=0, source=0, number=tick.price))


class Session:
    """Queues in a folder, and a hot thread with a journal."""

    def __init__(self, folder: Path, handler: Any, sources: int = 2, **options: Any) -> None:
        self.folder = folder
        self.inputs = [publisher(folder / f"in-{i}", schema=[Tick]) for i in range(4)]
        self.names = itertools.count()
        self.where: dict[int, int] = {}
        outputs = options.pop("outputs", ("seen", "told"))
        self.outputs = {name: publisher(folder / name, schema=[Seen, Told]) for name in outputs}
        self.journal = publisher(folder / "journal")
        self.hot = HotThread(
            handler,
            readers=[self.reader(i) for i in range(sources)],
            outputs=self.outputs,
            journal=self.journal,
            name="replayed",
            wait="hybrid",
            spin_ns=1_000,
            **options,
        )
        self.where = {i: i for i in range(sources)}
        self.ever_read = set(range(sources))
        self.sent = 0

    def reader(self, number: int, **options: Any) -> chronicle.QueueReader:
        """Open a reader of an input; its messages from here on are the handler's."""
        name = f"reader-{next(self.names)}"
        options.setdefault("start", "latest")
        return subscriber(self.folder / f"in-{number}", name, **options)

    def tick(self, number: int, price: int) -> None:
        self.inputs[number].publish(Tick(price=price, qty=1))
        self.sent += sum(1 for queue in self.where.values() if queue == number)

    def add(self, number: int, **options: Any) -> int:
        """Hand a reader over; return its source number."""
        ack = self.hot.wait_for(
            self.hot.add_reader(self.reader(number, **options), timeout=PATIENCE_S), PATIENCE_S
        )
        assert isinstance(ack, ReaderAdded)
        self.where[ack.source] = number
        self.ever_read.add(number)
        return ack.source

    def remove(self, source: int) -> None:
        self.settle()
        ticket = self.hot.remove_reader(source, timeout=PATIENCE_S)
        ack: Any = self.hot.wait_for(ticket, PATIENCE_S)
        ack.reader.close()
        del self.where[source]

    def command(self, message: MessageBase) -> None:
        self.hot.wait_for(self.hot.send(message, timeout=PATIENCE_S), PATIENCE_S)

    def settle(self) -> None:
        """Wait until all that was sent has been handled, and nothing else."""
        until(lambda: self.hot.status.messages >= self.sent or self.hot.failure is not None)
        assert self.hot.failure is None
        assert self.hot.status.messages == self.sent

    def stop(self) -> None:
        self.settle()
        self.hot.stop(PATIENCE_S)
        self.close()

    def close(self) -> None:
        for writer in [*self.inputs, *self.outputs.values(), self.journal]:
            writer.close()
        for each in self.hot._readers:
            each.reader.close()

    @property
    def path(self) -> Path:
        return self.folder / "journal"


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.0005)


def small_run(folder: Path, *, handler: Any = None, prices: range = range(1, 10)) -> Path:
    """Journal a run of `Plain` over some prices; return the journal's path."""
    session = Session(folder, handler or Plain(), sources=1, outputs=("out",))
    session.hot.start()
    for price in prices:
        session.tick(0, price)
    session.stop()
    return session.path


def contents(path: Path) -> list[tuple[int, int, int, bytes]]:
    """Return all records of a queue."""
    with subscriber(path, None, start="earliest") as reader:
        return [(m.seq, m.type_id, m.timestamp_ns, bytes(m.payload)) for m in reader]


__all__ = ["SEGMENT_BYTES", "Session", "contents", "small_run", "until"]
