"""A Numba target of our own: the compiler as it is, with nothing around it.

It has its own registries, so nothing that is compiled here is seen by other users of Numba in the
process, and only what a handler needs is in them: integers, floats, tuples, ranges. There is no
run-time to allocate with, and no engine: functions are given as LLVM code, and become machine code
once, as a whole, in `chronicle.hot.emit`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from types import FunctionType
from typing import Any, Final

from numba.core import codegen, imputils, types, typing
from numba.core.compiler_lock import global_compiler_lock
from numba.core.cpu import CPUContext
from numba.core.registry import CPUDispatcher, CPUTarget
from numba.core.typing import templates

from chronicle.hot.lower_check import HandlerCompiler
from chronicle.hot.lower_types import Emit, HandlerType

__all__ = ["Primitive", "make_dispatcher", "primitive", "target_context"]

_OPTIONS: Final[dict[str, Any]] = {
    "nopython": True,
    # No run-time: nothing can allocate.
    "_nrt": False,
    "boundscheck": True,
    "error_model": "python",
    "no_cfunc_wrapper": True,
    "no_cpython_wrapper": True,
}


class _Library(codegen.CPUCodeLibrary):  # type: ignore[misc]
    """LLVM code that is not run from here, and not optimized yet."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_specific(self) -> None:
        pass


class _Codegen(codegen.JITCPUCodegen):  # type: ignore[misc]
    _library_class = _Library

    def _add_module(self, module: Any) -> None:
        pass


Write = Callable[[Emit, Sequence[Any]], Any]
"""Writes the instructions of a call, given its arguments, and returns its result."""

Define = Callable[..., tuple[Any, Write]]
"""Given the types of the arguments, returns that of the result, and what writes the call."""


class Primitive:
    """Something that rewritten functions call, and that is put in as instructions.

    Made by `primitive`. Unlike Numba's own intrinsics, it is known to this target alone.
    """

    def __init__(self, define: Define) -> None:
        self.__name__ = define.__name__
        template = type(
            f"Template_{define.__name__}",
            (_Template,),
            {"key": self, "define": staticmethod(define), "made": {}},
        )
        _TYPING.register_global(self, types.Function(template))


class _Template(templates.AbstractTemplate):  # type: ignore[misc]
    """Types a call of a primitive by the types of its arguments, and keeps what lowers it."""

    define: Define
    made: dict[tuple[Any, ...], tuple[Any, Any]]

    def generic(self, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        assert not kws  # The front end passes everything by position.
        plain = tuple(types.unliteral(each) for each in args)
        if plain not in self.made:
            result, write = self.define(*plain)
            self.made[plain] = (result(*plain), _lowering(write))
            _LOWERING.lower(self.made[plain][1], *plain)(self.made[plain][1])
        return self.made[plain][0]

    def get_impl_key(self, sig: Any) -> Any:
        return self.made[sig.args][1]


def _lowering(write: Write) -> Callable[..., Any]:
    """Return what Numba calls to lower a call."""

    def lower(context: Any, builder: Any, sig: Any, args: Sequence[Any]) -> Any:
        emit = Emit(context, builder)
        if args and isinstance(sig.args[0], HandlerType):
            # What can fail has the handler first, and the number of the line last.
            emit.handler, emit.site = args[0], args[-1]
        made = write(emit, args)
        return context.get_dummy_value() if sig.return_type == types.void else made

    return lower


def primitive(define: Define) -> Primitive:
    """Make a primitive of the function that defines it."""
    return Primitive(define)


_TYPING: Final = templates.Registry()
_LOWERING: Final = imputils.Registry("chronicle")


class _TypingContext(typing.Context):  # type: ignore[misc]
    def load_additional_registries(self) -> None:
        self.install_registry(_TYPING)


class _TargetContext(CPUContext):  # type: ignore[misc]
    @global_compiler_lock  # type: ignore[untyped-decorator]
    def init(self) -> None:
        self.is32bit = False
        self._internal_codegen = _Codegen("chronicle.hot")

    def load_additional_registries(self) -> None:
        # Imported for what they register with Numba's built-in registry.
        from numba.cpython import builtins, numbers, rangeobj, tupleobj  # noqa: F401

        self.install_registry(_LOWERING)

    def get_executable(self, _library: Any, _fndesc: Any, _env: Any) -> object:
        """Return what Numba knows the function by: there is no engine that could make code."""
        return object()


class _Target(CPUTarget):  # type: ignore[misc]
    @cached_property
    def _toplevel_target_context(self) -> Any:
        return _TargetContext(self.typing_context, self._target_name)

    @cached_property
    def _toplevel_typing_context(self) -> Any:
        return _TypingContext()


_TARGET: Final = _Target("cpu")


class _Dispatcher(CPUDispatcher):  # type: ignore[misc]
    targetdescr = _TARGET

    def add_overload(self, cres: Any) -> None:
        self.overloads[tuple(cres.signature.args)] = cres


def make_dispatcher(function: FunctionType) -> Any:
    """Return a function that Numba compiles for this target when it is asked to."""
    return _Dispatcher(function, targetoptions=dict(_OPTIONS), pipeline_class=HandlerCompiler)


def target_context() -> Any:
    """Return the context that knows types and calling conventions."""
    return _TARGET.target_context
