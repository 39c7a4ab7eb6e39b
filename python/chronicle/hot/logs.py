"""Log calls of handlers: the sites that a compiled handler has, and how a record becomes a line.

A record on the ring holds a site's number and up to five arguments of 8 bytes; format and level
stay here. The same functions format the log of a handler that is not compiled.
"""

from __future__ import annotations

import string
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

__all__ = [
    "ARGUMENTS_MAX",
    "LEVELS",
    "TAG_BOOL",
    "TAG_F64",
    "TAG_I64",
    "TAG_TEXT",
    "TAG_U64",
    "LogSite",
    "decode_arguments",
    "format_line",
    "placeholders_count",
]

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
"""Levels by the names of the methods, numbered as `logging` does."""

ARGUMENTS_MAX: Final = 5
"""Arguments that fit into a record."""

TEXT_BYTES_MAX: Final = 8

TAG_I64: Final = 1
TAG_U64: Final = 2
TAG_F64: Final = 3
TAG_TEXT: Final = 4
TAG_BOOL: Final = 5

_WORD: Final = struct.Struct("<Q")
_CODES: Final = {TAG_I64: "<q", TAG_U64: "<Q", TAG_F64: "<d"}


class LogSite(NamedTuple):
    """One log call in the source of a handler.

    Attributes
    ----------
    level
        10 debug, 20 info, 30 warning, 40 error.
    format
        A format string with ``{}`` for each argument.
    file, line
        Where the call stands.
    """

    level: int
    format: str
    file: str
    line: int


@lru_cache(maxsize=1024)
def placeholders_count(template: str) -> int:
    """Return how many arguments a format string takes.

    Raises
    ------
    ValueError
        If it has names, numbers, conversions or nested fields: only ``{}`` and ``{:spec}`` will do.

    >>> placeholders_count("filled {} @ {:.2f}")
    2
    """
    count = 0
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if name or conversion or "{" in (spec or ""):
            raise ValueError(
                f"format {template!r} may hold only {{}} and {{:spec}}, one for each argument"
            )
        count += 1
    return count


def decode_arguments(count: int, tags: int, words: Sequence[int]) -> tuple[Any, ...]:
    """Return the arguments of a record.

    Parameters
    ----------
    count
        How many there are.
    tags
        Four bits each, the first in the lowest.
    words
        The arguments' 8 bytes, as unsigned numbers.

    >>> decode_arguments(3, 0x431, [5, 0x3FF8000000000000, 0x4C504141])
    (5, 1.5, 'AAPL')
    """
    found: list[Any] = []
    for word in words[:count]:
        tag, tags = tags & 15, tags >> 4
        data = _WORD.pack(word)
        if tag == TAG_TEXT:
            found.append(_text(data))
        elif tag == TAG_BOOL:
            found.append(bool(word))
        else:
            found.append(struct.unpack(_CODES.get(tag, "<Q"), data)[0])
    return tuple(found)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("ascii", "backslashreplace")


def format_line(template: str, arguments: Sequence[Any]) -> str:
    """Return the line of a log call. Never raises: a log must not end what it reports on.

    >>> format_line("mean {:.1f} of {}", (2.25, b"AAPL"))
    'mean 2.2 of AAPL'
    """
    shown = [_text(item) if isinstance(item, bytes) else item for item in arguments]
    try:
        return template.format(*shown)
    except (ValueError, TypeError, IndexError):
        return f"{template} {shown!r}"
