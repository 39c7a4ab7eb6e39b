"""Messages as text: by the schema that is stored with their queue, or as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from chronicle.errors import ChronicleError
from chronicle.message import MessageBase
from chronicle.top.queues import last_records

__all__ = ["Line", "fields_text", "last_lines", "printable", "raw_text", "value_text"]

RAW_BYTES_SHOWN: Final = 64

Line = tuple[int, int, str, str]
"""Sequence number, time in ns, type and fields of a message."""


def last_lines(path: Path, count: int) -> list[Line]:
    """Return the last messages of a queue as text, oldest first. Maps nothing.

    Raises
    ------
    OSError, ChronicleError
        If the queue cannot be read.
    """
    try:
        from chronicle.schema import read_schema

        types: Mapping[int, type[MessageBase]] = read_schema(path)
    except (OSError, ChronicleError):
        # Then they are bytes.
        types = {}
    lines = []
    for record in last_records(path, count):
        cls = types.get(record.type_id)
        if cls is None or len(record.payload) < cls.size_bytes:
            name, body = f"type {record.type_id}", raw_text(record.payload, record.payload_bytes)
        else:
            name, body = cls.__name__, fields_text(cls, record.payload)
        lines.append((record.seq, record.timestamp_ns, name, body))
    return lines


def fields_text(cls: type[MessageBase], payload: Any) -> str:
    """Return the fields of a message."""
    fields = cls.view(payload).as_dict(scaled=True)
    return "  ".join(f"{key}={value_text(value)}" for key, value in fields.items())


def value_text(value: Any) -> str:
    r"""Return the value of a field; what could steer a terminal is escaped.

    >>> value_text(b"AAPL"), value_text(Decimal("19.90")), value_text((1, 2)), value_text(b"\x1b")
    ('AAPL', '19.90', '[1 2]', '\\x1b')
    """
    if isinstance(value, bytes):
        return printable(value.decode("ascii", "backslashreplace"))
    if isinstance(value, tuple):
        return "[" + " ".join(value_text(item) for item in value) + "]"
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def printable(text: str) -> str:
    r"""Return text from elsewhere so that it cannot steer a terminal.

    >>> printable("größer"), printable("\x1b[2J")
    ('größer', '\\x1b[2J')
    """
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def raw_text(payload: bytes, payload_bytes: int | None = None) -> str:
    """Return bytes as hexadecimal digits and as characters.

    >>> raw_text(b"hello")
    '68 65 6c 6c 6f  |hello|'
    """
    length = len(payload) if payload_bytes is None else payload_bytes
    shown = payload[:RAW_BYTES_SHOWN]
    more = f" ... {length:,} bytes" if length > len(shown) else ""
    printable = "".join(chr(b) if 0x20 <= b < 0x7F else "." for b in shown)
    return f"{shown.hex(' ')}  |{printable}|{more}" if length else "(empty)"
