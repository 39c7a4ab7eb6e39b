"""Two hundred strategies attach to a router and leave again, within a minute.

    make strategies
    python examples/strategies.py --count 200 --seconds 40

The router runs here, so that its discovery and its hot thread can be looked at; the exchange is a
process. The strategies are small ones that share this process: each opens its endpoint, says that
it is ready, sends a few orders, stays until all are there, sends again, waits for every answer, and
leaves. At the end: the router has seen each come once and go once, its hot thread has made no
system call, every order is accounted for; and what one message costs the router with 1 source that
has nothing to say, and with as many as there were strategies.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import chronicle
from accounts import account, read_bus
from chronicle import (
    AddReader,
    HotThread,
    NotAQueue,
    Queue,
    QueueReader,
    QueueWriter,
    Sidecar,
)
from chronicle.bus import Bus
from chronicle.hot import WAITS, choose_wait
from chronicle.hot.waits import Wait
from chronicle.sidecar.discovery import Change, Ready, Vanished
from orders import BUY, Cancel, Order, Report
from router import SEATS, Router, start

HERE: Final = Path(__file__).parent
PATIENCE_S: Final = 180.0
ORDERS: Final = 5


class Small:
    """A strategy that sends a few orders and waits for the answers."""

    def __init__(self, bus: Bus, name: str, provisioner: chronicle.Provisioner) -> None:
        self.bus = bus
        self.name = name
        self.provisioner = provisioner
        self.order_ids = itertools.count(1)
        #: Requests that are not answered yet, by their number in the queue.
        self.waiting: set[int] = set()

    async def live(self, leave: asyncio.Event, attached: asyncio.Semaphore) -> None:
        with self.bus.open_endpoint(f"orders/{self.name}", valid_s=600.0) as endpoint:
            with Queue.open_publisher(
                endpoint.path / "out",
                schema=[Order, Cancel],
                segment_bytes=1 << 16,
                provisioner=self.provisioner,
            ) as out:
                endpoint.ready(["out"])
                await self.trade(out)
                attached.release()
                await leave.wait()
                await self.trade(out)

    async def trade(self, out: QueueWriter) -> None:
        """Send orders, cancel each, and read until all is answered."""
        for _ in range(ORDERS):
            order_id = next(self.order_ids)
            order = Order(
                order_id=order_id,
                cause=0,
                price=1_000,
                quantity=3,
                symbol=b"ZXIET",
                gateway=b"main",
                side=BUY,
            )
            cancel = Cancel(order_id=order_id, gateway=b"main")
            self.waiting |= {out.publish(order), out.publish(cancel)}
        end_s = time.monotonic() + PATIENCE_S
        while (reader := self.open_reports()) is None:
            await self._pause(end_s)
        with reader:
            while self.waiting:
                while (message := reader.next()) is not None:
                    self.waiting.discard(Report.view(message.payload).request)
                await self._pause(end_s)

    def open_reports(self) -> QueueReader | None:
        """Open the queue of reports, once the router has made it."""
        reports = self.bus.path / "orders" / self.name / "in" / "main"
        try:
            return Queue.open_subscriber(reports, None, start="earliest")
        except NotAQueue:
            return None

    async def _pause(self, end_s: float) -> None:
        if time.monotonic() > end_s:
            raise TimeoutError(f"strategy {self.name} waits for answers: {sorted(self.waiting)}")
        await asyncio.sleep(0.02)


async def come_and_go(bus: Bus, count: int, seconds: float) -> None:
    """Attach one after the other; when all are there, have them leave one after the other."""
    pause_s = seconds / (2 * count)
    attached = asyncio.Semaphore(0)
    gates = [asyncio.Event() for _ in range(count)]
    with chronicle.Provisioner() as provisioner:
        async with asyncio.TaskGroup() as group:
            for number, gate in enumerate(gates):
                small = Small(bus, f"s{number:03}", provisioner)
                group.create_task(small.live(gate, attached))
                await asyncio.sleep(pause_s)
            for _ in gates:
                await attached.acquire()
            print(f"all {count} are there", flush=True)
            for gate in gates:
                gate.set()
                await asyncio.sleep(pause_s)


class Events:
    """What the router's discovery has told."""

    def __init__(self) -> None:
        self.come: Counter[str] = Counter()
        self.gone: Counter[str] = Counter()

    def note(self, change: Change) -> None:
        match change:
            case Ready(path):
                self.come[Path(path).parent.name] += 1
            case Vanished(path, identity) if identity is not None:
                self.gone[Path(path).parent.name] += 1

    def wrong(self, count: int) -> list[str]:
        """Return what was not seen exactly once."""
        expected = Counter({f"s{number:03}": 1 for number in range(count)})
        wrong = []
        for what, seen in (("come", self.come), ("go", self.gone)):
            wrong += [
                f"{name} was seen to {what} {seen[name]} times"
                for name in sorted(expected.keys() | seen.keys())
                if seen[name] != expected[name]
            ]
        return wrong


