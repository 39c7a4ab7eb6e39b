"""Numba types for what a handler sees, and how a primitive reads, stores and fails.

All values are plain: pointers into the state or a payload, numbers, and structs of numbers. None
has a constructor, a destructor or a reference count.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import models, register_model

from chronicle.hot.failures import REASON_SHIFT, Failure
from chronicle.hot.info import I64_MAX
from chronicle.hot.spec import HandlerSpec, Layout, layout_of
from chronicle.hot.state import U64_TOO_LARGE
from chronicle.message import NUMBERS

__all__ = [
    "NAMES",
    "BufferType",
    "BytesType",
    "CellsType",
    "CharsType",
    "Emit",
    "HandlerType",
    "InfoType",
    "OutputType",
    "RecordType",
    "RecordValueType",
    "Refusal",
    "Session",
    "TableType",
    "describe",
    "number_type",
]

I1: Final = ir.IntType(1)
I8: Final = ir.IntType(8)
I16: Final = ir.IntType(16)
I32: Final = ir.IntType(32)
I64: Final = ir.IntType(64)
F32: Final = ir.FloatType()
F64: Final = ir.DoubleType()
POINTER: Final = I8.as_pointer()

# Offsets of the context and of a message; docs/internals/hot-thread.md, "The C ABI".
CONTEXT_FLAGS: Final = 4
CONTEXT_STATE: Final = 8
CONTEXT_NOW_NS: Final = 16
CONTEXT_COUNTERS: Final = 24
CONTEXT_FAIL_INFO: Final = 32
CONTEXT_FAIL_CODE: Final = 40
MESSAGE_TYPE_ID: Final = 12
MESSAGE_SOURCE: Final = 16
MESSAGE_TAG: Final = 20
MESSAGE_SEQUENCE: Final = 24
MESSAGE_TIMESTAMP: Final = 32

INFO_FIELDS: Final[dict[str, tuple[str, int]]] = {
    "seq": ("u64", MESSAGE_SEQUENCE),
    "timestamp_ns": ("u64", MESSAGE_TIMESTAMP),
    "source": ("u32", MESSAGE_SOURCE),
    "type_id": ("u16", MESSAGE_TYPE_ID),
    "line": ("u16", MESSAGE_TYPE_ID),
    "tag": ("u32", MESSAGE_TAG),
}

# Which NaN an operation gives is the processor's choice, so stores write this one.
NAN_BITS: Final = 0x7FF8_0000_0000_0000


class Refusal(Exception):
    """The types net caught something: what, and what to do instead. The line is found later."""

    def __init__(self, construct: str, remedy: str, loc: Any = None) -> None:
        super().__init__(f"{construct}; {remedy}")
        self.loc = loc
        self.construct = construct
        self.remedy = remedy


class Session:
    """What the primitives note while one handler is compiled. One at a time, under a lock."""

    current: Session

    def __init__(self, failures: list[str]) -> None:
        self.failures = [Failure("HandlerFailed", text) for text in failures]
        self._numbers = {failure: n for n, failure in enumerate(self.failures)}

    def number(self, failure: Failure) -> int:
        """Return the number of a reason to fail."""
        known = self._numbers.get(failure)
        if known is None:
            known = self._numbers[failure] = len(self.failures)
            self.failures.append(failure)
        return known


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


NAMES: Final[dict[str, str]] = {}
"""What the types are called by people, by their names in Numba's errors."""


class HandlerType(types.Type):  # type: ignore[misc]
    """``self``: a pointer to the context. One type for each layout of state."""

    def __init__(self, spec: HandlerSpec) -> None:
        self.owner = spec.name
        self.fields = {f.name: f for f in spec.state}
        parts = [(*f[:6], layout_of(f.row) if f.row else None) for f in spec.state]
        super().__init__(name=f"chr.Handler{_digest(spec.name, parts)}")
        NAMES[self.name] = describe(self)


class RecordType(types.Type):  # type: ignore[misc]
    """A pointer to a record: a message's payload, or a row of a table, which can be changed."""

    def __init__(self, layout: Layout, *, writable: bool) -> None:
        self.layout = layout
        self.writable = writable
        self.fields = {f[0]: f for f in layout.fields}
        super().__init__(name=f"chr.Record{_digest(layout, writable)}")
        NAMES[self.name] = describe(self)


