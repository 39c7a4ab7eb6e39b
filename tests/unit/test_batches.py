"""Batches: `append_many`, `append_mixed`, `read_batch` and their arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chronicle
import numpy as np
import pytest
from chronicle.message import MessageBase, u8

from tests.queue_support import (
    SEGMENT_BYTES,
    Quote,
    Trade,
    fill,
    overwrite,
    payloads,
    publisher,
    segment_file,
    seqs,
    subscriber,
    trades,
)


def read_all(reader: chronicle.QueueReader, cls: Any = Trade, count_max: int = 65_536) -> Any:
    parts = []
    while len(part := reader.read_batch(cls, count_max=count_max)):
        parts.append(part)
    return np.concatenate(parts) if parts else np.zeros(0, cls.dtype)


# --- append_many ---


@pytest.mark.parametrize("count", [1, 2, 1_000, 10_000])
def test_append_many_publishes_each_item_as_one_message(path: Path, count: int):
    array = trades(count)
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        assert writer.append_many(array) == 1
        assert writer.next_seq == count + 1
        assert payloads(reader) == [item.tobytes() for item in array]


def test_append_many_goes_on_where_append_stopped(path: Path):
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        fill(writer, 3)
        assert writer.append_many(trades(5)) == 4
        assert writer.append(1, b"x") == 9
        assert seqs(reader) == list(range(1, 10))


def test_append_many_of_nothing_publishes_nothing(path: Path):
    with publisher(path, schema=[Trade]) as writer:
        fill(writer, 3)
        assert writer.append_many(trades(0)) == 4
        assert writer.next_seq == 4


@pytest.mark.parametrize("type_id", [9, 65_535, Trade])
def test_append_many_takes_a_type_id_or_a_message_class(path: Path, type_id: Any):
    with publisher(path) as writer, subscriber(path) as reader:
        writer.append_many(trades(3), type_id=type_id, timestamp_ns=77)
        expected = type_id if isinstance(type_id, int) else Trade.type_id
        assert [(m.type_id, m.timestamp_ns) for m in reader] == [(expected, 77)] * 3


@pytest.mark.parametrize("dtype", ["u1", "<i4", ">f8", "S5", "M8[ns]"])
def test_append_many_publishes_numbers_of_any_kind(path: Path, dtype: str):
    array = np.arange(6, dtype="i8").astype(dtype)
    with publisher(path) as writer, subscriber(path) as reader:
        writer.append_many(array, type_id=3)
        assert payloads(reader) == [array[n : n + 1].tobytes() for n in range(6)]


def test_append_many_finds_the_type_by_the_dtype(path: Path):
    with publisher(path, schema=[Trade, Quote]) as writer, subscriber(path) as reader:
        writer.append_many(np.zeros(2, Quote.dtype))
        writer.append_many(trades(1))
        assert [m.type_id for m in reader] == [Quote.type_id, Quote.type_id, Trade.type_id]


def test_append_many_refuses_a_dtype_that_no_class_or_more_than_one_has(path: Path):
    @chronicle.message(70)
    class Twin(MessageBase):
        a: u8

    @chronicle.message(71)
    class OtherTwin(MessageBase):
        a: u8

    with publisher(path, schema=[Twin, OtherTwin]) as writer:
        with pytest.raises(chronicle.BadArgument, match="0 message classes"):
            writer.append_many(trades(1))
        with pytest.raises(chronicle.BadArgument, match="2 message classes"):
            writer.append_many(np.zeros(1, Twin.dtype))
        assert writer.append_many(np.zeros(1, Twin.dtype), type_id=OtherTwin) == 1


def test_append_many_refuses_an_array_of_another_class(path: Path):
    with publisher(path, schema=[Trade]) as writer:
        with pytest.raises(chronicle.SchemaMismatch, match="Trade"):
            writer.append_many(np.zeros(3, Quote.dtype), type_id=Trade)
        assert writer.next_seq == 1


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_append_many_refuses_what_is_not_one_dimensional(path: Path, shape: tuple[int, ...]):
    with publisher(path) as writer:
        with pytest.raises(chronicle.BadArgument, match="one dimension"):
            writer.append_many(np.zeros(shape), type_id=1)


def test_append_many_refuses_a_strided_array(path: Path):
    with publisher(path, schema=[Trade]) as writer:
        with pytest.raises((chronicle.BadArgument, ValueError)):
            writer.append_many(trades(10)[::2])
        with pytest.raises((chronicle.BadArgument, ValueError)):
            writer.append_many(trades(10)[::-1])
        assert writer.next_seq == 1


def test_append_many_takes_a_part_of_an_array(path: Path):
    array = trades(10)
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        writer.append_many(array[3:6])
        assert payloads(reader) == [item.tobytes() for item in array[3:6]]


def test_append_many_takes_what_read_batch_gave(path: Path, folder: Path):
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        writer.append_many(trades(100))
        batch = reader.read_batch()
        with publisher(folder / "copy", schema=[Trade]) as other:
            other.append_many(np.ascontiguousarray(batch))
            with subscriber(folder / "copy") as copied:
                assert (copied.read_batch() == batch).all()


def test_append_many_refuses_items_too_large_for_a_segment(path: Path):
    with publisher(path) as writer:
        with pytest.raises(chronicle.TooLarge):
            writer.append_many(np.zeros(2, f"S{SEGMENT_BYTES}"), type_id=1)
        assert writer.next_seq == 1


# --- append_mixed ---


def mixed(*records: tuple[int, bytes], times_ns: Any = None) -> tuple[Any, ...]:
    buffer = b"".join(payload for _, payload in records)
    lengths = np.array([len(payload) for _, payload in records], "u4")
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype("u8")
    columns = buffer, offsets, lengths, np.array([type_id for type_id, _ in records], "u2")
    return columns if times_ns is None else (*columns, times_ns)


RECORDS = [(1, b"one"), (65_535, b""), (2, b"two" * 100), (1, b"x")]


def test_append_mixed_publishes_records_of_any_type_and_size(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        assert writer.append_mixed(*mixed(*RECORDS)) == 1
        assert [(m.type_id, bytes(m.payload)) for m in reader] == RECORDS
        assert writer.append_mixed(*mixed(*RECORDS)) == 5


def test_append_mixed_takes_a_timestamp_for_each(path: Path):
    times = np.array([5, 4, 3, (1 << 64) - 1], "u8")
    with publisher(path) as writer, subscriber(path) as reader:
        writer.append_mixed(*mixed(*RECORDS, times_ns=times))
        buffer, offsets, lengths, type_ids = mixed(*RECORDS)
        writer.append_mixed(buffer, offsets, lengths, type_ids, timestamps_ns=times)
        assert [m.timestamp_ns for m in reader] == [*times, *times]


def test_append_mixed_takes_overlapping_records_in_any_order(path: Path):
    columns = (
        bytearray(b"abcdef"),
        np.array([3, 0, 0], "u8"),
        np.array([3, 6, 1], "u4"),
        np.array([1, 2, 3], "u2"),
    )
    with publisher(path) as writer, subscriber(path) as reader:
        writer.append_mixed(*columns)
        assert payloads(reader) == [b"def", b"abcdef", b"a"]


def test_append_mixed_of_nothing_publishes_nothing(path: Path):
    empty = (b"", np.zeros(0, "u8"), np.zeros(0, "u4"), np.zeros(0, "u2"))
    with publisher(path) as writer:
        assert writer.append_mixed(*empty) == 1
        assert writer.append_mixed(*empty, np.zeros(0, "u8")) == 1
        assert writer.next_seq == 1


def test_append_mixed_of_many_segments_loses_nothing(path: Path):
    rng = np.random.default_rng(1)
    records = [(int(n % 9) + 1, rng.bytes(int(n))) for n in rng.integers(0, 900, 2_000)]
    with publisher(path) as writer, subscriber(path) as reader:
        writer.append_mixed(*mixed(*records))
        assert [(m.type_id, bytes(m.payload)) for m in reader] == records


@pytest.mark.parametrize("column", [1, 2, 3, 4])
def test_append_mixed_refuses_columns_of_different_lengths(path: Path, column: int):
    columns = [*mixed(*RECORDS), np.zeros(4, "u8")]
    columns[column] = columns[column][:-1]
    with publisher(path) as writer:
        with pytest.raises(chronicle.BadArgument, match="one length"):
            writer.append_mixed(*columns)
        assert writer.next_seq == 1


@pytest.mark.parametrize(
    ("offset", "length"), [(7, 1), (6, 1), (0, 7), (3, 4), ((1 << 64) - 1, 1), (1 << 63, 1)]
)
def test_append_mixed_refuses_a_record_outside_of_the_buffer(path: Path, offset: int, length: int):
    columns = (
        b"abcdef",
        np.array([0, offset], "u8"),
        np.array([1, length], "u4"),
        np.array([1, 1], "u2"),
    )
    with publisher(path) as writer:
        with pytest.raises(chronicle.BadArgument, match="record 1"):
            writer.append_mixed(*columns)
        assert writer.next_seq == 1  # Not even the first.


def test_append_mixed_refuses_a_record_too_large_for_a_segment(path: Path):
    with publisher(path) as writer:
        with pytest.raises(chronicle.TooLarge):
            writer.append_mixed(*mixed((1, b"x"), (1, bytes(SEGMENT_BYTES))))
        assert writer.next_seq == 1


@pytest.mark.parametrize("column", [0, 1, 2, 3, 4])
def test_append_mixed_refuses_strided_columns(path: Path, column: int):
    columns: list[Any] = [np.zeros(4, "u1"), *mixed(*RECORDS)[1:], np.zeros(4, "u8")]
    columns[column] = np.repeat(columns[column], 2)[::2]
    with publisher(path) as writer:
        with pytest.raises(chronicle.BadArgument, match="contiguous"):
            writer.append_mixed(*columns)
        assert writer.next_seq == 1


@pytest.mark.parametrize(("column", "dtype"), [(1, "i4"), (2, "u8"), (3, "u4"), (4, "f8")])
def test_append_mixed_refuses_columns_of_another_type(path: Path, column: int, dtype: str):
    columns: list[Any] = [*mixed(*RECORDS), np.zeros(4, "u8")]
    columns[column] = columns[column].astype(dtype)
    with publisher(path) as writer:
        with pytest.raises((BufferError, TypeError, chronicle.BadArgument)):
            writer.append_mixed(*columns)
        assert writer.next_seq == 1


# --- read_batch ---


def test_read_batch_gives_what_append_many_published(path: Path):
    array = trades(5_000)
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        writer.append_many(array)
        assert (read_all(reader) == array).all()
        assert reader.next() is None


def test_read_batch_knows_the_class_from_the_schema(path: Path):
    with publisher(path, schema=[Trade, Quote]) as writer, subscriber(path) as reader:
        writer.append_many(trades(3))
        writer.append_many(np.zeros(2, Quote.dtype))
        first, second = reader.read_batch(), reader.read_batch()
    assert first.dtype == Trade.dtype
    assert first["price"].tolist() == [0, 100, 200]
    assert second.dtype == Quote.dtype
    assert len(second) == 2


def test_read_batch_gives_an_empty_array_when_nothing_is_there(path: Path):
    with publisher(path, schema=[Trade]), subscriber(path) as reader:
        assert reader.read_batch(Trade).shape == (0,)
        assert reader.read_batch(Trade).dtype == Trade.dtype
        assert reader.read_batch().dtype == Trade.dtype
        messages, headers = reader.read_batch_with_headers(Trade)
        assert messages.shape == headers.shape == (0,)
        assert headers.dtype.names == ("type_id", "seq", "timestamp_ns")


@pytest.mark.parametrize("count_max", [1, 7, 100])
def test_read_batch_gives_at_most_count_max(path: Path, count_max: int):
    array = trades(500)
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        writer.append_many(array)
        sizes = []
        while len(batch := reader.read_batch(count_max=count_max)):
            sizes.append(len(batch))
        assert max(sizes) == count_max
        assert sum(sizes) == 500


@pytest.mark.parametrize("count_max", [0, -1])
def test_read_batch_refuses_to_read_nothing(path: Path, count_max: int):
    with publisher(path), subscriber(path) as reader:
        with pytest.raises(chronicle.BadArgument, match="count_max"):
            reader.read_batch(Trade, count_max=count_max)


def test_read_batch_ends_where_the_type_or_the_size_changes(path: Path):
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        writer.append_many(trades(3))
        writer.append(Trade.type_id + 1, bytes(24))
        writer.append_many(trades(2))
        writer.append(Trade.type_id, bytes(8))
        assert len(reader.read_batch()) == 3
        with pytest.raises(chronicle.SchemaMismatch):
            reader.read_batch()
        assert reader.next_seq == 4
        assert reader.next() is not None
        assert len(reader.read_batch()) == 2
        with pytest.raises(chronicle.SchemaMismatch, match="len=8"):
            reader.read_batch()
        assert reader.next_seq == 7


def test_read_batch_skips_nothing_when_the_class_is_wrong(path: Path):
    with publisher(path, schema=[Trade, Quote]) as writer, subscriber(path) as reader:
        writer.append_many(trades(3))
        for _ in range(2):
            with pytest.raises(chronicle.SchemaMismatch, match="Quote"):
                reader.read_batch(Quote)
        assert len(reader.read_batch(Trade)) == 3


def test_read_batch_and_next_may_be_mixed(path: Path):
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        writer.append_many(trades(10))
        assert len(reader.read_batch(count_max=3)) == 3
        message = reader.next()
        assert message is not None
        assert message.seq == 4
        assert reader.read_batch()["price"].tolist() == [400, 500, 600, 700, 800, 900]
        reader.commit()
        assert reader.next_seq == 11


def test_read_batch_gives_messages_that_came_one_by_one(path: Path):
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        for n in range(50):
            writer.publish(Trade(price=n, symbol=b"AB", qty=n))
        batch = reader.read_batch()
    assert batch["price"].tolist() == list(range(50))
    assert set(batch["symbol"].tolist()) == {b"AB"}


def test_a_batch_with_headers_tells_numbers_times_and_types(path: Path):
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        fill(writer, 2)
        reader.seek(3)
        for n in range(5):
            writer.publish(Trade(price=n, symbol=b"", qty=0), timestamp_ns=100 + n)
        messages, headers = reader.read_batch_with_headers()
    assert messages["price"].tolist() == [0, 1, 2, 3, 4]
    assert headers["seq"].tolist() == [3, 4, 5, 6, 7]
    assert headers["timestamp_ns"].tolist() == [100, 101, 102, 103, 104]
    assert headers["type_id"].tolist() == [Trade.type_id] * 5


def test_a_batch_is_a_view_that_cannot_be_written_to(path: Path):
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        writer.append_many(trades(5))
        messages, headers = reader.read_batch_with_headers()
        for array in (messages, headers):
            assert not array.flags.writeable
            assert not array.flags.owndata
            with pytest.raises(ValueError, match="read-only"):
                array[0] = array[1]
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True
        with pytest.raises(ValueError, match="read-only"):
            messages["price"][0] = 1


def test_a_column_of_a_batch_is_summed_in_place(path: Path):
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        writer.append_many(trades(1_000))
        batch = reader.read_batch()
        assert batch["qty"].sum() == sum(range(1, 1_001))
        assert np.shares_memory(batch, batch["qty"])


def test_a_batch_ends_before_a_damaged_record_which_the_next_call_reports(path: Path):
    with publisher(path, schema=[Trade], checksum=True) as writer:
        writer.append_many(trades(3))
        fourth = writer.position
        writer.append_many(trades(3))
    overwrite(segment_file(path), fourth + 33, b"\xff")
    with subscriber(path) as reader:
        assert len(reader.read_batch()) == 3
        for _ in range(2):
            with pytest.raises(chronicle.CorruptRecord) as caught:
                reader.read_batch()
            assert caught.value.position == fourth


def test_a_message_without_fields_can_be_published_and_read(path: Path):
    @chronicle.message(50)
    class Beat(MessageBase):
        pass

    with publisher(path, schema=[Beat]) as writer, subscriber(path) as reader:
        for _ in range(3):
            writer.publish(Beat())
        assert len(reader.read_batch(Beat)) == 3
