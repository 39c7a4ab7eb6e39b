"""Draws the pictures of `chronicle top` that stand in the documentation: ``make screenshots``.

The bus on them is real: a feed in a process of its own, a guarded hot thread that works on it, and
a strategy that was killed. So numbers differ from run to run; what they show does not.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing as mp
import os
import re
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Annotated, Final

import chronicle
from chronicle.bus import Bus
from chronicle.hot import Counter, CountersFile, Handler, Output
from chronicle.message import MessageBase, Scale, char8, i64
from chronicle.top.app import TopApp
from chronicle.top.collect import Collector

ROOT: Final = Path(__file__).resolve().parents[1]
PICTURES: Final = ROOT / "docs" / "guides"
#: Each picture: its name, what is pressed before it, columns and rows.
SCREENS: Final = (
    # As wide as the widest table: nothing is cut off.
    ("top", "", (124, 26)),
    ("top-thread", "2 enter", (100, 30)),
    ("top-queue", "3 enter", (100, 26)),
)
LOOKS: Final = 4
LOOK_EVERY_S: Final = 0.5
PATIENCE_S: Final = 60.0
#: Textual names a font of another host; a picture of ours asks nobody for anything.
FONT_FACE: Final = re.compile(r"@font-face\s*\{.*?\}\s*", re.DOTALL)


@chronicle.message(1)
class Trade(MessageBase):
    """What the feed publishes."""

    symbol: char8
    price: Annotated[i64, Scale(4)]
    size: i64


@chronicle.message(2)
class Signal(MessageBase):
    """What the strategy makes of it."""

    symbol: char8
    mean: Annotated[i64, Scale(4)]


class Mean(Handler):
    """A moving mean of all prices."""

    mean: i64
    trades: Counter
    signals: Output

    @chronicle.on(Trade)
    def trade(self, trade: Trade) -> None:
        """Take one trade."""
        self.trades.add(1)
        self.mean += (trade.price - self.mean) // 64
        if trade.size % 4 == 0:
            self.signals.publish(Signal(symbol=trade.symbol, mean=self.mean))
        if trade.size % 4_000 == 0:
            self.log.info("mean {} at {}", self.mean, trade.size)  # noqa: PLE1205 - no `logging`


def leave_the_hot_core() -> int:
    """Keep this process off the last core, where there are more; return which one it is."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:-1] or cores)
    return cores[-1]


def feed(bus: str, ready: Event, stop: Event) -> None:
    """Publish trades until told to stop."""
    with (
        chronicle.Sidecar() as sidecar,
        Bus(bus).open_endpoint("feeds/sim", valid_s=60) as endpoint,
        chronicle.Queue.open_publisher(
            endpoint.path / "trades",
            schema=[Trade],
            segment_bytes=1 << 18,
            provisioner=sidecar.provisioner,
            retention_bytes=8 << 20,
            flush_interval=0.2,
        ) as writer,
    ):
        sidecar.publish_counters(CountersFile.create(endpoint.path / "COUNTERS"))
        endpoint.ready(["trades"])
        number = 0
        while not stop.is_set():
            for _ in range(20):
                number += 1
                symbol = (b"AAPL", b"MSFT", b"NVDA")[number % 3]
                price = 1_900_000 + number % 977
                writer.publish(Trade(symbol=symbol, price=price, size=number))
            ready.set()
            time.sleep(0.002)


def short_lived(bus: str, ready: Event) -> None:
    """Open an endpoint, and wait to be killed."""
    with Bus(bus).open_endpoint("orders/beta", valid_s=60) as endpoint:
        CountersFile.create(endpoint.path / "COUNTERS")
        endpoint.ready([])
        ready.set()
        time.sleep(PATIENCE_S)


async def draw(bus: Path, killed: mp.process.BaseProcess) -> dict[str, str]:
    """Look at the bus, kill a process, look again; return the pictures."""
    pictures = {}
    app = TopApp(Collector(bus), interval_s=None)
    async with app.run_test(size=SCREENS[0][2]) as pilot:
        for look in range(LOOKS):
            app.look_now()
            if look == 1:
                killed.kill()
                killed.join()
            await asyncio.sleep(LOOK_EVERY_S)
        for name, pressed, (width, height) in SCREENS:
            await pilot.resize_terminal(width, height)
            await pilot.press(*pressed.split())
            app.look_now()
            await app.workers.wait_for_complete()
            await pilot.pause(0.2)
            svg = app.export_screenshot(title="chronicle top /dev/shm/bus")
            pictures[name] = FONT_FACE.sub("", svg)
            await pilot.press("escape")
    return pictures


def main() -> None:
    """Draw all pictures."""
    # The processes that are started here inherit it.
    hot_core = leave_the_hot_core()
    context = mp.get_context("spawn")
    stop, feeds, lives = context.Event(), context.Event(), context.Event()
    logging.getLogger("chronicle.hot").setLevel(logging.INFO)
    logging.getLogger("chronicle.hot").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory(prefix="chronicle-screens-", dir="/dev/shm") as folder:
        bus = Path(folder)
        feeder = context.Process(target=feed, args=(folder, feeds, stop))
        beta = context.Process(target=short_lived, args=(folder, lives))
        feeder.start()
        beta.start()
        with (
            chronicle.Sidecar() as sidecar,
            Bus(bus).open_endpoint("orders/alpha", valid_s=60) as endpoint,
            chronicle.Queue.open_publisher(
                endpoint.path / "out",
                schema=[Signal],
                segment_bytes=1 << 18,
                provisioner=sidecar.provisioner,
                flush_interval=0.2,
            ) as out,
        ):
            counters = CountersFile.create(endpoint.path / "COUNTERS")
            hot = chronicle.HotThread(
                Mean(),
                outputs={"signals": out},
                name="mean",
                core=hot_core,
                guard="enforce",
                counters_file=counters,
            )
            sidecar.attach(hot)
            sidecar.publish_counters(counters, interval_s=0.2)
            if not (feeds.wait(PATIENCE_S) and lives.wait(PATIENCE_S)):
                raise TimeoutError("the processes of the bus did not start")
            trades = bus / "feeds" / "sim" / "trades"
            provisioner = sidecar.provisioner
            reader = chronicle.Queue.open_subscriber(trades, "alpha", provisioner=provisioner)
            hot.add_reader(reader)
            slow = chronicle.Queue.open_subscriber(trades, "archive", start="latest")
            endpoint.ready(["out"])
            time.sleep(1.0)
            pictures = asyncio.run(draw(bus, beta))
            slow.close()
        stop.set()
        feeder.join(PATIENCE_S)
    for name, svg in pictures.items():
        (PICTURES / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
