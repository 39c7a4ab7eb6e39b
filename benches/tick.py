"""Tick to order, hop by hop: feed handler, strategy and router, each against an empty relay.

A hop is queue, hot thread, handler, queue. For each, one input at a time is published on one core,
taken by a spinning, guarded hot thread on another, and its output polled for on the first. The cost
is the time from the call that publishes the input until the output was seen, by one clock; it holds
an append and a poll in Python. The floor of a hop is the same with a handler that only passes a
message of the size of an order on. The three hops in a row would need four cores; their sum does
not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chronicle
import numpy as np
from chronicle import AddReader, HotThread, Queue, QueueReader, QueueWriter
from chronicle.feeds.arbitration import LIVE_CLASSES, FeedHandler
from chronicle.feeds.generate import MarketGenerator, iex_packet
from chronicle.feeds.iex import TABLE, QuoteUpdate
from chronicle.hot import Bytes, Handler, Info, Output, on
from chronicle.message import MessageBase, i64
from orders import BUY, Execution, Forward, Kind, Order, Reason, Report
from router import EXCHANGE, Router
from strategy import FEED, TRADING, Strategy

from benches.common import Run, median, median_ratio, pinned, quantile

SENDER_CORE, READER_CORE = 0, 1
WARM_UP = 50
PACKET = 160
PATIENCE_NS = 30_000_000_000
SYMBOL = b"ZXIET"


@chronicle.message(161)
class Passed(MessageBase):
    """What a relay passes on: as large as an order."""

    number: i64
    words: i64
    more: i64
    most: i64
    rest: i64
    last: i64


class Relay(Handler):
    """The floor: it passes the message on."""

    out: Output

    @on(Passed)
    def passed(self, message: Passed) -> None:
        self.out.publish(
            Passed(
                number=message.number,
                words=message.words,
                more=message.more,
                most=message.most,
                rest=message.rest,
                last=message.last,
            )
        )


class QueuedFeed(FeedHandler):
    """The feed handler; its packets come by a queue, as what costs a ring is another figure."""

    @on.bytes(PACKET)
    def queued(self, data: Bytes, info: Info) -> None:
        self.line_packet(data, info)


@dataclass
class Hop:
    """A hop under way.

    Attributes
    ----------
    make
        Returns type id and bytes of the input of this number.
    writer, reader
        Of the inputs, and of what the handler publishes.
    wanted
        Type id of the output that answers an input.
    settle
        Called after each answer, for what must go back.
    """

    hot: HotThread
    make: Callable[[int], tuple[int, bytes]]
    writer: QueueWriter
    reader: QueueReader
    wanted: int
    settle: Callable[[Any], None] = lambda _message: None


def measure_hop(hop: Hop, count: int) -> float:
    """Return the median cost of the hop in nanoseconds."""
    costs = []
    append, poll, clock = hop.writer.append, hop.reader.next, time.perf_counter_ns
    for number in range(1, count + WARM_UP + 1):
        type_id, payload = hop.make(number)
        sent_ns = clock()
        append(type_id, payload)
        end_ns = clock() + PATIENCE_NS
        while (answer := poll()) is None or answer.type_id != hop.wanted:
            if clock() > end_ns:
                hop.hot.poll()
                raise AssertionError(f"no answer to input {number}: {hop.hot.failure}")
        costs.append(clock() - sent_ns)
        hop.settle(answer)
    hop.hot.poll()
    assert hop.hot.failure is None
    return quantile(sorted(costs[WARM_UP:]), 0.5)


def _hot(handler: Any, readers: list[Any], outputs: dict[str, Any]) -> HotThread:
    return HotThread(
        handler,
        readers=readers,
        outputs=outputs,
        core=READER_CORE % (os.cpu_count() or 1),
        wait="spin",
        guard="enforce",
    )


def _bytes(message: MessageBase) -> tuple[int, bytes]:
    return type(message).type_id, bytes(message)


class Queues:
    """Queues in memory, closed at the end of the hop."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def writer(self, name: str, *schema: type[MessageBase]) -> QueueWriter:
        return self._stack.enter_context(
            Queue.open_publisher(self._folder / name, schema=schema, segment_bytes=1 << 24)
        )

    def reader(self, name: str) -> QueueReader:
        return self._stack.enter_context(
            Queue.open_subscriber(self._folder / name, None, start="earliest")
        )


@contextmanager
def relay(queues: Queues, stack: ExitStack) -> Iterator[Hop]:
    source, out = queues.writer("in", Passed), queues.writer("out", Passed)
    hot = _hot(Relay(), [queues.reader("in")], {"out": out})

    def make(number: int) -> tuple[int, bytes]:
        return _bytes(Passed(number=number, words=2, more=3, most=4, rest=5, last=6))

    stack.enter_context(hot)
    yield Hop(hot, make, source, queues.reader("out"), Passed.type_id)


