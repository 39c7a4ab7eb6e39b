"""The pattern in its reference form: a loop that only works, a sidecar that does the rest.

In plain, interpreted Python both share the interpreter lock, so this is for development and tests;
the loop has the shape that compiled hot threads will have. Run it:

    python examples/reference_loop.py
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

import chronicle
from chronicle import AddReader, Stop

STREAMS = ("venue-a", "venue-b", "venue-c")
MESSAGES = 1_000


def publish(root: Path) -> None:
    """Open one stream after the other, as venues come up during a day."""
    for name in STREAMS:
        with chronicle.Queue.open_publisher(root / name, segment_bytes=1 << 20) as writer:
            for number in range(MESSAGES):
                writer.append(1, f"{name} {number}".encode())
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

        counts: dict[int, int] = {}
        fanin = chronicle.FanInReader()
        running = True
        while running:
            while (command := rx.try_recv()) is not None:
                match command:
                    case AddReader(reader):
                        source = fanin.add_reader(reader)
                        print(f"source {source}: {Path(reader.path).name}")
                    case Stop():
                        running = False
            fanin.wait(timeout=0.1)
            while (message := fanin.next()) is not None:
                assert message.source is not None
                counts[message.source] = counts.get(message.source, 0) + 1
            fanin.commit()
            if sum(counts.values()) == len(STREAMS) * MESSAGES:
                sidecar_runs.clear()
        fanin.close()
        for thread in threads:
            thread.join()
    print(f"{sum(counts.values())} messages from {len(counts)} streams")


if __name__ == "__main__":
    main()
