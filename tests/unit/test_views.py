"""What a reader hands out stays valid and unchanged, whatever becomes of everything else."""

from __future__ import annotations

import gc
import resource
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import chronicle
import numpy as np
import pytest

from tests.queue_support import (
    Trade,
    fill,
    fill_segments,
    payload_of,
    publisher,
    run_python,
    subscriber,
    trades,
)


def test_a_payload_outlives_its_message_reader_queue_and_file(path: Path):
    writer, reader = publisher(path), subscriber(path)
    fill(writer, 100, size=2_000)
    views = [message.payload for message in reader]
    writer.close()
    reader.close()
    del writer, reader
    shutil.rmtree(path)
    gc.collect()
    assert [bytes(view) for view in views] == [payload_of(n, 2_000) for n in range(1, 101)]


def test_a_message_outlives_its_reader_queue_and_file(path: Path):
    writer, reader = publisher(path), subscriber(path)
    fill(writer, 100, size=2_000)
    messages = list(reader)
    writer.close()
    reader.close()
    del writer, reader
    shutil.rmtree(path)
    gc.collect()
    assert [bytes(message.payload) for message in messages[::-1]] == [
        payload_of(n, 2_000) for n in range(100, 0, -1)
    ]


def test_an_array_outlives_its_reader_queue_and_file(path: Path):
    array = trades(2_000)
    writer, reader = publisher(path, schema=[Trade]), subscriber(path)
    writer.append_many(array)
    batches = []
    while len(batch := reader.read_batch_with_headers()[0]):
        batches.append(batch)
    column = batches[0]["price"][10:20]
    headers = None
    reader.seek("earliest")
    _, headers = reader.read_batch_with_headers()
    writer.close()
    reader.close()
    del writer, reader
    shutil.rmtree(path)
    gc.collect()
    assert len(batches) > 1
    assert (np.concatenate(batches) == array).all()
    del batches, batch
    gc.collect()
    assert column.tolist() == array["price"][10:20].tolist()
    assert headers["seq"][0] == 1


def test_a_typed_view_outlives_its_reader_and_file(path: Path):
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        writer.publish(Trade(price=7, symbol=b"ABC", qty=3))
        trade = reader.decode(next(iter(reader)))
    shutil.rmtree(path)
    del writer, reader
    gc.collect()
    assert trade.as_dict() == {"price": 7, "symbol": b"ABC", "qty": 3}


