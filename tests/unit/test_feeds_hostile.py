"""Hostile input: whatever the bytes, a typed error or a clean result, and it ends.

Small captures are mutated at random: bytes flipped, cut out, repeated, lengths overwritten. Each
batch that comes out must be well-formed, because the queue's writer is native code.
"""

from __future__ import annotations

import gzip
import io
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from chronicle.errors import ChronicleError, DecodeError
from chronicle.feeds import Batch, Counts, guess_feed, message_classes
from chronicle.feeds.binance import BinanceDecoder
from chronicle.feeds.iex import IexDecoder
from chronicle.feeds.itch import ItchFileDecoder
from chronicle.feeds.mold import MoldDecoder
from chronicle.feeds.pcap import PcapReader
from chronicle.feeds.source import ByteSource
from chronicle.feeds.type_ids import RAW_TYPE_IDS
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.feeds_support import blocks, delete, frame, iex, mold, mold_end, pcap, quote

IEX_CAPTURE = pcap(
    [
        frame(iex([], 1)),
        frame(iex([quote(1), quote(2)], 1, sent_ns=1)),
        frame(iex([quote(3), b"zz", b""], 3, sent_ns=2), vlans=(0x8100,)),
        frame(iex([quote(4)], 1, sent_ns=3)),
        frame(iex([quote(5)] * 3, 2, sent_ns=4, protocol=0x8004)),
    ]
)
MOLD_CAPTURE = pcap(
    [
        frame(mold([delete(1), delete(2)], 1)),
        frame(mold([], 3)),
        frame(mold([delete(3), b"~~", b""], 3), options=bytes(4)),
        frame(mold_end(6)),
    ],
    order=">",
)
ITCH_FILE = blocks([delete(1), b"~unknown", delete(2), b"", delete(3)], ">")
LINES = b"""1 {"data":{"e":"trade","E":1,"T":1,"s":"X","t":1,"p":"1.5","q":"2","X":"A","m":true}}
2 {"data":{"e":"depthUpdate","E":1,"T":1,"s":"X","U":1,"u":2,"pu":0,"b":[["1","2"]],"a":[]}}
3 {"lastUpdateId":4,"bids":[["1.25","2"]],"asks":[["3","4.00000000"]]}
"""
SEEDS = {"iex": IEX_CAPTURE, "mold": MOLD_CAPTURE, "itch": ITCH_FILE, "binance": LINES}

mutation = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 2_000), st.binary(min_size=1, max_size=8)),
    st.tuples(
        st.just("set"),
        st.integers(0, 2_000),
        st.sampled_from([b"\0\0", b"\xff\xff", b"\xff\xff\xff\xff", b"\x7f" * 8, b"\xff" * 8]),
    ),
    st.tuples(st.just("cut"), st.integers(0, 2_000), st.integers(1, 60)),
    st.tuples(st.just("repeat"), st.integers(0, 2_000), st.integers(1, 200)),
)


def mutate(data: bytes, mutations: list[Any]) -> bytes:
    made = bytearray(data)
    for kind, where, what in mutations:
        at = where % (len(made) + 1)
        if kind == "set":
            made[at : at + len(what)] = what
        elif kind == "cut":
            del made[at : at + what]
        else:
            made[at:at] = made[at : at + what]
    return bytes(made)


def run(feed: str, data: bytes, counts: Counts, chunk_bytes: int) -> Iterator[Batch]:
    source = io.BytesIO(data)
    if feed == "itch":
        return ItchFileDecoder(source, counts, chunk_bytes=chunk_bytes).batches()
    if feed == "binance":
        return BinanceDecoder(source, counts, chunk_bytes=chunk_bytes).batches()
    decoder = IexDecoder(counts) if feed == "iex" else MoldDecoder(counts)
    return decoder.batches(PcapReader(source, counts, chunk_bytes=chunk_bytes))


def check(batch: Batch, feed: str) -> int:
    classes = message_classes(feed)
    count = len(batch)
    assert len(batch.timestamps_ns) == len(batch.offsets) == len(batch.lengths) == count, (
        "arrays differ in length"
    )
    assert batch.buffer.flags.c_contiguous
    assert (batch.offsets + batch.lengths <= batch.buffer.size).all()
    for type_id, _, found in batch.messages(classes):
        assert type_id in classes or type_id in RAW_TYPE_IDS
        if not isinstance(found, memoryview):
            found.as_dict()
    return int((batch.type_ids >= 0x8100).sum())


def decode_all(feed: str, data: bytes, chunk_bytes: int) -> tuple[Counts, bool]:
    counts = Counts()
    records = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            for batch in run(feed, data, counts, chunk_bytes):
                records += check(batch, feed)
        except DecodeError:
            return counts, False
    assert records == counts.messages_count
    return counts, True


@pytest.mark.parametrize("feed", SEEDS)
@given(mutations=st.lists(mutation, max_size=6), chunk_bytes=st.sampled_from([7, 64, 1 << 20]))
@settings(max_examples=150, deadline=None)
def test_a_mutated_capture_gives_clean_records_or_a_decode_error(
    feed: str, mutations: list[Any], chunk_bytes: int
) -> None:
    data = mutate(SEEDS[feed], mutations)
    counts, whole = decode_all(feed, data, chunk_bytes)
    again, whole_again = decode_all(feed, data, 1 << 20)
    assert whole == whole_again
    if whole:
        # Where chunks end must not change what is found.
        assert counts == again


@pytest.mark.parametrize("feed", SEEDS)
@given(data=st.binary(max_size=600))
@settings(deadline=None)
def test_noise_gives_clean_records_or_a_decode_error(feed: str, data: bytes) -> None:
    header = IEX_CAPTURE[:24] if feed in ("iex", "mold") else b""
    decode_all(feed, header + data, 1 << 20)


@pytest.mark.parametrize("feed", ["iex", "mold"])
@given(payloads=st.lists(st.binary(max_size=120), max_size=8))
@settings(deadline=None)
def test_noise_in_packets_is_skipped(feed: str, payloads: list[bytes]) -> None:
    starts = {"iex": b"\1\0\4\x80", "mold": b"0123456789"}
    packets = [starts[feed] + payload for payload in payloads]
    counts, whole = decode_all(feed, pcap(map(frame, packets)), 1 << 20)
    assert whole
    assert counts.packets == len(packets)


@given(
    feed=st.sampled_from(sorted(SEEDS)),
    mutations=st.lists(mutation, max_size=4),
)
@settings(deadline=None)
def test_guessing_the_feed_of_anything_is_an_answer_or_a_decode_error(
    feed: str, mutations: list[Any]
) -> None:
    try:
        assert guess_feed(mutate(SEEDS[feed], mutations)) in SEEDS
    except DecodeError:
        return


@given(mutations=st.lists(mutation, max_size=4))
@settings(deadline=None)
def test_a_damaged_gzip_file_ends_or_is_a_decode_error(
    mutations: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.gz"
    path.write_bytes(mutate(gzip.compress(IEX_CAPTURE), mutations))
    try:
        with ByteSource(path) as source:
            while source.read(1_000):
                pass
    except ChronicleError:
        return
