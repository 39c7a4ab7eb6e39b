"""MoldUDP64 with ITCH inside."""

from __future__ import annotations

from collections.abc import Sequence

from chronicle.feeds.continuity import StreamEnd, StreamGap, StreamRestart
from chronicle.feeds.itch import OrderDelete

from tests.feeds_support import decode, delete, frame, mold, mold_end, payloads, pcap, read_packets

KEY = 0x05060708 << 16 | 26_477


def refs(found: Sequence[object]) -> list[int]:
    return [m.order_ref for m in found if isinstance(m, OrderDelete)]


def test_messages_come_out_typed_and_in_order() -> None:
    packets = [mold([delete(1), delete(2)], 1), mold([], 3), mold([delete(3)], 3)]
    found, counts = decode("mold", packets)
    assert found[0] == OrderDelete(time_ns=34_200_000_000_007, order_ref=1, locate=13, tracking=2)
    assert refs(found) == [1, 2, 3]
    assert (counts.heartbeats, counts.messages_count, counts.gaps) == (1, 3, 0)


def test_a_gap_is_announced_before_the_message_after_it() -> None:
    found, counts = decode("mold", [mold([delete(1)], 1), mold([delete(5)], 5)])
    assert found[1] == StreamGap(stream=KEY, first_missing=2, next=5, session=b"0000012345")
    assert refs(found) == [1, 5]
    assert (counts.gaps, counts.missing) == (1, 3)


def test_a_heartbeat_ahead_shows_the_gap_and_the_late_packet_is_dropped() -> None:
    packets = [mold([delete(1)], 1), mold([], 3), mold([delete(2)], 2), mold([delete(3)], 3)]
    found, counts = decode("mold", packets)
    assert refs(found) == [1, 3]
    assert (counts.gaps, counts.missing, counts.duplicates) == (1, 1, 1)


def test_an_overlapping_packet_gives_only_what_is_new() -> None:
    packets = [mold([delete(1), delete(2)], 1), mold([delete(2), delete(3), delete(4)], 2)]
    found, counts = decode("mold", packets)
    assert refs(found) == [1, 2, 3, 4]
    assert counts.duplicates == 1


def test_a_stale_heartbeat_is_no_event() -> None:
    found, counts = decode("mold", [mold([delete(1)], 1), mold([], 1), mold([delete(2)], 2)])
    assert refs(found) == [1, 2]
    assert len(found) == 2
    assert (counts.gaps, counts.restarts, counts.duplicates) == (0, 0, 0)


def test_the_end_of_a_session_is_announced_and_the_next_one_is_a_restart() -> None:
    packets = [mold([delete(1)], 1), mold_end(2), mold([delete(9)], 1, session=b"0000012346")]
    found, counts = decode("mold", packets)
    assert found[1] == StreamEnd(stream=KEY, next=2, session=b"0000012345")
    assert found[2] == StreamRestart(
        stream=KEY,
        previous_next=2,
        next=1,
        previous_session=b"0000012345",
        session=b"0000012346",
    )
    assert refs(found) == [1, 9]
    assert (counts.ends, counts.restarts, counts.heartbeats, counts.gaps) == (1, 1, 0, 0)


def test_an_end_of_session_ahead_of_the_stream_is_a_gap_first() -> None:
    found, counts = decode("mold", [mold([delete(1)], 1), mold_end(4)])
    assert [type(m) for m in found] == [OrderDelete, StreamGap, StreamEnd]
    assert counts.missing == 2


def test_a_new_session_that_starts_late_is_a_restart_and_a_gap() -> None:
    packets = [mold([delete(1)], 1), mold([delete(2)], 4, session=b"other     ")]
    found, counts = decode("mold", packets)
    assert [type(m) for m in found] == [OrderDelete, StreamRestart, StreamGap, OrderDelete]
    assert counts.missing == 3


def test_joining_late_is_counted_and_is_no_gap() -> None:
    found, counts = decode("mold", [mold([delete(7)], 7), mold([delete(8)], 8)])
    assert refs(found) == [7, 8]
    assert len(found) == 2
    assert (counts.late_joins, counts.gaps) == (1, 0)


def test_requests_and_foreign_packets_are_counted_and_skipped() -> None:
    request = mold([], 5)[:-2] + b"\x00\x03"
    _, counts = decode("mold", [request, b"tiny", bytes(40), mold([delete(1)], 1)])
    assert counts.skipped == {"request": 1, "not MoldUDP64": 2}
    assert (counts.messages_count, counts.late_joins) == (1, 0)


def test_unknown_messages_are_kept_raw() -> None:
    found, _ = decode("mold", [mold([b"~what is this", delete(1)], 1)])
    assert found[0] == b"~what is this"
    assert refs(found) == [1]


def test_addresses_are_separate_streams() -> None:
    frames = [frame(mold([delete(1)], 1), port=p) for p in (1, 2)]
    chunks, _ = read_packets(pcap(frames))
    assert payloads(chunks) == [mold([delete(1)], 1)] * 2
    assert len(set(chunks[0].destinations.tolist())) == 2


def test_a_sequence_number_near_the_top_of_its_range_is_malformed() -> None:
    _, counts = decode("mold", [mold([delete(1)], 2**64 - 1), mold([delete(1)], 1)])
    assert counts.skipped == {"malformed packet": 1}
    assert counts.messages_count == 1
