"""What the rewriting of a function is made of: names, findings, and nodes of syntax trees.

`Rewriting` is the part of the front end that the others stand on: it resolves names, puts in
constants, and notes what must not be. See `chronicle.hot.frontend`.
"""

from __future__ import annotations

import ast
import builtins
import enum
from abc import ABC, abstractmethod
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple, TypeVar

from chronicle.hot import functions
from chronicle.hot.info import I64_MAX, I64_MIN
from chronicle.hot.on import mark_of
from chronicle.hot.program import LogSite
from chronicle.hot.rules import REFUSED_BUILTINS, Finding
from chronicle.hot.source import where
from chronicle.hot.spec import HandlerSpec
from chronicle.hot.wire import WireTable
from chronicle.message import MessageBase

__all__ = ["HANDLER", "PREFIX", "Rewriting", "Translated", "Translation", "Walk"]

PREFIX: Final = "_chr_"
"""Of all names that the front end makes up."""

HANDLER: Final = PREFIX + "handler"
"""The first parameter of every rewritten function."""

_Node = TypeVar("_Node", bound=ast.AST)

QUIET: Final = (functions.symbol_key, functions.mix64)
"""Functions in Python that change nothing."""

MISSING: Final = object()
"""What a name means that means nothing."""


class Translated(NamedTuple):
    """One rewritten function.

    Attributes
    ----------
    name
        In the namespace of the compiled functions.
    label
        What its author calls it.
    file
        Where it stands.
    node
        The rewritten definition, with the lines of the original.
    calls
        Names of the functions that it calls.
    """

    name: str
    label: str
    file: str
    node: ast.FunctionDef
    calls: dict[str, int]

    def module(self) -> ast.Module:
        """Return the definition as something that `compile` takes."""
        return ast.Module([self.node], [])


class Translation(NamedTuple):
    """A handler, rewritten.

    Attributes
    ----------
    functions
        By name, in the order in which they were found.
    methods
        Function names by method.
    sites
        File and line by site number; 0 is nowhere.
    failures
        Texts of ``self.fail``, by number.
    log_sites
        The log calls, by number.
    primitives
        Names of the primitives that are used.
    messages
        Message classes that are built, by the name of their primitive.
    uses_clock
        Whether the handler reads its clock.
    findings
        What the source net caught.
    tables
        Tables of outputs that are used, by the name of their primitive: the first number, how many
        slots, what they are called.
    wires
        Tables of wire layouts that are used, by the name of their primitive.
    """

    functions: dict[str, Translated]
    methods: dict[str, str]
    sites: list[tuple[str, int]]
    failures: list[str]
    log_sites: list[LogSite]
    primitives: set[str]
    messages: dict[str, type[MessageBase]]
    uses_clock: list[bool]
    findings: list[Finding]
    tables: dict[str, tuple[int, int, str]]
    wires: dict[str, WireTable]


class Walk:
    """What the functions of one handler share while they are rewritten."""

    def __init__(self, spec: HandlerSpec, out: Translation) -> None:
        self.spec = spec
        self.out = out
        self._names: dict[tuple[FunctionType, bool], str] = {}
        self.queue: list[tuple[str, FunctionType, bool]] = []
        self._site_numbers: dict[tuple[str, int], int] = {}

    def method(self, name: str) -> str:
        """Return the name of the rewritten method."""
        function = plain_function(getattr(self.spec.cls, name))
        made = self.function(function, is_method=True)
        self.out.methods[name] = made
        return made

    def function(self, function: FunctionType, *, is_method: bool = False) -> str:
        """Return the name of a rewritten function; its source is looked at later."""
        key = (function, is_method)
        if key not in self._names:
            name = f"{PREFIX}f{len(self._names)}_{function.__name__}"
            self._names[key] = name
            self.queue.append((name, function, is_method))
        return self._names[key]

    def site(self, file: str, line: int) -> int:
        """Return the number of a line."""
        known = self._site_numbers.get((file, line))
        if known is None:
            known = self._site_numbers[file, line] = len(self.out.sites)
            self.out.sites.append((file, line))
        return known


def plain_function(value: Any) -> Any:
    """Return a method as its author wrote it: the base class wraps those that take messages.

    Other decorators are not looked through. What they do would be lost.
    """
    return getattr(value, "__wrapped__", value) if mark_of(value) is not None else value


