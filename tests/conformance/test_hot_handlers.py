"""A handler on a hot thread, between real queues, does what it does as an ordinary object."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle.feeds.iex import BuyLevel, SellLevel, Trade
from chronicle.hot import Handler, Info
from chronicle.message import MessageBase

from tests.hot_books import OrderBook
from tests.hot_handlers import Checksum, Ewma, FanOut, LastTrades, RiskLimits, SymbolTable

COUNT = 3_000
HANDLERS = (Checksum, Ewma, FanOut, LastTrades, OrderBook, RiskLimits, SymbolTable)


def market(seed: int) -> Iterator[MessageBase]:
    rng = random.Random(seed)
    symbols = [b"ZXIET", b"ZIEXT", b"MSFT", b"IRS", b"CVS"]
    price = 500_000
    for number in range(COUNT):
        price = max(10_000, price + rng.randint(-400, 400))
        symbol = rng.choice(symbols)
        common: dict[str, Any] = {"time_ns": number * 1_000_000, "symbol": symbol}
        common["flags"] = rng.randint(0, 127)
        if rng.random() < 0.5:
            yield Trade(price=price, trade_id=number, size=rng.randint(1, 900), **common)
        else:
            side = rng.choice((BuyLevel, SellLevel))
            level = price - price % 1_000 + (-2_000 if side is BuyLevel else 2_000)
            yield side(price=level, size=rng.choice((0, 100, 700)), **common)


def published(path: Path) -> list[tuple[int, bytes]]:
    with chronicle.Queue.open_subscriber(path, "check", start="earliest") as reader:
        found = []
        while (each := reader.next()) is not None:
            found.append((each.type_id, bytes(each.payload)))
        return found


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda cls: cls.__name__)
def test_a_hot_thread_does_what_the_object_does(
    handler: type[Handler], folder: Path, caplog: pytest.LogCaptureFixture
):
    names = handler.SPEC.outputs
    messages = list(market(7))
    plain = handler()
    with caplog.at_level(logging.CRITICAL, logger=plain.log.name):
        for number, each in enumerate(messages):
            plain.receive(each, Info(number + 1, 0, 0, each.type_id))
            if plain.stop_asked:
                messages = messages[: number + 1]
                break

    source = chronicle.Queue.open_publisher(folder / "in", segment_bytes=1 << 20)
    for each in messages:
        source.publish(each)
    reader = chronicle.Queue.open_subscriber(folder / "in", "hot", start="earliest")
    writers = {
        name: chronicle.Queue.open_publisher(folder / name, segment_bytes=1 << 20) for name in names
    }
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        thread = chronicle.HotThread(handler(), readers=[reader], outputs=writers)
        thread.start()
        deadline = time.monotonic() + 60
        while thread.status.messages < len(messages) and thread.failure is None:
            assert time.monotonic() < deadline
            thread.poll()
            time.sleep(0.001)
        thread.stop()
        thread.poll()
    assert thread.failure is None
    assert thread.state.tobytes() == plain.state_bytes()
    assert thread.counters == {name: getattr(plain, name).value for name in handler.SPEC.counters}
    for name, writer in writers.items():
        writer.close()
        expected = [(m.type_id, m.pack()) for m in getattr(plain, name).published]
        assert published(folder / name) == expected
    lines = [r.getMessage() for r in caplog.records if "hot" in r.name and r.levelno < 50]
    for level, template, arguments in plain.log.records:
        assert level < 50
        shown = [a.decode() if isinstance(a, bytes) else a for a in arguments]
        assert template.format(*shown) in lines
    reader.close()
    source.close()
