"""`Handler`: the base of hot handlers, and the ordinary object that they are before compilation.

A handler is a class with typed state, outputs, counters and methods that take messages. Uncompiled
it is an object for unit tests: call its methods, look at its fields.

>>> from chronicle.hot import Counter, Handler, Info, Output, on
>>> from chronicle.message import MessageBase, f64, i64, message
>>> @message(1)
... class Trade(MessageBase):
...     price: f64
>>> @message(2)
... class Signal(MessageBase):
...     mean: f64
...     cause: i64
>>> class Ewma(Handler):
...     alpha: f64 = 0.5
...     mean: f64
...     signals: Output
...     seen: Counter
...
...     @on(Trade)
...     def trade(self, trade: Trade, info: Info) -> None:
...         self.seen.add(1)
...         self.mean += self.alpha * (trade.price - self.mean)
...         self.signals.publish(Signal(mean=self.mean, cause=info.seq))
>>> ewma = Ewma(alpha=0.25)
>>> ewma.trade(Trade(price=8.0), Info(seq=41))
>>> ewma.mean, ewma.seen.value, ewma.signals.published
(2.0, 1, [Signal(mean=2.0, cause=41)])

What is compiled is the same source, and its results are the same; see docs/internals/hot-thread.md.
Integers have 64 bits when they are compiled: one that leaves them is a failure, also where Python
would go on with a longer one. Hashes that mean to wrap around say so by a constant mask,
``(h * K) & 0xFFFF_FFFF``, which gives the same bits both ways, or use `chronicle.hot.mix64`.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

from chronicle._core import clock_ns
from chronicle.errors import HandlerFailed, SchemaMismatch
from chronicle.hot.buffers import Bytes
from chronicle.hot.info import I64_MAX, Info
from chronicle.hot.logs import ARGUMENTS_MAX, LEVELS, format_line, placeholders_count
from chronicle.hot.on import (
    KIND_COMMAND,
    KIND_DATA,
    KIND_DATAGRAM,
    KIND_EVENT,
    Mark,
    mark_of,
)
from chronicle.hot.outputs import Output, Outputs
from chronicle.hot.spec import HandlerSpec, read_spec, state_dtype
from chronicle.hot.state import field_property, reading_class
from chronicle.message import MessageBase

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Counter", "Handler", "HandlerLog"]

_LOG_RECORDS_MAX: Final = 65_536
_KINDS: Final = {
    "data": KIND_DATA,
    "command": KIND_COMMAND,
    "event": KIND_EVENT,
    "datagram": KIND_DATAGRAM,
}


class Counter:
    """A number that only grows, on show while the handler runs. Declared as ``seen: Counter``.

    Examples
    --------
    >>> import chronicle
    >>> from chronicle.hot import Counter, Handler
    >>> from chronicle.message import MessageBase, f64, u32
    >>> @chronicle.message(1)
    ... class Trade(MessageBase):
    ...     price: f64
    >>> class Count(Handler):
    ...     seen: Counter
    ...     @chronicle.on(Trade)
    ...     def trade(self, trade: Trade) -> None:
    ...         self.seen.add(2)
    >>> handler = Count()
    >>> handler.trade(Trade(price=1.0))
    >>> handler.seen.value
    2
    """

    __slots__ = ("name", "value")

    name: str
    """The attribute's name."""
    value: int
    """How much was added."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.value = 0

    def add(self, amount: int = 1) -> None:
        """Add `amount`, which must not be negative."""
        if isinstance(amount, float):
            raise TypeError(f"counter {self.name!r} takes integers: value={amount!r}")
        if not 0 <= amount <= I64_MAX:
            raise ValueError(f"counter {self.name!r} only grows: value={amount} range=0..{I64_MAX}")
        self.value = (self.value + amount) & 0xFFFF_FFFF_FFFF_FFFF

    def __repr__(self) -> str:
        return f"<Counter {self.name!r}: {self.value}>"


class HandlerLog:
    """The log of a handler: a format string with ``{}`` for each of up to five arguments.

    Arguments are numbers, bools, and text of up to 8 bytes. Compiled, a call writes 64 bytes and
    the sidecar formats them; here it goes to `logging` at once, and is kept in `records`.

    Examples
    --------
    >>> from chronicle.hot import Handler
    >>> from chronicle.message import f64
    >>> class Talker(Handler):
    ...     mean: f64
    ...     def tell(self) -> None:
    ...         self.log.info("mean {}", self.mean)
    >>> handler = Talker(mean=2.5)
    >>> handler.tell()
    >>> handler.log.name, handler.log.records[0][1:]
    ('chronicle.hot.Talker', ('mean {}', (2.5,)))
    """

    __slots__ = ("name", "records")

    name: str
    """Of the logger, ``chronicle.hot.<class>``."""
    records: deque[tuple[int, str, tuple[Any, ...]]]
    """Level, format and arguments of the last calls, oldest first."""

    def __init__(self, name: str) -> None:
        self.name = f"chronicle.hot.{name}"
        self.records = deque(maxlen=_LOG_RECORDS_MAX)

    def debug(self, template: str, *arguments: object) -> None:
        """Log for whoever looks for a fault."""
        self._log("debug", template, arguments)

    def info(self, template: str, *arguments: object) -> None:
        """Log what was expected."""
        self._log("info", template, arguments)

    def warning(self, template: str, *arguments: object) -> None:
        """Log what was not expected, and goes on."""
        self._log("warning", template, arguments)

    def error(self, template: str, *arguments: object) -> None:
        """Log what needs somebody."""
        self._log("error", template, arguments)

    def _log(self, level: str, template: str, arguments: tuple[object, ...]) -> None:
        count = placeholders_count(template)
        if count != len(arguments) or count > ARGUMENTS_MAX:
            raise ValueError(
                f"log call {template!r} has {len(arguments)} arguments: "
                f"expected={min(count, ARGUMENTS_MAX)}"
            )
        for item in arguments:
            if not isinstance(item, bool | int | float | bytes):
                raise TypeError(f"a log takes numbers, bools and short text: value={item!r}")
            if isinstance(item, bytes) and len(item) > 8:
                raise ValueError(f"a log takes text of up to 8 bytes: value={item!r}")
        self.records.append((LEVELS[level], template, arguments))
        import logging

        logger = logging.getLogger(self.name)
        if logger.isEnabledFor(LEVELS[level]):
            logger.log(LEVELS[level], "%s", format_line(template, arguments))


class Handler:
    """Base of hot handlers. A subclass declares state, outputs and counters, and takes messages.

    ======================================  ======================================================
    ``mean: f64 = 0.0``                     state: a number; also ``chars[8]``, ``array[f64, 64]``
    ``book: table[Level, 1024]``            state: records of a message class
    ``held: Annotated[Buffer, Size(512)]``  state: room for bytes
    ``signals: Output``                     where it publishes
    ``out: Annotated[Outputs, Slots(64)]``  a table of outputs: ``self.out[slot].publish(…)``
    ``seen: Counter``                       a number on show
    ``LIMIT = 100``, ``LIMIT: ClassVar``    a constant
    ======================================  ======================================================

    Fields have the value of the class, or zero; the constructor takes others by keyword.

    Raises
    ------
    TypeError
        By the constructor, if it is given something that is no field of the state, or a value that
        does not fit. By a class statement, if the class says something that cannot be.

    Examples
    --------
    >>> import chronicle
    >>> from chronicle.hot import Counter, Handler, Output
    >>> from chronicle.message import MessageBase, f64, u32
    >>> @chronicle.message(1)
    ... class Trade(MessageBase):
    ...     price: f64
    >>> class Ewma(Handler):
    ...     mean: f64
    ...     signals: Output
    ...     seen: Counter
    ...     @chronicle.on(Trade)
    ...     def trade(self, trade: Trade) -> None:
    ...         self.seen.add(1)
    ...         self.mean += 0.5 * (trade.price - self.mean)
    ...         self.signals.publish(Trade(price=self.mean))
    >>> handler = Ewma(mean=10.0)
    >>> handler.trade(Trade(price=20.0))
    >>> handler.mean, handler.seen.value, handler.signals.published
    (15.0, 1, [Trade(price=15.0)])
    """

    __chronicle_handler__: ClassVar[bool] = True
    SPEC: ClassVar[HandlerSpec]
    """What the class says."""
    log: HandlerLog
    """``self.log.info("mean {} after {}", self.mean, info.seq)``"""
    _chronicle_state: memoryview
    _chronicle_clock: int | None
    _chronicle_stop: bool

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Annotations may be strings that name things local to the caller, as in a test function.
        local_names = dict(sys._getframe(1).f_locals)
        spec = read_spec(cls, Handler, Output, Counter, local_names)
        for name, value in list(cls.__dict__.items()):
            mark = mark_of(value)
            if mark is not None and mark.takes_bytes:
                setattr(cls, name, _viewing(value))
            elif mark is not None and mark.message is not None:
                setattr(cls, name, _reading(value, mark))
        for field in spec.state:
            setattr(cls, field.name, field_property(cls.__qualname__, field))
        cls.SPEC = spec

    def __init__(self, **state: Any) -> None:
        cls = type(self)
        if cls is Handler:
            raise TypeError("Handler is a base; derive a class from it and make that")
        spec = cls.SPEC
        fill = object.__setattr__
        fill(self, "_chronicle_state", memoryview(bytearray(spec.state_bytes)))
        fill(self, "_chronicle_clock", None)
        fill(self, "_chronicle_stop", False)
        fill(self, "log", HandlerLog(cls.__qualname__))
        for number, name in enumerate(spec.outputs):
            if not any(first <= number < first + n for first, n in spec.tables.values()):
                fill(self, name, Output(name, self))
        for name, (_, count) in spec.tables.items():
            fill(self, name, Outputs(name, count, spec.name, self))
        for name in spec.counters:
            fill(self, name, Counter(name))
        for name, value in (spec.defaults | state).items():
            self._fill(name, value)

    def _fill(self, name: str, value: Any) -> None:
        field = type(self).SPEC.field(name)
        if field is None:
            raise TypeError(
                f"{type(self).__name__}() has no state field {name!r}; "
                f"fields are {', '.join(f.name for f in type(self).SPEC.state) or 'none'}"
            )
        if field.kind != "table":
            setattr(self, name, value)
            return
        rows = getattr(self, name)
        for index, record in enumerate(value):
            rows[index] = record

    def __setattr__(self, name: str, value: Any) -> None:
        if not isinstance(getattr(type(self), name, None), property):
            raise AttributeError(
                f"handler {type(self).__qualname__!r} declares no state field {name!r}; "
                f"add it to the class, as in `{name}: f64`"
            )
        object.__setattr__(self, name, value)

    @property
    def now_ns(self) -> int:
        """The handler's clock: nanoseconds since 1970 UTC. It stands still within one call.

        Uncompiled it is the wall clock, or what `set_clock` said.
        """
        fixed = self._chronicle_clock
        return clock_ns() if fixed is None else fixed

    def set_clock(self, now_ns: int | None) -> None:
        """Fix the clock of a handler that is not compiled; ``None`` lets it run again."""
        object.__setattr__(self, "_chronicle_clock", now_ns)

    def stop(self) -> None:
        """Ask the hot thread to stop cleanly, after this call."""
        object.__setattr__(self, "_chronicle_stop", True)

    @property
    def stop_asked(self) -> bool:
        """Whether `stop` was called on this object."""
        return self._chronicle_stop

    def fail(self, why: str) -> NoReturn:
        """Fail: the hot thread ends, with this message as the cause.

        Raises
        ------
        HandlerFailed
            Always.
        """
        raise HandlerFailed(why)

    @property
    def state(self) -> NDArray[np.void]:
        """The state as a NumPy record of shape ``()``, which is live. Imports NumPy."""
        import numpy as np

        spec = type(self).SPEC
        return np.frombuffer(self._chronicle_state, np.uint8).view(state_dtype(spec)).reshape(())

    def state_bytes(self) -> bytes:
        """Return a copy of the state's bytes: what a compiled handler starts with."""
        return bytes(self._chronicle_state)

    def load_state(self, data: bytes | memoryview) -> None:
        """Take over the state that a handler of the same layout had.

        Raises
        ------
        SchemaMismatch
            If it is of another size.
        """
        if len(data) != len(self._chronicle_state):
            raise SchemaMismatch(
                f"state of handler {type(self).__qualname__!r} has another size: "
                f"found={len(data)} expected={len(self._chronicle_state)}; "
                "was it saved by another version of the class?"
            )
        self._chronicle_state[:] = data

    def receive(
        self,
        message: MessageBase | Bytes | bytes | bytearray | memoryview,
        info: Info | None = None,
        *,
        kind: str = "data",
    ) -> bool:
        """Call the method that takes this message, as the loop does.

        Parameters
        ----------
        message
            Of any class with the type id that a method takes; or bytes: then `info` says the type
            id, or the line of a datagram.
        info
            For methods that want it; by default one with the message's type id.
        kind
            ``data``, ``command``, ``event`` or ``datagram``.

        Returns
        -------
        bool
            Whether there is such a method.
        """
        number = _KINDS[kind]
        spec = type(self).SPEC
        if isinstance(message, MessageBase):
            type_id = message.type_id
            info = info or Info(type_id=type_id)
        else:
            info = info or Info()
            type_id = info.type_id
        for entry in spec.entries:
            if entry.kind == number and entry.message.type_id == type_id:
                if not isinstance(message, MessageBase):
                    message = entry.message.view(bytes(message))
                self._call(entry.method, message, info if entry.takes_info else None)
                return True
        wanted = 0 if number == KIND_DATAGRAM else type_id
        for raw in spec.raw_entries:
            if raw.kind == number and raw.type_id == wanted:
                data = message.pack() if isinstance(message, MessageBase) else message
                view = data if isinstance(data, Bytes) else Bytes(data)
                self._call(raw.method, view, info if raw.takes_info else None)
                return True
        return False

    def _call(self, name: str, message: MessageBase | Bytes, info: Info | None) -> None:
        method = getattr(self, name)
        if info is None:
            method(message)
        else:
            method(message, info)

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{field.name}={getattr(self, field.name)!r}" for field in type(self).SPEC.state
        )
        return f"{type(self).__qualname__}({shown})"


