"""What the audit refuses, each with its construct, file, line and remedy; and what it lets pass."""

from __future__ import annotations

import itertools
import linecache
import textwrap
from typing import Any, NamedTuple

import chronicle
import pytest
from chronicle.hot import Handler
from chronicle.hot.compile import program_for
from chronicle.hot.rules import REFUSED_BUILTINS, REFUSED_SYNTAX

from tests.hot_support import SYMBOLS

HEAD = """
import array as array_module
import ctypes
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import io
import json
import logging
import math
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from time import perf_counter_ns

import numpy as np

from typing import Annotated

from chronicle.hot import Buffer, Counter, Handler, Info, Output, Outputs, Size, Slots
from chronicle.hot import on, table, mix64, symbol_key
from chronicle.message import array, bool_, char8, chars, f64, i32, i64, message, u8, MessageBase

SIZES = [1, 2, 3]
NAMES = {"a": 1}
TABLE = np.zeros(4)
COUNT = 0
HUGE = 1 << 70
LIBC = ctypes.CDLL(None)
GETPID = LIBC.getpid


@message(1)
class Trade(MessageBase):
    price: f64
    qty: i64
    symbol: char8
    levels: array[f64, 3]


@message(2)
class Order(MessageBase):
    price: f64
    qty: u8
    symbol: char8 = b""


def even(n):
    return n == 0 or odd(n - 1)  # MUTUAL


def odd(n):
    return n != 0 and even(n - 1)


def forever(n):
    return forever(n - 1)  # FOREVER


def impure(n):
    print(n)  # IN HELPER
    return n


class Thing:
    pass


def decorated(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)
    return inner


@decorated
def wrapped(n):
    return n


@functools.lru_cache
def cached(n):
    return n


class Plain(enum.Enum):
    ONE = 1


@message(3)
class Huge(MessageBase):
    cells: array[i64, 300]


NP_ONE = np.float32(1)
THING = Thing()
"""

CLASS = """

class Refused(Handler):
    LIMIT = 100
    NAME = "text"
    mean: f64
    count: i64
    small: u8
    flag: bool_
    name: char8
    window: array[f64, 8]
    many: array[i64, 300]
    book: table[Order, 4]
    out: Output
    slots: Annotated[Outputs, Slots(4)]
    held: Annotated[Buffer, Size(64)]
    seen: Counter

    @on(Trade)
    def trade(self, trade: Trade, info: Info) -> None:
{body}

    def twice(self, x):
        return 2 * x

    def again(self, n):
        return self.again(n - 1)  # AGAIN

    @decorated
    def wrapped(self, n):
        return n

    def bump(self):
        self.count += 1
        return self.count

    def bumped(self):
        self.count += 1
        return 1.0

    def first(self, n):
        return self.second(n)

    def second(self, n):
        return self.first(n)  # SECOND

    def mixed(self, n):
        if n > 1:
            return 1.5
        return n  # MIXED

    def sometimes(self, n):
        if n > 1:
            return 5  # SOMETIMES

    def prints(self, n):
        print(n)  # IN METHOD
"""


class Case(NamedTuple):
    """A line that is refused.

    `body` has ``# HERE`` at that line, unless `mark` says where it is.
    """

    name: str
    body: str
    construct: str
    remedy: str
    mark: str = "# HERE"


