"""The pattern in its reference form: a loop that only works, a sidecar that does the rest.

In plain, interpreted Python both share the interpreter lock, so this is for development and tests.
`reference_hot.py` is the same program with a compiled handler on a native thread. Run both:

    python examples/reference_loop.py
    python examples/reference_hot.py
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

import chronicle
from chronicle import AddReader, Stop
from chronicle.message import MessageBase, i64, u16

STREAMS = ("venue-a", "venue-b", "venue-c")
MESSAGES = 1_000


@chronicle.message(1)
class Tick(MessageBase):
    price: i64
    venue: u16


def publish(root: Path) -> None:
    """Open one stream after the other, as venues come up during a day."""
    for venue, name in enumerate(STREAMS):
        with chronicle.Queue.open_publisher(root / name, segment_bytes=1 << 20) as writer:
            for number in range(MESSAGES):
                writer.publish(Tick(price=number * 7 % 1_000, venue=venue))
        time.sleep(0.05)


def sidecar(root: Path, tx: chronicle.Sender, running: threading.Event) -> None:
    """Discover streams, open them, and hand them over fully opened. Slow things happen here."""
    known: set[Path] = set()
    while running.is_set():
        for path in sorted(root.iterdir()):
            if path in known:
                continue
            try:
                reader = chronicle.Queue.open_subscriber(path, "strategy")
            except chronicle.NotAQueue:
                continue  # Its writer is still creating it.
            known.add(path)
            tx.send(AddReader(reader))
        time.sleep(0.01)
    tx.send(Stop())


def main() -> None:
    """Run the loop until every message of every stream has come through."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tx, rx = chronicle.channel(16)
        sidecar_runs = threading.Event()
        sidecar_runs.set()
        threads = [
            threading.Thread(target=publish, args=(root,)),
            threading.Thread(target=sidecar, args=(root, tx, sidecar_runs)),
        ]
        for thread in threads:
            thread.start()

        counts = [0] * len(STREAMS)
        sums = [0] * len(STREAMS)
        fanin = chronicle.FanInReader()
        running = True
        while running:
            while (command := rx.try_recv()) is not None:
                match command:
                    case AddReader(reader):
                        fanin.add_reader(reader)
                    case Stop():
                        running = False
            fanin.wait(timeout=0.1)
            while (message := fanin.next()) is not None:
                tick = Tick.view(message.payload)
                counts[tick.venue] += 1
                sums[tick.venue] += tick.price * message.seq
            fanin.commit()
            if sum(counts) == len(STREAMS) * MESSAGES:
                sidecar_runs.clear()
        fanin.close()
        for thread in threads:
            thread.join()
    for name, count, total in zip(STREAMS, counts, sums, strict=True):
        print(f"{name}: {count} messages, {total}")


if __name__ == "__main__":
    main()
