"""Compiled handlers at their edges: what the loop may do to them, what a class may be made of."""

from __future__ import annotations

import enum
import math
from typing import Annotated, Any, ClassVar

import chronicle
import pytest
from chronicle.hot import (
    Cells,
    Counter,
    Handler,
    Info,
    Output,
    SourceGap,
    SourceRemoved,
    Table,
    on,
)
from chronicle.hot.compile import program_for
from chronicle.message import (
    Array,
    Chars,
    MessageBase,
    bool_,
    char8,
    f32,
    f64,
    i8,
    i64,
    message,
    message_from_schema,
    u8,
    u32,
    u64,
)

from tests.hot_support import SYMBOLS, Harness, Step, assert_same, run_compiled, run_plain

I64_MAX = (1 << 63) - 1


@message(1)
class Number(MessageBase):
    value: i64


@message(2)
class Large(MessageBase):
    value: u64
    many: Annotated[tuple[int, ...], Array(u64, 2)]


@message(3)
class Empty(MessageBase):
    pass


@message(4)
class Out(MessageBase):
    value: i64 = -1
    text: char8 = b"none"
    ratio: f64 = 0.5
    flags: Annotated[tuple[bool, ...], Array(bool_, 3)] = (True, False, True)


@message(5)
class Wide(MessageBase):
    text: Annotated[bytes, Chars(100)]
    more: Annotated[bytes, Chars(3)]


class Color(enum.IntEnum):
    RED = 1
    BLUE = 1 << 40


FACTOR = 7
LEVELS = (1.5, 2.5, 3.5)


class Echo(Handler):
    """Publishes what it is given."""

    seen: Counter
    out: Output

    @on(Number)
    def number(self, m: Number) -> None:
        self.seen.add(1)
        self.out.publish(Out(value=m.value))

    @on(Empty)
    def empty(self, m: Empty) -> None:
        self.out.publish(m)
        self.out.publish(Empty())


# --- What the loop may do ---


@pytest.mark.parametrize("code", [-1, -5, -(1 << 63)])
def test_an_output_that_refuses_fails_the_handler(code: int):
    harness = Harness(Echo())
    harness.append_result = code
    assert harness.send(Number(value=1)) == 2
    assert f"message 'Out' could not be published: code={code}" in harness.explain()
    assert harness.counters == {"seen": 1}


def test_an_output_without_a_writer_gives_zero():
    class Sequence(Handler):
        last: i64 = 5
        out: Output

        @on(Number)
        def number(self, m: Number) -> None:
            self.last = self.out.publish(m)

    harness = Harness(Sequence())
    harness.append_result = 0
    assert harness.send(Number(value=1)) == 0
    assert harness.state == bytes(8)


@pytest.mark.parametrize("size", range(8))
def test_no_payload_is_read_beyond_its_length(size: int):
    harness = Harness(Echo())
    assert harness.send(b"\xff" * size, type_id=1) == 2
    assert f"found={size} expected=8" in harness.explain()
    assert harness.published == []


def test_a_longer_payload_is_a_newer_message():
    harness = Harness(Echo())
    assert harness.send((5).to_bytes(8, "little") + b"\xff" * 9, type_id=1) == 0
    assert Out.view(harness.published[0].data).value == 5


@pytest.mark.parametrize("type_id", [0, 5, 0x8154, 65_001, 65_535])
@pytest.mark.parametrize("kind", ["data", "command", "event"])
def test_any_other_type_is_not_taken(type_id: int, kind: str):
    harness = Harness(Echo())
    assert harness.send(b"", type_id=type_id, kind=kind) == 1
    assert harness.context.fail_code == 0


def test_an_empty_message_is_taken_and_published():
    found = assert_same(Echo, [Step(Empty()), Step(Number(value=3))])
    assert [data for _, data in found.published["out"]] == [b"", b"", Out(value=3).pack()]


@pytest.mark.parametrize("value", [0, I64_MAX, I64_MAX + 1, (1 << 64) - 1])
def test_a_number_beyond_64_bits_signed_is_never_another_number(value: int):
    class Reads(Handler):
        first: u64
        second: i64

        @on(Large)
        def large(self, m: Large) -> None:
            self.first = m.value
            self.second = m.many[1]

    found = assert_same(Reads, [Step(Large(value=value, many=(1, 2)))])
    assert (found.failure is None) == (value <= I64_MAX)
    found = assert_same(Reads, [Step(Large(value=1, many=(1, value)))])
    assert (found.failure is None) == (value <= I64_MAX)


