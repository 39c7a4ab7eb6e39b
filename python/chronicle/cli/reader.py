"""``chronicle reader``: looking after cursors."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from chronicle.cli.arguments import add_command, add_queue

if TYPE_CHECKING:
    from chronicle.cli.arguments import Commands

EXAMPLES = """\
  chronicle reader rm /dev/shm/iex risk
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "reader",
        help="forget readers: reader rm QUEUE NAME",
        description="Look after the registered readers of a queue. `inspect` lists them.",
        epilog="Examples:\n" + EXAMPLES,
    )
    verbs = parser.add_subparsers(
        title="commands", metavar="COMMAND", prog="chronicle reader", required=True
    )
    rm = add_command(
        verbs,
        "rm",
        run_rm,
        summary="forget where a reader was",
        description="Forget where readers were: their cursors are deleted. A reader that is "
        "running cannot be forgotten. A forgotten name starts at the earliest message again.",
        examples=EXAMPLES,
    )
    add_queue(rm)
    rm.add_argument("names", metavar="NAME", nargs="+", help="name of a reader")


def run_rm(options: argparse.Namespace) -> int:
    """Delete cursors."""
    from chronicle.cli.output import look_at
    from chronicle.errors import BadArgument
    from chronicle.queue import remove_reader

    known = [reader["name"] for reader in look_at(options.queue)["readers"]]
    for name in options.names:
        if name not in known:
            listed = ", ".join(known) or "no name: it has no readers"
            raise BadArgument(
                f"no such reader of queue '{options.queue}': found={name!r} expected={listed}"
            )
    for name in options.names:
        remove_reader(options.queue, name)
        print(f"forgot reader '{name}'")
    return 0
