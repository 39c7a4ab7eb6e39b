"""The decoders for handlers give what the NumPy decoders give, byte for byte; nothing breaks them.

Real captures and a generated market go through compiled handlers on a guarded hot thread, and come
out as the records that the NumPy decoders make of the same packets. Hostile packets go through both
forms of the handlers and through the NumPy decoders.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle.feeds import Batch, Counts, hot_iex, hot_mold, import_capture
from chronicle.feeds.generate import MarketGenerator, write_pcap
from chronicle.feeds.iex import TABLE as IEX_TABLE
from chronicle.feeds.iex import IexDecoder
from chronicle.feeds.itch import TABLE as ITCH_TABLE
from chronicle.feeds.itch import ItchFileDecoder
from chronicle.feeds.mold import MoldDecoder
from chronicle.feeds.pcap import PcapReader
from chronicle.feeds.source import ByteSource
from chronicle.feeds.type_ids import FEED_RANGE_SIZE, STREAM
from chronicle.feeds.wire import MessageTable
from chronicle.hot import Bytes, Counter, Handler, Info, Output, on
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests import feeds_support as made
from tests.hot_support import Harness, Step, assert_same
from tests.native_support import until
from tests.queue_support import subscriber

FULL = os.environ.get("CHRONICLE_FIRE") == "full"
SETTINGS = settings(
    max_examples=3_000 if FULL else 150,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
PACKET = 1


class Iex(Handler):
    live: Output
    foreign: Counter
    malformed: Counter
    messages: Counter

    @on.datagram
    def datagram(self, data: Bytes) -> None:
        self.packet(data, 0)

    @on.bytes(PACKET)
    def raw(self, data: Bytes) -> None:
        self.packet(data, 0)

    @on.bytes(2)
    def late(self, data: Bytes) -> None:
        self.packet(data, 2)

    def packet(self, data: Bytes, skip: int) -> None:
        found = hot_iex.check_packet(data)
        if found == hot_iex.SOUND:
            self.messages.add(hot_iex.publish_messages(self.live, data, skip))
        elif found == hot_iex.FOREIGN:
            self.foreign.add()
        else:
            self.malformed.add()


class Mold(Handler):
    live: Output
    foreign: Counter
    malformed: Counter
    requests: Counter
    ends: Counter
    messages: Counter

    @on.datagram
    def datagram(self, data: Bytes) -> None:
        self.packet(data)

    @on.bytes(PACKET)
    def raw(self, data: Bytes) -> None:
        self.packet(data)

    def packet(self, data: Bytes) -> None:
        found = hot_mold.check_packet(data)
        if found == hot_mold.SOUND:
            self.messages.add(hot_mold.publish_messages(self.live, data, 0))
            if hot_mold.is_end_of_session(data):
                self.ends.add()
        elif found == hot_mold.FOREIGN:
            self.foreign.add()
        elif found == hot_mold.REQUEST:
            self.requests.add()
        else:
            self.malformed.add()


Records = list[tuple[int, bytes]]


def records(batches: Iterable[Batch]) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of the messages of the feed, without those of stream control."""
    for batch in batches:
        for index, type_id in enumerate(batch.type_ids.tolist()):
            if not STREAM <= type_id < STREAM + FEED_RANGE_SIZE:
                yield type_id, bytes(batch.payload(index))


def through_a_hot_thread(handler: Handler, packets: Iterable[bytes], folder: Path) -> Records:
    """Publish packets, let a handler read them on a hot thread, and return what it published."""
    segment_bytes = 1 << 22
    with (
        chronicle.Queue.open_publisher(folder / "in", segment_bytes=segment_bytes) as packets_in,
        chronicle.Queue.open_publisher(folder / "out", segment_bytes=segment_bytes) as live,
        subscriber(folder / "in", "hot") as reader,
    ):
        count = sum(1 for packet in packets if packets_in.append(PACKET, packet))
        hot = chronicle.HotThread(
            handler,
            readers=[reader],
            outputs={"live": live},
            wait="hybrid",
            spin_ns=5_000,
            guard="enforce",
        )
        with hot:
            until(lambda: hot.status.messages == count or hot.failure is not None)
            assert hot.status.guard_seen == 0
            counters = hot.counters
        assert hot.failure is None
        assert counters["malformed"] == counters["foreign"] == 0
    with subscriber(folder / "out") as found:
        out = [(m.type_id, bytes(m.payload)) for m in iter(found.next, None)]
    assert counters["messages"] == len(out)
    return out


