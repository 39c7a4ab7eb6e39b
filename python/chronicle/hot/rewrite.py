"""Rewriting statements, and with them whole functions. See `chronicle.hot.frontend`."""

from __future__ import annotations

import ast
import difflib
import sys

from chronicle.hot.flow import unassigned
from chronicle.hot.handler import Handler
from chronicle.hot.rewrite_expressions import Expressions
from chronicle.hot.rewrite_names import (
    HANDLER,
    PREFIX,
    Translated,
    assign,
    load,
    locate,
    place_at,
)
from chronicle.hot.rules import REFUSED_SYNTAX

__all__ = ["Rewriter"]


class Rewriter(Expressions):
    """Rewrites one function."""

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
            body.append(assign(self.self_name, load(HANDLER)))
        parameters = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
        if self.is_method:
            parameters = parameters[1:]
        body += self.block(node.body)
        for missing, line in unassigned(node):
            self.refuse(
                place_at(line),
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
        """Rewrite statements."""
        out: list[ast.stmt] = []
        for statement in statements:
            made = self.statement(statement)
            for each in made:
                locate(each, statement)
            out += made
        return out or [ast.Pass()]

    # --- Statements ---

    def statement(self, node: ast.stmt) -> list[ast.stmt]:
        """Rewrite one statement; several may come out."""
        refused = REFUSED_SYNTAX.get(type(node))
        if refused is not None:
            self.refuse(node, *refused)
            return []
        method = getattr(self, "_on_" + type(node).__name__.lower(), None)
        if method is None:
            self.refuse(node, type(node).__name__.lower(), "write it with if, while and for")
            return []
        made: list[ast.stmt] = method(node)
        return made

    def _on_pass(self, _: ast.Pass) -> list[ast.stmt]:
        return [ast.Pass()]

    def _on_break(self, _: ast.Break) -> list[ast.stmt]:
        return [ast.Break()]

    def _on_continue(self, _: ast.Continue) -> list[ast.stmt]:
        return [ast.Continue()]

    def _on_return(self, node: ast.Return) -> list[ast.stmt]:
        value = node.value
        if value is None or (isinstance(value, ast.Constant) and value.value is None):
            return [ast.Return(None)]
        return [ast.Return(self.expr(value))]

    def _on_expr(self, node: ast.Expr) -> list[ast.stmt]:
        value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return []  # A docstring.
        if isinstance(value, ast.Constant) and value.value is Ellipsis:
            return []
        if isinstance(value, ast.Call) and self.is_self(value.func, "fail"):
            return self.fail_call(value)
        return [ast.Expr(self.expr(value))]

    def _on_assign(self, node: ast.Assign) -> list[ast.stmt]:
        if len(node.targets) == 1:
            return self.store(node.targets[0], self.expr(node.value))
        name = self.temporary()
        out: list[ast.stmt] = [assign(name, self.expr(node.value))]
        for target in node.targets:
            out += self.store(target, load(name))
        return out

    def _on_annassign(self, node: ast.AnnAssign) -> list[ast.stmt]:
        if node.value is None:
            return []
        return self.store(node.target, self.expr(node.value))

    def _on_augassign(self, node: ast.AugAssign) -> list[ast.stmt]:
        target = node.target
        if isinstance(target, ast.Name):
            if target.id not in self.locals:
                self.expr(ast.copy_location(load(target.id), target))
                return []
            plain = ast.copy_location(ast.BinOp(load(target.id), node.op, node.value), node)
            return self.store(target, self.expr(ast.fix_missing_locations(plain)))
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
        return load(name), [assign(name, self.expr(node))]

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
            first, kept = self.first(value)
            return [*first, *self.store_attribute(target, self.expr(target.value), kept)]
        if isinstance(target, ast.Subscript):
            # Python evaluates the value first, and so what it does comes first.
            first, kept = self.first(value)
            owner, index = self.expr(target.value), self.expr(target.slice)
            return [*first, ast.Expr(self.checked(target, "set_item", owner, index, kept))]
        if isinstance(target, ast.Tuple):
            return self.store_tuple(target, value)
        refused = REFUSED_SYNTAX.get(type(target))
        self.refuse(target, *(refused or ("this assignment", "assign to a variable or a field")))
        return []

    def first(self, value: ast.expr) -> tuple[list[ast.stmt], ast.expr]:
        """Return what evaluates a rewritten value before anything else, and what to use then."""
        if isinstance(value, ast.Name | ast.Constant):
            return [], value
        name = self.temporary()
        return [assign(name, value)], load(name)

    def store_tuple(self, target: ast.Tuple, value: ast.expr) -> list[ast.stmt]:
        """Unpack a tuple into variables, and store those."""
        names = [self.temporary() for _ in target.elts]
        unpacked = ast.Tuple([ast.Name(name, ast.Store()) for name in names], ast.Store())
        out: list[ast.stmt] = [ast.Assign([unpacked], value)]
        for name, element in zip(names, target.elts, strict=True):
            out += self.store(element, load(name))
        return out

    def store_attribute(
        self, target: ast.Attribute, owner: ast.expr, value: ast.expr
    ) -> list[ast.stmt]:
        """Store into a field of something."""
        if isinstance(target.value, ast.Name) and target.value.id == self.self_name:
            field = self.spec.field(target.attr)
            if field is None:
                self.refuse_store(target)
                return []
            if field.kind == "buffer":
                self.refuse(
                    target,
                    f"assignment to the buffer {target.attr!r}",
                    f"store bytes into it: self.{target.attr}.store(at, data)",
                )
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
        """Say why ``self.<name>`` cannot be stored into."""
        name = target.attr
        known = [field.name for field in self.spec.state]
        members = (*self.spec.outputs, *self.spec.tables, *self.spec.counters)
        if name in members or hasattr(Handler, name):
            self.refuse(
                target,
                f"assignment to self.{name}",
                "outputs, counters and the log stay as they are",
            )
            return
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean self.{close[0]}? Else " if close else ""
        self.refuse(
            target,
            f"assignment to self.{name}, which the class does not declare",
            f"{hint}declare it: `{name}: f64` in class {self.spec.name}",
        )

    def _on_if(self, node: ast.If) -> list[ast.stmt]:
        test = self.test(node.test)
        body = self.block(node.body)
        orelse = self.block(node.orelse) if node.orelse else []
        return [ast.If(test, body, orelse)]

    def _on_while(self, node: ast.While) -> list[ast.stmt]:
        test = self.test(node.test)
        body = self.block(node.body)
        orelse = self.block(node.orelse) if node.orelse else []
        return [ast.While(test, body, orelse)]

    def _on_for(self, node: ast.For) -> list[ast.stmt]:
        orelse = self.block(node.orelse) if node.orelse else []
        call = node.iter
        if isinstance(call, ast.Call) and self.builtin(call.func) == "range":
            if call.keywords or not 1 <= len(call.args) <= 3:
                self.refuse(call, "range with these arguments", "write range(start, stop, step)")
                return []
            before, bounds = self.range_bounds(call)
            counter, head = self.loop_target(node.target)
            looped = ast.Call(load("range"), bounds, [])
            loop = ast.For(counter, looped, [*head, *self.block(node.body)], orelse)
            return [*before, loop]
        if isinstance(call, ast.Call) and self.builtin(call.func) == "enumerate":
            return self.enumerated(node, call, orelse)
        return self.each(node, node.target, call, None, orelse)

    def range_bounds(self, call: ast.Call) -> tuple[list[ast.stmt], list[ast.expr]]:
        """Rewrite what is in ``range(...)``; return what to do before, and the bounds."""
        bounds = [self.plain_int(argument) for argument in call.args]
        if len(bounds) == 1 or all(isinstance(a, ast.Constant) for a in call.args):
            return [], bounds
        before: list[ast.stmt] = []
        for number, bound in enumerate(bounds):
            name = self.temporary()
            before.append(assign(name, bound))
            bounds[number] = load(name)
        # The compiler counts the turns in 64 bits.
        bounds[1] = self.checked(call, "span", bounds[0], bounds[1])
        if len(bounds) == 3:
            bounds[2] = self.checked(call, "step", bounds[2])
        return before, bounds

    def plain_int(self, node: ast.expr) -> ast.expr:
        """Rewrite something that must be an int."""
        return self.primitive("index", self.expr(node))

    def loop_target(self, target: ast.expr) -> tuple[ast.expr, list[ast.stmt]]:
        """Return what a loop counts in, and what its body begins with."""
        if isinstance(target, ast.Name):
            return ast.Name(target.id, ast.Store()), []
        name = self.temporary()
        return ast.Name(name, ast.Store()), self.store(target, load(name))

    def enumerated(self, node: ast.For, call: ast.Call, orelse: list[ast.stmt]) -> list[ast.stmt]:
        """Rewrite ``for i, x in enumerate(...)``."""
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
        out: list[ast.stmt] = [assign(owner, self.expr(iterable))]
        element = self.checked(iterable, "item", load(owner), load(index))
        head = [] if counter is None else self.store(counter, load(index))
        head += self.store(target, element)
        count = self.primitive("len", load(owner))
        looped = ast.Call(load("range"), [count], [])
        body = [*head, *self.block(node.body)]
        out.append(ast.For(ast.Name(index, ast.Store()), looped, body, orelse))
        return out
