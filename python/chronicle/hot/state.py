"""The state of a handler that is not compiled: fields, arrays and tables over one record of bytes.

What is read and stored here behaves as compiled code does, to the byte:

- integers are 64-bit signed in expressions: a ``u64`` beyond that cannot be read or stored;
- a store that does not fit its field raises, and the compiled handler fails;
- a NaN is stored as *the* NaN, since which one an operation gives is the processor's choice;
- rows of tables and arrays are live: they change when the state does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from operator import index as as_index
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from chronicle.hot.buffers import Buffer
from chronicle.hot.info import I64_MAX
from chronicle.message import NUMBERS, MessageBase, Number

if TYPE_CHECKING:
    from chronicle.hot.spec import StateField

__all__ = ["Cells", "Rows", "canonical_bytes", "field_property", "reading_class", "row_class"]

T = TypeVar("T")

NAN: Final = float("nan")

U64_TOO_LARGE: Final = (
    "{label} holds a number beyond 64-bit signed, which a handler cannot use: value={value}; "
    "declare it i64 or chars[8]"
)


def number_maximum(number: Number) -> int:
    """Return the largest integer that a field may hold in a handler."""
    assert number.maximum is not None  # Only asked for integers.
    return min(number.maximum, I64_MAX)


def _store(number: Number, label: str) -> Callable[[Any], Any]:
    """Return a function that checks a value for a field and returns what to pack."""
    low = number.minimum
    limit = 0 if number.maximum is None else number_maximum(number)

    def integer(value: Any) -> int:
        if isinstance(value, float) or not hasattr(value, "__index__"):
            raise TypeError(f"{label} takes {number.name}: value={value!r}")
        found = as_index(value)
        if low is None or not low <= found <= limit:
            span = f"{low}..{limit}"
            raise ValueError(f"{label} is out of range: value={found} range={span}")
        return found

    def flag(value: Any) -> bool:
        if isinstance(value, bytes | str) or value not in (0, 1):
            raise TypeError(f"{label} takes True or False: value={value!r}")
        return bool(value)

    def real(value: Any) -> float:
        if isinstance(value, bytes | str):
            raise TypeError(f"{label} takes {number.name}: value={value!r}")
        found = float(value)
        if found != found:
            return NAN
        if number.name == "f32":
            try:
                struct.pack("<f", found)
            except OverflowError:
                raise ValueError(f"{label} is out of range: value={found!r} type=f32") from None
        return found

    if number.name == "bool":
        return flag
    if low is None:
        return real
    return integer


def _check_loaded(label: str, value: int) -> int:
    if value > I64_MAX:
        raise ValueError(U64_TOO_LARGE.format(label=label, value=value))
    return value


def _text(label: str, width: int) -> Callable[[Any], bytes]:
    def text(value: Any) -> bytes:
        if isinstance(value, str):
            if not value.isascii():
                raise ValueError(f"{label} takes ASCII text: value={value!r}")
            value = value.encode("ascii")
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"{label} takes bytes or str: value={value!r}")
        # Padding at its end is no part of a text, here as in compiled code.
        found = bytes(value).rstrip(b"\0")
        if len(found) > width:
            raise ValueError(f"{label} is too long: value={found!r} limit={width} bytes")
        return found

    return text


class Cells(Generic[T]):
    """An array field: as many numbers as were declared, each readable and changeable in place.

    An index may be negative, as in a list. The array itself is live, also when it was kept in a
    variable.

    Examples
    --------
    >>> from chronicle.hot import Handler
    >>> from chronicle.message import array, f64
    >>> class Window(Handler):
    ...     last: array[f64, 3]
    >>> handler = Window()
    >>> handler.last[-1] = 7.5
    >>> list(handler.last)
    [0.0, 0.0, 7.5]
    """

    __slots__ = ("_label", "_memory", "_number", "_store")

    def __init__(self, memory: memoryview, number: Number, label: str) -> None:
        self._memory = memory.cast("B").cast(number.code)  # type: ignore[call-overload]
        self._number = number
        self._label = label
        self._store = _store(number, label)

    def __len__(self) -> int:
        return len(self._memory)

    def _position(self, index: int) -> int:
        count = len(self._memory)
        position = as_index(index)
        if position < 0:
            position += count
        if not 0 <= position < count:
            raise IndexError(f"index out of range: {self._label} index={index} count={count}")
        return position

    def __getitem__(self, index: int) -> T:
        value: Any = self._memory[self._position(index)]
        if self._number.name == "u64":
            _check_loaded(self._label, value)
        found: T = value
        return found

    def __setitem__(self, index: int, value: T) -> None:
        position = self._position(index)
        self._memory[position] = self._store(value)

    def __iter__(self) -> Iterator[T]:
        for position in range(len(self._memory)):
            yield self[position]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cells | tuple | list):
            return NotImplemented
        return tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))

    def assign(self, values: Any) -> None:
        """Store all elements; `values` must be as many."""
        checked = [self._store(value) for value in values]
        if len(checked) != len(self._memory):
            raise ValueError(
                f"{self._label} has a fixed length: found={len(checked)} "
                f"expected={len(self._memory)}"
            )
        for position, value in enumerate(checked):
            self._memory[position] = value


class Rows:
    """A table field: records of one message class, each a live view whose fields can be set.

    ``book[i].size = 5`` changes one field, ``book[i] = Level(...)`` a whole record.

    Examples
    --------
    >>> import chronicle
    >>> from chronicle.hot import Handler, table
    >>> from chronicle.message import MessageBase, u32
    >>> @chronicle.message(1)
    ... class Level(MessageBase):
    ...     size: u32
    >>> class Book(Handler):
    ...     levels: table[Level, 2]
    >>> handler = Book()
    >>> handler.levels[1].size = 5
    >>> len(handler.levels), handler.levels[1].size
    (2, 5)
    """

    __slots__ = ("_label", "_memory", "_row", "_size")

    def __init__(self, memory: memoryview, row: type[MessageBase], label: str) -> None:
        self._memory = memory
        self._row = row_class(row)
        self._size = row.size_bytes
        self._label = label

    def __len__(self) -> int:
        return len(self._memory) // self._size if self._size else 0

    def _slice(self, index: int) -> memoryview:
        count = len(self)
        position = as_index(index)
        if position < 0:
            position += count
        if not 0 <= position < count:
            raise IndexError(f"index out of range: {self._label} index={index} count={count}")
        return self._memory[position * self._size : (position + 1) * self._size]

    def __getitem__(self, index: int) -> Any:
        return self._row.view(self._slice(index))

    def __setitem__(self, index: int, record: MessageBase) -> None:
        place = self._slice(index)
        if not isinstance(record, MessageBase) or record.schema != self._row.schema:
            raise TypeError(f"{self._label} takes {self._row.__name__}: value={record!r}")
        place[:] = canonical_bytes(record)

    def __iter__(self) -> Iterator[Any]:
        for position in range(len(self)):
            yield self[position]

    def __repr__(self) -> str:
        return f"<{len(self)} records of {self._row.__name__}>"


def canonical_bytes(message: MessageBase) -> bytes:
    """Return a message's bytes, with every NaN as *the* NaN if it was built and not viewed."""
    data = message.pack()
    if type(message._buffer) is not bytes:
        return data
    patched: bytearray | None = None
    for field in message.FIELDS:
        if field.type not in ("f32", "f64"):
            continue
        code = struct.Struct("<" + NUMBERS[field.type].code)
        for item in range(field.count or 1):
            at = field.offset + item * code.size
            (value,) = code.unpack_from(data, at)
            if value != value:
                patched = bytearray(data) if patched is None else patched
                code.pack_into(patched, at, NAN)
    return data if patched is None else bytes(patched)


