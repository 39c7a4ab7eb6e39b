"""Gives griffe the docstrings of the native module, which its stub file has not."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import griffe

_MODULE = "chronicle._core"


class NativeDocstrings(griffe.Extension):
    """Takes the docstring of everything in `chronicle._core` from the object itself."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Look at one object that griffe has found."""
        if obj.docstring is None and obj.path.startswith(f"{_MODULE}."):
            value = _found(obj.path.removeprefix(f"{_MODULE}.").split("."))
            text = inspect.getdoc(value) if value is not None else None
            if text and not obj.name.startswith("_"):
                obj.docstring = griffe.Docstring(text, parent=obj, parser=griffe.Parser.numpy)


def _found(names: list[str]) -> Any:
    """Return an object of the native module; some classes are at hand in `chronicle` only."""
    for module in (_MODULE, "chronicle"):
        value: Any = importlib.import_module(module)
        for name in names:
            value = inspect.getattr_static(value, name, None)
        if value is not None:
            return value
    return None
