"""Typed messages: a class with annotated fields becomes a fixed layout of bytes.

What it is for
--------------
A queue carries bytes. This module says which bytes a message is made of, once, in Python, and
derives everything else from that one table: a view class that reads fields in place, a packer, a
NumPy structured type for batches, the schema that is stored with a queue, and later the compiled
view of hot handlers.

>>> @message(7)
... class Trade(MessageBase):
...     price: Annotated[i64, Scale(4)]
...     qty: u32
...     symbol: char8
>>> trade = Trade(price=1_012_500, qty=200, symbol=b"AAPL")
>>> trade.price, trade.qty, trade.symbol
(1012500, 200, b'AAPL')
>>> Trade.size_bytes, len(trade.pack())
(24, 24)
>>> Trade.view(trade.pack()) == trade
True

Layout
------
Fields stand in the order of their declaration, each at the next multiple of its own alignment
(that of its number, or 1 for text), little-endian; the size is rounded up to the largest
alignment. That is the rule of C compilers on x86-64 and aarch64 and of NumPy's ``align=True``, so
one table serves all readers. Padding is zero. Put wide fields first and there is none.

Text (`Chars`) is fixed-width ASCII. Shorter values are padded with NUL on writing, and trailing
NULs are stripped on reading, as NumPy does for its ``S`` type; every other byte, spaces included,
is kept.

Type checkers
-------------
Every name here is an ``Annotated`` alias, so ``trade.price`` has type ``int`` for a type checker.
A checker knows ``Trade.view`` and its kin only if the class derives from `MessageBase`; at run
time the base is optional. ``chars[8]`` and ``array[f64, 10]`` are short forms that checkers
refuse, because a number is no type: write ``Annotated[bytes, Chars(8)]`` (or `char8`) and
``Annotated[tuple[float, ...], Array(f64, 10)]`` where one reads along.

What it does not do
-------------------
No variable-length fields, no nesting, no optional values: a layout with those cannot be read in
place by compiled code. NumPy is imported at the first use of ``dtype`` and not before.
"""

from __future__ import annotations

import keyword
import struct
import sys
from collections.abc import Callable, Mapping
from types import CellType, FunctionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    NamedTuple,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from chronicle.errors import DecodeError, SchemaMismatch
from chronicle.values import Value

if TYPE_CHECKING:
    from typing import Self

    import numpy as np
    from typing_extensions import Buffer

__all__ = [
    "NUMBERS",
    "Array",
    "Chars",
    "Field",
    "MessageBase",
    "Number",
    "Scale",
    "array",
    "bool_",
    "char1",
    "char2",
    "char4",
    "char8",
    "char16",
    "char24",
    "char32",
    "chars",
    "f32",
    "f64",
    "i8",
    "i16",
    "i32",
    "i64",
    "message",
    "message_from_schema",
    "u8",
    "u16",
    "u32",
    "u64",
]

TYPE_ID_MAX = 65_535
"""Largest type id; 0 is reserved for records of the queue itself."""

SIZE_BYTES_MAX = 1 << 24
"""Largest message. A schema from a file must not be able to ask for more memory than this."""

FIELDS_COUNT_MAX = 4_096
SCALE_MAX = 18


class Number(NamedTuple):
    """One number type: its name in schemas, its `struct` code, its NumPy format and its range.

    Examples
    --------
    >>> from chronicle.message import NUMBERS
    >>> NUMBERS["u16"].size_bytes, NUMBERS["u16"].maximum
    (2, 65535)
    """

    name: str
    code: str
    numpy: str
    size_bytes: int
    minimum: int | None = None
    maximum: int | None = None


class Chars(Value):
    """Field type: fixed-width text of `count` bytes, NUL-padded.

    Examples
    --------
    >>> Chars(8).count
    8
    """

    __slots__ = ("count",)
    count: int

    def __init__(self, count: int) -> None:
        _check_count("Chars", count)
        self._set(count)


