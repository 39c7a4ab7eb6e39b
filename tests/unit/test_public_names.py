"""Every public name is documented, with an example that runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import chronicle
import pytest
from chronicle import errors

from tools import site

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
DIRECTIVE = re.compile(r"^::: ([\w.]+)\n((?:    .*\n?)*)", re.MULTILINE)
#: Packages and modules that users import from; the others are for the package itself.
PUBLIC = (
    "chronicle",
    "chronicle.bus",
    "chronicle.errors",
    "chronicle.feeds",
    "chronicle.hot",
    "chronicle.message",
    "chronicle.report",
    "chronicle.sidecar",
    "chronicle.top",
)


def is_documentable(value: object) -> bool:
    """Whether a value has a docstring of its own: a class or a function, or one of our objects."""
    return (
        inspect.isclass(value)
        or inspect.isroutine(value)
        or type(value).__module__.startswith("chronicle.hot.on")
    )


def public_names() -> Iterator[tuple[str, str]]:
    """Yield module and name of each public thing once, where it is found first."""
    seen: set[int] = set()
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            value = getattr(module, name)
            if is_documentable(value) and id(value) not in seen:
                seen.add(id(value))
                yield module_name, name


NAMES = [f"{module}.{name}" for module, name in public_names()]


def resolve(full: str) -> Any:
    module, _, name = full.rpartition(".")
    return getattr(importlib.import_module(module), name)


def documentation(value: Any) -> str:
    return inspect.getdoc(value) or ""


@pytest.mark.parametrize("full", NAMES)
def test_a_public_name_has_an_example_that_runs(full: str):
    value = resolve(full)
    text = documentation(value)
    assert "\nExamples\n--------\n" in text, f"{full}: its docstring has no section `Examples`"
    home = importlib.import_module(getattr(value, "__module__", None) or "chronicle")
    names = {**vars(home), "chronicle": chronicle}
    test = doctest.DocTestParser().get_doctest(text, names, full, None, 0)
    assert test.examples, f"{full}: its section `Examples` has no `>>>`"
    report: list[str] = []
    doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    assert not report, "".join(report)


def documented_in_the_reference() -> set[str]:
    """Return what the pages of the reference show: objects, and the public names of modules."""
    found: set[str] = set()
    pages = [page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md")]
    for text in [*pages, *(make() for make in site.GENERATED.values())]:
        for target, options in DIRECTIVE.findall(text):
            listed = re.search(r"members: \[(.*)\]", options)
            found.add(target)
            if listed:
                found |= {f"{target}.{name.strip()}" for name in listed[1].split(",")}
            elif importlib.util.find_spec(target.rpartition(".")[0]) and is_module(target):
                module = importlib.import_module(target)
                found |= {f"{target}.{n}" for n in getattr(module, "__all__", vars(module))}
    return found


def is_module(target: str) -> bool:
    try:
        return importlib.util.find_spec(target) is not None
    except ModuleNotFoundError:
        return False


def test_the_reference_shows_every_public_name():
    shown = {name.rpartition(".")[2] for name in documented_in_the_reference()}
    assert [full for full in NAMES if full.rpartition(".")[2] not in shown] == []


def constants(module: ModuleType) -> set[str]:
    return {name for name in module.__all__ if not is_documentable(getattr(module, name))}


def documented_constants(module: ModuleType) -> set[str]:
    """Return the names that have a string below their assignment, or a comment ``#:`` above."""
    file = Path(inspect.getfile(module))
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    found: set[str] = set()
    body = ast.parse(text).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        below = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if below or lines[node.lineno - 2].startswith("#:"):
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_every_public_constant_says_what_it_is():
    documented: set[str] = set()
    wanted: dict[str, str] = {}
    for info in pkgutil.walk_packages(chronicle.__path__, "chronicle."):
        if not info.ispkg and not any(p.startswith("_") for p in info.name.split(".")):
            documented |= documented_constants(importlib.import_module(info.name))
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        wanted |= dict.fromkeys(constants(module), module_name)
    del wanted["__version__"]
    missing = [f"{module}.{name}" for name, module in wanted.items() if name not in documented]
    assert missing == []


@pytest.mark.parametrize("name", [n for n in errors.__all__ if n != "Category"])
def test_every_error_says_what_to_do(name: str):
    assert "\nWhat to do: " in documentation(getattr(errors, name)), (
        "write a paragraph that begins with `What to do:`; the page of errors shows it"
    )
