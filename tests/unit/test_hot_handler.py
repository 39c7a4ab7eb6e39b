"""Handlers: what a class may say, the object that it is uncompiled, and that both ways agree."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from chronicle.hot import Cells, Counter, Handler, Info, Output, Table, on, table
from chronicle.message import Array, MessageBase, array, char8, chars, f64, i8, i64, message, u32

from tests.hot_support import Harness, Step, assert_same


@message(1)
class Trade(MessageBase):
    price: f64
    qty: u32
    symbol: char8


@message(2)
class Signal(MessageBase):
    mean: f64
    cause: i64
    symbol: char8


@message(3)
class Level(MessageBase):
    price: i64
    size: u32


class Ewma(Handler):
    alpha: f64 = 0.5
    mean: f64
    count: i8
    window: Annotated[Cells[float], Array(f64, 4)]
    book: Annotated[Any, Table(Level, 3)]
    last: char8
    signals: Output
    seen: Counter

    @on(Trade)
    def trade(self, trade: Trade, info: Info) -> None:
        self.seen.add(1)
        self.count += 1
        self.mean += self.alpha * (trade.price - self.mean)
        self.window[self.count % 4] = trade.price
        row = self.book[self.count % 3]
        row.size += trade.qty // 2
        row.price = int(trade.price * 100)
        self.last = trade.symbol
        total = 0.0
        for price in self.window:
            total += price
        if trade.symbol == b"AAPL" or trade.qty in (1, 2, 3):
            self.signals.publish(Signal(mean=self.mean, cause=info.seq, symbol=trade.symbol))
            self.log.info("mean {} of {}: {}", self.mean, trade.symbol, total)
        self.check(trade.qty)

    def check(self, qty: int) -> None:
        if qty == 77:
            self.fail("seventy-seven")


def trades(*pairs: tuple[float, int, bytes]) -> list[Step]:
    return [
        Step(Trade(price=price, qty=qty, symbol=symbol), Info(seq=n + 1))
        for n, (price, qty, symbol) in enumerate(pairs)
    ]


def test_both_ways_do_the_same():
    found = assert_same(Ewma, trades((8.0, 5, b"AAPL"), (9.0, 3, b"X"), (1.25, 9, b"Y")))
    assert found.counters == {"seen": 3}
    assert len(found.published["signals"]) == 2
    assert found.failure is None


def test_a_failure_is_the_same_both_ways_with_its_line():
    found = assert_same(Ewma, trades((8.0, 5, b"AAPL"), (9.0, 77, b"X"), (1.0, 1, b"Y")))
    assert found.statuses == [0, 2]
    assert found.failure is not None
    assert found.failure[0] == "HandlerFailed"


def test_a_store_that_does_not_fit_fails_both_ways():
    found = assert_same(Ewma, trades(*[(1.0, 1, b"A")] * 200))
    assert found.failure is not None
    assert found.failure[0] == "ValueError"
    assert len(found.statuses) == 128


def test_a_short_payload_is_a_failure_and_no_read():
    harness = Harness(Ewma())
    assert harness.send(Trade(price=1.0, qty=1, symbol=b"A"), len_bytes=23) == 2
    assert "too few bytes for message 'Trade': found=23 expected=24" in harness.explain()
    assert harness.counters == {"seen": 0}


def test_a_message_of_another_type_or_kind_is_not_taken():
    harness = Harness(Ewma())
    assert harness.send(Signal(mean=1.0, cause=1, symbol=b"")) == 1
    assert harness.send(Trade(price=1.0, qty=1, symbol=b"A"), kind="command") == 1


def test_state_has_defaults_and_takes_values_by_keyword():
    handler = Ewma(alpha=0.25, window=(1, 2, 3, 4), book=[Level(price=5, size=6)])
    assert handler.alpha == 0.25
    assert list(handler.window) == [1.0, 2.0, 3.0, 4.0]
    assert handler.book[0] == Level(price=5, size=6)
    assert handler.state["alpha"] == 0.25
    assert handler.state["book"]["size"].tolist() == [6, 0, 0]


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"count": 128}, ValueError),
        ({"count": 1.5}, TypeError),
        ({"mean": b"x"}, TypeError),
        ({"nothing": 1}, TypeError),
        ({"window": (1, 2)}, ValueError),
        ({"last": b"123456789"}, ValueError),
    ],
)
def test_a_field_takes_what_fits_it(values: dict[str, Any], error: type[Exception]):
    with pytest.raises(error):
        Ewma(**values)


def test_an_attribute_that_is_not_declared_cannot_be_set():
    with pytest.raises(AttributeError, match="declares no state field 'maen'"):
        Ewma().maen = 1.0


def test_short_forms_of_annotations_mean_the_same():
    class Short(Handler):
        alpha: f64 = 0.5
        mean: f64
        count: i8
        window: array[f64, 4]  # type: ignore[type-arg, valid-type]
        book: table[Level, 3]  # type: ignore[type-arg, valid-type]
        last: chars[8]  # type: ignore[type-arg, valid-type]

    assert Short.SPEC.state == Ewma.SPEC.state


WIDTH = 4


class Limited(Handler):
    """A base in a module where `WIDTH` is 4."""

    cells: Annotated[Cells[int], Array(i64, WIDTH)]


def test_names_in_a_base_mean_what_they_meant_there():
    space: dict[str, Any] = {"WIDTH": 9, "Limited": Limited, "__name__": __name__}
    exec("class Derived(Limited):\n    pass", space)
    assert len(space["Derived"]().cells) == WIDTH == 4