CASES = [
    # Objects that would be made.
    Case("list", "x = [1, 2]  # HERE", "building a list", "array[f64, n]"),
    Case("dict", "x = {1: 2}  # HERE", "building a dict", "open addressing"),
    Case("set", "x = {1, 2}  # HERE", "building a set", "array[bool_, n]"),
    Case("list()", "x = list()  # HERE", "a call of list()", "array[f64, n]"),
    Case("dict()", "x = dict(a=1)  # HERE", "a call of dict()", "open addressing"),
    Case("bytearray", "x = bytearray(8)  # HERE", "a call of bytearray()", "array[u8, n]"),
    Case("comprehension", "x = [i for i in range(3)]  # HERE", "list comprehension", "`for` loop"),
    Case("dict comprehension", "x = {i: i for i in (1,)}  # HERE", "dict comprehension", "`for`"),
    Case("generator expression", "x = sum(i for i in range(3))  # HERE", "sum()", "`for` loop"),
    Case("f-string", "x = f'{trade.price}'  # HERE", "an f-string", "self.log.info"),
    Case("str", "x = str(trade.qty)  # HERE", "a call of str()", "self.log.info"),
    Case("format", "x = '{}'.format(trade.qty)  # HERE", "string formatting", "self.log.info"),
    Case("percent", "x = '%d' % trade.qty  # HERE", "string formatting with %", "self.log.info"),
    Case("text", "x = 'AAPL'  # HERE", "the text 'AAPL'", "write b'...'"),
    Case("numpy zeros", "x = np.zeros(4)  # HERE", "a call of np.zeros", "arrays are fields"),
    Case(
        "numpy mean", "x = np.mean(self.window)  # HERE", "a call of np.mean", "arrays are fields"
    ),
    Case("array module", "x = array_module.array('d')  # HERE", "making a array", "only messages"),
    Case("object", "x = Thing()  # HERE", "making a Thing", "only messages can be made"),
    Case("complex", "x = 1j  # HERE", "a complex number", "two f64 fields"),
    Case("big integer", "x = 1 << 64  # HERE", "left 64 bits", "", "RUN TIME"),
    Case("huge literal", "x = 0xFFFF_FFFF_FFFF_FFFF  # HERE", "does not fit into 64", "mix64"),
    Case("huge constant", "x = HUGE  # HERE", "does not fit into 64 bits", "mix64"),
    Case("Decimal", "x = decimal.Decimal(1)  # HERE", "a call of decimal.Decimal", "Scale(4)"),
    Case("Fraction", "x = fractions.Fraction(1)  # HERE", "fractions.Fraction", "Scale(4)"),
    Case("None", "x = None  # HERE", "None", "-1, or a bool_ field"),
    Case("slice", "x = self.window[1:3]  # HERE", "a slice", "loop over the indices"),
    Case("sorted", "x = sorted(self.window)  # HERE", "a call of sorted()", "as you insert"),
    Case("empty tuple", "x = ()  # HERE", "an empty tuple", "(a, b)"),
    # The world outside.
    Case("print", "print(trade.price)  # HERE", "a call of print()", "self.log.info"),
    Case("open", "x = open('f')  # HERE", "a call of open()", "in the sidecar"),
    Case("os", "os.write(1, b'x')  # HERE", "a call of os.write", "in the sidecar"),
    Case("io", "x = io.BytesIO()  # HERE", "a call of io.BytesIO", "in the sidecar"),
    Case("socket", "x = socket.socket()  # HERE", "a call of socket.socket", "in the sidecar"),
    Case("subprocess", "subprocess.run('x')  # HERE", "subprocess.run", "in the sidecar"),
    Case("time.time", "x = time.time()  # HERE", "a call of time.time", "self.now_ns"),
    Case("imported time", "x = perf_counter_ns()  # HERE", "perf_counter_ns", "self.now_ns"),
    Case("datetime", "x = datetime.datetime.now()  # HERE", "datetime.now", "self.now_ns"),
    Case("sleep", "time.sleep(1)  # HERE", "a call of time.sleep", "self.now_ns"),
    Case("random", "x = random.random()  # HERE", "a call of random.random", "mix64"),
    Case("logging", "logging.info('x')  # HERE", "a call of logging.info", "self.log.info"),
    Case("json", "json.dumps(1)  # HERE", "a call of json.dumps", "in the sidecar"),
    Case("re", "re.match('a', 'b')  # HERE", "a call of re.match", "compare with b'...'"),
    Case("lock", "x = threading.Lock()  # HERE", "a call of threading.Lock", "needs no lock"),
    Case("sys", "sys.exit()  # HERE", "a call of sys.exit", "in the sidecar"),
    Case("ctypes", "LIBC.getpid()  # HERE", "'LIBC', a Python object of type CDLL", "the state"),
    Case("ctypes function", "GETPID()  # HERE", "a call of GETPID", "pass a NativeHandler"),
    Case("clock of chronicle", "x = chronicle_clock()  # HERE", "unknown name", "define it"),
    Case("math that differs", "x = math.hypot(1.0, 2.0)  # HERE", "math.hypot", "sqrt"),
    # Control flow that needs the interpreter.
    Case("raise", "raise ValueError  # HERE", "raise", "self.fail('why')"),
    Case("try", "try:  # HERE\n    x = 1\nexcept ValueError:\n    pass", "try/except", "self.fail"),
    Case("assert", "assert trade.price > 0  # HERE", "assert", "self.fail('why')"),
    Case("with", "with THING:  # HERE\n    pass", "with", "in the sidecar"),
    Case("lambda", "x = lambda: 1  # HERE", "a lambda", "at module level"),
    Case("closure", "def f(): # HERE\n    return self", "a function inside", "at module level"),
    Case("class", "class A: # HERE\n    pass", "a class inside", "at module level"),
    Case("yield", "yield trade.price  # HERE", "yield", "return a number"),
    Case("import", "import math  # HERE", "import inside", "top of the module"),
    Case("global", "global COUNT  # HERE\nCOUNT = 1", "the global statement", "state"),
    Case("del", "x = 1\ndel x  # HERE", "del", "set the field to 0"),
    Case("match", "match trade.qty:  # HERE\n    case 1: pass", "match", "if/elif"),
    Case("walrus", "if (x := trade.qty):  # HERE\n    pass", "walrus", "line of its own"),
    Case("star argument", "x = min(*self.window)  # HERE", "star-arguments", "one by one"),
    Case("double star", "x = self.twice(**NAMES)  # HERE", "star-arguments", "one by one"),
    Case("unpack", "a, *b = (1, 2, 3)  # HERE", "unpacking with *", "one by one"),
    Case("is", "x = trade.qty is 5  # HERE", "is", "== and !="),
    Case("in array", "x = 1.0 in self.window  # HERE", "in, on something", "a loop"),
    Case("chain call", "x = 1 < self.twice(2) < 5  # HERE", "within a chain", "variable first"),
    Case("zip", "for x in zip(self.window): # HERE\n    pass", "zip()", "index both"),
    Case("matmul", "x = self.window @ self.window  # HERE", "the operator @", "loop"),
    # Recursion.
    Case("recursion", "x = forever(5)", "recursion: forever -> forever", "a loop", "# FOREVER"),
    Case("mutual", "x = even(4)", "recursion: even -> odd -> even", "a loop", "even(n - 1)"),
    Case("method recursion", "x = self.again(4)", "again -> Refused.again", "a loop", "# AGAIN"),
    Case("method cycle", "self.first(4)", "recursion", "a loop", "# SECOND"),
    # Names and objects.
    Case("global list", "x = SIZES[0]  # HERE", "'SIZES', which is a mutable list", "tuple"),
    Case("global dict", "x = NAMES  # HERE", "'NAMES', which is a mutable dict", "state"),
    Case("global array", "x = TABLE[0]  # HERE", "'TABLE', which is a mutable ndarray", "state"),
    Case("global object", "x = THING  # HERE", "a Python object of type Thing", "state"),
    Case("text constant", "x = self.NAME  # HERE", "the text 'text'", "b'...'"),
    Case("unknown name", "x = nothing  # HERE", "the unknown name 'nothing'", "define it"),
    Case("unknown function", "nothing(1)  # HERE", "unknown name 'nothing'", "import it"),
    Case("function value", "x = even  # HERE", "'even' as a value", "call it"),
    Case("class value", "x = Trade  # HERE", "'Trade' as a value", "call it"),
    Case("method value", "x = self.twice  # HERE", "method self.twice as a value", "call it"),
    Case("variable call", "f = 1\nf(2)  # HERE", "'f', which is a variable", "if/else"),
    Case("partial", "x = functools.partial(even, 1)  # HERE", "functools.partial", "directly"),
    Case("eval", "x = eval('1')  # HERE", "a call of eval()", "write it out"),
    Case("getattr", "x = getattr(self, 'mean')  # HERE", "getattr()", "self.field"),
    Case("setattr", "setattr(self, 'mean', 1.0)  # HERE", "setattr()", "self.field = value"),
    Case("isinstance", "x = isinstance(trade, Trade)  # HERE", "isinstance()", "each message"),
    Case("type", "x = type(trade)  # HERE", "a call of type()", "info.type_id"),
    Case("hash", "x = hash(trade.qty)  # HERE", "a call of hash()", "mix64"),
    Case("id", "x = id(self)  # HERE", "a call of id()", "number of its own"),
    Case("super", "super().trade(trade, info)  # HERE", "super()", "another name"),
    Case("helper prints", "x = impure(1)", "a call of print()", "self.log.info", "# IN HELPER"),
    Case("method prints", "self.prints(1)", "a call of print()", "self.log.info", "# IN METHOD"),
    Case("numpy method", "x = TABLE.sum()  # HERE", "'TABLE', which is a mutable", "tuple of"),
    # State.
    Case("undeclared store", "self.maen = 1.0  # HERE", "self.maen", "did you mean self.mean?"),
    Case("undeclared load", "x = self.maen  # HERE", "self.maen", "did you mean self.mean?"),
    Case("undeclared method", "self.twcie(1)  # HERE", "self.twcie()", "define it"),
    Case("constant store", "self.LIMIT = 5  # HERE", "self.LIMIT", "declare it"),
    Case("output store", "self.out = 5  # HERE", "assignment to self.out", "stay as they are"),
    Case("table store", "self.book = 5  # HERE", "whole table 'book'", "one by one"),
    Case("short array", "self.window = (1.0, 2.0)  # HERE", "storing 2 values", "fixed: 8"),
    Case("array from number", "self.window = 1.0  # HERE", "storing a float into", "its items"),
    Case("array of another size", "self.window = trade.levels  # HERE", "storing 3 values", "8"),
    Case("float into int", "self.count = trade.price  # HERE", "storing a float", "int(...)"),
    Case("text into int", "self.count = trade.symbol  # HERE", "storing text of 8", "a number"),
    Case("number into text", "self.name = 5  # HERE", "storing an int into", "b'...'"),
    Case("view into state", "self.count = trade  # HERE", "storing a message into", "table["),
    Case("view into array", "self.window[0] = trade  # HERE", "storing a message", "a number"),
    Case("wrong row", "self.book[0] = trade  # HERE", "storing a message 'Trade'", "'Order'"),
    Case("message store", "trade.price = 1.0  # HERE", "of a message 'Trade'", "build another"),
    Case("message array", "trade.levels[0] = 1.0  # HERE", "an item of field", "cannot be changed"),
    Case("info store", "info.seq = 1  # HERE", "assignment to info.seq", "cannot be changed"),
    Case("self", "self = 5  # HERE", "assignment to 'self'", "another name"),
    Case("global store", "COUNT.x = 5  # HERE", ".x of an int", "have fields"),
    Case("float index", "x = self.window[1.5]  # HERE", "a float as an index", "use an int"),
    Case("index of number", "x = trade.price[0]  # HERE", "an item of a float", "arrays"),
    Case("two dimensions", "x = self.window[1, 2]  # HERE", "two dimensions", "row * columns"),
    Case("field of number", "x = trade.price.real  # HERE", ".real of a float", "have fields"),
    # Messages and outputs.
    Case("field name", "x = trade.prize  # HERE", "Trade has no field 'prize'", "price, qty"),
    Case("row field name", "x = self.book[0].prize  # HERE", "Order has no field 'prize'", "price"),
    Case("info name", "x = info.sequence  # HERE", "info has no field 'sequence'", "seq"),
    Case(
        "wrong keyword", "self.out.publish(Order(prise=1.0, qty=1))  # HERE", "'prise'", "'price'"
    ),
    Case("missing field", "self.out.publish(Order(price=1.0))  # HERE", "without 'qty'", "every"),
    Case("positional", "self.out.publish(Order(1.0, 2))  # HERE", "positional", "name the fields"),
    Case("text for number", "x = Order(price=b'x', qty=1)  # HERE", "storing text", "a number"),
    Case("undeclared output", "self.outt.publish(trade)  # HERE", "self.outt", "declare"),
    Case("publish number", "self.out.publish(5)  # HERE", "publishing an int", "Order(...)"),
    Case("output attribute", "x = self.out.published  # HERE", "output self.out", "publish("),
    Case("output method", "self.out.attach(1)  # HERE", "self.out.attach", "publish"),
    Case("counter method", "self.seen.reset()  # HERE", "self.seen.reset", "add(1)"),
    Case("counter float", "self.seen.add(1.5)  # HERE", "adding a float", "an int"),
    Case("base method", "self.receive(trade)  # HERE", "self.receive", "uncompiled object"),
    # Bytes, buffers and tables of outputs.
    Case("table value", "x = self.slots  # HERE", "the outputs self.slots", "self.slots[slot]"),
    Case("table publish", "self.slots.publish(trade)  # HERE", "the outputs self.slots", "[slot]"),
    Case("table attribute", "x = self.slots[0].name  # HERE", ".name of an output", "have fields"),
    Case(
        "view of table store",
        "self.slots[0] = 1  # HERE",
        "the outputs self.slots",
        "self.slots[slot]",
    ),
    Case("slot float", "self.slots[1.5].publish(trade)  # HERE", "a float as a slot", "an int"),
    Case("publish by number", "trade.publish(trade)  # HERE", ".publish() of a message", "outputs"),
    Case("bytes number", "self.out.publish_bytes(5, 6)  # HERE", "an int as bytes", "publish for"),
    Case(
        "bytes type", "self.out.publish_bytes(1.5, self.held.view(0, 1))  # HERE", "type id", "int"
    ),
    Case("bytes item", "x = self.held.view(0, 1)[0]  # HERE", "an item of bytes", "data.u8(i)"),
    Case("bytes field", "x = self.held.view(0, 1).size  # HERE", ".size of bytes", "have fields"),
    Case("bytes place", "x = self.held.view(0, 1).u8(0.0)  # HERE", "a float as a place", "an int"),
    Case("bytes store", "self.count = self.held.view(0, 1)  # HERE", "storing bytes", "number"),
    Case("read of message", "x = trade.u16(0)  # HERE", ".u16() of a message", "only bytes"),
    Case(
        "view of bytes", "x = self.held.view(0, 1).view(0, 1)  # HERE", ".view() of bytes", "buffer"
    ),
    Case("store message", "self.held.store(0, trade)  # HERE", "storing a message", "store bytes"),
    Case("buffer store", "self.held = 5  # HERE", "assignment to the buffer", "self.held.store("),
    Case("buffer copy", "self.held.copy()  # HERE", "a call of self.held.copy", "call methods"),
    Case(
        "text length",
        "x = self.held.view(0, 9).chars(0, 9)  # HERE",
        "no constant from 1",
        "(at, 8)",
    ),
    Case(
        "text variable", "x = self.held.view(0, 9).padded(0, info.source)  # HERE", "constant", "8)"
    ),
    # The log.
    Case("log variable", "self.log.info(trade.symbol)  # HERE", "not a literal", "compile time"),
    Case("log f-string", "self.log.info(f'{trade.qty}')  # HERE", "not a literal", "self.log.info"),
    Case(
        "log arguments", "self.log.info('{}{}{}{}{}{}', 1, 2, 3, 4, 5, 6)  # HERE", "6 arg", "two"
    ),
    Case("log count", "self.log.info('{} {}', 1)  # HERE", "1 arguments for 2", "one {} for each"),
    Case("log names", "self.log.info('{x}', 1)  # HERE", "this log format", "only {}"),
    Case("log level", "self.log.critical('x')  # HERE", "self.log.critical", "error"),
    Case(
        "log object", "self.log.info('{}', trade)  # HERE", "a message 'Trade' in a log", "numbers"
    ),
    Case(
        "fail variable", "self.fail(trade.symbol)  # HERE", "one literal text", "self.fail('why')"
    ),
    # Types that change.
    Case(
        "int and float",
        "x = 0\nfor i in range(3):\n    x += trade.price  # HERE",
        "variable 'x' that is sometimes",
        "0.0 for 0",
        "x = 0\n",
    ),
    Case("mixed return", "x = self.mixed(1)", "returns an int on one path", "0.0", "# MIXED"),
    Case("optional return", "x = self.sometimes(1)", "and nothing on another", "every", "#"),
    Case("mixed choice", "x = 1 if trade.qty else 1.5  # HERE", "sometimes", "0.0 for 0"),
    Case("mixed min", "x = min(trade.price, 0)  # HERE", "min() of a float and an int", "0.0"),
    Case("unassigned", "if trade.qty:\n    x = 1\nself.count = x  # HERE", "no value", "before"),
    Case("loop variable", "for i in range(3):\n    pass\nself.count = i  # HERE", "'i'", "before"),
    Case("text and number", "x = trade.symbol == 5  # HERE", "text of 8 bytes == an int", "b'...'"),
    Case("add text", "x = trade.symbol + trade.symbol  # HERE", "+ of text", "numbers"),
    Case("add arrays", "x = self.window + 1.0  # HERE", "+ of an array", "numbers"),
    Case("message condition", "if trade:  # HERE\n    pass", "as a condition", "compare"),
    Case("shift float", "x = trade.price << 2  # HERE", "<< of a float", "int(...)"),
    Case("range float", "for i in range(trade.price): # HERE\n    pass", "range() of a fl", "int("),
    Case("loop over number", "for x in trade.qty: # HERE\n    pass", "of an int", ""),
    Case("wide symbol key", "x = symbol_key(5)  # HERE", "symbol_key of an int", "trade.symbol"),
    Case(
        "argument order",
        "self.out.publish(Order(qty=self.bump(), price=self.bumped()))  # HERE",
        "whose order matters",
        "variables first",
    ),
    Case("decorated", "x = wrapped(1)  # HERE", "wrapped, which a decorator", "without its"),
    Case("cached", "x = cached(1)  # HERE", "cached, which a decorator", "without its"),
    Case("decorated method", "self.wrapped(1)  # HERE", "self.wrapped, which a", "without its"),
    Case("enum", "x = Plain.ONE  # HERE", "'Plain.ONE', which is no number", "enum.IntEnum"),
    Case("numpy number", "x = NP_ONE  # HERE", "'NP_ONE', a NumPy number", "int(x), float(x)"),
    Case("large array", "x = Huge(cells=self.many)  # HERE", "array of 300 numbers", "table["),
    Case("helper arguments", "x = even()  # HERE", "without 'n'", "pass it"),
    Case("helper keyword", "x = even(k=1)  # HERE", "argument 'k'", "parameters are n"),
]
RUN_TIME = [case for case in CASES if case.mark == "RUN TIME"]
CASES = [case for case in CASES if case.mark != "RUN TIME"]
_numbers = itertools.count()


