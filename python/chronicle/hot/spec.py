"""What a handler class says: its state, outputs, counters, and which method takes what.

The class is read once, when it is made, into a `HandlerSpec`: plain data that the object for unit
tests, the compiler and the audit share. A class that says something that cannot be is refused
here, with a `TypeError` at its definition.

State is one record. Fields stand in the order of their declaration, base classes first, each at
the next multiple of its alignment: the rule of `chronicle.message`, and of NumPy's ``align=True``.
"""

from __future__ import annotations

import keyword
from types import FunctionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    NamedTuple,
    TypeAlias,
    get_args,
    get_origin,
    get_type_hints,
)

from chronicle.hot.buffers import Size
from chronicle.hot.on import KIND_DATAGRAM, mark_of
from chronicle.hot.outputs import Outputs, Slots, slot_name
from chronicle.message import NUMBERS, Array, Chars, MessageBase, Number
from chronicle.values import Value

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Entry",
    "HandlerSpec",
    "Layout",
    "RawEntry",
    "StateField",
    "Table",
    "layout_of",
    "read_spec",
    "state_dtype",
    "table",
]

STATE_BYTES_MAX: Final = 1 << 30
"""Largest state: it is locked in memory, and written whole into a journal."""

STATE_ALIGNMENT: Final = 8
"""The state's size is a multiple of this, and its memory must be aligned to it at least."""

COUNT_MAX: Final = 1 << 24


class Table(Value):
    """Field type: `count` records of one message class, each changeable in place.

    Checkers read ``book: Annotated[Any, Table(Level, 1024)]``; `table` is the short form.

    Examples
    --------
    >>> import chronicle
    >>> from typing import Annotated, Any
    >>> from chronicle.hot import Handler, Table
    >>> from chronicle.message import MessageBase, u32
    >>> @chronicle.message(1)
    ... class Level(MessageBase):
    ...     size: u32
    >>> class Book(Handler):
    ...     levels: Annotated[Any, Table(Level, 8)]
    >>> len(Book().levels)
    8
    """

    __slots__ = ("row", "count")  # noqa: RUF023  (the order of the fields)
    row: type[MessageBase]
    count: int

    def __init__(self, row: type[MessageBase], count: int) -> None:
        if not isinstance(row, type) or not issubclass(row, MessageBase):
            raise TypeError(f"a table holds records of a message class, not {row!r}")
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= COUNT_MAX:
            raise ValueError(f"table count out of range: count={count!r} range=1..{COUNT_MAX}")
        self._set(row, count)


class table:  # noqa: N801  (it is read as a type, like `array`)
    """``table[Level, 1024]`` is short for ``Annotated[Any, Table(Level, 1024)]``.

    Examples
    --------
    >>> import chronicle
    >>> from chronicle.hot import Handler, table
    >>> from chronicle.message import MessageBase, u32
    >>> @chronicle.message(1)
    ... class Level(MessageBase):
    ...     size: u32
    >>> class Book(Handler):
    ...     levels: table[Level, 8]
    >>> len(Book().levels)
    8
    """

    def __class_getitem__(cls, item: tuple[type[MessageBase], int]) -> Any:
        if not isinstance(item, tuple) or len(item) != 2:
            raise TypeError("write table[Level, 1024]: a message class and a count")
        return Annotated[Any, Table(*item)]


class Layout(NamedTuple):
    """The layout of one message class, as a value: two classes with one layout are one type.

    Attributes
    ----------
    name
        Of the class, for messages to people.
    type_id, size_bytes
        As the class has them.
    fields
        ``(name, type, offset, count, size_bytes)`` of each.
    """

    name: str
    type_id: int
    size_bytes: int
    fields: tuple[tuple[str, str, int, int | None, int], ...]


def layout_of(cls: type[MessageBase]) -> Layout:
    """Return the layout of a message class."""
    fields = tuple((f.name, f.type, f.offset, f.count, f.size_bytes) for f in cls.FIELDS)
    return Layout(cls.__name__, cls.type_id, cls.size_bytes, fields)


_Class = type[MessageBase]


