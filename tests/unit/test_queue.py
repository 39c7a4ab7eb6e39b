"""Publishing and subscribing: what `Queue`, `QueueWriter` and `QueueReader` promise."""

from __future__ import annotations

import array
import ctypes
import datetime as dt
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chronicle
import numpy as np
import pytest

from tests.queue_support import (
    SEGMENT_BYTES,
    Trade,
    fill,
    payload_of,
    payloads,
    publisher,
    running,
    seqs,
    snapshot,
    subscriber,
    trades,
)

UTC = dt.UTC

# --- Opening a publisher ---


def test_a_publisher_creates_the_queue_and_the_folders_above_it(folder: Path):
    path = folder / "streams" / "venue" / "ticks"
    with publisher(path) as writer:
        assert writer.path == path
        assert writer.next_seq == 1
        assert writer.epoch == 1
        assert not writer.closed
    assert writer.closed


def test_the_default_options_are_those_of_the_documentation(path: Path):
    with chronicle.Queue.open_publisher(path):
        facts = chronicle.inspect(path)
    assert facts["segment_bytes"] == 64 << 20
    assert facts["segments_max"] == 8192
    assert facts["checksum"] is False


def test_options_count_when_the_queue_is_created_and_not_later(path: Path):
    publisher(path, checksum=True, segments_max=16).close()
    with publisher(path, checksum=False, segments_max=99, segment_bytes=1 << 20):
        facts = chronicle.Queue(path).inspect()
    assert facts["checksum"] is True
    assert facts["segments_max"] == 16
    assert facts["segment_bytes"] == SEGMENT_BYTES


@pytest.mark.parametrize(
    "options",
    [
        {"segment_bytes": 100_000},
        {"segment_bytes": 1 << 15},
        {"segment_bytes": 1 << 31},
        {"segment_bytes": 0},
        {"segments_max": 1},
        {"segments_max": (1 << 20) + 1},
        {"retention_bytes": 1},
        {"retention_age": 1.0},
        {"flush_interval": 1.0},
    ],
)
def test_options_that_cannot_work_are_refused_and_leave_nothing(
    path: Path, options: dict[str, Any]
):
    with pytest.raises(chronicle.BadArgument):
        publisher(path, **options)
    assert not path.exists()


def test_a_path_may_be_text_or_a_path_object(path: Path):
    with publisher(path) as writer:
        fill(writer, 1)
    with chronicle.Queue.open_publisher(str(path)), subscriber(path) as one:
        with chronicle.Queue.open_subscriber(str(path), "other") as other:
            assert payloads(one) == payloads(other)


def test_a_publisher_does_not_take_a_folder_of_somebody_else(folder: Path):
    (folder / "thesis.tex").write_text("do not lose me")
    with pytest.raises(chronicle.NotAQueue, match="thesis"):
        publisher(folder)
    assert [p.name for p in folder.iterdir()] == ["thesis.tex"]


def test_a_publisher_does_not_take_a_file_for_a_folder(path: Path):
    path.write_text("a file")
    with pytest.raises(OSError, match="queue"):
        publisher(path)
    assert path.read_text() == "a file"


@pytest.mark.parametrize("prepare", [lambda p: None, lambda p: p.mkdir()])
def test_a_subscriber_needs_a_queue(path: Path, prepare: Callable[[Path], None]):
    prepare(path)
    with pytest.raises(chronicle.NotAQueue, match="open_publisher"):
        subscriber(path)


def test_a_second_publisher_is_refused_with_the_pid_of_the_first(path: Path):
    with publisher(path):
        with pytest.raises(chronicle.WriterActive) as caught:
            publisher(path)
        assert caught.value.pid == os.getpid()
        assert caught.value.category == "error"
    publisher(path).close()


# --- Appending ---


class Pair(ctypes.Structure):
    """A buffer from outside of Python's own types."""

    _fields_ = (("a", ctypes.c_uint32), ("b", ctypes.c_uint32))


def mapped(data: bytes) -> mmap.mmap:
    region = mmap.mmap(-1, len(data))
    region[:] = data
    return region