def make(body: str) -> tuple[type[Handler], list[str], str]:
    """Make a handler class of a method's body; return it with its source."""
    text = HEAD + CLASS.format(body=textwrap.indent(body, " " * 8))
    file = f"refused_{next(_numbers)}.py"
    lines = text.splitlines(keepends=True)
    linecache.cache[file] = (len(text), None, lines, file)
    space: dict[str, Any] = {"__name__": "refused"}
    exec(compile(text, file, "exec"), space)
    made: type[Handler] = space["Refused"]
    return made, lines, file


def refusal(body: str) -> tuple[chronicle.AuditRefused, list[str], str]:
    cls, lines, file = make(body)
    with pytest.raises(chronicle.AuditRefused) as caught:
        program_for(cls(), symbols=SYMBOLS, use_cache=False)
    return caught.value, lines, file


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused_with_its_construct_line_and_remedy(case: Case):
    error, lines, file = refusal(case.body)
    wanted = case.mark.splitlines()[0]
    places = [n for n, line in enumerate(lines, start=1) if wanted in line]
    matching = [
        f for f in error.findings if case.construct in f.construct and case.remedy in f.remedy
    ]
    assert matching, str(error)
    assert {f.file for f in matching} == {file}
    assert {f.line for f in matching} & set(places), (str(error), places)
    assert all(f.remedy for f in error.findings)
    assert f"{file}:{matching[0].line}: " in str(error)


