"""A venue for trying the feed handler out: two lines of multicast that lose packets, and recovery.

    python examples/feed_sender.py --address 10.0.0.1 \
        --lines 233.215.21.4:10378 233.215.21.132:10378 --loss 0.01 --double 0.01 --late 0.02

It sends a made-up market, or with `--file` a capture of IEX-TP, on every line; each line loses,
doubles and delays packets by itself, by chance that `--seed` decides. Everything that was sent can
be had over TCP, from a recovery server that may be told to cut the connection. When all is sent it
goes on with heartbeats, as a venue does after hours, until its input ends or SIGTERM.

It prints one JSON object when it is ready (where recovery listens), and one when all is sent. With
`--wait` it begins when a line comes in.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from chronicle.feeds import Counts
from chronicle.feeds.generate import SYMBOLS, iex_packet
from chronicle.feeds.iex import DEEP_1_0
from chronicle.feeds.pcap import PcapReader
from chronicle.feeds.recovery import PacketHistory, RecoveryServer
from chronicle.feeds.source import ByteSource

NS_PER_S = 1_000_000_000
TICK = 100  # a cent, in the feed's ten thousandths of a dollar
#: Message types of DEEP: a price level of the buy side, of the sell side.
BUY, SELL = ord("8"), ord("5")


def address(text: str) -> tuple[str, int]:
    """Split ``host:port``."""
    host, _, port = text.rpartition(":")
    return host, int(port)


def captured(path: Path) -> Iterator[bytes]:
    """Yield the payloads of a capture file."""
    source = ByteSource(path)
    for chunk in PcapReader(source, Counts()):
        for start, end in zip(chunk.starts.tolist(), chunk.ends.tolist(), strict=True):
            yield chunk.raw[start:end].tobytes()
    source.close()


def generated(seed: int, count: int, runs: int) -> Iterator[bytes]:
    """Yield the packets of a made-up market, price levels and trades, that begins so many times."""
    chance = random.Random(seed)
    now_ns = 1_700_000_000 * NS_PER_S
    for _ in range(runs):
        market = Market(chance)
        packet = iex_packet(b"", 0, sequence=1, offset=0, sent_ns=now_ns, protocol=DEEP_1_0)
        yield packet
        sequence, offset, last = 1, 0, count // runs
        while sequence <= last:
            now_ns += int(chance.expovariate(1 / 50_000)) + 1
            messages = min(chance.choice((1, 1, 2, 3, 6)), last + 1 - sequence)
            blocks = b"".join(market.move(now_ns) for _ in range(messages))
            packet = iex_packet(
                blocks,
                messages,
                sequence=sequence,
                offset=offset,
                sent_ns=now_ns,
                protocol=DEEP_1_0,
            )
            yield packet
            sequence += messages
            offset += len(blocks)
            if chance.random() < 0.02:
                yield heartbeat(packet, now_ns)
        # Half a minute later it begins again with message 1.
        now_ns += 30 * NS_PER_S


class Market:
    """A made-up market: of each symbol a middle price that walks, and the levels around it.

    Buyers stand below the middle and sellers above it, always: who stands where the middle has come
    to is gone in that very message. A book whose sides cross would keep its best prices, and
    whoever trades on those would have nothing to do, for as long as the middle is elsewhere.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._middles = {symbol: chance.randrange(2_000, 60_000) * TICK for symbol in SYMBOLS}
        #: Of each symbol, by price: buy or sell.
        self._levels: dict[bytes, dict[int, int]] = {symbol: {} for symbol in SYMBOLS}

    def move(self, now_ns: int) -> bytes:
        """Return one message with its length before it: a price level, or a trade."""
        chance = self._chance
        symbol = chance.choice(SYMBOLS)
        levels = self._levels[symbol]
        middle = max(100 * TICK, self._middles[symbol] + chance.choice((-1, 0, 1)) * TICK)
        self._middles[symbol] = middle
        head = now_ns, symbol.ljust(8)
        if middle in levels:
            return struct.pack("<HBBq8sIq", 30, levels.pop(middle), 1, *head, 0, middle)
        size = chance.randrange(1, 20) * 100
        if chance.random() < 0.1:
            trade_id = chance.randrange(1 << 40)
            return struct.pack("<HBBq8sIqq", 38, ord("T"), 0, *head, size, middle, trade_id)
        away = chance.randrange(1, 12) * TICK
        side, price = chance.choice(((BUY, middle - away), (SELL, middle + away)))
        if chance.random() < 0.4:
            size = 0
            levels.pop(price, None)
        else:
            levels[price] = side
        return struct.pack("<HBBq8sIq", 30, side, 1, *head, size, price)


def heartbeat(packet: bytes, sent_ns: int) -> bytes:
    """Return a heartbeat that follows a packet."""
    protocol, channel, session = struct.unpack_from("<HII", packet, 2)
    size, count, offset, sequence = struct.unpack_from("<HHqq", packet, 12)
    return iex_packet(
        b"",
        0,
        sequence=sequence + count,
        offset=offset + size,
        sent_ns=sent_ns,
        channel=channel,
        session=session,
        protocol=protocol,
    )