class StateField(NamedTuple):
    """One field of a handler's state.

    Attributes
    ----------
    name
        Attribute name.
    kind
        ``number``, ``chars``, ``array``, ``table`` or ``buffer``.
    type
        A number's name, ``chars``, or the name of the row's class; ``u8`` of a buffer.
    offset
        Bytes from the start of the state.
    count
        1, the width of text, the length of an array or a buffer, or the rows of a table.
    size_bytes
        Bytes that the field takes.
    row
        The message class of a table's rows.
    """

    name: str
    kind: str
    type: str
    offset: int
    count: int  # type: ignore[assignment]  # hides `tuple.count`
    size_bytes: int
    row: _Class | None = None


class Entry(NamedTuple):
    """One method that takes messages.

    Attributes
    ----------
    kind
        0 data, 1 command, 2 event.
    message
        The class it takes.
    method
        Its name.
    takes_info
        Whether it has the parameter `info`.
    """

    kind: int
    message: type[MessageBase]
    method: str
    takes_info: bool


class RawEntry(NamedTuple):
    """One method that takes bytes.

    Attributes
    ----------
    kind
        0 data, 3 datagram.
    type_id
        Of the messages that it takes; 0 of datagrams.
    method
        Its name.
    takes_info
        Whether it has the parameter `info`.
    """

    kind: int
    type_id: int
    method: str
    takes_info: bool


class HandlerSpec(NamedTuple):
    """Everything that a handler class says.

    Attributes
    ----------
    cls, name
        The class, and its qualified name.
    state, state_bytes
        The fields of its state, and their size.
    outputs, counters
        Names, in the order of their declaration; a number in compiled code is an index here. Each
        slot of a table of outputs has its own.
    tables
        Tables of outputs by name: the number of the first slot, and how many there are.
    entries
        The methods that take messages of a class.
    raw_entries
        The methods that take bytes.
    hooks
        Method names by ``idle``, ``start`` and ``stop``.
    defaults
        Of state fields that have one.
    hints
        Every annotation of the class and its bases, evaluated.
    """

    cls: type
    name: str
    state: tuple[StateField, ...]
    state_bytes: int
    outputs: tuple[str, ...]
    tables: dict[str, tuple[int, int]]
    counters: tuple[str, ...]
    entries: tuple[Entry, ...]
    raw_entries: tuple[RawEntry, ...]
    hooks: dict[str, str]
    defaults: dict[str, Any]
    hints: dict[str, Any]

    def field(self, name: str) -> StateField | None:
        """Return a field of the state by name."""
        return next((field for field in self.state if field.name == name), None)


def read_spec(
    cls: type, base: type, output: type, counter: type, local_names: dict[str, Any]
) -> HandlerSpec:
    """Read a handler class.

    Parameters
    ----------
    cls
        The class.
    base
        `Handler`: its own names cannot be used for fields.
    output, counter
        The annotations that declare outputs and counters.
    local_names
        Names that string annotations may use, besides those of the module.

    Raises
    ------
    TypeError
        If the class says something that cannot be.
    """
    hints = _hints(cls, local_names)
    inherited = get_type_hints(base, include_extras=True)
    reserved = frozenset(dir(base)) | inherited.keys()
    outputs: list[str] = []
    tables: dict[str, tuple[int, int]] = {}
    counters: list[str] = []
    kinds: list[tuple[str, _Kind]] = []
    for name, hint in hints.items():
        is_constant = hint is ClassVar or get_origin(hint) is ClassVar
        if is_constant or inherited.get(name) == hint:
            continue
        _check_name(cls, name, reserved)
        if hint is output:
            outputs.append(name)
        elif hint is counter:
            counters.append(name)
        elif (slots := _slots(cls, name, hint)) is not None:
            tables[name] = (len(outputs), slots)
            outputs += [slot_name(name, slot) for slot in range(slots)]
        else:
            kinds.append((name, _kind(cls, name, hint)))
    state, state_bytes = _lay_out(cls, kinds)
    entries, raw_entries, hooks = _methods(cls, base)
    defaults = {f.name: d for f in state if (d := _default(cls, f.name)) is not _NONE}
    return HandlerSpec(
        cls,
        cls.__qualname__,
        state,
        state_bytes,
        tuple(outputs),
        tables,
        tuple(counters),
        entries,
        raw_entries,
        hooks,
        defaults,
        hints,
    )


