"""From a function to its syntax tree.

The file is parsed whole, through `linecache`, so that cells of notebooks work, and line numbers
are those of the file. What was found is compared with the bytecode that runs: a file that has
changed since its import is no source.
"""

from __future__ import annotations

import ast
import linecache
from types import CodeType, FunctionType
from typing import Final, NamedTuple

from chronicle.errors import CompileError

__all__ = ["function_source", "where"]

_Key = tuple[str, int]
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class _Parsed(NamedTuple):
    """One file: its text, its functions' trees and their code, by name and first line."""

    text: str
    nodes: dict[_Key, _Definition]
    codes: dict[_Key, CodeType]


_PARSED: Final[dict[str, _Parsed]] = {}
_PARSED_MAX: Final = 64


def where(function: FunctionType) -> tuple[str, int]:
    """Return the file and the first line of a function."""
    return function.__code__.co_filename, function.__code__.co_firstlineno


def function_source(function: FunctionType) -> ast.FunctionDef:
    """Return the definition of a function. The tree is shared: it must not be changed.

    Raises
    ------
    CompileError
        If there is no source, or it is not what was imported.
    """
    code = function.__code__
    file, line = where(function)
    parsed = _parse(file, function)
    node = parsed.nodes.get((code.co_name, line))
    if isinstance(node, ast.Lambda | ast.AsyncFunctionDef):
        what = "a lambda" if isinstance(node, ast.Lambda) else "an async function"
        raise CompileError(
            f"{file}:{line}: {what} cannot be compiled; write a plain function with `def`"
        )
    if node is None or not _is_same(parsed.codes.get((code.co_name, line)), code, node):
        raise CompileError(
            f"source of function {function.__qualname__!r} is not what was imported: "
            f"'{file}' line {line} has changed since; start the program again"
        )
    return node


def _parse(file: str, function: FunctionType) -> _Parsed:
    linecache.checkcache(file)
    lines = linecache.getlines(file, function.__globals__)
    if not lines:
        raise CompileError(
            f"source of function {function.__qualname__!r} cannot be found: file '{file}'; "
            "define the handler in a module or a notebook cell, not by exec or at a prompt"
        )
    text = "".join(lines)
    known = _PARSED.get(file)
    if known is not None and known.text == text:
        return known
    try:
        tree = ast.parse(text, file)
        module = compile(text, file, "exec", dont_inherit=True, optimize=-1)
    except SyntaxError as error:
        raise CompileError(
            f"source of function {function.__qualname__!r} cannot be parsed: "
            f"'{file}' line {error.lineno}: {error.msg}; it has changed since it was imported"
        ) from None
    nodes: dict[_Key, _Definition] = {}
    for node in ast.walk(tree):
        if isinstance(node, _Definition):
            decorators = getattr(node, "decorator_list", [])
            first = min([node.lineno, *(d.lineno for d in decorators)])
            nodes[getattr(node, "name", "<lambda>"), first] = node
    codes: dict[_Key, CodeType] = {}
    stack = [module]
    while stack:
        code = stack.pop()
        codes[code.co_name, code.co_firstlineno] = code
        stack.extend(c for c in code.co_consts if isinstance(c, CodeType))
    if len(_PARSED) >= _PARSED_MAX:
        _PARSED.clear()
    parsed = _PARSED[file] = _Parsed(text, nodes, codes)
    return parsed


def _is_same(found: CodeType | None, wanted: CodeType, node: ast.FunctionDef) -> bool:
    """Tell whether the file's code is the function's, but for what a test runner rewrites."""
    if any(isinstance(inner, ast.Assert) for inner in ast.walk(node)):
        return True
    return found is not None and (
        found.co_code == wanted.co_code
        and found.co_names == wanted.co_names
        and found.co_varnames == wanted.co_varnames
        and _plain(found) == _plain(wanted)
    )


def _plain(code: CodeType) -> tuple[object, ...]:
    """Return the constants with their types: 1, 1.0 and True are equal, but not the same."""
    return tuple(
        (type(value), repr(value)) for value in code.co_consts if not isinstance(value, CodeType)
    )
