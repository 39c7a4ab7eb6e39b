"""``chronicle bench``: what this machine and this file system do, each figure beside its floor.

The floor of a call is a native method that takes the same arguments and does nothing; the floor
of a copy is the same copy between plain, mapped memory. Both are measured in turn with the figure.
It is a quick look; ``make bench`` in the repository measures between processes and against peers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chronicle.cli.arguments import add_command, add_json

if TYPE_CHECKING:
    import argparse

    from chronicle.cli.arguments import Commands

EXAMPLES = """\
  chronicle bench
  chronicle bench --path . --json
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "bench",
        run,
        summary="measure this machine and file system, in some seconds",
        description="Measure appending, reading, committing and rolling from Python, in one "
        "process, with 64-byte payloads, each beside its floor: an empty native call with the same "
        "arguments, or a bare copy. Writes about 200 MiB to a directory that it removes again.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--path",
        metavar="DIR",
        default="/dev/shm",
        help="where to put the queues (default: /dev/shm)",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Measure."""
    import tempfile
    from pathlib import Path

    from chronicle.cli.machine import machine_facts
    from chronicle.cli.measure import measure_all
    from chronicle.cli.output import print_json
    from chronicle.errors import BadArgument

    if not Path(options.path).is_dir():
        raise BadArgument(f"no such directory: found={options.path!r}; choose one with --path")
    with tempfile.TemporaryDirectory(prefix="chronicle-bench-", dir=options.path) as folder:
        facts = machine_facts(folder)
        figures = measure_all(folder)
    if options.json:
        print_json({"machine": facts, "figures": figures})
    else:
        _show(facts, figures)
    return 0


def _show(facts: dict[str, str], figures: list[dict[str, Any]]) -> None:
    from chronicle.cli.output import console, data_table, duration_text, facts_table

    def cell(value: float, unit: str) -> str:
        return duration_text(value * 1e-9) if unit == "ns" else f"{value / 1e6:,.1f} M/s"

    out = console()
    head = facts_table()
    for name, value in facts.items():
        head.add_row(name, value)
    out.print(head)
    out.print()
    left = ("figure", "floor is")
    table = data_table("figure", "measured", "floor", "ratio", "floor is", left=left)
    for figure in figures:
        table.add_row(
            figure["name"],
            cell(figure["value"], figure["unit"]),
            cell(figure["floor"], figure["unit"]),
            f"{figure['ratio']:.1f} x",
            figure["floor_name"],
        )
    out.print(table)
    out.print("\nmedians; 64-byte payloads; Python's loop is part of figure and floor alike")
    if late := sum(figure.get("late", 0) for figure in figures):
        out.print(f"left out: {late} rolls for which the provisioner was late; the machine is busy")
