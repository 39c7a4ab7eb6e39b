"""Binance capture lines."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from typing import Any

import pytest
from chronicle.errors import DecodeError
from chronicle.feeds import Batch, Counts, import_capture
from chronicle.feeds import binance as feed
from chronicle.feeds.continuity import StreamGap
from chronicle.feeds.decimals import parse_fixed, parse_fixed_many
from chronicle.feeds.type_ids import BINANCE_RAW
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.feeds_support import BINANCE_FILE, messages, sample

TICKER = {
    "e": "bookTicker",
    "u": 7,
    "s": "BTCUSDT",
    "b": "61800.20",
    "B": "2.507",
    "a": "61800.30",
    "A": "2.510",
    "T": 11,
    "E": 12,
}
TRADE = {
    "e": "trade",
    "E": 12,
    "T": 11,
    "s": "BTCUSDT",
    "t": 5,
    "p": "0.00000001",
    "q": "3",
    "X": "MARKET",
    "m": True,
}


def depth(first: int, final: int, previous: int, **more: Any) -> dict[str, Any]:
    ids = {"U": first, "u": final, "pu": previous}
    levels = {"b": [["1.5", "0"], ["1.25", "7"]], "a": [["2", "0.125"]]}
    return {"e": "depthUpdate", "E": 12, "T": 11, "s": "BTCUSDT", **ids, **levels, **more}


def line(time_ns: int, event: dict[str, Any]) -> bytes:
    body = event if "lastUpdateId" in event else {"stream": "any@thing", "data": event}
    return b"%d %s\n" % (time_ns, json.dumps(body).encode())


def read(data: bytes, *, chunk_bytes: int = 1 << 20) -> tuple[list[Batch], Counts]:
    counts = Counts()
    decoder = feed.BinanceDecoder(io.BytesIO(data), counts, chunk_bytes=chunk_bytes)
    return list(decoder.batches()), counts


def test_each_kind_of_line_becomes_its_messages() -> None:
    snapshot = {"lastUpdateId": 9, "E": 1, "T": 2, "bids": [["3", "4"]], "asks": []}
    batches, counts = read(
        line(1, TICKER) + line(2, TRADE) + line(3, depth(4, 8, 3)) + line(4, snapshot)
    )
    one = 10**8
    level = feed.DepthLevel
    common: dict[str, Any] = {"event_time_ms": 12, "transaction_time_ms": 11, "symbol": b"BTCUSDT"}
    assert messages(batches, "binance") == [
        feed.BookTicker(
            update_id=7,
            bid_price=6_180_020_000_000,
            bid_quantity=250_700_000,
            ask_price=6_180_030_000_000,
            ask_quantity=251_000_000,
            **common,
        ),
        feed.Trade(
            trade_id=5, price=1, quantity=3 * one, kind=b"MARKET", buyer_is_maker=True, **common
        ),
        feed.DepthUpdate(
            first_update_id=4,
            final_update_id=8,
            previous_update_id=3,
            bid_count=2,
            ask_count=1,
            **common,
        ),
        level(price=150_000_000, quantity=0, side=b"B"),
        level(price=125_000_000, quantity=7 * one, side=b"B"),
        level(price=2 * one, quantity=12_500_000, side=b"A"),
        feed.BookSnapshot(
            event_time_ms=1, transaction_time_ms=2, last_update_id=9, bid_count=1, ask_count=0
        ),
        level(price=3 * one, quantity=4 * one, side=b"B"),
    ]
    assert batches[0].timestamps_ns.tolist() == [1, 2, 3, 3, 3, 3, 4, 4]
    assert counts.lines == {"bookTicker": 1, "trade": 1, "depth": 1, "snapshot": 1}


def test_lines_that_are_none_of_these_are_kept_raw() -> None:
    other = b'{"stream":"x@markPrice","data":{"e":"markPriceUpdate","p":"1"}}'
    long_symbol = json.dumps({"data": TRADE | {"s": "X" * 25}}).encode()
    foreign = json.dumps({"data": TRADE | {"s": "BTC\u20ac"}}).encode()
    huge = json.dumps({"data": TRADE | {"t": 1 << 63}}).encode()
    raw = [other, long_symbol, foreign, huge, b"{broken", b'{"result":null}', b""]
    data = line(1, TRADE) + b"".join(b"2 %s\n" % body for body in raw) + b"no time\n\r\n\n"
    batches, counts = read(data)
    found = messages(batches, "binance")
    assert found[1:] == [*raw, b"no time"]
    assert counts.lines == {"trade": 1, "raw": 8}
    assert counts.messages == {feed.Trade.type_id: 1, BINANCE_RAW: 8}
    assert counts.skipped == {"empty line": 2}
    assert batches[0].timestamps_ns.tolist()[-1] == 2


@pytest.mark.parametrize(
    "bad", ["0.000000001", "1e5", "NaN", "", "1.", ".5", "92233720369", "1\n2"]
)
def test_a_number_that_fixed_point_cannot_hold_keeps_its_line_raw(bad: str) -> None:
    poisoned = line(2, TRADE | {"p": bad})
    batches, counts = read(line(1, TICKER) + poisoned + line(3, depth(1, 2, 0)))
    found = messages(batches, "binance")
    assert found[1] == poisoned[2:-1]
    assert len(found) == 1 + 1 + 4
    assert counts.lines == {"bookTicker": 1, "raw": 1, "depth": 1}
    assert counts.messages_count == 6


def test_unusual_numbers_that_fit_are_exact() -> None:
    texts = ["-1.5", "0001", "12345678901.5", "1.000000000000", "92233720368.54775807"]
    values, bad = parse_fixed_many(texts)
    assert values.tolist() == [int(Decimal(text) * 10**8) for text in texts]
    assert not bad.any()


@given(
    st.lists(
        st.one_of(
            st.decimals(-(10**12), 10**12, places=8).map(lambda d: format(d, "f")),
            st.integers(0, 10**13).map(str),
            st.text(alphabet="0123456789.-e\n\u0663", max_size=24),
        ),
        max_size=20,
    )
)
@settings(deadline=None)
def test_many_numbers_at_once_equal_one_at_a_time(texts: list[str]) -> None:
    values, bad = parse_fixed_many(texts)
    assert len(values) == len(bad) == len(texts)
    for text, value, refused in zip(texts, values.tolist(), bad.tolist(), strict=True):
        alone = parse_fixed(text)
        assert refused == (alone is None)
        if alone is not None:
            assert value == alone
            assert Decimal(value) == Decimal(text) * 10**8


def test_a_depth_update_whose_predecessor_is_missing_is_a_gap() -> None:
    other = depth(1, 90, 0, s="ETHUSDT")
    data = b"".join(
        line(n, event)
        for n, event in enumerate([depth(4, 8, 3), other, depth(9, 12, 8), depth(20, 25, 19)])
    )
    batches, counts = read(data)
    gaps = [m for m in messages(batches, "binance") if isinstance(m, StreamGap)]
    assert [(g.first_missing, g.next, g.session) for g in gaps] == [(13, 20, b"BTCUSDT")]
    assert counts.gaps == 1


@pytest.mark.parametrize("chunk_bytes", [1, 10, 300, 1_000])
def test_chunks_of_any_size_give_the_same_messages(chunk_bytes: int) -> None:
    data = b"".join(line(n, e) for n in range(20) for e in (TICKER, TRADE, depth(n + 1, n + 1, n)))
    expected, counts = read(data)
    found, again = read(data, chunk_bytes=chunk_bytes)
    assert messages(found, "binance") == messages(expected, "binance")
    assert counts == again


def test_a_last_line_without_its_end_is_cut_unless_it_decodes() -> None:
    whole = line(1, TICKER) + line(2, TRADE)
    assert read(whole[:-1])[1].truncated == 0
    batches, counts = read(whole[:-9])
    assert counts.truncated == 1
    assert messages(batches, "binance")[1] == line(2, TRADE)[2:-9]


def test_a_file_without_lines_is_refused_before_it_fills_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "LINE_BYTES_MAX", 1_000)
    with pytest.raises(DecodeError, match="line is too long"):
        read(b"x" * 5_000, chunk_bytes=100)


@pytest.mark.needs_data
def test_the_sample_capture_has_the_published_counts() -> None:
    with import_capture(sample(BINANCE_FILE)) as capture:
        batches = sum(map(len, capture))
    counts = capture.counts
    assert counts.lines == {"bookTicker": 66_089, "trade": 21_313, "depth": 6_551, "snapshot": 1}
    assert sum(counts.lines.values()) == 93_954
    assert (counts.gaps, counts.skipped, counts.truncated) == (0, {}, 0)
    assert batches == counts.messages_count
