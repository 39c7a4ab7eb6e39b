"""Messages of the handlers in `tests.hot_handlers`."""

from __future__ import annotations

from typing import Annotated, Final

from chronicle.message import (
    Array,
    MessageBase,
    bool_,
    char8,
    f32,
    f64,
    i64,
    message,
    u8,
    u16,
    u32,
    u64,
)

SCALE: Final = 10_000
NS_PER_SECOND: Final = 1_000_000_000


@message(101)
class Signal(MessageBase):
    """What most of the handlers publish."""

    symbol: char8
    cause: i64
    value: f64
    kind: u8 = 0


@message(102)
class Bar(MessageBase):
    symbol: char8
    start_ns: i64
    prices: Annotated[tuple[int, ...], Array(i64, 4)]
    volume: u64
    count: u32


@message(103)
class Level(MessageBase):
    price: i64
    size: u32


@message(104)
class Position(MessageBase):
    symbol: char8
    key: i64
    quantity: i64
    cost: i64
    realized: i64
    trades: u32
    used: bool_


@message(105)
class SetLimit(MessageBase):
    limit: i64
    active: bool_


@message(106)
class Slot(MessageBase):
    symbol: char8
    last_price: i64
    volume: u64
    high: f32
    count: u16
