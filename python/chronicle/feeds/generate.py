"""A made-up market: quotes and trades of a few stocks, the same for the same seed.

For demos and tests that must not depend on anybody's data. Each venue is a stream of its own, with
its own sequence; prices walk at random. The messages are TOPS 1.6 quotes and trades, so what comes
out is also a valid IEX-TP capture (`write_pcap`), and decoding that capture gives the same records
as `MarketGenerator.batches`.

>>> market = MarketGenerator(seed=7, venue=1)
>>> [len(batch) for batch in market.batches(5_000)]
[4096, 904]
"""

from __future__ import annotations

import heapq
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chronicle.feeds.batch import I64, U8, Assembler, Batch
from chronicle.feeds.iex import HEADER_BYTES, TABLE, TOPS_1_6, QuoteUpdate, Trade

__all__ = ["MarketGenerator", "iex_packet", "udp_frame", "write_pcap"]

BLOCK_COUNT = 4_096
"""Messages made at a time. Part of what a seed means: another size is another market."""

SYMBOLS = (b"AAPL", b"AMZN", b"GOOG", b"IBM", b"MSFT", b"NVDA", b"SPY", b"ZTEST")
START_NS = 1_700_000_000_000_000_000
_TICK = 100  # One cent, at four implied decimals.
_CAPTURE_DELAY_NS = 25_000
_TRADE_SHARE = 0.15
_PACKET_ENDS_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class _Block:
    """Messages in stream order, and how many go into each packet."""

    is_trade: NDArray[np.bool_]
    quotes: NDArray[np.void]
    trades: NDArray[np.void]
    per_packet: I64
    packet_ns: I64


@dataclass(frozen=True, slots=True)
class MarketGenerator:
    """One venue. Has no state: every call starts the same market from its beginning.

    Parameters
    ----------
    seed
        Which market; the same for all its venues.
    venue
        Which venue of it, from 0. It becomes channel ``venue + 1`` of IEX-TP.
    mean_gap_ns
        Mean time between two messages.
    start_ns
        Time of the start, ns since the epoch.
    """

    seed: int = 1
    venue: int = 0
    mean_gap_ns: int = 20_000
    start_ns: int = START_NS

    def batches(self, count: int) -> Iterator[Batch]:
        """Yield the first `count` messages as batches, stamped with their capture times."""
        for block in self._blocks(count):
            made = Assembler(len(block.is_trade))
            made.add(np.flatnonzero(~block.is_trade), QuoteUpdate.type_id, block.quotes)
            made.add(np.flatnonzero(block.is_trade), Trade.type_id, block.trades)
            times = np.repeat(block.packet_ns, block.per_packet).astype(np.uint64)
            yield made.finish(times)

    def packets(self, count: int) -> Iterator[tuple[int, bytes]]:
        """Yield the first `count` messages as ``(capture time in ns, IEX-TP packet)``."""
        sequence, offset = 1, 0
        channel = self.venue + 1
        for block in self._blocks(count):
            data, sizes = _encode(block)
            ends = np.cumsum(sizes)[np.cumsum(block.per_packet) - 1]
            at = 0
            for end, messages, time_ns in zip(
                ends.tolist(), block.per_packet.tolist(), block.packet_ns.tolist(), strict=True
            ):
                blocks = data[at:end]
                yield (
                    time_ns,
                    iex_packet(
                        blocks,
                        messages,
                        sequence=sequence,
                        offset=offset,
                        channel=channel,
                        sent_ns=time_ns - _CAPTURE_DELAY_NS,
                    ),
                )
                sequence += messages
                offset += len(blocks)
                at = end

    def _blocks(self, count: int) -> Iterator[_Block]:
        random = np.random.default_rng([self.seed, self.venue])
        # All venues open at the same prices.
        opening = np.random.default_rng(self.seed).integers(2_000, 60_000, len(SYMBOLS))
        prices = opening * _TICK
        now_ns, trade_id = self.start_ns, 1
        for first in range(0, count, BLOCK_COUNT):
            # A whole block is drawn even if less of it is wanted, so that a shorter run is the
            # beginning of a longer one.
            wanted = min(BLOCK_COUNT, count - first)
            block, prices, now_ns = self._draw(random, prices, now_ns, trade_id)
            trade_id += len(block.trades)
            yield block if wanted == BLOCK_COUNT else _cut(block, wanted)

    def _draw(
        self, random: np.random.Generator, prices: I64, now_ns: int, trade_id: int
    ) -> tuple[_Block, I64, int]:
        count = BLOCK_COUNT
        gaps = 1 + random.exponential(self.mean_gap_ns, count).astype(np.int64)
        times = now_ns + np.cumsum(gaps)
        which = random.integers(0, len(SYMBOLS), count)
        steps = random.integers(-1, 2, count) * _TICK
        spreads = random.integers(1, 4, count) * _TICK
        sizes = random.integers(1, 20, (2, count)) * 100
        is_trade = random.random(count) < _TRADE_SHARE
        ends = random.random(count) < _PACKET_ENDS_SHARE
        ends[-1] = True

        bids = np.zeros(count, np.int64)
        prices = prices.copy()
        for symbol in range(len(SYMBOLS)):
            mine = which == symbol
            walk = np.maximum(prices[symbol] + np.cumsum(steps[mine]), _TICK)
            bids[mine] = walk
            prices[symbol] = walk[-1] if len(walk) else prices[symbol]
        symbols = np.array(SYMBOLS, "S8")[which]

        quotes = np.zeros(count - int(is_trade.sum()), QuoteUpdate.dtype)
        quotes["time_ns"], quotes["symbol"] = times[~is_trade], symbols[~is_trade]
        quotes["bid_price"] = bids[~is_trade]
        quotes["ask_price"] = (bids + spreads)[~is_trade]
        quotes["bid_size"], quotes["ask_size"] = sizes[:, ~is_trade]
        trades = np.zeros(count - len(quotes), Trade.dtype)
        trades["time_ns"], trades["symbol"] = times[is_trade], symbols[is_trade]
        trades["price"], trades["size"] = bids[is_trade], sizes[0, is_trade]
        trades["trade_id"] = trade_id + np.arange(len(trades))

        last = np.flatnonzero(ends)
        per_packet = np.diff(last, prepend=-1)
        packet_ns = times[last] + _CAPTURE_DELAY_NS
        return _Block(is_trade, quotes, trades, per_packet, packet_ns), prices, int(times[-1])


