"""`program_for`: from a handler to machine code that passed the audit.

On a warm start the source is read and rewritten, which gives the key, and the object file comes
from the cache: Numba is not imported. On a cold one it is compiled, inspected and kept.
"""

from __future__ import annotations

import gc
import hashlib
import marshal
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

from chronicle.errors import CompileError
from chronicle.hot import cache as disk
from chronicle.hot.failures import Failure, explain
from chronicle.hot.frontend import Translation, translate
from chronicle.hot.handler import Handler
from chronicle.hot.link import cpu, link, missing
from chronicle.hot.program import TABLE_USES_CLOCK, Program
from chronicle.hot.rules import refused
from chronicle.hot.spec import HandlerSpec, layout_of, state_dtype

__all__ = ["Build", "build", "program_for"]

ABI_VERSION: Final = 1
_PARTS: Final = (
    *("buffers", "emit", "failures", "link", "lower", "machine", "outputs", "state", "wire"),
)
"""Modules, by the beginnings of their names, that decide what an object file is."""
_lock: Final = threading.RLock()


class Build(NamedTuple):
    """A handler's object file, and what is known about it.

    Attributes
    ----------
    key
        Hash of everything that went into it.
    image
        The object file.
    found
        The rewritten handler.
    entries
        What the loop may call in it.
    failures, sites
        What the numbers of a failure mean.
    undefined
        Symbols that it calls elsewhere.
    code_bytes, stack_bytes
        Its size, and the most that it takes of the stack.
    cached
        Whether it came from the cache.
    compile_ns
        Time that compiling took, when it was compiled.
    """

    key: str
    image: bytes
    found: Translation
    entries: tuple[str, ...]
    failures: tuple[Failure, ...]
    sites: tuple[tuple[str, int], ...]
    undefined: tuple[str, ...]
    code_bytes: int
    stack_bytes: int
    cached: bool
    compile_ns: int


def program_for(
    handler: Handler, *, symbols: Mapping[str, int] | None = None, use_cache: bool = True
) -> Program:
    """Compile a handler, or take it from the cache.

    Blocks: up to three seconds cold, a tenth of that warm. May be called from any thread.

    Parameters
    ----------
    handler
        An instance; its state is what the program starts with.
    symbols
        Addresses of the core's functions, for embedders and tests.
    use_cache
        Whether to look into the cache on disk, and to keep the result there.

    Raises
    ------
    AuditRefused
        If the handler says or does something that must not be on a hot thread.
    CompileError
        If its source cannot be found, or a part of the extra ``hot`` is missing.
    """
    if not isinstance(handler, Handler):
        raise CompileError(f"program_for takes an instance of a Handler, not {handler!r}")
    spec = type(handler).SPEC
    made = build(spec, use_cache=use_cache)
    linked = link(made.image, undefined=made.undefined, entries=made.entries, symbols=symbols)
    return Program(
        spec.name,
        flags=TABLE_USES_CLOCK if made.found.uses_clock[0] else 0,
        on_message=linked.addresses["on_message"],
        on_idle=linked.addresses["on_idle"],
        on_start=linked.addresses["on_start"],
        on_stop=linked.addresses["on_stop"],
        state=handler.state_bytes(),
        outputs=spec.outputs,
        counters=spec.counters,
        log_sites=tuple(made.found.log_sites),
        audited=True,
        explain=partial(explain, failures=made.failures, sites=made.sites),
        state_dtype=partial(state_dtype, spec),
        keep_alive=linked,
        key=made.key,
    )


def build(spec: HandlerSpec, *, use_cache: bool = True) -> Build:
    """Return the object file of a handler class; see `program_for`."""
    with _lock:
        found = translate(spec)
        if found.findings:
            raise refused(spec.name, found.findings)
        key = _key(spec, found)
        kept = disk.load(key) if use_cache else None
        if kept is not None:
            return _restored(key, found, kept)
        with _no_collections():
            made = _compiled(key, spec, found)
        if use_cache:
            disk.store(key, _entry(made))
        return made


