"""ITCH 5.0: files of message blocks."""

from __future__ import annotations

import datetime as dt
import io
import struct
from typing import Any

import numpy as np
import pytest
from chronicle.feeds import Batch, Counts, import_capture
from chronicle.feeds import itch as feed
from chronicle.feeds.blocks import split_run
from chronicle.feeds.type_ids import ITCH, ITCH_RAW
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.feeds_support import ITCH_FILE, blocks, delete, messages, sample

NS = 34_200_000_000_007


def common(code: str) -> bytes:
    return code.encode() + struct.pack(">HHHI", 13, 2, NS >> 32, NS & 0xFFFF_FFFF)


def read(data: bytes, *, chunk_bytes: int = 1 << 20) -> tuple[list[Batch], Counts]:
    counts = Counts()
    return list(
        feed.ItchFileDecoder(io.BytesIO(data), counts, chunk_bytes=chunk_bytes).batches()
    ), counts


@pytest.mark.parametrize(
    ("code", "form", "values", "fields"),
    [
        ("S", ">c", (b"O",), "event"),
        ("C", ">QIQcI", (1, 2, 3, b"Y", 4), "order_ref shares match printable price"),
        ("Q", ">Q8sIQc", (1, b"AB", 2, 3, b"O"), "shares stock price match cross"),
        ("B", ">Q", (5,), "match"),
        (
            "I",
            ">QQc8sIIIcc",
            (1, 2, b"B", b"AB", 3, 4, 5, b"O", b"L"),
            "paired_shares imbalance_shares direction stock far_price near_price reference_price "
            "cross variation",
        ),
        (
            "J",
            ">8sIIII",
            (b"AB", 1, 2, 3, 4),
            "stock reference_price upper_price lower_price extension",
        ),
        ("K", ">8sIcI", (b"AB", 1, b"A", 2), "stock release_time_s qualifier price"),
        ("V", ">QQQ", (1, 2, 3), "level_1 level_2 level_3"),
        ("W", ">c", (b"1",), "level"),
        ("h", ">8scc", (b"AB", b"Q", b"H"), "stock market action"),
        ("N", ">8sc", (b"AB", b"A"), "stock interest"),
        (
            "O",
            ">8scIIIQII",
            (b"AB", b"Y", 1, 2, 3, 4, 5, 6),
            "stock eligible minimum_price maximum_price near_execution_price near_execution_time "
            "lower_collar upper_collar",
        ),
    ],
)
def test_types_that_no_sample_holds_follow_the_specification(
    code: str, form: str, values: tuple[Any, ...], fields: str
) -> None:
    padded = [v.ljust(8) if isinstance(v, bytes) and len(v) == 2 else v for v in values]
    wire = common(code) + struct.pack(form, *padded)
    batches, counts = read(blocks([wire], ">"))
    (found,) = messages(batches, "itch")
    expected = dict(zip(fields.split(), values, strict=True))
    assert found.as_dict() == expected | {  # type: ignore[union-attr]
        "locate": 13,
        "tracking": 2,
        "time_ns": NS,
    }
    assert counts.messages == {ITCH + ord(code): 1}
    assert batches[0].timestamps_ns.tolist() == [NS]


def test_every_type_of_the_specification_has_its_published_length() -> None:
    lengths = {chr(code): layout.size_bytes for code, layout in feed.TABLE.layouts.items()}
    assert lengths == {
        "S": 12,
        "R": 39,
        "H": 25,
        "Y": 20,
        "L": 26,
        "V": 35,
        "W": 12,
        "K": 28,
        "J": 35,
        "h": 21,
        "A": 36,
        "F": 40,
        "E": 31,
        "C": 36,
        "X": 23,
        "D": 19,
        "U": 35,
        "P": 44,
        "Q": 40,
        "B": 19,
        "I": 50,
        "N": 20,
        "O": 48,
    }


def test_unknown_messages_are_kept_raw_with_the_time_they_carry() -> None:
    unknown = b"~" + delete(1, 500)[1:]
    batches, counts = read(blocks([delete(1, 400), unknown, b"~short", b"", delete(2, 600)], ">"))
    found = messages(batches, "itch")
    assert found[1:4] == [unknown, b"~short", b""]
    assert batches[0].timestamps_ns.tolist() == [400, 500, 500, 500, 600]
    assert counts.messages == {ITCH + ord("D"): 2, ITCH_RAW: 3}


