"""`audit`: what can be said about a handler class before it runs.

The three nets are in their own places: the source net in `chronicle.hot.rewrite` and its parts, by
the tables of `chronicle.hot.rules`; the types net in the primitives and `chronicle.hot.diagnose`;
the machine net in `chronicle.hot.machine`. `program_for` passes through all of them, so nothing
runs that was not audited. This module asks the same questions and gives the answers as data.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from chronicle.errors import AuditRefused, BadArgument
from chronicle.hot.compile import build
from chronicle.hot.handler import Handler
from chronicle.hot.link import CORE, LIBM
from chronicle.hot.machine import MachineReport, inspect_object
from chronicle.hot.on import KIND_DATAGRAM
from chronicle.hot.outputs import grouped
from chronicle.hot.rules import Finding

__all__ = ["Reach", "Verdict", "audit"]


class Reach(NamedTuple):
    """What a handler can reach.

    Attributes
    ----------
    takes
        Messages, commands and events, as ``Trade``, ``command SetLimit``, ``event SourceGap``; what
        it takes as bytes, as ``datagram`` and ``bytes 33024``.
    hooks
        ``idle``, ``start`` and ``stop``, as far as it has them.
    functions
        Its functions, with file and line.
    publishes
        Its outputs.
    core, libm, memory
        Functions that its machine code calls elsewhere.
    """

    takes: tuple[str, ...]
    hooks: tuple[str, ...]
    functions: tuple[tuple[str, str, int], ...]
    publishes: tuple[str, ...]
    core: tuple[str, ...]
    libm: tuple[str, ...]
    memory: tuple[str, ...]


class Verdict(NamedTuple):
    """The audit's answer.

    Attributes
    ----------
    name
        The handler's class.
    accepted
        Whether it may run on a hot thread.
    findings
        Why not.
    reach
        What it can reach; ``None`` if it was refused.
    code_bytes, state_bytes, stack_bytes
        Of its machine code, of its state, and the most that it takes of the stack, without what the
        core and libm take.
    compile_ns
        Time that it took to compile, when it was compiled.
    load_ns
        Time that it took this time, from the cache if `cached`.
    cached
        Whether it came from the cache.
    key
        Hash of everything that went into it.
    """

    name: str
    accepted: bool
    findings: tuple[Finding, ...] = ()
    reach: Reach | None = None
    code_bytes: int = 0
    state_bytes: int = 0
    stack_bytes: int = 0
    compile_ns: int = 0
    load_ns: int = 0
    cached: bool = False
    key: str = ""


def audit(handler: type[Handler] | Handler, *, use_cache: bool = True) -> Verdict:
    """Audit a handler class. Compiles it, unless it is in the cache; runs nothing of it.

    The object file is inspected in any case, also one that comes from the cache.

    Parameters
    ----------
    handler
        A class, or an instance of it.
    use_cache
        Whether to take the object file from the cache, and to keep it there.

    Raises
    ------
    BadArgument
        If it is no handler.
    CompileError
        If its source cannot be found, or a part of the extra ``hot`` is missing.
    """
    cls = handler if isinstance(handler, type) else type(handler)
    if not issubclass(cls, Handler) or cls is Handler:
        raise BadArgument(f"bad handler: found={handler!r} expected=a class derived from Handler")
    spec = cls.SPEC
    started = time.perf_counter_ns()
    try:
        made = build(spec, use_cache=use_cache)
    except AuditRefused as refusal:
        return Verdict(spec.name, False, refusal.findings, state_bytes=spec.state_bytes)
    load_ns = time.perf_counter_ns() - started
    report = inspect_object(made.image)
    kinds = ("", "command ", "event ")
    raw = tuple(
        "datagram" if e.kind == KIND_DATAGRAM else f"bytes {e.type_id}" for e in spec.raw_entries
    )
    return Verdict(
        spec.name,
        not report.findings,
        report.findings,
        Reach(
            tuple(kinds[e.kind] + e.message.__name__ for e in spec.entries) + raw,
            tuple(spec.hooks),
            tuple((f.label, f.file, f.node.lineno) for f in made.found.functions.values()),
            grouped(spec.outputs),
            *_called(report),
        ),
        report.code_bytes,
        spec.state_bytes,
        report.stack_bytes,
        made.compile_ns,
        load_ns,
        made.cached,
        made.key,
    )


def _called(report: MachineReport) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Sort what the machine code calls elsewhere."""
    core = tuple(name for name in report.undefined if name in CORE)
    libm = tuple(name for name in report.undefined if name in LIBM)
    rest = tuple(name for name in report.undefined if name not in CORE | LIBM)
    return core, libm, rest