def udp_payloads(path: Path) -> list[bytes]:
    with contextlib.closing(ByteSource(path)) as source:
        return made.payloads(PcapReader(source, Counts()))


def test_the_real_deep_capture_gives_the_same_records(tmp_path: Path) -> None:
    path = made.sample(made.IEX_FILE)
    with import_capture(path) as capture:
        expected = list(records(capture))
        counts = capture.counts
    # Nothing that the NumPy decoder leaves out.
    assert (counts.duplicates, counts.skipped) == (0, {})
    assert len(expected) == counts.messages_count > 390_000
    assert through_a_hot_thread(Iex(), udp_payloads(path), tmp_path) == expected


def test_a_generated_tops_market_gives_the_same_records(tmp_path: Path) -> None:
    count = 40_000 if FULL else 10_000
    path = tmp_path / "market.pcap"
    write_pcap(path, [MarketGenerator(seed=5, venue=1)], count=count)
    expected = list(records(MarketGenerator(seed=5, venue=1).batches(count)))
    assert len(expected) == count
    assert through_a_hot_thread(Iex(), udp_payloads(path), tmp_path) == expected


def test_the_itch_sample_gives_the_same_records(tmp_path: Path) -> None:
    data = made.sample(made.ITCH_FILE).read_bytes()
    expected = list(records(ItchFileDecoder(io.BytesIO(data), Counts()).batches()))
    messages, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from(">H", data, at)
        messages.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    packets = [made.mold(messages[n : n + 17], n + 1) for n in range(0, len(messages), 17)]
    assert len(expected) == len(messages) >= 10_000
    assert through_a_hot_thread(Mold(), packets, tmp_path) == expected


# --- Every message, whole, grown and cut ---


def wire_messages(table: MessageTable) -> list[bytes]:
    """One message of each type, filled with different bytes, text with spaces at its end."""
    out = []
    for layout in table.layouts.values():
        message = bytearray((17 * n + 129) & 0xFF for n in range(layout.size_bytes))
        message[0] = ord(layout.code)
        for offset, form in layout.fields.values():
            if form.startswith("S"):
                width = int(form[1:])
                # One byte of text keeps its space.
                text = b" " if width == 1 else b"A B\0 "[:width].ljust(width, b" ")
                message[offset : offset + width] = text
        out.append(bytes(message))
    return out


FEEDS: dict[str, tuple[Any, MessageTable]] = {"iex": (Iex, IEX_TABLE), "mold": (Mold, ITCH_TABLE)}


def packet_of(feed: str, messages: list[bytes]) -> bytes:
    return made.iex(messages, 1, protocol=0x8004) if feed == "iex" else made.mold(messages, 1)


def decoded(feed: str, packet: bytes) -> tuple[Records, dict[str, int]]:
    """What the NumPy decoder makes of one packet alone."""
    counts = Counts()
    decoder = IexDecoder(counts) if feed == "iex" else MoldDecoder(counts)
    capture = made.pcap([made.frame(packet)])
    (chunk,), _ = made.read_packets(capture, chunk_bytes=1 << 14)
    batch = decoder.decode(chunk)
    return list(records([] if batch is None else [batch])), counts.skipped


