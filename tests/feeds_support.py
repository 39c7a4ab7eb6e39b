"""What the tests of feeds share: building packets and captures by hand, and the sample data.

Everything here is written with plain `struct`, apart from the code under test.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from chronicle.feeds import Batch, Counts, message_classes
from chronicle.feeds.iex import IexDecoder
from chronicle.feeds.mold import MoldDecoder
from chronicle.feeds.pcap import Packets, PcapReader
from chronicle.message import MessageBase

IEX_FILE = "iex-deep10-20170425.pcap.gz"
ITCH_FILE = "nasdaq-itch50-aapl-20200130-10k.bin"
BINANCE_FILE = "binance-usdm-btcusdt-20240808.txt.gz"

MAGIC = {
    ("<", "us"): b"\xd4\xc3\xb2\xa1",
    (">", "us"): b"\xa1\xb2\xc3\xd4",
    ("<", "ns"): b"\x4d\x3c\xb2\xa1",
    (">", "ns"): b"\xa1\xb2\x3c\x4d",
}


def sample(name: str) -> Path:
    """Return the path of a sample capture, or skip the test."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("CHRONICLE_DATA", beside)) / name
    if not path.exists():
        pytest.skip(f"sample data is absent: {name}; set CHRONICLE_DATA to its directory")
    return path


def frame(
    payload: bytes,
    *,
    vlans: Sequence[int] = (),
    options: bytes = b"",
    protocol: int = 17,
    fragment: int = 0,
    ethertype: int = 0x0800,
    port: int = 26_477,
    trailer: bytes = b"",
) -> bytes:
    """Return an Ethernet frame with a UDP payload."""
    udp = struct.pack(">HHHH", 1, port, 8 + len(payload), 0) + payload
    ihl = 5 + len(options) // 4
    total = ihl * 4 + len(udp)
    ip = struct.pack(
        ">BBHHHBBH4s4s",
        0x40 | ihl,
        0,
        total,
        0,
        fragment,
        1,
        protocol,
        0,
        b"\1\2\3\4",
        b"\5\6\7\x08",
    )
    tags = b"".join(struct.pack(">HH", kind, 7) for kind in vlans)
    return bytes(12) + tags + struct.pack(">H", ethertype) + ip + options + udp + trailer


def pcap(
    frames: Iterable[bytes],
    *,
    order: str = "<",
    unit: str = "us",
    linktype: int = 1,
    start: int = 1_500_000_000,
) -> bytes:
    """Return a capture file; packet ``i`` has the time ``start`` seconds and ``i`` ticks."""
    out = [MAGIC[order, unit], struct.pack(order + "HHiIII", 2, 4, 0, 0, 65_535, linktype)]
    for tick, data in enumerate(frames):
        out += [struct.pack(order + "IIII", start, tick, len(data), len(data)), data]
    return b"".join(out)


def blocks(messages: Iterable[bytes], order: str) -> bytes:
    return b"".join(struct.pack(order + "H", len(m)) + m for m in messages)


def iex(
    messages: Sequence[bytes],
    sequence: int,
    *,
    offset: int | None = None,
    sent_ns: int = 0,
    session: int = 9,
    channel: int = 1,
    protocol: int = 0x8003,
) -> bytes:
    """Return an IEX-TP packet."""
    body = blocks(messages, "<")
    offset = (sequence - 1) * 40 if offset is None else offset
    head = (1, 0, protocol, channel, session, len(body), len(messages), offset, sequence, sent_ns)
    return struct.pack("<BBHIIHHqqq", *head) + body


def mold(messages: Sequence[bytes], sequence: int, *, session: bytes = b"0000012345") -> bytes:
    """Return a MoldUDP64 packet."""
    return session + struct.pack(">QH", sequence, len(messages)) + blocks(messages, ">")


def mold_end(sequence: int, *, session: bytes = b"0000012345") -> bytes:
    return session + struct.pack(">QH", sequence, 0xFFFF)


def quote(time_ns: int = 5, symbol: bytes = b"ZIEXT   ", flags: int = 0x40) -> bytes:
    """Return a TOPS 1.6 quote update."""
    return struct.pack("<BBq8sIqqI", 0x51, flags, time_ns, symbol, 97, 990_500, 991_100, 10)


def delete(ref: int, time_ns: int = 34_200_000_000_007) -> bytes:
    """Return an ITCH 5.0 order delete."""
    when = struct.pack(">HI", time_ns >> 32, time_ns & 0xFFFF_FFFF)
    return struct.pack(">cHH", b"D", 13, 2) + when + struct.pack(">Q", ref)


def read_packets(capture: bytes, *, chunk_bytes: int = 1 << 21) -> tuple[list[Packets], Counts]:
    counts = Counts()
    reader = PcapReader(io.BytesIO(capture), counts, chunk_bytes=chunk_bytes)
    return list(reader), counts


def payloads(chunks: Iterable[Packets]) -> list[bytes]:
    return [
        chunk.raw[start:end].tobytes()
        for chunk in chunks
        for start, end in zip(chunk.starts.tolist(), chunk.ends.tolist(), strict=True)
    ]


def decode(
    feed: str, packets: Iterable[bytes], *, chunk_bytes: int = 1 << 21
) -> tuple[list[MessageBase | bytes], Counts]:
    """Decode UDP payloads that arrive in this order; raw records come as bytes."""
    counts = Counts()
    capture = pcap(frame(packet) for packet in packets)
    reader = PcapReader(io.BytesIO(capture), counts, chunk_bytes=chunk_bytes)
    decoder = IexDecoder(counts) if feed == "iex" else MoldDecoder(counts)
    return messages(decoder.batches(reader), feed), counts


def messages(batches: Iterable[Batch], feed: str) -> list[MessageBase | bytes]:
    classes = message_classes(feed)
    return [
        bytes(found) if isinstance(found, memoryview) else found
        for batch in batches
        for _, _, found in batch.messages(classes)
    ]
