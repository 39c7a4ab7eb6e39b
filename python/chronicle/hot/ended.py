"""How a hot thread has ended: the exception for it, and what it had counted by then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from chronicle.errors import GuardViolation, HotThreadFailed
from chronicle.hot.meter import Histogram

if TYPE_CHECKING:
    from chronicle._core import HotCore
    from chronicle.hot.program import Program

__all__ = ["Counts", "failed"]


class Counts(NamedTuple):
    """What a thread has counted."""

    words: dict[str, Any]
    counters: list[int]
    loop_gap: Histogram
    handler_time: Histogram

    @classmethod
    def of(cls, core: HotCore) -> Counts:
        """Copy all counts of this moment."""
        histograms = (Histogram(*core.histogram(name)) for name in ("loop_gap", "handler_time"))
        return cls(core.status(), core.counters(), *histograms)


def failed(thread: str, program: Program, failure: dict[str, Any]) -> HotThreadFailed:
    """Make the exception of a failure as the core tells it."""
    cause, error = failure["cause"], failure["error"]
    kind = HotThreadFailed
    if cause == "guard":
        kind = GuardViolation
        reason = "it made a system call, which its guard forbids"
    elif failure["text"]:
        reason = failure["text"]
    elif error is not None:
        reason = f"{type(error).__name__}: {error}"
    elif program.explain is not None:
        reason = program.explain(failure["info"], failure["code"])
    else:
        reason = f"its handler returned {failure['returned']}, fail_code={failure['code']}"
    during = failure["during"]
    where = ""
    if failure["source"] is not None:
        where = f" at source={failure['source']} seq={failure['seq']} type_id={failure['type_id']}"
    elif during == "command":
        where = f" at ticket={failure['seq']} type_id={failure['type_id']}"
    made = kind(
        f"hot thread '{thread}' failed during {during}{where}: {reason}",
        thread=thread,
        during=during,
        source=failure["source"],
        seq=failure["seq"],
        type_id=failure["type_id"],
        reason=reason,
    )
    made.__cause__ = error
    return made
