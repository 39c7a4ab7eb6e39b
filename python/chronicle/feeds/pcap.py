"""Classic pcap files to UDP payloads, a chunk of packets at a time.

Understood: both byte orders, microsecond and nanosecond timestamps (four magic numbers), Ethernet
with any number of VLAN tags up to `VLAN_TAGS_MAX`, IPv4 with options, UDP. Everything else is
counted under its reason and skipped. UDP checksums are not looked at: captures taken on the
sending host hold the ones that the network card had still to fill in.

A file that ends inside a record, as captures do that were stopped by a signal, gives all complete
records, and sets `Counts.truncated`. Lengths in the file are never trusted. A record longer than
any capture tool writes means that the place is no record at all, and is a `DecodeError`, because
pcap has no mark to find the next one by.

Sources: the pcap file format as in the libpcap manual (pcap-savefile), IEEE 802.1Q, RFC 791,
RFC 768.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from chronicle.errors import DecodeError
from chronicle.feeds.batch import I64, U8, U64, Bools, Counts
from chronicle.feeds.wire import windows

__all__ = ["Packets", "PcapReader", "is_pcap"]

CHUNK_BYTES = 1 << 21
"""Bytes read at a time: small enough that memory stays bounded and columns stay in cache, large
enough that the fixed cost of an array operation does not show. Larger ones gained nothing."""

CAPLEN_MAX = 262_144
"""Longest record that is believed; libpcap's own limit for Ethernet."""

VLAN_TAGS_MAX = 4

