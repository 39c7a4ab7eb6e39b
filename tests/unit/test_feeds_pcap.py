"""Capture files to UDP payloads."""

from __future__ import annotations

import struct

import pytest
from chronicle.errors import DecodeError
from chronicle.feeds.pcap import CAPLEN_MAX

from tests.feeds_support import frame, payloads, pcap, read_packets

PAYLOADS = [bytes([n]) * n for n in range(1, 40)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("unit", "tick_ns"), [("us", 1_000), ("ns", 1)])
def test_both_byte_orders_and_both_clocks_are_read(order: str, unit: str, tick_ns: int) -> None:
    chunks, counts = read_packets(pcap(map(frame, PAYLOADS), order=order, unit=unit))
    assert payloads(chunks) == PAYLOADS
    assert chunks[0].timestamps_ns.tolist() == [
        1_500_000_000 * 10**9 + n * tick_ns for n in range(len(PAYLOADS))
    ]
    assert counts.packets == len(PAYLOADS)
    assert (counts.truncated, counts.skipped) == (0, {})


@pytest.mark.parametrize("chunk_bytes", [1, 7, 100, 4096])
def test_chunks_of_any_size_give_the_same_packets(chunk_bytes: int) -> None:
    chunks, counts = read_packets(pcap(map(frame, PAYLOADS)), chunk_bytes=chunk_bytes)
    assert payloads(chunks) == PAYLOADS
    assert counts.packets == len(PAYLOADS)


def test_vlan_tags_are_skipped_however_many() -> None:
    tags: list[tuple[int, ...]] = [(), (0x8100,), (0x88A8, 0x8100), (0x8100,) * 4]
    chunks, counts = read_packets(pcap(frame(b"same", vlans=t) for t in tags))
    assert payloads(chunks) == [b"same"] * 4
    chunks, counts = read_packets(pcap([frame(b"x", vlans=(0x8100,) * 5)]))
    assert payloads(chunks) == []
    assert counts.skipped == {"not IPv4": 1}


def test_ip_options_and_frame_padding_are_left_out() -> None:
    frames = [frame(b"one", options=bytes(8)), frame(b"two", trailer=bytes(20)), frame(b"")]
    chunks, _ = read_packets(pcap(frames))
    assert payloads(chunks) == [b"one", b"two", b""]


def test_destinations_are_told_apart() -> None:
    chunks, _ = read_packets(pcap([frame(b"a", port=1), frame(b"b", port=65_535)]))
    address = 0x05060708
    assert chunks[0].destinations.tolist() == [address << 16 | 1, address << 16 | 65_535]


def test_what_is_not_a_whole_udp_packet_is_counted_and_skipped() -> None:
    good = frame(b"good")
    frames = [
        frame(b"", ethertype=0x86DD),
        b"",
        good[:13],
        good[:20],
        frame(b"tcp", protocol=6),
        frame(b"first part", fragment=0x2000),
        frame(b"later part", fragment=0x0001),
        frame(b"not fragmented", fragment=0x4000),
        good[:-1],
        good[:14] + b"\x44" + good[15:],
        good[:14] + b"\x65" + good[15:],
        good[:38] + b"\x00\x07" + good[40:],
        good,
    ]
    chunks, counts = read_packets(pcap(frames))
    assert payloads(chunks) == [b"not fragmented", b"good"]
    assert counts.packets == len(frames)
    assert counts.skipped == {
        "cut frame": 2,
        "not IPv4": 1,
        "cut or malformed IPv4": 3,
        "not UDP": 1,
        "fragment": 2,
        "cut or malformed UDP": 2,
    }


def test_a_cut_file_gives_what_is_complete_and_says_so() -> None:
    whole = pcap(map(frame, PAYLOADS))
    for cut in range(1, 16 + len(frame(PAYLOADS[-1]))):
        chunks, counts = read_packets(whole[:-cut])
        assert payloads(chunks) == PAYLOADS[:-1]
        assert counts.truncated == 1


def test_an_empty_capture_has_no_packets() -> None:
    chunks, counts = read_packets(pcap([]))
    assert (chunks, counts.packets, counts.truncated) == ([], 0, 0)


def test_an_impossible_length_is_an_error_wherever_chunks_end() -> None:
    record = struct.pack("<IIII", 0, 0, CAPLEN_MAX + 1, CAPLEN_MAX + 1)
    data = pcap([frame(b"good")]) + record + bytes(CAPLEN_MAX + 1)
    for chunk_bytes in (100, 1 << 16, 1 << 22):
        with pytest.raises(DecodeError, match=r"packet=1 length=262145 limit=262144"):
            read_packets(data, chunk_bytes=chunk_bytes)
    with pytest.raises(DecodeError, match="length=4294967295"):
        read_packets(pcap([]) + b"\xff" * 16)


def test_files_of_another_kind_are_refused_with_what_was_found() -> None:
    with pytest.raises(DecodeError, match="editcap"):
        read_packets(b"\x0a\x0d\x0d\x0a" + bytes(30))
    with pytest.raises(DecodeError, match="magic=50415231"):
        read_packets(b"PAR1" + bytes(30))
    with pytest.raises(DecodeError, match="inside its header"):
        read_packets(pcap([])[:20])
    with pytest.raises(DecodeError, match="linktype=113"):
        read_packets(pcap([], linktype=113))