def test_such_a_number_can_be_passed_on_unread():
    class Passes(Handler):
        kept: Annotated[Any, Table(Large, 2)]
        out: Output

        @on(Large)
        def large(self, m: Large) -> None:
            self.kept[1] = m
            self.kept[0] = self.kept[1]
            self.out.publish(self.kept[0])

    sent = Large(value=(1 << 64) - 1, many=(0, (1 << 64) - 1))
    found = assert_same(Passes, [Step(sent)])
    assert found.published["out"] == [(2, sent.pack())]


def test_an_envelope_that_is_too_large_is_a_failure():
    class Reads(Handler):
        last: i64

        @on(Number)
        def number(self, m: Number, info: Info) -> None:
            self.last = info.seq

    harness = Harness(Reads())
    info = Info(seq=1)
    object.__setattr__(info, "seq", 1 << 63)
    assert harness.send(Number(value=1), info) == 2
    assert "info.seq holds a number beyond 64-bit signed" in harness.explain()


def test_hooks_fail_and_stop_too():
    class Hooks(Handler):
        count: i8

        @on.start
        def start(self) -> None:
            self.count = 120

        @on.idle
        def idle(self) -> None:
            self.count += 4
            if self.count == 124:
                self.stop()

        @on.stop
        def ended(self) -> None:
            self.fail("no more")

    steps = [Step(None, hook=hook) for hook in ("start", "idle")]
    assert assert_same(Hooks, steps).stop
    found = assert_same(Hooks, [*steps, Step(None, hook="idle")])
    assert found.failure is not None
    assert found.failure[0] == "ValueError"
    ended = assert_same(Hooks, [Step(None, hook="stop")])
    assert ended.failure is not None
    assert ended.failure[0] == "HandlerFailed"


def test_a_handler_without_messages_or_state_is_one_too():
    class Nothing(Handler):
        @on.idle
        def idle(self) -> None:
            pass

    found = assert_same(Nothing, [Step(None, hook="idle"), Step(Number(value=1))])
    assert found.statuses == [0, 1]
    assert found.state == b""


def test_what_failed_says_nothing_of_itself_when_nothing_did():
    program = program_for(Echo(), symbols=SYMBOLS)
    assert program.explain is not None
    assert "without a reason" in program.explain(0, 0)
    assert "without a reason" in program.explain(1, -1)
    assert "without a reason" in program.explain(1, 1 << 62)
    assert "without a reason" in program.explain(1, 0xFFFF_FFFF)


# --- What a class may be made of ---


class Base(Handler):
    total: i64
    SCALE: ClassVar[int] = 3
    seen: Counter

    @on(Number)
    def number(self, m: Number) -> None:
        self.seen.add(1)
        self.total += self.weight(m.value) * self.SCALE

    def weight(self, value: int) -> int:
        return value


class Derived(Base):
    extra: i64 = 10
    SCALE: ClassVar[int] = 5

    def weight(self, value: int) -> int:
        return value * 2 + self.extra

    @on(SourceGap)
    def gap(self, m: SourceGap) -> None:
        self.total = -1


def test_a_derived_handler_overrides_methods_constants_and_adds_fields():
    steps = [Step(Number(value=4))]
    base, derived = assert_same(Base, steps), assert_same(Derived, steps)
    assert int.from_bytes(base.state, "little") == 12
    assert int.from_bytes(derived.state[:8], "little") == 90
    assert [field.name for field in Derived.SPEC.state] == ["total", "extra"]
    assert run_compiled(Derived(extra=0), steps).state == run_plain(Derived(extra=0), steps).state


def test_constants_come_from_everywhere_and_are_as_they_were_when_it_was_compiled():
    local, text = 11, b"LOCAL"

    class Constants(Handler):
        LIMIT = 1_000
        total: i64
        name: char8
        real: f64

        @on(Number)
        def number(self, m: Number) -> None:
            self.total = FACTOR * m.value + local + Color.RED + Color.BLUE + self.LIMIT
            self.total += Number.type_id + math.floor(math.pi)
            self.name = text
            self.real = LEVELS[m.value] * LEVELS[-1]

    for value in (0, 1, 2, 3, -3, -4):
        assert_same(Constants, [Step(Number(value=value))])


def test_defaults_of_messages_are_filled_in():
    class Fills(Handler):
        out: Output

        @on(Number)
        def number(self, m: Number) -> None:
            self.out.publish(Out())
            self.out.publish(Out(value=m.value, text=b"str"))
            built = Out(ratio=2)
            self.out.publish(built)

    found = assert_same(Fills, [Step(Number(value=9))])
    assert [Out.view(data) for _, data in found.published["out"]] == [
        Out(),
        Out(value=9, text=b"str"),
        Out(ratio=2.0),
    ]