def _load_property(owner: str, name: str, offset: int) -> property:
    """Return a read-only property for a ``u64`` that checks its range."""
    unpack = struct.Struct("<Q").unpack_from
    label = f"field {name!r} of message {owner!r}"

    def load(self: MessageBase) -> int:
        return _check_loaded(label, unpack(self._buffer, offset)[0])

    return property(load)


def reading_class(cls: type[MessageBase]) -> type[MessageBase]:
    """Return the class that a handler's methods are given for messages of class `cls`."""
    return _derived(cls, "_chronicle_reading", _make_reading_class)


def _derived(
    cls: type[MessageBase], name: str, make: Callable[[type[MessageBase]], type[MessageBase]]
) -> type[MessageBase]:
    """Return a class that is made of `cls` once, and kept with it."""
    made: type[MessageBase] | None = cls.__dict__.get(name)
    if made is None:
        made = make(cls)
        made.__qualname__ = cls.__qualname__
        made.__module__ = cls.__module__
        setattr(cls, name, made)
    return made


def _make_reading_class(cls: type[MessageBase]) -> type[MessageBase]:
    space: dict[str, Any] = {"__slots__": ()}
    for field in cls.FIELDS:
        if field.type != "u64":
            continue
        if field.count is None:
            space[field.name] = _load_property(cls.__name__, field.name, field.offset)
        else:
            space[field.name] = _load_array(field.offset, field.count)
    return type(cls.__name__, (cls,), space)


