"""Rewriting calls: of methods, functions, built-ins, messages, outputs, counters and the log.

See `chronicle.hot.frontend`. Here is decided what a handler may call at all.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import math
from types import FunctionType, ModuleType
from typing import Any, Final

from chronicle.hot import functions
from chronicle.hot.buffers import READS, TEXT_BYTES_MAX
from chronicle.hot.handler import Handler
from chronicle.hot.logs import ARGUMENTS_MAX, LEVELS, placeholders_count
from chronicle.hot.program import LogSite
from chronicle.hot.rewrite_names import (
    HANDLER,
    MISSING,
    Rewriting,
    load,
    lookup,
    plain_function,
    zero,
)
from chronicle.hot.rules import (
    ALLOWED_BUILTINS,
    MATH,
    REFUSED_BUILTINS,
    REFUSED_MODULES,
    REFUSED_SYNTAX,
)
from chronicle.hot.wire import WireTable
from chronicle.message import MessageBase

__all__ = ["Calls"]

_HELPERS: Final[dict[Any, str]] = {functions.symbol_key: "symbol_key", functions.mix64: "mix64"}
_DEFINE: Final = "define it as a method of the class"
_VIEWING: Final[dict[str, int]] = {
    **dict.fromkeys(READS, 1),
    "chars": 2,
    "padded": 2,
    "part": 2,
    "store": 2,
    "view": 2,
    "move": 3,
}
"""Methods of `Bytes` and `Buffer`, and how many arguments they take."""


class Calls(Rewriting):
    """The part of a rewriting that knows calls."""

    def _at_call(self, node: ast.Call) -> ast.expr:
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
                    return self.output_call(node, f"self.{member}", func)
                if member in self.spec.counters:
                    return self.counter_call(node, member, func.attr)
                if member == "log":
                    return self.log_call(node, func.attr)
            table = self.static(func.value)
            if isinstance(table, WireTable):
                return self.wire_call(node, table, func.attr)
        value = self.static(func)
        if value is MISSING:
            if isinstance(func, ast.Attribute) and func.attr in ("publish", "publish_bytes"):
                return self.output_call(node, ast.unparse(func.value), func)
            if isinstance(func, ast.Attribute) and func.attr in _VIEWING:
                return self.view_call(node, func)
            return self.unknown_call(node)
        return self.static_call(node, value, ast.unparse(func))

    def unknown_call(self, node: ast.Call) -> ast.expr:
        """Refuse a call of something that cannot be known."""
        func = node.func
        name = ast.unparse(func)
        if (
            isinstance(func, ast.Attribute)
            and isinstance(func.value, ast.Constant | ast.JoinedStr)
            and func.attr == "format"
        ):
            return self.refuse(node, "string formatting", "log with self.log.info('{}', value)")
        if isinstance(func, ast.Attribute):
            # What stands before the dot may be what is wrong.
            count = len(self.out.findings)
            self.expr(func.value)
            if len(self.out.findings) > count:
                return zero()
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
        own_name = getattr(value, "__name__", "")
        if module == "math" and getattr(math, own_name, None) is value:
            return self.math_call(node, own_name)
        root = module.partition(".")[0]
        if root in ("_ctypes", "_socket", "_io", "_random", "_datetime", "_struct"):
            root = root[1:]
        root = {"posix": "os", "_thread": "threading"}.get(root, root)
        # A method of a module's own instance, such as random.random.
        owner = getattr(value, "__self__", None)
        if not root and owner is not None:
            kind = owner if isinstance(owner, type) else type(owner)
            root = kind.__module__.partition(".")[0]
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
        if hasattr(value, "__wrapped__"):
            return self.decorated_call(node, name)
        if not isinstance(value, FunctionType):
            return self.refuse(
                node,
                f"a call of {name}, which is not written in Python",
                "write it as a function in Python, or pass a NativeHandler to HotThread",
            )
        return self.function_call(node, value, name)

    def decorated_call(self, node: ast.Call, name: str) -> ast.expr:
        """Refuse a call of something that a decorator has put its own function around."""
        return self.refuse(
            node,
            f"a call of {name}, which a decorator has changed",
            "call the function as it was, without its decorator",
        )

    def function_call(self, node: ast.Call, function: Any, name: str) -> ast.expr:
        """Rewrite the call of a function in Python, whose source is followed."""
        if not isinstance(function, FunctionType):
            return self.refuse(node, f"a call of {name}", "call a plain function")
        made = self.walk.function(function)
        self.calls.setdefault(made, node.lineno)
        return ast.Call(load(made), [load(HANDLER), *self.bound(node, function, name)], [])

    def bound(
        self, node: ast.Call, function: FunctionType, name: str, *, skip: int = 0
    ) -> list[ast.expr]:
        """Put the arguments of a call in the order of the parameters, with defaults."""
        code = function.__code__
        names = code.co_varnames[skip : code.co_argcount + code.co_kwonlyargcount]
        positional_max = code.co_argcount - skip
        self.check_order(node, [n for n in names if n in {k.arg for k in node.keywords}])
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

    def check_order(self, node: ast.Call, names: list[str]) -> None:
        """Refuse arguments by keyword in another order than `names`, if that order matters."""
        given = [keyword.arg for keyword in node.keywords]
        if [name for name in names if name in given] == given:
            return
        if not all(self.is_quiet(keyword.value) for keyword in node.keywords):
            self.refuse(
                node,
                "arguments whose order matters, in another order than their declaration",
                f"assign to variables first, or write them in the order {', '.join(names)}",
            )

    def positional(self, node: ast.Call, count: int) -> list[ast.expr]:
        """Return exactly `count` positional arguments."""
        if node.keywords or len(node.args) != count:
            self.refuse(
                node, f"a call of {ast.unparse(node.func)} in this form", f"pass {count} values"
            )
            return [zero() for _ in range(count)]
        return [self.expr(a) for a in node.args]

    def builtin_call(self, node: ast.Call, name: str) -> ast.expr:
        """Rewrite the call of a built-in function, or refuse it."""
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
                    node,
                    f"{name}() of an iterable",
                    f"write {name}(a, b), or a loop over the array",
                )
            made = self.expr(node.args[0])
            for argument in node.args[1:]:
                made = self.primitive(name, made, self.expr(argument))
            return made
        if name == "round" and len(node.args) == 2:
            return self.refuse(
                node, "round() to digits", "use integers with implied decimals, and // to round"
            )
        if name == "float" and len(node.args) == 1 and not node.keywords:
            special = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            if isinstance(special, str) and special.lower() in ("inf", "-inf", "nan"):
                return ast.Constant(float(special))
        if name == "len" and len(node.args) == 1 and (table := self.outputs_table(node.args[0])):
            return ast.Constant(table[1])
        (argument,) = self.positional(node, 1)
        if name in ("abs", "int", "round"):
            return self.checked(node, name, argument)
        return self.primitive("truth" if name == "bool" else name, argument)

    def math_call(self, node: ast.Call, name: str) -> ast.expr:
        """Rewrite the call of a function of `math`."""
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
        self.check_order(node, known_names)
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
                values.append(self.field_value(given[field.name], field.type))
            elif field.name in defaults:
                default = defaults[field.name]
                if isinstance(default, str):
                    default = default.encode("ascii")
                values.append(self.constant(node, default))
            else:
                return self.refuse(
                    node, f"{cls.__name__}(...) without {field.name!r}", "pass every field"
                )
        packed = ast.Tuple(values, ast.Load()) if values else zero()
        return self.checked(node, name, packed)

    def field_value(self, node: ast.expr, type_name: str) -> ast.expr:
        """Rewrite the value of a message's field: text may be written as ``str`` there."""
        literal = node.value if isinstance(node, ast.Constant) else None
        if type_name == "chars" and isinstance(literal, str) and literal.isascii():
            return self.text(node, literal.encode("ascii"))
        return self.expr(node)

    def self_call(self, node: ast.Call, func: ast.Attribute) -> ast.expr:
        """Rewrite the call of a method of ``self``."""
        name = func.attr
        if name == "stop":
            self.positional(node, 0)
            return self.primitive("stop", load(HANDLER))
        if name == "fail":
            return self.refuse(node, "self.fail(...) in an expression", "make it a statement")
        members = (*self.spec.outputs, *self.spec.tables, *self.spec.counters, "log")
        if name in members or self.spec.field(name):
            return self.refuse(node, f"a call of self.{name}", "it is a field, not a method")
        raw = lookup(self.spec.cls, name)
        if raw is MISSING:
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
        plain = plain_function(raw)
        if hasattr(plain, "__wrapped__"):
            return self.decorated_call(node, f"self.{name}")
        if not isinstance(plain, FunctionType):
            return self.refuse(node, f"a call of self.{name}", _DEFINE)
        made = self.walk.function(plain, is_method=True)
        self.calls.setdefault(made, node.lineno)
        arguments = self.bound(node, plain, f"self.{name}", skip=1)
        return ast.Call(load(made), [load(HANDLER), *arguments], [])

    def output_call(self, node: ast.Call, name: str, func: ast.Attribute) -> ast.expr:
        """Rewrite ``self.<output>.publish(message)``, and that of an output in a variable."""
        if func.attr not in ("publish", "publish_bytes"):
            return self.refuse(
                node, f"{name}.{func.attr}", f"an output has publish: {name}.publish(m)"
            )
        output = self.expr(func.value)
        count = 1 if func.attr == "publish" else 2
        return self.checked(node, func.attr, output, *self.positional(node, count))

    def view_call(self, node: ast.Call, func: ast.Attribute) -> ast.expr:
        """Rewrite a call on bytes or on a buffer, such as ``data.u16(at)``."""
        name = func.attr
        owner = self.expr(func.value)
        if name in ("chars", "padded"):
            if node.keywords or len(node.args) != 2:
                return self.refuse(node, f"a call of .{name} in this form", "pass at and length")
            length = self.constant_int(node.args[1])
            if length is None or not 1 <= length <= TEXT_BYTES_MAX:
                return self.refuse(
                    node,
                    f".{name}() with a length that is no constant from 1 to {TEXT_BYTES_MAX}",
                    f"write a number, data.{name}(at, {TEXT_BYTES_MAX}); text is one integer",
                )
            return self.checked(node, f"{name}_{length}", owner, self.expr(node.args[0]))
        prefix = "buffer" if name in ("store", "view", "move") else "bytes"
        arguments = self.positional(node, _VIEWING[name])
        return self.checked(node, f"{prefix}_{name}", owner, *arguments)

    def constant_int(self, node: ast.expr) -> int | None:
        """Return the integer that an expression is, if that is known."""
        value = node.value if isinstance(node, ast.Constant) else self.static(node)
        if value is MISSING and isinstance(node, ast.Attribute) and self.is_self(node.value):
            value = getattr(self.spec.cls, node.attr, MISSING)
        return value if type(value) is int else None

    def wire_call(self, node: ast.Call, table: WireTable, method: str) -> ast.expr:
        """Rewrite ``TABLE.publish(output, data, at, length)``."""
        if method != "publish":
            return self.refuse(node, f"{method}() of a wire table", "call publish")
        name = f"wire_{table.digest}"
        self.out.wires[name] = table
        return self.checked(node, name, *self.positional(node, 4))

    def counter_call(self, node: ast.Call, counter: str, method: str) -> ast.expr:
        """Rewrite ``self.<counter>.add(amount)``."""
        if method != "add" or len(node.args) > 1 or node.keywords:
            return self.refuse(
                node, f"self.{counter}.{method}", f"a counter has add: self.{counter}.add(1)"
            )
        amount = self.expr(node.args[0]) if node.args else ast.Constant(1)
        number = ast.Constant(self.spec.counters.index(counter))
        return self.checked(node, "count", number, amount)

    def log_call(self, node: ast.Call, level: str) -> ast.expr:
        """Rewrite ``self.log.<level>(format, ...)``: the format stays here."""
        if level not in LEVELS:
            return self.refuse(node, f"self.log.{level}", f"the log has {', '.join(LEVELS)}")
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
        packed = ast.Tuple(values, ast.Load()) if values else zero()
        return self.primitive("log", load(HANDLER), ast.Constant(number), packed)

    def fail_call(self, node: ast.Call) -> list[ast.stmt]:
        """Rewrite ``self.fail('why')``."""
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
        return [ast.Expr(noted), ast.Raise(load("RuntimeError"))]