class Array(Value):
    """Field type: `count` numbers of one type, read as a tuple.

    Parameters
    ----------
    number
        One of the number aliases of this module, such as `f64`.
    count
        Elements, at least 1.

    Examples
    --------
    >>> from typing import Annotated
    >>> from chronicle.message import Array, MessageBase, f64, message
    >>> @message(1)
    ... class Curve(MessageBase):
    ...     rates: Annotated[tuple[float, ...], Array(f64, 3)]
    >>> Curve(rates=(1.0, 2.0, 3.0)).rates
    (1.0, 2.0, 3.0)
    """

    __slots__ = ("number", "count")  # noqa: RUF023  (the order of the fields)
    number: Number
    count: int

    def __init__(self, number: object, count: int) -> None:
        _check_count("Array", count)
        kind = number if isinstance(number, Number) else _metadata_of(number, Number)
        if kind is None:
            raise TypeError(f"Array holds numbers, not {number!r}; use f64, i32, u8 and so on")
        self._set(kind, count)


class Scale(Value):
    """Metadata: the integer carries `decimals` implied decimals. Changes display only.

    Examples
    --------
    >>> price = Annotated[i64, Scale(4)]
    """

    __slots__ = ("decimals",)
    decimals: int

    def __init__(self, decimals: int) -> None:
        if not _is_int(decimals) or not 0 <= decimals <= SCALE_MAX:
            raise ValueError(f"scale out of range: decimals={decimals!r} range=0..{SCALE_MAX}")
        self._set(decimals)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_count(what: str, count: object) -> None:
    if not _is_int(count) or not 1 <= count <= SIZE_BYTES_MAX:  # type: ignore[operator]
        raise ValueError(f"{what} count out of range: count={count!r} range=1..{SIZE_BYTES_MAX}")