def test_a_view_outlives_retention(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        fill_segments(writer, 3)
        views = [message.payload for message in reader]
        reader.commit()
        assert chronicle.apply_retention(path, bytes_max=1)["segments_deleted"] == 3
        fill_segments(writer, 3)
        assert [bytes(v) for v in views] == [payload_of(n + 1, 4_000) for n in range(len(views))]


@pytest.mark.parametrize(
    "change",
    [
        lambda view: view.__setitem__(0, 1),
        lambda view: view.__setitem__(slice(0, 2), b"xx"),
        lambda view: view.cast("B", (len(view),)).__setitem__(0, 1),
        lambda view: np.frombuffer(view, "u1").__setitem__(0, 1),
        lambda view: memoryview(view)[1:].__setitem__(0, 1),
        lambda view: setattr(np.frombuffer(view, "u1").flags, "writeable", True),
    ],
    ids=["item", "slice", "cast", "numpy", "memoryview", "flags"],
)
def test_a_payload_cannot_be_written_to(path: Path, change: Callable[[memoryview], object]):
    with publisher(path) as writer, subscriber(path) as reader:
        made = fill(writer, 1)
        message = next(iter(reader))
        assert message.payload.readonly
        with pytest.raises((TypeError, ValueError)):
            change(message.payload)
        assert bytes(message.payload) == made[0]


def test_a_payload_is_a_plain_contiguous_view_of_bytes(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        made = fill(writer, 1)
        view = next(iter(reader)).payload
        assert (view.format, view.ndim, view.itemsize, view.shape) == ("B", 1, 1, (40,))
        assert view.c_contiguous
        assert view[8:16] == made[0][8:16]
        assert np.frombuffer(view, "<u8")[0] == 1


def test_two_views_of_one_message_share_its_bytes(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        fill(writer, 1)
        message = next(iter(reader))
        one, other = np.frombuffer(message.payload, "u1"), np.frombuffer(message.payload, "u1")
        assert np.shares_memory(one, other)


def test_a_view_can_be_released_by_hand(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        fill(writer, 1)
        message = next(iter(reader))
        with message.payload as view:
            assert view[0] == 1
        with pytest.raises(ValueError, match="released"):
            view[0]
        assert message.payload[0] == 1


TAKE: dict[str, Callable[[chronicle.QueueReader], object]] = {
    "message": lambda reader: reader.next(),
    "payload": lambda reader: next(iter(reader)).payload,
    "batch": lambda reader: reader.read_batch(Trade),
    "typed view": lambda reader: reader.decode(next(iter(reader))),
}


@pytest.mark.parametrize("kind", TAKE)
def test_a_mapping_goes_when_the_last_view_of_it_goes(path: Path, kind: str):
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(f"{path}/segments/")

    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        writer.append_many(trades(5))
        kept: list[object] = [TAKE[kind](reader)]
    assert mapped() == 1
    kept.clear()
    gc.collect()
    assert mapped() == 0


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_readers_and_writers_are_freed_without_close(path: Path):
    descriptors = open_files()
    for _ in range(10):
        writer, reader = publisher(path), subscriber(path, "me")
        fill(writer, 1)
        assert reader.next() is not None
        del writer, reader
        gc.collect()
    assert open_files() == descriptors


def test_closing_frees_descriptors_at_once(path: Path):
    with publisher(path):
        descriptors = open_files()
        readers = [subscriber(path, f"r{n}") for n in range(20)]
        assert open_files() > descriptors
        for reader in readers:
            reader.close()
        assert open_files() == descriptors


def test_failed_opens_leave_no_descriptors_and_no_maps(path: Path):
    with publisher(path), subscriber(path, "me"):
        for attempt in range(3):
            descriptors = open_files()
            for _ in range(20):
                with pytest.raises(chronicle.WriterActive):
                    publisher(path)
                with pytest.raises(chronicle.ReaderActive):
                    subscriber(path, "me")
                with pytest.raises(chronicle.SequenceNotWritten):
                    subscriber(path, "other", start=9)
            gc.collect()
            assert attempt == 0 or open_files() == descriptors


def test_subclasses_of_readers_can_be_collected(path: Path):
    publisher(path).close()
    reader = subscriber(path, "me")
    gone = weakref.ref(reader) if hasattr(type(reader), "__weakref__") else None
    reader.loop = reader  # type: ignore[attr-defined]
    del reader
    gc.collect()
    if gone is not None:
        assert gone() is None
    subscriber(path, "me").close()


def test_a_hundred_thousand_messages_leave_no_objects_and_no_memory_behind(path: Path):
    lines = run_python(
        """
        import gc, sys, tracemalloc
        path = Path(args[0])
        none, empty = sys.getrefcount(None), sys.getrefcount(b"")
        payload = b"x" * 40
        array = trades(100)

        def work(writer, reader, fanin, rounds):
            for _ in range(rounds):
                for _ in range(100):
                    writer.append(1, payload)
                    message = reader.next()
                    assert message.payload[0] == 120
                    bytes(message), message.seq, repr(message)
                assert reader.next() is None
                writer.append_many(array, type_id=Trade)
                assert sum(len(reader.read_batch(Trade)) for _ in range(3)) == 100
                reader.commit()
                while fanin.next() is not None:
                    pass
                fanin.commit()
                try:
                    writer.append(1, bytes(1 << 17))
                except chronicle.TooLarge:
                    pass
                chronicle.apply_retention(path, bytes_max=1)

        with publisher(path) as writer, subscriber(path) as reader:
            fanin = chronicle.FanInReader([subscriber(path, "two")])
            work(writer, reader, fanin, 50)
            gc.collect()
            def rss():
                return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
            tracemalloc.start(1)
            work(writer, reader, fanin, 10)
            gc.collect()
            blocks, resident = tracemalloc.get_traced_memory()[0], rss()
            refs = sys.getrefcount(payload), sys.getrefcount(chronicle.Message)
            work(writer, reader, fanin, 1_000)
            gc.collect()
            say(tracemalloc.get_traced_memory()[0] - blocks < 50_000)
            say(rss() - resident < 8 << 20)
            say((sys.getrefcount(payload), sys.getrefcount(chronicle.Message)) == refs)
            say(abs(sys.getrefcount(None) - none) < 20_000)
        """,
        path,
    )
    assert lines == ["True"] * 4
    assert resource.getpagesize() == 4096


def test_a_view_made_while_there_was_nothing_shows_the_message_that_came(path: Path):
    """Sizes that repeat, that change, and rolls: a view made ahead may be for any of them."""
    writer, reader = publisher(path), subscriber(path)
    sizes = [64, 64, 0, 0, 10, 64, 20_000, 20_000, 20_000, 20_000, 5, 5, 30_000, 30_000, 30_000]
    views = []
    for number, size in enumerate(sizes, 1):
        assert reader.next() is None
        assert reader.next() is None
        writer.append(1, payload_of(number, size))
        message = reader.next()
        assert message is not None
        first, second = message.payload, message.payload
        assert (bytes(first), bytes(second)) == (payload_of(number, size),) * 2
        assert first.readonly
        assert first.c_contiguous
        assert first.format == "B"
        second.release()
        views.append(first)
    writer.close()
    reader.close()
    del writer, reader, message, second
    shutil.rmtree(path)
    gc.collect()
    expected = [payload_of(number, size) for number, size in enumerate(sizes, 1)]
    assert [bytes(view) for view in views] == expected


def test_a_view_made_ahead_is_dropped_when_the_reader_goes_elsewhere(path: Path):
    writer, reader = publisher(path), subscriber(path)
    fill(writer, 3, size=64)
    assert [bytes(message.payload) for message in reader] == [payload_of(n, 64) for n in (1, 2, 3)]
    assert reader.next() is None
    reader.seek(2)
    assert [bytes(message.payload) for message in reader] == [payload_of(n, 64) for n in (2, 3)]
    # Not asked for, and asked for late.
    assert reader.next() is None
    writer.append(1, payload_of(4, 64))
    kept = reader.next()
    assert reader.next() is None
    writer.append(1, payload_of(5, 64))
    assert reader.next() is not None
    assert kept is not None
    assert bytes(kept.payload) == payload_of(4, 64)
