"""A feed handler: IEX-TP multicast in, a queue of typed messages out, once and in order.

    python examples/feed_handler.py BUS --interface eth1 \
        --lines 233.215.21.4:10378 233.215.21.132:10378 --recovery 10.0.0.1:9999

Two hot threads and a sidecar:

- `feed` reads both lines from a ring that the kernel fills, takes whichever copy of a packet comes
  first, and publishes its messages to `streams/<venue>/live`. It makes no system call.
- `snapshot` reads that queue, keeps the book of every symbol, and publishes the books one after
  another to `streams/<venue>/snapshot`, so that whoever joins late need not read the whole day.
- The sidecar keeps a TCP session with the recovery service: what neither line brought is asked for
  (`requests`), and comes back through a queue of its own (`recovered`).

**Exactly once.** The live queue is the only memory. Whoever kills this process at any instruction
loses nothing: the next life reads the end of the queue, asks recovery for the packet that holds the
last message there and for everything since, and goes on. docs/feed-handler.md explains the rest.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from chronicle import HotThread, PacketRing, Queue, QueueWriter, Sidecar
from chronicle.bus import Bus
from chronicle.feeds.arbitration import LIVE_CLASSES, FeedHandler, state_at
from chronicle.feeds.recovery import RECOVERED_CLASSES, REQUEST_CLASSES, RecoverySession
from chronicle.feeds.snapshot import (
    SNAPSHOT_CLASSES,
    SnapshotPublisher,
    find_cycle,
    state_at_cycle,
)
from chronicle.feeds.stream import find_position
from chronicle.hot import WAITS, CountersFile, choose_wait
from chronicle.message import MessageBase
from chronicle.sidecar import Backoff

MIB = 1 << 20


def address(text: str) -> tuple[str, int]:
    """Split ``host:port``."""
    host, _, port = text.rpartition(":")
    return host, int(port)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Publish IEX-TP multicast to a queue.")
    parser.add_argument("bus", type=Path)
    parser.add_argument("--venue", default="iex")
    parser.add_argument("--interface", required=True, help="that the multicast comes in by")
    parser.add_argument("--lines", type=address, nargs="+", required=True, metavar="GROUP:PORT")
    parser.add_argument("--recovery", type=address, required=True, metavar="HOST:PORT")
    parser.add_argument("--core", type=int, help="for the thread that reads the lines")
    parser.add_argument("--snapshot-core", type=int, help="for the thread that keeps the books")
    parser.add_argument("--wait", default="auto", choices=WAITS)
    parser.add_argument("--live-mib", type=int, default=64, help="size of a segment of `live`")
    parser.add_argument(
        "--no-checksums",
        action="store_true",
        help="for replayed captures, whose UDP checksums were never filled in",
    )
    return parser.parse_args()


def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="feed handler: %(message)s")
    sidecar = Sidecar()
    endpoint = Bus(options.bus).open_endpoint(f"streams/{options.venue}")
    sidecar.serve_endpoint(endpoint)
    counters = CountersFile.create(endpoint.path / "COUNTERS")
    sidecar.publish_counters(counters)

    def publisher(name: str, schema: tuple[type[MessageBase], ...], mib: int) -> QueueWriter:
        writer = Queue.open_publisher(
            endpoint.path / name,
            schema=schema,
            segment_bytes=mib * MIB,
            provisioner=sidecar.provisioner,
        )
        sidecar.close_at_stop(writer.close)
        return writer

    live = publisher("live", LIVE_CLASSES, options.live_mib)
    snapshot = publisher("snapshot", SNAPSHOT_CLASSES, 4)
    requests = publisher("requests", REQUEST_CLASSES, 1)
    recovered = publisher("recovered", RECOVERED_CLASSES, 4)
    for name in ("snapshot", "requests", "recovered"):
        sidecar.retain(endpoint.path / name, bytes_max=32 * MIB)

    # What earlier lives have asked for and got is nobody's business any more. Whoever reads must be
    # there before the first question.
    asked = Queue.open_subscriber(endpoint.path / "requests", "recovery", start="latest")
    sidecar.close_at_stop(asked.close)
    session = RecoverySession(asked, recovered)
    answers = Queue.open_subscriber(endpoint.path / "recovered", "feed", start="latest")
    sidecar.close_at_stop(answers.close)

    # The end of the live queue says where the feed goes on.
    position = find_position(endpoint.path / "live")
    logging.info("begins at %s", position or "the beginning of what recovery has")
    lines = PacketRing(options.interface, options.lines, checksums=not options.no_checksums)
    sidecar.close_at_stop(lines.close)
    feed = HotThread(
        FeedHandler(**state_at(position)),
        readers=[answers],
        packets=[lines],
        outputs={"live": live, "requests": requests},
        name="feed",
        core=options.core,
        wait=choose_wait(options.wait),
        guard="enforce",
        counters_file=counters,
        provisioner=sidecar.provisioner,
    )

    # The books: from the last whole round of snapshots and what came live since, or from the start.
    cycle = find_cycle(endpoint.path / "snapshot")
    readers = [
        Queue.open_subscriber(
            endpoint.path / "live",
            "snapshot",
            start="earliest" if cycle is None else cycle.live_seq + 1,
        )
    ]
    if cycle is not None:
        readers.append(
            Queue.open_subscriber(endpoint.path / "snapshot", "snapshot", start=cycle.snapshot_seq)
        )
    for reader in readers:
        sidecar.close_at_stop(reader.close)
    books = HotThread(
        SnapshotPublisher(**state_at_cycle(cycle)),
        readers=readers,
        outputs={"snapshot": snapshot},
        name="snapshot",
        core=options.snapshot_core,
        wait=choose_wait(options.wait),
        guard="enforce",
        counters_file=counters,
        provisioner=sidecar.provisioner,
    )

    for thread in (feed, books):
        # Without it nothing is left to do. Whoever supervises us starts us.
        sidecar.attach(thread, stop_on_failure=True)
    host, port = options.recovery
    again = Backoff(first_s=0.01, max_s=1.0, reset_after_s=0.1)
    sidecar.connect(host, port, session, name="recovery", backoff=again)
    endpoint.ready(["live", "snapshot"])
    sidecar.serve()
    counted = {name: count for name, count in feed.counters.items() if count}
    logging.info("ends: %s, lines: %s", counted, lines.statistics())
    for thread in (feed, books):
        if thread.failure is not None:
            raise SystemExit(f"feed handler: {thread.failure}")


if __name__ == "__main__":
    main()
