"""Decimal text to fixed point, exactly, many numbers at a time.

Binance sends prices and quantities as text, because binary floating point cannot hold them. Here
they become integers with `DECIMALS` implied decimals, and nothing is ever rounded: text that such
an integer cannot hold exactly is refused.

All numbers of a chunk are joined into one array of bytes. Every digit knows its distance to the
decimal point of its number, hence its weight; the sum over each number is its value. Numbers of
an unusual form (a sign, no point where one is needed, many digits) take the slow way, one by one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from chronicle.feeds.batch import I64, Bools

__all__ = ["DECIMALS", "parse_fixed", "parse_fixed_many"]

DECIMALS = 8
"""Implied decimals of every price and quantity."""

# Ten digits before the point and eight behind it always fit; more take the slow, checked way.
_WHOLE_DIGITS_FAST = 10
_POWERS = 10 ** np.arange(_WHOLE_DIGITS_FAST + DECIMALS, dtype=np.int64)
_NUMBER = re.compile(r"(-?)([0-9]{1,20})(?:\.([0-9]{1,40}))?", re.ASCII)


def parse_fixed(text: str) -> int | None:
    """Return one number with `DECIMALS` implied decimals; ``None`` if it is not exactly that.

    >>> parse_fixed("61800.20"), parse_fixed("0.000000001"), parse_fixed("1e3")
    (6180020000000, None, None)
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, fraction = match.group(1), match.group(2), match.group(3) or ""
    if fraction[DECIMALS:].strip("0"):
        return None
    value = int(whole) * 10**DECIMALS + int(fraction[:DECIMALS].ljust(DECIMALS, "0"))
    value = -value if sign else value
    return value if -(1 << 63) <= value < 1 << 63 else None


def parse_fixed_many(texts: Sequence[str]) -> tuple[I64, Bools]:
    """Return all numbers with `DECIMALS` implied decimals, and which ones are not exactly that.

    >>> values, bad = parse_fixed_many(["0.014", "7", "x"])
    >>> values.tolist(), bad.tolist()
    ([1400000, 700000000, 0], [False, False, True])
    """
    if not texts:
        return np.zeros(0, np.int64), np.zeros(0, np.bool_)
    joined = "\n".join(texts) + "\n"
    if joined.isascii() and joined.count("\n") == len(texts):
        values, odd = _parse_joined(np.frombuffer(joined.encode("ascii"), np.uint8))
    else:
        values, odd = np.zeros(len(texts), np.int64), np.ones(len(texts), np.bool_)
    bad = np.zeros(len(texts), np.bool_)
    for index in np.flatnonzero(odd).tolist():
        value = parse_fixed(texts[index])
        values[index] = 0 if value is None else value
        bad[index] = value is None
    return values, bad


def _parse_joined(text: np.ndarray) -> tuple[I64, Bools]:
    """Parse numbers that each end with a newline. The second result marks those left undone."""
    ends = np.flatnonzero(text == ord("\n"))
    starts = np.concatenate([np.zeros(1, ends.dtype), ends[:-1] + 1])
    is_point = text == ord(".")
    points = np.flatnonzero(is_point)
    owners = np.searchsorted(ends, points)
    point_at = ends.copy()
    point_at[owners] = points

    digit = text - np.uint8(ord("0"))
    foreign = digit > 9
    whole = point_at - starts
    # One foreign byte is the newline, and one more may be the point; any other is not a number.
    foreign_count = np.add.reduceat(foreign, starts, dtype=np.int64)
    pointed = point_at < ends
    odd = (foreign_count != 1 + pointed) | (whole < 1) | (whole > _WHOLE_DIGITS_FAST)
    odd |= pointed & ((ends - point_at == 1) | (ends - point_at - 1 > DECIMALS))

    distance = np.repeat(point_at, ends - starts + 1) - np.arange(len(text))
    exponent = distance + DECIMALS - (distance > 0)
    weight = _POWERS[np.clip(exponent, 0, len(_POWERS) - 1)]
    digit = np.where(foreign, np.uint8(0), digit)
    values: I64 = np.add.reduceat(digit * weight, starts)
    values[odd] = 0
    return values, odd
