"""How fast a real capture gets into a queue: the unpacked IEX DEEP sample, if it is there."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import chronicle
from chronicle.feeds import import_capture

from benches.common import ROOT, Run, median

#: The tests find their samples in the same way.
SAMPLES = Path(os.environ.get("CHRONICLE_DATA", ROOT.parent / "shared" / "data"))
SAMPLE = SAMPLES / "iex-deep10-20170425.pcap.gz"
MESSAGES = 391_999


def is_available() -> bool:
    """Whether the sample is there."""
    return SAMPLE.is_file()


def measure(run: Run) -> dict[str, float]:
    """Import the whole capture, some times; messages per second."""
    rates: list[float] = []
    with run.scratch("feed") as folder:
        folder.mkdir(parents=True)
        unpacked = folder / "deep.pcap"
        unpacked.write_bytes(gzip.decompress(SAMPLE.read_bytes()))
        for turn in range(run.size(7, 1)):
            with (
                chronicle.Provisioner() as provisioner,
                import_capture(unpacked) as capture,
                chronicle.Queue.open_publisher(
                    folder / f"queue-{turn}",
                    schema=list(capture.classes.values()),
                    provisioner=provisioner,
                ) as writer,
            ):
                started = time.perf_counter()
                for batch in capture:
                    writer.append_mixed(
                        batch.buffer.data,
                        batch.offsets.data,
                        batch.lengths.data,
                        batch.type_ids.data,
                        batch.timestamps_ns.data,
                    )
                seconds = time.perf_counter() - started
                # The feed's own messages, and markers of its gaps and restarts besides.
                assert capture.counts.messages_count == MESSAGES
                assert writer.next_seq - 1 >= MESSAGES
                rates.append(MESSAGES / seconds)
    return {
        "import_deep_messages_count": MESSAGES,
        "import_deep_median_per_s": median(rates),
        "import_deep_max_per_s": max(rates),
    }