def test_there_are_many_more_than_thirty():
    assert len({case.name for case in CASES}) == len(CASES) > 120


def test_all_findings_come_at_once():
    error, _, _ = refusal("print(1)\nx = [1]\ntime.time()\nself.maen = 1.0")
    constructs = [finding.construct for finding in error.findings]
    assert len(constructs) == 4
    assert [f.line for f in error.findings] == sorted(f.line for f in error.findings)
    assert "for 4 reasons" in str(error)


def test_every_syntax_has_words_and_every_builtin_a_verdict():
    import ast
    import builtins

    assert all(construct and remedy for construct, remedy in REFUSED_SYNTAX.values())
    assert all(issubclass(node, ast.AST) for node in REFUSED_SYNTAX)
    assert all(hasattr(builtins, name) or name in ("exit", "quit") for name in REFUSED_BUILTINS)


def test_an_async_method_is_refused():
    class Waits(Handler):
        @chronicle.on.idle  # type: ignore[type-var]
        async def idle(self) -> None:
            pass

    with pytest.raises(chronicle.CompileError, match="an async function cannot be compiled"):
        program_for(Waits(), symbols=SYMBOLS, use_cache=False)


def test_a_class_without_source_is_told_so():
    space: dict[str, Any] = {}
    exec(
        "from chronicle.hot import Handler, on\n"
        "class Hidden(Handler):\n"
        "    @on.idle\n"
        "    def idle(self): pass\n",
        space,
    )
    with pytest.raises(chronicle.CompileError, match="cannot be found: file '<string>'"):
        program_for(space["Hidden"](), symbols=SYMBOLS, use_cache=False)


def test_source_that_has_changed_is_told_so():
    cls, lines, file = make("self.count = 1")
    changed = [line.replace("self.count = 1", "self.count = 2") for line in lines]
    linecache.cache[file] = (1, None, changed, file)
    with pytest.raises(chronicle.CompileError, match="has changed since"):
        program_for(cls(), symbols=SYMBOLS, use_cache=False)


def test_a_name_that_is_not_yet_there_may_come_later():
    cls, _, _ = make("self.count = later(5)")
    with pytest.raises(chronicle.AuditRefused, match="unknown name 'later'"):
        program_for(cls(), symbols=SYMBOLS, use_cache=False)
    names = cls.trade.__wrapped__.__globals__  # type: ignore[attr-defined]
    names["later"] = names["even"]
    with pytest.raises(chronicle.AuditRefused, match="recursion"):
        program_for(cls(), symbols=SYMBOLS, use_cache=False)