def test_a_file_that_begins_with_short_messages_has_them_at_midnight() -> None:
    batches, _ = read(blocks([b"~", delete(1, 400)], ">"))
    assert batches[0].timestamps_ns.tolist() == [0, 400]


@pytest.mark.parametrize("chunk_bytes", [1, 20, 21, 50, 1_000])
def test_chunks_of_any_size_give_the_same_messages(chunk_bytes: int) -> None:
    data = blocks([*map(delete, range(100)), b"~odd", *map(delete, range(100, 120))], ">")
    expected, _ = read(data)
    found, counts = read(data, chunk_bytes=chunk_bytes)
    assert messages(found, "itch") == messages(expected, "itch")
    assert counts.messages_count == 121
    assert counts.truncated == 0


def test_a_cut_file_gives_what_is_complete_and_says_so() -> None:
    data = blocks(map(delete, range(3)), ">")
    for cut in range(1, 21):
        batches, counts = read(data[:-cut])
        assert len(messages(batches, "itch")) == 2
        assert counts.truncated == 1


def test_the_day_begins_at_midnight_in_new_york_in_summer_and_winter() -> None:
    assert feed.midnight_ns(dt.date(2020, 1, 30)) == 1_580_360_400 * 10**9
    assert feed.midnight_ns(dt.date(2020, 7, 1)) == 1_593_576_000 * 10**9
    assert feed.midnight_ns(None) == 0


def naive_run(data: bytes) -> tuple[list[int], list[int], int]:
    positions, lengths, at = [], [], 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        if at + 2 + size > len(data):
            break
        positions.append(at + 2)
        lengths.append(size)
        at += 2 + size
    return positions, lengths, at


@given(
    st.lists(
        st.one_of(
            st.integers(0, 2**64 - 1).map(delete),
            st.binary(max_size=40),
            # Payloads that look like the start of a block: the candidates that mislead.
            st.sampled_from([b"\x00\x13D", b"~\x00\x13D" * 9, b"\x00\x00\x0cS\x00\x13D" * 4]),
        ),
        max_size=30,
    ),
    st.binary(max_size=12),
)
@settings(deadline=None)
def test_finding_blocks_by_scanning_equals_walking_them(run: list[bytes], tail: bytes) -> None:
    data = blocks(run, ">") + tail
    positions, lengths, end = split_run(np.frombuffer(data, np.uint8), feed.LENGTHS)
    assert (positions.tolist(), lengths.tolist(), end) == naive_run(data)


@given(st.binary(max_size=400))
@settings(deadline=None)
def test_finding_blocks_in_noise_equals_walking_them(data: bytes) -> None:
    positions, lengths, end = split_run(np.frombuffer(data, np.uint8), feed.LENGTHS)
    assert (positions.tolist(), lengths.tolist(), end) == naive_run(data)


@pytest.mark.needs_data
def test_the_sample_file_has_the_published_counts() -> None:
    with import_capture(sample(ITCH_FILE)) as capture:
        assert sum(map(len, capture)) == 10_000
    assert {chr(key & 0xFF): n for key, n in capture.counts.messages.items()} == {
        "A": 4_758,
        "D": 4_083,
        "E": 849,
        "P": 240,
        "L": 52,
        "U": 7,
        "X": 6,
        "F": 2,
        "R": 1,
        "H": 1,
        "Y": 1,
    }
    assert capture.counts.truncated == 0


@pytest.mark.needs_data
def test_the_order_book_of_the_sample_file_is_consistent() -> None:
    alive: dict[int, int] = {}
    with import_capture(sample(ITCH_FILE)) as capture:
        for batch in capture:
            for _, _, found in batch.messages(capture.classes):
                match found:
                    case feed.AddOrder() | feed.AddOrderAttributed():
                        assert found.order_ref not in alive
                        alive[found.order_ref] = found.shares
                    case feed.OrderExecuted() | feed.OrderExecutedWithPrice() | feed.OrderCancel():
                        alive[found.order_ref] -= found.shares
                        assert alive[found.order_ref] >= 0
                        if not alive[found.order_ref]:
                            del alive[found.order_ref]
                    case feed.OrderDelete():
                        del alive[found.order_ref]
                    case feed.OrderReplace():
                        del alive[found.order_ref]
                        alive[found.new_order_ref] = found.shares
    assert len(alive) == 215
