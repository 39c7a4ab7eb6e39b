"""IEX-TP: TOPS 1.6 and what of DEEP 1.0 the sample capture does not hold."""

from __future__ import annotations

import struct

import pytest
from chronicle.feeds import iex as feed
from chronicle.feeds import import_capture
from chronicle.feeds.continuity import StreamGap, StreamRestart
from chronicle.feeds.type_ids import IEX_RAW

from tests.feeds_support import IEX_FILE, decode, iex, quote, sample


def test_a_tops_quote_has_the_fields_of_the_specification() -> None:
    # The example of the TOPS 1.6 specification, quote update message.
    wire = bytes.fromhex(
        "5100 ac63c02096866d14 5a49455854202020e4250000 241d0f0000000000 ec1d0f0000000000 e8030000"
    )
    found, counts = decode("iex", [iex([wire], 1)])
    assert found == [
        feed.QuoteUpdate(
            time_ns=1_471_980_632_572_715_948,
            symbol=b"ZIEXT",
            bid_price=990_500,
            ask_price=990_700,
            bid_size=9_700,
            ask_size=1_000,
            flags=0,
        )
    ]
    assert counts.messages == {feed.QuoteUpdate.type_id: 1}


def test_every_other_type_of_the_specification_is_typed() -> None:
    start = struct.pack("<q8s", 7, b"ZXIET   ")
    wires = [
        b"D\x80" + start + struct.pack("<IqB", 100, 990_500, 1),
        b"X\x51" + start + struct.pack("<q", 990_500),
        b"A\x43" + start + struct.pack("<IqqIcBIqqqq", 1, 2, 3, 4, b"B", 5, 6, 7, 8, 9, 10),
    ]
    assert [len(w) for w in wires] == [31, 26, 80]
    found, _ = decode("iex", [iex(wires, 1, protocol=0x8004)])
    assert found == [
        feed.SecurityDirectory(
            time_ns=7,
            symbol=b"ZXIET",
            adjusted_close=990_500,
            round_lot=100,
            flags=0x80,
            luld_tier=1,
        ),
        feed.OfficialPrice(time_ns=7, symbol=b"ZXIET", price=990_500, kind=b"Q"),
        feed.AuctionInfo(
            time_ns=7,
            symbol=b"ZXIET",
            reference_price=2,
            indicative_price=3,
            book_price=7,
            collar_reference=8,
            collar_lower=9,
            collar_upper=10,
            paired_size=1,
            imbalance_size=4,
            scheduled_time_s=6,
            auction=b"C",
            side=b"B",
            extension=5,
        ),
    ]


def test_messages_that_grew_are_stepped_over_by_their_block_length() -> None:
    found, counts = decode("iex", [iex([quote(1) + b"new field", quote(2)], 1)])
    assert [m.time_ns for m in found] == [1, 2]  # type: ignore[union-attr]
    assert counts.extended == 1


def test_unknown_short_and_empty_messages_are_kept_raw_in_their_places() -> None:
    wires = [b"z unknown", quote(1), quote(2)[:-1], b"", quote(3), b""]
    found, counts = decode("iex", [iex(wires, 1), iex([], 7)])
    kinds = [m if isinstance(m, bytes) else m.as_dict()["time_ns"] for m in found]
    assert kinds == [b"z unknown", 1, quote(2)[:-1], b"", 3, b""]
    assert counts.messages == {feed.QuoteUpdate.type_id: 2, IEX_RAW: 4}


@pytest.mark.parametrize("protocol", [0x8002, 0x8005])
def test_protocols_without_a_table_are_sequenced_and_kept_raw(protocol: int) -> None:
    packets = [iex([quote(1)], 1, protocol=protocol), iex([quote(2)], 3, protocol=protocol)]
    found, counts = decode("iex", packets)
    assert found[::2] == [quote(1), quote(2)]
    assert isinstance(found[1], StreamGap)
    assert counts.gaps == 1


def test_heartbeats_are_counted_and_can_show_a_gap() -> None:
    found, counts = decode("iex", [iex([], 1), iex([quote()], 1), iex([], 2), iex([], 5)])
    assert counts.heartbeats == 3
    assert found[1] == StreamGap(stream=0x8003 << 32 | 1, first_missing=2, next=5, session=b"9")
    assert (counts.gaps, counts.missing, counts.messages_count) == (1, 3, 1)


def test_a_restart_to_sequence_one_under_the_same_session_is_seen() -> None:
    packets = [iex([quote(1)] * 3, 1, sent_ns=10), iex([quote(2)], 1, sent_ns=20)]
    found, counts = decode("iex", packets)
    assert found[3] == StreamRestart(
        stream=0x8003 << 32 | 1, previous_next=4, next=1, previous_session=b"9", session=b"9"
    )
    assert (counts.restarts, counts.duplicates, counts.messages_count) == (1, 0, 4)