class _CheckedTuple(tuple[int, ...]):
    """An array of ``u64`` in a message: each element is checked when it is read."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        return _check_loaded("an array of u64", super().__getitem__(index))

    def __iter__(self) -> Iterator[int]:
        for value in super().__iter__():
            yield _check_loaded("an array of u64", value)


def _load_array(offset: int, count: int) -> property:
    unpack = struct.Struct(f"<{count}Q").unpack_from

    def load(self: MessageBase) -> _CheckedTuple:
        return _CheckedTuple(unpack(self._buffer, offset))

    return property(load)


def _place(
    owner: str, kind: str, type_name: str, count: int | None, offset: int, size: int, name: str
) -> tuple[Callable[[memoryview], Any], Callable[[memoryview, Any], None]]:
    """Return how to read and how to store one field in a record of bytes."""
    label = f"field {name!r} of {kind} {owner!r}"
    if type_name == "chars":
        text = _text(label, size)

        def load_text(memory: memoryview) -> bytes:
            return bytes(memory[offset : offset + size]).rstrip(b"\0")

        def store_text(memory: memoryview, value: Any) -> None:
            memory[offset : offset + size] = text(value).ljust(size, b"\0")

        return load_text, store_text
    number = NUMBERS[type_name]
    if count is not None:

        def load_array(memory: memoryview) -> Cells[Any]:
            return Cells(memory[offset : offset + size], number, label)

        def store_array(memory: memoryview, value: Any) -> None:
            load_array(memory).assign(value)

        return load_array, store_array
    one = struct.Struct("<" + number.code)
    check = _store(number, label)
    is_u64 = type_name == "u64"

    def load(memory: memoryview) -> Any:
        value = one.unpack_from(memory, offset)[0]
        return _check_loaded(label, value) if is_u64 else value

    def store(memory: memoryview, value: Any) -> None:
        one.pack_into(memory, offset, check(value))

    return load, store


def row_class(cls: type[MessageBase]) -> type[MessageBase]:
    """Return the class of a table's rows: as `cls`, but its fields can be set."""
    return _derived(cls, "_chronicle_row", _make_row_class)


def _make_row_class(cls: type[MessageBase]) -> type[MessageBase]:
    space: dict[str, Any] = {"__slots__": ()}
    for field in cls.FIELDS:
        space[field.name] = _row_property(cls.__name__, field)
    return type(cls.__name__, (cls,), space)


def _row_property(owner: str, field: Any) -> property:
    load, store = _place(
        owner, "message", field.type, field.count, field.offset, field.size_bytes, field.name
    )

    def read(self: Any) -> Any:
        return load(self._buffer)

    def write(self: Any, value: Any) -> None:
        store(self._buffer, value)

    return property(read, write)


def field_property(owner: str, field: StateField) -> property:
    """Return the property of a handler's class for one field of its state."""
    offset, size = field.offset, field.size_bytes
    if field.kind == "buffer":
        label = f"buffer {field.name!r} of handler {owner!r}"

        def buffer(self: Any) -> Buffer:
            return Buffer(self._chronicle_state[offset : offset + size], label)

        def keep(_self: Any, _value: Any) -> None:
            raise TypeError(f"{label} cannot be replaced; store bytes into it")

        return property(buffer, keep)
    if field.kind == "table":
        row = field.row
        assert row is not None  # A table has rows.
        label = f"table {field.name!r} of handler {owner!r}"

        def rows(self: Any) -> Rows:
            return Rows(self._chronicle_state[offset : offset + size], row, label)

        def refuse(_self: Any, _value: Any) -> None:
            raise TypeError(f"{label} cannot be replaced; assign its rows one by one")

        return property(rows, refuse)
    count = field.count if field.kind == "array" else None
    load, store = _place(owner, "handler", field.type, count, offset, size, field.name)

    def read(self: Any) -> Any:
        return load(self._chronicle_state)

    def write(self: Any, value: Any) -> None:
        store(self._chronicle_state, value)

    return property(read, write)