def test_a_built_message_has_no_stray_bytes():
    @message(9)
    class Padded(MessageBase):
        a: u8
        b: i64
        c: u8

    class Pads(Handler):
        out: Output
        table: Annotated[Any, Table(Padded, 1)]

        @on(Number)
        def number(self, m: Number) -> None:
            self.table[0] = Padded(a=255, b=-1, c=255)
            self.out.publish(Padded(a=1, b=m.value, c=3))
            self.table[0] = Padded(a=1, b=2, c=3)
            self.out.publish(self.table[0])

    found = assert_same(Pads, [Step(Number(value=2))])
    expected = b"\1" + bytes(7) + b"\2" + bytes(7) + b"\3" + bytes(7)
    assert [data for _, data in found.published["out"]] == [expected, expected]


def test_a_class_from_a_stored_schema_is_as_good():
    again = message_from_schema(Number.schema)

    class FromSchema(Handler):
        last: i64

        @on(again)
        def number(self, m: Any) -> None:
            self.last = m.value

    assert_same(FromSchema, [Step(Number(value=5)), Step(again.view(Number(value=6).pack()))])


def test_wide_text_is_text():
    class Copies(Handler):
        wide: Annotated[bytes, Chars(100)]
        odd: Annotated[bytes, Chars(3)]
        length: i64
        last: i64
        same: bool_

        @on(Wide)
        def wide_text(self, m: Wide) -> None:
            self.same = self.wide == m.text and m.more < m.text
            self.wide = m.text
            self.length = len(m.text) * 1_000 + len(m.more)
            self.odd = m.more
            if m.text:
                self.last = m.text[-1] * 256 + m.text[len(m.text) // 2]

    texts = [b"", b"x" * 100, b"a\0b", bytes(range(1, 101)), b"\xff" * 99]
    steps = [Step(Wide(text=text, more=text[:3])) for text in texts for _ in range(2)]
    assert_same(Copies, steps)


def test_loops_break_continue_and_end_as_pythons():
    class Loops(Handler):
        cells: Annotated[Cells[int], Array(i64, 8)]
        total: i64
        count: u32

        @on(Number)
        def number(self, m: Number) -> None:
            for i in range(10, -10, -3):
                if i == m.value:
                    continue
                self.total += i
            self.count += 1
            i = 0
            while True:
                i += 1
                if i > m.value:
                    break
                if i % 2:
                    continue
                self.total += i * 100
            for i, cell in enumerate(self.cells):
                if cell == m.value:
                    break
                self.cells[i] += i
            else:
                self.count += 10
            for a, b in ((1, 2), (3, 4)):
                self.total += a * b
            self.count += i
            for i in range(m.value, m.value + 3):
                self.total += i
            while i < 3:
                i += 1
            self.count += 100

    for value in (-5, 0, 1, 4, 7):
        assert_same(Loops, [Step(Number(value=value))] * 3)


def test_helpers_return_tuples_and_take_rows():
    @message(8)
    class Row(MessageBase):
        size: u32
        ratio: f32

    class Helpers(Handler):
        rows: Annotated[Any, Table(Row, 3)]
        low: i64
        high: i64

        @on(Number)
        def number(self, m: Number) -> None:
            self.low, self.high = self.order(m.value, 5)
            self.grow(self.rows[1], m.value)
            first, second = self.rows[0], self.rows[1]
            first.size = second.size + 1

        def order(self, a: int, b: int) -> tuple[int, int]:
            if a < b:
                return a, b
            return b, a

        @staticmethod
        def grow(row: Any, amount: int) -> None:
            row.size += amount
            row.ratio = row.size / 3

    for value in (1, 9, -1):
        assert_same(Helpers, [Step(Number(value=value))] * 2)


def test_things_happen_in_pythons_order():
    class Order(Handler):
        cells: Annotated[Cells[int], Array(i64, 8)]
        pair: Annotated[Any, Table(Large, 2)]
        count: i64
        log_: i64

        @on(Number)
        def number(self, m: Number) -> None:
            self.cells[self.count] = self.next(2)
            self.cells[self.next(1) % 8] += self.next(3)
            self.cells[self.next(1) % 8], self.log_ = self.next(1), self.next(2)
            self.pair[self.count % 2].value = self.next(1)
            self.count -= self.next(1) - 1
            self.log_ = self.log_ * 10 + self.both(self.next(1), self.next(2))
            self.log_ += self.both(b=m.value, a=self.count)
            for i in range(self.next(0), self.next(1)):
                self.log_ += i

        def next(self, step: int) -> int:
            self.count = (self.count + step) % 8
            return self.count

        def both(self, a: int, b: int) -> int:
            return a * 7 + b

    assert_same(Order, [Step(Number(value=value)) for value in range(12)])


@message(7)
class Three(MessageBase):
    first: i64
    last: i64
    step: i64


class Ranges(Handler):
    total: i64
    turns: i64

    @on(Three)
    def three(self, m: Three) -> None:
        for i in range(m.first, m.last, m.step):
            self.total = i
            self.turns += 1
            if self.turns > 100:
                break


@pytest.mark.parametrize(
    "bounds",
    [(0, 10, 3), (10, 0, -3), (0, 10, -1), (5, 5, 1), (I64_MAX - 2, I64_MAX, 1), (-3, 3, 0)],
)
def test_ranges_are_pythons(bounds: tuple[int, int, int]):
    found = assert_same(Ranges, [Step(Three(first=bounds[0], last=bounds[1], step=bounds[2]))])
    assert (found.failure is not None) == (bounds[2] == 0)


@pytest.mark.parametrize("bounds", [(-2, I64_MAX, I64_MAX), (0, -I64_MAX - 1, -1)])
def test_a_range_that_cannot_be_counted_is_a_failure(bounds: tuple[int, int, int]):
    harness = Harness(Ranges())
    assert harness.send(Three(first=bounds[0], last=bounds[1], step=bounds[2])) == 2
    assert "left 64 bits" in harness.explain()


def test_infinities_and_nan_are_constants():
    class Special(Handler):
        low: f64
        high: f64
        none: f64

        @on(Number)
        def number(self, m: Number) -> None:
            self.low, self.high, self.none = float("-inf"), math.inf, float("nan")

    assert_same(Special, [Step(Number(value=1))])


def test_a_failure_within_a_helper_names_the_helpers_line():
    class Divides(Handler):
        result: i64

        @on(Number)
        def number(self, m: Number) -> None:
            self.result = divide(100, m.value)

    found = assert_same(Divides, [Step(Number(value=3)), Step(Number(value=0))])
    assert found.failure == ("ZeroDivisionError", divide.__code__.co_firstlineno + 1)


def divide(a: int, b: int) -> int:
    return a // b


# --- What a class may not be ---


def test_a_class_that_cannot_be_is_refused_where_it_is_written():
    with pytest.raises(TypeError, match="two methods for on\\(Number\\): 'first' and 'second'"):

        class Twice(Handler):
            @on(Number)
            def first(self, m: Number) -> None: ...
            @on(Number)
            def second(self, m: Number) -> None: ...

    with pytest.raises(TypeError, match="overrides one that has on"):

        class Forgets(Base):
            def number(self, m: Number) -> None: ...

    with pytest.raises(TypeError, match="is taken by the handler itself"):

        class Taken(Handler):
            log: i64  # type: ignore[assignment]

    with pytest.raises(TypeError, match="has no fixed layout"):

        class Loose(Handler):
            names: list[str]

    with pytest.raises(TypeError, match="must take \\(self, message\\)"):

        class Arguments(Handler):
            @on(Number)  # type: ignore[arg-type]
            def number(self, m: Number, info: Info, more: int) -> None: ...

    with pytest.raises(TypeError, match="takes a message class"):
        on(int)
    with pytest.raises(TypeError, match="decorates a plain method"):
        on.idle(5)  # type: ignore[type-var]


def test_a_method_says_what_it_was_given():
    with pytest.raises(TypeError, match="takes Number \\(type_id=1\\)"):
        Echo().number(Out())  # type: ignore[arg-type]
    short = Number.view(bytes(8))
    short._buffer = b"1234"
    with pytest.raises(chronicle.SchemaMismatch, match="too few bytes"):
        Echo().number(short)


def test_events_are_messages():
    assert SourceGap.size_bytes == 24
    assert [f.offset for f in SourceGap.FIELDS] == [0, 8, 16, 20]
    assert (SourceRemoved.type_id, SourceGap.type_id) == (65_002, 65_003)


def test_only_an_instance_is_compiled():
    with pytest.raises(chronicle.CompileError, match="takes an instance"):
        program_for(Echo)  # type: ignore[arg-type]


def test_state_of_another_layout_is_not_taken_over():
    handler = Base()
    with pytest.raises(chronicle.SchemaMismatch, match="found=3 expected=8"):
        handler.load_state(b"abc")
    handler.load_state((7).to_bytes(8, "little"))
    assert handler.total == 7
    assert program_for(handler, symbols=SYMBOLS).state == handler.state_bytes()
