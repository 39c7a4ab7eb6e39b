"""The decoders against a naive one: plain `struct`, one message at a time, obviously right.

Every field of every message of the three sample captures is compared, with its type, its
timestamp and its place in the stream.
"""

from __future__ import annotations

import datetime as dt
import json
import struct
import zlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from chronicle.feeds import Batch, import_capture, message_classes
from chronicle.feeds.type_ids import BINANCE, IEX, ITCH
from chronicle.feeds.wire import windows

from tests.feeds_support import BINANCE_FILE, IEX_FILE, ITCH_FILE, sample

Naive = tuple[int, int, dict[str, Any]]
"""Type id, timestamp, fields."""

RESTART = 0x8002
VIEWS_EVERY = 61


def unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    return zlib.decompress(data, wbits=31) if data[:2] == b"\x1f\x8b" else data


def naive_pcap(data: bytes) -> Iterator[tuple[int, bytes]]:
    assert data[:4] == b"\xd4\xc3\xb2\xa1"
    at = 24
    while at + 16 <= len(data):
        seconds, micros, size, _ = struct.unpack_from("<IIII", data, at)
        if at + 16 + size > len(data):
            return
        packet = data[at + 16 : at + 16 + size]
        assert packet[12:14] == b"\x08\x00"
        udp = 14 + (packet[14] & 15) * 4
        (length,) = struct.unpack_from(">H", packet, udp + 4)
        yield seconds * 10**9 + micros * 1000, packet[udp + 8 : udp + length]
        at += 16 + size


def naive_iex(data: bytes) -> Iterator[Naive]:
    expected = None
    for time_ns, packet in naive_pcap(data):
        session, _, count, offset, sequence = struct.unpack_from("<IHHqq", packet, 8)
        if expected is not None and (offset, sequence) == (0, 1) and expected != 1:
            name = str(session).encode()
            fields = {"stream": 0x8004 << 32 | 1, "previous_next": expected, "next": 1}
            yield RESTART, time_ns, fields | {"previous_session": name, "session": name}
        elif expected is not None:
            assert sequence == expected
        expected = sequence + count
        at = 40
        for _ in range(count):
            (size,) = struct.unpack_from("<H", packet, at)
            message = packet[at + 2 : at + 2 + size]
            yield IEX + message[0], time_ns, naive_iex_fields(message)
            at += 2 + size
        assert at == len(packet)


def naive_iex_fields(m: bytes) -> dict[str, Any]:
    kind = chr(m[0])
    fields: dict[str, Any] = {"time_ns": struct.unpack_from("<q", m, 2)[0]}
    if kind != "S":
        fields["symbol"] = m[10:18].rstrip(b" ")
    if kind in "SE":
        fields["event"] = m[1:2]
    elif kind == "H":
        fields |= {"status": m[1:2], "reason": m[18:22].rstrip(b" ")}
    elif kind == "O":
        fields["status"] = m[1:2]
    elif kind == "P":
        fields |= {"status": m[1], "detail": m[18:19]}
    elif kind in "TB":
        size, price, trade_id = struct.unpack_from("<Iqq", m, 18)
        fields |= {"flags": m[1], "size": size, "price": price, "trade_id": trade_id}
    elif kind in "85":
        size, price = struct.unpack_from("<Iq", m, 18)
        fields |= {"flags": m[1], "size": size, "price": price}
    else:
        raise AssertionError(kind)
    return fields


def naive_itch(data: bytes, midnight_ns: int) -> Iterator[Naive]:
    at = 0
    while at < len(data):
        (size,) = struct.unpack_from(">H", data, at)
        message = data[at + 2 : at + 2 + size]
        fields = naive_itch_fields(message)
        yield ITCH + message[0], midnight_ns + fields["time_ns"], fields
        at += 2 + size
    assert at == len(data)


def naive_itch_fields(m: bytes) -> dict[str, Any]:
    locate, tracking = struct.unpack_from(">HH", m, 1)
    fields: dict[str, Any] = {
        "locate": locate,
        "tracking": tracking,
        "time_ns": int.from_bytes(m[5:11], "big"),
    }
    kind = chr(m[0])
    form, text = {
        "R": (
            ">8sccIcc2scccccIc",
            "stock market_category financial_status round_lot round_lots_only issue_class "
            "issue_subtype authenticity short_sale_threshold ipo luld_tier etp etp_leverage "
            "inverse",
        ),
        "H": (">8scc4s", "stock state reserved reason"),
        "Y": (">8sc", "stock action"),
        "L": (">4s8sccc", "participant stock primary mode state"),
        "A": (">QcI8sI", "order_ref side shares stock price"),
        "F": (">QcI8sI4s", "order_ref side shares stock price participant"),
        "E": (">QIQ", "order_ref shares match"),
        "X": (">QI", "order_ref shares"),
        "D": (">Q", "order_ref"),
        "U": (">QQII", "order_ref new_order_ref shares price"),
        "P": (">QcI8sIQ", "order_ref side shares stock price match"),
    }[kind]
    names = text.split()
    assert struct.calcsize(form) == len(m) - 11
    values = struct.unpack_from(form, m, 11)
    for name, value in zip(names, values, strict=True):
        wide = isinstance(value, bytes) and len(value) > 1
        fields[name] = value.rstrip(b" ") if wide else value
    return fields


