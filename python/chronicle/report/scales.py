"""From values to places on a chart, and which values get a label."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

__all__ = ["LogScale", "count_text", "percent_text", "seconds_ticks", "time_text"]

_UNITS: Final = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))


def time_text(value_ns: float) -> str:
    """Return nanoseconds for people.

    >>> time_text(88), time_text(1_500), time_text(2_000_000), time_text(0)
    ('88 ns', '1.5 µs', '2 ms', '0 ns')
    """
    for factor, unit in _UNITS:
        if value_ns >= factor:
            digits = f"{value_ns / factor:.3g}"
            # 999.6 has become 1e+03.
            return f"{float(digits):g} {unit}"
    return f"{value_ns:g} ns"


def count_text(value: float) -> str:
    """Return a number with separators, without digits that say nothing.

    >>> count_text(1_234_567), count_text(0.12345), count_text(3.0)
    ('1,234,567', '0.123', '3')
    """
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.3g}" if abs(value) < 1_000 else f"{value:,.0f}"


def percent_text(quantile: float) -> str:
    """Return a quantile as percent.

    >>> percent_text(0.5), percent_text(0.999), percent_text(0.99999)
    ('50%', '99.9%', '99.999%')
    """
    return f"{quantile * 100:.10g}%"


class LogScale:
    """Maps values of some decades onto a stretch of a chart. Zero counts as one.

    >>> scale = LogScale([3, 5_000], 0, 400)
    >>> scale.ticks
    [1, 10, 100, 1000, 10000]
    >>> scale(1), scale(100), scale(10_000)
    (0.0, 200.0, 400.0)
    """

    def __init__(self, values: Iterable[float], start: float, end: float) -> None:
        shown = [max(1.0, value) for value in values] or [1.0]
        low = math.floor(math.log10(min(shown)))
        high = max(low + 1, math.ceil(math.log10(max(shown)) - 1e-9))
        self._low, self._high = low, high
        self._start, self._end = start, end

    @property
    def ticks(self) -> list[int]:
        """The powers of ten, from end to end."""
        return [10**power for power in range(self._low, self._high + 1)]

    def __call__(self, value: float) -> float:
        """Return the place of a value, between start and end."""
        share = (math.log10(max(1.0, value)) - self._low) / (self._high - self._low)
        return self._start + min(1.0, max(0.0, share)) * (self._end - self._start)


def seconds_ticks(seconds: float, count_max: int) -> list[float]:
    """Return round times from 0 on, at most so many.

    >>> seconds_ticks(3.0, 6)
    [0.0, 1.0, 2.0, 3.0]
    """
    if seconds < 1e-9:
        return [0.0]
    rough = seconds / max(1, count_max - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * (1 - 1e-9))
    return [round(index * step, 9) for index in range(math.floor(seconds / step + 1e-9) + 1)]
