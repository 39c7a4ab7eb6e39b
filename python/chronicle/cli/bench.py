"""``chronicle bench``: what this machine and this file system do, each figure beside its floor.

The floor of a call is a native method that takes the same arguments and does nothing; the floor
of a copy is the same copy between plain, mapped memory. Both are measured in turn with the figure.
It is a quick look; ``make bench`` in the repository measures between processes and against peers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chronicle.cli.arguments import add_command, add_json, age

if TYPE_CHECKING:
    import argparse

    from chronicle.cli.arguments import Commands
    from chronicle.report import Run

EXAMPLES = """\
  chronicle bench
  chronicle bench --path . --json
  chronicle bench --report out.html
  chronicle bench --report new.html --compare old.html --peers none
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
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="also measure one-way latencies between processes, and write everything as one HTML "
        "page",
    )
    parser.add_argument(
        "--compare",
        metavar="FILE",
        action="append",
        default=[],
        help="with --report: an earlier report to compare with; may be repeated",
    )
    parser.add_argument(
        "--peers",
        metavar="NAMES",
        default="all",
        help="with --report: other transports to measure: all that are installed (default), none, "
        "or names with commas between, as pipe,pyzmq",
    )
    parser.add_argument(
        "--seconds",
        metavar="N",
        type=age,
        default=2.0,
        help="with --report: how long to measure each latency (default: 2)",
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

    if options.report is None and options.compare:
        raise BadArgument("there is nothing to compare without a report; add --report out.html")
    if options.report is not None and not Path(options.report).absolute().parent.is_dir():
        raise BadArgument(
            f"no such directory: report={options.report!r}; make it, or name another file"
        )
    if not Path(options.path).is_dir():
        raise BadArgument(f"no such directory: found={options.path!r}; choose one with --path")
    with tempfile.TemporaryDirectory(prefix="chronicle-bench-", dir=options.path) as folder:
        # Before anything is measured: what cannot work shall fail at once.
        wanted = None if options.report is None else _plan(options)
        facts = machine_facts(folder)
        figures = measure_all(folder)
        if wanted is not None:
            _write_report(options, wanted, folder, facts, figures)
    if options.json:
        print_json({"machine": facts, "figures": figures})
    else:
        _show(facts, figures)
    return 0


def _plan(options: argparse.Namespace) -> tuple[list[str], list[tuple[str, Run]]]:
    """Return the peers and the earlier runs that the options name."""
    from chronicle.cli import latency
    from chronicle.cli.report import read_earlier
    from chronicle.errors import BadArgument

    installed = latency.peers()
    chosen = {"all": installed, "none": []}.get(options.peers)
    if chosen is None:
        chosen = [name.strip() for name in options.peers.split(",")]
    if unknown := [name for name in chosen if name not in installed]:
        raise BadArgument(
            f"unknown peers: found={','.join(unknown)!r} installed={','.join(installed)!r}; "
            "choose of these, or install the package of the peer"
        )
    return chosen, read_earlier(options.compare)


def _write_report(
    options: argparse.Namespace,
    plan: tuple[list[str], list[tuple[str, Run]]],
    folder: str,
    facts: dict[str, str],
    figures: list[dict[str, Any]],
) -> None:
    from chronicle.cli import latency
    from chronicle.cli.machine import busy_note, kernel_facts
    from chronicle.cli.output import note
    from chronicle.cli.report import taken_now, write_page
    from chronicle.report import Figure, Run

    names, earlier = plan
    series, timelines = latency.measure(
        folder, names, options.seconds, note, best_only=options.peers == "all"
    )
    fields = Figure.__struct_fields__
    made = Run(
        title="Chronicle: what this machine does",
        taken=taken_now(),
        machine=facts | kernel_facts(),
        notes=[latency.NOTE, *busy_note()],
        series=series,
        timelines=timelines,
        figures=[Figure(**{name: figure[name] for name in fields}) for figure in figures],
    )
    write_page(options.report, made, earlier)


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
            f"{figure['ratio']:.2f} x",
            figure["floor_name"],
        )
    out.print(table)
    out.print("\nmedians; 64-byte payloads; Python's loop is part of figure and floor alike")
    if late := sum(figure.get("late", 0) for figure in figures):
        out.print(f"left out: {late} rolls for which the provisioner was late; the machine is busy")
