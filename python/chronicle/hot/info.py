"""`Info`: what a handler may know of a message besides its fields."""

from __future__ import annotations

from typing import Final

from chronicle.values import Value

__all__ = ["I64_MAX", "I64_MIN", "SOURCE_NONE", "Info"]

I64_MIN: Final = -(1 << 63)
I64_MAX: Final = (1 << 63) - 1
"""Integers are 64-bit signed in the expressions of a compiled handler."""

SOURCE_NONE: Final = 0xFFFF_FFFF
"""`Info.source` of commands and events, which come from no source."""


class Info(Value):
    """The envelope of a message, as the optional last parameter of a handler's method.

    Attributes
    ----------
    seq
        Sequence number in its queue; 0 for commands and events.
    timestamp_ns
        Time of publication, since 1970 UTC.
    source
        Which source of the fan-in; `SOURCE_NONE` for commands and events.
    type_id
        Of the message.

    >>> Info(seq=7).seq
    7
    """

    __slots__ = ("seq", "timestamp_ns", "source", "type_id")  # noqa: RUF023
    seq: int
    timestamp_ns: int
    source: int
    type_id: int

    def __init__(
        self, seq: int = 0, timestamp_ns: int = 0, source: int = SOURCE_NONE, type_id: int = 0
    ) -> None:
        for name, value, limit in (
            ("seq", seq, I64_MAX),
            ("timestamp_ns", timestamp_ns, I64_MAX),
            ("source", source, SOURCE_NONE),
            ("type_id", type_id, 0xFFFF),
        ):
            if not 0 <= value <= limit:
                raise ValueError(f"{name} of Info is out of range: value={value} range=0..{limit}")
        self._set(seq, timestamp_ns, source, type_id)