@contextmanager
def feed(queues: Queues, stack: ExitStack) -> Iterator[Hop]:
    source, live = queues.writer("in"), queues.writer("live", *LIVE_CLASSES)
    asked = queues.writer("requests")
    # Nobody recovers: what is first is the beginning.
    hot = _hot(QueuedFeed(recovery=False), [queues.reader("in")], {"live": live, "requests": asked})
    quotes = _quotes()
    offset = 0

    def make(number: int) -> tuple[int, bytes]:
        nonlocal offset
        row = quotes[number % len(quotes) : number % len(quotes) + 1]
        blocks = b"".join(len(w).to_bytes(2, "little") + w for w in _wire(row))
        packet = iex_packet(
            blocks, 1, sequence=number, offset=offset, sent_ns=1_000_000_000 + number * 1_000
        )
        offset += len(blocks)
        return PACKET, packet

    stack.enter_context(hot)
    yield Hop(hot, make, source, queues.reader("live"), QuoteUpdate.type_id)


def _quotes() -> Any:
    """Quotes of a made-up market."""
    for batch in MarketGenerator(seed=3).batches(4_096):
        at = np.flatnonzero(batch.type_ids == QuoteUpdate.type_id)
        return np.concatenate(
            [np.frombuffer(batch.payload(i), QuoteUpdate.dtype, 1) for i in at.tolist()]
        )
    raise AssertionError


def _wire(rows: Any) -> list[bytes]:
    return [row.tobytes() for row in TABLE.layouts[ord("Q")].encode(rows)]


@contextmanager
def strategy(queues: Queues, stack: ExitStack) -> Iterator[Hop]:
    live, reports = queues.writer("live", QuoteUpdate), queues.writer("reports", Report)
    out = queues.writer("out", Order)
    handler = Strategy(
        symbol=SYMBOL,
        session=1,
        phase=TRADING,
        is_fed=True,
        from_beginning=True,
        trading=True,
        ratio=1.0,
        pause_ns=0,
        life_ns=1 << 60,
        stale_ns=1 << 60,
        position_max=1 << 40,
        feed_ns=chronicle.clock_ns(),
    )
    handler.gateways[0].name = b"main"
    handler.gateways[0].is_up = 1
    readers = [AddReader(queues.reader("live"), FEED), AddReader(queues.reader("reports"), 1)]
    hot = _hot(handler, readers, {"out": out})

    def make(number: int) -> tuple[int, bytes]:
        return _bytes(
            QuoteUpdate(
                time_ns=number,
                symbol=SYMBOL,
                bid_price=1_000_000 + number % 7 * 100,
                ask_price=1_001_000 + number % 5 * 100,
                bid_size=5_000 + number % 3,
                ask_size=100,
                flags=0,
            )
        )

    def settle(message: Any) -> None:
        order = Order.view(message.payload)
        before = hot.counters["refused"]
        reports.publish(
            Report(
                cause=0,
                request=message.seq,
                session=1,
                order_id=order.order_id,
                execution_id=0,
                price=order.price,
                quantity=order.quantity,
                remaining=0,
                symbol=SYMBOL,
                kind=Kind.REJECT,
                side=BUY,
                reason=Reason.MARKET,
                closed=1,
            )
        )
        while hot.counters["refused"] == before:
            pass

    stack.enter_context(hot)
    yield Hop(hot, make, live, queues.reader("out"), Order.type_id, settle)


@contextmanager
def router(queues: Queues, stack: ExitStack) -> Iterator[Hop]:
    orders = queues.writer("orders", Order)
    queues.writer("executions", Execution)
    forwards, reports = queues.writer("forwards", Forward), queues.writer("reports", Report)
    handler = Router(
        name=b"main", is_live=1, open_orders_max=1 << 40, interval_ns=0, stale_ns=1 << 60
    )
    handler.seats[0].session = 1
    handler.seats[0].is_known = 1
    readers = [
        AddReader(queues.reader("orders"), 0),
        AddReader(queues.reader("executions"), EXCHANGE),
    ]
    hot = _hot(handler, readers, {"forwards": forwards, "reports": {0: reports}})

    def make(number: int) -> tuple[int, bytes]:
        return _bytes(
            Order(
                order_id=number,
                cause=number,
                price=1_000_000,
                quantity=10,
                symbol=SYMBOL,
                gateway=b"main",
                side=BUY,
            )
        )

    stack.enter_context(hot)
    yield Hop(hot, make, orders, queues.reader("forwards"), Forward.type_id)


def _measure(run: Run, make: Any, count: int) -> float:
    with run.scratch("tick") as folder, ExitStack() as stack:
        folder.mkdir(exist_ok=True)
        with make(Queues(folder, stack), stack) as hop, pinned(SENDER_CORE):
            return measure_hop(hop, count)


def measure(run: Run) -> dict[str, float]:
    """Measure each hop and its floor, in turns; medians over rounds."""
    count = run.size(1_000, 20)
    hops = {"relay": relay, "feed": feed, "strategy": strategy, "router": router}
    found: dict[str, list[float]] = {name: [] for name in hops}
    for _ in range(run.size(5, 1)):
        for name, make in hops.items():
            found[name].append(_measure(run, make, count))
    sums = [
        found["feed"][i] + found["strategy"][i] + found["router"][i]
        for i in range(len(found["feed"]))
    ]
    floors = [3 * each for each in found["relay"]]
    results = {f"tick_{name}_p50_median_ns": median(values) for name, values in found.items()}
    results["tick_to_order_p50_median_ns"] = median(sums)
    results["tick_floor_p50_median_ns"] = median(floors)
    results["tick_to_order_over_floor_ratio"] = median_ratio(sums, floors)
    return results
