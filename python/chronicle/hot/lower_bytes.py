"""Primitives on bytes of any length, buffers of the state, and outputs as values.

A place is checked by two comparisons: not negative, and not beyond the end, which is compared as
unsigned numbers, where a place and the size of what is read cannot overflow. With a constant place
the compiler is left with one comparison, or none behind a check of the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types

from chronicle.hot.buffers import BAD_LENGTH, BAD_PLACE, BAD_U64, READS, TEXT_BYTES_MAX
from chronicle.hot.lower_target import primitive
from chronicle.hot.lower_types import (
    F64,
    I32,
    I64,
    POINTER,
    BufferType,
    BytesType,
    CharsType,
    Emit,
    OutputType,
    Refusal,
    describe,
    ir_number,
    kind_of,
    number_type,
)
from chronicle.hot.outputs import BAD_SLOT, BAD_TYPE_ID
from chronicle.message import NUMBERS

__all__ = [
    "BYTES",
    "append",
    "bytes_parts",
    "check_output",
    "make_bytes",
    "output",
    "read",
    "slot",
    "span",
    "strip_spaces",
    "text_of",
]

APPEND: Final = "chr_hot_append"


def bytes_parts(emit: Emit, value: Any) -> tuple[Any, Any]:
    """Return the pointer and the length of bytes."""
    proxy = cgutils.create_struct_proxy(BytesType())(emit.context, emit.builder, value=value)
    return proxy.pointer, proxy.length


def make_bytes(emit: Emit, pointer: Any, length: Any) -> Any:
    """Return bytes."""
    proxy = cgutils.create_struct_proxy(BytesType())(emit.context, emit.builder)
    proxy.pointer = pointer
    proxy.length = length
    return proxy._getvalue()


def _int(value: Any, what: str) -> str:
    found = kind_of(value)
    if found not in ("int", "bool"):
        raise Refusal(f"{describe(value)} as {what}", "use an int")
    return found


def _owner(owner: Any, kind: type, method: str) -> None:
    if not isinstance(owner, kind):
        what = "bytes" if kind is BytesType else "a buffer of the state"
        raise Refusal(f".{method}() of {describe(owner)}", f"only {what} can do that")


def check_place(emit: Emit, what: str, at: Any, size: int, limit: Any) -> None:
    """Fail unless `size` bytes from `at` on are below `limit`."""
    builder = emit.builder
    end = builder.add(at, I64(size))
    bad = builder.or_(builder.icmp_signed("<", at, I64(0)), builder.icmp_unsigned(">", end, limit))
    emit.fail_if(bad, "IndexError", BAD_PLACE.replace("{what}", what), at)


def span(emit: Emit, what: str, at: Any, length: Any, limit: Any) -> None:
    """Fail unless `length` bytes from `at` on are below `limit`."""
    check_place(emit, what, at, 0, limit)
    builder = emit.builder
    # The rest is no negative number, so a negative length is beyond it as well.
    bad = builder.icmp_unsigned(">", length, builder.sub(limit, at))
    emit.fail_if(bad, "IndexError", BAD_LENGTH.replace("{what}", what), length)


# --- Reading ---


def read(name: str) -> Any:
    """Return the primitive that reads a number, such as ``u16_be``."""
    number, is_big = READS[name]
    size = NUMBERS[number].size_bytes

    @primitive
    def made(_handler: Any, owner: Any, at: Any, _site: Any) -> Any:
        _owner(owner, BytesType, name)
        found = _int(at, "a place in bytes")

        def write(emit: Emit, values: Sequence[Any]) -> Any:
            pointer, length = bytes_parts(emit, values[1])
            place = emit.as_i64(values[2], found)
            check_place(emit, f"{name} of bytes", place, size, length)
            return _load(emit, pointer, place, number, is_big)

        return number_type(number), write

    return made


def _load(emit: Emit, pointer: Any, place: Any, number: str, is_big: bool) -> Any:
    builder = emit.builder
    wide = ir.IntType(8 * NUMBERS[number].size_bytes)
    raw = emit.load_raw(pointer, place, wide)
    if is_big:
        raw = builder.bswap(raw)
    if number[0] == "f":
        value = builder.bitcast(raw, ir_number(number))
        return builder.fpext(value, F64) if number == "f32" else value
    if number == "u64":
        text = BAD_U64.replace("{value}", "{value} + 2**64")
        emit.fail_if(builder.icmp_signed("<", raw, I64(0)), "ValueError", text, raw)
    if wide == I64:
        return raw
    return builder.sext(raw, I64) if number[0] == "i" else builder.zext(raw, I64)


def text_of(length: int, *, is_padded: bool) -> Any:
    """Return the primitive that reads text of a constant length."""
    wide = ir.IntType(8 * length)
    method = "padded" if is_padded else "chars"

    @primitive
    def made(_handler: Any, owner: Any, at: Any, _site: Any) -> Any:
        _owner(owner, BytesType, method)
        found = _int(at, "a place in bytes")

        def write(emit: Emit, values: Sequence[Any]) -> Any:
            pointer, limit = bytes_parts(emit, values[1])
            place = emit.as_i64(values[2], found)
            check_place(emit, "text of bytes", place, length, limit)
            raw = emit.load_raw(pointer, place, wide)
            return strip_spaces(emit.builder, raw, length) if is_padded else raw

        return CharsType(length), write

    return made


def strip_spaces(builder: Any, raw: Any, length: int) -> Any:
    """Return text without the spaces at its end.

    The difference to all spaces is smeared downwards, so that every byte at or below the last one
    that is no space becomes nonzero; what stays zero is the padding.
    """
    assert 1 <= length <= TEXT_BYTES_MAX  # Seen to by the front end.
    value = raw if length == 8 else builder.zext(raw, I64)
    seen = builder.xor(value, I64(int.from_bytes(b" " * length, "little")))
    for shift in (32, 16, 8, 4, 2, 1):
        seen = builder.or_(seen, builder.lshr(seen, I64(shift)))
    # The lowest bit of each byte is set now if one at or above it is; spread it over the byte.
    ones = builder.and_(seen, I64(0x0101_0101_0101_0101))
    kept = builder.and_(value, builder.mul(ones, I64(0xFF)))
    return kept if length == 8 else builder.trunc(kept, ir.IntType(8 * length))


@primitive
def _part(_handler: Any, owner: Any, at: Any, length: Any, _site: Any) -> Any:
    _owner(owner, BytesType, "part")
    kinds = _int(at, "a place in bytes"), _int(length, "a length")

    def write(emit: Emit, values: Sequence[Any]) -> Any:
        pointer, limit = bytes_parts(emit, values[1])
        place, count = emit.as_i64(values[2], kinds[0]), emit.as_i64(values[3], kinds[1])
        span(emit, "part of bytes", place, count, limit)
        return make_bytes(emit, emit.at(pointer, place), count)

    return BytesType(), write


# --- Buffers ---


def _copy(emit: Emit, target: Any, source: Any, length: Any) -> None:
    function = emit.builder.module.declare_intrinsic("llvm.memmove", [POINTER, POINTER, I64])
    emit.builder.call(function, [target, source, length, ir.Constant(ir.IntType(1), 0)])


@primitive
def _store(_handler: Any, owner: Any, at: Any, data: Any, _site: Any) -> Any:
    _owner(owner, BufferType, "store")
    found = _int(at, "a place in a buffer")
    if not isinstance(data, BytesType):
        raise Refusal(f"storing {describe(data)} into {owner.label}", "store bytes")

    def write(emit: Emit, values: Sequence[Any]) -> None:
        source, count = bytes_parts(emit, values[3])
        place = emit.as_i64(values[2], found)
        span(emit, owner.label, place, count, I64(owner.size))
        _copy(emit, emit.at(values[1], place), source, count)

    return types.void, write


@primitive
def _view(_handler: Any, owner: Any, at: Any, length: Any, _site: Any) -> Any:
    _owner(owner, BufferType, "view")
    kinds = _int(at, "a place in a buffer"), _int(length, "a length")

    def write(emit: Emit, values: Sequence[Any]) -> Any:
        place, count = emit.as_i64(values[2], kinds[0]), emit.as_i64(values[3], kinds[1])
        span(emit, owner.label, place, count, I64(owner.size))
        return make_bytes(emit, emit.at(values[1], place), count)

    return BytesType(), write


@primitive
def _move(_handler: Any, owner: Any, to: Any, at: Any, length: Any, _site: Any) -> Any:
    _owner(owner, BufferType, "move")
    kinds = [_int(each, "a place in a buffer") for each in (to, at, length)]

    def write(emit: Emit, values: Sequence[Any]) -> None:
        target, place, count = (
            emit.as_i64(value, kind) for value, kind in zip(values[2:5], kinds, strict=True)
        )
        limit = I64(owner.size)
        span(emit, owner.label, place, count, limit)
        span(emit, owner.label, target, count, limit)
        _copy(emit, emit.at(values[1], target), emit.at(values[1], place), count)

    return types.void, write


# --- Outputs ---


def output(number: int) -> Any:
    """Return the primitive that is an output."""

    @primitive
    def made() -> Any:
        return OutputType(), lambda _emit, _values: I64(number)

    return made


def slot(first: int, count: int, label: str) -> Any:
    """Return the primitive that is one of a table of outputs."""

    @primitive
    def made(_handler: Any, index: Any, _site: Any) -> Any:
        found = _int(index, f"a slot of {label}")

        def write(emit: Emit, values: Sequence[Any]) -> Any:
            position = emit.as_i64(values[1], found)
            bad = emit.builder.icmp_unsigned(">=", position, I64(count))
            text = BAD_SLOT.replace("{label}", label).replace("{count}", str(count))
            emit.fail_if(bad, "IndexError", text, position)
            return emit.builder.add(position, I64(first))

        return OutputType(), write

    return made


def check_output(value: Any, method: str) -> None:
    """Refuse what is no output."""
    if not isinstance(value, OutputType):
        raise Refusal(
            f".{method}() of {describe(value)}",
            "only outputs publish: self.out.publish(m)",
        )


def append(emit: Emit, out: Any, type_id: Any, pointer: Any, length: Any, what: str) -> Any:
    """Write the call that appends to an output; `type_id` and `length` have 32 bits."""
    handler, number = emit.handler, emit.builder.trunc(out, I32)
    function = emit.declare(APPEND, I64, [POINTER, I32, I32, POINTER, I32])
    sequence = emit.builder.call(function, [handler, number, type_id, pointer, length])
    bad = emit.builder.icmp_signed("<", sequence, I64(0))
    emit.fail_if(bad, "HandlerFailed", f"{what} could not be published: code={{value}}", sequence)
    return sequence


@primitive
def _publish_bytes(_handler: Any, out: Any, type_id: Any, data: Any, _site: Any) -> Any:
    check_output(out, "publish_bytes")
    found = _int(type_id, "a type id")
    if not isinstance(data, BytesType):
        raise Refusal(f"publishing {describe(data)} as bytes", "use publish for messages")

    def write(emit: Emit, values: Sequence[Any]) -> Any:
        builder = emit.builder
        number = emit.as_i64(values[2], found)
        bad = builder.icmp_unsigned(">", builder.sub(number, I64(1)), I64(0xFFFF - 1))
        emit.fail_if(bad, "ValueError", BAD_TYPE_ID, number)
        pointer, count = bytes_parts(emit, values[3])
        # Views are never longer than 32 bits: messages have such a length, and buffers less.
        length, type_word = builder.trunc(count, I32), builder.trunc(number, I32)
        return append(emit, values[1], type_word, pointer, length, "a message of bytes")

    return types.int64, write


BYTES: Final[dict[str, Any]] = {
    "bytes_part": _part,
    "buffer_store": _store,
    "buffer_view": _view,
    "buffer_move": _move,
    "publish_bytes": _publish_bytes,
}
"""The primitives of this module by their names."""
