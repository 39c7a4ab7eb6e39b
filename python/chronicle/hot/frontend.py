"""The front end: from the methods of a handler to functions that the compiler can take.

One walk over the syntax trees does two things. It is the *source net* of the audit: what a handler
may not say is found here, all of it at once, with its line. And it rewrites what a handler says of
its own world (state, messages, outputs, the log, checked arithmetic) into calls of the primitives
of `chronicle.hot.lower`, which carry the number of the line they came from, so that a failure at
run time knows its place.

Names are resolved here, not by the compiler: a name is a local variable, a constant (put in by its
value, as it is when the handler is compiled), a function whose source is followed in turn, or a
finding. So all that a handler reaches is known, and is what the cache's key is made of.

Every rewritten function takes the handler first, since a primitive that fails writes into the
handler's context.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import enum
import math
import sys
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple

from chronicle.hot import functions
from chronicle.hot.flow import unassigned
from chronicle.hot.handler import Handler
from chronicle.hot.info import I64_MAX, I64_MIN
from chronicle.hot.logs import ARGUMENTS_MAX, LEVELS, LogSite, placeholders_count
from chronicle.hot.rules import (
    ALLOWED_BUILTINS,
    MATH,
    REFUSED_BUILTINS,
    REFUSED_MODULES,
    REFUSED_SYNTAX,
    Finding,
)
from chronicle.hot.source import function_source, where
from chronicle.hot.spec import HandlerSpec
from chronicle.message import MessageBase

__all__ = ["HANDLER", "PREFIX", "Translated", "Translation", "translate"]

PREFIX: Final = "_chr_"
"""Of all names that the front end makes up."""

HANDLER: Final = PREFIX + "handler"
"""The first parameter of every rewritten function."""

_BINARY: Final[dict[type[ast.operator], str]] = {
    ast.Div: "truediv",
    ast.FloorDiv: "floordiv",
    ast.Mod: "mod",
    ast.Pow: "pow",
    ast.LShift: "lshift",
    ast.RShift: "rshift",
}
_COMPARE: Final[dict[type[ast.cmpop], str]] = {
    ast.Eq: "eq",
    ast.NotEq: "ne",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
}
_HELPERS: Final = {functions.symbol_key: "symbol_key", functions.mix64: "mix64"}
_MISSING: Final = object()


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


def translate(spec: HandlerSpec) -> Translation:
    """Rewrite all methods of a handler, and all functions that they reach.

    Raises
    ------
    CompileError
        If a source cannot be found.
    """
    found = Translation({}, {}, [("", 0)], [], [], set(), {}, [False], [])
    walk = _Walk(spec, found)
    for name in [*(entry.method for entry in spec.entries), *spec.hooks.values()]:
        walk.method(name)
    walk.drain()
    _refuse_recursion(found)
    found.findings.sort(key=lambda finding: (finding.file, finding.line))
    return found


class _Walk:
    """What the functions of one handler share while they are rewritten."""

    def __init__(self, spec: HandlerSpec, out: Translation) -> None:
        self.spec = spec
        self.out = out
        self._names: dict[tuple[FunctionType, bool], str] = {}
        self._queue: list[tuple[str, FunctionType, bool]] = []
        self._site_numbers: dict[tuple[str, int], int] = {}

    def method(self, name: str) -> str:
        """Return the name of the rewritten method."""
        function = _plain_function(getattr(self.spec.cls, name))
        made = self.function(function, is_method=True)
        self.out.methods[name] = made
        return made

    def function(self, function: FunctionType, *, is_method: bool = False) -> str:
        """Return the name of a rewritten function; its source is looked at later."""
        key = (function, is_method)
        if key not in self._names:
            name = f"{PREFIX}f{len(self._names)}_{function.__name__}"
            self._names[key] = name
            self._queue.append((name, function, is_method))
        return self._names[key]

    def drain(self) -> None:
        """Rewrite until nothing new is reached."""
        while self._queue:
            name, function, is_method = self._queue.pop(0)
            node = function_source(function)
            rewriter = _Rewriter(self, function, node, is_method=is_method)
            self.out.functions[name] = rewriter.rewrite(name)

    def site(self, file: str, line: int) -> int:
        """Return the number of a line."""
        known = self._site_numbers.get((file, line))
        if known is None:
            known = self._site_numbers[file, line] = len(self.out.sites)
            self.out.sites.append((file, line))
        return known


def _plain_function(value: Any) -> Any:
    while hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    return value


def _refuse_recursion(found: Translation) -> None:
    """Find each cycle of calls once, by a walk in depth that keeps its path."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        for callee, line in found.functions[name].calls.items():
            if callee in path:
                cycle = [*path[path.index(callee) :], callee]
                labels = " -> ".join(found.functions[each].label for each in cycle)
                found.findings.append(
                    Finding(
                        f"recursion: {labels}",
                        found.functions[name].file,
                        line,
                        "write a loop; a hot thread's stack has a fixed size",
                    )
                )
            elif callee not in done:
                visit(callee, [*path, callee])
        done.add(name)

    for name in found.functions:
        if name not in done:
            visit(name, [name])


