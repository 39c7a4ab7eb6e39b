"""Made-up handlers: random programs of the whole language, compiled and uncompiled, do the same.

A program is a method of random statements over typed variables and fields, with helpers. It is
written as source, as a user would, and run in both ways over messages with awkward numbers.
"""

from __future__ import annotations

import linecache
import os
import random
from typing import Any

import pytest
from chronicle.hot import Handler, Info
from chronicle.message import MessageBase, char8, f64, i64, message

from tests.hot_support import Step, assert_same, run_compiled

PROGRAMS = 2_000 if os.environ.get("CHRONICLE_FIRE") == "full" else 30
MESSAGES = 12

HEAD = """
import math
from chronicle.hot import Counter, Handler, Info, Output, mix64, on, symbol_key, table
from chronicle.message import MessageBase, array, bool_, char8, f32, f64, i8, i64, message, u16, u32

LIMITS = (3, 5, 8)
RATE = 0.25
NAME = b"ZIEXT"


@message(2)
class Row(MessageBase):
    size: u32
    price: i64
    ratio: f32
    name: char8
    levels: array[i64, 3]


def scale(value, factor=3):
    return value * factor % 1_000_003


def mean(a, b):
    return (a + b) / 2.0


class Random(Handler):
    n: i64
    m: i64
    small: i8
    wide: u32
    real: f64
    single: f32
    flag: bool_
    name: char8
    cells: array[i64, 5]
    reals: array[f64, 4]
    halves: array[u16, 3]
    rows: table[Row, 4]
    out: Output
    seen: Counter

    def bump(self, by):
        self.m = (self.m + by) % 97
        return self.m

    @on(Input)
    def run(self, t: Input, info: Info) -> None:
        i, j, x, y = t.a, t.b, t.x, t.y
        flag = t.a > t.b
"""


@message(1)
class Input(MessageBase):
    a: i64
    b: i64
    x: f64
    y: f64
    name: char8