def check(feed: str, packets: list[bytes], kind: str = "datagram") -> Records:
    """Decode packets one by one in all three ways; return the records."""
    handler, _ = FEEDS[feed]
    info = Info(line=3) if kind == "datagram" else Info(type_id=PACKET)
    outcome = assert_same(handler, [Step(packet, info, kind=kind) for packet in packets])
    assert outcome.failure is None
    found = [decoded(feed, packet) for packet in packets]
    assert outcome.published["live"] == [each for out, _ in found for each in out]
    names = {"foreign": ("not IEX-TP", "not MoldUDP64"), "malformed": ("malformed packet",)}
    names["requests"] = ("request",)
    for counter, reasons in names.items():
        expected = sum(skipped.get(reason, 0) for _, skipped in found for reason in reasons)
        assert outcome.counters.get(counter, 0) == expected, counter
    return outcome.published["live"]


@pytest.mark.parametrize("feed", FEEDS)
def test_every_message_is_typed_whole_or_grown_and_raw_when_it_is_cut(feed: str) -> None:
    _, table = FEEDS[feed]
    for message in wire_messages(table):
        layout = table.layouts[message[0]]
        whole = [message, message + b"more"]
        cut = [message[:size] for size in range(len(message))]
        found = check(feed, [packet_of(feed, [each]) for each in whole + cut])
        type_ids = [type_id for type_id, _ in found]
        assert type_ids == [layout.message.type_id] * 2 + [table.raw_type_id] * len(cut)
        assert [data for _, data in found[2:]] == cut
    assert check(feed, [packet_of(feed, wire_messages(table))], kind="data")


@pytest.mark.parametrize("feed", FEEDS)
def test_every_truncation_of_a_packet_is_counted_and_publishes_nothing(feed: str) -> None:
    _, table = FEEDS[feed]
    packet = packet_of(feed, wire_messages(table)[:4])
    assert check(feed, [packet[:size] for size in range(len(packet))]) == []
    assert check(feed, [packet + b"\0"]) == []


@pytest.mark.parametrize("feed", FEEDS)
def test_lengths_and_counts_that_lie_are_counted_and_publish_nothing(feed: str) -> None:
    _, table = FEEDS[feed]
    messages = wire_messages(table)[:3]
    packet = packet_of(feed, messages)
    order, count_at, at = ("<", 14, 40) if feed == "iex" else (">", 18, 20)
    places = [count_at] + ([12] if feed == "iex" else [])
    for message in messages:
        places.append(at)
        at += 2 + len(message)
    for place in places:
        (value,) = struct.unpack_from(order + "H", packet, place)
        for lie in {0, value - 1, value + 1, value + 2, 0x7FFF, 0xFFFE} - {value}:
            changed = bytearray(packet)
            struct.pack_into(order + "H", changed, place, lie)
            assert check(feed, [bytes(changed)]) == [], (place, lie)


@pytest.mark.parametrize("feed", FEEDS)
def test_sequence_numbers_that_cannot_be_are_malformed(feed: str) -> None:
    packet = bytearray(packet_of(feed, wire_messages(FEEDS[feed][1])[:1]))
    form, at = ("<Q", 24) if feed == "iex" else (">Q", 10)
    for sequence, count in ((0, 1), ((1 << 62) - 1, 1), (1 << 62, 0), (1 << 63, 0), (1 << 64, 0)):
        struct.pack_into(form, packet, at, max(sequence - (sequence >> 64), 0))
        assert len(check(feed, [bytes(packet)])) == count, sequence


class Direct(Handler):
    """Publishes a message of the wire from wherever the datagram says."""

    live: Output

    @on.datagram
    def datagram(self, data: Bytes, info: Info) -> None:
        body = data.part(16, len(data) - 16)
        if info.line:
            hot_mold.WIRES.publish(self.live, body, data.i64(0), data.i64(8))
        else:
            hot_iex.WIRES.publish(self.live, body, data.i64(0), data.i64(8))


ENDS = [-(1 << 63), -1, 0, 1, 2, 30, 31, 40, 60, (1 << 32) + 1, (1 << 63) - 1]


