"""How things are shown: numbers, times and bytes as text, consoles, JSON."""

from __future__ import annotations

import datetime as dt
import functools
import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# A table that goes into a file or a pipe is not folded to the width of a terminal nobody has.
_WIDTH_WITHOUT_TERMINAL = 160


def console(*, stderr: bool = False) -> Console:
    """Make a rich console: colours only on a terminal, and never with NO_COLOR."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    plain = bool(os.environ.get("NO_COLOR"))
    return Console(
        stderr=stderr,
        # NO_COLOR is taken literally by rich: it would still print bold.
        color_system=None if plain else "auto",
        highlight=False,
        markup=False,
        emoji=False,
        width=None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH_WITHOUT_TERMINAL,
    )


def facts_table() -> Table:
    """Make a table of names and values without a frame."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


def data_table(*columns: str, left: tuple[str, ...] = ()) -> Table:
    """Make a table of data: a rule under the head, numbers to the right, `left` to the left."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), header_style="bold"
    )
    for column in columns:
        table.add_column(
            column,
            justify="left" if column in left else "right",
            overflow="fold",
            no_wrap=column not in left,
        )
    return table


def print_json(document: object) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(document, indent=2))


def note(text: str) -> None:
    """Print a line for people on stderr."""
    print(f"chronicle: {text}", file=sys.stderr)


def bytes_text(count: int) -> str:
    """Return a number of bytes for people.

    >>> bytes_text(512), bytes_text(65_536), bytes_text(3 << 29)
    ('512 B', '64 KiB', '1.5 GiB')
    """
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def duration_text(seconds: float) -> str:
    """Return a duration for people.

    >>> duration_text(1.2e-7), duration_text(0.0034), duration_text(75), duration_text(90_000)
    ('120 ns', '3.4 ms', '75 s', '25 h')
    """
    for limit, factor, unit in (
        (1e-6, 1e9, "ns"),
        (1e-3, 1e6, "us"),
        (1.0, 1e3, "ms"),
        (120.0, 1.0, "s"),
        (7_200.0, 1 / 60, "min"),
        (172_800.0, 1 / 3_600, "h"),
    ):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds / 86_400:.0f} d"


@functools.lru_cache(maxsize=4)
def _second_text(second: int) -> str:
    return dt.datetime.fromtimestamp(second, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def time_text(timestamp_ns: int) -> str:
    """Return a timestamp as ISO 8601, with all its digits.

    >>> time_text(1_700_000_000_000_000_001)
    '2023-11-14T22:13:20.000000001Z'
    """
    second, rest = divmod(timestamp_ns, 1_000_000_000)
    return f"{_second_text(second)}.{rest:09d}Z"


def safe_text(value: bytes | str) -> str:
    r"""Return text that comes from a file, so that it cannot steer a terminal.

    >>> safe_text(b"AAPL"), safe_text(b"\x1b[2J")
    ('AAPL', '\\x1b[2J')
    """
    text = value.decode("ascii", "backslashreplace") if isinstance(value, bytes) else value
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def plural(count: int, word: str) -> str:
    """Return a count with its noun.

    >>> plural(1, "message"), plural(1200, "message")
    ('1 message', '1,200 messages')
    """
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def shell_quoted(*words: str | os.PathLike[str]) -> str:
    """Return a command line that can be pasted into a shell."""
    import shlex

    return shlex.join(os.fspath(word) for word in words)


def look_at(path: str) -> dict[str, Any]:
    """Return `chronicle.inspect(path)`.

    Raises
    ------
    NotAQueue
        If there is no queue, with what to do about it.
    """
    from chronicle.errors import NotAQueue
    from chronicle.queue import inspect

    try:
        return inspect(path)
    except (FileNotFoundError, NotADirectoryError):
        there = os.path.lexists(path)
        why = "there is no control file in it" if there else "there is nothing at this path"
        raise NotAQueue(
            f"'{path}' is not a queue: {why}; check the path, or create one with "
            f"`chronicle import` or chronicle.Queue.open_publisher"
        ) from None