@contextmanager
def _no_collections() -> Iterator[None]:
    """Let the collector of cycles rest: what compiling makes stays until it is done.

    It would go over all of that several times, an eighth of the time of a cold start. Whoever else
    made cycles meanwhile has them collected afterwards.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _compiled(key: str, spec: HandlerSpec, found: Translation) -> Build:
    started = time.perf_counter_ns()
    try:
        from chronicle.hot.emit import emit
        from chronicle.hot.machine import inspect_object
    except ImportError as error:
        raise missing(error) from None
    made = emit(spec, found)
    file, line = _class_place(found)
    report = inspect_object(made.image, file=file, line=line)
    if report.findings:
        raise refused(spec.name, report.findings)
    return Build(
        key,
        made.image,
        found,
        made.entries,
        made.failures,
        tuple(found.sites),
        report.undefined,
        report.code_bytes,
        report.stack_bytes,
        False,
        time.perf_counter_ns() - started,
    )


def _class_place(found: Translation) -> tuple[str, int]:
    first = next(iter(found.functions.values()), None)
    return ("", 0) if first is None else (first.file, first.node.lineno)


# --- The cache ---


def _entry(made: Build) -> disk.Entry:
    facts = {
        "entries": made.entries,
        "failures": made.failures,
        "sites": made.sites,
        "undefined": made.undefined,
        "code_bytes": made.code_bytes,
        "stack_bytes": made.stack_bytes,
        "compile_ns": made.compile_ns,
    }
    return disk.Entry(facts, made.image)


def _restored(key: str, found: Translation, kept: disk.Entry) -> Build:
    facts = kept.facts
    return Build(
        key,
        kept.image,
        found,
        tuple(facts["entries"]),
        tuple(Failure(*each) for each in facts["failures"]),
        tuple((file, line) for file, line in facts["sites"]),
        tuple(facts["undefined"]),
        facts["code_bytes"],
        facts["stack_bytes"],
        True,
        facts["compile_ns"],
    )


def _key(spec: HandlerSpec, found: Translation) -> str:
    """Hash everything that decides what the object file is, and what its numbers mean."""
    parts: list[Any] = [
        ABI_VERSION,
        _compiler(),
        spec.name,
        [(*field[:6], layout_of(field.row) if field.row else None) for field in spec.state],
        spec.outputs,
        sorted(spec.tables.items()),
        spec.counters,
        spec.raw_entries,
        [(e.kind, e.method, e.takes_info, layout_of(e.message)) for e in spec.entries],
        sorted(spec.hooks.items()),
        found.sites,
        found.failures,
        found.log_sites,
        sorted((name, layout_of(cls)) for name, cls in found.messages.items()),
        sorted(found.methods.items()),
    ]
    digest = hashlib.sha256(repr(parts).encode())
    for name, function in found.functions.items():
        code = compile(function.module(), function.file, "exec", dont_inherit=True)
        # Version 2 has no references, so equal code is equal bytes.
        digest.update(name.encode() + marshal.dumps(code, 2))
    return digest.hexdigest()


@cache
def _compiler() -> tuple[Any, ...]:
    """Return what the compiler is: its own source, its libraries, the processor."""
    own = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem.startswith(_PARTS):
            own.update(path.read_bytes())
    own.update(Path(sys.modules["chronicle.message"].__file__ or "").read_bytes())
    settings = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))
    return (
        own.hexdigest(),
        _version("numba"),
        _version("llvmlite"),
        sys.implementation.cache_tag,
        os.uname().machine,
        cpu(),
        settings,
    )


def _version(package: str) -> str:
    """Return what names a package's version: its own version file, if it has one.

    A warm start imports neither Numba nor `importlib.metadata`, which takes longer than to read and
    rewrite a handler.
    """
    found = find_spec(package)
    if found is None or found.origin is None:
        return ""
    try:
        return Path(found.origin).with_name("_version.py").read_text(encoding="utf-8")
    except OSError:
        from importlib import metadata

        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return ""