def test_a_copy_of_the_first_packet_is_a_duplicate_and_no_restart() -> None:
    first = iex([quote(1)] * 3, 1, sent_ns=10)
    found, counts = decode("iex", [first, first, iex([quote(2)], 4, sent_ns=11)])
    assert len(found) == 4
    assert (counts.restarts, counts.duplicates) == (0, 3)


def test_a_restart_whose_first_packet_was_lost_is_a_restart_and_a_gap() -> None:
    packets = [iex([quote(1)] * 9, 1, sent_ns=10), iex([quote(2)], 3, sent_ns=20)]
    found, counts = decode("iex", packets)
    assert [type(m) for m in found[9:]] == [StreamRestart, StreamGap, feed.QuoteUpdate]
    assert (counts.restarts, counts.gaps, counts.missing) == (1, 1, 2)


def test_both_feeds_of_a_channel_in_one_capture_give_every_message_once() -> None:
    packets = [iex([quote(n)], n, sent_ns=n) for n in range(1, 50)]
    both = [p for packet in packets for p in (packet, packet)]
    found, counts = decode("iex", both)
    assert [m.time_ns for m in found] == list(range(1, 50))  # type: ignore[union-attr]
    assert (counts.duplicates, counts.gaps, counts.restarts) == (49, 0, 0)


def test_channels_are_separate_streams() -> None:
    packets = [iex([quote()], n, channel=c) for n in (1, 2) for c in (1, 2)]
    _, counts = decode("iex", packets)
    assert (counts.gaps, counts.duplicates, counts.messages_count) == (0, 0, 4)


def test_packets_that_contradict_themselves_are_skipped_and_show_as_a_gap() -> None:
    good = iex([quote()], 2)
    bad = [
        good[:14] + b"\x02\x00" + good[16:],
        good[:14] + b"\xff\xff" + good[16:],
        good[:40] + b"\xff\xff" + good[42:],
        good[:40] + b"\x01\x00" + good[42:],
        good[:12] + b"\x01\x00" + good[14:],
        good[:24] + b"\xff" * 8 + good[32:],
    ]
    for packet in bad:
        found, counts = decode("iex", [iex([quote()], 1), packet, iex([quote()], 3)])
        assert counts.skipped == {"malformed packet": 1}
        assert (counts.messages_count, counts.gaps, counts.missing) == (2, 1, 1)
        assert isinstance(found[1], StreamGap)


def test_packets_of_something_else_are_counted() -> None:
    _, counts = decode("iex", [b"short", bytes(60), iex([quote()], 1, protocol=1), iex([], 1)])
    assert counts.skipped == {"not IEX-TP": 3}
    assert counts.heartbeats == 1


def test_chunks_of_any_size_give_the_same_stream() -> None:
    packets = [iex([quote(n)] * (n % 5), 1 + n * 7, sent_ns=n) for n in range(60)]
    expected, counts = decode("iex", packets)
    for chunk_bytes in (1, 333, 2_000):
        assert decode("iex", packets, chunk_bytes=chunk_bytes) == (expected, counts)


def test_one_packet_with_a_wrong_clock_does_not_hide_later_restarts() -> None:
    packets = [iex([quote(n)], n, sent_ns=10 * n) for n in range(1, 9)]
    packets[3] = iex([quote(4)], 4, sent_ns=1 << 60)
    packets += [iex([quote(n)], n, sent_ns=100 + n) for n in range(1, 4)]
    found, counts = decode("iex", packets)
    assert (counts.restarts, counts.duplicates, counts.messages_count) == (1, 0, 11)
    for chunk_bytes in (1, 300):
        assert decode("iex", packets, chunk_bytes=chunk_bytes) == (found, counts)


@pytest.mark.needs_data
def test_the_sample_capture_has_the_published_counts() -> None:
    with import_capture(sample(IEX_FILE)) as capture:
        records = sum(map(len, capture))
    counts = capture.counts
    assert (counts.packets, counts.heartbeats) == (121_314, 7_937)
    assert {chr(key & 0xFF): n for key, n in counts.messages.items()} == {
        "H": 93_638,
        "O": 93_638,
        "P": 93_636,
        "T": 83_343,
        "5": 14_627,
        "8": 12_941,
        "B": 73,
        "E": 59,
        "S": 44,
    }
    assert counts.messages_count == 391_999
    assert (counts.restarts, counts.truncated) == (11, 1)
    assert (counts.gaps, counts.missing, counts.duplicates, counts.late_joins) == (0, 0, 0, 0)
    assert (counts.skipped, counts.extended) == ({}, 0)
    assert records == 391_999 + 11
