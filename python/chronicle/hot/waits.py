"""Which wait strategy suits the machine."""

from __future__ import annotations

import os
from typing import Final, Literal, TypeAlias

__all__ = ["WAITS", "Wait", "choose_wait"]

Wait: TypeAlias = Literal["spin", "hybrid", "sleep"]

WAITS: Final = ("auto", "spin", "hybrid", "sleep")
"""What a command line may offer."""

_CORES_TO_SPIN: Final = 8
_CORES_TO_SHARE: Final = 4


def choose_wait(wait: str = "auto") -> Wait:
    """Return the wait strategy that was asked for; ``"auto"`` is by the cores of this process.

    With eight cores or more a hot thread may have one for itself, and spins. With four it spins
    for some microseconds before it sleeps. With fewer, spinning would take the core from those that
    it waits for.

    Raises
    ------
    ValueError
        If there is no such strategy.

    Examples
    --------
    >>> from chronicle.hot import choose_wait
    >>> choose_wait("sleep")
    'sleep'
    >>> choose_wait() in ("spin", "hybrid", "sleep")
    True
    """
    match wait:
        case "spin" | "hybrid" | "sleep":
            return wait
        case "auto":
            cores = len(os.sched_getaffinity(0))
            if cores >= _CORES_TO_SPIN:
                return "spin"
            return "hybrid" if cores >= _CORES_TO_SHARE else "sleep"
    raise ValueError(f"no such wait strategy: found={wait!r} expected={' or '.join(WAITS)}")