class RecordValueType(types.Type):  # type: ignore[misc]
    """A message that the handler built: its fields, as values."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.fields = {f[0]: f for f in layout.fields}
        super().__init__(name=f"chr.Message{_digest(layout)}")
        NAMES[self.name] = describe(self)


class InfoType(types.Type):  # type: ignore[misc]
    """A pointer to the envelope of a message."""

    def __init__(self) -> None:
        super().__init__(name="chr.Info")


class CellsType(types.Type):  # type: ignore[misc]
    """A pointer to an array of numbers."""

    def __init__(self, number: str, count: int, label: str, *, writable: bool) -> None:
        self.number = number
        self.count = count
        self.label = label
        self.writable = writable
        super().__init__(name=f"chr.Cells{_digest(number, count, label, writable)}")
        NAMES[self.name] = describe(self)


class TableType(types.Type):  # type: ignore[misc]
    """A pointer to the rows of a table."""

    def __init__(self, layout: Layout, count: int, label: str) -> None:
        self.layout = layout
        self.count = count
        self.label = label
        super().__init__(name=f"chr.Table{_digest(layout, count, label)}")
        NAMES[self.name] = describe(self)


class CharsType(types.Type):  # type: ignore[misc]
    """Text of up to `width` bytes, as one integer: byte 0 is the lowest, padding is zero.

    So two texts are equal if the integers are, whatever their widths.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(name=f"chr.Chars{width}")
        NAMES[self.name] = describe(self)


class BytesType(types.Type):  # type: ignore[misc]
    """A view of bytes: where they are, and how many."""

    def __init__(self) -> None:
        super().__init__(name="chr.Bytes")
        NAMES[self.name] = describe(self)


class BufferType(types.Type):  # type: ignore[misc]
    """A pointer to a buffer of the state."""

    def __init__(self, size: int, label: str) -> None:
        self.size = size
        self.label = label
        super().__init__(name=f"chr.Buffer{_digest(size, label)}")
        NAMES[self.name] = describe(self)


class OutputType(types.Type):  # type: ignore[misc]
    """An output: its number."""

    def __init__(self) -> None:
        super().__init__(name="chr.Output")
        NAMES[self.name] = describe(self)


@register_model(OutputType)
class _OutputModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, I64)


@register_model(BytesType)
class _BytesModel(models.StructModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Any) -> None:
        members = [("pointer", types.voidptr), ("length", types.int64)]
        super().__init__(manager, fe_type, members)


@register_model(BufferType)
@register_model(HandlerType)
@register_model(RecordType)
@register_model(InfoType)
@register_model(CellsType)
@register_model(TableType)
class _PointerModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, POINTER)


@register_model(CharsType)
class _CharsModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: CharsType) -> None:
        super().__init__(manager, fe_type, ir.IntType(8 * fe_type.width))


@register_model(RecordValueType)
class _RecordValueModel(models.StructModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: RecordValueType) -> None:
        members = [(f"f{n}", value_type(f)) for n, f in enumerate(fe_type.layout.fields)]
        super().__init__(manager, fe_type, members)


def number_type(name: str) -> Any:
    """Return what reading a number gives: ``int64``, ``float64`` or ``boolean``."""
    if name == "bool":
        return types.boolean
    return types.float64 if name in ("f32", "f64") else types.int64


def value_type(field: tuple[str, str, int, int | None, int]) -> Any:
    """Return the type of a field of a message that was built."""
    _, type_name, _, count, size = field
    if type_name == "chars":
        return CharsType(size)
    one = number_type(type_name)
    return one if count is None else types.UniTuple(one, count)


def describe(kind: Any) -> str:
    """Return what a type is called by people."""
    match kind:
        case HandlerType():
            return "the handler"
        case RecordType() | RecordValueType():
            return f"a message {kind.layout.name!r}"
        case InfoType():
            return "info"
        case CellsType():
            return f"an array of {kind.number}"
        case TableType():
            return f"a table of {kind.layout.name!r}"
        case CharsType():
            return f"text of {kind.width} bytes"
        case BytesType():
            return "bytes"
        case BufferType():
            return "a buffer"
        case OutputType():
            return "an output"
        case types.Boolean():
            return "a bool"
        case types.Integer():
            return "an int"
        case types.Float():
            return "a float"
        case types.BaseTuple():
            return "a tuple"
        case types.NoneType():
            return "None"
        case types.Optional():
            return f"{describe(kind.type)} or None"
    return str(kind)


def kind_of(kind: Any) -> str:
    """Return ``int``, ``float``, ``bool``, ``chars`` or ``""``."""
    match types.unliteral(kind):
        case types.Boolean():
            return "bool"
        case types.int64:
            return "int"
        case types.float64:
            return "float"
        case CharsType():
            return "chars"
    return ""


def ir_number(name: str) -> Any:
    """Return the type in memory of a number."""
    if name in ("f32", "f64"):
        return F32 if name == "f32" else F64
    return ir.IntType(8 * NUMBERS[name].size_bytes)