STRUCTURED = np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "<i4"), ("b", "<f8")])
BUFFERS: dict[str, tuple[Any, bytes]] = {
    "bytes": (b"hello", b"hello"),
    "bytearray": (bytearray(b"hello"), b"hello"),
    "memoryview": (memoryview(b"xhellox")[1:6], b"hello"),
    "array": (array.array("d", [1.5, 2.5]), array.array("d", [1.5, 2.5]).tobytes()),
    "ctypes": (Pair(1, 2), bytes(Pair(1, 2))),
    "mmap": (mapped(b"mapped"), b"mapped"),
    "numpy numbers": (np.arange(3.0), np.arange(3.0).tobytes()),
    "numpy big-endian": (np.arange(3, dtype=">u4"), np.arange(3, dtype=">u4").tobytes()),
    "numpy matrix": (np.eye(3), np.eye(3).tobytes()),
    "numpy structured": (STRUCTURED, STRUCTURED.tobytes()),
    "numpy scalar": (STRUCTURED[1], STRUCTURED[1].tobytes()),
    "numpy times": (np.array([7, 8], "M8[ns]").view("i8"), np.array([7, 8], "i8").tobytes()),
    "empty bytes": (b"", b""),
    "empty bytearray": (bytearray(), b""),
    "empty memoryview": (memoryview(b""), b""),
    "empty numpy bytes": (np.zeros(0, "u1"), b""),
    "empty numpy numbers": (np.zeros(0), b""),
    "empty array": (array.array("d"), b""),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_any_contiguous_buffer_is_a_payload(path: Path, kind: str):
    payload, expected = BUFFERS[kind]
    with publisher(path) as writer, subscriber(path) as reader:
        assert writer.append(1, b"before") == 1
        assert writer.append(2, payload) == 2
        assert writer.append(1, b"after") == 3
        assert payloads(reader) == [b"before", expected, b"after"]


def test_a_subclass_of_bytes_is_a_payload(path: Path):
    class Special(bytes):
        pass

    with publisher(path) as writer, subscriber(path) as reader:
        writer.append(1, Special(b"x"))
        assert payloads(reader) == [b"x"]


@pytest.mark.parametrize(
    "payload",
    [memoryview(b"abcdef")[::2], np.arange(10.0)[::2], np.arange(6.0).reshape(2, 3).T],
    ids=["bytes", "numbers", "columns first"],
)
def test_a_strided_buffer_is_refused(path: Path, payload: Any):
    with publisher(path) as writer:
        with pytest.raises(chronicle.BadArgument, match="contiguous"):
            writer.append(1, payload)
        assert writer.next_seq == 1


@pytest.mark.parametrize("payload", [None, "text", 7, [1, 2], object()])
def test_what_has_no_buffer_is_a_type_error(path: Path, payload: Any):
    with publisher(path) as writer:
        with pytest.raises(TypeError):
            writer.append(1, payload)
        assert writer.next_seq == 1


@pytest.mark.parametrize("type_id", [-1, 0, 65_536, 1 << 40])
def test_a_type_id_out_of_range_is_refused(path: Path, type_id: int):
    with publisher(path) as writer:
        with pytest.raises(chronicle.BadArgument):
            writer.append(type_id, b"x")
        assert writer.next_seq == 1


def test_type_ids_use_the_whole_range(path: Path):
    ids = [1, 255, 256, 32_768, 65_535]
    with publisher(path) as writer, subscriber(path) as reader:
        for type_id in ids:
            writer.append(type_id, b"")
        assert [message.type_id for message in reader] == ids


def test_append_returns_contiguous_sequence_numbers_from_one(path: Path):
    with publisher(path) as writer:
        assert [writer.append(1, b"x") for _ in range(5)] == [1, 2, 3, 4, 5]
        assert writer.next_seq == 6


def test_a_payload_of_no_bytes_is_a_message(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        for _ in range(3):
            writer.append(9, b"")
        messages = list(reader)
    assert [(m.seq, m.type_id, len(m), bytes(m.payload)) for m in messages] == [
        (1, 9, 0, b""),
        (2, 9, 0, b""),
        (3, 9, 0, b""),
    ]


def test_a_timestamp_may_be_given(path: Path):
    times = [0, 1, 1_700_000_000_123_456_789, 5, (1 << 64) - 1]
    with publisher(path) as writer, subscriber(path) as reader:
        for time_ns in times:
            writer.append(1, b"x", timestamp_ns=time_ns)
        assert [m.timestamp_ns for m in reader] == times


@pytest.mark.parametrize("bad", [-1, 1 << 64, 1.5, "now"])
def test_a_timestamp_that_is_no_u64_is_refused(path: Path, bad: Any):
    with publisher(path) as writer:
        with pytest.raises((TypeError, chronicle.BadArgument)):
            writer.append(1, b"x", timestamp_ns=bad)
        assert writer.next_seq == 1


def test_a_timestamp_is_named_and_never_positional(path: Path):
    with publisher(path) as writer:
        with pytest.raises(TypeError):
            writer.append(1, b"x", 5)  # type: ignore[call-arg]


def test_the_default_timestamp_is_the_wall_clock_in_nanoseconds(path: Path):
    an_hour = 3_600 * 10**9
    with publisher(path) as writer, subscriber(path) as reader:
        writer.append(1, b"x")
        message = reader.next()
        assert message is not None
        assert abs(message.timestamp_ns - time.time_ns()) < an_hour
        assert abs(chronicle.clock_ns() - time.time_ns()) < an_hour


def test_a_payload_too_large_for_a_segment_is_refused_with_the_limit(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        with pytest.raises(chronicle.TooLarge) as caught:
            writer.append(1, bytes(SEGMENT_BYTES))
        assert caught.value.len_bytes == SEGMENT_BYTES
        limit = caught.value.len_bytes_max
        assert isinstance(caught.value, ValueError)
        with pytest.raises(chronicle.TooLarge):
            writer.append(1, bytes(limit + 1))
        assert writer.next_seq == 1
        for _ in range(3):
            writer.append(1, b"z" * limit)
        assert [len(m) for m in reader] == [limit] * 3


@pytest.mark.parametrize("size", [*range(1, 18), 4_096, 60_000])
def test_payloads_of_every_alignment_come_back_whole(path: Path, size: int):
    with publisher(path) as writer, subscriber(path) as reader:
        made = fill(writer, 5, size=size)
        assert payloads(reader) == made


def test_a_payload_is_copied_when_it_is_appended(path: Path):
    payload = bytearray(b"before")
    with publisher(path) as writer, subscriber(path) as reader:
        writer.append(1, payload)
        payload[:] = b"after!"
        payload.clear()  # Not exported any more, or this would raise BufferError.
        assert payloads(reader) == [b"before"]


def test_publish_packs_a_typed_message(path: Path):
    trade = Trade(price=5, symbol=b"A", qty=3)
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        assert writer.publish(trade, timestamp_ns=9) == 1
        message = reader.next()
        assert message is not None
        assert (message.type_id, message.timestamp_ns) == (Trade.type_id, 9)
        assert reader.decode(message).as_dict() == trade.as_dict()


def test_flush_tells_the_last_durable_sequence_number(path: Path):
    with publisher(path) as writer:
        assert writer.flush() == 0
        fill(writer, 10)
        assert writer.flush() == 10
        assert chronicle.inspect(path)["durable_seq"] == 10
        assert writer.flush() == 10


@pytest.mark.parametrize(
    "use",
    [
        lambda w: w.append(1, b"x"),
        lambda w: w.append_many(trades(1), type_id=Trade),
        lambda w: w.flush(),
        lambda w: w.next_seq,
        lambda w: w.position,
        lambda w: w.epoch,
        lambda w: w.recovery,
    ],
    ids=["append", "append_many", "flush", "next_seq", "position", "epoch", "recovery"],
)
def test_a_closed_writer_says_so(path: Path, use: Callable[[Any], object]):
    writer = publisher(path)
    writer.close()
    writer.close()
    assert writer.closed
    with pytest.raises(chronicle.Closed, match="writer is closed"):
        use(writer)
    assert writer.path == path


@pytest.mark.parametrize(
    "use",
    [
        lambda r: r.next(),
        lambda r: r.wait(0),
        lambda r: r.commit(),
        lambda r: r.seek("latest"),
        lambda r: r.read_batch(Trade),
        list,
        lambda r: r.next_seq,
        lambda r: r.position,
        lambda r: r.gaps,
        lambda r: r.registered,
    ],
    ids=[
        "next",
        "wait",
        "commit",
        "seek",
        "read_batch",
        "iter",
        "next_seq",
        "position",
        "gaps",
        "registered",
    ],
)
def test_a_closed_reader_says_so(path: Path, use: Callable[[Any], object]):
    publisher(path).close()
    reader = subscriber(path, "me")
    reader.close()
    reader.close()
    assert reader.closed
    with pytest.raises(chronicle.Closed, match="reader is closed"):
        use(reader)
    assert reader.name == "me"
    assert reader.path == path


def test_a_with_block_closes_even_when_it_fails(path: Path):
    with pytest.raises(ZeroDivisionError):
        with publisher(path) as writer, subscriber(path) as reader:
            raise ZeroDivisionError
    assert writer.closed
    assert reader.closed
    publisher(path).close()


# --- Reading ---


def test_next_gives_none_until_there_is_a_message(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        assert reader.next() is None
        assert reader.next() is None
        fill(writer, 1)
        message = reader.next()
        assert message is not None
        assert message.seq == 1
        assert reader.next() is None


def test_a_message_says_everything_about_itself(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        position = writer.position
        writer.append(300, b"payload", timestamp_ns=12_345)
        message = reader.next()
    assert message is not None
    assert message.seq == 1
    assert message.timestamp_ns == 12_345
    assert message.type_id == 300
    assert message.source is None
    assert message.position == position
    assert len(message) == 7
    assert isinstance(message.payload, memoryview)
    assert message.payload.tobytes() == b"payload"
    assert bytes(message) == b"payload"
    assert repr(message) == "<Message seq=1 timestamp_ns=12345 type_id=300 len=7>"


def test_a_message_cannot_be_changed_or_made_by_hand(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        fill(writer, 1)
        message = reader.next()
    assert message is not None
    with pytest.raises(AttributeError):
        message.seq = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        chronicle.Message()


def test_iterating_yields_what_is_there_and_can_be_taken_up_again(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        made = fill(writer, 3)
        assert payloads(reader) == made
        assert payloads(reader) == []
        more = fill(writer, 2)
        assert payloads(reader) == more


def test_each_reader_sees_every_message(path: Path):
    with publisher(path) as writer:
        with subscriber(path, "a") as a, subscriber(path, "b") as b, subscriber(path, None) as c:
            made = fill(writer, 200, size=1_000)
            assert payloads(a) == payloads(b) == payloads(c) == made


def test_a_reader_may_come_before_the_first_message_and_after_the_writer(path: Path):
    with publisher(path) as writer:
        made = fill(writer, 10)
    with subscriber(path) as reader:
        assert payloads(reader) == made
        assert reader.next() is None


def test_wait_tells_whether_there_is_something_to_read(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        assert reader.wait(0) is False
        assert reader.wait(timeout=0.001) is False
        assert reader.wait(-5) is False
        fill(writer, 1)
        assert reader.wait(0) is True
        assert reader.wait() is True
        assert reader.next() is not None
        assert reader.wait(0) is False


@pytest.mark.parametrize("wait", ["spin", "hybrid", "sleep"])
def test_every_wait_strategy_waits_and_reads(path: Path, wait: Any):
    with publisher(path) as writer, subscriber(path, wait=wait) as reader:
        assert reader.wait(0.001) is False
        made = fill(writer, 1)
        assert reader.wait(60) is True
        assert payloads(reader) == made


def test_an_unknown_wait_strategy_is_refused(path: Path):
    publisher(path).close()
    with pytest.raises(chronicle.BadArgument, match="spin"):
        subscriber(path, wait="busy")


@pytest.mark.parametrize("timeout", [float("inf"), 1e30, 1e19, 1e9])
def test_a_timeout_beyond_all_clocks_waits(path: Path, timeout: float):
    with publisher(path) as writer, subscriber(path) as reader:
        with running(lambda: writer.append(1, b"x")):
            assert reader.wait(timeout) is True


def test_a_timeout_must_be_a_number(path: Path):
    with publisher(path), subscriber(path) as reader:
        with pytest.raises(TypeError):
            reader.wait("soon")  # type: ignore[arg-type]
        with pytest.raises(chronicle.BadArgument, match="nan"):
            reader.wait(float("nan"))


# --- Where a reader starts ---


def test_a_new_name_starts_at_the_first_message(path: Path):
    with publisher(path) as writer:
        made = fill(writer, 5)
        with subscriber(path, "new") as reader:
            assert payloads(reader) == made


def test_a_name_resumes_after_its_last_commit(path: Path):
    with publisher(path) as writer:
        fill(writer, 10)
        with subscriber(path, "me") as reader:
            for _ in range(4):
                reader.next()
            reader.commit()
            for _ in range(3):
                reader.next()
        with subscriber(path, "me") as reader:
            assert reader.next_seq == 5
            assert seqs(reader) == [5, 6, 7, 8, 9, 10]
        with subscriber(path, "me", start="resume") as reader:
            assert seqs(reader)[0] == 5


def test_names_resume_on_their_own(path: Path):
    with publisher(path) as writer:
        fill(writer, 10)
        for name, count in (("a", 2), ("b", 7), ("c", 0)):
            with subscriber(path, name) as reader:
                for _ in range(count):
                    reader.next()
                reader.commit()
        assert subscriber(path, "a").next_seq == 3
        assert subscriber(path, "b").next_seq == 8
        assert subscriber(path, "c").next_seq == 1


def test_a_reader_without_a_name_leaves_nothing_behind(path: Path):
    with publisher(path) as writer:
        fill(writer, 3)
        before = snapshot(path)
        with subscriber(path, None) as reader:
            assert reader.name is None
            assert reader.registered is False
            assert len(seqs(reader)) == 3
            reader.commit()
        with subscriber(path, None) as reader:
            assert len(seqs(reader)) == 3
        assert snapshot(path) == before


@pytest.mark.parametrize(
    ("start", "first"),
    [
        ("resume", 4),
        ("earliest", 1),
        ("latest", None),
        (1, 1),
        (0, 1),
        (7, 7),
        (10, 10),
        (11, None),
        (dt.datetime(1960, 1, 1, tzinfo=UTC), 1),
        (dt.datetime(2020, 1, 1, tzinfo=UTC), 1),
        (dt.datetime(2020, 1, 5, tzinfo=UTC), 5),
        (dt.datetime(2020, 1, 4, 0, 0, 0, 1, tzinfo=UTC), 5),
        (dt.datetime(2020, 1, 5, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))), 5),
        (dt.datetime(2020, 1, 10, tzinfo=UTC), 10),
        (dt.datetime(2021, 1, 1, tzinfo=UTC), None),
    ],
)
def test_start_and_seek_take_words_numbers_and_times(
    path: Path, start: chronicle.queue.Start, first: int | None
):
    day_ns = 86_400 * 10**9
    new_year_ns = 1_577_836_800 * 10**9
    with publisher(path) as writer:
        for day in range(10):
            writer.append(1, b"x", timestamp_ns=new_year_ns + day * day_ns)
        with subscriber(path, "me") as reader:
            for _ in range(3):
                reader.next()
            reader.commit()
            list(reader)
            reader.seek(start)
            sought = reader.next()
        with subscriber(path, "me", start=start) as reader:
            opened = reader.next()
        for message in (sought, opened):
            assert (message and message.seq) == first
        if first is None:
            with subscriber(path, "other", start=start) as reader:
                assert writer.append(1, b"new") == 11
                assert seqs(reader) == [11]


@pytest.mark.parametrize(
    "start", ["sometime", "", -1, 1.5, True, None, dt.datetime(2020, 1, 1), dt.date(2020, 1, 1)]
)
def test_a_start_that_means_nothing_is_refused(path: Path, start: Any):
    with publisher(path) as writer:
        fill(writer, 3)
        with pytest.raises(chronicle.BadArgument):
            subscriber(path, start=start)
        with subscriber(path) as reader:
            reader.next()
            with pytest.raises(chronicle.BadArgument):
                reader.seek(start)
            assert seqs(reader) == [2, 3]


def test_a_start_beyond_the_next_message_is_refused_with_both_numbers(path: Path):
    with publisher(path) as writer:
        fill(writer, 3)
        with pytest.raises(chronicle.SequenceNotWritten) as caught:
            subscriber(path, start=5)
        assert (caught.value.sequence, caught.value.next) == (5, 4)
        assert isinstance(caught.value, ValueError)
        with subscriber(path) as reader:
            reader.next()
            with pytest.raises(chronicle.SequenceNotWritten):
                reader.seek((1 << 63) + 5)
            assert seqs(reader) == [2, 3]


@pytest.mark.parametrize("number", [1 << 64, 1 << 100])
def test_a_number_that_fits_nowhere_is_refused(path: Path, number: int):
    with publisher(path) as writer:
        fill(writer, 3)
        with pytest.raises((chronicle.BadArgument, chronicle.SequenceNotWritten)):
            subscriber(path, start=number)
        with subscriber(path) as reader:
            with pytest.raises((chronicle.BadArgument, chronicle.SequenceNotWritten)):
                reader.seek(number)


def test_anything_but_resume_replaces_the_cursor(path: Path):
    with publisher(path) as writer:
        fill(writer, 10)
        with subscriber(path, "me", start=8):
            pass
        with subscriber(path, "me") as reader:
            assert reader.next_seq == 8
        with subscriber(path, "me", start="latest"):
            pass
        with subscriber(path, "me") as reader:
            assert reader.next_seq == 11


def test_seeking_does_not_commit(path: Path):
    with publisher(path) as writer:
        fill(writer, 10)
        with subscriber(path, "me") as reader:
            next(iter(reader))
            reader.commit()
            reader.seek(9)
        with subscriber(path, "me") as reader:
            assert reader.next_seq == 2
            reader.seek(9)
            reader.seek("resume")
            assert reader.next_seq == 2
            reader.seek(9)
            reader.commit()
        with subscriber(path, "me") as reader:
            assert reader.next_seq == 9


def test_seek_time_takes_nanoseconds(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        for time_ns in (100, 200, 201, 300):
            writer.append(1, b"", timestamp_ns=time_ns)
        for time_ns, first in ((0, 1), (100, 1), (101, 2), (201, 3), (202, 4), (300, 4), (301, 5)):
            reader.seek_time_ns(time_ns)
            assert reader.next_seq == first


def test_a_reader_tells_where_it_is(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        fill(writer, 3)
        assert reader.registered
        assert reader.gaps == 0
        assert reader.next_seq == 1
        list(reader)
        assert reader.next_seq == writer.next_seq
        assert reader.position == writer.position


def test_a_reader_name_has_one_live_reader(path: Path):
    with publisher(path), subscriber(path, "me"):
        with pytest.raises(chronicle.ReaderActive) as caught:
            subscriber(path, "me")
        assert caught.value.name == "me"
        assert caught.value.pid == os.getpid()
        subscriber(path, "you").close()
    subscriber(path, "me").close()


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../up", "a b", "a\0b", "naïve", "x" * 129, "-\n"]
)
def test_a_reader_name_that_is_no_plain_name_is_refused(path: Path, name: str):
    with publisher(path):
        before = sorted(snapshot(path))
        with pytest.raises(chronicle.BadArgument, match="reader name"):
            subscriber(path, name)
        with pytest.raises(chronicle.BadArgument, match="reader name"):
            chronicle.remove_reader(path, name)
        assert sorted(snapshot(path)) == before


@pytest.mark.parametrize("name", ["a", "A-b_c.9", "-", "_", "0", "x" * 128])
def test_every_plain_name_is_a_reader_name(path: Path, name: str):
    with publisher(path), subscriber(path, name) as reader:
        assert reader.name == name


def test_a_restart_goes_on_where_the_last_writer_stopped(path: Path):
    for epoch in range(1, 6):
        with publisher(path) as writer:
            assert writer.epoch == epoch
            assert writer.next_seq == (epoch - 1) * 50 + 1
            assert writer.recovery.same_boot
            assert writer.recovery.next_seq == writer.next_seq
            assert writer.recovery.position == writer.position
            assert writer.recovery.bytes_discarded == 0
            assert writer.recovery.set_aside == ()
            fill(writer, 50, size=700)
    with subscriber(path) as reader:
        assert payloads(reader) == [payload_of(seq, 700) for seq in range(1, 251)]
