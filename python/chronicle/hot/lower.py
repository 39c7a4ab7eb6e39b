"""The primitives that the front end calls, by name. Imports Numba.

Each is made once in a process and shared by all handlers: what it does depends on the types that it
is given, and those are made of layouts, not of classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from chronicle.hot import lower_numbers, lower_records
from chronicle.hot.spec import Layout, layout_of
from chronicle.message import MessageBase

__all__ = ["primitive"]

_FIXED = lower_numbers.NUMBERS | lower_records.RECORDS
_BUILDERS: dict[Layout, Any] = {}


def primitive(name: str, messages: Mapping[str, type[MessageBase]]) -> Any:
    """Return a primitive by the name that the front end gave it, without the prefix.

    Parameters
    ----------
    name
        Such as ``floordiv``, ``get_price`` or ``item_3``.
    messages
        Which class ``build_…`` builds.
    """
    cls = messages.get(name)
    if cls is not None:
        layout = layout_of(cls)
        if layout not in _BUILDERS:
            _BUILDERS[layout] = lower_records.build(cls)
        return _BUILDERS[layout]
    return _FIXED.get(name) or _made(name)


@cache
def _made(name: str) -> Any:
    what, _, rest = name.partition("_")
    match what:
        case "get":
            return lower_records.get(rest)
        case "set":
            return lower_records.set_(rest)
        case "item":
            return lower_records.item(int(rest) if rest else None)
        case "fail":
            return lower_records.fail(int(rest))
        case "text":
            return lower_records.text(bytes.fromhex(rest))
        case "math":
            return lower_numbers.math_primitive(rest)
    raise KeyError(name)