def cost_ns(idle: int, *, messages: int = 100_000, rounds: int = 5) -> float:
    """Measure what a message costs a router that has so many sources with nothing to say."""
    costs = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="chronicle-cost-", dir=_memory()) as folder:
            costs.append(_cost_ns(Path(folder), idle, messages))
    return min(costs)


def _cost_ns(folder: Path, idle: int, messages: int) -> float:
    import numpy as np

    router = Router(
        name=b"main", is_live=1, open_orders_max=1 << 40, interval_ns=0, stale_ns=1 << 60
    )
    writers, readers = [], []
    for seat in range(idle + 1):
        router.seats[seat].session = seat + 1
        router.seats[seat].is_known = 1
        bytes_of_segment = 1 << (25 if seat == 0 else 16)
        path = folder / f"{seat}"
        writers.append(Queue.open_publisher(path, segment_bytes=bytes_of_segment))
        readers.append(AddReader(Queue.open_subscriber(path, None), seat))
    orders = np.zeros(messages, dtype=Order.dtype)
    orders["order_id"] = np.arange(1, messages + 1)
    orders["price"] = orders["quantity"] = 100
    orders["side"] = BUY
    orders["gateway"] = b"main"
    writers[0].append_many(orders, type_id=Order.type_id)
    with Queue.open_publisher(folder / "forwards", segment_bytes=1 << 25) as forwards:
        hot = HotThread(
            router,
            readers=readers,
            outputs={"forwards": forwards},
            sources_max=SEATS,
            wait="sleep",
            guard="enforce",
            meter="full",
        )
        with hot:
            while hot.status.messages < messages:
                time.sleep(0.001)
            elapsed = hot.loop_gap
        if hot.counters["forwarded"] != messages:
            raise RuntimeError(f"passed on {hot.counters['forwarded']} of {messages}")
    for writer in writers:
        writer.close()
    for reader in readers:
        reader.reader.close()
    # Turns take 64 messages each; the median leaves out those that were interrupted.
    return elapsed.quantile(0.5) / 64


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def run(folder: Path, count: int, seconds: float, wait: Wait) -> dict[str, Any]:
    """Run it all; return what was seen."""
    bus = Bus(folder / "bus")
    events = Events()
    with (folder / "exchange.log").open("wb") as log:
        command = [sys.executable, str(HERE / "exchange.py"), str(bus.path)]
        exchange = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            with Sidecar() as sidecar:
                hot = start(
                    sidecar, bus, "main", "sim", allowed=["*"], wait=wait, on_change=events.note
                )
                began_s = time.monotonic()
                asyncio.run(come_and_go(bus, count, seconds))
                took_s = time.monotonic() - began_s
                end_s = time.monotonic() + PATIENCE_S
                while events.wrong(count) and time.monotonic() < end_s:
                    time.sleep(0.01)
                status, counters = hot.status, hot.counters
            failure = hot.failure
        finally:
            exchange.terminate()
            exchange.wait()
    accounts = account(read_bus(bus.path))
    wrong = events.wrong(count) + accounts.faults
    if failure is not None:
        wrong.append(str(failure))
    if status.guard_seen:
        wrong.append(f"the hot thread made {status.guard_seen} system calls")
    for name in ("orphans", "strangers", "missed"):
        if counters[name]:
            wrong.append(f"{name}: {counters[name]}")
    return {
        "strategies": count,
        "seconds": round(took_s, 1),
        "seen_come": sum(events.come.values()),
        "seen_go": sum(events.gone.values()),
        "orders": accounts.orders,
        "acked": accounts.acked,
        "rejected": accounts.rejected,
        "messages": status.messages,
        "system_calls": status.guard_seen,
        "parks": status.parks,
        "wrong": wrong,
    }


def main() -> int:
    """Print what was seen; exit status 1 if something was not as it should be."""
    parser = argparse.ArgumentParser(description="Have many strategies come and go.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=40.0, help="to come and to go, in all")
    parser.add_argument("--messages", type=int, default=100_000, help="for the cost of one")
    parser.add_argument("--wait", default="auto", choices=WAITS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chronicle-many-", dir=_memory()) as folder:
        told = run(Path(folder), options.count, options.seconds, choose_wait(options.wait))
    few, many = (cost_ns(n, messages=options.messages) for n in (1, options.count))
    told |= {"cost_ns_1_idle": round(few, 1), f"cost_ns_{options.count}_idle": round(many, 1)}
    told["cost_ratio"] = round(many / few, 2)
    if options.json:
        print(json.dumps(told))
    else:
        for key, value in told.items():
            print(f"{key:20} {value}")
    return int(bool(told["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
