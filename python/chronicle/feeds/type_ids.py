"""One number space for the type ids of all feeds: each feed has a range of its own.

Applications number their messages from 1 to 32,767; the upper half belongs to Chronicle. In the
ranges of wire formats the low byte is the wire's own type byte, so that a trade of IEX (``T``,
0x54) is 0x8154 and nobody needs a table to read a dump. Low byte 0 is the raw record of the feed:
a payload as it was on the wire, for messages that the decoder does not know.
"""

from __future__ import annotations

from typing import Final

STREAM: Final = 0x8000
"""Stream control: gaps, restarts and ends of sequenced streams, whatever the feed."""

IEX: Final = 0x8100
"""IEX DEEP 1.0 and TOPS 1.6, by type byte."""

ITCH: Final = 0x8200
"""Nasdaq TotalView-ITCH 5.0, by type byte."""

BINANCE: Final = 0x8300
"""Binance market streams."""

IEX_RAW: Final = IEX
ITCH_RAW: Final = ITCH
BINANCE_RAW: Final = BINANCE

RAW_TYPE_IDS: Final = frozenset({IEX_RAW, ITCH_RAW, BINANCE_RAW})
"""Type ids of records without a layout: their payload is what was on the wire."""

FEED_RANGE_SIZE: Final = 0x100


def wire_type_id(base: int, code: str) -> int:
    """Return the type id of the wire type `code` in the range that starts at `base`.

    >>> hex(wire_type_id(IEX, "T"))
    '0x8154'
    """
    return base + ord(code)
