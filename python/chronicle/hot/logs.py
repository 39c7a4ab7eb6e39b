"""Log calls of handlers: levels, formats, and the tags that arguments have in a record.

A record on the ring holds a site's number and up to five arguments of 8 bytes; format and level
stay in the program.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

__all__ = [
    "ARGUMENTS_MAX",
    "LEVELS",
    "TAG_BOOL",
    "TAG_F64",
    "TAG_I64",
    "TAG_TEXT",
    "TAG_U64",
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
