"""`async for` over readers: nothing is lost, nobody is starved, cancelling is safe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from pathlib import Path

import chronicle
import pytest

from tests.queue_support import (
    SEGMENT_BYTES,
    fill,
    fill_segments,
    overwrite,
    payloads,
    publisher,
    segment_file,
    subscriber,
)


async def take(source: AsyncIterable[chronicle.Message], count: int) -> list[int]:
    got: list[int] = []
    if count == 0:
        return got
    async for message in source:
        got.append(message.seq)
        if len(got) == count:
            break
    return got


def test_what_is_there_comes_at_once(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        fill(writer, 10)
        assert asyncio.run(take(reader, 10)) == list(range(1, 11))


def test_what_comes_later_is_waited_for(path: Path):
    async def main(writer: chronicle.QueueWriter, reader: chronicle.QueueReader) -> list[int]:
        taker = asyncio.create_task(take(reader, 30))
        for _ in range(30):
            await asyncio.sleep(0.001)
            fill(writer, 1)
        return await taker

    with publisher(path) as writer, subscriber(path) as reader:
        assert asyncio.run(main(writer, reader)) == list(range(1, 31))


def test_breaking_out_and_going_on_loses_nothing(path: Path):
    async def main(reader: chronicle.QueueReader) -> list[int]:
        return [seq for count in (1, 3, 0, 6) for seq in await take(reader, count)]

    with publisher(path) as writer, subscriber(path) as reader:
        fill(writer, 10)
        assert asyncio.run(main(reader)) == list(range(1, 11))
        assert reader.next() is None


def test_a_cancelled_task_has_lost_nothing(path: Path):
    async def main(writer: chronicle.QueueWriter, reader: chronicle.QueueReader) -> list[int]:
        got: list[int] = []

        async def forever() -> None:
            async for message in reader:
                got.append(message.seq)  # noqa: PERF401  (it must survive the cancellation)

        for attempt in range(20):
            task = asyncio.create_task(forever())
            for _ in range(attempt % 4):
                await asyncio.sleep(0)
            fill(writer, 3)
            await asyncio.sleep(0.001 * (attempt % 3))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return got + [message.seq for message in reader]

    with publisher(path) as writer, subscriber(path) as reader:
        assert asyncio.run(main(writer, reader)) == list(range(1, 61))


def test_a_timeout_around_the_next_message_loses_nothing(path: Path):
    async def main(writer: chronicle.QueueWriter, reader: chronicle.QueueReader) -> int:
        messages = aiter(reader)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await anext(messages)
        fill(writer, 1)
        return (await anext(messages)).seq

    with publisher(path) as writer, subscriber(path) as reader:
        assert asyncio.run(main(writer, reader)) == 1


def test_several_readers_share_one_loop(folder: Path):
    paths = [folder / str(n) for n in range(8)]

    async def main(
        writers: list[chronicle.QueueWriter], readers: list[chronicle.QueueReader]
    ) -> list[list[int]]:
        async def write() -> None:
            for _ in range(20):
                for writer in writers:
                    fill(writer, 1)
                    await asyncio.sleep(0)

        *got, _ = await asyncio.gather(*(take(reader, 20) for reader in readers), write())
        return [one for one in got if one is not None]

    writers = [publisher(path) for path in paths]
    readers = [subscriber(path) for path in paths]
    assert asyncio.run(main(writers, readers)) == [list(range(1, 21))] * len(paths)


def test_a_reader_that_always_has_something_lets_the_other_tasks_run(path: Path):
    async def main(reader: chronicle.QueueReader) -> tuple[int, int]:
        ticks = 0
        over = False

        async def tick() -> None:
            nonlocal ticks
            while not over:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        count = len(await take(reader, 5_000))
        over = True
        await ticker
        return count, ticks

    with publisher(path) as writer, subscriber(path) as reader:
        fill(writer, 5_000)
        count, ticks = asyncio.run(main(reader))
    assert count == 5_000
    assert ticks >= 5_000 // 256


def test_the_loop_runs_while_a_reader_waits(path: Path):
    async def main(writer: chronicle.QueueWriter, reader: chronicle.QueueReader) -> int:
        waiter = asyncio.create_task(take(reader, 1))
        turns = 0
        for _ in range(100):
            await asyncio.sleep(0)
            turns += not waiter.done()
        fill(writer, 1)
        await waiter
        return turns

    with publisher(path) as writer, subscriber(path) as reader:
        assert asyncio.run(main(writer, reader)) == 100


def test_a_fanin_is_read_the_same_way(folder: Path):
    async def main(writers: list[chronicle.QueueWriter], fanin: chronicle.FanInReader) -> list[int]:
        taker = asyncio.create_task(take(fanin, 10))
        for turn in range(10):
            await asyncio.sleep(0.001)
            fill(writers[turn % 2], 1)
        return await taker

    writers = [publisher(folder / name) for name in "ab"]
    with chronicle.FanInReader(subscriber(folder / name) for name in "ab") as fanin:
        assert sorted(asyncio.run(main(writers, fanin))) == sorted([1, 2, 3, 4, 5] * 2)


def test_a_gap_comes_out_of_the_loop_once_and_reading_goes_on(path: Path):
    with publisher(path) as writer:
        subscriber(path, "me").close()
        fill_segments(writer, 3)
        fill(writer, 2)
        chronicle.apply_retention(path, bytes_max=SEGMENT_BYTES)
        with subscriber(path, "me") as reader:
            with pytest.raises(chronicle.Gap) as caught:
                asyncio.run(take(reader, 1))
            assert asyncio.run(take(reader, 2)) == [caught.value.next, caught.value.next + 1]


def test_damage_comes_out_of_the_loop(path: Path):
    with publisher(path) as writer:
        fill(writer, 2)
        third = writer.position
        fill(writer, 1)
    overwrite(segment_file(path), third, b"\xfe\xff\xff\xff")

    async def read(reader: chronicle.QueueReader, got: list[bytes]) -> None:
        async for message in reader:
            got.append(bytes(message.payload))  # noqa: PERF401  (it must survive the error)

    got: list[bytes] = []
    with subscriber(path) as reader:
        with pytest.raises(chronicle.CorruptRecord):
            asyncio.run(read(reader, got))
    assert len(got) == 2


def test_closing_the_reader_ends_the_loop_with_closed(path: Path):
    async def main(reader: chronicle.QueueReader) -> None:
        waiter = asyncio.create_task(take(reader, 1))
        await asyncio.sleep(0.001)
        reader.close()
        with pytest.raises(chronicle.Closed):
            await waiter

    with publisher(path):
        asyncio.run(main(subscriber(path)))


def test_what_async_for_took_can_be_committed(path: Path):
    with publisher(path) as writer:
        made = fill(writer, 10)
        with subscriber(path, "me") as reader:
            asyncio.run(take(reader, 4))
            reader.commit()
        with subscriber(path, "me") as reader:
            assert payloads(reader) == made[4:]
