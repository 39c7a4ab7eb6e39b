"""``chronicle top``: a bus at a glance, live, once as text or JSON, or in a browser."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from chronicle.cli.arguments import add_command, add_json

if TYPE_CHECKING:
    from chronicle.cli.arguments import Commands
    from chronicle.top.watch import View

EXAMPLES = """\
  chronicle top /dev/shm/bus
  chronicle top /dev/shm/bus --interval 0.2
  chronicle top /dev/shm/bus --once
  chronicle top /dev/shm/bus --once --json | jq '.threads[] | {name, calls: .counts.guard_seen}'
  chronicle top /dev/shm/bus --serve
  chronicle top /dev/shm/bus --serve 127.0.0.1:9000
"""

DESCRIPTION = """\
Show the processes, hot threads and queues of a bus, what changes, and the last lines of the logs.
Only looks: takes no lock, registers no reader, maps nothing, and does nothing on a hot thread. BUS
may be any directory with queues below it.

The dashboard needs the extra `top` (Textual); --once does not. In it: arrows and Enter, or the
mouse; Tab for the next table, / to filter, s to sort, ? for all keys. What the columns mean stands
in docs/guides/top.md, and under ?.
"""

INTERVAL_S = 1.0
INTERVAL_S_MIN = 0.05
INTERVAL_S_MAX = 3_600.0
ADDRESS = "127.0.0.1:8000"


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "top",
        run,
        summary="watch a bus: processes, hot threads, queues, events",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("bus", metavar="BUS", help="directory of the bus")
    parser.add_argument(
        "--interval",
        type=interval,
        metavar="SECONDS",
        default=INTERVAL_S,
        help=f"time between two looks (default: {INTERVAL_S:g})",
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--once", action="store_true", help="look twice, --interval apart, print it and end"
    )
    way.add_argument(
        "--serve",
        nargs="?",
        const=ADDRESS,
        type=address,
        metavar="ADDRESS:PORT",
        help=f"show it in a browser (default: {ADDRESS}, which only this host can reach)",
    )
    add_json(parser)


def interval(text: str) -> float:
    """Read the time between two looks.

    >>> interval("0.5")
    0.5
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not INTERVAL_S_MIN <= seconds <= INTERVAL_S_MAX:
        raise argparse.ArgumentTypeError(
            f"not an interval: {text!r}; write seconds, {INTERVAL_S_MIN:g} to {INTERVAL_S_MAX:g}"
        )
    return seconds


def address(text: str) -> tuple[str, int]:
    """Read an address and a port.

    >>> address("127.0.0.1:8000"), address("[::1]:80"), address("9000")
    (('127.0.0.1', 8000), ('::1', 80), ('127.0.0.1', 9000))
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if colon else "127.0.0.1"
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise argparse.ArgumentTypeError(
            f"not an address: {text!r}; write a port, or an address and a port as {ADDRESS}"
        )
    return host, int(port)


def run(options: argparse.Namespace) -> int:
    """Show a bus."""
    from chronicle.errors import BadArgument
    from chronicle.top.collect import Collector

    collector = Collector(options.bus)
    if options.once:
        _print_once(_look_twice(collector, options.interval), as_json=options.json)
        return 0
    if options.json:
        raise BadArgument("--json is for --once: the dashboard is no JSON; add --once")
    try:
        if options.serve is not None:
            from chronicle.top.serving import serve

            host, port = options.serve
            return serve(options.bus, options.interval, host=host, port=port)
        from chronicle.top.app import TopApp

        app = TopApp(collector, interval_s=options.interval)
        if "TEXTUAL_DRIVER" in os.environ:
            from chronicle.top.serving import end_with_server

            end_with_server()
        else:
            _check_terminal()
            app.end_on_signals()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("textual", "textual_serve"):
            raise
        raise BadArgument(
            f"the dashboard needs {error.name}, which is not installed; install the extra: "
            "pip install 'chronicle-python[top]', or use --once"
        ) from None
    app.run()
    return app.return_code or 0


def _check_terminal() -> None:
    """Refuse to draw where nobody sees it, or could end it."""
    from chronicle.errors import BadArgument

    # Textual takes keys from the one and draws on the other.
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise BadArgument("the dashboard needs a terminal; use --once, or --serve for a browser")
    if os.environ.get("TERM", "dumb") in ("", "dumb"):
        raise BadArgument(
            f"the dashboard cannot draw on this terminal: TERM={os.environ.get('TERM', '')!r}; "
            "use --once, or --serve for a browser"
        )


def _look_twice(collector: Any, interval_s: float) -> View:
    import time

    from chronicle.top.watch import Watch

    watch = Watch()
    watch.add(collector.look())
    time.sleep(interval_s)
    return watch.add(collector.look())


def _print_once(view: View, *, as_json: bool) -> None:
    from chronicle.cli.output import console, data_table, print_json
    from chronicle.top.document import document
    from chronicle.top.tables import KINDS, summary, table_of

    if as_json:
        print_json(document(view))
        return
    out = console()
    out.print(f"{view.look.path}: {summary(view)[0]}", soft_wrap=True)
    for kind in KINDS:
        table = table_of(kind, view)
        if not table.rows:
            continue
        titles = [column.title for column in table.columns]
        left = tuple(column.title for column in table.columns if not column.is_number)
        shown = data_table(*titles, left=left)
        for row in table.rows:
            shown.add_row(*(cell.text for cell in row.cells))
        out.print(f"\n{kind}")
        out.print(shown)
    for path, reason in view.look.problems:
        out.print(f"cannot be read: {path}: {reason}", soft_wrap=True)
