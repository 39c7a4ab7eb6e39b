"""Which feeds there are, which messages each has, and how to recognize one.

The one table of message classes. What a file holds is told by its content and never by its name:
a pcap file by its magic number and then by what is in its UDP payloads, Nasdaq's daily file by
blocks whose types and lengths agree, a Binance capture by the shape of its first line.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np

from chronicle.errors import DecodeError
from chronicle.feeds import binance, continuity, iex, itch
from chronicle.feeds.batch import Counts
from chronicle.feeds.blocks import split_run
from chronicle.feeds.iex import IexDecoder
from chronicle.feeds.mold import MoldDecoder
from chronicle.feeds.pcap import PcapReader, is_pcap
from chronicle.feeds.type_ids import FEED_RANGE_SIZE, RAW_TYPE_IDS
from chronicle.message import MessageBase

FEEDS: Final[dict[str, dict[int, type[MessageBase]]]] = {
    "iex": iex.TABLE.classes | continuity.CLASSES,
    "mold": itch.TABLE.classes | continuity.CLASSES,
    "itch": itch.TABLE.classes,
    "binance": binance.CLASSES | continuity.CLASSES,
}
"""Message classes by type id, for each feed: IEX-TP, ITCH in MoldUDP64, ITCH files, Binance."""

HEAD_BYTES: Final = 1 << 20
"""How much of a file `guess_feed` wants to see; less will do for files that are shorter."""

_BLOCKS_TO_CHECK = 16


def message_classes(feed: str | None = None) -> dict[int, type[MessageBase]]:
    """Return the message classes of one feed, or of all, by type id.

    Raises
    ------
    ValueError
        If there is no such feed.

    Examples
    --------
    >>> message_classes("iex")[0x8154].__name__
    'Trade'
    """
    if feed is None:
        return {key: cls for classes in FEEDS.values() for key, cls in classes.items()}
    check_feed(feed)
    return dict(FEEDS[feed])


def check_feed(feed: str) -> None:
    """Raise `ValueError` if there is no feed of that name."""
    if feed not in FEEDS:
        raise ValueError(f"unknown feed={feed!r}; feeds are {', '.join(FEEDS)}")


def type_name(type_id: int) -> str:
    """Return a name for people: the class, ``raw`` or the number.

    Examples
    --------
    >>> type_name(0x8154), type_name(0x8100), type_name(5)
    ('iex.Trade', 'iex.raw', '5')
    """
    bases = {0x80: "stream", 0x81: "iex", 0x82: "itch", 0x83: "binance"}
    family = bases.get(type_id // FEED_RANGE_SIZE)
    known = message_classes().get(type_id)
    if family is None or (known is None and type_id not in RAW_TYPE_IDS):
        return str(type_id)
    return f"{family}.{'raw' if known is None else known.__name__}"


def guess_feed(head: bytes) -> str:
    """Tell the feed of a file by its first bytes, unpacked.

    Parameters
    ----------
    head
        The first `HEAD_BYTES` of the file, or all of it.

    Raises
    ------
    DecodeError
        If it is none that is known.

    Examples
    --------
    >>> guess_feed(b'1723161255030314667 {"stream":"btcusdt@trade"}')
    'binance'
    """
    if is_pcap(head):
        return _guess_packets(head)
    if binance.is_binance(head):
        return "binance"
    if _is_itch(head):
        return "itch"
    raise DecodeError(
        f"cannot tell the feed of this file: it begins with {head[:16].hex(' ') or 'nothing'}; "
        f"name it: {', '.join(FEEDS)}"
    )


def _guess_packets(head: bytes) -> str:
    seen = 0
    for packets in PcapReader(io.BytesIO(head), Counts(), chunk_bytes=HEAD_BYTES):
        seen += len(packets)
        for feed, decoder in (("iex", IexDecoder), ("mold", MoldDecoder)):
            counts = Counts()
            decoder(counts).decode(packets)
            if counts.messages_count or counts.heartbeats or counts.ends:
                return feed
    raise DecodeError(
        f"capture holds neither IEX-TP nor MoldUDP64 near its start: udp_packets={seen}; "
        "if it does further on, name the feed: iex or mold"
    )


def _is_itch(head: bytes) -> bool:
    raw = np.frombuffer(head, np.uint8)
    positions, lengths, _ = split_run(raw, itch.LENGTHS)
    positions, lengths = positions[:_BLOCKS_TO_CHECK], lengths[:_BLOCKS_TO_CHECK]
    if not len(positions) or not lengths.all():
        return False
    return bool((itch.LENGTHS[raw[positions]] == lengths).all())