@SETTINGS
@given(
    st.integers(0, 1),
    st.sampled_from(ENDS) | st.integers(0, 64),
    st.sampled_from(ENDS) | st.integers(0, 64),
    st.sampled_from(wire_messages(IEX_TABLE) + wire_messages(ITCH_TABLE)),
)
@example(0, 0, 31, b"8" + bytes(29))
@example(0, 31, -1, b"8" + bytes(29))
def test_a_message_that_is_not_inside_fails_alike(
    line: int, at: int, length: int, body: bytes
) -> None:
    data = struct.pack("<qq", at, length) + body
    outcome = assert_same(Direct, [Step(data, Info(line=line), kind="datagram")])
    inside = 0 <= at <= len(body) and 0 <= length <= len(body) - at
    assert (outcome.failure is None) == inside


class GuardedPage:
    """A page, and behind it one whose every access kills the process."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        libc = ctypes.CDLL(None, use_errno=True)
        end = ctypes.c_void_p(self._base + mmap.PAGESIZE)
        assert libc.mprotect(end, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0

    def put(self, data: bytes) -> int:
        """Put bytes at the end of the page; return where they begin."""
        place = self._base + mmap.PAGESIZE - len(data)
        ctypes.memmove(place, data, len(data))
        return place


def test_nothing_is_read_behind_a_packet() -> None:
    page = GuardedPage()
    for feed, (handler, table) in FEEDS.items():
        harness = Harness(handler())
        messages = wire_messages(table)
        whole = packet_of(feed, [*messages, b""])
        packets = [whole[:size] for size in range(0, len(whole), 7)]
        packets += [packet_of(feed, [each[:size]]) for each in messages for size in (0, 1, 8, 17)]
        packets += [packet_of(feed, [each]) for each in messages]
        for packet in [whole, *packets]:
            status = harness.send_place(page.put(packet), len(packet), kind="datagram")
            assert status == 0
        assert len(harness.published) == len(messages) * 6 + 1


@pytest.mark.parametrize("protocol", [0x8002, 0x8005, 0x8006])
def test_protocols_without_a_table_are_raw_and_unknown_ones_foreign(protocol: int) -> None:
    found = check("iex", [made.iex([made.quote(), b""], 1, protocol=protocol)])
    assert [type_id for type_id, _ in found] == ([0x8100] * 2 if protocol != 0x8006 else [])


def test_messages_that_were_seen_are_skipped() -> None:
    packet = made.iex([made.quote(n) for n in range(5)], 1)
    outcome = assert_same(Iex, [Step(packet, Info(type_id=2))])
    assert outcome.published["live"] == decoded("iex", packet)[0][2:]
    assert outcome.counters["messages"] == 3
    short = made.iex([made.quote()], 1)
    assert assert_same(Iex, [Step(short, Info(type_id=2))]).counters["messages"] == 0


def test_the_end_of_a_session_has_no_messages() -> None:
    outcome = assert_same(Mold, [Step(made.mold_end(7), kind="datagram")])
    assert (outcome.counters["ends"], outcome.counters["malformed"]) == (1, 0)
    lying = Step(made.mold_end(7) + b"\0\0", kind="datagram")
    assert assert_same(Mold, [lying]).counters["malformed"] == 1


@st.composite
def hostile(draw: st.DrawFn, feed: str) -> bytes:
    """Return a packet that was sound, with some bytes changed; or noise."""
    _, table = FEEDS[feed]
    known = st.sampled_from(wire_messages(table))
    messages = draw(st.lists(known | st.binary(max_size=90), max_size=5))
    packet = bytearray(packet_of(feed, messages))
    for _ in range(draw(st.integers(0, 4))):
        if packet:
            place = draw(st.integers(0, min(len(packet) - 1, 60)) | st.integers(0, len(packet) - 1))
            packet[place] = draw(st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    cut = draw(st.integers(0, len(packet)) | st.just(len(packet)))
    return bytes(packet[:cut]) + draw(st.just(b"") | st.binary(max_size=6))


@pytest.mark.parametrize("feed", FEEDS)
def test_no_packet_breaks_it_and_all_three_ways_agree(feed: str) -> None:
    @SETTINGS
    @given(st.lists(hostile(feed) | st.binary(max_size=80), min_size=1, max_size=3))
    def run(packets: list[bytes]) -> None:
        check(feed, packets)

    run()