def _cut(block: _Block, count: int) -> _Block:
    """Keep the first `count` messages."""
    is_trade = block.is_trade[:count]
    trades = int(is_trade.sum())
    done = np.cumsum(block.per_packet)
    packets = int(np.searchsorted(done, count)) + 1
    per_packet = block.per_packet[:packets].copy()
    per_packet[-1] -= int(done[packets - 1]) - count
    return _Block(
        is_trade,
        block.quotes[: count - trades],
        block.trades[:trades],
        per_packet,
        block.packet_ns[:packets],
    )


def _encode(block: _Block) -> tuple[bytes, I64]:
    """Return all message blocks of the stream, and the size of each with its length prefix."""
    parts: list[bytes] = [b""] * len(block.is_trade)
    for code, records, mask in (
        ("Q", block.quotes, ~block.is_trade),
        ("T", block.trades, block.is_trade),
    ):
        wire: U8 = TABLE.layouts[ord(code)].encode(records)
        prefix = struct.pack("<H", wire.shape[1])
        for index, row in zip(np.flatnonzero(mask).tolist(), wire, strict=True):
            parts[index] = prefix + row.tobytes()
    return b"".join(parts), np.array([len(part) for part in parts], np.int64)


def iex_packet(
    blocks: bytes,
    count: int,
    *,
    sequence: int,
    offset: int,
    sent_ns: int,
    channel: int = 1,
    session: int = 1,
    protocol: int = TOPS_1_6,
) -> bytes:
    """Put an IEX-TP segment header before message blocks.

    >>> len(iex_packet(b"", 0, sequence=1, offset=0, sent_ns=0))
    40
    """
    fields = (1, 0, protocol, channel, session, len(blocks), count, offset, sequence, sent_ns)
    header = struct.pack("<BBHIIHHqqq", *fields)
    assert len(header) == HEADER_BYTES
    return header + blocks


def udp_frame(payload: bytes, *, address: bytes = b"\xe9\xd7\x15\x01", port: int = 10_378) -> bytes:
    """Wrap a payload into UDP, IPv4 and Ethernet, as a capture holds it.

    The UDP checksum is zero, which means that there is none (RFC 768).
    """
    udp = struct.pack(">HHHH", port, port, 8 + len(payload), 0) + payload
    source = b"\x0a\x00\x00\x01"
    fields = (0x45, 0, 20 + len(udp), 0, 0x4000, 1, 17)
    bare = struct.pack(">BBHHHBBH4s4s", *fields, 0, source, address)
    total = sum(struct.unpack(">10H", bare))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    ip = struct.pack(">BBHHHBBH4s4s", *fields, checksum, source, address)
    group = b"\x01\x00\x5e" + bytes([address[1] & 0x7F]) + address[2:]
    return group + b"\x02\x00\x00\x00\x00\x01" + b"\x08\x00" + ip + udp


def write_pcap(
    path: str | os.PathLike[str], markets: Sequence[MarketGenerator], *, count: int
) -> None:
    """Write `count` messages of each market as one capture, in order of time.

    Parameters
    ----------
    path
        The file, which is replaced. Classic pcap, little-endian, nanoseconds.
    markets
        Venues; each becomes a channel.
    count
        Messages of each market.
    """
    merged: Iterable[tuple[int, bytes]] = heapq.merge(
        *(market.packets(count) for market in markets), key=lambda packet: packet[0]
    )
    with Path(path).open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, 1))
        for time_ns, payload in merged:
            frame = udp_frame(payload)
            seconds, rest = divmod(time_ns, 1_000_000_000)
            file.write(struct.pack("<IIII", seconds, rest, len(frame), len(frame)) + frame)
