"""The venue's made-up market: a strategy that watches it always finds something to do again."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from chronicle.feeds.generate import SYMBOLS
from feed_sender import generated
from strategy import Strategy

COUNT = 60_000
#: Levels of a side that a message is of: price and size.
Side = dict[int, int]


def levels(packets: Iterator[bytes]) -> Iterator[tuple[int, bytes, int, int, int]]:
    """Yield number, symbol, type, price and size of each price level in IEX-TP packets."""
    for packet in packets:
        count, _, sequence = struct.unpack_from("<Hqq", packet, 14)
        at = 40
        for number in range(sequence, sequence + count):
            (size,) = struct.unpack_from("<H", packet, at)
            if packet[at + 2] in b"85":
                symbol, shares, price = struct.unpack_from("<8sIq", packet, at + 12)
                yield number, symbol.rstrip(), packet[at + 2], price, shares
            at += 2 + size


def books(seed: int) -> Iterator[tuple[int, bytes, Side, Side]]:
    """Yield number, symbol and both sides after each price level."""
    found: dict[bytes, tuple[Side, Side]] = {symbol: ({}, {}) for symbol in SYMBOLS}
    for number, symbol, code, price, shares in levels(generated(seed, COUNT, 1)):
        bids, asks = found[symbol]
        side = bids if code == ord("8") else asks
        if shares:
            side[price] = shares
        else:
            side.pop(price, None)
        yield number, symbol, bids, asks


def test_no_book_of_the_made_up_market_is_ever_crossed():
    for number, symbol, bids, asks in books(seed=1):
        if bids and asks:
            assert max(bids) < min(asks), f"{symbol!r} after message {number}"


def test_the_strategys_rule_always_finds_something_to_do_again():
    ratio = Strategy().ratio
    last = dict.fromkeys(SYMBOLS, 0)
    for number, symbol, bids, asks in books(seed=1):
        assert number - last[symbol] < 2_000, f"{symbol!r}: nothing since {last[symbol]}"
        if bids and asks:
            bid, ask = bids[max(bids)], asks[min(asks)]
            if bid > ratio * ask or ask > ratio * bid:
                last[symbol] = number
