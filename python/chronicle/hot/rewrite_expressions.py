"""Rewriting expressions: operators, comparisons, fields and items. See `chronicle.hot.frontend`."""

from __future__ import annotations

import ast
import difflib
from typing import Final

from chronicle.hot.handler import Handler
from chronicle.hot.outputs import outputs_label
from chronicle.hot.rewrite_calls import Calls
from chronicle.hot.rewrite_names import (
    HANDLER,
    MISSING,
    is_constant,
    is_pure,
    load,
    locate,
)
from chronicle.hot.rules import REFUSED_SYNTAX

__all__ = ["Expressions"]

_BINARY: Final[dict[type[ast.operator], str]] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "truediv",
    ast.FloorDiv: "floordiv",
    ast.Mod: "mod",
    ast.Pow: "pow",
    ast.LShift: "lshift",
    ast.RShift: "rshift",
}
_WRAPPING: Final = (
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.LShift,
    ast.BitAnd,
    ast.BitOr,
    ast.BitXor,
)
_COMPARE: Final[dict[type[ast.cmpop], str]] = {
    ast.Eq: "eq",
    ast.NotEq: "ne",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
}


class Expressions(Calls):
    """The part of a rewriting that knows expressions."""

    def expr(self, node: ast.expr) -> ast.expr:
        """Rewrite an expression."""
        refused = REFUSED_SYNTAX.get(type(node))
        if refused is not None:
            return self.refuse(node, *refused)
        method = getattr(self, "_at_" + type(node).__name__.lower(), None)
        if method is None:
            return self.refuse(node, type(node).__name__.lower(), "write it with plain operators")
        made: ast.expr = method(node)
        return locate(made, node)

    def test(self, node: ast.expr) -> ast.expr:
        """Rewrite a condition: something of type bool comes out."""
        if isinstance(node, ast.BoolOp):
            made: ast.expr = ast.BoolOp(node.op, [self.test(value) for value in node.values])
            return locate(made, node)
        if isinstance(node, ast.Compare):
            return self.expr(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self.expr(node)
        return locate(self.primitive("truth", self.expr(node)), node)

    def _at_constant(self, node: ast.Constant) -> ast.expr:
        return self.constant(node, node.value)

    def _at_name(self, node: ast.Name) -> ast.expr:
        if node.id in self.locals:
            return load(node.id)
        return self.global_value(node, self.resolve(node.id), node.id)

    def _at_attribute(self, node: ast.Attribute) -> ast.expr:
        value = self.static(node)
        if value is not MISSING:
            return self.global_value(node, value, ast.unparse(node))
        if self.static(node.value) is not MISSING:
            return self.refuse(
                node, f"the unknown name {ast.unparse(node)!r}", "check the module and the name"
            )
        if self.is_self(node.value):
            return self.self_attribute(node)
        inner = node.value
        if (
            node.attr == "value"
            and isinstance(inner, ast.Attribute)
            and self.is_self(inner.value)
            and inner.attr in self.spec.counters
        ):
            number = ast.Constant(self.spec.counters.index(inner.attr))
            return self.primitive("counted", load(HANDLER), number)
        if isinstance(inner, ast.Attribute) and self.is_self(inner.value):
            name = inner.attr
            if name in self.spec.outputs:
                return self.refuse(
                    node,
                    f"output self.{name}.{node.attr}",
                    f"an output has publish: self.{name}.publish(m)",
                )
        return self.attribute(node, self.expr(inner))

    def self_attribute(self, node: ast.Attribute) -> ast.expr:
        """Read ``self.<name>``."""
        name = node.attr
        if self.spec.field(name) is not None:
            return self.attribute(node, load(HANDLER))
        if name == "now_ns":
            self.out.uses_clock[0] = True
            return self.primitive("now_ns", load(HANDLER))
        if name in self.spec.outputs:
            return self.primitive(f"output_{self.spec.outputs.index(name)}")
        if name in self.spec.tables:
            return self.refuse(
                node, f"the outputs self.{name} as a value", f"name one of them: self.{name}[slot]"
            )
        if name in self.spec.counters:
            return self.refuse(
                node,
                f"counter self.{name} as a value",
                f"call self.{name}.add(n), or read self.{name}.value",
            )
        if name in ("__dict__", "__class__", "state", "log") or hasattr(Handler, name):
            return self.refuse(node, f"self.{name} as a value", "name a field, or call a method")
        value = getattr(self.spec.cls, name, MISSING)
        if value is MISSING:
            names = [*self.spec.outputs, *self.spec.tables, *self.spec.counters]
            known = [f.name for f in self.spec.state] + names
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

    def output_slot(self, node: ast.Subscript, table: str) -> ast.expr:
        """Read one of a table of outputs."""
        first, count = self.spec.tables[table]
        name = f"slot_{first}_{count}_{table}"
        self.out.tables[name] = (first, count, outputs_label(table, self.spec.name))
        return self.checked(node, name, self.expr(node.slice))

    def _at_subscript(self, node: ast.Subscript) -> ast.expr:
        if self.outputs_table(node.value) is not None:
            assert isinstance(node.value, ast.Attribute)  # ``self.<table>``.
            return self.output_slot(node, node.value.attr)
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

    def _at_tuple(self, node: ast.Tuple) -> ast.expr:
        if not node.elts:
            return self.refuse(node, "an empty tuple", "write the values, (a, b)")
        return ast.Tuple([self.expr(item) for item in node.elts], ast.Load())

    def _at_binop(self, node: ast.BinOp) -> ast.expr:
        if isinstance(node.op, ast.MatMult):
            return self.refuse(node, *REFUSED_SYNTAX[ast.MatMult])
        literal = node.left.value if isinstance(node.left, ast.Constant) else None
        if isinstance(node.op, ast.Mod) and isinstance(literal, str | bytes):
            return self.refuse(
                node, "string formatting with %", "log with self.log.info('{}', value)"
            )
        if isinstance(node.op, ast.BitAnd):
            left, right = node.left, node.right
            if self.mask(right):
                return ast.BinOp(self.masked(left), node.op, self.expr(right))
            if self.mask(left):
                return ast.BinOp(self.expr(left), node.op, self.masked(right))
        if isinstance(node.op, ast.Mod) and _is_power_of_two(node.right):
            return self.checked(node, "mod", self.masked(node.left), self.expr(node.right))
        return self.binary(node, node.op, self.expr(node.left), self.expr(node.right))

    def binary(self, node: ast.AST, op: ast.operator, left: ast.expr, right: ast.expr) -> ast.expr:
        """Rewrite an operator between two rewritten operands."""
        if isinstance(op, ast.MatMult):
            return self.refuse(node, *REFUSED_SYNTAX[ast.MatMult])
        name = _BINARY.get(type(op))
        if name is not None:
            return self.checked(node, name, left, right)
        return ast.BinOp(left, op, right)

    def masked(self, node: ast.expr) -> ast.expr:
        """Rewrite an operand of which a mask keeps only low bits: it may wrap around.

        The low bits of a sum, a product or a shift to the left depend on the low bits of their
        operands alone, so here 64 bits give what Python's longer integers would.
        """
        if isinstance(node, ast.BinOp) and isinstance(node.op, _WRAPPING):
            left, right = self.masked(node.left), self.masked(node.right)
            if isinstance(node.op, ast.LShift):
                right = self.expr(node.right)
            if isinstance(node.op, ast.BitAnd | ast.BitOr | ast.BitXor):
                return locate(ast.BinOp(left, node.op, right), node)
            return locate(self.checked(node, f"wrap_{_BINARY[type(node.op)]}", left, right), node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            return locate(self.primitive("invert", self.masked(node.operand)), node)
        return self.expr(node)

    def mask(self, node: ast.expr) -> bool:
        """Tell whether an operand of & is a constant that is no negative number."""
        if isinstance(node, ast.Constant):
            return type(node.value) is int
        if isinstance(node, ast.Name | ast.Attribute):
            value = self.static(node)
            if value is MISSING and isinstance(node, ast.Attribute) and self.is_self(node.value):
                value = getattr(self.spec.cls, node.attr, MISSING)
            return type(value) is int and value >= 0
        if isinstance(node, ast.BinOp | ast.UnaryOp):
            return _is_mask_expression(node)
        return False

    def _at_unaryop(self, node: ast.UnaryOp) -> ast.expr:
        if isinstance(node.op, ast.Not):
            return ast.UnaryOp(ast.Not(), self.test(node.operand))
        if isinstance(node.op, ast.Invert):
            return self.primitive("invert", self.expr(node.operand))
        operand = node.operand
        literal = operand.value if isinstance(operand, ast.Constant) else None
        if isinstance(node.op, ast.USub) and type(literal) is int:
            return self.constant(node, -literal)
        if isinstance(node.op, ast.USub):
            return self.checked(node, "neg", self.expr(operand))
        return self.primitive("pos", self.expr(operand))

    def _at_boolop(self, node: ast.BoolOp) -> ast.expr:
        return ast.BoolOp(node.op, [self.expr(value) for value in node.values])

    def _at_ifexp(self, node: ast.IfExp) -> ast.expr:
        return ast.IfExp(self.test(node.test), self.expr(node.body), self.expr(node.orelse))

    def _at_compare(self, node: ast.Compare) -> ast.expr:
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
            if right is not node.comparators[-1] and not is_pure(right):
                return self.refuse(
                    right, "a call within a chain of comparisons", "assign it to a variable first"
                )
            parts.append(self.primitive(_COMPARE[type(op)], self.expr(left), self.expr(right)))
            left = right
        return parts[0] if len(parts) == 1 else ast.BoolOp(ast.And(), parts)

    def membership(self, node: ast.Compare, op: ast.cmpop, right: ast.expr) -> ast.expr:
        """Rewrite ``x in (1, 2, 3)``."""
        items: list[ast.expr] = []
        if isinstance(right, ast.Tuple):
            items = [self.expr(item) for item in right.elts]
        else:
            value = self.static(right)
            if isinstance(value, tuple) and is_constant(value):
                items = [self.constant(right, item) for item in value]
        if not items:
            return self.refuse(
                node, "in, on something else than a tuple", "write `x in (1, 2, 3)`, or a loop"
            )
        packed = ast.Tuple(items, ast.Load())
        made = self.primitive("contains", self.expr(node.left), packed)
        return ast.UnaryOp(ast.Not(), made) if isinstance(op, ast.NotIn) else made


def _is_power_of_two(node: ast.expr) -> bool:
    value = node.value if isinstance(node, ast.Constant) else None
    return type(value) is int and value > 0 and value & (value - 1) == 0


def _is_mask_expression(node: ast.expr) -> bool:
    """Tell whether an expression is written like ``(1 << 20) - 1``, of constants only."""
    allowed = (ast.BinOp, ast.UnaryOp, ast.Constant, ast.operator, ast.unaryop)
    if not all(isinstance(each, allowed) for each in ast.walk(node)):
        return False
    if not all(
        type(each.value) is int for each in ast.walk(node) if isinstance(each, ast.Constant)
    ):
        return False
    # Constants only, so the compiler folds it.
    code = compile(ast.fix_missing_locations(ast.Expression(node)), "<mask>", "eval")
    constants = [value for value in code.co_consts if type(value) is int]
    return len(constants) == 1 and constants[0] >= 0