def _hints(cls: type, local_names: dict[str, Any]) -> dict[str, Any]:
    """Return the annotations of a class, each read where it was written.

    A name that a base class used means what it meant there, whatever the module of the derived
    class calls by that name; so the hints of a base are those that it was made with.
    """
    found: dict[str, Any] = {}
    for parent in reversed(cls.__mro__):
        known: HandlerSpec | None = parent.__dict__.get("SPEC")
        if known is not None:
            found |= known.hints
        elif parent is cls:
            # `inspect`, which would read them too, costs more than all of this package.
            written = parent.__dict__.get("__annotations__", {})  # noqa: RUF063
            space = {"__annotations__": written, "__module__": parent.__module__}
            own = type(parent.__name__, (), space)
            found |= get_type_hints(own, localns=local_names, include_extras=True)
        elif parent is not object:
            found |= get_type_hints(parent, localns=local_names, include_extras=True)
    return found


_NONE: Final = object()
_Kind: TypeAlias = Number | Chars | Array | Table | Size


def _slots(cls: type, name: str, hint: object) -> int | None:
    """Return how many slots a table of outputs has; ``None`` if the hint declares none."""
    plain, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if plain is not Outputs:
        return None
    found = [extra for extra in extras if isinstance(extra, Slots)]
    if len(found) != 1:
        raise TypeError(
            f"outputs {name!r} of handler {cls.__qualname__!r} do not say how many they are; "
            f"write {name}: Annotated[Outputs, Slots(256)]"
        )
    return found[0].slots_max


def _default(cls: type, name: str) -> Any:
    """Return the default of a field; in a base class that was read before, from its spec."""
    for parent in cls.__mro__:
        value = parent.__dict__.get(name, _NONE)
        if value is _NONE:
            continue
        if not isinstance(value, property):
            return value
        spec: HandlerSpec | None = parent.__dict__.get("SPEC")
        if spec is not None:
            return spec.defaults.get(name, _NONE)
    return _NONE


def _check_name(cls: type, name: str, reserved: frozenset[str]) -> None:
    if name in reserved:
        raise TypeError(
            f"field {name!r} of handler {cls.__qualname__!r} is taken by the handler itself; "
            "rename the field"
        )
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("__"):
        raise TypeError(
            f"field name {name!r} of handler {cls.__qualname__!r} is no plain name; rename it"
        )


#: What somebody means who writes a type of Python.
_PLAIN: Final[dict[type, str]] = {bool: "bool_", bytes: "char8", float: "f64", int: "i64"}


def _kind(cls: type, name: str, hint: object) -> _Kind:
    found: list[Any] = []
    if get_origin(hint) is Annotated:
        found = [k for k in get_args(hint)[1:] if isinstance(k, _Kind)]
    if len(found) != 1:
        plain = _PLAIN.get(hint) if isinstance(hint, type) else None
        meant = f"write {plain}, or another of " if plain else "use "
        raise TypeError(
            f"field {name!r} of handler {cls.__qualname__!r} has no fixed layout: "
            f"annotation={hint!r}; {meant}i8 to u64, f32, f64, bool_, chars[n], array[f64, n], "
            "table[Message, n], Annotated[Buffer, Size(n)], Output, Counter, "
            "Annotated[Outputs, Slots(n)], or ClassVar for a constant"
        )
    kind: _Kind = found[0]
    return kind


def _alignment(row: type[MessageBase]) -> int:
    sizes = [NUMBERS[f.type].size_bytes for f in row.FIELDS if f.type != "chars"]
    return max(sizes, default=1)