def _viewing(function: Callable[..., None]) -> Callable[..., None]:
    """Wrap a method so that it is given nothing but `Bytes`."""

    @wraps(function)
    def method(self: Handler, data: Bytes, *info: Info) -> None:
        if not isinstance(data, Bytes):
            raise TypeError(f"method {function.__name__!r} takes Bytes: value={data!r}")
        function(self, data, *info)

    return method


def _reading(function: Callable[..., None], mark: Mark) -> Callable[..., None]:
    """Wrap a method so that it reads its message as compiled code does."""
    cls = mark.message
    assert cls is not None  # Only asked for methods that take messages.
    reading = reading_class(cls)
    type_id, size_bytes = cls.type_id, cls.size_bytes

    @wraps(function)
    def method(self: Handler, message: MessageBase, *info: Info) -> None:
        if not isinstance(message, MessageBase) or message.type_id != type_id:
            raise TypeError(
                f"method {function.__name__!r} takes {cls.__name__} (type_id={type_id}): "
                f"value={message!r}"
            )
        data = memoryview(message._buffer)
        if len(data) < size_bytes:
            raise SchemaMismatch(
                f"too few bytes for message {cls.__name__!r}: found={len(data)} "
                f"expected={size_bytes}; was it written with another schema?"
            )
        function(self, reading.view(data), *info)

    return method
