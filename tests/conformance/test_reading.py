"""What every way to read must do alike. A new way, say a compiled handler, is one entry in `WAYS`.

A way is a function that reads until it has `count` messages or nothing more is there, and gives
what it saw: messages as ``(seq, payload)``, and errors in their place. It must not read further
than the first error: the caller calls it again, as a program would after handling that error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import chronicle
import pytest

from tests.queue_support import (
    SEGMENT_BYTES,
    Trade,
    overwrite,
    publisher,
    segment_file,
    subscriber,
    trades,
)

Seen = tuple[int, bytes] | chronicle.ChronicleError
Way = Callable[["Reading", int], list[Seen]]


class Reading:
    """A reader by name, and the fan-in around it where a way needs one."""

    def __init__(self, path: Path, way: str, name: str = "me", **options: object) -> None:
        self._way = WAYS[way]
        self.reader = subscriber(path, name, **options)
        self.fanin = None
        if way.startswith("fan-in"):
            self.fanin = chronicle.FanInReader([self.reader])

    def read(self, count: int = 1 << 30) -> list[Seen]:
        """Read on until there are `count` messages, or nothing more; errors stand in the list."""
        seen: list[Seen] = []
        for _ in range(1_000):
            left = count - sum(isinstance(one, tuple) for one in seen)
            more = self._way(self, left) if left else []
            seen += more
            if not more or not isinstance(more[-1], chronicle.ChronicleError):
                return seen
            if isinstance(more[-1], chronicle.CorruptRecord):
                return seen
        raise AssertionError(f"errors without end: {seen[-3:]}")

    def commit(self) -> None:
        (self.fanin or self.reader).commit()

    def seek(self, to: chronicle.queue.Start) -> None:
        if self.fanin is None:
            self.reader.seek(to)
        else:
            reader = self.fanin.remove_reader(0)
            reader.seek(to)
            self.fanin.add_reader(reader)

    def close(self) -> None:
        (self.fanin or self.reader).close()

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def collected(messages: Callable[[], Iterator[tuple[int, bytes]]], count: int) -> list[Seen]:
    seen: list[Seen] = []
    try:
        for one in messages():
            seen.append(one)
            if len(seen) == count:
                break
    except chronicle.ChronicleError as error:
        seen.append(error)
    return seen


def by_next(reading: Reading, count: int) -> list[Seen]:
    def messages() -> Iterator[tuple[int, bytes]]:
        source = reading.fanin or reading.reader
        while (message := source.next()) is not None:
            yield message.seq, bytes(message.payload)

    return collected(messages, count)


def by_iteration(reading: Reading, count: int) -> list[Seen]:
    def messages() -> Iterator[tuple[int, bytes]]:
        for message in reading.fanin or reading.reader:
            yield message.seq, bytes(message.payload)

    return collected(messages, count)


def by_wait_and_next(reading: Reading, count: int) -> list[Seen]:
    def messages() -> Iterator[tuple[int, bytes]]:
        source = reading.fanin or reading.reader
        while source.wait(0):
            message = source.next()
            assert message is not None
            yield message.seq, bytes(message.payload)

    return collected(messages, count)


def by_batches(reading: Reading, count: int) -> list[Seen]:
    seen: list[Seen] = []
    try:
        while len(seen) < count:
            batch, headers = reading.reader.read_batch_with_headers(
                Trade, count_max=min(count - len(seen), 37)
            )
            if len(batch) == 0:
                break
            pairs = zip(headers["seq"].tolist(), batch, strict=True)
            seen += [(seq, item.tobytes()) for seq, item in pairs]
    except chronicle.ChronicleError as error:
        seen.append(error)
    return seen


def by_async_for(reading: Reading, count: int) -> list[Seen]:
    seen: list[Seen] = []

    async def take() -> None:
        async for message in reading.fanin or reading.reader:
            seen.append((message.seq, bytes(message.payload)))
            if len(seen) == count:
                return

    async def main() -> None:
        task = asyncio.create_task(take())
        # The task takes what is there before it waits; then it is not needed any more.
        before = -1
        while not task.done() and before != len(seen):
            before = len(seen)
            for _ in range(10):
                await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        except chronicle.ChronicleError as error:
            seen.append(error)

    asyncio.run(main())
    return seen


WAYS: dict[str, Way] = {
    "next": by_next,
    "iteration": by_iteration,
    "wait and next": by_wait_and_next,
    "batches": by_batches,
    "async for": by_async_for,
    "fan-in next": by_next,
    "fan-in iteration": by_iteration,
    "fan-in wait and next": by_wait_and_next,
    "fan-in async for": by_async_for,
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def write(writer: chronicle.QueueWriter, count: int) -> list[Seen]:
    first = writer.next_seq
    array = trades(count, first=first)
    writer.append_many(array, type_id=Trade)
    return [(first + index, item.tobytes()) for index, item in enumerate(array)]


def test_messages_come_in_order_and_whole(path: Path, way: str):
    with publisher(path) as writer, Reading(path, way) as reading:
        made = write(writer, 500)
        assert reading.read() == made


def test_nothing_is_there_before_the_first_message_and_after_the_last(path: Path, way: str):
    with publisher(path) as writer, Reading(path, way) as reading:
        assert reading.read() == []
        made = write(writer, 3)
        assert reading.read() == made
        assert reading.read() == []


def test_reading_in_parts_gives_every_message_once(path: Path, way: str):
    with publisher(path) as writer, Reading(path, way) as reading:
        made = write(writer, 100)
        parts = [reading.read(count) for count in (1, 2, 30, 67)]
        assert [len(part) for part in parts] == [1, 2, 30, 67]
        assert [one for part in parts for one in part] == made
        assert reading.read(1) == []


def test_rolls_are_not_seen(path: Path, way: str):
    with publisher(path) as writer, Reading(path, way) as reading:
        made = write(writer, 5_000)
        assert writer.position // SEGMENT_BYTES >= 4
        assert reading.read() == made


def test_a_roll_at_the_end_of_what_is_there_is_not_seen(path: Path, way: str):
    with publisher(path) as writer, Reading(path, way) as reading:
        made = []
        while writer.position < 3 * SEGMENT_BYTES:
            made += write(writer, 1)
            if writer.position % SEGMENT_BYTES > SEGMENT_BYTES - 200:
                assert reading.read() == made
                made = []


def test_a_writers_restart_is_not_seen(path: Path, way: str):
    with publisher(path) as writer:
        made = write(writer, 10)
    with Reading(path, way) as reading:
        assert reading.read() == made
        for _ in range(3):
            with publisher(path) as writer:
                made = write(writer, 900)
                assert reading.read() == made


def test_a_readers_restart_goes_on_after_the_commit(path: Path, way: str):
    with publisher(path) as writer:
        made = write(writer, 3_000)
        got: list[Seen] = []
        for count in (1, 10, 0, 1_500, 5):
            with Reading(path, way) as reading:
                got += reading.read(count)
                reading.commit()
                reading.read(7)  # Not committed, so it comes again.
        with Reading(path, way) as reading:
            got += reading.read()
        assert got == made


def test_without_a_commit_everything_comes_again(path: Path, way: str):
    with publisher(path) as writer:
        made = write(writer, 20)
        for _ in range(3):
            with Reading(path, way) as reading:
                assert reading.read() == made


@pytest.mark.parametrize(
    ("to", "first"), [("earliest", 1), (1, 1), (2_500, 2_500), (3_000, 3_000), ("latest", 3_001)]
)
def test_a_seek_lands_exactly(path: Path, way: str, to: chronicle.queue.Start, first: int):
    with publisher(path) as writer, Reading(path, way) as reading:
        made = write(writer, 3_000)
        reading.read(5)
        reading.seek(to)
        assert reading.read() == made[first - 1 :]
        reading.seek(to if to != "latest" else 3_001)
        more = write(writer, 2)
        assert reading.read() == made[first - 1 :] + more


def test_a_gap_comes_once_in_its_place(path: Path, way: str):
    with publisher(path) as writer:
        made = write(writer, 10)
        with Reading(path, way) as reading:
            assert reading.read() == made
            reading.commit()
        made = write(writer, 5_000)
        chronicle.apply_retention(path, bytes_max=2 * SEGMENT_BYTES)
        with Reading(path, way) as reading:
            gap, *rest = reading.read()
            assert isinstance(gap, chronicle.Gap)
            assert (gap.first_missing, gap.reason) == (11, "retention")
            assert rest == made[gap.next - 11 :]
            reading.commit()
            made = write(writer, 10)
            assert reading.read() == made
        with Reading(path, way) as reading:
            assert reading.read() == made


def test_a_gap_under_a_live_unregistered_reader_is_seen(path: Path, way: str):
    with publisher(path) as writer, Reading(path, way, name=None) as reading:  # type: ignore[arg-type]
        made = write(writer, 10)
        assert reading.read(4) == made[:4]
        write(writer, 4_000)
        chronicle.apply_retention(path, bytes_max=1)
        made += write(writer, 3)
        seen = reading.read()
        gaps = [one for one in seen if isinstance(one, chronicle.Gap)]
        # The segment it stands in stays mapped; what follows is gone.
        assert len(gaps) == 1
        assert seen[: seen.index(gaps[0])][:6] == made[4:10]
        assert seen[-3:] == made[-3:]


def test_a_damaged_record_stops_every_way_at_the_same_place(path: Path, way: str):
    with publisher(path) as writer:
        made = write(writer, 50)
        damaged = writer.position
        write(writer, 50)
    overwrite(segment_file(path), damaged, b"\xfe\xff\xff\xff")
    with Reading(path, way) as reading:
        *good, error = reading.read()
        assert good == made
        for again in (error, *reading.read(), *reading.read()):
            assert isinstance(again, chronicle.CorruptRecord)
            assert again.position == damaged
        reading.seek(49)
        assert reading.read(2) == made[48:]
        reading.commit()
    # A place that nobody can find is an error already when it is looked for.
    with pytest.raises(chronicle.CorruptRecord) as caught:
        Reading(path, way)
    assert caught.value.position == damaged
    with Reading(path, way, start="earliest") as reading:
        assert reading.read(50) == made


def test_a_wrong_checksum_stops_every_way_at_the_same_place(path: Path, way: str):
    with publisher(path, checksum=True) as writer:
        made = write(writer, 50)
        damaged = writer.position
        write(writer, 50)
    overwrite(segment_file(path), damaged + 40, b"\xff")
    with Reading(path, way) as reading:
        *good, error = reading.read()
        assert good == made
        assert isinstance(error, chronicle.CorruptRecord)
        assert error.position == damaged


def test_an_error_names_its_source_only_when_there_are_sources(path: Path, way: str):
    with publisher(path) as writer:
        write(writer, 1)
        damaged = writer.position
        write(writer, 1)
    overwrite(segment_file(path), damaged, b"\xfe\xff\xff\xff")
    with Reading(path, way) as reading:
        _, error = reading.read()
    assert isinstance(error, chronicle.CorruptRecord)
    assert error.source == (0 if way.startswith("fan-in") else None)
