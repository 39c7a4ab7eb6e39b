"""Every fenced block of the documentation: how it is found, and what runs it.

One mechanism for all pages, the README among them. What stands in a fence is judged by the word
behind the backticks:

- ``python``: run, in the order of the page. Each block is a file of its own, named by its first
  line (``# name.py``) or by its place, because a handler is compiled from its source; it starts
  with the names that the blocks before it have left. A ``text`` block below the word *prints* is
  compared with what it has printed.
- ``pycon``: run as a doctest.
- ``console``: lines with ``$`` are commands. ``chronicle`` and ``python`` are run, and what stands
  below is compared; ``make`` must name a target that exists, ``pip install`` extras that do;
  an environment is not made.
- ``toml``, ``json``, ``yaml``, ``ini``: must parse.
- ``text``: a picture or an output.
- anything else needs a reason.

A block that cannot run says so in the line above, where readers see it: ``Not run by the tests:
it needs root.`` A comment ``<!-- set-up`` before a block holds Python that runs first and that
readers do not see. Code of other systems is not run; the page says ``Not run by the tests: the
code of other systems on this page.`` once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
#: Languages of other systems, in the pages that compare with them.
FOREIGN: Final = frozenset({"c", "cpp", "java", "rust"})
DATA: Final = frozenset({"ini", "json", "toml", "yaml"})

_FENCE = re.compile(r"^( *)(`{3,})\s*([\w+-]*)[^\n]*$")
_SET_UP = re.compile(r"^<!-- set-up$")
_REASON = re.compile(r"^[*_(]*Not run by the tests: (.+?)[.*_)]*$")
_NAMED = re.compile(r"# (\w+\.py)\n")
_FOREIGN_REASON = "Not run by the tests: the code of other systems on this page."


class Block(NamedTuple):
    """One fenced block, or one hidden set-up."""

    page: str
    line: int
    kind: str
    """The language, or ``set-up``."""
    text: str
    reason: str
    """Why it does not run; empty if it does."""
    is_output: bool
    """Whether it is what the block before it prints."""
    name: str
    """Of the file that a Python block is."""

    @property
    def where(self) -> str:
        """The place, as editors take it."""
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Return every page of the documentation that people write."""
    from tools.site import GENERATED

    written = sorted((ROOT / "docs").rglob("*.md"))
    return [ROOT / "README.md", *(p for p in written if p.name not in GENERATED)]


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page, in order.

    >>> [(block.kind, block.name) for block in blocks_of(ROOT / "docs" / "tutorial.md")][:2]
    [('python', 'ewma.py'), ('python', 'try_ewma.py')]
    """
    relative = page.relative_to(ROOT).as_posix()
    lines = page.read_text(encoding="utf-8").splitlines()
    says_foreign = _FOREIGN_REASON in " ".join(lines)
    found: list[Block] = []
    above = ""
    at = 0
    while at < len(lines):
        line = lines[at]
        fence = _FENCE.match(line)
        if _SET_UP.match(line):
            end = lines.index("-->", at)
            text = "\n".join(lines[at + 1 : end]) + "\n"
            found.append(Block(relative, at + 1, "set-up", text, "", False, ""))
        elif fence:
            indent, ticks, kind = fence.groups()
            end = at + 1
            while lines[end].strip() != ticks:
                end += 1
            text = "".join(row[len(indent) :] + "\n" for row in lines[at + 1 : end])
            reason = _REASON.match(above)
            if reason is None and kind in FOREIGN and says_foreign:
                reason = _REASON.match(_FOREIGN_REASON)
            named = _NAMED.match(text)
            name = named[1] if named else f"block_{at + 1}.py"
            is_output = kind == "text" and above.rstrip(":").endswith("prints")
            found.append(
                Block(relative, at + 1, kind, text, reason[1] if reason else "", is_output, name)
            )
        else:
            above = line.strip() or above
            at += 1
            continue
        above = ""
        at = end + 1
    return found
