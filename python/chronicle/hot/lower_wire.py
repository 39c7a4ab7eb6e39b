"""The primitive that publishes one message of the wire as a typed one, for a `WireTable`.

One switch on the type byte; each case copies its fields into one place on the stack, and all of
them meet at one call that appends. Since every length is checked before, no field is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from chronicle.hot.lower_bytes import append, bytes_parts, check_output, span, strip_spaces
from chronicle.hot.lower_target import primitive
from chronicle.hot.lower_types import (
    I8,
    I16,
    I32,
    I64,
    POINTER,
    BytesType,
    Emit,
    Refusal,
    describe,
    kind_of,
)
from chronicle.hot.wire import Wire, WireField, WireTable

__all__ = ["publish"]


def publish(table: WireTable) -> Any:
    """Return the primitive for a table."""

    @primitive
    def made(_handler: Any, out: Any, data: Any, at: Any, length: Any, _site: Any) -> Any:
        check_output(out, "publish")
        if not isinstance(data, BytesType):
            raise Refusal(f"{describe(data)} as a message of the wire", "pass bytes")
        for each in (at, length):
            if kind_of(each) != "int":
                raise Refusal(f"{describe(each)} as a place or a length", "use an int")
        return types.int64, lambda emit, values: _write(emit, table, values)

    return made


def _write(emit: Emit, table: WireTable, values: Sequence[Any]) -> Any:
    builder = emit.builder
    _, out, data, at, length, _ = values
    base, limit = bytes_parts(emit, data)
    span(emit, "part of bytes", at, length, limit)
    source = emit.at(base, at)
    room = emit.room(max(wire.message.size_bytes for wire in table.wires))
    start = builder.block
    chosen = builder.append_basic_block("wire.type")
    raw = builder.append_basic_block("wire.raw")
    done = builder.append_basic_block("wire.publish")
    builder.cbranch(builder.icmp_signed("==", length, I64(0)), raw, chosen)
    builder.position_at_end(chosen)
    switch = builder.switch(emit.load_raw(source, 0, I8), raw)
    found: list[tuple[Any, Any, Any, Any]] = []
    for wire in table.wires:
        long_enough = builder.append_basic_block(f"wire.{wire.message.__name__}")
        fields = builder.append_basic_block(f"wire.{wire.message.__name__}.fields")
        switch.add_case(I8(wire.code), long_enough)
        builder.position_at_end(long_enough)
        fits = builder.icmp_unsigned(">=", length, I64(wire.size_bytes))
        builder.cbranch(fits, fields, raw)
        builder.position_at_end(fields)
        _copy_fields(emit, wire, source, room)
        found.append((I32(wire.message.type_id), room, I32(wire.message.size_bytes), builder.block))
        builder.branch(done)
    builder.position_at_end(raw)
    found.append((I32(table.raw_type_id), source, builder.trunc(length, I32), raw))
    builder.branch(done)
    assert start.is_terminated  # The switch is reached through it.
    builder.position_at_end(done)
    joined = [builder.phi(kind) for kind in (I32, POINTER, I32)]
    for *parts, block in found:
        for phi, part in zip(joined, parts, strict=True):
            phi.add_incoming(part, block)
    type_id, pointer, size = joined
    return append(emit, out, type_id, pointer, size, "a message of the wire")


def _copy_fields(emit: Emit, wire: Wire, source: Any, target: Any) -> None:
    """Copy all fields; the padding of the record is zero."""
    if sum(field.size_bytes for field in wire.fields) < wire.message.size_bytes:
        cgutils.memset(emit.builder, target, I64(wire.message.size_bytes), 0)
    for field in wire.fields:
        value = _field(emit, wire, field, source)
        emit.store_raw(value, target, field.target)


def _field(emit: Emit, wire: Wire, field: WireField, source: Any) -> Any:
    builder = emit.builder
    if field.is_text:
        value = emit.load_raw(source, field.offset, ir.IntType(8 * field.wire_bytes))
        return value if field.wire_bytes == 1 else strip_spaces(builder, value, field.wire_bytes)
    if field.form == "u6":
        first = _swapped(emit, wire, emit.load_raw(source, field.offset, I16))
        second = _swapped(emit, wire, emit.load_raw(source, field.offset + 2, I32))
        high, low = builder.zext(first, I64), builder.zext(second, I64)
        return builder.or_(builder.shl(high, I64(32)), low)
    value = emit.load_raw(source, field.offset, ir.IntType(8 * field.wire_bytes))
    return _swapped(emit, wire, value)


def _swapped(emit: Emit, wire: Wire, value: Any) -> Any:
    if not wire.is_big_endian or value.type == I8:
        return value
    return emit.builder.bswap(value)
