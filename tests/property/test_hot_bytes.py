"""Bytes, buffers and tables of outputs: compiled and uncompiled do the same, and fail alike.

One handler holds every operation, and the line of a datagram chooses. Its first words are places
and lengths, picked where checks go wrong: the ends, one beyond, negative, near the ends of 64 bits.
"""

from __future__ import annotations

import os
import re
import struct
from typing import Annotated

import pytest
from chronicle.hot import Buffer, Bytes, Handler, Info, Output, Outputs, Size, Slots, on
from chronicle.message import MessageBase, char2, char8, f64, i64, message, u32
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.hot_support import Harness, Step, assert_same, run_compiled, run_plain

FULL = os.environ.get("CHRONICLE_FIRE") == "full"
SETTINGS = settings(
    max_examples=5_000 if FULL else 300,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
HEAD_BYTES = 24


@message(40)
class Number(MessageBase):
    value: i64
    line: u32
    tag: u32


@message(41)
class Real(MessageBase):
    value: f64


@message(42)
class Text(MessageBase):
    text: char8
    short: char2


def twice(output: Output, data: Bytes, at: int) -> int:
    """Publish two numbers; outputs and bytes are passed to functions."""
    output.publish(Number(value=data.u8(at), line=0, tag=0))
    return output.publish_bytes(7, data.part(at, 1))


class Reads(Handler):
    total: i64
    held: Annotated[Buffer, Size(40)]
    guard: i64 = -1
    numbers: Output
    table: Annotated[Outputs, Slots(3)]

    @on.datagram
    def datagram(self, data: Bytes, info: Info) -> None:
        a = data.i64(0)
        b = data.i64(8)
        c = data.i64(16)
        body = data.part(24, len(data) - 24)
        line = info.line
        if line == 0:
            self.number(body.u8(a), info)
            self.number(body.i8(a), info)
        elif line == 1:
            self.number(body.u16(a), info)
            self.number(body.i16(a), info)
            self.number(body.u16_be(a), info)
            self.number(body.i16_be(a), info)
        elif line == 2:
            self.number(body.u32(a), info)
            self.number(body.i32(a), info)
            self.number(body.u32_be(a), info)
            self.number(body.i32_be(a), info)
        elif line == 3:
            self.number(body.i64(a), info)
            self.number(body.i64_be(a), info)
        elif line == 4:
            self.number(body.u64(a), info)
        elif line == 5:
            self.number(body.u64_be(a), info)
        elif line == 6:
            self.numbers.publish(Real(value=body.f64(a)))
            self.numbers.publish(Real(value=body.f64_be(a)))
            self.numbers.publish(Real(value=body.f32(a)))
            self.numbers.publish(Real(value=body.f32_be(a)))
        elif line == 7:
            self.numbers.publish(Text(text=body.chars(a, 8), short=body.chars(a, 2)))
            self.numbers.publish(Text(text=body.padded(a, 8), short=body.padded(a, 2)))
        elif line == 8:
            self.numbers.publish(Text(text=body.padded(a, 5), short=body.padded(a, 1)))
        elif line == 9:
            part = body.part(a, b)
            self.total += len(part)
            self.numbers.publish_bytes(c, part)
        elif line == 10:
            self.held.store(a, body)
            self.held.move(b, a, c)
        elif line == 11:
            self.held.store(0, self.held.view(a, b))
            self.numbers.publish_bytes(9, self.held.view(a, b))
        elif line == 12:
            output = self.table[a]
            output.publish(Number(value=a, line=line, tag=info.tag))
            self.table[b].publish_bytes(5, body)
        elif line == 13:
            self.total += twice(self.numbers, body, a)
            self.total += twice(self.table[1], body, a) * len(self.table)
        elif line == 14:
            view = self.held.view(0, 16)
            self.held.store(a, body)
            self.number(view.i64(0), info)
            self.total += len(self.held)
        else:
            # Constant places, of which the compiler may drop checks.
            part = body.part(0, len(body))
            if len(part) >= 12:
                self.number(part.u32(8) + part.u32_be(0), info)
            self.number(part.u8(12), info)

    @on.bytes(9)
    def raw(self, data: Bytes) -> None:
        self.total += len(data)
        self.numbers.publish_bytes(10, data)

    @on.bytes(65_535)
    def last(self, data: Bytes, info: Info) -> None:
        self.number(data.u8(0), info)

    @on(Real)
    def real(self, real: Real, info: Info) -> None:
        self.numbers.publish(Number(value=int(real.value), line=info.line, tag=info.tag))

    def number(self, value: int, info: Info) -> None:
        self.numbers.publish(Number(value=value, line=info.line, tag=info.tag))


def words(a: int, b: int, c: int, body: bytes) -> bytes:
    return struct.pack("<qqq", a, b, c) + body


def datagram(line: int, data: bytes, tag: int = 0) -> Step:
    return Step(data, Info(seq=1, source=2, line=line, tag=tag), kind="datagram")


EDGES = st.sampled_from(
    [-(1 << 63), 1 - (1 << 63), -9, -8, -1, 0, 1, 2, 3, 7, 8, 9, 12, 16, 24, 32, 39, 40, 41]
)
FAR = st.sampled_from([0xFFFF, 0x1_0000, (1 << 31) - 1, 1 << 32, (1 << 63) - 8, (1 << 63) - 1])
PLACES = EDGES | FAR | st.integers(0, 48)
BODIES = st.binary(max_size=48) | st.text("A \0\x7f", max_size=20).map(str.encode)


@SETTINGS
@given(
    st.lists(st.tuples(st.integers(0, 15), PLACES, PLACES, PLACES, BODIES), min_size=1, max_size=4)
)
@example([(9, 0, 0, 0, b"x")])
@example([(9, 0, 1, 65_536, b"x")])
@example([(12, -1, 0, 0, b"")])
@example([(12, 2, 3, 0, b"")])
@example([(4, 0, 0, 0, b"\xff" * 8)])
@example([(5, 0, 0, 0, b"\xff" * 8)])
@example([(8, 0, 0, 0, b"     ")])
@example([(7, 0, 0, 0, b"A \0     ")])
@example([(10, 0, 40, 1, b"x")])
@example([(10, 0, -1, 1, b"x")])
@example([(10, 0, 39, 2, b"x")])
@example([(10, 0, 8, 8, b"abcdefghijkl"), (10, 24, 20, 8, b"0123456789"), (14, 0, 0, 0, b"z")])
def test_whatever_the_place_both_ways_do_the_same(
    given_: list[tuple[int, int, int, int, bytes]],
) -> None:
    steps = [
        datagram(line, words(a, b, c, body), tag=n)
        for n, (line, a, b, c, body) in enumerate(given_)
    ]
    assert_same(Reads, steps)


@SETTINGS
@given(st.integers(0, 0xFFFF), st.binary(max_size=30))
def test_datagrams_of_any_line_and_length_are_taken_or_fail_alike(line: int, data: bytes) -> None:
    assert_same(Reads, [datagram(line, data)])


def test_a_place_outside_fails_with_its_line_and_the_same_text() -> None:
    for line, a, b, c, body, text in (
        (1, 7, 0, 0, bytes(8), "place out of range: u16 of bytes at=7"),
        (9, 1, 8, 5, bytes(8), "length out of range: part of bytes length=8"),
        (9, 9, 0, 5, bytes(8), "place out of range: part of bytes at=9"),
        (9, 0, 8, 0, bytes(8), "type_id is out of range: value=0 range=1..65535"),
        (10, 33, 0, 0, bytes(8), "length out of range: buffer 'held' of handler 'Reads' length=8"),
        (
            12,
            3,
            0,
            0,
            b"",
            "index out of range: outputs 'table' of handler 'Reads' index=3 count=3",
        ),
        (4, 0, 0, 0, b"\xff" * 8, "read it as i64"),
    ):
        step = datagram(line, words(a, b, c, body))
        outcome = assert_same(Reads, [step])
        assert outcome.failure is not None
        harness = Harness(Reads())
        harness.step(step)
        assert text in harness.explain()
        assert isinstance(step.message, bytes)
        with pytest.raises((IndexError, ValueError), match=re.escape(text)):
            Reads().receive(step.message, step.info, kind="datagram")


def test_a_buffer_ends_where_the_next_field_begins() -> None:
    body = bytes(range(1, 9))
    outcome = assert_same(Reads, [datagram(10, words(32, 0, 8, body))])
    assert outcome.failure is None
    layout = {field.name: field for field in Reads.SPEC.state}
    held = layout["held"].offset
    assert outcome.state[held : held + 8] == body
    assert outcome.state[held + 8 : held + 32] == bytes(24)
    assert outcome.state[held + 32 : held + 40] == body
    assert outcome.state[layout["guard"].offset :][:8] == b"\xff" * 8


def test_messages_of_a_queue_come_as_bytes_whatever_their_length() -> None:
    steps = [
        Step(b"", Info(type_id=9)),
        Step(b"abc", Info(type_id=9)),
        Step(b"\x05", Info(type_id=65_535, tag=(1 << 32) - 1)),
        Step(Real(value=3.5), Info(type_id=41, tag=7)),
        Step(b"nobody's", Info(type_id=8)),
    ]
    outcome = assert_same(Reads, steps)
    assert outcome.statuses == [0, 0, 0, 0, 1]
    numbers = [Number.view(data) for type_id, data in outcome.published["numbers"] if type_id == 40]
    assert outcome.published["numbers"][:2] == [(10, b""), (10, b"abc")]
    assert [(n.value, n.line, n.tag) for n in numbers] == [(5, 65_535, (1 << 32) - 1), (3, 41, 7)]
    # Without a first byte.
    assert assert_same(Reads, [Step(b"", Info(type_id=65_535))]).failure is not None


def test_a_datagram_is_no_message_whatever_its_line() -> None:
    class Both(Handler):
        datagrams: i64
        messages: i64

        @on.datagram
        def datagram(self, data: Bytes) -> None:
            self.datagrams += 1

        @on.bytes(3)
        def raw(self, data: Bytes) -> None:
            self.messages += 1

    steps = [datagram(3, b""), Step(b"", Info(type_id=3)), datagram(9, b"x")]
    for run in (run_compiled, run_plain):
        outcome = run(Both(), steps)
        assert outcome.statuses == [0, 0, 0]
        assert struct.unpack("<qq", outcome.state) == (2, 1)


def test_a_handler_without_datagrams_leaves_them_unhandled() -> None:
    class Typed(Handler):
        seen: i64

        @on(Real)
        def real(self, real: Real) -> None:
            self.seen += 1

    outcome = assert_same(Typed, [datagram(41, Real(value=1.0).pack())])
    assert outcome.statuses == [1]


def halves(data: Bytes, at: int) -> tuple[Bytes, Bytes]:
    return data.part(0, at), data.part(at, len(data) - at)


def longer(one: Bytes, other: Bytes) -> Bytes:
    if len(one) > len(other):
        return one
    return other


def keep(buffer: Buffer, data: Bytes) -> Bytes:
    buffer.store(0, data)
    return buffer.view(0, len(data))


class Passes(Handler):
    """Bytes, buffers and outputs in variables, tuples, conditions, parameters and results."""

    held: Annotated[Buffer, Size(64)]
    odd: Output
    even: Output
    table: Annotated[Outputs, Slots(2)]

    @on.datagram
    def datagram(self, data: Bytes, info: Info) -> None:
        output = self.odd if info.line % 2 else self.even
        first, second = halves(data, len(data) // 2)
        best = longer(first, second)
        for slot in range(len(self.table)):
            kept = keep(self.held, best if slot else second)
            output.publish_bytes(1 + slot, kept)
            output = self.choose(slot)
            while len(best) > 1:
                best = best.part(1, len(best) - 1)
        output.publish_bytes(9, best)

    def choose(self, slot: int) -> Output:
        if slot == 0:
            return self.table[1]
        return self.table[0]


@SETTINGS
@given(st.integers(0, 3), st.binary(max_size=64))
def test_bytes_buffers_and_outputs_go_through_variables_and_functions(
    line: int, data: bytes
) -> None:
    outcome = assert_same(Passes, [datagram(line, data)])
    assert outcome.failure is None
