"""Primitives on the handler's world: fields, items, messages, outputs, counters, log and clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types

from chronicle.hot.logs import (
    ARGUMENTS_MAX,
    TAG_BOOL,
    TAG_F64,
    TAG_I64,
    TAG_TEXT,
    TEXT_BYTES_MAX,
)
from chronicle.hot.lower_bytes import append, check_output
from chronicle.hot.lower_numbers import text_length
from chronicle.hot.lower_target import primitive
from chronicle.hot.lower_types import (
    CONTEXT_FLAGS,
    CONTEXT_NOW_NS,
    I32,
    I64,
    INFO_FIELDS,
    POINTER,
    BufferType,
    BytesType,
    CellsType,
    CharsType,
    Emit,
    HandlerType,
    InfoType,
    RecordType,
    RecordValueType,
    Refusal,
    Session,
    TableType,
    describe,
    kind_of,
    number_type,
    value_type,
)
from chronicle.hot.spec import Layout, layout_of
from chronicle.message import NUMBERS, MessageBase

__all__ = ["LOG", "RECORDS", "build", "fail", "get", "item", "set_", "text"]

LOG: Final = "chr_hot_log"
FLAG_STOP: Final = 1
BUILT_ITEMS_MAX: Final = 256
"""Elements of an array in a message that is built: all are values at once."""

_LayoutField = tuple[str, str, int, "int | None", int]


# --- Reading fields ---


def _no_field(owner: Any, name: str) -> Refusal:
    if isinstance(owner, RecordType | RecordValueType):
        fields = ", ".join(owner.fields) or "none"
        return Refusal(f"{owner.layout.name} has no field {name!r}", f"its fields are {fields}")
    if isinstance(owner, InfoType):
        return Refusal(f"info has no field {name!r}", f"it has {', '.join(INFO_FIELDS)}")
    if isinstance(owner, HandlerType):
        return Refusal(
            f"the handler has no state field {name!r}", f"declare it: `{name}: f64` in the class"
        )
    return Refusal(f".{name} of {describe(owner)}", "only messages, rows and self have fields")


def get(name: str) -> Any:
    """Return the primitive that reads the field `name` of whatever it is given."""

    @primitive
    def made(_handler: Any, owner: Any, _site: Any) -> Any:
        kind, load = _reader(owner, name)
        return kind, lambda emit, values: load(emit, values[1])

    return made


def _reader(owner: Any, name: str) -> tuple[Any, Any]:
    """Return the type of a field, and what loads it."""
    if isinstance(owner, InfoType) and name in INFO_FIELDS:
        number, offset = INFO_FIELDS[name]
        return types.int64, lambda emit, p: emit.load_number(p, offset, number, f"info.{name}")
    if isinstance(owner, HandlerType) and name in owner.fields:
        return _state_reader(owner, name)
    if isinstance(owner, RecordType) and name in owner.fields:
        _, type_name, offset, count, size = owner.fields[name]
        label = f"field {name!r} of message {owner.layout.name!r}"
        return _place_reader(type_name, offset, count, size, label, writable=owner.writable)
    if isinstance(owner, RecordValueType) and name in owner.fields:
        index = list(owner.fields).index(name)
        return value_type(owner.fields[name]), lambda emit, value: _part(emit, owner, value, index)
    raise _no_field(owner, name)


def _part(emit: Emit, owner: RecordValueType, value: Any, index: int) -> Any:
    proxy = cgutils.create_struct_proxy(owner)(emit.context, emit.builder, value=value)
    return getattr(proxy, f"f{index}")


def _state_reader(owner: HandlerType, name: str) -> tuple[Any, Any]:
    field = owner.fields[name]
    label = f"field {name!r} of handler {owner.owner!r}"
    if field.kind == "table":
        assert field.row is not None  # A table has rows.
        label = f"table {name!r} of handler {owner.owner!r}"
        kind = TableType(layout_of(field.row), field.count, label)
        return kind, lambda emit, _: emit.at(emit.state(), field.offset)
    if field.kind == "buffer":
        kind = BufferType(field.size_bytes, f"buffer {name!r} of handler {owner.owner!r}")
        return kind, lambda emit, _: emit.at(emit.state(), field.offset)
    count = field.count if field.kind == "array" else None
    kind, load = _place_reader(
        field.type, field.offset, count, field.size_bytes, label, writable=True
    )
    return kind, lambda emit, _: load(emit, emit.state())


def _place_reader(
    type_name: str, offset: int, count: int | None, size: int, label: str, *, writable: bool
) -> tuple[Any, Any]:
    if type_name == "chars":
        wide = ir.IntType(8 * size)
        return CharsType(size), lambda emit, p: emit.load_raw(p, offset, wide)
    if count is not None:
        kind = CellsType(type_name, count, label, writable=writable)
        return kind, lambda emit, p: emit.at(p, offset)
    return number_type(type_name), lambda emit, p: emit.load_number(p, offset, type_name, label)


# --- Storing fields ---


def set_(name: str) -> Any:
    """Return the primitive that stores into the field `name` of whatever it is given."""

    @primitive
    def made(_handler: Any, owner: Any, value: Any, _site: Any) -> Any:
        store = _writer(owner, name, value)
        return types.void, lambda emit, values: store(emit, values[1], values[2])

    return made


def _writer(owner: Any, name: str, value: Any) -> Any:
    if isinstance(owner, HandlerType) and name in owner.fields:
        field = owner.fields[name]
        label = f"field {name!r} of handler {owner.owner!r}"
        if field.kind == "table":
            raise Refusal(f"assignment to the whole table {name!r}", "assign its rows one by one")
        if field.kind == "buffer":
            raise Refusal(
                f"assignment to the buffer {name!r}", f"store into it: self.{name}.store(at, data)"
            )
        count = field.count if field.kind == "array" else None
        store = _place_writer(field.type, field.offset, count, field.size_bytes, label, value)
        return lambda emit, _, given: store(emit, emit.state(), given)
    if isinstance(owner, RecordType) and name in owner.fields and owner.writable:
        _, type_name, offset, count, size = owner.fields[name]
        label = f"field {name!r} of message {owner.layout.name!r}"
        return _place_writer(type_name, offset, count, size, label, value)
    if isinstance(owner, RecordType | RecordValueType) and name in owner.fields:
        raise Refusal(
            f"assignment to field {name!r} of a message {owner.layout.name!r}",
            "messages cannot be changed; build another",
        )
    if isinstance(owner, InfoType):
        raise Refusal(f"assignment to info.{name}", "info cannot be changed")
    raise _no_field(owner, name)


def _place_writer(
    type_name: str, offset: int, count: int | None, size: int, label: str, value: Any
) -> Any:
    if isinstance(value, RecordType | RecordValueType):
        raise Refusal(
            f"storing a message into {label}",
            "store its fields, or declare a table of that message: last: table[Message, 1]",
        )
    if type_name == "chars":
        if not isinstance(value, CharsType):
            raise Refusal(f"storing {describe(value)} into {label}, which is text", "use b'...'")
        return lambda emit, p, v: emit.store_raw(
            emit.fit_text(v, value.width, size, label), p, offset
        )
    if count is not None:
        return _array_writer(type_name, offset, count, label, value)
    _check_store(type_name, label, value)

    def store(emit: Emit, pointer: Any, given: Any) -> None:
        checked = emit.check_number(given, value, type_name, label)
        emit.store_number(checked, pointer, offset, type_name)

    return store


def _check_store(type_name: str, label: str, value: Any) -> None:
    """Refuse what cannot be stored already when types are inferred."""
    found = kind_of(value)
    if found not in ("int", "float", "bool"):
        raise Refusal(
            f"storing {describe(value)} into {label}, which is {type_name}", "use a number"
        )
    if found == "float" and NUMBERS[type_name].minimum is not None:
        raise Refusal(
            f"storing a float into {label}, which is {type_name}", "write int(...) around it"
        )


def _elements(value: Any) -> list[Any] | None:
    """Return the types of the elements of an array or a tuple."""
    if isinstance(value, CellsType):
        return [number_type(value.number)] * value.count
    if isinstance(value, types.BaseTuple):
        return [types.unliteral(each) for each in value.types]
    return None


def _array_writer(type_name: str, offset: int, count: int, label: str, value: Any) -> Any:
    found = _elements(value)
    if found is None:
        raise Refusal(f"storing {describe(value)} into {label}, an array", "assign its items")
    if len(found) != count:
        raise Refusal(f"storing {len(found)} values into {label}", f"its length is fixed: {count}")
    _check_store(type_name, label, found[0])
    size = NUMBERS[type_name].size_bytes

    def checked(emit: Emit, given: Any, index: Any) -> Any:
        item = _load_item(emit, value, given, index)
        return emit.check_number(item, found[0], type_name, label)

    # As uncompiled: nothing is stored if one of them does not fit.
    def store_cells(emit: Emit, pointer: Any, given: Any) -> None:
        with cgutils.for_range(emit.builder, I64(count)) as loop:
            checked(emit, given, loop.index)
        with cgutils.for_range(emit.builder, I64(count)) as loop:
            place = emit.at(pointer, emit.builder.mul(loop.index, I64(size)))
            emit.store_number(checked(emit, given, loop.index), place, offset, type_name)

    def store_tuple(emit: Emit, pointer: Any, given: Any) -> None:
        items = [
            emit.check_number(emit.element(given, index, kind), kind, type_name, label)
            for index, kind in enumerate(found)
        ]
        for index, item in enumerate(items):
            emit.store_number(item, pointer, offset + index * size, type_name)

    return store_cells if isinstance(value, CellsType) else store_tuple


def _load_item(emit: Emit, kind: CellsType, pointer: Any, position: Any) -> Any:
    size = NUMBERS[kind.number].size_bytes
    place = emit.at(pointer, emit.builder.mul(position, I64(size)))
    return emit.load_number(place, 0, kind.number, kind.label)


# --- Items ---


def item(index: int | None) -> Any:
    """Return the primitive that reads an item: at a constant index, or at one that is given."""
    if index is None:

        @primitive
        def made(_handler: Any, owner: Any, index: Any, _site: Any) -> Any:
            _check_index(owner, index)
            kind, load = _item_reader(owner)
            number = kind_of(index)
            return kind, lambda emit, values: load(emit, values[1], emit.as_i64(values[2], number))

        return made

    @primitive
    def at_constant(_handler: Any, owner: Any, _site: Any) -> Any:
        if isinstance(owner, types.BaseTuple):
            return _tuple_item(owner, index)
        kind, load = _item_reader(owner)
        return kind, lambda emit, values: load(emit, values[1], I64(index))

    return at_constant


def _tuple_item(owner: Any, index: int) -> Any:
    count = len(owner.types)
    if not -count <= index < count:
        raise Refusal(f"item {index} of a tuple of {count}", "count from 0")
    position = index % count
    kind = types.unliteral(owner.types[position])
    return kind, lambda emit, values: emit.element(values[1], position, kind)


def _check_index(owner: Any, index: Any) -> None:
    if kind_of(index) not in ("int", "bool"):
        raise Refusal(f"{describe(index)} as an index of {describe(owner)}", "use an int")


def _item_reader(owner: Any) -> tuple[Any, Any]:
    if isinstance(owner, CellsType):

        def cell(emit: Emit, pointer: Any, index: Any) -> Any:
            return _load_item(emit, owner, pointer, emit.position(index, owner.count, owner.label))

        return number_type(owner.number), cell
    if isinstance(owner, TableType):

        def row(emit: Emit, pointer: Any, index: Any) -> Any:
            position = emit.position(index, owner.count, owner.label)
            return emit.at(pointer, emit.builder.mul(position, I64(owner.layout.size_bytes)))

        return RecordType(owner.layout, writable=True), row
    if isinstance(owner, CharsType):

        def byte(emit: Emit, value: Any, index: Any) -> Any:
            return _text_byte(emit, value, owner.width, index)

        return types.int64, byte
    if isinstance(owner, types.BaseTuple):
        kinds = {types.unliteral(each) for each in owner.types}
        if len(kinds) != 1:
            raise Refusal("a tuple of several types at a variable index", "use a constant index")
        (kind,) = kinds
        count = len(owner.types)

        def element(emit: Emit, value: Any, index: Any) -> Any:
            position = emit.position(index, count, "a tuple")
            slot = cgutils.alloca_once_value(emit.builder, value)
            place = emit.builder.gep(slot, [I32(0), position], inbounds=True)
            return emit.builder.load(place)

        if kind is types.boolean or not isinstance(owner, types.UniTuple):
            raise Refusal("a tuple like this at a variable index", "use an array field")
        return kind, element
    if isinstance(owner, BytesType):
        raise Refusal("an item of bytes, which are read by number", "write data.u8(i)")
    raise Refusal(
        f"an item of {describe(owner)}", "only arrays, tables, text and tuples have items"
    )


def _text_byte(emit: Emit, value: Any, width: int, index: Any) -> Any:
    builder = emit.builder
    length = text_length(builder, value, width)
    negative = builder.icmp_signed("<", index, I64(0))
    moved = builder.select(negative, builder.add(index, length), index)
    bad = builder.icmp_unsigned(">=", moved, length)
    emit.fail_if(bad, "IndexError", "index out of range: text, index={value}", index)
    wide = builder.zext(value, ir.IntType(max(64, 8 * width))) if width < 8 else value
    shift = builder.shl(moved, I64(3))
    if wide.type.width > 64:
        shift = builder.zext(shift, wide.type)
    return builder.and_(
        builder.trunc(builder.lshr(wide, shift), I64)
        if wide.type.width > 64
        else builder.lshr(wide, shift),
        I64(0xFF),
    )


@primitive
def _set_item(_handler: Any, owner: Any, index: Any, value: Any, _site: Any) -> Any:
    _check_index(owner, index)
    store = _item_writer(owner, value)
    number = kind_of(index)

    def write(emit: Emit, values: Sequence[Any]) -> None:
        store(emit, values[1], emit.as_i64(values[2], number), values[3])

    return types.void, write


def _item_writer(owner: Any, value: Any) -> Any:
    if isinstance(owner, CellsType):
        if not owner.writable:
            raise Refusal(f"assignment to an item of {owner.label}", "messages cannot be changed")
        _check_store(owner.number, owner.label, value)
        size = NUMBERS[owner.number].size_bytes

        def cell(emit: Emit, pointer: Any, index: Any, given: Any) -> None:
            position = emit.position(index, owner.count, owner.label)
            checked = emit.check_number(given, value, owner.number, owner.label)
            place = emit.at(pointer, emit.builder.mul(position, I64(size)))
            emit.store_number(checked, place, 0, owner.number)

        return cell
    if isinstance(owner, TableType):
        if not isinstance(value, RecordType | RecordValueType) or value.layout != owner.layout:
            raise Refusal(
                f"storing {describe(value)} into {owner.label}",
                f"store a message {owner.layout.name!r}",
            )
        size = owner.layout.size_bytes

        def row(emit: Emit, pointer: Any, index: Any, given: Any) -> None:
            position = emit.position(index, owner.count, owner.label)
            place = emit.at(pointer, emit.builder.mul(position, I64(size)))
            if isinstance(value, RecordValueType):
                _store_message(emit, value, given, place)
            else:
                _move(emit, place, given, size)

        return row
    raise Refusal(
        f"assignment to an item of {describe(owner)}", "only arrays and tables have those"
    )


def _move(emit: Emit, target: Any, source: Any, size: int) -> None:
    function = emit.builder.module.declare_intrinsic("llvm.memmove", [POINTER, POINTER, I64])
    emit.builder.call(function, [target, source, I64(size), ir.Constant(ir.IntType(1), 0)])


# --- Messages ---


def build(cls: type[MessageBase]) -> Any:
    """Return the primitive that builds a message from a tuple of its fields, in their order."""
    layout = layout_of(cls)

    @primitive
    def made(_handler: Any, fields: Any, _site: Any) -> Any:
        kind = RecordValueType(layout)
        given = [types.unliteral(each) for each in fields.types] if layout.fields else []
        makers = [
            _field_maker(layout, field, found)
            for field, found in zip(layout.fields, given, strict=True)
        ]

        def write(emit: Emit, values: Sequence[Any]) -> Any:
            proxy = cgutils.create_struct_proxy(kind)(emit.context, emit.builder)
            for number, make in enumerate(makers):
                part = emit.element(values[1], number, given[number])
                setattr(proxy, f"f{number}", make(emit, part))
            return proxy._getvalue()

        return kind, write

    return made


def _field_maker(layout: Layout, field: _LayoutField, found: Any) -> Any:
    """Return what checks one value and gives it as the built message holds it."""
    name, type_name, _, count, size = field
    label = f"field {name!r} of message {layout.name!r}"
    if type_name == "chars":
        if not isinstance(found, CharsType):
            raise Refusal(f"{describe(found)} for {label}, which is text", "write b'...'")
        return lambda emit, value: emit.fit_text(value, found.width, size, label)
    if count is None:
        _check_store(type_name, label, found)
        return lambda emit, value: emit.check_number(value, found, type_name, label)
    elements = _elements(found)
    if elements is None or len(elements) != count:
        raise Refusal(f"{describe(found)} for {label}", f"pass {count} numbers, (a, b, ...)")
    if count > BUILT_ITEMS_MAX:
        raise Refusal(
            f"building {layout.name!r} with an array of {count} numbers",
            f"declare a table[{layout.name}, 1] field, fill its row, and publish that",
        )
    _check_store(type_name, label, elements[0])
    target = value_type(field)

    def make(emit: Emit, value: Any) -> Any:
        items = []
        for index, kind in enumerate(elements):
            if isinstance(found, CellsType):
                item = _load_item(emit, found, value, I64(index))
            else:
                item = emit.element(value, index, kind)
            items.append(emit.check_number(item, kind, type_name, label))
        return emit.context.make_tuple(emit.builder, target, items)

    return make


def _store_message(emit: Emit, kind: RecordValueType, value: Any, pointer: Any) -> None:
    """Store a message that was built; its padding is zero."""
    size = kind.layout.size_bytes
    cgutils.memset(emit.builder, pointer, I64(size), 0)
    for number, (_, type_name, offset, count, _size) in enumerate(kind.layout.fields):
        part = _part(emit, kind, value, number)
        if type_name == "chars":
            emit.store_raw(part, pointer, offset)
        elif count is None:
            emit.store_number(part, pointer, offset, type_name)
        else:
            step = NUMBERS[type_name].size_bytes
            one = number_type(type_name)
            for index in range(count):
                element = emit.element(part, index, one)
                emit.store_number(element, pointer, offset + index * step, type_name)


@primitive
def _publish(_handler: Any, output: Any, message: Any, _site: Any) -> Any:
    check_output(output, "publish")
    if not isinstance(message, RecordType | RecordValueType):
        raise Refusal(
            f"publishing {describe(message)}", "publish a message: self.out.publish(Order(...))"
        )
    layout = message.layout

    def write(emit: Emit, values: Sequence[Any]) -> Any:
        pointer = values[2]
        if isinstance(message, RecordValueType):
            pointer = emit.room(layout.size_bytes)
            _store_message(emit, message, values[2], pointer)
        type_id, size = I32(layout.type_id), I32(layout.size_bytes)
        return append(emit, values[1], type_id, pointer, size, f"message {layout.name!r}")

    return types.int64, write


# --- Counters, log, clock ---


def _counter_place(emit: Emit, number: Any) -> Any:
    return emit.at(emit.counters(), emit.builder.shl(number, I64(3)))


@primitive
def _count(_handler: Any, _counter: Any, amount: Any, _site: Any) -> Any:
    found = kind_of(amount)
    if found not in ("int", "bool"):
        raise Refusal(f"adding {describe(amount)} to a counter", "add an int")

    def write(emit: Emit, values: Sequence[Any]) -> None:
        added = emit.as_i64(values[2], found)
        bad = emit.builder.icmp_signed("<", added, I64(0))
        emit.fail_if(bad, "ValueError", "a counter only grows: value={value}", added)
        place = _counter_place(emit, values[1])
        old = emit.load_raw(place, 0, I64, align=8)
        emit.store_raw(emit.builder.add(old, added), place, 0, align=8)

    return types.void, write


@primitive
def _counted(_handler: Any, _counter: Any) -> Any:
    def write(emit: Emit, values: Sequence[Any]) -> Any:
        return emit.load_raw(_counter_place(emit, values[1]), 0, I64, align=8)

    return types.int64, write


def _log_tag(kind: Any) -> int:
    tags = {"int": TAG_I64, "float": TAG_F64, "bool": TAG_BOOL, "chars": TAG_TEXT}
    found = kind_of(kind)
    if not found:
        raise Refusal(f"{describe(kind)} in a log call", "log numbers, bools and short text")
    if isinstance(kind, CharsType) and kind.width > TEXT_BYTES_MAX:
        raise Refusal(
            f"text of {kind.width} bytes in a log call",
            f"a log record holds text of up to {TEXT_BYTES_MAX} bytes; log a number instead",
        )
    return tags[found]


def _log_word(emit: Emit, value: Any, kind: Any) -> Any:
    found = kind_of(kind)
    if found == "float":
        return emit.builder.bitcast(value, I64)
    if found == "chars":
        return emit.widen(value, 8)
    return emit.as_i64(value, found)


@primitive
def _log(_handler: Any, _number: Any, arguments: Any) -> Any:
    kinds: list[Any] = []
    if isinstance(arguments, types.BaseTuple):
        kinds = [types.unliteral(each) for each in arguments.types]
    tags = sum(_log_tag(kind) << (4 * n) for n, kind in enumerate(kinds))

    def write(emit: Emit, values: Sequence[Any]) -> None:
        words = emit.room(8 * ARGUMENTS_MAX)
        for index, kind in enumerate(kinds):
            value = emit.element(values[2], index, kind)
            emit.store_raw(_log_word(emit, value, kind), words, 8 * index, align=8)
        function = emit.declare(LOG, ir.VoidType(), [POINTER, I32, I32, I64, POINTER])
        site = emit.builder.trunc(values[1], I32)
        emit.builder.call(function, [values[0], site, I32(len(kinds)), I64(tags), words])

    return types.void, write


@primitive
def _now_ns(_handler: Any) -> Any:
    return types.int64, lambda emit, values: emit.load_raw(values[0], CONTEXT_NOW_NS, I64, align=8)


@primitive
def _stop(_handler: Any) -> Any:
    def write(emit: Emit, values: Sequence[Any]) -> None:
        flags = emit.load_raw(values[0], CONTEXT_FLAGS, I32, align=4)
        flags = emit.builder.or_(flags, I32(FLAG_STOP))
        emit.store_raw(flags, values[0], CONTEXT_FLAGS, align=4)

    return types.void, write


def fail(number: int) -> Any:
    """Return the primitive that notes a failure; a `raise` after it leaves the function."""

    @primitive
    def made(_handler: Any, _site: Any) -> Any:
        def write(emit: Emit, _values: Sequence[Any]) -> None:
            emit.note_failure(Session.current.failures[number])

        return types.void, write

    return made


def text(value: bytes) -> Any:
    """Return the primitive that is a text constant."""
    width = max(1, len(value))
    number = int.from_bytes(value, "little")

    @primitive
    def made() -> Any:
        return CharsType(width), lambda _emit, _values: ir.IntType(8 * width)(number)

    return made


RECORDS: Final[dict[str, Any]] = {
    "set_item": _set_item,
    "publish": _publish,
    "count": _count,
    "counted": _counted,
    "log": _log,
    "now_ns": _now_ns,
    "stop": _stop,
}
"""The primitives of this module by their names."""