class Writer:
    """Writes one random method body, of statements that keep the types of their variables."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lines: list[str] = []
        self.loops = 0

    def pick(self, *choices: str) -> str:
        return self.random.choice(choices)

    def kept(self) -> str:
        """Mostly keep a number small, so that programs go on."""
        return " % 120" if self.random.random() < 0.85 else ""

    def index(self, count: int, depth: int) -> str:
        if self.random.random() < 0.9:
            return f"({self.integer(depth - 1)}) % {count}"
        return self.pick("0", "-1", "2", "i", str(count))

    def integer(self, depth: int) -> str:
        if depth <= 0:
            return self.pick(
                *("i", "j", "t.a", "t.b", "self.n", "self.m", "self.small", "self.wide"),
                *(
                    "info.seq",
                    "0",
                    "1",
                    "-1",
                    "7",
                    "1_000",
                    "-65_536",
                    "len(self.cells)",
                    "self.seen.value",
                ),
            )
        a, b = self.integer(depth - 1), self.integer(depth - 1)
        choices = [
            f"({a} {self.pick('+', '-', '*', '&', '|', '^')} {b})",
            f"({a} {self.pick('+', '-')} {b})",
            f"({a} {self.pick('//', '%')} {self.pick('3', '-7', '16', '(1 + abs(j % 9))', b)})",
            f"({a} {self.pick('<<', '>>')} ({b} & 15))",
            f"({a} * 6_364_136_223_846_793_005 + {b} & {self.pick('0xFFFF', '(1 << 63) - 1')})",
            f"{self.pick('min', 'max')}({a}, {b})",
            f"({a} if {self.condition(depth - 1)} else {b})",
            f"abs({a} % 1_000)",
            f"int({self.real(depth - 1)} % 1_000.0)",
            f"math.floor({self.real(depth - 1)} % 77.0)",
            f"round({self.real(depth - 1)} % 10.0)",
            f"self.cells[{self.index(5, depth)}]",
            f"self.halves[{self.index(3, depth)}]",
            f"self.rows[{self.index(4, depth)}].size",
            f"self.rows[{self.index(4, depth)}].levels[{self.index(3, depth)}]",
            f"scale({a} % 10_000)",
            f"scale(value={a} % 10_000, factor={b} % 50)",
            f"self.bump({a} % 5)",
            f"mix64({a})",
            f"symbol_key({self.text()})",
            f"len({self.text()})",
            f"LIMITS[({a}) % 3]",
            f"-({a})",
            f"~({a})",
            f"(({a} % 7) ** {self.pick('0', '2', '3')})",
        ]
        return self.random.choice(choices)

    def real(self, depth: int) -> str:
        if depth <= 0:
            return self.pick(
                *("x", "y", "t.x", "t.y", "self.real", "self.single", "0.0", "1.5", "-2.25"),
                *("RATE", "1e10", "self.reals[1]", "self.rows[0].ratio"),
            )
        a, b = self.real(depth - 1), self.real(depth - 1)
        choices = [
            f"({a} {self.pick('+', '-', '*')} {b})",
            f"({a} * {self.integer(depth - 1)})",
            f"({a} {self.pick('/', '//', '%')} {self.pick('3.0', '-0.5', b)})",
            f"({self.integer(depth - 1)} / {self.pick('8', '1_000', '(1 + j % 2 * 3)')})",
            f"{self.pick('min', 'max')}({a}, {b})",
            f"({a} if {self.condition(depth - 1)} else {b})",
            f"math.sqrt(abs({a}))",
            f"math.{self.pick('sin', 'cos', 'atan', 'tanh', 'fabs')}({a} % 100.0)",
            f"float({self.integer(depth - 1)})",
            f"mean({a}, {b})",
            f"self.reals[{self.index(4, depth)}]",
            f"abs({a})",
            f"(({a}) % 9.0) ** 2",
        ]
        return self.random.choice(choices)

    def text(self) -> str:
        return self.pick("t.name", "self.name", "NAME", "b'MSFT'", "self.rows[1].name")

    def condition(self, depth: int) -> str:
        if depth <= 0:
            return self.pick("flag", "self.flag", "i > j", "x <= y", "i == x", "True")
        compare = self.pick("<", "<=", ">", ">=", "==", "!=")
        choices = [
            f"{self.integer(depth - 1)} {compare} {self.integer(depth - 1)}",
            f"{self.real(depth - 1)} {compare} {self.real(depth - 1)}",
            f"{self.integer(depth - 1)} {compare} {self.real(depth - 1)}",
            f"{self.text()} {self.pick('==', '!=', '<', '>=')} {self.text()}",
            f"({self.condition(depth - 1)} {self.pick('and', 'or')} {self.condition(depth - 1)})",
            f"not {self.condition(depth - 1)}",
            f"0 <= i < {self.integer(depth - 1)}",
            f"{self.integer(depth - 1)} {self.pick('in', 'not in')} (1, 2, i)",
            f"bool({self.integer(depth - 1)})",
            f"math.isnan({self.real(depth - 1)})",
        ]
        return self.random.choice(choices)

    def statement(self, indent: str, depth: int) -> None:
        add = self.lines.append
        choices: list[Any] = [
            lambda: add(f"{indent}{self.pick('i', 'j')} = {self.integer(3)}{self.kept()}"),
            lambda: add(f"{indent}{self.pick('i', 'j')} {self.augmented()} {self.integer(1)}"),
            lambda: add(f"{indent}{self.pick('x', 'y')} = {self.real(3)}"),
            lambda: add(f"{indent}{self.pick('x', 'y')} {self.pick('+=', '-=')} {self.real(1)}"),
            lambda: add(f"{indent}i, j = {self.integer(2)}{self.kept()}, {self.integer(2)}"),
            lambda: add(f"{indent}flag = {self.condition(2)}"),
            lambda: add(f"{indent}self.{self.pick('n', 'm')} = {self.integer(2)}{self.kept()}"),
            lambda: add(f"{indent}self.{self.pick('small', 'wide')} = {self.integer(2)} % 120"),
            lambda: add(f"{indent}self.n {self.pick('+=', '^=', '%=')} {self.integer(2)}"),
            lambda: add(f"{indent}self.{self.pick('real', 'single')} = {self.real(3)}"),
            lambda: add(f"{indent}self.flag = {self.condition(3)}"),
            lambda: add(f"{indent}self.name = {self.text()}"),
            lambda: add(f"{indent}self.cells[{self.index(5, 2)}] = {self.integer(3)}{self.kept()}"),
            lambda: add(f"{indent}self.cells[{self.index(5, 2)}] += {self.integer(2)}"),
            lambda: add(f"{indent}self.halves[{self.index(3, 2)}] = {self.integer(2)} & 0xFFFF"),
            lambda: add(f"{indent}self.reals[{self.index(4, 2)}] = {self.real(3)}"),
            lambda: add(f"{indent}self.rows[{self.index(4, 2)}].price = {self.integer(2)}"),
            lambda: add(f"{indent}self.rows[{self.index(4, 2)}].ratio = {self.real(2)}"),
            lambda: add(f"{indent}self.rows[{self.index(4, 2)}].levels[1] = {self.integer(2)}"),
            lambda: add(f"{indent}self.rows[{self.index(4, 1)}] = self.rows[{self.index(4, 1)}]"),
            lambda: add(f"{indent}self.rows[{self.index(4, 1)}] = {self.row()}"),
            lambda: add(f"{indent}self.out.publish({self.pick('t', 'self.rows[2]', self.row())})"),
            lambda: add(f"{indent}self.seen.add({self.integer(1)} & 7)"),
            lambda: add(
                f"{indent}self.log.info('{{}} {{}} {{}}', {self.integer(2)}, {self.real(2)}, flag)"
            ),
        ]
        if depth > 0:
            choices += [lambda: self.branch(indent, depth)] * 3
            choices += [lambda: self.loop(indent, depth)] * 2
        self.random.choice(choices)()

    def augmented(self) -> str:
        return self.pick("+=", "-=", "&=", "|=", "^=", ">>= 3 &", "%= 17 +")

    def row(self) -> str:
        return (
            f"Row(size={self.integer(1)} & 0xFFFF, price={self.integer(2)}, ratio={self.real(2)}, "
            f"name={self.text()}, levels=({self.integer(1)}, {self.integer(1)}, i))"
        )

    def block(self, indent: str, depth: int) -> None:
        for _ in range(self.random.randint(1, 3)):
            self.statement(indent, depth)

    def branch(self, indent: str, depth: int) -> None:
        self.lines.append(f"{indent}if {self.condition(2)}:")
        self.block(indent + "    ", depth - 1)
        if self.random.random() < 0.5:
            self.lines.append(f"{indent}else:")
            self.block(indent + "    ", depth - 1)

    def loop(self, indent: str, depth: int) -> None:
        self.loops += 1
        name = f"k{self.loops}"
        heads = [
            f"for {name} in range({self.pick('4', 'abs(i % 5)', 'len(self.reals)')}):",
            f"for {name} in range({self.pick('i % 7', '3')}, j % 4, {self.pick('1', '-2')}):",
            f"for {name} in self.cells:",
            f"for {name} in (1, 5, i % 9):",
            f"for {name} in t.name:",
        ]
        self.lines.append(indent + self.random.choice(heads))
        self.lines.append(f"{indent}    j = (j ^ {name}) % 10_007")
        self.block(indent + "    ", depth - 1)
        if self.random.random() < 0.3:
            self.lines.append(f"{indent}    if {self.condition(1)}:")
            self.lines.append(f"{indent}        {self.pick('break', 'continue')}")

    def body(self) -> str:
        indent = " " * 8
        for _ in range(self.random.randint(4, 9)):
            self.statement(indent, 2)
        return "\n".join(self.lines)


def make(seed: int) -> tuple[type[Handler], str]:
    text = HEAD + Writer(seed).body() + "\n"
    file = f"random_{seed}.py"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    space: dict[str, Any] = {"__name__": "made_up", "Input": Input}
    exec(compile(text, file, "exec"), space)
    made: type[Handler] = space["Random"]
    return made, text


def steps(seed: int) -> list[Step]:
    rng = random.Random(seed)
    ints = [0, 1, -1, 5, -9, 97, 1 << 20, -(1 << 33), (1 << 53) + 1, (1 << 62), -(1 << 63)]
    floats = [0.0, -0.0, 1.5, -2.75, 1e-9, 3e7, 1e300, float("inf"), float("-inf"), float("nan")]
    names = [b"", b"ZIEXT", b"MSFT", b"A", b"\xff\xfe"]
    found = []
    for number in range(MESSAGES):
        easy = rng.random() < 0.7
        made = Input(
            a=rng.randint(-50, 50) if easy else rng.choice(ints),
            b=rng.randint(-50, 50) if easy else rng.choice(ints),
            x=rng.uniform(-100, 100) if easy else rng.choice(floats),
            y=rng.uniform(-100, 100) if easy else rng.choice(floats),
            name=rng.choice(names),
        )
        found.append(Step(made, Info(seq=number + 1)))
    return found


def run(seed: int) -> None:
    """Run one program; a message on which it fails ends a run, so each also starts one."""
    cls, text = make(seed)
    try:
        all_steps = steps(seed)
        for start in range(0, MESSAGES, 3):
            assert_same(cls, all_steps[start:])
    except Exception as error:
        error.add_note(text)
        raise


@pytest.mark.parametrize("tenth", range(10))
def test_random_programs_do_the_same_both_ways(tenth: int):
    for seed in range(tenth, PROGRAMS, 10):
        run(seed)


def test_random_programs_are_about_more_than_failing():
    outcomes = [run_compiled(make(seed)[0](), steps(seed)) for seed in range(20)]
    assert sum(outcome.statuses.count(0) > 5 for outcome in outcomes) >= 5
    assert len({outcome.failure[0] for outcome in outcomes if outcome.failure}) >= 3
    assert any(outcome.published["out"] for outcome in outcomes)
    assert any(outcome.logged for outcome in outcomes)
