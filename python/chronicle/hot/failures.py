"""Why a compiled handler failed: from two numbers in its context to an exception's text.

A primitive that fails stores ``fail_code``, the number of the line and the number of the reason,
and ``fail_info``, the value that was wrong. The texts stay in the program.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["REASON_SHIFT", "Failure", "explain", "value_text"]

REASON_SHIFT: Final = 32
"""``fail_code`` holds the line's number below, the reason's above."""


class Failure(NamedTuple):
    """One reason to fail.

    Attributes
    ----------
    exception
        The class that the uncompiled handler would raise.
    text
        Its text, with ``{value}`` for the value that was wrong.
    value
        How ``fail_info`` is to be read: ``""`` not at all, ``i64`` or ``f64``.
    """

    exception: str
    text: str
    value: str = ""


def value_text(kind: str, word: int) -> str:
    """Return 8 bytes as the number that they are.

    >>> value_text("i64", 0xFFFF_FFFF_FFFF_FFFF), value_text("f64", 0x3FF8_0000_0000_0000)
    ('-1', '1.5')
    """
    data = struct.pack("<Q", word & 0xFFFF_FFFF_FFFF_FFFF)
    return repr(struct.unpack("<d" if kind == "f64" else "<q", data)[0])


def explain(
    fail_info: int,
    fail_code: int,
    failures: Sequence[Failure],
    sites: Sequence[tuple[str, int]],
) -> str:
    """Return what happened, and where."""
    site = fail_code & 0xFFFF_FFFF
    reason = fail_code >> REASON_SHIFT
    if not fail_code or site >= len(sites) or not 0 <= reason < len(failures):
        return f"the handler failed without a reason: fail_code={fail_code} fail_info={fail_info}"
    failure = failures[reason]
    text = failure.text
    if failure.value:
        text = text.replace("{value}", value_text(failure.value, fail_info))
    file, line = sites[site]
    return f"{failure.exception}: {text} ({file}:{line})"
