"""The primitives that the front end calls, by name. Imports Numba.

Each is made once in a process and shared by all handlers: what it does depends on the types that it
is given, and those are made of layouts, not of classes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from chronicle.hot import lower_bytes, lower_numbers, lower_records, lower_wire
from chronicle.hot.rewrite_names import Translation
from chronicle.hot.spec import Layout, layout_of
from chronicle.hot.wire import WireTable

__all__ = ["primitive"]

_FIXED = lower_numbers.NUMBERS | lower_records.RECORDS | lower_bytes.BYTES
_BUILDERS: dict[Layout, Any] = {}
_SLOTS: dict[tuple[int, int, str], Any] = {}
_WIRES: dict[WireTable, Any] = {}


def primitive(name: str, found: Translation) -> Any:
    """Return a primitive by the name that the front end gave it, without the prefix.

    Parameters
    ----------
    name
        Such as ``floordiv``, ``get_price`` or ``item_3``.
    found
        Which class ``build_…`` builds, which table of outputs ``slot_…`` is of, and which table of
        wire layouts ``wire_…`` decodes.
    """
    cls = found.messages.get(name)
    if cls is not None:
        layout = layout_of(cls)
        if layout not in _BUILDERS:
            _BUILDERS[layout] = lower_records.build(cls)
        return _BUILDERS[layout]
    table = found.tables.get(name)
    if table is not None:
        if table not in _SLOTS:
            _SLOTS[table] = lower_bytes.slot(*table)
        return _SLOTS[table]
    wires = found.wires.get(name)
    if wires is not None:
        if wires not in _WIRES:
            _WIRES[wires] = lower_wire.publish(wires)
        return _WIRES[wires]
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
        case "output":
            return lower_bytes.output(int(rest))
        case "bytes":
            return lower_bytes.read(rest)
        case "chars" | "padded":
            return lower_bytes.text_of(int(rest), is_padded=what == "padded")
        case "math":
            return lower_numbers.math_primitive(rest)
    raise KeyError(name)
