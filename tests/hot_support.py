"""What the tests of compiled handlers share: a loop of their own, and the comparison of both ways.

`Harness` calls a compiled handler as the core does, through the C ABI, with a context made here and
doubles of the core's two functions. So a test sees each byte that a handler stores.
"""

from __future__ import annotations

import ctypes
import struct
import traceback
from collections.abc import Iterable
from typing import Any, NamedTuple

from chronicle.hot import Handler, Info, Output
from chronicle.hot.compile import program_for
from chronicle.hot.on import KIND_COMMAND, KIND_DATA, KIND_DATAGRAM, KIND_EVENT
from chronicle.hot.program import Program
from chronicle.message import MessageBase

KINDS = {
    "data": KIND_DATA,
    "command": KIND_COMMAND,
    "event": KIND_EVENT,
    "datagram": KIND_DATAGRAM,
}
NAN_BITS = 0x7FF8_0000_0000_0000

_Append = ctypes.CFUNCTYPE(
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_uint32,
    ctypes.c_uint32,
    ctypes.c_void_p,
    ctypes.c_uint32,
)
_Log = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,
    ctypes.c_uint32,
    ctypes.c_uint32,
    ctypes.c_uint64,
    ctypes.POINTER(ctypes.c_uint64),
)
_OnMessage = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)
_OnHook = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)


