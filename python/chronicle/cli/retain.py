"""``chronicle retain``: applies a retention policy once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from chronicle.cli.arguments import add_command, add_json, add_queue, age, size

if TYPE_CHECKING:
    from chronicle.cli.arguments import Commands

EXAMPLES = """\
  chronicle retain /dev/shm/iex --bytes 10GiB
  chronicle retain /dev/shm/iex --age 7d
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "retain",
        run,
        summary="delete old segments, once, by size or age",
        description="Delete the oldest segments that one of the limits lets go. What a live "
        "registered reader has not committed stays, and so does the segment that is being "
        "written. To have it done all the time, give the writer a provisioner and a policy.",
        examples=EXAMPLES,
    )
    add_queue(parser)
    parser.add_argument(
        "--bytes", type=size, metavar="SIZE", help="while all segments take more than this"
    )
    parser.add_argument(
        "--age", type=age, metavar="AGE", help="once their newest message is older than this"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Delete segments."""
    from chronicle.cli.output import bytes_text, look_at, plural, print_json
    from chronicle.errors import BadArgument
    from chronicle.queue import apply_retention

    if options.bytes is None and options.age is None:
        raise BadArgument("no policy, no deletion: give --bytes, --age or both")
    facts = look_at(options.queue)
    report = apply_retention(
        options.queue,
        bytes_max=options.bytes,
        age_ns_max=None if options.age is None else int(options.age * 1e9),
    )
    if options.json:
        print_json(report)
        return 0
    deleted = report["segments_deleted"]
    freed = bytes_text(deleted * facts["segment_bytes"])
    print(f"deleted {plural(deleted, 'segment')} ({freed})")
    if report["held_by"] is not None:
        held = report["allowed_segment"] - report["floor_segment"]
        more = plural(held, "more segment")
        print(f"reader '{report['held_by']}' holds {more}: it is live and has not committed them")
    return 0
