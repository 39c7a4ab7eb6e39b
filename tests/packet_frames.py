"""Ethernet frames, made and taken apart by hand: the naive side of the tests of packet rings.

`naive` says what a ring must make of a frame. It is written from the specifications (IEEE 802.1Q,
RFC 791, RFC 768), slowly and plainly, and shares nothing with the product.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

Line = tuple[str, int]

VLAN = 0x8100
SERVICE_VLAN = 0x88A8
IPV4 = 0x0800
UDP = 17


def checksum(data: bytes) -> int:
    """RFC 1071, as it is written."""
    if len(data) % 2:
        data += b"\0"
    total = 0
    for (word,) in struct.iter_unpack("!H", data):
        total += word
        if total > 0xFFFF:
            total = (total & 0xFFFF) + 1
    return ~total & 0xFFFF


def udp(
    source: str,
    to: Line,
    payload: bytes,
    *,
    length: int | None = None,
    sum_offset: int = 0,
    with_sum: bool = True,
) -> bytes:
    """A UDP datagram; `sum_offset` makes the checksum wrong."""
    total = 8 + len(payload)
    header = struct.pack("!HHHH", 40_000, to[1], total if length is None else length, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(to[0]) + struct.pack("!HH", UDP, total)
    right = checksum(pseudo + header + payload) or 0xFFFF
    value = (right + sum_offset) & 0xFFFF if with_sum else 0
    return header[:6] + value.to_bytes(2, "big") + payload


def ip(
    source: str,
    to: str,
    body: bytes,
    *,
    protocol: int = UDP,
    options: bytes = b"",
    fragment: int = 0,
    length: int | None = None,
    version: int = 4,
    header_words: int | None = None,
    sum_offset: int = 0,
) -> bytes:
    """An IPv4 packet; `fragment` is the word with flags and offset."""
    words = 5 + len(options) // 4
    total = 4 * words + len(body)
    header = struct.pack(
        "!BBHHHBBH4s4s",
        version << 4 | (words if header_words is None else header_words),
        0,
        total if length is None else length,
        7,
        fragment,
        16,
        protocol,
        0,
        socket.inet_aton(source),
        socket.inet_aton(to),
    )
    right = checksum(header + options)
    value = (right + sum_offset) & 0xFFFF
    return header[:10] + value.to_bytes(2, "big") + header[12:] + options + body


def ethernet(body: bytes, *, tags: Sequence[tuple[int, int]] = (), kind: int = IPV4) -> bytes:
    """A frame to everybody; `tags` are pairs of a TPID and a VLAN, outermost first."""
    tagged = b"".join(struct.pack("!HH", tpid, vlan) for tpid, vlan in tags)
    return b"\xff" * 6 + b"\x02\0\0\0\0\x01" + tagged + kind.to_bytes(2, "big") + body


def frame(
    to: Line, payload: bytes, *, source: str = "198.19.255.1", tags: Sequence[tuple[int, int]] = ()
) -> bytes:
    """A frame with a datagram in which everything is right."""
    return ethernet(ip(source, to[0], udp(source, to, payload)), tags=tags)


def naive(
    data: bytes,
    lines: Sequence[Line],
    *,
    room: int,
    tag_taken_out: bool = False,
    verify: bool = True,
    by_port: bool = False,
    may_be_partial: bool = False,
) -> tuple[int, bytes] | str:
    """What a ring makes of a frame: line and payload, or the name of the count.

    Parameters
    ----------
    room
        How many bytes of a frame are kept.
    tag_taken_out
        A VLAN tag was there besides.
    by_port
        Only what shows one of our ports is ours: of fragments the first.
    may_be_partial
        A checksum over the pseudo header alone is as good as a right one.
    """
    kept = data[:room]
    tags_left = 1 if tag_taken_out else 2
    at = 12
    while True:
        kind = int.from_bytes(kept[at : at + 2], "big")
        if len(kept) < at + 2:
            return "not_ours"
        if kind == IPV4:
            break
        if kind not in (VLAN, SERVICE_VLAN) or tags_left == 0:
            return "not_ours"
        tags_left -= 1
        at += 4
    at += 2
    packet = kept[at:]
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[9] != UDP:
        return "not_ours"
    address = socket.inet_ntoa(packet[16:20])
    is_our_address = any(address == line[0] for line in lines)
    header = 4 * (packet[0] & 15)
    flags = int.from_bytes(packet[6:8], "big")
    has_port = header >= 20 and len(packet) >= header + 4 and flags & 0x1FFF == 0
    port = int.from_bytes(packet[header + 2 : header + 4], "big") if has_port else None
    if by_port and (address, port) not in lines:
        return "not_ours"
    if flags & 0x3FFF:
        return "fragments" if is_our_address else "not_ours"
    if header < 20:
        return "malformed" if is_our_address else "not_ours"
    if port is None or (address, port) not in lines:
        return "not_ours"
    total = int.from_bytes(packet[2:4], "big")
    if total < header + 8 or total > len(data) - at:
        return "malformed"
    if verify and checksum(packet[:header]) != 0:
        return "bad_checksums"
    length = int.from_bytes(packet[header + 4 : header + 6], "big")
    if length < 8 or length > total - header:
        return "malformed"
    datagram = packet[header : header + length]
    if len(datagram) < length:
        return "truncated"
    if verify and datagram[6:8] != b"\0\0":
        pseudo = packet[12:20] + struct.pack("!HH", UDP, length)
        is_partial = int.from_bytes(datagram[6:8], "big") == ~checksum(pseudo) & 0xFFFF
        if checksum(pseudo + datagram) != 0 and not (may_be_partial and is_partial):
            return "bad_checksums"
    return lines.index((address, port)), datagram[8:]