def _integer(name: str, code: str, numpy: str, bits: int, *, signed: bool) -> Number:
    low = -(1 << (bits - 1)) if signed else 0
    high = (1 << (bits - 1 if signed else bits)) - 1
    return Number(name, code, numpy, bits // 8, low, high)


#: A whole number of 8 bits, −2^7 to 2^7 − 1.
i8 = Annotated[int, _integer("i8", "b", "<i1", 8, signed=True)]
#: A whole number of 16 bits, −2^15 to 2^15 − 1.
i16 = Annotated[int, _integer("i16", "h", "<i2", 16, signed=True)]
#: A whole number of 32 bits, −2^31 to 2^31 − 1.
i32 = Annotated[int, _integer("i32", "i", "<i4", 32, signed=True)]
#: A whole number of 64 bits, −2^63 to 2^63 − 1.
i64 = Annotated[int, _integer("i64", "q", "<i8", 64, signed=True)]
#: A whole number of 8 bits, 0 to 2^8 − 1.
u8 = Annotated[int, _integer("u8", "B", "<u1", 8, signed=False)]
#: A whole number of 16 bits, 0 to 2^16 − 1.
u16 = Annotated[int, _integer("u16", "H", "<u2", 16, signed=False)]
#: A whole number of 32 bits, 0 to 2^32 − 1.
u32 = Annotated[int, _integer("u32", "I", "<u4", 32, signed=False)]
#: A whole number of 64 bits, 0 to 2^64 − 1.
u64 = Annotated[int, _integer("u64", "Q", "<u8", 64, signed=False)]
#: A floating-point number of 32 bits, IEEE 754.
f32 = Annotated[float, Number("f32", "f", "<f4", 4)]
#: A floating-point number of 64 bits, IEEE 754: a Python `float`.
f64 = Annotated[float, Number("f64", "d", "<f8", 8)]
#: True or false, in one byte.
bool_ = Annotated[bool, Number("bool", "?", "?", 1)]

#: Text of up to 1 byte, as `bytes`, filled with zeros.
char1 = Annotated[bytes, Chars(1)]
#: Text of up to 2 bytes, as `bytes`, filled with zeros.
char2 = Annotated[bytes, Chars(2)]
#: Text of up to 4 bytes, as `bytes`, filled with zeros.
char4 = Annotated[bytes, Chars(4)]
#: Text of up to 8 bytes, as `bytes`, filled with zeros.
char8 = Annotated[bytes, Chars(8)]
#: Text of up to 16 bytes, as `bytes`, filled with zeros.
char16 = Annotated[bytes, Chars(16)]
#: Text of up to 24 bytes, as `bytes`, filled with zeros.
char24 = Annotated[bytes, Chars(24)]
#: Text of up to 32 bytes, as `bytes`, filled with zeros.
char32 = Annotated[bytes, Chars(32)]


class chars:  # noqa: N801  (it is read as a type, like the aliases above)
    """``chars[n]`` is short for ``Annotated[bytes, Chars(n)]``; type checkers need the long form.

    Examples
    --------
    >>> chars[8] == char8
    True
    """

    def __class_getitem__(cls, count: int) -> Any:
        return Annotated[bytes, Chars(count)]


class array:  # noqa: N801
    """``array[f64, n]`` is short for ``Annotated[tuple[float, ...], Array(f64, n)]``.

    Examples
    --------
    >>> from chronicle.message import MessageBase, array, f64, message
    >>> @message(1)
    ... class Curve(MessageBase):
    ...     rates: array[f64, 2]
    >>> Curve(rates=(1.0, 2.0))
    Curve(rates=(1.0, 2.0))
    """

    def __class_getitem__(cls, item: tuple[object, int]) -> Any:
        if not isinstance(item, tuple) or len(item) != 2:
            raise TypeError("write array[f64, 10]: a number type and a count")
        return Annotated[tuple[Any, ...], Array(*item)]


def _metadata_of(hint: object, kind: type[Any]) -> Any:
    if get_origin(hint) is not Annotated:
        return None
    return next((item for item in get_args(hint)[1:] if isinstance(item, kind)), None)


#: Every number type by its name in schemas.
NUMBERS: Final[dict[str, Number]] = {
    number.name: number
    for number in (
        _metadata_of(alias, Number)
        for alias in (i8, i16, i32, i64, u8, u16, u32, u64, f32, f64, bool_)
    )
}
"""The number types by their names in schemas."""


class Field(NamedTuple):
    """One line of a layout table.

    Attributes
    ----------
    name
        Attribute name.
    type
        ``i8`` … ``f64``, ``bool`` or ``chars``.
    numpy
        NumPy format of one element: ``<i8``, ``?``, ``S8``.
    offset
        Bytes from the start of the message.
    count
        ``None`` for one number, the length of an array, or the width of text in bytes.
    size_bytes
        Bytes that the field takes.
    scale
        Implied decimals for display, or ``None``.

    Examples
    --------
    >>> from chronicle.message import MessageBase, f64, message, u8
    >>> @message(1)
    ... class Tick(MessageBase):
    ...     side: u8
    ...     price: f64
    >>> [(field.name, field.type, field.offset) for field in Tick.FIELDS]
    [('side', 'u8', 0), ('price', 'f64', 8)]
    """

    name: str
    type: str
    numpy: str
    offset: int
    count: int | None  # type: ignore[assignment]  # hides `tuple.count`
    size_bytes: int
    scale: int | None = None

    @property
    def code(self) -> str:
        """The field's format for the `struct` module, without byte order."""
        if self.type == "chars":
            return f"{self.count}s"
        return ("" if self.count is None else str(self.count)) + NUMBERS[self.type].code


class _DtypeOnFirstUse:
    """Class attribute that builds the NumPy type when first asked, to keep NumPy out of imports."""

    def __get__(self, instance: object, owner: type[MessageBase]) -> np.dtype[np.void]:
        made = owner.__dict__.get("_dtype")
        if made is None:
            made = _build_dtype(owner.FIELDS, owner.size_bytes)
            owner._dtype = made
        return made


def _build_dtype(fields: tuple[Field, ...], size_bytes: int) -> np.dtype[np.void]:
    import numpy as np

    if not fields:
        return np.dtype([])
    formats: list[Any] = [
        field.numpy if field.count is None or field.type == "chars" else (field.numpy, field.count)
        for field in fields
    ]
    return np.dtype(
        {
            "names": [field.name for field in fields],
            "formats": formats,
            "offsets": [field.offset for field in fields],
            "itemsize": size_bytes,
        },
        align=True,
    )


class MessageBase:
    """What every message class has. Deriving from it is for type checkers; `message` adds it.

    An instance is a window on bytes: on its own after ``Trade(price=1)``, on somebody else's after
    ``Trade.view(buffer)``. It cannot be changed. It is not hashed or compared by identity, but by
    its fields.

    Examples
    --------
    >>> from chronicle.message import MessageBase, f64, message
    >>> @message(1)
    ... class Trade(MessageBase):
    ...     price: f64
    >>> trade = Trade(price=1.5)
    >>> Trade.view(bytes(trade)) == trade, trade.as_dict()
    (True, {'price': 1.5})
    """

    __slots__ = ("_buffer",)

    type_id: ClassVar[int]
    """Number of this message in the records of a queue, 1 to 65,535."""
    size_bytes: ClassVar[int]
    """Bytes of one message, padding included."""
    FIELDS: ClassVar[tuple[Field, ...]]
    """The layout table, in order of offsets."""
    schema: ClassVar[dict[str, Any]]
    """The layout as plain data for JSON; `message_from_schema` reads it back."""
    _dtype: ClassVar[Any]
    _unpack: ClassVar[Callable[..., tuple[Any, ...]]]
    _defaults: ClassVar[Mapping[str, Any]]

    if TYPE_CHECKING:
        dtype: ClassVar[np.dtype[np.void]]
        _buffer: Buffer
    else:
        dtype = _DtypeOnFirstUse()

    @classmethod
    def view(cls, buffer: Buffer | np.ndarray[Any, Any], offset: int = 0) -> Self:
        """Return a message that reads its fields from `buffer`, in place.

        Copies nothing and keeps `buffer` alive. More bytes than the layout needs are allowed, for
        writers that have since appended a field.

        Parameters
        ----------
        buffer
            Any contiguous buffer: ``bytes``, a record's payload, a NumPy array.
        offset
            Where the message begins, in bytes.

        Raises
        ------
        SchemaMismatch
            If fewer than `size_bytes` bytes are left.
        """
        data: Any = buffer
        if type(buffer) is not bytes:
            data = memoryview(data)
            if data.format != "B" or data.ndim != 1:
                data = data.cast("B")
        if offset:
            if offset < 0:
                raise ValueError(f"offset must not be negative: offset={offset}")
            data = memoryview(data)[offset:]
        if len(data) < cls.size_bytes:
            raise SchemaMismatch(
                f"too few bytes for message {cls.__name__!r}: found={len(data)} "
                f"expected={cls.size_bytes}; was it written with another schema?"
            )
        self = _new(cls)
        self._buffer = data
        return self

    def pack(self) -> bytes:
        """Return the message's bytes, `size_bytes` of them. Copies only what is a view."""
        data = self._buffer
        if type(data) is bytes and len(data) == self.size_bytes:
            return data
        return bytes(memoryview(data)[: self.size_bytes])

    __bytes__ = pack

    def as_dict(self, *, scaled: bool = False) -> dict[str, Any]:
        """Return the fields by name.

        Parameters
        ----------
        scaled
            Give integers with implied decimals as `decimal.Decimal`.

        Examples
        --------
        >>> @message(1)
        ... class Tick:
        ...     price: Annotated[i64, Scale(2)]
        >>> Tick(price=1999).as_dict(), Tick(price=1999).as_dict(scaled=True)
        ({'price': 1999}, {'price': Decimal('19.99')})
        """
        return {
            field.name: _scaled(getattr(self, field.name), field.scale)
            if scaled
            else getattr(self, field.name)
            for field in self.FIELDS
        }

    def __eq__(self, other: object) -> bool:
        # A class that was rebuilt from a stored schema is another type with the same messages.
        if not isinstance(other, MessageBase) or other.schema != self.schema:
            return NotImplemented
        mine, its = self.as_dict(), other.as_dict()
        return bool(mine == its)

    def __hash__(self) -> int:
        return hash((self.type_id, *self.as_dict().values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.as_dict().items())
        return f"{type(self).__name__}({fields})"

    def __reduce__(self) -> tuple[Callable[[bytes], Self], tuple[bytes]]:
        return type(self).view, (self.pack(),)


def _scaled(value: Any, scale: int | None) -> Any:
    if not scale:
        return value
    from decimal import Decimal

    if isinstance(value, tuple):
        return tuple(Decimal(item).scaleb(-scale) for item in value)
    return Decimal(value).scaleb(-scale)


_new = object.__new__
_Class = TypeVar("_Class")


@dataclass_transform(kw_only_default=True, eq_default=True, frozen_default=True)
def message(type_id: int) -> Callable[[type[_Class]], type[_Class]]:
    """Make a class with annotated fields a fixed-layout message.

    Parameters
    ----------
    type_id
        The number that records of this message carry, 1 to 65,535. Within one system it must
        mean one layout. Numbers from 32,768 up belong to Chronicle's own feeds.

    Returns
    -------
    Callable
        A decorator. The class it returns can be built by keyword (values are checked against the
        ranges of their fields), and has what `MessageBase` describes.

    Raises
    ------
    TypeError
        If a field's annotation is not one of this module's types, or its name is taken.
    ValueError
        If `type_id` is out of range.

    Examples
    --------
    >>> @message(42)
    ... class Level:
    ...     price: i64
    ...     size: u32 = 0
    >>> Level(price=5)
    Level(price=5, size=0)
    >>> Level(price=5, size=-1)
    Traceback (most recent call last):
    ...
    ValueError: field 'size' of message 'Level' is out of range: value=-1 range=0..4294967295
    """
    _check_type_id(type_id)
    # Annotations may be strings that name things local to the caller, as in a test function.
    local_names = dict(sys._getframe(1).f_locals)

    def decorate(cls: type[_Class]) -> type[_Class]:
        hints = get_type_hints(cls, localns=local_names, include_extras=True)
        specs = [
            (name, *_field_type(cls.__name__, name, hint))
            for name, hint in hints.items()
            if get_origin(hint) is not ClassVar and hint is not ClassVar
        ]
        fields, size_bytes = _lay_out(cls.__name__, specs)
        defaults = {f.name: getattr(cls, f.name) for f in fields if _has_default(cls, f.name)}
        return _finish(cls, type_id, fields, size_bytes, defaults)

    return decorate


_TAKEN = frozenset(dir(MessageBase)) | {"type_id", "size_bytes", "FIELDS", "schema"}


def _check_type_id(type_id: object) -> None:
    if not _is_int(type_id) or not 1 <= type_id <= TYPE_ID_MAX:  # type: ignore[operator]
        raise ValueError(f"type_id out of range: type_id={type_id!r} range=1..{TYPE_ID_MAX}")


def _has_default(cls: type, name: str) -> bool:
    value = getattr(cls, name, _NO_DEFAULT)
    # A field that was inherited from another message is a property there, not a default.
    return value is not _NO_DEFAULT and not isinstance(value, property)


_NO_DEFAULT = object()
_Kind = Number | Chars | Array


def _field_type(owner: str, name: str, hint: object) -> tuple[_Kind, int | None]:
    kinds = [k for k in get_args(hint)[1:] if isinstance(k, Number | Chars | Array)]
    if get_origin(hint) is not Annotated or len(kinds) != 1:
        raise TypeError(
            f"field {name!r} of message {owner!r} has no fixed layout: annotation={hint!r}; "
            "use i8 to u64, f32, f64, bool_, Chars or Array"
        )
    scale: Scale | None = _metadata_of(hint, Scale)
    number = kinds[0].number if isinstance(kinds[0], Array) else kinds[0]
    if scale is not None and not (isinstance(number, Number) and number.minimum is not None):
        raise TypeError(f"field {name!r} of message {owner!r} has a scale but holds no integer")
    return kinds[0], None if scale is None else scale.decimals


def _lay_out(
    owner: str, specs: list[tuple[str, _Kind, int | None]]
) -> tuple[tuple[Field, ...], int]:
    """Give every field its offset by the rule in the module's header."""
    fields: list[Field] = []
    end = 0
    alignment_max = 1
    for name, kind, scale in specs:
        _check_name(owner, name)
        count: int | None
        if isinstance(kind, Chars):
            alignment, size, count = 1, kind.count, kind.count
            type_name, numpy = "chars", f"S{kind.count}"
        else:
            number = kind.number if isinstance(kind, Array) else kind
            count = kind.count if isinstance(kind, Array) else None
            alignment, size = number.size_bytes, number.size_bytes * (1 if count is None else count)
            type_name, numpy = number.name, number.numpy
        offset = -(-end // alignment) * alignment
        fields.append(Field(name, type_name, numpy, offset, count, size, scale))
        end = offset + size
        alignment_max = max(alignment_max, alignment)
        if end > SIZE_BYTES_MAX:
            raise ValueError(f"message {owner!r} is too large: size={end} limit={SIZE_BYTES_MAX}")
    return tuple(fields), -(-end // alignment_max) * alignment_max


def _check_name(owner: str, name: str) -> None:
    bad = not name.isidentifier() or name.startswith("_") or keyword.iskeyword(name)
    if bad or name in _TAKEN:
        why = "is not a plain name" if bad else "is taken by the message itself"
        raise TypeError(f"field name {name!r} of message {owner!r} {why}; rename the field")


def _finish(
    cls: Any,
    type_id: int,
    fields: tuple[Field, ...],
    size_bytes: int,
    defaults: Mapping[str, Any],
) -> type[Any]:
    """Build the final class: no instance dictionary, one property per field, a packer."""
    packer = struct.Struct(_struct_format(fields, size_bytes))
    space = {
        key: value
        for key, value in cls.__dict__.items()
        if key not in ("__dict__", "__weakref__", "__slots__", "_dtype")
    }
    space["__slots__"] = ()
    space["type_id"] = type_id
    space["size_bytes"] = size_bytes
    space["FIELDS"] = fields
    space["schema"] = _schema(cls.__name__, type_id, fields, size_bytes)
    space["_unpack"] = staticmethod(packer.unpack_from)
    space["_defaults"] = dict(defaults)
    space["__match_args__"] = tuple(field.name for field in fields)
    for field in fields:
        space[field.name] = property(_getter(field), doc=f"Field at byte {field.offset}.")
    space["__init__"] = _make_init(cls.__name__, fields, packer, defaults)
    bases = cls.__bases__
    if not issubclass(cls, MessageBase):
        bases = (MessageBase,) if bases == (object,) else (*bases, MessageBase)
    made: type[Any] = type(cls)(cls.__name__, bases, space)
    made.__qualname__ = cls.__qualname__
    _move_class_cell(cls, made)
    return made


def _move_class_cell(old: type, new: type) -> None:
    """Point zero-argument ``super()`` in the class's methods at the rebuilt class."""
    for value in old.__dict__.values():
        function = value.fget if isinstance(value, property) else value
        for cell in getattr(function, "__closure__", None) or ():
            if isinstance(function, FunctionType) and isinstance(cell, CellType):
                try:
                    if cell.cell_contents is old:
                        cell.cell_contents = new
                except ValueError:  # An empty cell has no contents yet.
                    continue


def _struct_format(fields: tuple[Field, ...], size_bytes: int) -> str:
    parts, end = ["<"], 0
    for field in fields:
        parts.append("x" * (field.offset - end) + field.code)
        end = field.offset + field.size_bytes
    return "".join(parts) + "x" * (size_bytes - end)


def _getter(field: Field) -> Callable[[MessageBase], Any]:
    unpack = struct.Struct("<" + field.code).unpack_from
    offset = field.offset
    if field.type == "chars":
        return lambda self: unpack(self._buffer, offset)[0].rstrip(b"\0")
    if field.count is not None:
        return lambda self: unpack(self._buffer, offset)
    return lambda self: unpack(self._buffer, offset)[0]


def _make_init(
    owner: str, fields: tuple[Field, ...], packer: struct.Struct, defaults: Mapping[str, Any]
) -> Callable[..., None]:
    """Generate ``__init__``, as `dataclasses` does: a plain signature is what makes it fast.

    The numbers' ranges are checked by `struct`; only when it refuses are the values looked at one
    by one, to say which.
    """
    names: dict[str, Any] = {"pack": packer.pack, "refusals": (struct.error, OverflowError)}
    params: list[str] = []
    values: list[str] = []
    for index, field in enumerate(fields):
        default = ""
        if field.name in defaults:
            names[f"default_{index}"] = defaults[field.name]
            default = f"=default_{index}"
        params.append(field.name + default)
        if field.type == "chars" or field.count is not None or field.type == "bool":
            names[f"convert_{index}"] = _converter(owner, field)
            star = "*" if field.type != "chars" and field.count is not None else ""
            values.append(f"{star}convert_{index}({field.name})")
        else:
            values.append(field.name)

    def explain(given: tuple[Any, ...]) -> Exception:
        return _explain(owner, fields, given)

    names["explain"] = explain
    signature = ", ".join(["self", *(["*", *params] if params else [])])
    given = "".join(f"{field.name}, " for field in fields)
    source = (
        f"def __init__({signature}):\n"
        f"    try:\n"
        f"        self._buffer = pack({', '.join(values)})\n"
        f"    except refusals:\n"
        f"        raise explain(({given})) from None\n"
    )
    # The source is made of field names, which _check_name has held to plain identifiers.
    exec(source, names)
    made: Callable[..., None] = names["__init__"]
    made.__qualname__ = f"{owner}.__init__"
    return made


def _converter(owner: str, field: Field) -> Callable[[Any], Any]:
    label = f"field {field.name!r} of message {owner!r}"
    count = field.count

    def text(value: Any) -> bytes:
        if isinstance(value, str):
            if not value.isascii():
                raise ValueError(f"{label} takes ASCII text: value={value!r}")
            value = value.encode("ascii")
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"{label} takes bytes or str: value={value!r}")
        if len(value) > count:  # type: ignore[operator]
            raise ValueError(f"{label} is too long: value={bytes(value)!r} limit={count} bytes")
        return bytes(value)

    def numbers(value: Any) -> tuple[Any, ...]:
        items = tuple(value)
        if len(items) != count:
            raise ValueError(f"{label} has a fixed length: found={len(items)} expected={count}")
        return tuple(flag(item) for item in items) if field.type == "bool" else items

    def flag(value: Any) -> bool:
        # `struct` would take any object's truth, and so write True for b"N".
        if isinstance(value, bytes | str) or value not in (0, 1):
            raise TypeError(f"{label} takes True or False: value={value!r}")
        return bool(value)

    if field.type == "chars":
        return text
    return flag if count is None else numbers


def _explain(owner: str, fields: tuple[Field, ...], given: tuple[Any, ...]) -> Exception:
    """Find the value that `struct` refused, and say so in the caller's terms."""
    for field, value in zip(fields, given, strict=True):
        if field.type in ("chars", "bool"):
            continue
        number = NUMBERS[field.type]
        one = struct.Struct("<" + number.code)
        for item in (value,) if field.count is None else tuple(value):
            try:
                one.pack(item)
            except (struct.error, OverflowError):
                label = f"field {field.name!r} of message {owner!r}"
                if number.minimum is None and isinstance(item, int | float):
                    return ValueError(f"{label} is out of range: value={item!r} type={field.type}")
                if number.minimum is None or not hasattr(item, "__index__"):
                    return TypeError(f"{label} takes {field.type}: value={item!r}")
                span = f"{number.minimum}..{number.maximum}"
                return ValueError(f"{label} is out of range: value={item!r} range={span}")
    return TypeError(f"message {owner!r} cannot be packed from {given!r}")


def _schema(name: str, type_id: int, fields: tuple[Field, ...], size_bytes: int) -> dict[str, Any]:
    described: list[dict[str, Any]] = []
    for field in fields:
        entry: dict[str, Any] = {"name": field.name, "type": field.type, "offset": field.offset}
        if field.count is not None:
            entry["count"] = field.count
        if field.scale is not None:
            entry["scale"] = field.scale
        described.append(entry)
    return {"name": name, "type_id": type_id, "size": size_bytes, "fields": described}


def message_from_schema(schema: Mapping[str, Any]) -> type[MessageBase]:
    """Build a message class from a schema that was stored with a queue.

    Parameters
    ----------
    schema
        What `MessageBase.schema` gave, perhaps after a trip through JSON. Nothing in it is trusted.

    Returns
    -------
    type
        A class with the same layout, type id and name.

    Raises
    ------
    DecodeError
        If `schema` is not a schema at all: a part is missing, of the wrong type or out of range.
    SchemaMismatch
        If its offsets or size are not those that the layout rule gives for its fields.

    Examples
    --------
    >>> @message(9)
    ... class Beat:
    ...     count: u64
    >>> Again = message_from_schema(Beat.schema)
    >>> Again.view(Beat(count=3).pack()).count
    3
    """
    name = _part(schema, "name", str)
    if not name.isidentifier() or len(name) > 255:
        raise DecodeError(f"schema has no usable name: name={name[:64]!r}")
    try:
        type_id = _part(schema, "type_id", int)
        _check_type_id(type_id)
        listed = _part(schema, "fields", list)
        if len(listed) > FIELDS_COUNT_MAX:
            raise ValueError(f"too many fields: found={len(listed)} limit={FIELDS_COUNT_MAX}")
        specs = [_spec_from_schema(entry) for entry in listed]
        if len({spec[0] for spec in specs}) != len(specs):
            raise ValueError("two fields have the same name")
        fields, size_bytes = _lay_out(name, specs)
    except (TypeError, ValueError) as error:
        raise DecodeError(f"schema of message {name!r} is damaged: {error}") from None
    stated = [_part(entry, "offset", int) for entry in listed]
    expected = [field.offset for field in fields]
    if stated != expected or _part(schema, "size", int) != size_bytes:
        raise SchemaMismatch(
            f"schema of message {name!r} does not follow the layout rule: "
            f"found offsets={stated} size={schema['size']} "
            f"expected offsets={expected} size={size_bytes}; it was written by another version"
        )
    return _finish(type(name, (MessageBase,), {}), type_id, fields, size_bytes, {})


def _part(source: object, key: str, kind: type[Any]) -> Any:
    value = source.get(key) if isinstance(source, Mapping) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DecodeError(
            f"schema is damaged: {key!r} must be {kind.__name__}, found={value!r:.80}"
        )
    return value


def _spec_from_schema(entry: object) -> tuple[str, _Kind, int | None]:
    name: str = _part(entry, "name", str)
    type_name: str = _part(entry, "type", str)
    assert isinstance(entry, Mapping)  # _part has just read two keys from it.
    kind: _Kind
    if type_name == "chars":
        kind = Chars(_part(entry, "count", int))
    elif type_name in NUMBERS:
        kind = NUMBERS[type_name]
        if "count" in entry:
            kind = Array(kind, _part(entry, "count", int))
    else:
        raise DecodeError(
            f"schema is damaged: unknown type={type_name!r:.80} of field {name!r:.80}"
        )
    if "scale" not in entry:
        return name, kind, None
    number = kind.number if isinstance(kind, Array) else kind
    if not isinstance(number, Number) or number.minimum is None:
        raise DecodeError(f"schema is damaged: field {name!r:.80} has a scale but is no integer")
    return name, kind, Scale(_part(entry, "scale", int)).decimals
