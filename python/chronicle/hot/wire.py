"""`WireTable`: the messages of a feed as they stand on the wire, for handlers.

A table says where each field of each wire message stands, and which message class takes them.
``TABLE.publish(self.out, data, at, length)`` publishes one wire message as the typed one: compiled
it is one switch on the type byte, one check of the length and one copy of each field. A message of
unknown type, or shorter than its layout, is published as it is, under the raw type id.

The tables of the feeds are made from those of their NumPy decoders: `chronicle.feeds.hot`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from chronicle.hot.buffers import TEXT_BYTES_MAX, Bytes
from chronicle.hot.outputs import Output
from chronicle.message import NUMBERS, MessageBase
from chronicle.values import Value

__all__ = ["Wire", "WireField", "WireTable"]

_FORMS: Final = {"u1": 1, "i1": 1, "u2": 2, "i2": 2, "u4": 4, "i4": 4, "u6": 6, "u8": 8, "i8": 8}


class WireField(Value):
    """One field: from where on the wire to where in the record.

    Attributes
    ----------
    offset, form
        On the wire: a NumPy format without byte order (``u4``, ``S8``), or ``u6`` for an unsigned
        number of 48 bits. Text of more than one byte loses the spaces at its end.
    target, size_bytes
        In the record.
    """

    __slots__ = ("offset", "form", "target", "size_bytes")  # noqa: RUF023
    offset: int
    form: str
    target: int
    size_bytes: int

    def __init__(self, offset: int, form: str, target: int, size_bytes: int) -> None:
        self._set(offset, form, target, size_bytes)

    @property
    def is_text(self) -> bool:
        """Whether it is text."""
        return self.form.startswith("S")

    @property
    def wire_bytes(self) -> int:
        """Bytes on the wire."""
        return int(self.form[1:]) if self.is_text else _FORMS[self.form]


class Wire(Value):
    """One message on the wire.

    Parameters
    ----------
    message
        The message class.
    code
        The type byte.
    size_bytes
        Bytes on the wire, with the type byte.
    is_big_endian
        Byte order of its numbers.
    fields
        Offset and form of each field of the class, by name.
    """

    __slots__ = ("message", "layout", "code", "size_bytes", "is_big_endian", "fields")  # noqa: RUF023
    message: type[MessageBase]
    layout: tuple[str, int, int]
    code: int
    size_bytes: int
    is_big_endian: bool
    fields: tuple[WireField, ...]

    def __init__(
        self,
        message: type[MessageBase],
        code: int,
        size_bytes: int,
        *,
        is_big_endian: bool,
        fields: dict[str, tuple[int, str]],
    ) -> None:
        if set(fields) != {field.name for field in message.FIELDS}:
            raise TypeError(f"wire layout of {message.__name__!r} does not cover its fields")
        found: list[WireField] = []
        for field in message.FIELDS:
            offset, form = fields[field.name]
            made = WireField(offset, form, field.offset, field.size_bytes)
            _check(message.__name__, field.name, field.type, made, size_bytes)
            found.append(made)
        layout = message.__name__, message.type_id, message.size_bytes
        self._set(message, layout, code, size_bytes, is_big_endian, tuple(found))

    def record(self, data: memoryview) -> bytes:
        """Return the bytes of the typed message."""
        record = bytearray(self.message.size_bytes)
        for field in self.fields:
            found = bytes(data[field.offset : field.offset + field.wire_bytes])
            if field.is_text:
                found = found.rstrip(b" ") if field.wire_bytes > 1 else found
            elif self.is_big_endian:
                found = found[::-1]
            record[field.target : field.target + len(found)] = found
        return bytes(record)


def _check(message: str, name: str, type_name: str, field: WireField, size_bytes: int) -> None:
    what = f"wire layout of field {name!r} of {message!r}"
    if field.is_text:
        fits = type_name == "chars" and field.size_bytes == field.wire_bytes <= TEXT_BYTES_MAX
    elif field.form not in _FORMS:
        raise TypeError(f"{what} has an unknown form: form={field.form!r}")
    else:
        number = NUMBERS.get(type_name)
        wanted = "u8" if field.form == "u6" else field.form
        # Six bytes have a first half and a second one, so the order matters.
        fits = (
            number is not None
            and type_name[0] == wanted[0]
            and number.size_bytes == int(wanted[1:]) == field.size_bytes
        )
    if not fits or field.offset < 1 or field.offset + field.wire_bytes > size_bytes:
        raise TypeError(f"{what} does not fit: offset={field.offset} form={field.form!r}")


class WireTable(Value):
    """All messages of one feed, by type byte.

    Parameters
    ----------
    raw_type_id
        Of messages that are published as they are.
    wires
        The messages.

    Raises
    ------
    ValueError
        If there are none, two have the same type byte, or a number is out of range.
    """

    __slots__ = ("raw_type_id", "wires")
    raw_type_id: int
    wires: tuple[Wire, ...]

    def __init__(self, raw_type_id: int, wires: Iterable[Wire]) -> None:
        found = tuple(sorted(wires, key=lambda wire: wire.code))
        codes = [wire.code for wire in found]
        if not found or len(set(codes)) < len(codes) or not 0 <= codes[0] <= codes[-1] <= 0xFF:
            raise ValueError(f"a wire table has type bytes 0 to 255, each once: codes={codes}")
        if not 1 <= raw_type_id <= 0xFFFF:
            raise ValueError(f"raw_type_id is out of range: value={raw_type_id} range=1..65535")
        self._set(raw_type_id, found)

    @property
    def digest(self) -> str:
        """A name for exactly this table."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def publish(self, output: Output, data: Bytes, at: int, length: int) -> int:
        """Publish the wire message of `length` bytes at `at`; return its sequence number.

        In a handler ``TABLE`` is a constant of the module.

        Raises
        ------
        IndexError
            If the message is not inside of `data`. Compiled, the handler fails.
        """
        raw = data.part(at, length)
        memory = raw._memory
        code = memory[0] if len(memory) else -1
        for wire in self.wires:
            if wire.code == code and len(memory) >= wire.size_bytes:
                return output.publish(wire.message.view(wire.record(memory)))
        return output.publish_bytes(self.raw_type_id, raw)