class ContextBytes(ctypes.Structure):
    """The context of the ABI, as docs/internals/hot-thread.md has it."""

    _fields_ = [
        ("abi_version", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("state", ctypes.c_void_p),
        ("now_ns", ctypes.c_uint64),
        ("counters", ctypes.c_void_p),
        ("fail_info", ctypes.c_uint64),
        ("fail_code", ctypes.c_int64),
        ("own", ctypes.c_uint64),
    ]


class MessageBytes(ctypes.Structure):
    """A message of the ABI."""

    _fields_ = [
        ("payload", ctypes.c_void_p),
        ("len_bytes", ctypes.c_uint32),
        ("type_id", ctypes.c_uint16),
        ("kind", ctypes.c_uint16),
        ("source", ctypes.c_uint32),
        ("tag", ctypes.c_uint32),
        ("sequence", ctypes.c_uint64),
        ("timestamp_ns", ctypes.c_uint64),
    ]


class Step(NamedTuple):
    """One input of a handler: a message, or the name of a hook."""

    message: MessageBase | bytes | None
    info: Info = Info()
    kind: str = "data"
    hook: str = ""
    now_ns: int = 0


class Published(NamedTuple):
    """One message that a handler published."""

    output: str
    type_id: int
    data: bytes


def _append(_context: int, output: int, type_id: int, payload: int, size: int) -> int:
    return Harness.current.append(output, type_id, ctypes.string_at(payload, size))


def _log(_context: int, site: int, count: int, tags: int, words: Any) -> None:
    Harness.current.log(site, tags, list(words[:count]))


_DOUBLES = {"chr_hot_append": _Append(_append), "chr_hot_log": _Log(_log)}
SYMBOLS = {
    name: ctypes.cast(double, ctypes.c_void_p).value or 0 for name, double in _DOUBLES.items()
}


_PROGRAMS: dict[type[Handler], Program] = {}


def program_of(cls: type[Handler]) -> Program:
    """The program of a class, compiled once in a run."""
    if cls not in _PROGRAMS:
        _PROGRAMS[cls] = program_for(cls(), symbols=SYMBOLS)
    return _PROGRAMS[cls]


class Harness:
    """Runs the compiled form of a handler."""

    current: Harness
    """Who is called back by the code that runs now."""

    def __init__(self, handler: Handler, program: Program | None = None) -> None:
        self.published: list[Published] = []
        self.logged: list[tuple[int, str, tuple[Any, ...]]] = []
        self.append_result: int | None = None
        self.program = program or program_of(type(handler))
        state = handler.state_bytes()
        self._state = ctypes.create_string_buffer(state, len(state))
        self._counters = (ctypes.c_uint64 * max(1, len(self.program.counters)))()
        self.context = ContextBytes(
            abi_version=1,
            state=ctypes.addressof(self._state),
            counters=ctypes.addressof(self._counters),
        )

    def append(self, output: int, type_id: int, data: bytes) -> int:
        if self.append_result is not None:
            return self.append_result
        name = self.program.outputs[output]
        self.published.append(Published(name, type_id, data))
        return sum(1 for each in self.published if each.output == name)

    def log(self, site: int, tags: int, words: list[int]) -> None:
        where = self.program.log_sites[site]
        arguments = tuple(decoded(tags >> 4 * n & 15, word) for n, word in enumerate(words))
        self.logged.append((where.level, where.format, arguments))

    @property
    def state(self) -> bytes:
        return self._state.raw

    @property
    def counters(self) -> dict[str, int]:
        return dict(zip(self.program.counters, self._counters, strict=False))

    def send(
        self,
        message: MessageBase | bytes,
        info: Info | None = None,
        *,
        kind: str = "data",
        type_id: int | None = None,
        len_bytes: int | None = None,
    ) -> int:
        """Call ``on_message``; return its status."""
        data = message if isinstance(message, bytes) else message.pack()
        info = info or Info()
        # One byte off, so that nothing relies on alignment.
        place = ctypes.create_string_buffer(b"\0" + data, len(data) + 1)
        return self.send_place(
            ctypes.addressof(place) + 1,
            len(data) if len_bytes is None else len_bytes,
            info,
            kind=kind,
            type_id=_type_id(message, info) if type_id is None else type_id,
        )

    def send_place(
        self,
        place: int,
        len_bytes: int,
        info: Info = Info(),  # noqa: B008  (it cannot be changed)
        *,
        kind: str,
        type_id: int = 0,
    ) -> int:
        """Call ``on_message`` with a payload that stands somewhere; return its status."""
        made = MessageBytes(
            payload=place,
            len_bytes=len_bytes,
            type_id=type_id,
            kind=KINDS[kind],
            source=info.source,
            tag=info.tag,
            sequence=info.seq,
            timestamp_ns=info.timestamp_ns,
        )
        Harness.current = self
        function = _OnMessage(self.program.on_message)
        return int(function(ctypes.addressof(self.context), ctypes.addressof(made)))

    def hook(self, name: str) -> int:
        """Call ``on_<name>``; return its status."""
        address = getattr(self.program, f"on_{name}")
        assert address, name
        Harness.current = self
        return int(_OnHook(address)(ctypes.addressof(self.context)))

    def step(self, step: Step) -> int:
        self.context.now_ns = step.now_ns
        if step.message is None:
            return self.hook(step.hook)
        return self.send(step.message, step.info, kind=step.kind)

    def explain(self) -> str:
        assert self.program.explain is not None
        return self.program.explain(self.context.fail_info, self.context.fail_code)


def _type_id(message: MessageBase | bytes, info: Info) -> int:
    return info.type_id if isinstance(message, bytes) else message.type_id


def decoded(tag: int, word: int) -> Any:
    """Return an argument of a log record, read by hand."""
    data = struct.pack("<Q", word)
    match tag:
        case 1:
            return struct.unpack("<q", data)[0]
        case 3:
            return struct.unpack("<d", data)[0]
        case 4:
            return data.rstrip(b"\0")
        case 5:
            assert word in (0, 1)
            return bool(word)
    raise AssertionError(f"tag {tag}")


def comparable(value: Any) -> Any:
    """Return a log argument so that equal ones are the same: with its type, and one NaN."""
    if isinstance(value, float):
        bits = NAN_BITS if value != value else struct.unpack("<Q", struct.pack("<d", value))[0]
        return ("f64", bits)
    return (type(value).__name__, value)


def comparable_logs(records: Iterable[tuple[int, str, tuple[Any, ...]]]) -> list[Any]:
    return [(level, text, [comparable(a) for a in given]) for level, text, given in records]


class Outcome(NamedTuple):
    """What a handler did, in a form that can be compared."""

    state: bytes
    counters: dict[str, int]
    published: dict[str, list[tuple[int, bytes]]]
    logged: list[Any]
    statuses: list[int]
    failure: tuple[str, int] | None
    stop: bool


def run_compiled(handler: Handler, steps: Iterable[Step]) -> Outcome:
    """Run the compiled form of a handler over inputs, until it fails."""
    harness = Harness(handler)
    statuses: list[int] = []
    failure = None
    for step in steps:
        statuses.append(harness.step(step))
        if statuses[-1] == 2:
            text = harness.explain()
            name, _, rest = text.partition(": ")
            failure = (name, int(rest.rpartition(":")[2].rstrip(")")))
            break
    published: dict[str, list[tuple[int, bytes]]] = {n: [] for n in harness.program.outputs}
    for each in harness.published:
        published[each.output].append((each.type_id, each.data))
    return Outcome(
        harness.state,
        harness.counters,
        published,
        comparable_logs(harness.logged),
        statuses,
        failure,
        bool(harness.context.flags & 1),
    )


def run_plain(handler: Handler, steps: Iterable[Step]) -> Outcome:
    """Run a handler as an ordinary object over inputs, until it raises."""
    spec = type(handler).SPEC
    statuses: list[int] = []
    failure = None
    for step in steps:
        handler.set_clock(step.now_ns)
        try:
            if step.message is None:
                getattr(handler, spec.hooks[step.hook])()
                statuses.append(0)
            else:
                taken = handler.receive(step.message, step.info, kind=step.kind)
                statuses.append(0 if taken else 1)
        except Exception as error:
            statuses.append(2)
            failure = (type(error).__name__, _line_in_handler(error))
            break
    return Outcome(
        handler.state_bytes(),
        {name: getattr(handler, name).value for name in spec.counters},
        {name: _published(output) for name, output in _outputs(handler)},
        comparable_logs(handler.log.records),
        statuses,
        failure,
        handler.stop_asked,
    )


def _outputs(handler: Handler) -> Iterable[tuple[str, Output]]:
    spec = type(handler).SPEC
    for number, name in enumerate(spec.outputs):
        for table, (first, count) in spec.tables.items():
            if first <= number < first + count:
                yield name, getattr(handler, table)[number - first]
                break
        else:
            yield name, getattr(handler, name)


def _published(output: Output) -> list[tuple[int, bytes]]:
    return [(m.type_id, m.pack()) for m in output.published]


def _line_in_handler(error: Exception) -> int:
    """Return the line at which the handler's own code was."""
    frames = traceback.extract_tb(error.__traceback__)
    # What is not the handler's: this package, the constructors that it generates, and this file.
    others = ("/chronicle/", "hot_support", "<string>")
    own = [f for f in frames if not any(other in f.filename for other in others)]
    line = own[-1].lineno if own else None
    assert line is not None
    return line


def assert_same(make: Any, steps: Iterable[Step]) -> Outcome:
    """Run both forms of a handler over the same inputs, and compare all that they did.

    An integer that leaves 64 bits is the one thing that only the compiled form refuses; both must
    agree up to the message before it.
    """
    steps = list(steps)
    compiled = run_compiled(make(), steps)
    if compiled.failure is not None and compiled.failure[0] == "OverflowError":
        before = steps[: len(compiled.statuses) - 1]
        compiled, steps = run_compiled(make(), before), before
        assert compiled.failure is None
    plain = run_plain(make(), steps)
    for name in Outcome._fields:
        assert getattr(compiled, name) == getattr(plain, name), name
    return compiled