class Emit:
    """Writes the instructions of one primitive: loads, checked stores, failures."""

    def __init__(self, context: Any, builder: Any, handler: Any = None, site: Any = None) -> None:
        self.context = context
        self.builder = builder
        self.handler = handler
        self.site = site

    # --- Memory ---

    def at(self, pointer: Any, offset: Any) -> Any:
        """Return `pointer` moved by a number of bytes, which may be a value."""
        if isinstance(offset, int):
            if offset == 0:
                return pointer
            offset = I64(offset)
        return self.builder.gep(pointer, [offset])

    def load_raw(self, pointer: Any, offset: Any, kind: Any, *, align: int = 1) -> Any:
        """Load a value of an LLVM type."""
        place = self.builder.bitcast(self.at(pointer, offset), kind.as_pointer())
        return self.builder.load(place, align=align)

    def store_raw(self, value: Any, pointer: Any, offset: Any, *, align: int = 1) -> None:
        """Store a value as it is."""
        place = self.builder.bitcast(self.at(pointer, offset), value.type.as_pointer())
        self.builder.store(value, place, align=align)

    def _fixed_pointer(self, offset: int) -> Any:
        """Load a pointer of the context. It never changes, and the optimizer may know."""
        loaded = self.load_raw(self.handler, offset, POINTER, align=8)
        loaded.set_metadata("invariant.load", self.builder.module.add_metadata([]))
        return loaded

    def state(self) -> Any:
        """Return the pointer to the state."""
        return self._fixed_pointer(CONTEXT_STATE)

    def counters(self) -> Any:
        """Return the pointer to the counters."""
        return self._fixed_pointer(CONTEXT_COUNTERS)

    # --- Failing ---

    def note_failure(self, failure: Failure, value: Any = None) -> None:
        """Store why the handler fails, and where."""
        number = Session.current.number(failure)
        code = self.builder.or_(self.site, I64(number << REASON_SHIFT))
        self.store_raw(code, self.handler, CONTEXT_FAIL_CODE, align=8)
        if value is None:
            value = I64(0)
        elif value.type == F64:
            value = self.builder.bitcast(value, I64)
        self.store_raw(value, self.handler, CONTEXT_FAIL_INFO, align=8)

    def fail_if(self, bad: Any, exception: str, text: str, value: Any = None) -> None:
        """Leave the function with a failure if `bad`."""
        kind = "" if value is None else "f64" if value.type == F64 else "i64"
        with self.builder.if_then(bad, likely=False):
            self.note_failure(Failure(exception, text, kind), value)
            self.context.call_conv.return_user_exc(self.builder, RuntimeError, ())

    # --- Numbers ---

    def load_number(self, pointer: Any, offset: Any, name: str, label: str) -> Any:
        """Load a number from memory as what expressions are made of."""
        builder = self.builder
        raw = self.load_raw(pointer, offset, ir_number(name))
        if name == "bool":
            return builder.icmp_unsigned("!=", raw, I8(0))
        if name == "f64":
            return raw
        if name == "f32":
            return builder.fpext(raw, F64)
        if name == "u64":
            text = U64_TOO_LARGE.format(label=label, value="{value} + 2**64")
            self.fail_if(builder.icmp_signed("<", raw, I64(0)), "ValueError", text, raw)
            return raw
        if name == "i64":
            return raw
        return builder.sext(raw, I64) if name[0] == "i" else builder.zext(raw, I64)

    def check_number(self, value: Any, kind: Any, name: str, label: str) -> Any:
        """Return a value as it would be read back from a field, or fail if it does not fit."""
        builder = self.builder
        found = kind_of(kind)
        if not found or found == "chars":
            raise Refusal(
                f"storing {describe(kind)} into {label}, which is {name}", "store a number"
            )
        if name == "bool":
            return self._check_bool(value, found, label)
        if name in ("f32", "f64"):
            value = self.as_f64(value, found)
            return value if name == "f64" else self._check_f32(value, label)
        if found == "float":
            raise Refusal(
                f"storing a float into {label}, which is {name}", "write int(...) around it"
            )
        value = self.as_i64(value, found)
        number = NUMBERS[name]
        low, high = number.minimum, number.maximum
        assert low is not None  # It is an integer, and so has both.
        assert high is not None
        high = min(high, I64_MAX)
        if name == "i64":
            return value
        text = f"{label} is out of range: value={{value}} range={low}..{high}"
        moved = builder.sub(value, I64(low))
        bad = builder.icmp_unsigned(">", moved, I64(high - low))
        self.fail_if(bad, "ValueError", text, value)
        return value

    def _check_bool(self, value: Any, found: str, label: str) -> Any:
        builder = self.builder
        text = f"{label} takes True or False: value={{value}}"
        if found == "int":
            bad = builder.icmp_unsigned(">", value, I64(1))
            self.fail_if(bad, "TypeError", text, value)
            return builder.trunc(value, I1)
        if found == "float":
            is_zero = builder.fcmp_ordered("==", value, F64(0.0))
            is_one = builder.fcmp_ordered("==", value, F64(1.0))
            bad = builder.not_(builder.or_(is_zero, is_one))
            self.fail_if(bad, "TypeError", text, value)
            return is_one
        return value

    def _check_f32(self, value: Any, label: str) -> Any:
        builder = self.builder
        wide = builder.fpext(builder.fptrunc(value, F32), F64)
        bad = builder.and_(self.is_infinite(wide), builder.not_(self.is_infinite(value)))
        text = f"{label} is out of range: value={{value}} type=f32"
        self.fail_if(bad, "ValueError", text, value)
        return wide

    def is_infinite(self, value: Any) -> Any:
        """Return whether a float is plus or minus infinity."""
        positive = self.builder.fcmp_ordered("==", value, F64(float("inf")))
        negative = self.builder.fcmp_ordered("==", value, F64(float("-inf")))
        return self.builder.or_(positive, negative)

    def store_number(self, value: Any, pointer: Any, offset: Any, name: str) -> None:
        """Store what `check_number` gave."""
        builder = self.builder
        if name == "bool":
            value = builder.zext(value, I8)
        elif name in ("f32", "f64"):
            is_nan = builder.fcmp_unordered("uno", value, value)
            nan = builder.bitcast(I64(NAN_BITS), F64)
            value = builder.select(is_nan, nan, value)
            if name == "f32":
                value = builder.fptrunc(value, F32)
        elif value.type != ir_number(name):
            value = builder.trunc(value, ir_number(name))
        self.store_raw(value, pointer, offset)

    def as_i64(self, value: Any, found: str) -> Any:
        """Return an int or a bool as 64 bits."""
        return self.builder.zext(value, I64) if found == "bool" else value

    def as_f64(self, value: Any, found: str) -> Any:
        """Return a number as a float."""
        if found == "float":
            return value
        return self.builder.sitofp(self.as_i64(value, found), F64)

    # --- Text ---

    def fit_text(self, value: Any, width: int, target: int, label: str) -> Any:
        """Return text in another width, or fail if it does not fit."""
        builder = self.builder
        if width <= target:
            return self.widen(value, target)
        rest = builder.lshr(value, value.type(8 * target))
        bad = builder.icmp_unsigned("!=", rest, value.type(0))
        text = f"{label} is too long: limit={target} bytes"
        self.fail_if(bad, "ValueError", text)
        return builder.trunc(value, ir.IntType(8 * target))

    def widen(self, value: Any, width: int) -> Any:
        """Return text in a width that is not smaller."""
        wanted = ir.IntType(8 * width)
        return value if value.type == wanted else self.builder.zext(value, wanted)

    # --- Others ---

    def element(self, value: Any, index: int, kind: Any) -> Any:
        """Return an element of a tuple. Bools are bytes inside of tuples."""
        found = self.builder.extract_value(value, index)
        if kind is types.boolean and found.type == I8:
            return self.builder.trunc(found, I1)
        return found

    def position(self, index: Any, count: int, label: str) -> Any:
        """Return an index counted from the start, or fail if it is out of range."""
        builder = self.builder
        negative = builder.icmp_signed("<", index, I64(0))
        moved = builder.select(negative, builder.add(index, I64(count)), index)
        bad = builder.icmp_unsigned(">=", moved, I64(count))
        text = f"index out of range: {label} index={{value}} count={count}"
        self.fail_if(bad, "IndexError", text, index)
        return moved

    def room(self, size: int) -> Any:
        """Return a place on the stack of this function, for `size` bytes, aligned to 8."""
        slot = cgutils.alloca_once(self.builder, ir.ArrayType(I64, max(1, -(-size // 8))))
        return self.builder.bitcast(slot, POINTER)

    def rounded(self, name: str, *values: Any) -> Any:
        """Call an operation on floats that has one exact or correctly rounded result."""
        kind = ir.FunctionType(F64, [F64] * len(values))
        function = self.builder.module.declare_intrinsic(f"llvm.{name}", [F64], kind)
        return self.builder.call(function, values)

    def declare(self, name: str, result: Any, arguments: list[Any]) -> Any:
        """Return an external function."""
        kind = ir.FunctionType(result, arguments)
        return cgutils.get_or_insert_function(self.builder.module, kind, name)
