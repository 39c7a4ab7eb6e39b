"""Opening captures: recognizing feeds, compression, cut and damaged files, the generator."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import pytest
from chronicle.errors import ChronicleError, DecodeError
from chronicle.feeds import (
    Batch,
    Capture,
    guess_feed,
    import_capture,
    message_classes,
    type_name,
)
from chronicle.feeds import iex as iex_feed
from chronicle.feeds.catalog import FEEDS
from chronicle.feeds.generate import MarketGenerator, write_pcap
from chronicle.feeds.source import ByteSource
from chronicle.feeds.type_ids import FEED_RANGE_SIZE, RAW_TYPE_IDS
from chronicle.message import message_from_schema

from tests.feeds_support import blocks, delete, frame, iex, messages, mold, pcap, quote

IEX_CAPTURE = pcap(frame(iex([quote(n)], n)) for n in range(1, 500))


def drain(capture: Capture) -> list[Batch]:
    with capture:
        return list(capture)


def test_feeds_are_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    contents = {
        "iex": IEX_CAPTURE,
        "mold": pcap([frame(mold([delete(1)], 1))]),
        "itch": blocks([delete(1)] * 3, ">"),
        "binance": b'1723161255030314667 {"lastUpdateId":1,"bids":[],"asks":[]}\n',
    }
    assert set(contents) == set(FEEDS)
    for feed, data in contents.items():
        path = tmp_path / "misleading.binance.pcap.itch"
        path.write_bytes(data)
        capture = import_capture(path)
        assert capture.feed == feed
        assert capture.classes == message_classes(feed)
        drain(capture)
        assert capture.counts.messages_count > 0


def test_heartbeats_alone_are_enough_to_tell_a_feed() -> None:
    assert guess_feed(pcap([frame(b"noise" * 20), frame(iex([], 1))])) == "iex"
    assert guess_feed(pcap([frame(mold([], 1))])) == "mold"


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"hello world", bytes(100), pcap([]), pcap([frame(b"x" * 99)])]
)
def test_a_file_of_no_known_feed_is_a_decode_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "unknown"
    path.write_bytes(data)
    with pytest.raises(DecodeError, match="name"):
        import_capture(path)


def test_a_feed_that_is_named_is_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(pcap([]))
    assert drain(import_capture(path, feed="mold")) == []
    with pytest.raises(ValueError, match="feeds are iex, mold, itch, binance"):
        import_capture(path, feed="nyse")
    path.write_bytes(b"text")
    with pytest.raises(DecodeError, match="not a pcap file"):
        import_capture(path, feed="iex")
    with pytest.raises(FileNotFoundError):
        import_capture(tmp_path / "absent")


def test_compressed_captures_give_the_same_messages(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    half = len(IEX_CAPTURE) // 2
    members = gzip.compress(IEX_CAPTURE[:half]) + gzip.compress(IEX_CAPTURE[half:]) + bytes(600)
    for data in (
        IEX_CAPTURE,
        gzip.compress(IEX_CAPTURE),
        members,
        zstandard.compress(IEX_CAPTURE),
        zstandard.compress(IEX_CAPTURE[:half]) + zstandard.compress(IEX_CAPTURE[half:]),
    ):
        path = tmp_path / "capture"
        path.write_bytes(data)
        capture = import_capture(path)
        assert len(messages(drain(capture), "iex")) == 499
        assert capture.counts.truncated == 0
        assert capture.bytes_done == capture.bytes_total == len(data)


def test_a_cut_gzip_file_gives_what_can_be_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(gzip.compress(IEX_CAPTURE)[:-200])
    capture = import_capture(path)
    assert 0 < len(messages(drain(capture), "iex")) <= 499
    assert capture.counts.truncated == 1


def test_a_damaged_compressed_file_is_a_decode_error(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "capture"
    for packed in (gzip.compress(IEX_CAPTURE), zstandard.compress(IEX_CAPTURE)):
        damaged = bytearray(packed)
        damaged[len(packed) // 2 :] = bytes(len(packed) - len(packed) // 2)
        path.write_bytes(damaged)
        with pytest.raises(DecodeError, match="damaged"):
            drain(import_capture(path))


def test_zstd_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    path = tmp_path / "capture"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    with pytest.raises(ChronicleError, match=r"chronicle-python\[archive\]") as found:
        import_capture(path)
    assert str(path) in str(found.value)


def test_reading_a_source_piece_by_piece_gives_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4_000
    path = tmp_path / "file"
    path.write_bytes(zlib.compress(data, wbits=31))
    with ByteSource(path) as source:
        assert source.peek(10) == data[:10]
        assert source.peek(5) == data[:5]
        pieces = [source.read(3)]
        while pieces[-1]:
            pieces.append(source.read(70_001))
        assert b"".join(pieces) == data
        assert {len(p) for p in pieces[1:-2]} == {70_001}


def test_progress_moves_forward_and_ends_at_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "big"
    write_pcap(path, [MarketGenerator()], count=60_000)
    with import_capture(path) as capture:
        seen = [capture.bytes_done for _ in capture]
    assert seen == sorted(seen)
    assert len(seen) > 1
    assert capture.bytes_done == capture.bytes_total


def test_every_message_class_has_one_number_in_the_range_of_its_feed() -> None:
    ranges = {"iex": 0x8100, "mold": 0x8200, "itch": 0x8200, "binance": 0x8300}
    for feed, classes in FEEDS.items():
        for type_id, cls in classes.items():
            assert cls.type_id == type_id
            assert type_id not in RAW_TYPE_IDS
            assert type_id // FEED_RANGE_SIZE * FEED_RANGE_SIZE in (0x8000, ranges[feed])
            assert message_from_schema(cls.schema).schema == cls.schema
    with pytest.raises(ValueError, match="unknown feed"):
        message_classes("none")


def test_type_names_are_for_people() -> None:
    assert type_name(0x8001) == "stream.StreamGap"
    assert type_name(0x8200) == "itch.raw"
    assert type_name(0x81FF) == "33279"
    assert type_name(1) == "1"


def test_the_made_up_market_is_the_same_for_the_same_seed() -> None:
    def content(market: MarketGenerator, count: int) -> list[object]:
        return list(messages(market.batches(count), "iex"))

    first = content(MarketGenerator(seed=3, venue=0), 9_000)
    assert len(first) == 9_000
    assert content(MarketGenerator(seed=3, venue=0), 9_000) == first
    assert content(MarketGenerator(seed=3, venue=0), 5_001) == first[:5_001]
    assert content(MarketGenerator(seed=3, venue=1), 9_000) != first
    assert content(MarketGenerator(seed=4, venue=0), 9_000) != first
    assert {type(m) for m in first} == {iex_feed.QuoteUpdate, iex_feed.Trade}


def test_the_made_up_market_written_as_a_capture_decodes_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "market"
    market = MarketGenerator(seed=5, venue=1)
    write_pcap(path, [market], count=10_000)
    with import_capture(path) as capture:
        decoded = [
            (type_id, time_ns, found)
            for batch in capture
            for type_id, time_ns, found in batch.messages(capture.classes)
        ]
    made = [
        (type_id, time_ns, found)
        for batch in market.batches(10_000)
        for type_id, time_ns, found in batch.messages(capture.classes)
    ]
    assert decoded == made
    assert (capture.counts.gaps, capture.counts.skipped) == (0, {})


def test_two_venues_in_one_capture_are_two_unbroken_streams(tmp_path: Path) -> None:
    path = tmp_path / "market"
    write_pcap(path, [MarketGenerator(venue=0), MarketGenerator(venue=1)], count=3_000)
    with import_capture(path) as capture:
        times = [t for batch in capture for t in batch.timestamps_ns.tolist()]
    assert capture.counts.messages_count == 6_000
    assert (capture.counts.gaps, capture.counts.restarts, capture.counts.duplicates) == (0, 0, 0)
    assert times == sorted(times)
