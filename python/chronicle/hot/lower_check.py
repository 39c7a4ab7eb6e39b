"""A pass of the compiler: types that Numba would quietly convert are findings instead.

A variable that is an int on one path and a float on another would be a float on both, a bool an
int, and a function without a value on one path would return an optional. Python does none of that,
so the compiled handler would not be the uncompiled one.
"""

from __future__ import annotations

from typing import Any

from numba.core import ir, types
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import AnalysisPass, register_pass
from numba.core.typed_passes import NopythonTypeInference

from chronicle.hot.lower_types import Refusal, describe

__all__ = ["HandlerCompiler"]

_TEMPORARY = ("$", "_chr_")
_UNUSED = frozenset(
    {
        *("DeadBranchPrune", "DumpParforDiagnostics", "FindLiterallyCalls", "InlineClosureLikes"),
        *("InlineInlinables", "InlineOverloads", "LiteralPropagationSubPipelinePass"),
        *("LiteralUnroll", "MakeFunctionToJitFunction", "NopythonRewrites"),
        *("RewriteDynamicRaises", "RewriteSemanticConstants", "WithLifting"),
    }
)


@register_pass(mutates_CFG=False, analysis_only=True)
class _CheckTypes(AnalysisPass):  # type: ignore[misc]
    _name = "chronicle_check_types"

    def __init__(self) -> None:
        AnalysisPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        for block in state.func_ir.blocks.values():
            for statement in block.find_insts(ir.Assign):
                _check_assignment(statement, state)
        return False


def _check_assignment(statement: Any, state: Any) -> None:
    typemap = state.typemap
    value = statement.value
    wanted = typemap[statement.target.name]
    if isinstance(value, ir.Var):
        sources = [value]
    elif isinstance(value, ir.Expr) and value.op == "phi":
        sources = [each for each in value.incoming_values if isinstance(each, ir.Var)]
    elif isinstance(value, ir.Expr) and value.op == "cast":
        _check_return(value, typemap[value.value.name], state)
        return
    else:
        return
    for source in sources:
        found = typemap.get(source.name)
        if found is not None:
            loc = _defined_at(source, state) if isinstance(value, ir.Expr) else statement.loc
            _check_same(statement, types.unliteral(found), types.unliteral(wanted), loc)


def _defined_at(source: Any, state: Any) -> Any:
    """Return where a variable got its value: that is the line to change."""
    definitions = state.func_ir._definitions.get(source.name, [])
    return definitions[0].loc if len(definitions) == 1 else source.loc


def _check_same(statement: Any, found: Any, wanted: Any, loc: Any) -> None:
    if found == wanted or isinstance(found, types.Undefined):
        return
    name = statement.target.unversioned_name
    if name.startswith(_TEMPORARY):
        what = "a value"
    else:
        what = f"variable {name!r}"
    if isinstance(wanted, types.Optional):
        wanted = wanted.type if not isinstance(found, types.NoneType) else wanted
    raise Refusal(
        f"{what} that is sometimes {describe(found)} and sometimes {describe(wanted)}",
        "give it one type: write 0.0 for 0, float(x) for x, or use two variables",
        loc,
    )


def _check_return(value: Any, found: Any, state: Any) -> None:
    wanted = types.unliteral(state.return_type)
    found = types.unliteral(found)
    if found == wanted:
        return
    if isinstance(wanted, types.Optional):
        raise Refusal(
            "a function that returns a value on one path and nothing on another",
            "return a value on every path",
            value.loc,
        )
    raise Refusal(
        f"a function that returns {describe(found)} on one path and {describe(wanted)} on another",
        "return one type: write 0.0 for 0, or float(x)",
        value.loc,
    )


class HandlerCompiler(CompilerBase):  # type: ignore[misc]
    """Numba's compiler without Python objects, and with the check of types."""

    def define_pipelines(self) -> list[Any]:
        """Return the one pipeline."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        # For closures, generators, `with` and array expressions, which the front end refuses.
        passes.passes = [each for each in passes.passes if each[0].__name__ not in _UNUSED]
        passes.add_pass_after(_CheckTypes, NopythonTypeInference)
        passes.finalize()
        return [passes]
