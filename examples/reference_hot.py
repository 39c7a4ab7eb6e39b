"""The reference loop with a compiled handler on a native thread, and `chronicle.Sidecar`.

The handler is plain Python; what runs is machine code that makes no system call, allocates nothing
and never needs the interpreter lock. The sidecar discovers the streams, opens them, hands them over
fully opened, and stops everything in order. Compare `reference_loop.py`; needs the extra `hot`.

    python examples/reference_hot.py
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import chronicle
from chronicle.hot import Cells, Counter, Info
from chronicle.message import Array, MessageBase, i64, u16

STREAMS = ("venue-a", "venue-b", "venue-c")
MESSAGES = 1_000


@chronicle.message(1)
class Tick(MessageBase):
    price: i64
    venue: u16


class Totals(chronicle.Handler):
    """Adds up what each venue sends."""

    counts: Annotated[Cells[int], Array(i64, 3)]
    sums: Annotated[Cells[int], Array(i64, 3)]
    seen: Counter

    @chronicle.on(Tick)
    def tick(self, tick: Tick, info: Info) -> None:
        self.counts[tick.venue] += 1
        self.sums[tick.venue] += tick.price * info.seq
        self.seen.add(1)


def publish(root: Path) -> None:
    """Open one stream after the other, as venues come up during a day."""
    for venue, name in enumerate(STREAMS):
        with chronicle.Queue.open_publisher(root / name, segment_bytes=1 << 20) as writer:
            for number in range(MESSAGES):
                writer.publish(Tick(price=number * 7 % 1_000, venue=venue))
        time.sleep(0.05)


def main() -> None:
    """Run until every message of every stream has come through."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        publisher = threading.Thread(target=publish, args=(root,))
        publisher.start()
        with chronicle.Sidecar() as sidecar:
            hot = chronicle.HotThread(Totals(), name="totals", wait="hybrid")
            sidecar.discover(root / "*", hot, name="strategy")
            while hot.counters["seen"] < len(STREAMS) * MESSAGES:
                time.sleep(0.01)
            publisher.join()
        state = hot.state
    for name, count, total in zip(STREAMS, state["counts"], state["sums"], strict=True):
        print(f"{name}: {count} messages, {total}")


if __name__ == "__main__":
    main()
