"""How fast a real capture gets into a queue: the unpacked IEX DEEP sample, if it is there.

`measure` imports it from Python; `measure_decode` lets a compiled handler decode its packets on a
hot thread, against one that walks the same packets and publishes the same messages as they are.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import time
from pathlib import Path

import chronicle
from chronicle.feeds import Counts, hot_iex, import_capture
from chronicle.feeds.pcap import PcapReader
from chronicle.feeds.source import ByteSource
from chronicle.hot import Bytes, Handler, Output

from benches.common import ROOT, Run, median, median_ratio

#: The tests find their samples in the same way.
SAMPLES = Path(os.environ.get("CHRONICLE_DATA", ROOT.parent / "shared" / "data"))
SAMPLE = SAMPLES / "iex-deep10-20170425.pcap.gz"
MESSAGES = 391_999
PACKET = 1
RAW = 2


class Decodes(Handler):
    """Publishes the typed messages of each packet."""

    live: Output

    @chronicle.on.bytes(PACKET)
    def packet(self, data: Bytes) -> None:
        """Decode."""
        if hot_iex.check_packet(data) == hot_iex.SOUND:
            hot_iex.publish_messages(self.live, data, 0)


class Copies(Handler):
    """The floor: publishes the messages of each packet as they are on the wire."""

    live: Output

    @chronicle.on.bytes(PACKET)
    def packet(self, data: Bytes) -> None:
        """Walk and copy."""
        if hot_iex.check_packet(data) == hot_iex.SOUND:
            at = hot_iex.HEADER_BYTES
            for _ in range(hot_iex.messages_count(data)):
                length = data.u16(at)
                self.live.publish_bytes(RAW, data.part(at + 2, length))
                at += 2 + length


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


def measure_decode(run: Run) -> dict[str, float]:
    """Decode all packets on a hot thread, and copy their messages, in turns; ns per message."""
    found: dict[str, list[float]] = {"decode": [], "copy": []}
    with run.scratch("decode") as folder:
        with chronicle.Queue.open_publisher(folder / "packets") as packets:
            count = _publish_packets(packets)
        for turn in range(run.size(15, 1)):
            for name, handler in (("decode", Decodes()), ("copy", Copies())):
                found[name].append(_run(handler, folder, f"{name}-{turn}", count))
    return {
        "decode_deep_messages_count": MESSAGES,
        "decode_deep_median_ns": median(found["decode"]),
        "decode_deep_copy_median_ns": median(found["copy"]),
        "decode_deep_over_copy_ratio": median_ratio(found["decode"], found["copy"]),
    }


def _publish_packets(packets: chronicle.QueueWriter) -> int:
    """Publish the sample's UDP payloads; return how many."""
    with contextlib.closing(ByteSource(SAMPLE)) as source:
        for chunk in PcapReader(source, Counts()):
            for start, end in zip(chunk.starts.tolist(), chunk.ends.tolist(), strict=True):
                packets.append(PACKET, chunk.raw[start:end].tobytes())
    return packets.next_seq - 1


def _run(handler: Handler, folder: Path, name: str, count: int) -> float:
    """Run all packets through a handler; return nanoseconds per message that it published.

    The time is that from the first message to the last, by their own timestamps.
    """
    path = folder / name
    with (
        chronicle.Queue.open_publisher(path) as live,
        chronicle.Queue.open_subscriber(folder / "packets", None, start="earliest") as reader,
        chronicle.HotThread(
            handler, readers=[reader], outputs={"live": live}, meter="off", core=1
        ) as hot,
    ):
        while hot.status.messages < count:
            time.sleep(0.001)
    with chronicle.Queue.open_subscriber(path, None, start="earliest") as published:
        first = published.next()
        published.seek(MESSAGES)
        last = published.next()
        assert first is not None
        assert last is not None
        assert published.next() is None
        taken_ns = last.timestamp_ns - first.timestamp_ns
    shutil.rmtree(path)
    return taken_ns / MESSAGES
