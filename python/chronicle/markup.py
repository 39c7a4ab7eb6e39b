"""Elements of HTML and SVG, escaped by construction.

Pages are put together as trees, never as text, so that no name from a file, a queue or a command
line can become markup. What text may not hold at all (control characters) is shown escaped.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

__all__ = ["Node", "clean", "document", "fragment", "node", "raw"]

Node = ET.Element

# Neither HTML nor XML allows these; half surrogates cannot be encoded.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# Such characters reorder what stands around them.
_REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069\u200e\u200f]")


def clean(text: str) -> str:
    r"""Return text with what cannot or should not be shown as an escape.

    >>> clean("a\x1b[2J\u202eb")
    'a\\x1b[2J\\u202eb'
    """
    escaped = _FORBIDDEN.sub(lambda m: m[0].encode("unicode_escape").decode("ascii"), text)
    return _REORDERING.sub(lambda m: m[0].encode("unicode_escape").decode("ascii"), escaped)


def node(tag: str, *children: Node | str | None, **attributes: str | float | None) -> Node:
    r"""Make an element; ``None`` children and attributes are left out.

    Underscores in the names of attributes are hyphens; one at the end is dropped.

    >>> ET.tostring(node("p", "1 < 2", class_='a"b', stroke_width=2))
    b'<p class="a&quot;b" stroke-width="2">1 &lt; 2</p>'
    """
    made = ET.Element(tag)
    for name, value in attributes.items():
        if value is not None:
            text = f"{value:.7g}" if isinstance(value, float) else str(value)
            made.set(name.removesuffix("_").replace("_", "-"), clean(text))
    last: Node | None = None
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            if last is None:
                made.text = (made.text or "") + clean(child)
            else:
                last.tail = (last.tail or "") + clean(child)
        else:
            made.append(child)
            last = child
    return made


def raw(tag: str, text: str, **attributes: str) -> Node:
    """Make a ``style`` or ``script``, whose text HTML takes as it is.

    The caller answers for its text; an end tag in it is refused.
    """
    if "</" in text or "<!--" in text:
        raise ValueError(f"the text of <{tag}> would end it")
    made = node(tag, **attributes)
    made.text = text
    return made


def fragment(root: Node) -> str:
    """Return an element as HTML, to stand in somebody else's page."""
    return ET.tostring(root, encoding="unicode", method="html")


def document(root: Node) -> str:
    """Return the page as text."""
    return f"<!DOCTYPE html>\n{fragment(root)}\n"
