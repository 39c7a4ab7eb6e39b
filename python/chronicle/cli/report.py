"""``chronicle report``: what a bus does right now, as one HTML page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chronicle.cli.arguments import add_command, age

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from chronicle.cli.arguments import Commands
    from chronicle.report import Run

EXAMPLES = """\
  chronicle report /dev/shm/trading -o report.html
  chronicle report /dev/shm/trading --seconds 30 -o report.html
  chronicle report /dev/shm/trading --seconds 30 --compare yesterday.html -o today.html
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "report",
        run,
        summary="write what hot threads and queues of a bus do, as one HTML page",
        description="Read the counters files, markers and queues below a directory, and write one "
        "HTML page: percentile curves of loop gaps and handler times, counts, queues and readers, "
        "the machine, raw histograms. With --seconds also how they change, with rolls and page "
        "faults. Disturbs nobody. The page loads nothing when it is opened.",
        examples=EXAMPLES,
    )
    parser.add_argument("bus", metavar="BUS", help="directory of the bus, or of one endpoint")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where to write the page (default: stdout)"
    )
    parser.add_argument(
        "--seconds",
        metavar="N",
        type=age,
        default=0.0,
        help="watch for so long; by default one look",
    )
    parser.add_argument(
        "--compare",
        metavar="FILE",
        action="append",
        default=[],
        help="an earlier report to compare with; may be repeated",
    )


def run(options: argparse.Namespace) -> int:
    """Look, and write."""
    from chronicle.cli.machine import kernel_facts, machine_facts
    from chronicle.errors import BadArgument
    from chronicle.report.bus import collect

    if options.output is None and sys.stdout.isatty():
        raise BadArgument("a page is not for a terminal; name a file: -o report.html")
    earlier = read_earlier(options.compare)
    if not Path(options.bus).is_dir():
        raise BadArgument(f"no such directory: bus='{options.bus}'; name the directory of a bus")
    machine = machine_facts(options.bus) | kernel_facts()
    made = collect(options.bus, seconds=options.seconds, taken=taken_now(), machine=machine)
    write_page(options.output, made, earlier)
    return 0


def taken_now() -> str:
    """Return the time, for people."""
    import datetime as dt

    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def read_earlier(paths: Sequence[str]) -> list[tuple[str, Run]]:
    """Read earlier reports; each is called by the name of its file."""
    from chronicle.report import read_run

    return [(Path(path).stem, read_run(path)) for path in paths]


def write_page(path: str | None, made: Run, earlier: Sequence[tuple[str, Run]]) -> None:
    """Write the page to a file, whole or not at all, or to stdout."""
    from chronicle.cli.output import note
    from chronicle.report import page

    text = page(made, earlier)
    if path is None:
        print(text, end="")
        return
    target = Path(path)
    hidden = target.with_name(f".{target.name}.tmp")
    hidden.write_text(text, encoding="utf-8")
    hidden.replace(target)
    note(f"written: {path}")