def _lay_out(cls: type, kinds: list[tuple[str, _Kind]]) -> tuple[tuple[StateField, ...], int]:
    fields: list[StateField] = []
    end = 0
    for name, kind in kinds:
        row: type[MessageBase] | None = None
        match kind:
            case Number():
                field_kind, type_name, count = "number", kind.name, 1
                alignment, size = kind.size_bytes, kind.size_bytes
            case Chars():
                field_kind, type_name, count = "chars", "chars", kind.count
                alignment, size = 1, kind.count
            case Array():
                field_kind, type_name, count = "array", kind.number.name, kind.count
                alignment, size = kind.number.size_bytes, kind.number.size_bytes * kind.count
            case Table():
                row = kind.row
                field_kind, type_name, count = "table", row.__name__, kind.count
                alignment, size = _alignment(row), row.size_bytes * kind.count
            case Size():
                field_kind, type_name, count = "buffer", "u8", kind.bytes_max
                alignment, size = STATE_ALIGNMENT, kind.bytes_max
        offset = -(-end // alignment) * alignment
        fields.append(StateField(name, field_kind, type_name, offset, count, size, row))
        end = offset + size
        if end > STATE_BYTES_MAX:
            raise TypeError(
                f"state of handler {cls.__qualname__!r} is too large: size_bytes={end} "
                f"limit={STATE_BYTES_MAX}; make {name!r} smaller"
            )
    return tuple(fields), -(-end // STATE_ALIGNMENT) * STATE_ALIGNMENT


def _methods(
    cls: type, base: type
) -> tuple[tuple[Entry, ...], tuple[RawEntry, ...], dict[str, str]]:
    names: dict[str, None] = {}
    for parent in reversed(cls.__mro__):
        if parent is not base and parent is not object:
            names.update(dict.fromkeys(parent.__dict__))
    entries: dict[tuple[int, int], Entry] = {}
    raw_entries: dict[tuple[int, int], RawEntry] = {}
    hooks: dict[str, str] = {}
    for name in names:
        value = getattr(cls, name)
        mark = mark_of(value)
        if mark is None:
            _check_override(cls, name)
            continue
        if mark.takes_bytes:
            takes_info = _check_parameters(cls, value, ("data",))
            key = (mark.kind, mark.type_id)
            taken = raw_entries.get(key) or entries.get(key)
            if taken is not None:
                what = "on.datagram" if mark.kind == KIND_DATAGRAM else f"on.bytes({mark.type_id})"
                raise TypeError(_twice(cls, what, taken.method, name))
            raw_entries[key] = RawEntry(*key, name, takes_info)
            continue
        if mark.message is None:
            if mark.hook in hooks:
                raise TypeError(_twice(cls, f"on.{mark.hook}", hooks[mark.hook], name))
            _check_parameters(cls, value, ())
            hooks[mark.hook] = name
            continue
        takes_info = _check_parameters(cls, value, ("message",))
        key = (mark.kind, mark.message.type_id)
        taken = entries.get(key) or raw_entries.get(key)
        if taken is not None:
            what = f"on({mark.message.__name__})"
            raise TypeError(_twice(cls, what, taken.method, name))
        entries[key] = Entry(mark.kind, mark.message, name, takes_info)
    return tuple(entries.values()), tuple(raw_entries.values()), hooks


def _check_override(cls: type, name: str) -> None:
    """Refuse an override that lost its decorator: its messages would go unhandled, silently."""
    for parent in cls.__mro__[1:]:
        if mark_of(parent.__dict__.get(name)) is not None:
            raise TypeError(
                f"method {name!r} of handler {cls.__qualname__!r} overrides one that has "
                "on(...), but has none itself; decorate it too"
            )


def _twice(cls: type, what: str, first: str, second: str) -> str:
    return (
        f"handler {cls.__qualname__!r} has two methods for {what}: {first!r} and {second!r}; "
        "make it one that calls both"
    )


def _check_parameters(cls: type, function: Any, extra: tuple[str, ...]) -> bool:
    """Check a method's signature; return whether it takes `info`."""
    plain = getattr(function, "__wrapped__", function)
    code = plain.__code__ if isinstance(plain, FunctionType) else None
    wanted = 1 + len(extra)
    allowed = (wanted, wanted + 1) if extra else (wanted,)
    # 0x0C: *args and **kwargs.
    if (
        code is None
        or code.co_argcount not in allowed
        or code.co_kwonlyargcount
        or code.co_flags & 0x0C
    ):
        shape = f"(self, {extra[0]}) or (self, {extra[0]}, info)" if extra else "(self)"
        raise TypeError(
            f"method {plain.__name__!r} of handler {cls.__qualname__!r} must take {shape}"
        )
    return bool(code.co_argcount == wanted + 1) if extra else False


def state_dtype(spec: HandlerSpec) -> np.dtype[np.void]:
    """Return the state's record as a NumPy type. Imports NumPy."""
    import numpy as np

    formats: list[Any] = []
    for field in spec.state:
        if field.kind == "number":
            formats.append(NUMBERS[field.type].numpy)
        elif field.kind == "chars":
            formats.append(f"S{field.count}")
        elif field.kind in ("array", "buffer"):
            formats.append((NUMBERS[field.type].numpy, (field.count,)))
        else:
            assert field.row is not None  # A table has rows.
            formats.append((field.row.dtype, (field.count,)))
    return np.dtype(
        {
            "names": [field.name for field in spec.state],
            "formats": formats,
            "offsets": [field.offset for field in spec.state],
            "itemsize": spec.state_bytes,
        }
    )
