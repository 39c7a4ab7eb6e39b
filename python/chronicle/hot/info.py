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
        Of the message; of a datagram the same as `line`.
    tag
        The number that the application gave the source when it was added; 0 without one.

    Examples
    --------
    >>> Info(seq=7, tag=3).tag
    3
    >>> Info(seq=7, line=1).line
    1
    """

    __slots__ = ("seq", "timestamp_ns", "source", "type_id", "tag")  # noqa: RUF023
    seq: int
    timestamp_ns: int
    source: int
    type_id: int
    tag: int

    def __init__(
        self,
        seq: int = 0,
        timestamp_ns: int = 0,
        source: int = SOURCE_NONE,
        type_id: int = 0,
        tag: int = 0,
        *,
        line: int | None = None,
    ) -> None:
        if line is not None:
            if type_id not in (0, line):
                raise ValueError(f"Info has a type_id or a line: type_id={type_id} line={line}")
            type_id = line
        for name, value, limit in (
            ("seq", seq, I64_MAX),
            ("timestamp_ns", timestamp_ns, I64_MAX),
            ("source", source, SOURCE_NONE),
            ("type_id", type_id, 0xFFFF),
            ("tag", tag, 0xFFFF_FFFF),
        ):
            if not 0 <= value <= limit:
                raise ValueError(f"{name} of Info is out of range: value={value} range=0..{limit}")
        self._set(seq, timestamp_ns, source, type_id, tag)

    @property
    def line(self) -> int:
        """Of a datagram: which of the ring's lines it came on. It is where a type id stands."""
        return self.type_id