def arrivals(options: argparse.Namespace, count: int, line: int) -> Iterator[tuple[float, int]]:
    """Yield when each packet goes out on one line, in units of packets, and which one it is."""
    chance = random.Random(f"{options.seed}/{line}")
    for index in range(count):
        if chance.random() < options.loss:
            continue
        for _ in range(2 if chance.random() < options.double else 1):
            late = chance.uniform(1, options.late_by) if chance.random() < options.late else 0.0
            yield index + late, index


class Venue:
    """Sends packets on all lines, and remembers them for recovery."""

    def __init__(self, options: argparse.Namespace, packets: list[bytes]) -> None:
        self.options = options
        self.packets = packets
        self.history = PacketHistory()
        self.ended = threading.Event()
        self.datagrams = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        own = socket.inet_aton(options.address)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, options.loopback)

    def send(self) -> None:
        """Send everything, at the rate that was asked for."""
        lines, options = self.options.lines, self.options
        streams = [
            [(when, index, line) for when, index in arrivals(options, len(self.packets), line)]
            for line in range(len(lines))
        ]
        begun = time.monotonic()
        for _, index, line in heapq.merge(*(sorted(stream) for stream in streams)):
            # Recovery has a packet before anybody can miss it.
            while len(self.history) <= index:
                number = len(self.history)
                self.history.append(self.packets[number])
                early = begun + number / options.rate - time.monotonic()
                if early > 0.001 and self.ended.wait(early):
                    return
            self._socket.sendto(self.packets[index], lines[line])
            self.datagrams += 1
        # What was lost on all lines at the very end is in recovery all the same.
        for packet in self.packets[len(self.history) :]:
            self.history.append(packet)

    def beat(self) -> None:
        """Send heartbeats until the end: a second of the venue's time apart."""
        last = self.packets[-1]
        (sent_ns,) = struct.unpack_from("<q", last, 32)
        while not self.ended.wait(self.options.heartbeat_s):
            sent_ns += NS_PER_S
            beat = heartbeat(last, sent_ns)
            self.history.append(beat)
            for line in self.options.lines:
                self._socket.sendto(beat, line)

    def close(self) -> None:
        """Stop sending."""
        self.ended.set()
        self._socket.close()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Send IEX-TP on several lines, with recovery.")
    parser.add_argument("--address", default="127.0.0.1", help="of the interface to send by")
    parser.add_argument("--lines", type=address, nargs="+", required=True, metavar="GROUP:PORT")
    parser.add_argument("--loopback", action="store_true", help="this host may read it, too")
    parser.add_argument("--recovery-port", type=int, default=0)
    parser.add_argument("--cuts", type=int, default=0, help="connections to cut in an answer")
    parser.add_argument("--file", type=Path, help="a capture, instead of a made-up market")
    parser.add_argument("--count", type=int, default=100_000, help="messages to make up")
    parser.add_argument("--runs", type=int, default=2, help="how often the market begins")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=10_000.0, help="packets per second")
    parser.add_argument("--loss", type=float, default=0.0, help="share of each line")
    parser.add_argument("--double", type=float, default=0.0)
    parser.add_argument("--late", type=float, default=0.0)
    parser.add_argument("--late-by", type=float, default=20.0, help="packets, at most")
    parser.add_argument("--heartbeat-s", type=float, default=0.05)
    parser.add_argument("--wait", action="store_true", help="begin when a line comes in")
    return parser.parse_args()


def say(**facts: object) -> None:
    """Print facts for whoever has started this."""
    print(json.dumps(facts), flush=True)


async def serve(options: argparse.Namespace) -> None:
    """Send, and answer, until the input ends."""
    packets = list(
        captured(options.file)
        if options.file
        else generated(options.seed, options.count, options.runs)
    )
    venue = Venue(options, packets)
    server = RecoveryServer(venue.history, cuts=options.cuts)
    async with server.serve(options.address, options.recovery_port) as port:
        messages = sum(struct.unpack_from("<H", packet, 14)[0] for packet in packets)
        say(recovery=f"{options.address}:{port}", packets=len(packets), messages=messages)
        try:
            if options.wait and not await asyncio.to_thread(sys.stdin.readline):
                return
            await asyncio.to_thread(venue.send)
            say(datagrams=venue.datagrams, cuts=server.cuts_made)
            beating = asyncio.create_task(asyncio.to_thread(venue.beat))
            await asyncio.to_thread(sys.stdin.read)
            venue.ended.set()
            await beating
            say(cuts=server.cuts_made)
        finally:
            venue.close()


if __name__ == "__main__":
    # Sending must not keep recovery waiting for the interpreter.
    sys.setswitchinterval(0.0002)
    asyncio.run(serve(arguments()))
