"""From rewritten functions to one object file. Imports Numba; used on a cold start only.

Numba infers types and gives LLVM code for each function. What the loop calls is built around them
here: a switch on kind and type, the check of the payload's length, and the translation of Numba's
status into the ABI's. All of it goes into one module in which only the entries are visible, is
optimized as a whole, and becomes an object file: the one that runs, and the one that is audited.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core.compiler_lock import global_compiler_lock

from chronicle.hot.diagnose import finding_from
from chronicle.hot.failures import Failure
from chronicle.hot.frontend import PREFIX, Translation
from chronicle.hot.link import target_machine
from chronicle.hot.lower import primitive
from chronicle.hot.lower_bytes import make_bytes
from chronicle.hot.lower_target import make_dispatcher, target_context
from chronicle.hot.lower_types import (
    I32,
    I64,
    POINTER,
    BytesType,
    Emit,
    HandlerType,
    InfoType,
    RecordType,
    Session,
)
from chronicle.hot.on import KIND_DATAGRAM
from chronicle.hot.rules import Finding, refused
from chronicle.hot.spec import Entry, HandlerSpec, RawEntry, layout_of

__all__ = ["Emitted", "emit"]

HANDLED: Final = 0
UNHANDLED: Final = 1
FAILED: Final = 2

MESSAGE_PAYLOAD: Final = 0
MESSAGE_LEN_BYTES: Final = 8
MESSAGE_TYPE_ID: Final = 12
MESSAGE_KIND: Final = 14


class Emitted(NamedTuple):
    """An object file, and what its numbers mean.

    Attributes
    ----------
    image
        The object file.
    entries
        Which entries it defines.
    failures
        Reasons to fail, by number.
    """

    image: bytes
    entries: tuple[str, ...]
    failures: tuple[Failure, ...]


class _Compiled(NamedTuple):
    library: Any
    descriptor: Any
    arguments: tuple[Any, ...]
    result: Any


def emit(spec: HandlerSpec, found: Translation) -> Emitted:
    """Compile a translated handler. One at a time: `chronicle.hot.compile` holds a lock."""
    session = Session.current = Session(found.failures)
    handler = HandlerType(spec)
    namespace = _namespace(found)
    compiled: dict[str, _Compiled] = {}
    findings: list[Finding] = []
    # Held all along, so that other users of Numba in this process wait.
    with global_compiler_lock, warnings.catch_warnings(), _quiet():
        # Numba warns of what the front end has already refused, or what cannot be.
        warnings.simplefilter("ignore")
        for method, arguments in _signatures(spec, handler):
            try:
                compiled[method] = _compile(namespace[found.methods[method]], arguments)
            except Exception as error:
                # The other methods may have findings of their own.
                finding = finding_from(error, found)
                if finding not in findings:
                    findings.append(finding)
        if findings:
            raise refused(spec.name, findings)
        module = _entries_module(spec, found, compiled)
        image = _object_file(module, [each.library for each in compiled.values()])
    entries = ("on_message", *(f"on_{hook}" for hook in spec.hooks))
    return Emitted(image, entries, tuple(session.failures))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Numba from logging every step, where the root logger is set to debug."""
    logger = logging.getLogger("numba")
    before = logger.level
    if before == logging.NOTSET:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _signatures(spec: HandlerSpec, handler: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Return each method that the loop calls, and the types of its arguments."""
    for entry in spec.entries:
        record = RecordType(layout_of(entry.message), writable=False)
        yield entry.method, (handler, record, InfoType()) if entry.takes_info else (handler, record)
    for raw in spec.raw_entries:
        data = BytesType()
        yield raw.method, (handler, data, InfoType()) if raw.takes_info else (handler, data)
    for method in spec.hooks.values():
        yield method, (handler,)


def _namespace(found: Translation) -> dict[str, Any]:
    """Return the globals of the rewritten functions: primitives, and each other."""
    space: dict[str, Any] = {"__name__": "chronicle.hot.compiled"}
    for name in sorted(found.primitives):
        space[PREFIX + name] = primitive(name, found)
    for name, translated in found.functions.items():
        # The front end made this tree, from syntax that it allows.
        exec(compile(translated.module(), translated.file, "exec", dont_inherit=True), space)
        space[name] = make_dispatcher(space[name])
    return space


def _compile(dispatcher: Any, arguments: tuple[Any, ...]) -> _Compiled:
    dispatcher.compile(arguments)
    result = dispatcher.overloads[arguments]
    return _Compiled(result.library, result.fndesc, arguments, result.signature.return_type)


def _entries_module(
    spec: HandlerSpec, found: Translation, compiled: dict[str, _Compiled]
) -> ir.Module:
    module = ir.Module("chronicle.entries")
    module.triple = target_machine().triple
    module.data_layout = str(target_machine().target_data)
    _on_message(module, spec, found, compiled)
    for hook, method in spec.hooks.items():
        kind = ir.FunctionType(I32, [POINTER])
        function = ir.Function(module, kind, f"chr_on_{hook}")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        _call(builder, compiled[method], [function.args[0]])
    return module


def _on_message(
    module: ir.Module, spec: HandlerSpec, found: Translation, compiled: dict[str, _Compiled]
) -> None:
    function = ir.Function(module, ir.FunctionType(I32, [POINTER, POINTER]), "chr_on_message")
    context, message = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    emit = Emit(target_context(), builder, context)
    type_id = builder.zext(emit.load_raw(message, MESSAGE_TYPE_ID, ir.IntType(16), align=4), I32)
    kind = builder.zext(emit.load_raw(message, MESSAGE_KIND, ir.IntType(16), align=2), I32)
    for raw in spec.raw_entries:
        if raw.kind == KIND_DATAGRAM:
            # Before the switch: the line of a datagram stands where a type id does.
            block = function.append_basic_block(raw.method)
            others = function.append_basic_block("messages")
            builder.cbranch(builder.icmp_unsigned("==", kind, I32(KIND_DATAGRAM)), block, others)
            builder.position_at_end(block)
            _take_bytes(builder, context, message, raw, compiled[raw.method])
            builder.position_at_end(others)
    chosen = builder.or_(type_id, builder.shl(kind, I32(16)))
    unhandled = function.append_basic_block("unhandled")
    switch = builder.switch(chosen, unhandled)
    builder.position_at_end(unhandled)
    builder.ret(I32(UNHANDLED))
    for entry in spec.entries:
        block = function.append_basic_block(entry.method)
        switch.add_case(I32(entry.kind << 16 | entry.message.type_id), block)
        builder.position_at_end(block)
        _take(builder, context, message, entry, found, compiled[entry.method])
    for raw in spec.raw_entries:
        if raw.kind != KIND_DATAGRAM:
            block = function.append_basic_block(raw.method)
            switch.add_case(I32(raw.kind << 16 | raw.type_id), block)
            builder.position_at_end(block)
            _take_bytes(builder, context, message, raw, compiled[raw.method])


def _take_bytes(
    builder: ir.IRBuilder, context: Any, message: Any, raw: RawEntry, compiled: _Compiled
) -> None:
    """Call a method with the payload, whatever its length."""
    emit = Emit(target_context(), builder, context)
    length = builder.zext(emit.load_raw(message, MESSAGE_LEN_BYTES, I32, align=8), I64)
    payload = emit.load_raw(message, MESSAGE_PAYLOAD, POINTER, align=8)
    arguments = [context, make_bytes(emit, payload, length)]
    if raw.takes_info:
        arguments.append(message)
    _call(builder, compiled, arguments)


def _take(
    builder: ir.IRBuilder,
    context: Any,
    message: Any,
    entry: Entry,
    found: Translation,
    compiled: _Compiled,
) -> None:
    """Check the payload's length and call the method."""
    site = _site_of(found, entry.method)
    emit = Emit(target_context(), builder, context, I64(site))
    size = entry.message.size_bytes
    length = emit.load_raw(message, MESSAGE_LEN_BYTES, I32, align=8)
    with builder.if_then(builder.icmp_unsigned("<", length, I32(size)), likely=False):
        text = (
            f"too few bytes for message {entry.message.__name__!r}: found={{value}} "
            f"expected={size}; was it written with another schema?"
        )
        emit.note_failure(Failure("SchemaMismatch", text, "i64"), builder.zext(length, I64))
        builder.ret(I32(FAILED))
    payload = emit.load_raw(message, MESSAGE_PAYLOAD, POINTER, align=8)
    arguments = [context, payload]
    if entry.takes_info:
        arguments.append(message)
    _call(builder, compiled, arguments)


def _site_of(found: Translation, method: str) -> int:
    """Return the number of the line where a method begins; it is added if nothing failed there."""
    function = found.functions[found.methods[method]]
    place = (function.file, function.node.lineno)
    if place not in found.sites:
        found.sites.append(place)
    return found.sites.index(place)


def _call(builder: ir.IRBuilder, compiled: _Compiled, arguments: list[Any]) -> None:
    """Call a function of Numba's and return the ABI's status."""
    convention = target_context().call_conv
    kind = convention.get_function_type(compiled.descriptor.restype, compiled.descriptor.argtypes)
    name = compiled.descriptor.llvm_func_name
    module = builder.module
    callee = module.globals[name] if name in module.globals else ir.Function(module, kind, name)
    status, _ = convention.call_function(
        builder, callee, compiled.descriptor.restype, compiled.descriptor.argtypes, arguments
    )
    builder.ret(builder.select(status.is_error, I32(FAILED), I32(HANDLED)))


def _object_file(entries: ir.Module, libraries: list[Any]) -> bytes:
    module = llvm.parse_assembly(str(entries))
    for library in dict.fromkeys(libraries):
        module.link_in(library._get_module_for_linking(), preserve=True)
    for function in module.functions:
        if not function.is_declaration and not function.name.startswith("chr_on_"):
            function.linkage = "internal"
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    module = _without_jump_tables(module)
    module.verify()
    run_passes(module)
    image: bytes = target_machine().emit_object(module)
    return image


def run_passes(module: Any) -> None:
    """Optimize a module as a whole."""
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    passes = llvm.create_pass_builder(target_machine(), options)
    passes.getModulePassManager().run(module, passes)


def _without_jump_tables(module: Any) -> Any:
    """Mark all functions: a jump through a table is one that an audit cannot follow."""
    lines = []
    for line in str(module).splitlines():
        if line.startswith("define ") and line.endswith("{"):
            head, found, tail = line.rpartition(" #")
            if found and tail[:-1].strip().split(" ")[0].isdigit():
                line = f'{head} "no-jump-tables"="true" #{tail}'
            else:
                head = line[:-1].rstrip()
                line = f'{head} "no-jump-tables"="true" {{'
        lines.append(line)
    return llvm.parse_assembly("\n".join(lines))
