"""Arguments that several commands take, and how they are read."""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Commands = argparse._SubParsersAction["Parser"]

WIDTH = 79
"""Columns of the help, as those of the options in a terminal of 80."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", re.IGNORECASE)
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)?")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}


class Parser(argparse.ArgumentParser):
    """A parser that loads rich when it prints help, and not before.

    argparse makes a formatter for each argument that is declared, only to check it: that one must
    be the plain one.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options
        )

    def format_help(self) -> str:
        """Return the help text."""
        self.formatter_class = _rich_formatter
        return super().format_help()


def _rich_formatter(prog: str) -> argparse.HelpFormatter:
    from rich_argparse import RawDescriptionRichHelpFormatter

    from chronicle.cli.output import console

    class Formatter(RawDescriptionRichHelpFormatter):
        # Brackets in our texts are brackets.
        text_markup = False
        help_markup = False

    return Formatter(prog, max_help_position=28, console=console())


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
    examples: str,
) -> Parser:
    """Declare a command with the options that all have."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=folded(description),
        epilog="Examples:\n" + examples,
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        # Not to undo a -v that stands before the command.
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )
    parser.set_defaults(run=run)
    return parser


def folded(text: str) -> str:
    r"""Return a text with its paragraphs filled, so that no terminal breaks them within a word.

    >>> folded("One\ntwo.\n\nThree.")
    'One two.\n\nThree.'
    """
    return "\n\n".join(textwrap.fill(part, WIDTH) for part in text.strip().split("\n\n"))


def add_queue(parser: Parser) -> None:
    """Declare the argument QUEUE."""
    parser.add_argument("queue", metavar="QUEUE", help="directory of the queue")


def add_json(parser: Parser) -> None:
    """Declare the option --json."""
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def size(text: str) -> int:
    """Read a number of bytes.

    >>> size("4096"), size("64MiB"), size("1.5G")
    (4096, 67108864, 1610612736)
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"not a size: {text!r}; write for example 64MiB or 10G")
    return int(float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " "))


def age(text: str) -> float:
    """Read a duration; return seconds.

    >>> age("90"), age("15m"), age("7d")
    (90.0, 900.0, 604800.0)
    """
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"not a duration: {text!r}; write for example 30s or 7d")
    return float(found[1]) * _SECONDS[found[2] or "s"]


def positive(text: str) -> int:
    """Read a whole number above zero."""
    value: Any = text.replace("_", "").replace(",", "")
    if not value.isdigit() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"not a number above zero: {text!r}")
    return int(value)
