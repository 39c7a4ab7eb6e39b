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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chronicle import Handler, HotThread, PacketRing, Queue, QueueReader, QueueWriter, Sidecar
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
from chronicle.queue import Start
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


class Process:
    """What everything in this process is opened with, and closed by."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.sidecar = Sidecar()
        self.endpoint = Bus(options.bus).open_endpoint(f"streams/{options.venue}")
        self.sidecar.serve_endpoint(self.endpoint)
        self.counters = CountersFile.create(self.endpoint.path / "COUNTERS")
        self.sidecar.publish_counters(self.counters)

    def publisher(self, name: str, schema: Sequence[type[MessageBase]], mib: int) -> QueueWriter:
        """Open a queue of ours for writing."""
        writer = Queue.open_publisher(
            self.endpoint.path / name,
            schema=schema,
            segment_bytes=mib * MIB,
            provisioner=self.sidecar.provisioner,
        )
        self.sidecar.close_at_stop(writer.close)
        return writer

    def subscriber(self, queue: str, name: str, start: Start) -> QueueReader:
        """Open a queue of ours for reading."""
        reader = Queue.open_subscriber(self.endpoint.path / queue, name, start=start)
        self.sidecar.close_at_stop(reader.close)
        return reader

    def thread(self, handler: Handler, name: str, core: int | None, **given: Any) -> HotThread:
        """Make a hot thread with these readers, packets and outputs."""
        return HotThread(
            handler,
            name=name,
            core=core,
            wait=choose_wait(self.options.wait),
            guard="enforce",
            counters_file=self.counters,
            provisioner=self.sidecar.provisioner,
            **given,
        )


def books_thread(process: Process, snapshot: QueueWriter) -> HotThread:
    """Make the thread that keeps the books.

    It begins with the last whole round of snapshots and what came live since, or from the start.
    """
    cycle = find_cycle(process.endpoint.path / "snapshot")
    live_start: Start = "earliest" if cycle is None else cycle.live_seq + 1
    readers = [process.subscriber("live", "snapshot", live_start)]
    if cycle is not None:
        readers.append(process.subscriber("snapshot", "snapshot", cycle.snapshot_seq))
    handler = SnapshotPublisher(**state_at_cycle(cycle))
    core = process.options.snapshot_core
    outputs = {"snapshot": snapshot}
    return process.thread(handler, "snapshot", core, readers=readers, outputs=outputs)


def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="feed handler: %(message)s")
    process = Process(options)
    sidecar, endpoint = process.sidecar, process.endpoint
    live = process.publisher("live", LIVE_CLASSES, options.live_mib)
    snapshot = process.publisher("snapshot", SNAPSHOT_CLASSES, 4)
    requests = process.publisher("requests", REQUEST_CLASSES, 1)
    recovered = process.publisher("recovered", RECOVERED_CLASSES, 4)
    for name in ("snapshot", "requests", "recovered"):
        sidecar.retain(endpoint.path / name, bytes_max=32 * MIB)

    # What earlier lives have asked for and got is nobody's business any more. Whoever reads must be
    # there before the first question.
    session = RecoverySession(process.subscriber("requests", "recovery", "latest"), recovered)
    answers = process.subscriber("recovered", "feed", "latest")

    # The end of the live queue says where the feed goes on.
    position = find_position(endpoint.path / "live")
    logging.info("begins at %s", position or "the beginning of what recovery has")
    lines = PacketRing(options.interface, options.lines, checksums=not options.no_checksums)
    sidecar.close_at_stop(lines.close)
    feed = process.thread(
        FeedHandler(**state_at(position)),
        "feed",
        options.core,
        readers=[answers],
        packets=[lines],
        outputs={"live": live, "requests": requests},
    )
    books = books_thread(process, snapshot)

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