def fixed(text: str) -> int:
    scaled = Decimal(text) * 10**8
    assert scaled == int(scaled)
    return int(scaled)


def naive_binance(data: bytes) -> Iterator[Naive]:
    for line in data.splitlines():
        stamp, body = line.split(b" ", 1)
        parsed = json.loads(body)
        event = parsed.get("data", parsed)
        fields: dict[str, Any] = {
            "event_time_ms": event["E"],
            "transaction_time_ms": event["T"],
        }
        kind = event.get("e", "snapshot")
        bids: list[list[str]] = []
        asks: list[list[str]] = []
        if kind != "snapshot":
            fields["symbol"] = event["s"].encode()
        if kind == "bookTicker":
            fields |= {
                "update_id": event["u"],
                "bid_price": fixed(event["b"]),
                "bid_quantity": fixed(event["B"]),
                "ask_price": fixed(event["a"]),
                "ask_quantity": fixed(event["A"]),
            }
        elif kind == "trade":
            fields |= {
                "trade_id": event["t"],
                "price": fixed(event["p"]),
                "quantity": fixed(event["q"]),
                "kind": event["X"].encode(),
                "buyer_is_maker": event["m"],
            }
        elif kind == "depthUpdate":
            bids, asks = event["b"], event["a"]
            fields |= {
                "first_update_id": event["U"],
                "final_update_id": event["u"],
                "previous_update_id": event["pu"],
            }
        else:
            bids, asks = event["bids"], event["asks"]
            fields["last_update_id"] = event["lastUpdateId"]
        type_id = BINANCE + ["", "bookTicker", "trade", "depthUpdate", "snapshot"].index(kind)
        if type_id > BINANCE + 2:
            fields |= {"bid_count": len(bids), "ask_count": len(asks)}
        yield type_id, int(stamp), fields
        for side, levels in ((b"B", bids), (b"A", asks)):
            for price, quantity in levels:
                level = {"price": fixed(price), "quantity": fixed(quantity), "side": side}
                yield BINANCE + 5, int(stamp), level


def rows(batch: Batch) -> list[tuple[Any, ...]]:
    """Return the fields of every record, in order of the layout, read through NumPy."""
    out: list[tuple[Any, ...]] = [()] * len(batch)
    classes = message_classes()
    for type_id in set(batch.type_ids.tolist()):
        where = (batch.type_ids == type_id).nonzero()[0]
        cls = classes[type_id]
        assert (batch.lengths[where] == cls.size_bytes).all()
        assert (batch.offsets[where] % 8 == 0).all()
        dense = windows(batch.buffer, f"V{cls.size_bytes}")[batch.offsets[where]]
        for index, row in zip(where.tolist(), dense.view(cls.dtype).tolist(), strict=True):
            out[index] = row
    return out


def check_against(batches: Iterator[Batch], naive: Iterator[Naive]) -> int:
    """Compare every field of every record; every so often also through the Python views."""
    classes = message_classes()
    names = {key: tuple(f.name for f in cls.FIELDS) for key, cls in classes.items()}
    count = 0
    for batch in batches:
        assert batch.buffer.flags.c_contiguous
        stamped = zip(
            batch.type_ids.tolist(), batch.timestamps_ns.tolist(), rows(batch), strict=True
        )
        for index, (type_id, time_ns, row) in enumerate(stamped):
            want_type, want_time, fields = next(naive)
            want = tuple(fields[name] for name in names[want_type])
            assert (type_id, time_ns, row) == (want_type, want_time, want), f"record {count}"
            assert len(fields) == len(want)
            if count % VIEWS_EVERY == 0:
                assert classes[type_id].view(batch.payload(index)).as_dict() == fields
            count += 1
    assert next(naive, None) is None
    return count


@pytest.mark.needs_data
@pytest.mark.slow
def test_iex_deep_agrees_with_the_naive_decoder_on_every_field() -> None:
    path = sample(IEX_FILE)
    data = unpacked(path)
    with import_capture(path) as capture:
        assert check_against(capture, naive_iex(data)) == 391_999 + 11


@pytest.mark.needs_data
def test_itch_agrees_with_the_naive_decoder_on_every_field() -> None:
    path = sample(ITCH_FILE)
    day = dt.datetime(2020, 1, 30, tzinfo=ZoneInfo("America/New_York"))
    naive = naive_itch(unpacked(path), int(day.timestamp()) * 10**9)
    with import_capture(path, date=day.date()) as capture:
        assert check_against(capture, naive) == 10_000


@pytest.mark.needs_data
@pytest.mark.slow
def test_binance_agrees_with_the_naive_decoder_on_every_field() -> None:
    path = sample(BINANCE_FILE)
    with import_capture(path) as capture:
        assert check_against(capture, naive_binance(unpacked(path))) == 539_475
