"""Writers and readers in processes of their own: kills, restarts, locks, wake-ups."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import chronicle
import pytest

from tests.queue_support import (
    PATIENCE_S,
    Child,
    fill,
    payload_of,
    payloads,
    publisher,
    run_python,
    seqs,
    subscriber,
)

READER = """
path, name, last = Path(args[0]), args[1], int(args[2])
with subscriber(path, name, wait=args[3]) as reader:
    say("open")
    expected = 1
    while expected <= last:
        reader.wait()
        for message in reader:
            assert message.seq == expected, (message.seq, expected)
            assert bytes(message.payload) == payload_of(message.seq, len(message)), message
            expected += 1
        reader.commit()
    say(name, expected - 1, reader.gaps)
"""

WRITER = """
path, count = Path(args[0]), int(args[1])
with publisher(path) as writer:
    say("open", writer.next_seq)
    while writer.next_seq <= count:
        seq = writer.next_seq
        assert writer.append(1, payload_of(seq, 16 + seq * 7 % 3000)) == seq
say("done")
"""


@pytest.mark.parametrize("wait", ["spin", "hybrid", "sleep"])
def test_readers_in_other_processes_see_every_message(path: Path, wait: str):
    publisher(path).close()
    with ExitStack() as stack:
        readers = [
            stack.enter_context(Child(READER, path, name, 3_000, wait)) for name in ("a", "b")
        ]
        for reader in readers:
            reader.expect("open")
        assert run_python(WRITER, path, 3_000) == ["open 1", "done"]
        assert [reader.finish() for reader in readers] == [["a 3000 0"], ["b 3000 0"]]


def test_live_readers_never_notice_that_writers_are_killed(path: Path):
    publisher(path).close()
    endless = WRITER.replace("<= count", "> 0")
    with ExitStack() as stack:
        last = 8_000
        readers = [
            stack.enter_context(Child(READER, path, name, last, "hybrid")) for name in ("a", "b")
        ]
        for reader in readers:
            reader.expect("open")
        watcher = stack.enter_context(subscriber(path, "watcher"))
        epoch, goal = chronicle.inspect(path)["epoch"], 0
        while goal < last:
            with Child(endless, path, 0) as writer:
                first = int(writer.hear().split()[1])
                # Every number that anybody saw before is kept.
                assert first == watcher.next_seq
                goal = first + 700
                while watcher.next_seq < goal:
                    assert watcher.wait(PATIENCE_S), "the writer has stopped writing"
                    for message in watcher:
                        assert bytes(message.payload) == payload_of(message.seq, len(message))
                writer.kill()
            for message in watcher:
                assert bytes(message.payload) == payload_of(message.seq, len(message))
            epoch += 1
            assert chronicle.inspect(path)["epoch"] == epoch
        for reader in readers:
            (line,) = reader.finish()
            _, seen, gaps = line.split()
            assert last <= int(seen) < watcher.next_seq
            assert gaps == "0"
    report = chronicle.verify(path)
    assert report["damage"] == []
    assert report["next_seq"] == watcher_next(path)


def watcher_next(path: Path) -> int:
    with subscriber(path, None) as reader:
        return len(list(reader)) + 1


def test_two_writers_never_coexist_and_the_second_learns_the_pid(path: Path):
    with Child(
        """
        with publisher(Path(args[0])) as writer:
            say("open")
            hear()
            say(writer.append(1, b"still mine"))
            hear()
        """,
        path,
    ) as child:
        child.expect("open")
        for _ in range(3):
            with pytest.raises(chronicle.WriterActive) as caught:
                publisher(path)
            assert caught.value.pid == child.pid
            assert f"pid={child.pid}" in str(caught.value)
        child.tell()
        child.expect("1")
        child.kill()
        with publisher(path) as writer:
            assert writer.next_seq == 2
            assert writer.epoch == 2


def test_many_processes_that_want_to_write_take_turns(path: Path):
    publisher(path).close()
    code = """
    path, turns = Path(args[0]), 0
    while turns < 20:
        try:
            writer = publisher(path)
        except chronicle.WriterActive:
            continue
        with writer:
            first = writer.next_seq
            for index in range(10):
                assert writer.append(1, payload_of(first + index)) == first + index
        turns += 1
    say(turns)
    """
    with ExitStack() as stack:
        children = [stack.enter_context(Child(code, path)) for _ in range(4)]
        assert [child.finish() for child in children] == [["20"]] * 4
    with subscriber(path) as reader:
        assert payloads(reader) == [payload_of(seq) for seq in range(1, 801)]
    assert chronicle.inspect(path)["epoch"] == 81


def test_processes_that_create_one_queue_at_once_all_find_it(folder: Path):
    code = """
    hear()
    for number in range(20):
        path = Path(args[0]) / str(number)
        while True:
            try:
                with publisher(path) as writer:
                    writer.append(1, b"x")
                break
            except chronicle.WriterActive:
                pass
    """
    with ExitStack() as stack:
        children = [stack.enter_context(Child(code, folder)) for _ in range(3)]
        for child in children:
            child.tell()
        for child in children:
            assert child.finish() == []
    for number in range(20):
        with subscriber(folder / str(number)) as reader:
            assert seqs(reader) == [1, 2, 3]


@pytest.mark.parametrize("kind", ["reader", "fanin", "async"])
def test_a_sleeping_reader_in_another_process_is_woken_by_each_append(path: Path, kind: str):
    code = """
    import asyncio
    async def take(source, count):
        async for message in source:
            say(message.seq)
            count -= 1
            if count == 0:
                return
    path, kind = Path(args[0]), args[1]
    reader = subscriber(path, "sleeper", wait="sleep")
    source = chronicle.FanInReader([reader], wait="sleep") if kind == "fanin" else reader
    say("open")
    if kind == "async":
        asyncio.run(take(source, 100))
    else:
        for _ in range(100):
            assert source.wait() is True
            say(source.next().seq)
    """
    with publisher(path) as writer:
        with Child(code, path, kind) as child:
            child.expect("open")
            for seq in range(1, 101):
                assert writer.append(1, b"wake up") == seq
                child.expect(str(seq))
            assert child.finish() == []


def test_a_killed_reader_frees_its_name_and_what_it_held(path: Path):
    with publisher(path) as writer:
        with Child(
            """
            reader = subscriber(Path(args[0]), "victim")
            for _ in range(3):
                reader.next()
            reader.commit()
            say("open")
            hear()
            """,
            path,
        ) as child:
            fill(writer, 5)
            child.expect("open")
            with pytest.raises(chronicle.ReaderActive) as caught:
                subscriber(path, "victim")
            assert caught.value.pid == child.pid
            fill(writer, 500, size=1_000)
            report = chronicle.apply_retention(path, bytes_max=1)
            assert (report["segments_deleted"], report["held_by"]) == (0, "victim")
            child.kill()
        report = chronicle.apply_retention(path, bytes_max=1)
        assert report["segments_deleted"] > 0
        assert report["held_by"] is None
        with subscriber(path, "victim") as reader:
            with pytest.raises(chronicle.Gap) as gap:
                reader.next()
            assert gap.value.first_missing == 4


def test_a_killed_reader_that_slept_costs_the_writer_nothing_lasting(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        with Child("subscriber(Path(args[0]), 'victim', wait='sleep').wait()", path) as child:
            child.process.poll()
            child.kill()
        made = fill(writer, 100)
        assert payloads(reader) == made


def test_a_reader_waits_for_a_queue_that_another_process_creates(path: Path):
    code = """
    while True:
        try:
            reader = subscriber(Path(args[0]), "early")
            break
        except chronicle.NotAQueue:
            pass
    reader.wait()
    say(reader.next().seq)
    """
    with Child(code, path) as child:
        with publisher(path) as writer:
            fill(writer, 1)
            child.expect("1")
            assert child.finish() == []


def test_a_fanin_over_the_queues_of_other_processes_merges_them(folder: Path):
    code = """
    with publisher(Path(args[0])) as writer:
        for n in range(500):
            writer.append(1, b"x" * 500, timestamp_ns=n * 3 + int(args[1]))
    """
    paths = [folder / str(n) for n in range(3)]
    for path in paths:
        publisher(path).close()
    with ExitStack() as stack:
        readers = [stack.enter_context(subscriber(path)) for path in paths]
        fanin = stack.enter_context(chronicle.FanInReader(readers, mode="strict"))
        children = [
            stack.enter_context(Child(code, path, index)) for index, path in enumerate(paths)
        ]
        times: list[int] = []
        # Strict: behind the last message of a source nothing can be said to be next.
        while len(times) < 1_498:
            fanin.wait()
            times += [message.timestamp_ns for message in fanin]
        for child in children:
            assert child.finish() == []
    assert times == list(range(1_498))


def test_retention_in_one_process_leaves_views_of_another_alone(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        made = fill(writer, 300, size=1_000)
        views = [message.payload for message in reader]
        reader.commit()
        lines = run_python(
            "say(chronicle.apply_retention(Path(args[0]), bytes_max=1)['segments_deleted'] > 2)",
            path,
        )
        assert lines == ["True"]
        assert [bytes(view) for view in views] == made


def test_this_process_is_not_its_children():
    assert run_python("say(os.getppid())") == [str(os.getpid())]
