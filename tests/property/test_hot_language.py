"""The language of handlers: each operator and function, compiled, against Python itself.

One handler holds them all, and a number in the message chooses. Values are picked where machines
and Python part ways: ends of ranges, zeros of both signs, halves, infinities, NaN, long integers.
"""

from __future__ import annotations

import math
import os
from typing import Annotated, Any

import pytest
from chronicle.hot import Cells, Handler, Info, Table, mix64, on, symbol_key
from chronicle.hot.rules import MATH
from chronicle.message import (
    Array,
    MessageBase,
    bool_,
    char2,
    char8,
    char24,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    message,
    u8,
    u16,
    u32,
    u64,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.hot_support import (
    Harness,
    Step,
    assert_same,
    comparable,
    run_compiled,
    run_plain,
)

FULL = os.environ.get("CHRONICLE_FIRE") == "full"
SETTINGS = settings(
    max_examples=3_000 if FULL else 80,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
I64_MIN, I64_MAX = -(1 << 63), (1 << 63) - 1


@message(1)
class Ints(MessageBase):
    a: i64
    b: i64
    op: u8


@message(2)
class Floats(MessageBase):
    x: f64
    y: f64
    a: i64
    op: u8


class Integers(Handler):
    """Operators on two integers."""

    MASK = (1 << 63) - 1
    result: i64
    real: f64
    flag: bool_

    @on(Ints)
    def ints(self, m: Ints) -> None:
        a, b = m.a, m.b
        if m.op == 0:
            self.result = a + b
        elif m.op == 1:
            self.result = a - b
        elif m.op == 2:
            self.result = a * b
        elif m.op == 3:
            self.result = a // b
        elif m.op == 4:
            self.result = a % b
        elif m.op == 5:
            self.real = a / b
        elif m.op == 6:
            self.result = a ** (b & 7)
        elif m.op == 7:
            self.result = a << (b & 127)
        elif m.op == 8:
            self.result = a >> b
        elif m.op == 9:
            self.result = (a & b) | (a ^ ~b)
        elif m.op == 10:
            self.result = -a
        elif m.op == 11:
            self.result = abs(a)
        elif m.op == 12:
            self.result = min(a, b) if a % 2 else max(a, b)
        elif m.op == 13:
            self.flag = a < b or (a == b and a >= 0)
        elif m.op == 14:
            self.result = (a * b + (a << 5) - (b ^ a) * 31) & self.MASK
        elif m.op == 15:
            self.result = 0xFFFF & (a * 6_364_136_223_846_793_005 + b)
        elif m.op == 16:
            self.result = (a * b - a) % 65_536
        elif m.op == 17:
            self.result = mix64(a) ^ mix64(b)
        elif m.op == 18:
            self.flag = 0 <= a < b != 7
        elif m.op == 19:
            self.flag = not (a in (1, 2, b) and b not in (3, -1))
        elif m.op == 20:
            self.result = int(float(a)) if abs(a) < 1 << 62 else 0
        elif m.op == 21:
            self.result = (a & 3) * (b // 8) + (+a >> 60)
        elif m.op == 22:
            self.flag = bool(a) and bool(b & 1)
        elif m.op == 23:
            a += 3
            a -= b
            a *= 2
            a //= 5
            a %= 1_000_003
            a <<= 2
            a >>= 1
            a &= 0xFFFF_FFFF
            a |= 1
            a ^= b & 15
            self.result = a
        elif m.op == 24:
            self.result = (a or b) and (b or 5)
        elif m.op == 25:
            self.result = True + (a > b) * 2


class Reals(Handler):
    """Operators on floats, and on floats and integers."""

    real: f64
    single: f32
    result: i64
    flag: bool_

    @on(Floats)
    def floats(self, m: Floats) -> None:
        x, y, a = m.x, m.y, m.a
        if m.op == 0:
            self.real = x + y
        elif m.op == 1:
            self.real = x - y * a
        elif m.op == 2:
            self.real = x / y
        elif m.op == 3:
            self.real = x // y
        elif m.op == 4:
            self.real = x % y
        elif m.op == 5:
            self.real = x**y
        elif m.op == 6:
            self.real = -abs(x) + float(a)
        elif m.op == 7:
            self.flag = x < y
        elif m.op == 8:
            self.flag = x == y or x != x
        elif m.op == 9:
            self.flag = a < x
        elif m.op == 10:
            self.flag = x <= a
        elif m.op == 11:
            self.flag = a == x
        elif m.op == 12:
            self.flag = x != a
        elif m.op == 13:
            self.flag = a >= x
        elif m.op == 14:
            self.real = min(x, y)
        elif m.op == 15:
            self.real = max(x, y)
        elif m.op == 16:
            self.single = x
        elif m.op == 17:
            self.real = self.single + x
        elif m.op == 18 and abs(x) < 9e18:
            self.result = int(x)
        elif m.op == 19 and abs(x) < 9e18:
            self.result = round(x)
        elif m.op == 20:
            self.flag = math.isnan(x) or math.isinf(y) or math.isfinite(x + y)
        elif m.op == 21:
            self.flag = bool(x)
        elif m.op == 22:
            self.flag = not x and y > 0.0
        elif m.op == 23:
            self.real = a / x
        elif m.op == 24:
            self.real = x // 1 + x % 1
        elif m.op == 25:
            self.real = +x if x > y > 0.0 else y
        elif m.op == 26:
            self.result = math.floor(x) if abs(x) < 9e18 else 0
        elif m.op == 27:
            self.result = math.ceil(x) if abs(x) < 9e18 else 0
        elif m.op == 28:
            self.result = math.trunc(x) if abs(x) < 9e18 else 0
        elif m.op == 29:
            self.flag = x in (1, 2.5, a)
        elif m.op == 30:
            self.result = int(x)
        elif m.op == 31:
            self.real = x**2 + y**0.5


integers = (
    st.integers(I64_MIN, I64_MAX)
    | st.integers(-9, 9)
    | st.sampled_from([I64_MIN, I64_MIN + 1, I64_MAX, (1 << 53) + 1, -(1 << 53) - 1, 1 << 62])
    | st.integers(0, 62).map(lambda n: 1 << n)
)
floats = (
    st.floats()
    | st.sampled_from([0.0, -0.0, 0.5, 1.5, 2.5, -2.5, 1e308, -1e308, 5e-324, 2.0**53, 2.0**63])
    | st.sampled_from([float("inf"), float("-inf"), float("nan"), -(2.0**63), 9.5e18])
    | st.integers(-70, 70).map(float)
)


@pytest.fixture(scope="module", autouse=True)
def _compiled_once() -> None:
    for cls in (Integers, Reals, MathFunctions, Texts, Storage):
        Harness(cls())


@pytest.mark.parametrize("op", range(26))
def test_integers_are_pythons(op: int):
    @SETTINGS
    @given(integers, integers)
    @example(I64_MIN, -1)
    @example(I64_MAX, (1 << 53) + 1)
    @example(7, 0)
    @example(-7, 64)
    def check(a: int, b: int) -> None:
        assert_same(Integers, [Step(Ints(a=a, b=b, op=op))])

    check()


@pytest.mark.parametrize("op", range(32))
def test_floats_are_pythons(op: int):
    @SETTINGS
    @given(floats, floats, integers)
    @example(-1.0, float("inf"), 3)
    @example(2.0**53, 0.0, (1 << 53) + 1)
    @example(2.0**63, -0.0, I64_MAX)
    @example(-0.5, 2.0, -1)
    @example(1e39, -1e300, 5)
    def check(x: float, y: float, a: int) -> None:
        if op == 30 and math.isfinite(x) and abs(x) > 9e18:
            return  # A long integer in Python, a failure in 64 bits.
        step = Step(Floats(x=x, y=y, a=a, op=op))
        if op == 5 and x < 0 and math.isfinite(x) and math.isfinite(y) and y != math.floor(y):
            # Complex in Python, which may overflow there; no float in any case.
            assert run_compiled(Reals(), [step]).statuses == [2]
            assert run_plain(Reals(), [step]).statuses == [2]
            return
        assert_same(Reals, [step])

    check()


@message(3)
class MathArguments(MessageBase):
    x: f64
    y: f64
    op: u8


class MathFunctions(Handler):
    """All that may be called of `math`."""

    real: f64

    @on(MathArguments)
    def call(self, m: MathArguments) -> None:
        x, y, op = m.x, m.y, m.op
        if op < 12:
            self.first(x, op)
        elif op < 24:
            self.second(x, op)
        else:
            self.third(x, y, op)

    def first(self, x: float, op: int) -> None:
        if op == 0:
            self.real = math.acos(x)
        elif op == 1:
            self.real = math.acosh(x)
        elif op == 2:
            self.real = math.asin(x)
        elif op == 3:
            self.real = math.asinh(x)
        elif op == 4:
            self.real = math.atan(x)
        elif op == 5:
            self.real = math.atanh(x)
        elif op == 6:
            self.real = math.cbrt(x)
        elif op == 7:
            self.real = math.cos(x)
        elif op == 8:
            self.real = math.cosh(x)
        elif op == 9:
            self.real = math.degrees(x)
        elif op == 10:
            self.real = math.erf(x)
        elif op == 11:
            self.real = math.erfc(x)

    def second(self, x: float, op: int) -> None:
        if op == 12:
            self.real = math.exp(x)
        elif op == 13:
            self.real = math.expm1(x)
        elif op == 14:
            self.real = math.fabs(x)
        elif op == 15:
            self.real = math.log(x)
        elif op == 16:
            self.real = math.log10(x)
        elif op == 17:
            self.real = math.log1p(x)
        elif op == 18:
            self.real = math.log2(x)
        elif op == 19:
            self.real = math.radians(x)
        elif op == 20:
            self.real = math.sin(x)
        elif op == 21:
            self.real = math.sinh(x)
        elif op == 22:
            self.real = math.sqrt(x)
        elif op == 23:
            self.real = math.tan(x)

    def third(self, x: float, y: float, op: int) -> None:
        if op == 24:
            self.real = math.tanh(x)
        elif op == 25:
            self.real = math.atan2(x, y)
        elif op == 26:
            self.real = math.copysign(x, y)
        elif op == 27:
            self.real = math.fmod(x, y)
        elif op == 28:
            self.real = math.pow(x, y)


def test_every_function_of_math_that_is_allowed_is_tested():
    tested = {"ceil", "floor", "isfinite", "isinf", "isnan", "trunc"}
    names = MathFunctions.first.__code__.co_names + MathFunctions.second.__code__.co_names
    names += MathFunctions.third.__code__.co_names
    assert tested | (set(names) - {"math", "real"}) == set(MATH)


@pytest.mark.parametrize("op", range(29))
def test_mathematics_is_that_of_math(op: int):
    @SETTINGS
    @given(floats | st.floats(-2, 2), floats)
    @example(0.0, -1.0)
    @example(-1.0, 0.5)
    @example(1000.0, 1000.0)
    @example(float("-inf"), 3.0)
    @example(1.0, float("inf"))
    def check(x: float, y: float) -> None:
        plain = MathFunctions()
        step = Step(MathArguments(x=x, y=y, op=op))
        try:
            plain.call(step.message)  # type: ignore[arg-type]
        except OverflowError:
            harness = Harness(MathFunctions())
            assert harness.step(step) == 2
            assert harness.explain().startswith("OverflowError")
        except ValueError:
            assert assert_same(MathFunctions, [step]).failure is not None
        else:
            assert assert_same(MathFunctions, [step]).failure is None

    check()


@message(4)
class Text(MessageBase):
    short: char2
    symbol: char8
    wide: char24
    index: i64
    op: u8


class Texts(Handler):
    """Everything that can be done with text."""

    short: char2
    symbol: char8
    wide: char24
    result: i64
    flag: bool_

    @on(Text)
    def text(self, m: Text) -> None:
        if m.op == 0:
            self.flag = m.symbol == m.wide
        elif m.op == 1:
            self.flag = m.short < m.symbol
        elif m.op == 2:
            self.flag = m.wide >= m.symbol or m.wide <= b"ABC"
        elif m.op == 3:
            self.result = len(m.wide) * 100 + len(m.short) * 10 + len(m.symbol)
        elif m.op == 4:
            self.result = m.symbol[m.index]
        elif m.op == 5:
            self.result = m.wide[m.index]
        elif m.op == 6:
            self.result = m.short[0] + m.symbol[-1]
        elif m.op == 7:
            self.wide = m.symbol
        elif m.op == 8:
            self.symbol = m.wide
        elif m.op == 9:
            self.short = m.symbol
        elif m.op == 10:
            self.result = symbol_key(m.symbol) ^ symbol_key(m.short)
        elif m.op == 11:
            self.result = symbol_key(m.wide)
        elif m.op == 12:
            self.flag = not m.symbol or (bool(m.short) and m.wide != b"X")
        elif m.op == 13:
            self.flag = m.symbol in (b"AAPL", b"", m.wide)
        elif m.op == 14:
            self.log.info("{}|{}", m.symbol, m.short)
        elif m.op == 15:
            for byte in m.symbol:
                self.result = self.result * 31 % 1_000_003 + byte
        elif m.op == 16:
            self.wide = m.wide if m.index > 0 else self.wide


texts = st.binary(max_size=24) | st.sampled_from([b"AAPL", b"A", b"A\0B", b"\xff" * 8, b"\0\0B"])


@pytest.mark.parametrize("op", range(17))
def test_text_is_bytes(op: int):
    @SETTINGS
    @given(texts, texts, texts, st.integers(-26, 26))
    def check(short: bytes, symbol: bytes, wide: bytes, index: int) -> None:
        made = Text(short=short[:2], symbol=symbol[:8], wide=wide, index=index, op=op)
        assert_same(Texts, [Step(made)])

    check()


@message(5)
class Everything(MessageBase):
    b8: i8
    b16: i16
    b32: i32
    b64: i64
    c8: u8
    c16: u16
    c32: u32
    c64: u64
    single: f32
    double: f64
    flag: bool_
    text: char8
    numbers: Annotated[tuple[int, ...], Array(u64, 3)]
    reals: Annotated[tuple[float, ...], Array(f32, 2)]
    flags: Annotated[tuple[bool, ...], Array(bool_, 2)]


class Storage(Handler):
    """Every type of field, in state, in messages, in tables and in arrays."""

    b8: i8
    b16: i16
    b32: i32
    b64: i64
    c8: u8
    c16: u16
    c32: u32
    c64: u64
    single: f32
    double: f64
    flag: bool_
    rows: Annotated[Any, Table(Everything, 2)]
    a8: Annotated[Any, Array(i8, 3)]
    a32: Annotated[Cells[int], Array(u32, 3)]
    flags: Annotated[Any, Array(bool_, 2)]
    reals: Annotated[Any, Array(f32, 2)]

    @on(Ints)
    def ints(self, m: Ints) -> None:
        a, op = m.a, m.op
        if op == 0:
            self.b8 = a
        elif op == 1:
            self.b16 = a
        elif op == 2:
            self.b32 = a
        elif op == 3:
            self.b64 = a
        elif op == 4:
            self.c8 = a
        elif op == 5:
            self.c16 = a
        elif op == 6:
            self.c32 = a
        elif op == 7:
            self.c64 = a
        elif op == 8:
            self.single = a
        elif op == 9:
            self.double = a
        elif op == 10:
            self.flag = a  # type: ignore[assignment]
        elif op == 11:
            self.a8[m.b] = a
        elif op == 12:
            self.a32[m.b] += a
        elif op == 13:
            self.flags[m.b] = a > 0
        elif op == 14:
            self.rows[m.b].b8 = a
        elif op == 15:
            self.rows[m.b].numbers[1] = a
        elif op == 16:
            self.rows[1].c64 = self.b64 = a
        elif op == 17:
            self.rows[m.b].reals[0] = a
        elif op == 18:
            self.a8 = (1, 2, a)
        elif op == 19:
            row = self.rows[m.b]
            row.flags[0], row.flag = True, a == 1
            row.b64 -= a

    @on(Everything)
    def everything(self, m: Everything) -> None:
        self.rows[0] = m
        self.b8, self.b16, self.b32, self.b64 = m.b8, m.b16, m.b32, m.b64
        self.c8, self.c16, self.c32 = m.c8, m.c16, m.c32
        self.single, self.double, self.flag = m.single, m.double, m.flag
        self.reals = m.reals
        self.flags = m.flags
        self.rows[1] = Everything(
            b8=m.b8,
            b16=m.b16,
            b32=m.b32,
            b64=m.b64,
            c8=m.c8,
            c16=m.c16,
            c32=m.c32,
            c64=7,
            single=m.single,
            double=m.double,
            flag=m.flag,
            text=m.text,
            numbers=(1, m.c8, 3),
            reals=m.reals,
            flags=(m.flag, not m.flag),
        )
        self.log.info("{} {} {} {}", m.single, m.double, m.flag, m.b64)
        self.c64 = m.c64
        for number in m.numbers:
            self.b64 = number


@pytest.mark.parametrize("op", range(20))
def test_stores_are_checked_as_messages_are(op: int):
    @SETTINGS
    @given(integers | st.integers(-70_000, 70_000), st.integers(-4, 4))
    @example(128, 1)
    @example(-1, -3)
    @example(1 << 40, 2)
    def check(a: int, b: int) -> None:
        assert_same(Storage, [Step(Ints(a=a, b=b, op=op))])

    check()


def test_every_type_of_field_is_read_and_stored_alike():
    numbers = {f.name: f.type for f in Everything.FIELDS}
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for name, kind in numbers.items():
        if kind[0] in "iu":
            bits = int(kind[1:])
            low = -(1 << bits - 1) if kind[0] == "i" else 0
            fields[name] = st.integers(low, (1 << bits - (kind[0] == "i")) - 1)
    fields["single"] = st.floats(width=32)
    fields["double"] = floats
    fields["flag"] = st.booleans()
    fields["text"] = st.binary(max_size=8)
    fields["numbers"] = st.tuples(*[st.integers(0, (1 << 64) - 1)] * 3)
    fields["reals"] = st.tuples(*[st.floats(width=32)] * 2)
    fields["flags"] = st.tuples(st.booleans(), st.booleans())

    @SETTINGS
    @given(st.builds(Everything, **fields))
    def check(made: Everything) -> None:
        assert_same(Storage, [Step(made, Info(seq=1))])

    check()


def test_any_bytes_are_read_alike():
    """Bools that are neither 0 nor 1, NaNs of all kinds, text with NULs inside."""

    @SETTINGS
    @given(st.binary(min_size=Everything.size_bytes, max_size=Everything.size_bytes))
    def check(data: bytes) -> None:
        assert_same(Storage, [Step(Everything.view(data))])

    check()


def test_one_nan_is_as_good_as_another():
    assert comparable(float("nan")) == comparable(-float("nan"))
    assert comparable(0.0) != comparable(-0.0)
    assert comparable(1) != comparable(True)
