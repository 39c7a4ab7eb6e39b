"""What a handler may say, and what is said to somebody who said something else.

The tables of the source net. Each entry names the construct as its author calls it and gives a
remedy that works in a handler.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Final, NamedTuple

from chronicle.errors import AuditRefused

__all__ = [
    "ALLOWED_BUILTINS",
    "MATH",
    "REFUSED_BUILTINS",
    "REFUSED_MODULES",
    "REFUSED_SYNTAX",
    "Finding",
    "refused",
]


class Finding(NamedTuple):
    """One thing that keeps a handler from the hot thread.

    Attributes
    ----------
    construct
        What it is.
    file, line
        Where it stands.
    remedy
        What to write instead.
    net
        Which net caught it: ``source``, ``types`` or ``machine``.
    """

    construct: str
    file: str
    line: int
    remedy: str
    net: str = "source"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.construct}; {self.remedy}"


def refused(name: str, findings: Sequence[Finding]) -> AuditRefused:
    """Return the error that says all of it."""
    ordered = sorted(findings, key=lambda finding: (finding.file, finding.line))
    count = len(ordered)
    lines = "\n".join(f"  {finding}" for finding in ordered)
    return AuditRefused(
        f"handler {name!r} must not run on a hot thread, for {count} "
        f"reason{'' if count == 1 else 's'}:\n{lines}",
        findings=tuple(ordered),
    )


_FIXED: Final = "declare an array[f64, n] or table[Message, n] field in the class and index it"
_NO_TEXT: Final = "keep text in chars[n] fields; to say something, self.log.info('{} {}', a, b)"
_NO_ERRORS: Final = "test the condition with `if`; to give up, self.fail('why')"
_FLAT: Final = "write a method, or a function at module level, and call it"

REFUSED_SYNTAX: Final[dict[type[ast.AST], tuple[str, str]]] = {
    ast.List: ("building a list", _FIXED),
    ast.Dict: (
        "building a dict",
        "use a table[Message, n] field with open addressing: slot = mix64(key) % n",
    ),
    ast.Set: ("building a set", "use an array[bool_, n] field indexed by key"),
    ast.ListComp: ("a list comprehension", "write a `for` loop that fills an array field"),
    ast.SetComp: ("a set comprehension", "write a `for` loop over an array field"),
    ast.DictComp: ("a dict comprehension", "write a `for` loop over a table field"),
    ast.GeneratorExp: ("a generator expression", "write a `for` loop that adds up"),
    ast.JoinedStr: ("an f-string", _NO_TEXT),
    ast.Lambda: ("a lambda", _FLAT),
    ast.FunctionDef: ("a function inside of a function", _FLAT),
    ast.AsyncFunctionDef: ("an async function", "put it into the sidecar; handlers never wait"),
    ast.ClassDef: ("a class inside of a function", "declare the class at module level"),
    ast.Await: ("await", "put it into the sidecar; handlers never wait"),
    ast.AsyncFor: ("async for", "put it into the sidecar; handlers never wait"),
    ast.AsyncWith: ("async with", "put it into the sidecar; handlers never wait"),
    ast.Yield: ("yield", "return a number, or store into a field of the state"),
    ast.YieldFrom: ("yield from", "call a method instead"),
    ast.Raise: ("raise", _NO_ERRORS),
    ast.Try: ("try/except", _NO_ERRORS),
    ast.TryStar: ("try/except*", _NO_ERRORS),
    ast.Assert: ("assert", _NO_ERRORS),
    ast.With: ("with", "open and close things in the sidecar and hand over what is open"),
    ast.Import: ("import inside of a function", "import at the top of the module"),
    ast.ImportFrom: ("import inside of a function", "import at the top of the module"),
    ast.Global: ("the global statement", "make it a field of the handler's state"),
    ast.Nonlocal: ("the nonlocal statement", "make it a field of the handler's state"),
    ast.Delete: ("del", "set the field to 0; fixed storage has nothing to delete"),
    ast.Match: ("match", "write if/elif"),
    ast.Starred: ("star-arguments or unpacking with *", "write the arguments one by one"),
    ast.Slice: ("a slice", "write a `for` loop over the indices"),
    ast.NamedExpr: ("the walrus operator :=", "assign on a line of its own"),
    ast.MatMult: ("the operator @", "write the loop over the arrays"),
}
"""Syntax that no handler may use: what it is called, and what to do instead."""

ALLOWED_BUILTINS: Final = frozenset(
    {"abs", "bool", "enumerate", "float", "int", "len", "max", "min", "range", "round"}
)

_TIME: Final = "use self.now_ns, the handler's clock, which can be replayed"
_IO: Final = "do it in the sidecar; publish a message or log to tell it"

REFUSED_BUILTINS: Final[dict[str, str]] = {
    "print": "use self.log.info('price {}', price)",
    "open": _IO,
    "input": _IO,
    "exec": "write it out",
    "eval": "write it out",
    "compile": "write it out",
    "__import__": "import at the top of the module",
    "getattr": "name the field: self.field; choose with if/elif, or index an array field",
    "setattr": "name the field: self.field = value",
    "hasattr": "fields are declared, so they are there",
    "delattr": "set the field to 0",
    "isinstance": "types are fixed: write one method for each message class",
    "issubclass": "types are fixed: write one method for each message class",
    "type": "use info.type_id, or write one method for each message class",
    "id": "give the record a number of its own as a field",
    "hash": "use mix64(key) from chronicle.hot",
    "vars": "name the fields",
    "dir": "name the fields",
    "globals": "make it a field of the handler's state",
    "locals": "name the variables",
    "super": "call the method by another name",
    "sorted": "keep an array field in order as you insert into it",
    "reversed": "write for i in range(n - 1, -1, -1)",
    "list": _FIXED,
    "dict": "use a table[Message, n] field with open addressing: slot = mix64(key) % n",
    "set": "use an array[bool_, n] field indexed by key",
    "frozenset": "use an array[bool_, n] field indexed by key",
    "tuple": "write the tuple out, (a, b)",
    "bytearray": "declare an array[u8, n] field, or room: Annotated[Buffer, Size(n)]",
    "bytes": "declare a chars[n] field, or write a constant b'...'; of a view, data.part(at, n)",
    "memoryview": "declare an array[u8, n] field; of bytes, data.part(at, n) is a view",
    "str": _NO_TEXT,
    "repr": _NO_TEXT,
    "format": _NO_TEXT,
    "ascii": _NO_TEXT,
    "chr": "keep character codes as numbers",
    "ord": "write the code as a number, or compare with b'...'",
    "hex": _NO_TEXT,
    "bin": _NO_TEXT,
    "oct": _NO_TEXT,
    "complex": "keep the real and the imaginary part as two f64 fields",
    "object": "declare fields",
    "iter": "write for i in range(n)",
    "next": "write for i in range(n)",
    "zip": "write for i in range(n) and index both",
    "map": "write a `for` loop",
    "filter": "write a `for` loop with an `if`",
    "sum": "write a `for` loop that adds up",
    "any": "write a `for` loop with an `if`",
    "all": "write a `for` loop with an `if`",
    "divmod": "write a // b and a % b",
    "pow": "write a ** b",
    "slice": "write a `for` loop over the indices",
    "callable": "name the function",
    "property": "write a method",
    "staticmethod": "decorate a method of the class with it",
    "classmethod": "write a plain method",
    "breakpoint": "debug the handler uncompiled",
    "exit": "call self.stop()",
    "quit": "call self.stop()",
}
"""Built-in functions that no handler may call, and what to do instead."""

_RANDOM: Final = "keep the generator's state in a u64 field: self.seed = mix64(self.seed)"

REFUSED_MODULES: Final[dict[str, str]] = {
    "time": _TIME,
    "datetime": _TIME,
    "random": _RANDOM,
    "secrets": _RANDOM,
    "uuid": _RANDOM,
    "numpy": "arrays are fields of the state; use math.sqrt and its kin for one number",
    "ctypes": "pass a NativeHandler to HotThread; it is accepted, and marked unaudited",
    "cffi": "pass a NativeHandler to HotThread; it is accepted, and marked unaudited",
    "os": _IO,
    "io": _IO,
    "sys": _IO,
    "socket": _IO,
    "subprocess": _IO,
    "pathlib": _IO,
    "json": _IO,
    "struct": "read the message's fields; they are typed; of bytes, data.u32(at) and its kin",
    "logging": "use self.log.info('price {}', price)",
    "threading": "the handler owns its state alone, so it needs no lock",
    "asyncio": "put it into the sidecar; handlers never wait",
    "gc": "a handler makes no objects, so there is nothing to collect",
    "decimal": "use integers with implied decimals: Annotated[i64, Scale(4)]",
    "fractions": "use integers with implied decimals: Annotated[i64, Scale(4)]",
    "collections": _FIXED,
    "itertools": "write the loops out",
    "functools": "call the function directly",
    "operator": "write the operator",
    "statistics": "write the loop over the array field",
    "bisect": "write the loop: low, high, middle",
    "heapq": "keep an array field in order as you insert into it",
    "copy": "copy the fields one by one, or self.rows[i] = self.rows[j]",
    "re": "compare with b'...'",
}
"""Modules whose functions no handler may call, and what to do instead."""

MATH: Final = frozenset(
    {
        *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "copysign"),
        *("cos", "cosh", "degrees", "erf", "erfc", "exp", "expm1", "fabs", "floor", "fmod"),
        *("isfinite", "isinf", "isnan", "log", "log10", "log1p", "log2", "pow", "radians"),
        *("sin", "sinh", "sqrt", "tan", "tanh", "trunc"),
    }
)
"""Functions of `math` that handlers may call. The others allocate, or differ from libm's."""
