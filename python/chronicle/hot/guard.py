"""What a guard has seen, with names: which system call, from where, and what became of it.

The guard itself is native (``crates/chronicle-core/src/hot/guard.rs``); this module reads its
reports.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from chronicle.hot.symbols import CallSite, find_callers, locate, register_code, unregister_code
from chronicle.hot.system_calls import system_call_name

if TYPE_CHECKING:
    from chronicle._core import _NativeReport

__all__ = ["GuardAction", "GuardMode", "GuardReport", "register_code", "unregister_code"]

GuardMode = Literal["off", "observe", "enforce"]
GuardAction = Literal["allowed", "made, stopping", "refused"]

# AUDIT_ARCH_* of linux/audit.h.
_ARCHITECTURES = {
    0xC000_003E: "x86_64",
    0x4000_0003: "i386",
    0xC000_00B7: "aarch64",
    0x4000_0028: "arm",
}


@dataclass(frozen=True, slots=True)
class GuardReport:
    """One system call of a guarded thread.

    Attributes
    ----------
    number, name
        Of the call, for example 1 and ``"write"`` on x86-64.
    args
        Its six arguments as unsigned words; what a call does not take is noise.
    call_site
        The code that entered the kernel: as a rule a function of the C library.
    callers
        The code that called that one, and so on, innermost first, as far as the stack shows it; see
        `chronicle.hot.symbols.find_callers`.
    action
        ``"allowed"``: it was made. ``"refused"``: it returned EPERM, or from a wait on a futex
        EAGAIN. ``"made, stopping"``: it was made, because its refusal would have endangered the
        process, and the thread stops as after a refusal.
    timestamp_ns
        Wall clock, nanoseconds since 1970-01-01 UTC.
    architecture
        Whose table of calls the number belongs to; not this machine's for 32-bit calls.
    """

    number: int
    name: str
    args: tuple[int, ...]
    call_site: CallSite
    callers: tuple[CallSite, ...]
    action: GuardAction
    timestamp_ns: int
    architecture: str

    @classmethod
    def from_native(cls, report: _NativeReport) -> GuardReport:
        """Make one from what the native ``drain`` gives. Reads symbol tables: not for a hot thread.

        Call it soon, while the code that made the call is still loaded.
        """
        number, arch, args, address, stack, timestamp_ns, action = report
        architecture = _ARCHITECTURES.get(arch, f"architecture {arch:#x}")
        # The kernel tells the address behind the instruction; the one before is inside of it.
        call_site = locate(address - 1)
        return cls(
            number,
            system_call_name(number, architecture),
            args,
            call_site,
            tuple(find_callers(stack, call_site)),
            action,
            timestamp_ns,
            architecture,
        )

    @property
    def caller(self) -> CallSite | None:
        """The caller that matters: a handler; else the first outside of the call site's object."""
        outside = (c for c in self.callers if c.object != self.call_site.object)
        handlers = (c for c in self.callers if c.is_registered)
        first = self.callers[0] if self.callers else None
        return next(handlers, next(outside, first))

    def __str__(self) -> str:
        name = self.name
        if self.architecture != platform.machine():
            name += f" ({self.architecture})"
        words = " ".join(_word(arg) for arg in self.args)
        called_by = f", called by {self.caller}" if self.caller else ""
        return f"{name} {self.action}: at {self.call_site}{called_by}, args {words}"


def _word(value: int) -> str:
    """Write a word as what it probably is: a small number, a negative one, an address."""
    if value >= 1 << 63 and (1 << 64) - value < 4096:
        return str(value - (1 << 64))
    return str(value) if value < 4096 else f"{value:#x}"
