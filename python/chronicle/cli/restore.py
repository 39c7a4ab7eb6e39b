"""``chronicle restore``: a queue out of its mirror, after a reboot has emptied the tmpfs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from chronicle.cli.arguments import add_command, add_json

if TYPE_CHECKING:
    from chronicle.cli.arguments import Commands

EXAMPLES = """\
  chronicle restore /var/lib/chronicle/orders /dev/shm/orders
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "restore",
        run,
        summary="make a queue out of its mirror",
        description="Copy a mirror that a sidecar has made to where its queue was, and let the "
        "recovery run that follows a power loss. There must be nothing at QUEUE; it appears whole "
        "or not at all. The mirror is only read, and may go on from there.",
        examples=EXAMPLES,
    )
    parser.add_argument("mirror", metavar="MIRROR", help="directory of the mirror")
    parser.add_argument("queue", metavar="QUEUE", help="directory that the queue gets")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Restore."""
    from chronicle.cli.output import bytes_text, plural, print_json
    from chronicle.sidecar.restore import restore

    report = restore(options.mirror, options.queue)
    if options.json:
        print_json(
            {
                "queue": report.queue,
                "next_seq": report.next_seq,
                "durable_seq": report.durable_seq,
                "beyond": report.beyond,
                "segments": report.segments,
                "bytes_copied": report.bytes_copied,
                "readers": report.readers,
                "bytes_discarded": report.recovery.bytes_discarded,
                "set_aside": report.recovery.set_aside,
                "lost": report.lost,
            }
        )
        return 0
    copied = bytes_text(report.bytes_copied)
    print(f"restored '{report.queue}' from {plural(report.segments, 'segment')} ({copied})")
    print(
        f"the mirror had promised seq={report.durable_seq}; the next message is {report.next_seq}"
    )
    if report.beyond:
        print(f"{plural(report.beyond, 'message')} behind that could be verified, and came along")
    if report.readers:
        print(f"readers: {', '.join(report.readers)}")
    print(f"lost: {report.lost or 'nothing that the mirror had'}")
    for name in report.recovery.set_aside:
        print(f"set aside: {name}")
    return 0