class _Rewriter:
    """Rewrites one function."""

    def __init__(
        self, walk: _Walk, function: FunctionType, node: ast.FunctionDef, *, is_method: bool
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
        self._closure = {
            name: cell
            for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
        }

    # --- Findings and the building of nodes ---

    def refuse(self, node: ast.AST, construct: str, remedy: str) -> ast.expr:
        """Note a finding; return something that stands for the refused expression."""
        line = getattr(node, "lineno", self.node.lineno)
        finding = Finding(construct, self.file, line, remedy)
        if finding not in self.out.findings:
            self.out.findings.append(finding)
        return ast.copy_location(ast.Constant(0), node) if hasattr(node, "lineno") else _zero()

    def site(self, node: ast.AST) -> ast.expr:
        return ast.Constant(self.walk.site(self.file, getattr(node, "lineno", self.node.lineno)))

    def primitive(self, name: str, *arguments: ast.expr) -> ast.expr:
        """Return a call of a primitive that cannot fail."""
        self.out.primitives.add(name)
        return ast.Call(_load(PREFIX + name), list(arguments), [])

    def checked(self, node: ast.AST, name: str, *arguments: ast.expr) -> ast.expr:
        """Return a call of a primitive that may fail: it gets the handler and the site."""
        return self.primitive(name, _load(HANDLER), *arguments, self.site(node))

    def temporary(self) -> str:
        self._temporaries += 1
        return f"{PREFIX}t{self._temporaries}"

    # --- The function ---

    def rewrite(self, name: str) -> Translated:
        """Return the rewritten function."""
        node = self.node
        label = self.function.__qualname__
        args = node.args
        if args.vararg or args.kwarg:
            self.refuse(node, "star-arguments (*args or **kwargs)", "name every parameter")
        for each in self.locals:
            if each.startswith(PREFIX):
                self.refuse(node, f"the name {each!r}", "rename it: it is the compiler's")
        body: list[ast.stmt] = []
        if self.self_name is not None:
            body.append(_assign(self.self_name, _load(HANDLER)))
        parameters = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
        if self.is_method:
            parameters = parameters[1:]
        body += self.block(node.body)
        for missing, line in unassigned(node):
            self.refuse(
                _at(line),
                f"variable {missing!r} may have no value here",
                f"give {missing!r} a value before the `if` or the loop",
            )
        made = ast.FunctionDef(
            name=name,
            args=ast.arguments(
                posonlyargs=[],
                args=[ast.arg(HANDLER), *(ast.arg(each) for each in parameters)],
                kwonlyargs=[],
                kw_defaults=[],
                defaults=[],
            ),
            body=body or [ast.Pass()],
            decorator_list=[],
        )
        if sys.version_info >= (3, 12):
            made.type_params = []
        ast.copy_location(made, node)
        ast.fix_missing_locations(made)
        return Translated(name, label, self.file, made, self.calls)

    def block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        out: list[ast.stmt] = []
        for statement in statements:
            made = self.statement(statement)
            for each in made:
                _locate(each, statement)
            out += made
        return out or [ast.Pass()]

    # --- Statements ---

    def statement(self, node: ast.stmt) -> list[ast.stmt]:
        refused = REFUSED_SYNTAX.get(type(node))
        if refused is not None:
            self.refuse(node, *refused)
            return []
        method = getattr(self, "on_" + type(node).__name__.lower(), None)
        if method is None:
            self.refuse(node, type(node).__name__.lower(), "write it with if, while and for")
            return []
        made: list[ast.stmt] = method(node)
        return made

    def on_pass(self, node: ast.Pass) -> list[ast.stmt]:
        return [ast.Pass()]

    def on_break(self, node: ast.Break) -> list[ast.stmt]:
        return [ast.Break()]

    def on_continue(self, node: ast.Continue) -> list[ast.stmt]:
        return [ast.Continue()]

    def on_return(self, node: ast.Return) -> list[ast.stmt]:
        value = node.value
        if value is None or (isinstance(value, ast.Constant) and value.value is None):
            return [ast.Return(None)]
        return [ast.Return(self.expr(value))]

    def on_expr(self, node: ast.Expr) -> list[ast.stmt]:
        value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return []  # A docstring.
        if isinstance(value, ast.Constant) and value.value is Ellipsis:
            return []
        if isinstance(value, ast.Call) and self.is_self(value.func, "fail"):
            return self.fail_call(value)
        return [ast.Expr(self.expr(value))]

    def on_assign(self, node: ast.Assign) -> list[ast.stmt]:
        if len(node.targets) == 1:
            return self.store(node.targets[0], self.expr(node.value))
        name = self.temporary()
        out: list[ast.stmt] = [_assign(name, self.expr(node.value))]
        for target in node.targets:
            out += self.store(target, _load(name))
        return out

    def on_annassign(self, node: ast.AnnAssign) -> list[ast.stmt]:
        if node.value is None:
            return []
        return self.store(node.target, self.expr(node.value))

    def on_augassign(self, node: ast.AugAssign) -> list[ast.stmt]:
        target = node.target
        if isinstance(target, ast.Name):
            if target.id not in self.locals:
                self.expr(ast.copy_location(_load(target.id), target))
                return []
            value = self.binary(node, node.op, _load(target.id), self.expr(node.value))
            return self.store(target, value)
        if isinstance(target, ast.Attribute):
            owner, out = self.kept(target.value)
            old = self.attribute(target, owner)
            value = self.binary(node, node.op, old, self.expr(node.value))
            return [*out, *self.store_attribute(target, owner, value)]
        if isinstance(target, ast.Subscript):
            owner, out = self.kept(target.value)
            index, more = self.kept(target.slice)
            old = self.checked(target, "item", owner, index)
            value = self.binary(node, node.op, old, self.expr(node.value))
            stored = self.checked(target, "set_item", owner, index, value)
            return [*out, *more, ast.Expr(stored)]
        self.refuse(node, "this assignment", "assign to a variable, a field or an item")
        return []

    def kept(self, node: ast.expr) -> tuple[ast.expr, list[ast.stmt]]:
        """Evaluate an expression once: return what to use, and what to do before."""
        if isinstance(node, ast.Name | ast.Constant):
            return self.expr(node), []
        name = self.temporary()
        return _load(name), [_assign(name, self.expr(node))]

    def store(self, target: ast.expr, value: ast.expr) -> list[ast.stmt]:
        """Return the statements that store a value."""
        if isinstance(target, ast.Name):
            if target.id == self.self_name:
                self.refuse(target, f"assignment to {target.id!r}", "use another name")
                return []
            if target.id not in self.locals:
                self.refuse(
                    target,
                    f"assignment to the global {target.id!r}",
                    "make it a field of the handler's state",
                )
                return []
            return [ast.Assign([ast.Name(target.id, ast.Store())], value)]
        if isinstance(target, ast.Attribute):
            return self.store_attribute(target, self.expr(target.value), value)
        if isinstance(target, ast.Subscript):
            owner, index = self.expr(target.value), self.expr(target.slice)
            return [ast.Expr(self.checked(target, "set_item", owner, index, value))]
        if isinstance(target, ast.Tuple):
            return self.store_tuple(target, value)
        refused = REFUSED_SYNTAX.get(type(target))
        self.refuse(target, *(refused or ("this assignment", "assign to a variable or a field")))
        return []

    def store_tuple(self, target: ast.Tuple, value: ast.expr) -> list[ast.stmt]:
        names = [self.temporary() for _ in target.elts]
        unpacked = ast.Tuple([ast.Name(name, ast.Store()) for name in names], ast.Store())
        out: list[ast.stmt] = [ast.Assign([unpacked], value)]
        for name, element in zip(names, target.elts, strict=True):
            out += self.store(element, _load(name))
        return out

    def store_attribute(
        self, target: ast.Attribute, owner: ast.expr, value: ast.expr
    ) -> list[ast.stmt]:
        if isinstance(target.value, ast.Name) and target.value.id == self.self_name:
            field = self.spec.field(target.attr)
            if field is None:
                self.refuse_store(target)
                return []
            if field.kind == "table":
                self.refuse(
                    target,
                    f"assignment to the whole table {target.attr!r}",
                    f"assign its rows one by one: self.{target.attr}[i] = ...",
                )
                return []
        return [ast.Expr(self.checked(target, "set_" + target.attr, owner, value))]

    def refuse_store(self, target: ast.Attribute) -> None:
        name = target.attr
        known = [field.name for field in self.spec.state]
        if name in (*self.spec.outputs, *self.spec.counters) or hasattr(Handler, name):
            self.refuse(
                target, f"assignment to self.{name}", "outputs, counters and the log stay as they are"
            )
            return
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean self.{close[0]}? Else " if close else ""
        self.refuse(
            target,
            f"assignment to self.{name}, which the class does not declare",
            f"{hint}declare it: `{name}: f64` in class {self.spec.name}",
        )

    def on_if(self, node: ast.If) -> list[ast.stmt]:
        test = self.test(node.test)
        body = self.block(node.body)
        orelse = self.block(node.orelse) if node.orelse else []
        return [ast.If(test, body, orelse)]

    def on_while(self, node: ast.While) -> list[ast.stmt]:
        test = self.test(node.test)
        body = self.block(node.body)
        orelse = self.block(node.orelse) if node.orelse else []
        return [ast.While(test, body, orelse)]

    def on_for(self, node: ast.For) -> list[ast.stmt]:
        orelse = self.block(node.orelse) if node.orelse else []
        call = node.iter
        if isinstance(call, ast.Call) and self.builtin(call.func) == "range":
            if call.keywords or not 1 <= len(call.args) <= 3:
                self.refuse(call, "range with these arguments", "write range(start, stop, step)")
                return []
            bounds: list[ast.expr] = [self.plain_int(a) for a in call.args]
            if len(bounds) == 3:
                bounds[2] = self.checked(call, "step", bounds[2])
            counter, head = self.loop_target(node.target)
            looped = ast.Call(_load("range"), bounds, [])
            return [ast.For(counter, looped, [*head, *self.block(node.body)], orelse)]
        if isinstance(call, ast.Call) and self.builtin(call.func) == "enumerate":
            return self.enumerated(node, call, orelse)
        return self.each(node, node.target, call, None, orelse)

    def plain_int(self, node: ast.expr) -> ast.expr:
        return self.primitive("index", self.expr(node))

    def loop_target(self, target: ast.expr) -> tuple[ast.expr, list[ast.stmt]]:
        if isinstance(target, ast.Name):
            return ast.Name(target.id, ast.Store()), []
        name = self.temporary()
        return ast.Name(name, ast.Store()), self.store(target, _load(name))

    def enumerated(
        self, node: ast.For, call: ast.Call, orelse: list[ast.stmt]
    ) -> list[ast.stmt]:
        target = node.target
        if len(call.args) != 1 or call.keywords or not isinstance(target, ast.Tuple):
            self.refuse(call, "enumerate in this form", "write for i, x in enumerate(self.array)")
            return []
        if len(target.elts) != 2:
            self.refuse(target, "enumerate in this form", "write for i, x in enumerate(...)")
            return []
        return self.each(node, target.elts[1], call.args[0], target.elts[0], orelse)

    def each(
        self,
        node: ast.For,
        target: ast.expr,
        iterable: ast.expr,
        counter: ast.expr | None,
        orelse: list[ast.stmt],
    ) -> list[ast.stmt]:
        """Rewrite a loop over the elements of something into one over its indices."""
        owner, index = self.temporary(), self.temporary()
        out: list[ast.stmt] = [_assign(owner, self.expr(iterable))]
        element = self.checked(iterable, "item", _load(owner), _load(index))
        head = [] if counter is None else self.store(counter, _load(index))
        head += self.store(target, element)
        count = self.primitive("len", _load(owner))
        looped = ast.Call(_load("range"), [count], [])
        body = [*head, *self.block(node.body)]
        out.append(ast.For(ast.Name(index, ast.Store()), looped, body, orelse))
        return out

    # --- Expressions ---

    def expr(self, node: ast.expr) -> ast.expr:
        refused = REFUSED_SYNTAX.get(type(node))
        if refused is not None:
            return self.refuse(node, *refused)
        method = getattr(self, "at_" + type(node).__name__.lower(), None)
        if method is None:
            return self.refuse(node, type(node).__name__.lower(), "write it with plain operators")
        made: ast.expr = method(node)
        return _locate(made, node)

    def test(self, node: ast.expr) -> ast.expr:
        """Rewrite a condition: something of type bool comes out."""
        if isinstance(node, ast.BoolOp):
            made: ast.expr = ast.BoolOp(node.op, [self.test(value) for value in node.values])
            return _locate(made, node)
        if isinstance(node, ast.Compare):
            return self.expr(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self.expr(node)
        return _locate(self.primitive("truth", self.expr(node)), node)

    def at_constant(self, node: ast.Constant) -> ast.expr:
        return self.constant(node, node.value)

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
        if value.endswith(b"\0"):
            return self.refuse(
                node, f"the text {value!r}", "leave out the NULs at its end: padding is no text"
            )
        return self.primitive(f"text_{value.hex()}")

    def at_name(self, node: ast.Name) -> ast.expr:
        if node.id in self.locals:
            return _load(node.id)
        return self.global_value(node, self.resolve(node.id), node.id)

    def resolve(self, name: str) -> Any:
        """Look a name up as Python would, besides local variables."""
        if name in self._closure:
            try:
                return self._closure[name].cell_contents
            except ValueError:
                return _MISSING
        if name in self.function.__globals__:
            return self.function.__globals__[name]
        return getattr(builtins, name, _MISSING)

    def static(self, node: ast.expr) -> Any:
        """Return the object that a dotted name means, if it can be known; else `_MISSING`."""
        if isinstance(node, ast.Name):
            return _MISSING if node.id in self.locals else self.resolve(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.static(node.value)
            if isinstance(owner, ModuleType | type):
                return getattr(owner, node.attr, _MISSING)
        return _MISSING

    def builtin(self, node: ast.expr) -> str | None:
        """Return the name of a built-in function, if that is what `node` means."""
        value = self.static(node)
        name = getattr(value, "__name__", None)
        return name if name and getattr(builtins, name, None) is value else None

    def global_value(self, node: ast.expr, value: Any, name: str) -> ast.expr:
        """Put in what a name of the module or of a class means."""
        if value is _MISSING:
            return self.refuse(
                node, f"the unknown name {name!r}", "define it before the handler is compiled"
            )
        if isinstance(value, enum.Enum):
            value = value.value
        if getattr(value, "shape", None) == () and hasattr(value, "item"):
            value = value.item()  # A NumPy scalar.
        if isinstance(value, bool | int | float | bytes | complex) or value is None:
            return self.constant(node, value)
        if isinstance(value, tuple) and _is_constant(value):
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
            return self.refuse(
                node, f"{name!r} as a value", "call it, or name a constant of it"
            )
        return self.refuse(
            node,
            f"the global {name!r}, a Python object of type {type(value).__name__}",
            "make what you need of it a field of the state, or a constant number",
        )

    def is_self(self, node: ast.expr, attribute: str | None = None) -> bool:
        """Tell whether `node` is ``self`` or ``self.<attribute>``."""
        if attribute is not None:
            return (
                isinstance(node, ast.Attribute)
                and node.attr == attribute
                and self.is_self(node.value)
            )
        return isinstance(node, ast.Name) and node.id == self.self_name is not None

    def at_attribute(self, node: ast.Attribute) -> ast.expr:
        value = self.static(node)
        if value is not _MISSING:
            return self.global_value(node, value, ast.unparse(node))
        if self.static(node.value) is not _MISSING:
            return self.refuse(
                node, f"the unknown name {ast.unparse(node)!r}", "check the module and the name"
            )
        if self.is_self(node.value):
            return self.self_attribute(node)
        inner = node.value
        if isinstance(inner, ast.Attribute) and self.is_self(inner.value):
            if inner.attr in self.spec.counters and node.attr == "value":
                number = ast.Constant(self.spec.counters.index(inner.attr))
                return self.primitive("counted", _load(HANDLER), number)
        return self.attribute(node, self.expr(inner))

    def attribute(self, node: ast.Attribute, owner: ast.expr) -> ast.expr:
        return self.checked(node, "get_" + node.attr, owner)

    def self_attribute(self, node: ast.Attribute) -> ast.expr:
        name = node.attr
        if self.spec.field(name) is not None:
            return self.attribute(node, _load(HANDLER))
        if name == "now_ns":
            self.out.uses_clock[0] = True
            return self.primitive("now_ns", _load(HANDLER))
        if name in self.spec.outputs:
            return self.refuse(
                node, f"output self.{name} as a value", f"call self.{name}.publish(message)"
            )
        if name in self.spec.counters:
            return self.refuse(
                node,
                f"counter self.{name} as a value",
                f"call self.{name}.add(n), or read self.{name}.value",
            )
        if name in ("__dict__", "__class__", "state", "log") or hasattr(Handler, name):
            return self.refuse(node, f"self.{name} as a value", "name a field, or call a method")
        value = getattr(self.spec.cls, name, _MISSING)
        if value is _MISSING:
            known = [f.name for f in self.spec.state] + [*self.spec.outputs, *self.spec.counters]
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean self.{close[0]}? Else " if close else ""
            return self.refuse(
                node,
                f"self.{name}, which the class does not declare",
                f"{hint}declare it: `{name}: f64` in class {self.spec.name}",
            )
        if callable(value):
            return self.refuse(node, f"method self.{name} as a value", "call it")
        return self.global_value(node, value, f"self.{name}")

    def at_subscript(self, node: ast.Subscript) -> ast.expr:
        owner = self.expr(node.value)
        index = node.slice
        if isinstance(index, ast.Tuple):
            return self.refuse(
                index,
                "an index of two dimensions",
                "arrays have one dimension: index with row * columns + column",
            )
        if isinstance(index, ast.UnaryOp) and isinstance(index.op, ast.USub):
            operand = index.operand
            if isinstance(operand, ast.Constant) and isinstance(operand.value, int):
                return self.checked(node, f"item_{-operand.value}", owner)
        if isinstance(index, ast.Constant) and type(index.value) is int:
            return self.checked(node, f"item_{index.value}", owner)
        return self.checked(node, "item", owner, self.expr(index))

    def at_tuple(self, node: ast.Tuple) -> ast.expr:
        if not node.elts:
            return self.refuse(node, "an empty tuple", "write the values, (a, b)")
        return ast.Tuple([self.expr(item) for item in node.elts], ast.Load())

    def at_binop(self, node: ast.BinOp) -> ast.expr:
        if isinstance(node.op, ast.MatMult):
            return self.refuse(node, *REFUSED_SYNTAX[ast.MatMult])
        if isinstance(node.op, ast.Mod) and isinstance(node.left, ast.Constant):
            if isinstance(node.left.value, str | bytes):
                return self.refuse(
                    node, "string formatting with %", "log with self.log.info('{}', value)"
                )
        return self.binary(node, node.op, self.expr(node.left), self.expr(node.right))

    def binary(
        self, node: ast.AST, op: ast.operator, left: ast.expr, right: ast.expr
    ) -> ast.expr:
        if isinstance(op, ast.MatMult):
            return self.refuse(node, *REFUSED_SYNTAX[ast.MatMult])
        name = _BINARY.get(type(op))
        if name is not None:
            return self.checked(node, name, left, right)
        return ast.BinOp(left, op, right)

    def at_unaryop(self, node: ast.UnaryOp) -> ast.expr:
        if isinstance(node.op, ast.Not):
            return ast.UnaryOp(ast.Not(), self.test(node.operand))
        if isinstance(node.op, ast.Invert):
            return self.primitive("invert", self.expr(node.operand))
        operand = node.operand
        if isinstance(node.op, ast.USub) and isinstance(operand, ast.Constant):
            if isinstance(operand.value, int) and not isinstance(operand.value, bool):
                return self.constant(node, -operand.value)
        return ast.UnaryOp(node.op, self.expr(operand))

    def at_boolop(self, node: ast.BoolOp) -> ast.expr:
        return ast.BoolOp(node.op, [self.expr(value) for value in node.values])

    def at_ifexp(self, node: ast.IfExp) -> ast.expr:
        return ast.IfExp(self.test(node.test), self.expr(node.body), self.expr(node.orelse))

    def at_compare(self, node: ast.Compare) -> ast.expr:
        parts: list[ast.expr] = []
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, ast.Is | ast.IsNot):
                return self.refuse(node, "is", "compare numbers with == and !=")
            if isinstance(op, ast.In | ast.NotIn):
                if len(node.ops) > 1:
                    return self.refuse(node, "in, within a chain", "write two comparisons")
                return self.membership(node, op, right)
            # The middle of a chain is written twice, so it must not do anything.
            if right is not node.comparators[-1] and not _is_pure(right):
                return self.refuse(
                    right, "a call within a chain of comparisons", "assign it to a variable first"
                )
            parts.append(self.primitive(_COMPARE[type(op)], self.expr(left), self.expr(right)))
            left = right
        return parts[0] if len(parts) == 1 else ast.BoolOp(ast.And(), parts)

    def membership(self, node: ast.Compare, op: ast.cmpop, right: ast.expr) -> ast.expr:
        items: list[ast.expr] = []
        if isinstance(right, ast.Tuple):
            items = [self.expr(item) for item in right.elts]
        else:
            value = self.static(right)
            if isinstance(value, tuple) and _is_constant(value):
                items = [self.constant(right, item) for item in value]
        if not items:
            return self.refuse(
                node, "in, on something else than a tuple", "write `x in (1, 2, 3)`, or a loop"
            )
        packed = ast.Tuple(items, ast.Load())
        made = self.primitive("contains", self.expr(node.left), packed)
        return ast.UnaryOp(ast.Not(), made) if isinstance(op, ast.NotIn) else made

    # --- Calls ---

    def at_call(self, node: ast.Call) -> ast.expr:
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                return self.refuse(node, *REFUSED_SYNTAX[ast.Starred])
        if any(keyword.arg is None for keyword in node.keywords):
            return self.refuse(node, *REFUSED_SYNTAX[ast.Starred])
        func = node.func
        if isinstance(func, ast.Attribute):
            if self.is_self(func.value):
                return self.self_call(node, func)
            if isinstance(func.value, ast.Attribute) and self.is_self(func.value.value):
                member = func.value.attr
                if member in self.spec.outputs:
                    return self.output_call(node, member, func.attr)
                if member in self.spec.counters:
                    return self.counter_call(node, member, func.attr)
                if member == "log":
                    return self.log_call(node, func.attr)
        value = self.static(func)
        if value is _MISSING:
            return self.unknown_call(node)
        return self.static_call(node, value, ast.unparse(func))

    def unknown_call(self, node: ast.Call) -> ast.expr:
        func = node.func
        name = ast.unparse(func)
        if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Constant | ast.JoinedStr):
            if func.attr == "format":
                return self.refuse(
                    node, "string formatting", "log with self.log.info('{}', value)"
                )
        if isinstance(func, ast.Name) and func.id not in self.locals:
            return self.refuse(
                node, f"a call of the unknown name {name!r}", "define it, or import it at the top"
            )
        if isinstance(func, ast.Name):
            return self.refuse(
                node,
                f"a call of {name!r}, which is a variable",
                "name the function; choose between two with if/else",
            )
        return self.refuse(
            node,
            f"a call of {name}, which is no function that can be known",
            "call methods of self, functions of modules, publish, add and log",
        )

    def static_call(self, node: ast.Call, value: Any, name: str) -> ast.expr:
        """Rewrite the call of something that is known."""
        builtin = self.builtin(node.func)
        if builtin is not None:
            return self.builtin_call(node, builtin)
        if isinstance(value, type) and issubclass(value, MessageBase):
            return self.build(node, value)
        helper = _HELPERS.get(value) if isinstance(value, FunctionType) else None
        if helper is not None:
            return self.checked(node, helper, *self.positional(node, 1))
        module = getattr(value, "__module__", None) or ""
        if module == "math" and getattr(math, getattr(value, "__name__", ""), None) is value:
            return self.math_call(node, value.__name__)
        root = module.partition(".")[0]
        if root in ("_ctypes", "_socket", "_io", "_random", "_datetime", "_struct"):
            root = root[1:]
        root = {"posix": "os", "_thread": "threading"}.get(root, root)
        # A method of a module's own instance, such as random.random.
        owner = getattr(value, "__self__", None)
        if not root and owner is not None:
            root = type(owner).__module__.partition(".")[0]
        if isinstance(node.func, ast.Attribute):
            holder = self.static(node.func.value)
            if isinstance(holder, ModuleType) and holder.__name__ in REFUSED_MODULES:
                root = holder.__name__
        if root in REFUSED_MODULES:
            return self.refuse(node, f"a call of {name}", REFUSED_MODULES[root])
        if isinstance(value, type):
            return self.refuse(
                node, f"making a {value.__name__}", "only messages can be made in a handler"
            )
        if not isinstance(value, FunctionType):
            return self.refuse(
                node,
                f"a call of {name}, which is not written in Python",
                "write it as a function in Python, or pass a NativeHandler to HotThread",
            )
        return self.function_call(node, value, name)

    def function_call(self, node: ast.Call, function: FunctionType, name: str) -> ast.expr:
        plain = _plain_function(function)
        if not isinstance(plain, FunctionType):
            return self.refuse(node, f"a call of {name}", "call a plain function")
        made = self.walk.function(plain)
        self.calls.setdefault(made, node.lineno)
        return ast.Call(_load(made), [_load(HANDLER), *self.bound(node, plain, name)], [])

    def bound(
        self, node: ast.Call, function: FunctionType, name: str, *, skip: int = 0
    ) -> list[ast.expr]:
        """Put the arguments of a call in the order of the parameters, with defaults."""
        code = function.__code__
        names = code.co_varnames[skip : code.co_argcount + code.co_kwonlyargcount]
        positional_max = code.co_argcount - skip
        given: dict[str, ast.expr] = {}
        if len(node.args) > positional_max:
            self.refuse(node, f"too many arguments for {name}", f"it takes {positional_max}")
            return []
        given.update(zip(names, (self.expr(a) for a in node.args), strict=False))
        for keyword in node.keywords:
            if keyword.arg not in names or keyword.arg in given:
                self.refuse(
                    node,
                    f"argument {keyword.arg!r} of {name}",
                    f"its parameters are {', '.join(names) or 'none'}",
                )
                return []
            given[keyword.arg] = self.expr(keyword.value)
        defaults: dict[str, Any] = dict(function.__kwdefaults__ or {})
        if function.__defaults__:
            count = len(function.__defaults__)
            last = code.co_varnames[code.co_argcount - count : code.co_argcount]
            defaults.update(zip(last, function.__defaults__, strict=True))
        out: list[ast.expr] = []
        for each in names:
            if each in given:
                out.append(given[each])
            elif each in defaults:
                out.append(self.constant(node, defaults[each]))
            else:
                self.refuse(node, f"a call of {name} without {each!r}", "pass it")
                return []
        return out

    def positional(self, node: ast.Call, count: int) -> list[ast.expr]:
        """Return exactly `count` positional arguments."""
        if node.keywords or len(node.args) != count:
            self.refuse(
                node, f"a call of {ast.unparse(node.func)} in this form", f"pass {count} values"
            )
            return [_zero() for _ in range(count)]
        return [self.expr(a) for a in node.args]

    def builtin_call(self, node: ast.Call, name: str) -> ast.expr:
        if name not in ALLOWED_BUILTINS:
            if name in REFUSED_BUILTINS:
                return self.refuse(node, f"a call of {name}()", REFUSED_BUILTINS[name])
            value = getattr(builtins, name)
            if isinstance(value, type) and issubclass(value, BaseException):
                return self.refuse(node, f"making a {name}", "to give up, self.fail('why')")
            return self.refuse(node, f"a call of {name}()", "write it out")
        if name in ("range", "enumerate"):
            return self.refuse(node, f"{name}() outside of a `for`", "write it in a `for` loop")
        if name in ("min", "max"):
            if len(node.args) < 2 or node.keywords:
                return self.refuse(
                    node, f"{name}() of an iterable", f"write {name}(a, b), or a loop over the array"
                )
            made = self.expr(node.args[0])
            for argument in node.args[1:]:
                made = self.primitive(name, made, self.expr(argument))
            return made
        if name == "round" and len(node.args) == 2:
            return self.refuse(
                node, "round() to digits", "use integers with implied decimals, and // to round"
            )
        (argument,) = self.positional(node, 1)
        if name in ("int", "round"):
            return self.checked(node, name, argument)
        return self.primitive("truth" if name == "bool" else name, argument)

    def math_call(self, node: ast.Call, name: str) -> ast.expr:
        if name not in MATH:
            return self.refuse(
                node,
                f"a call of math.{name}",
                "use one of " + ", ".join(sorted(MATH)),
            )
        count = 2 if name in ("atan2", "copysign", "fmod", "pow") else 1
        return self.checked(node, f"math_{name}", *self.positional(node, count))

    def build(self, node: ast.Call, cls: type[MessageBase]) -> ast.expr:
        """Rewrite the construction of a message."""
        name = f"build_{cls.type_id}_{cls.__name__}"
        known = self.out.messages.get(name)
        if known is not None and known.schema != cls.schema:
            name += f"_{len(self.out.messages)}"
        self.out.messages[name] = cls
        if node.args:
            return self.refuse(
                node, f"{cls.__name__}(...) with positional arguments", "name the fields"
            )
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        known_names = [field.name for field in cls.FIELDS]
        for each in given:
            if each not in known_names:
                close = difflib.get_close_matches(str(each), known_names, 1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                return self.refuse(
                    node,
                    f"{cls.__name__} has no field {each!r}",
                    f"{hint}its fields are {', '.join(known_names)}",
                )
        values: list[ast.expr] = []
        defaults = cls._defaults
        for field in cls.FIELDS:
            if field.name in given:
                value = given[field.name]
                if field.type == "chars" and isinstance(value, ast.Constant):
                    if isinstance(value.value, str) and value.value.isascii():
                        values.append(self.text(value, value.value.encode("ascii")))
                        continue
                values.append(self.expr(value))
            elif field.name in defaults:
                default = defaults[field.name]
                if isinstance(default, str):
                    default = default.encode("ascii")
                values.append(self.constant(node, default))
            else:
                return self.refuse(
                    node, f"{cls.__name__}(...) without {field.name!r}", "pass every field"
                )
        packed = ast.Tuple(values, ast.Load()) if values else _zero()
        return self.checked(node, name, packed)

    def self_call(self, node: ast.Call, func: ast.Attribute) -> ast.expr:
        name = func.attr
        if name == "stop":
            self.positional(node, 0)
            return self.primitive("stop", _load(HANDLER))
        if name == "fail":
            return self.refuse(node, "self.fail(...) in an expression", "make it a statement")
        if name in (*self.spec.outputs, *self.spec.counters, "log") or self.spec.field(name):
            return self.refuse(node, f"a call of self.{name}", "it is a field, not a method")
        raw = _lookup(self.spec.cls, name)
        if raw is _MISSING:
            known = [n for n in dir(self.spec.cls) if callable(getattr(self.spec.cls, n, None))]
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean self.{close[0]}?" if close else ""
            return self.refuse(node, f"self.{name}(), which the class does not have{hint}", _DEFINE)
        if hasattr(Handler, name) or isinstance(raw, classmethod | property):
            return self.refuse(
                node, f"a call of self.{name}", "it is for the uncompiled object; write a method"
            )
        if isinstance(raw, staticmethod):
            return self.function_call(node, raw.__func__, f"self.{name}")
        plain = _plain_function(raw)
        if not isinstance(plain, FunctionType):
            return self.refuse(node, f"a call of self.{name}", _DEFINE)
        made = self.walk.function(plain, is_method=True)
        self.calls.setdefault(made, node.lineno)
        arguments = self.bound(node, plain, f"self.{name}", skip=1)
        return ast.Call(_load(made), [_load(HANDLER), *arguments], [])

    def output_call(self, node: ast.Call, output: str, method: str) -> ast.expr:
        if method != "publish":
            return self.refuse(
                node, f"self.{output}.{method}", f"an output has publish: self.{output}.publish(m)"
            )
        (message,) = self.positional(node, 1)
        number = ast.Constant(self.spec.outputs.index(output))
        return self.checked(node, "publish", number, message)

    def counter_call(self, node: ast.Call, counter: str, method: str) -> ast.expr:
        if method != "add" or len(node.args) > 1 or node.keywords:
            return self.refuse(
                node, f"self.{counter}.{method}", f"a counter has add: self.{counter}.add(1)"
            )
        amount = self.expr(node.args[0]) if node.args else ast.Constant(1)
        number = ast.Constant(self.spec.counters.index(counter))
        return self.checked(node, "count", number, amount)

    def log_call(self, node: ast.Call, level: str) -> ast.expr:
        if level not in LEVELS:
            return self.refuse(
                node, f"self.log.{level}", f"the log has {', '.join(LEVELS)}"
            )
        template = node.args[0] if node.args else None
        if not isinstance(template, ast.Constant) or not isinstance(template.value, str):
            return self.refuse(
                node,
                "a log format that is not a literal",
                "write self.log.info('price {}', price): the text is kept at compile time",
            )
        arguments = node.args[1:]
        try:
            count = placeholders_count(template.value)
        except ValueError as error:
            return self.refuse(node, "this log format", str(error))
        if len(arguments) > ARGUMENTS_MAX:
            return self.refuse(
                node,
                f"a log call with {len(arguments)} arguments",
                f"a log record holds {ARGUMENTS_MAX}; write two calls",
            )
        if count != len(arguments) or node.keywords:
            return self.refuse(
                node,
                f"a log call with {len(arguments)} arguments for {count} placeholders",
                "write one {} for each argument",
            )
        number = len(self.out.log_sites)
        site = LogSite(LEVELS[level], template.value, self.file, node.lineno)
        self.out.log_sites.append(site)
        values = [self.expr(argument) for argument in arguments]
        packed = ast.Tuple(values, ast.Load()) if values else _zero()
        return self.primitive("log", _load(HANDLER), ast.Constant(number), packed)

    def fail_call(self, node: ast.Call) -> list[ast.stmt]:
        text = node.args[0] if len(node.args) == 1 and not node.keywords else None
        if not isinstance(text, ast.Constant) or not isinstance(text.value, str):
            self.refuse(
                node, "self.fail with something else than one literal text", "self.fail('why')"
            )
            return []
        number = len(self.out.failures)
        self.out.failures.append(text.value)
        noted = self.checked(node, f"fail_{number}")
        # It does not come back; the compiler knows that of `raise` alone.
        return [ast.Expr(noted), ast.Raise(_load("RuntimeError"))]


_DEFINE: Final = "define it as a method of the class"


def _is_constant(value: tuple[Any, ...]) -> bool:
    return bool(value) and all(isinstance(item, bool | int | float | bytes) for item in value)


def _is_pure(node: ast.expr) -> bool:
    """Tell whether an expression may be evaluated twice."""
    return not any(isinstance(each, ast.Call) for each in ast.walk(node))


def _lookup(cls: type, name: str) -> Any:
    """Find an attribute of a class as it stands there, not bound."""
    for parent in cls.__mro__:
        if name in parent.__dict__:
            return parent.__dict__[name]
    return _MISSING


def _load(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _zero() -> ast.expr:
    return ast.Constant(0)


def _assign(name: str, value: ast.expr) -> ast.stmt:
    return ast.Assign([ast.Name(name, ast.Store())], value)


def _at(line: int) -> ast.AST:
    return ast.Pass(lineno=line, col_offset=0)


def _locate(made: Any, node: ast.AST) -> Any:
    """Give what was made the place of what it stands for, wherever it has none yet."""
    stack = [made]
    while stack:
        each = stack.pop()
        if "lineno" in each._attributes and not hasattr(each, "lineno"):
            ast.copy_location(each, node)
        elif each is not made:
            continue  # It was located with all its parts.
        stack.extend(ast.iter_child_nodes(each))
    return made


