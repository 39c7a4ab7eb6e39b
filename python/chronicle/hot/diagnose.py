"""From what the compiler refused to a finding: construct, file, line, remedy.

The types net. What our own primitives refuse says what it is, and only lacks its line, which is in
the compiler's frames. Numba's own errors are mapped by their text where that is known, and wrapped
with their first useful line where it is not; nobody is shown a traceback of Numba.
"""

from __future__ import annotations

import re
from types import TracebackType
from typing import Any, Final

from numba.core import errors, ir

from chronicle.errors import CompileError
from chronicle.hot.frontend import PREFIX, Translation
from chronicle.hot.lower_types import NAMES, Refusal
from chronicle.hot.rules import Finding

__all__ = ["finding_from"]

_NO_FUNCTION: Final = re.compile(
    r"No implementation of function Function\((?:<built-in function (\w+)>|.*?)\) found for "
    r"signature:\s*>>> (.*)"
)
_UNIFY: Final = re.compile(r"Cannot unify (.+?) and (.+?) for '(.+?)(?:\.\d+)?'")
_OPERATORS: Final = {
    "add": "+",
    "iadd": "+",
    "sub": "-",
    "isub": "-",
    "mul": "*",
    "imul": "*",
    "and_": "&",
    "iand": "&",
    "or_": "|",
    "ior": "|",
    "xor": "^",
    "ixor": "^",
    "neg": "-",
    "pos": "+",
}


def finding_from(error: BaseException, found: Translation) -> Finding:
    """Return the finding that an error of the compiler stands for.

    Raises
    ------
    CompileError
        If it is an error of the compiler itself, and stands for nothing in the source.
    """
    file, line = _place(error, found)
    if isinstance(error, Refusal):
        return Finding(error.construct, file, line, error.remedy, "types")
    text = _readable(str(error))
    if match := _UNIFY.search(text):
        first, second, name = match.groups()
        what = f"variable {name!r}" if not name.startswith(("$", PREFIX)) else "a value"
        return Finding(
            f"{what} that is sometimes {first} and sometimes {second}",
            file,
            line,
            "give it one type, or use two variables",
            "types",
        )
    if match := _NO_FUNCTION.search(text):
        name, signature = match.groups()
        symbol = _OPERATORS.get(name or "", name or "this function")
        arguments = signature.partition("(")[2].rpartition(")")[0]
        return Finding(
            f"{symbol} on {arguments or signature}",
            file,
            line,
            "use it on numbers",
            "types",
        )
    if isinstance(error, errors.NumbaError) and file:
        return Finding(
            f"something that cannot be compiled: {_first_line(text)}",
            file,
            line,
            "write it in simpler steps",
            "types",
        )
    raise CompileError(
        f"the compiler failed at {file or 'an unknown place'}:{line}: {_first_line(text)}; "
        "write that line in simpler steps, and report this"
    ) from error


def _readable(text: str) -> str:
    """Put people's words in the place of the compiler's names for types."""
    for name, words in NAMES.items():
        text = text.replace(name, words)
    for name, words in (
        ("Literal[int]", "int"),
        ("int64", "an int"),
        ("float64", "a float"),
        ("boolean", "a bool"),
    ):
        text = re.sub(rf"\b{re.escape(name)}(?:\([^)]*\))?", words, text)
    return text.replace(PREFIX, "")


def _first_line(text: str) -> str:
    useful = []
    for line in text.splitlines():
        line = line.strip()
        if line and not line.startswith(("Failed in", "- Resolution", "[1]", "During", "^")):
            useful.append(re.sub(r"\x1b\[[0-9;]*m", "", line))
    return ": ".join(useful[:2])[:300] or "no reason was given"


def _place(error: BaseException, found: Translation) -> tuple[str, int]:
    """Find file and line: in the error, or in the compiler's frames that it went through."""
    files = {function.file for function in found.functions.values()}
    for place in (getattr(error, "loc", None), *_places(error.__traceback__)):
        if isinstance(place, ir.Loc) and place.filename in files:
            return place.filename, place.line
    first = next(iter(found.functions.values()), None)
    return ("", 0) if first is None else (first.file, first.node.lineno)


def _places(trace: TracebackType | None) -> list[Any]:
    """Return the places that the compiler worked at, the innermost first."""
    places: list[Any] = []
    while trace is not None:
        local = trace.tb_frame.f_locals
        owner = local.get("self")
        places += [local.get("loc"), getattr(owner, "loc", None)]
        trace = trace.tb_next
    return [place for place in reversed(places) if place is not None]
