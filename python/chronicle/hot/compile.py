"""`program_for`: from a handler to a `Program`."""

from __future__ import annotations

from collections.abc import Mapping

from chronicle.errors import AuditRefused
from chronicle.hot.frontend import translate
from chronicle.hot.handler import Handler
from chronicle.hot.link import link
from chronicle.hot.program import FLAG_USES_CLOCK, Program

__all__ = ["program_for"]


def program_for(handler: Handler, *, symbols: Mapping[str, int] | None = None) -> Program:
    """Compile a handler."""
    spec = type(handler).SPEC
    found = translate(spec)
    if found.findings:
        raise AuditRefused(
            "\n".join(str(f) for f in found.findings), findings=tuple(found.findings)
        )
    from chronicle.hot import emit

    with emit.LOCK:
        made = emit.emit(spec, found)
    import io
    from elftools.elf.elffile import ELFFile
    elf = ELFFile(io.BytesIO(made.image))
    undefined = [s.name for s in elf.get_section_by_name(".symtab").iter_symbols() if s["st_shndx"] == "SHN_UNDEF" and s.name]
    linked = link(made.image, undefined=undefined, entries=made.entries, symbols=symbols)
    return Program(
        name=spec.name,
        key="",
        flags=FLAG_USES_CLOCK if found.uses_clock[0] else 0,
        **linked.addresses,
        on_batch_begin=0,
        on_batch_end=0,
        state=handler.state_bytes(),
        state_bytes=spec.state_bytes,
        outputs=spec.outputs,
        counters=spec.counters,
        log_sites=tuple(found.log_sites),
        audited=True,
        failures=made.failures,
        sites=tuple(found.sites),
        handler=spec.cls,
        keep_alive=linked,
    )
