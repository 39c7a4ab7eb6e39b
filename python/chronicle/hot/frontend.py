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

from chronicle.hot.rewrite import Rewriter
from chronicle.hot.rewrite_names import HANDLER, PREFIX, Translated, Translation, Walk
from chronicle.hot.rules import Finding
from chronicle.hot.source import function_source
from chronicle.hot.spec import HandlerSpec

__all__ = ["HANDLER", "PREFIX", "Translated", "Translation", "translate"]


def translate(spec: HandlerSpec) -> Translation:
    """Rewrite all methods of a handler, and all functions that they reach.

    Raises
    ------
    CompileError
        If a source cannot be found.
    """
    found = Translation({}, {}, [("", 0)], [], [], set(), {}, [False], [], {}, {})
    walk = Walk(spec, found)
    names = [entry.method for entry in spec.entries] + [raw.method for raw in spec.raw_entries]
    for name in [*names, *spec.hooks.values()]:
        walk.method(name)
    while walk.queue:
        name, function, is_method = walk.queue.pop(0)
        rewriter = Rewriter(walk, function, function_source(function), is_method=is_method)
        found.functions[name] = rewriter.rewrite(name)
    _refuse_recursion(found)
    found.findings.sort(key=lambda finding: (finding.file, finding.line))
    return found


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
