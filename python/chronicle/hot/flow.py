"""Which variables may be read before they have a value.

Python finds that out when it happens; compiled code would read whatever is there. So it is refused
beforehand, by the usual walk: the set of names that surely have a value, statement by statement,
joined by intersection where paths meet.
"""

from __future__ import annotations

import ast
from typing import TypeAlias

__all__ = ["unassigned"]

#: Names that surely have a value; ``None`` where no path leads.
_State: TypeAlias = frozenset[str] | None


def unassigned(node: ast.FunctionDef) -> list[tuple[str, int]]:
    r"""Return the name and line of each read of a variable that may have no value.

    >>> tree = ast.parse("def f(x):\n if x:\n  y = 1\n return y")
    >>> unassigned(tree.body[0])
    [('y', 4)]
    """
    args = node.args
    parameters = {a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)}
    stored = {
        each.id
        for each in ast.walk(node)
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    }
    walk = _Walk(frozenset(stored - parameters))
    walk.block(node.body, frozenset())
    return sorted(set(walk.found), key=lambda item: (item[1], item[0]))


def _join(first: _State, second: _State) -> _State:
    if first is None or second is None:
        return second if first is None else first
    return first & second


class _Walk:
    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self.found: list[tuple[str, int]] = []
        self._breaks: list[_State] = []

    def block(self, statements: list[ast.stmt], state: _State) -> _State:
        for statement in statements:
            if state is None:
                return None
            state = self.statement(statement, state)
        return state

    def statement(self, node: ast.stmt, state: frozenset[str]) -> _State:
        match node:
            case ast.Assign(targets=targets, value=value):
                state = self.expr(value, state)
                for target in targets:
                    state = self.store(target, state)
                return state
            case ast.AnnAssign(target=target, value=found):
                return state if found is None else self.store(target, self.expr(found, state))
            case ast.AugAssign(target=target, value=value):
                if isinstance(target, ast.Name):
                    self.load(target, state)
                return self.store(target, self.expr(value, state))
            case ast.If(test=test, body=body, orelse=orelse):
                state = self.expr(test, state)
                return _join(self.block(body, state), self.block(orelse, state))
            case ast.While() | ast.For():
                return self.loop(node, state)
            case ast.Break():
                if self._breaks:
                    self._breaks[-1] = _join(self._breaks[-1], state)
                return None
            case ast.Continue():
                return None
            case ast.Return(value=value):
                if value is not None:
                    self.expr(value, state)
                return None
            case ast.Raise():
                return None
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(), attr="fail"))):
                self.expr(node.value, state)
                return None
            case ast.Expr(value=value):
                return self.expr(value, state)
        return state  # The others are refused elsewhere, or do nothing.

    def loop(self, node: ast.While | ast.For, state: frozenset[str]) -> _State:
        endless = False
        if isinstance(node, ast.While):
            state = inside = self.expr(node.test, state)
            endless = isinstance(node.test, ast.Constant) and bool(node.test.value)
        else:
            state = self.expr(node.iter, state)
            inside = self.store(node.target, state)
        self._breaks.append(None)
        self.block(node.body, inside)
        broken = self._breaks.pop()
        ended: _State = None if endless else self.block(node.orelse, state)
        return _join(ended, broken)

    def store(self, target: ast.expr, state: frozenset[str]) -> frozenset[str]:
        if isinstance(target, ast.Name):
            return state | {target.id}
        if isinstance(target, ast.Tuple | ast.List):
            for element in target.elts:
                state = self.store(element, state)
            return state
        return self.expr(target, state)

    def load(self, node: ast.Name, state: frozenset[str]) -> None:
        if node.id in self.names and node.id not in state:
            self.found.append((node.id, node.lineno))

    def expr(self, node: ast.expr, state: frozenset[str]) -> frozenset[str]:
        match node:
            case ast.Name():
                if isinstance(node.ctx, ast.Load):
                    self.load(node, state)
                return state
            case ast.NamedExpr(target=target, value=value):
                return self.expr(value, state) | {target.id}
            case ast.BoolOp(values=values):
                first = self.expr(values[0], state)
                inner = first
                for value in values[1:]:
                    inner = self.expr(value, inner)
                return first
            case ast.IfExp(test=test, body=body, orelse=orelse):
                state = self.expr(test, state)
                return self.expr(body, state) & self.expr(orelse, state)
            case ast.Lambda() | ast.ListComp() | ast.SetComp() | ast.DictComp():
                return state
            case ast.GeneratorExp():
                return state
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                state = self.expr(child, state)
            elif isinstance(child, ast.keyword):
                state = self.expr(child.value, state)
        return state