class Rewriting(ABC):
    """One function that is rewritten; this part knows names and makes nodes."""

    def __init__(
        self, walk: Walk, function: FunctionType, node: ast.FunctionDef, *, is_method: bool
    ) -> None:
        self.walk = walk
        self.spec = walk.spec
        self.out = walk.out
        self.function = function
        self.node = node
        self.is_method = is_method
        self.file, _ = where(function)
        code = function.__code__
        self.locals = frozenset(code.co_varnames + code.co_cellvars)
        self.self_name = code.co_varnames[0] if is_method and code.co_argcount else None
        self.calls: dict[str, int] = {}
        self._temporaries = 0
        self._closure = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))

    # --- Findings and the building of nodes ---

    def refuse(self, node: ast.AST, construct: str, remedy: str) -> ast.expr:
        """Note a finding; return something that stands for the refused expression."""
        line = getattr(node, "lineno", self.node.lineno)
        finding = Finding(construct, self.file, line, remedy)
        if finding not in self.out.findings:
            self.out.findings.append(finding)
        return ast.copy_location(ast.Constant(0), node) if hasattr(node, "lineno") else zero()

    def site(self, node: ast.AST) -> ast.expr:
        """Return the number of a node's line, as a constant."""
        return ast.Constant(self.walk.site(self.file, getattr(node, "lineno", self.node.lineno)))

    def primitive(self, name: str, *arguments: ast.expr) -> ast.expr:
        """Return a call of a primitive that cannot fail."""
        self.out.primitives.add(name)
        return ast.Call(load(PREFIX + name), list(arguments), [])

    def checked(self, node: ast.AST, name: str, *arguments: ast.expr) -> ast.expr:
        """Return a call of a primitive that may fail: it gets the handler and the site."""
        return self.primitive(name, load(HANDLER), *arguments, self.site(node))

    def temporary(self) -> str:
        """Return the name of a variable that nobody has."""
        self._temporaries += 1
        return f"{PREFIX}t{self._temporaries}"

    def constant(self, node: ast.expr, value: Any) -> ast.expr:
        """Put in a constant."""
        if isinstance(value, bool | float) and type(value) in (bool, float):
            return ast.Constant(value)
        if isinstance(value, int) and not isinstance(value, bool):
            number = int(value)
            if I64_MIN <= number <= I64_MAX:
                return ast.Constant(number)
            return self.refuse(
                node,
                f"the integer {number}, which does not fit into 64 bits",
                "integers go from -2**63 to 2**63 - 1; for hashes use mix64(key)",
            )
        if isinstance(value, bytes):
            return self.text(node, value)
        if isinstance(value, tuple) and value:
            return ast.Tuple([self.constant(node, item) for item in value], ast.Load())
        if isinstance(value, str):
            return self.refuse(
                node, f"the text {value!r:.40}", "text is bytes in a handler: write b'...'"
            )
        if value is None:
            return self.refuse(
                node, "None", "use a number that means nothing, such as -1, or a bool_ field"
            )
        if isinstance(value, complex):
            return self.refuse(node, "a complex number", REFUSED_BUILTINS["complex"])
        return self.refuse(node, f"the constant {value!r:.40}", "use numbers and b'...'")

    def text(self, node: ast.AST, value: bytes) -> ast.expr:
        """Put in a text constant."""
        if value.endswith(b"\0"):
            return self.refuse(
                node, f"the text {value!r}", "leave out the NULs at its end: padding is no text"
            )
        return self.primitive(f"text_{value.hex()}")

    def resolve(self, name: str) -> Any:
        """Look a name up as Python would, besides local variables."""
        if name in self._closure:
            try:
                return self._closure[name].cell_contents
            except ValueError:
                return MISSING
        if name in self.function.__globals__:
            return self.function.__globals__[name]
        return getattr(builtins, name, MISSING)

    def static(self, node: ast.expr) -> Any:
        """Return the object that a dotted name means, if it can be known; else `MISSING`."""
        if isinstance(node, ast.Name):
            return MISSING if node.id in self.locals else self.resolve(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.static(node.value)
            if isinstance(owner, ModuleType | type):
                return getattr(owner, node.attr, MISSING)
        return MISSING

    def builtin(self, node: ast.expr) -> str | None:
        """Return the name of a built-in function, if that is what `node` means."""
        value = self.static(node)
        name = getattr(value, "__name__", None)
        return name if name and getattr(builtins, name, None) is value else None

    def global_value(self, node: ast.expr, value: Any, name: str) -> ast.expr:
        """Put in what a name of the module or of a class means."""
        if value is MISSING:
            return self.refuse(
                node, f"the unknown name {name!r}", "define it before the handler is compiled"
            )
        if isinstance(value, enum.Enum) and not isinstance(value, int | float | bytes):
            return self.refuse(
                node, f"{name!r}, which is no number", "derive the class from enum.IntEnum"
            )
        if getattr(value, "shape", None) == () and hasattr(value, "item"):
            return self.refuse(
                node,
                f"{name!r}, a NumPy number, whose arithmetic is not Python's",
                "make it an int or a float: int(x), float(x)",
            )
        if isinstance(value, bool | int | float | bytes | complex) or value is None:
            return self.constant(node, value)
        if isinstance(value, tuple) and is_constant(value):
            return self.constant(node, value)
        if isinstance(value, str):
            return self.constant(node, value)
        if isinstance(value, list | dict | set | bytearray) or hasattr(value, "__array__"):
            kind = type(value).__name__
            return self.refuse(
                node,
                f"the global {name!r}, which is a mutable {kind}",
                "make it a field of the handler's state, or a tuple of numbers",
            )
        if isinstance(value, type | FunctionType | BuiltinFunctionType | ModuleType):
            return self.refuse(node, f"{name!r} as a value", "call it, or name a constant of it")
        return self.refuse(
            node,
            f"the global {name!r}, a Python object of type {type(value).__name__}",
            "make what you need of it a field of the state, or a constant number",
        )

    def is_quiet(self, node: ast.expr) -> bool:
        """Tell whether evaluating an expression changes nothing, so that its order is no matter."""
        for each in ast.walk(node):
            if isinstance(each, ast.Call):
                value = self.static(each.func)
                known = isinstance(value, BuiltinFunctionType | type) or value in QUIET
                if value is MISSING or not known:
                    return False
        return True

    def is_self(self, node: ast.expr, attribute: str | None = None) -> bool:
        """Tell whether `node` is ``self`` or ``self.<attribute>``."""
        if attribute is not None:
            return (
                isinstance(node, ast.Attribute)
                and node.attr == attribute
                and self.is_self(node.value)
            )
        return isinstance(node, ast.Name) and node.id == self.self_name is not None

    def outputs_table(self, node: ast.expr) -> tuple[int, int] | None:
        """Return the first number and the count of a table of outputs, if that is what this is."""
        if isinstance(node, ast.Attribute) and self.is_self(node.value):
            return self.spec.tables.get(node.attr)
        return None

    def attribute(self, node: ast.Attribute, owner: ast.expr) -> ast.expr:
        """Read a field of something."""
        return self.checked(node, "get_" + node.attr, owner)

    @abstractmethod
    def expr(self, node: ast.expr) -> ast.expr:
        """Rewrite an expression. The class that knows them all has it."""


def is_constant(value: tuple[Any, ...]) -> bool:
    return bool(value) and all(isinstance(item, bool | int | float | bytes) for item in value)


def is_pure(node: ast.expr) -> bool:
    """Tell whether an expression may be evaluated twice."""
    return not any(isinstance(each, ast.Call) for each in ast.walk(node))


def lookup(cls: type, name: str) -> Any:
    """Find an attribute of a class as it stands there, not bound."""
    for parent in cls.__mro__:
        if name in parent.__dict__:
            return parent.__dict__[name]
    return MISSING


def load(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def zero() -> ast.expr:
    return ast.Constant(0)


def assign(name: str, value: ast.expr) -> ast.stmt:
    return ast.Assign([ast.Name(name, ast.Store())], value)


def place_at(line: int) -> ast.AST:
    return ast.Pass(lineno=line, col_offset=0)


def locate(made: _Node, node: ast.AST) -> _Node:
    """Give what was made the place of what it stands for, wherever it has none yet."""
    stack: list[Any] = [made]
    while stack:
        each = stack.pop()
        if "lineno" in each._attributes and not hasattr(each, "lineno"):
            ast.copy_location(each, node)
        elif each is not made:
            continue  # It was located with all its parts.
        stack.extend(ast.iter_child_nodes(each))
    return made