_FILE_HEADER_BYTES = 24
_RECORD_HEADER_BYTES = 16
_LINKTYPE_ETHERNET = 1
_MAGICS = {
    b"\xd4\xc3\xb2\xa1": ("<", 1_000),
    b"\xa1\xb2\xc3\xd4": (">", 1_000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
_PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"
_ETHERTYPE_IPV4 = 0x0800
_ETHERTYPES_VLAN = (0x8100, 0x88A8, 0x9100)
_PROTOCOL_UDP = 17


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True, eq=False)
class Packets:
    """UDP payloads of one chunk, in capture order.

    Attributes
    ----------
    raw
        The chunk.
    starts, ends
        Bounds of each payload within `raw`.
    timestamps_ns
        Capture time of each, ns since the epoch.
    destinations
        ``address << 16 | port`` of each.
    """

    raw: U8
    starts: I64
    ends: I64
    timestamps_ns: U64
    destinations: U64

    def __len__(self) -> int:
        return len(self.starts)


def is_pcap(head: bytes) -> bool:
    """Whether a file that begins so is a pcap file, of the classic or the next generation."""
    return head[:4] in _MAGICS or head[:4] == _PCAPNG_MAGIC


class PcapReader:
    """Iterates over the chunks of a capture.

    Parameters
    ----------
    source
        Anything with ``read``; its first byte is the file's first.
    counts
        Gets packets, what was skipped, and whether the file is cut.
    chunk_bytes
        Bytes to read at a time. Memory use is a small multiple of it.

    Raises
    ------
    DecodeError
        If this is no classic pcap file of Ethernet frames, or a record cannot be one.
    """

    def __init__(
        self, source: _Readable, counts: Counts, *, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        self._source = source
        self._counts = counts
        self._chunk_bytes = max(chunk_bytes, 1)
        head = source.read(_FILE_HEADER_BYTES)
        if head[:4] == _PCAPNG_MAGIC:
            raise DecodeError("capture is a pcapng file; convert it: editcap -F pcap IN OUT")
        if head[:4] not in _MAGICS:
            raise DecodeError(f"not a pcap file: found magic={head[:4].hex()}")
        if len(head) < _FILE_HEADER_BYTES:
            raise DecodeError(f"pcap file is cut inside its header: size={len(head)}")
        self._order, self._tick_ns = _MAGICS[head[:4]]
        # The upper bits tell about frame check sequences, which UDP lengths leave out anyway.
        (network,) = struct.unpack_from(self._order + "I", head, 20)
        linktype = network & 0xFFFF
        if linktype != _LINKTYPE_ETHERNET:
            raise DecodeError(f"capture is not of Ethernet frames: found linktype={linktype}")

    def __iter__(self) -> Iterator[Packets]:
        rest = b""
        while True:
            piece = self._source.read(self._chunk_bytes)
            if not piece:
                break
            data = rest + piece if rest else piece
            records, end = self._walk(data)
            rest = data[end:]
            if records:
                yield self._parse(np.frombuffer(data, np.uint8), np.array(records, np.int64))
        if rest:
            self._counts.truncated = 1

    def _walk(self, data: bytes) -> tuple[list[int], int]:
        """Return the offsets of complete records, and where the first incomplete one starts.

        The one loop over packets in Python: each record is found through the last one's length.
        """
        unpack = struct.Struct(self._order + "I").unpack_from
        records: list[int] = []
        append = records.append
        at, end, size = 0, len(data), 0
        last = end - _RECORD_HEADER_BYTES
        while at <= last:
            append(at)
            (size,) = unpack(data, at + 8)
            at += _RECORD_HEADER_BYTES + size
        if at > end:
            self._check_length(size, len(records) - 1)
            at = records.pop()
        return records, at

    def _check_length(self, size: int, index: int) -> None:
        if size > CAPLEN_MAX:
            raise DecodeError(
                f"pcap record cannot be one: packet={self._counts.packets + index} "
                f"length={size} limit={CAPLEN_MAX}; the file is damaged from here on"
            )

    def _parse(self, raw: U8, records: I64) -> Packets:
        """Find the UDP payloads of the chunk's records."""
        order = self._order
        header = np.dtype([("s", order + "u4"), ("f", order + "u4"), ("n", order + "u4")])
        heads = windows(raw, f"V{header.itemsize}")[records].view(header)
        longest = int(heads["n"].argmax())
        self._check_length(int(heads["n"][longest]), longest)
        self._counts.packets += len(records)
        times = heads["s"].astype(np.uint64) * np.uint64(1_000_000_000)
        times += heads["f"].astype(np.uint64) * np.uint64(self._tick_ns)
        frames = records + _RECORD_HEADER_BYTES
        ends = frames + heads["n"].astype(np.int64)

        ip, keep = self._skip_link(raw, frames, ends)
        if not keep.all():
            ip, ends, times = ip[keep], ends[keep], times[keep]
        udp, keep = self._skip_ip(raw, ip, ends)
        if not keep.all():
            ip, udp, ends, times = ip[keep], udp[keep], ends[keep], times[keep]
        starts = udp + 8
        size = _u16(raw, udp + 4)
        keep = (starts <= ends) & (size >= 8) & (udp + size <= ends)
        self._counts.skip("cut or malformed UDP", int((~keep).sum()))
        if not keep.all():
            ip, udp, size = ip[keep], udp[keep], size[keep]
            starts, times = starts[keep], times[keep]
        address = _u16(raw, ip + 16) << 16 | _u16(raw, ip + 18)
        destinations = (address << 16 | _u16(raw, udp + 2)).astype(np.uint64)
        return Packets(raw, starts, udp + size, times, destinations)

    def _skip_link(self, raw: U8, frames: I64, ends: I64) -> tuple[I64, Bools]:
        """Return where the IP header of each frame starts, and which frames have one."""
        kind_at = frames + 12
        kinds = _u16(raw, kind_at)
        for _ in range(VLAN_TAGS_MAX):
            # A short frame must not be judged by the bytes of the record after it.
            tagged = np.isin(kinds, _ETHERTYPES_VLAN) & (kind_at + 6 <= ends)
            if not tagged.any():
                break
            kind_at = kind_at + 4 * tagged
            kinds = np.where(tagged, _u16(raw, kind_at), kinds)
        ip = kind_at + 2
        framed = ip <= ends
        is_ip = framed & (kinds == _ETHERTYPE_IPV4)
        whole = ip + 20 <= ends
        self._counts.skip("cut frame", int((~framed).sum()))
        self._counts.skip("not IPv4", int((framed & ~is_ip).sum()))
        self._counts.skip("cut or malformed IPv4", int((is_ip & ~whole).sum()))
        return ip, is_ip & whole

    def _skip_ip(self, raw: U8, ip: I64, ends: I64) -> tuple[I64, Bools]:
        """Return where the UDP header of each IP packet starts, and which packets have one."""
        first = _take(raw, ip)
        header = (first & 0x0F) * 4
        sound = (first >> 4 == 4) & (header >= 20) & (ip + header + 8 <= ends)
        is_udp = _take(raw, ip + 9) == _PROTOCOL_UDP
        # More-fragments flag or an offset: a part of a datagram, which has no UDP header or an
        # incomplete payload. Market data is never fragmented on purpose.
        fragment = _u16(raw, ip + 6) & 0x3FFF != 0
        self._counts.skip("not UDP", int((~is_udp).sum()))
        self._counts.skip("fragment", int((is_udp & fragment).sum()))
        self._counts.skip("cut or malformed IPv4", int((is_udp & ~fragment & ~sound).sum()))
        return ip + header, is_udp & ~fragment & sound


def _take(raw: U8, at: I64) -> I64:
    # Offsets of headers that turn out to be cut may lie past the end of the chunk. What is read
    # there does not matter, because the packet is dropped by its length, but it must not raise.
    return raw.take(at, mode="clip").astype(np.int64)


def _u16(raw: U8, at: I64) -> I64:
    return _take(raw, at) << 8 | _take(raw, at + 1)
