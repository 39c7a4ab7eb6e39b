"""`FanInReader` from Python: moving readers in and out, merging, waiting, committing."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import chronicle
import pytest

from tests.queue_support import (
    SEGMENT_BYTES,
    fill,
    fill_segments,
    overwrite,
    payloads,
    publisher,
    running,
    segment_file,
    seqs,
    subscriber,
)


class Market:
    """Some queues with a writer and a reader each."""

    def __init__(self, folder: Path, count: int) -> None:
        self._open = ExitStack()
        self.paths = [folder / f"venue{index}" for index in range(count)]
        self.writers = [self._open.enter_context(publisher(path)) for path in self.paths]
        self.readers = [self._open.enter_context(subscriber(path, "me")) for path in self.paths]

    def say(self, source: int, *times_ns: int) -> None:
        for time_ns in times_ns:
            self.writers[source].append(1, b"%d@%d" % (source, time_ns), timestamp_ns=time_ns)

    def close(self) -> None:
        self._open.close()


@pytest.fixture
def market(folder: Path) -> Iterator[Callable[[int], Market]]:
    made: list[Market] = []

    def make(count: int) -> Market:
        made.append(Market(folder, count))
        return made[-1]

    yield make
    for one in made:
        one.close()


def merged(fanin: chronicle.FanInReader) -> list[tuple[int, int | None]]:
    return [(message.timestamp_ns, message.source) for message in fanin]


def test_messages_come_in_the_order_of_their_timestamps(market: Callable[[int], Market]):
    m = market(3)
    m.say(0, 1, 4, 7)
    m.say(1, 2, 5, 8)
    m.say(2, 3, 6, 9)
    with chronicle.FanInReader(m.readers) as fanin:
        assert merged(fanin) == [(t, (t - 1) % 3) for t in range(1, 10)]
        assert fanin.next() is None


def test_ties_go_to_the_source_that_was_added_first(market: Callable[[int], Market]):
    m = market(3)
    for source in (2, 0, 1):
        m.say(source, 5, 5)
    with chronicle.FanInReader() as fanin:
        assert [fanin.add_reader(m.readers[i]) for i in (2, 0, 1)] == [0, 1, 2]
        assert payloads(fanin) == [b"2@5", b"2@5", b"0@5", b"0@5", b"1@5", b"1@5"]


def test_a_message_from_a_fanin_names_its_source(market: Callable[[int], Market]):
    m = market(1)
    m.say(0, 5)
    with chronicle.FanInReader(m.readers) as fanin:
        message = fanin.next()
    assert message is not None
    assert message.source == 0
    assert "source=0" in repr(message)


def test_a_fanin_of_nothing_gives_nothing():
    with chronicle.FanInReader() as fanin:
        assert fanin.next() is None
        assert fanin.wait(0.001) is False
        fanin.commit()
        assert len(fanin) == 0
        assert fanin.sources == []


def test_readers_may_come_from_any_iterable(market: Callable[[int], Market]):
    m = market(3)
    with chronicle.FanInReader(iter(m.readers)) as fanin:
        assert len(fanin) == 3
        assert fanin.sources == [(0, m.readers[0]), (1, m.readers[1]), (2, m.readers[2])]


USES: dict[str, Callable[[Any], object]] = {
    "next": lambda r: r.next(),
    "wait": lambda r: r.wait(0),
    "commit": lambda r: r.commit(),
    "seek": lambda r: r.seek("latest"),
    "read_batch": lambda r: r.next_run(count_max=1),
    "iter": list,
    "next_seq": lambda r: r.next_seq,
}


@pytest.mark.parametrize("use", USES)
def test_a_reader_that_was_added_is_moved_and_names_its_owner(
    market: Callable[[int], Market], use: str
):
    m = market(1)
    fanin = chronicle.FanInReader(m.readers)
    with pytest.raises(chronicle.Moved, match="fan-in") as caught:
        USES[use](m.readers[0])
    assert caught.value.owner == "a fan-in"
    assert fanin.remove_reader(0) is m.readers[0]
    USES[use](m.readers[0])
    fanin.close()


def test_closing_a_moved_reader_leaves_it_with_its_owner(market: Callable[[int], Market]):
    m = market(1)
    with chronicle.FanInReader(m.readers) as fanin:
        m.readers[0].close()
        m.say(0, 1)
        assert payloads(fanin) == [b"0@1"]


def test_a_reader_cannot_be_in_two_fanins_or_twice_in_one(market: Callable[[int], Market]):
    m = market(1)
    with chronicle.FanInReader(m.readers) as fanin, chronicle.FanInReader() as other:
        for target in (fanin, other):
            with pytest.raises(chronicle.Moved):
                target.add_reader(m.readers[0])
        assert len(fanin) == 1
        assert len(other) == 0


def test_a_closed_reader_cannot_be_added(market: Callable[[int], Market]):
    m = market(1)
    m.readers[0].close()
    with chronicle.FanInReader() as fanin:
        with pytest.raises(chronicle.Closed):
            fanin.add_reader(m.readers[0])
        assert len(fanin) == 0
        assert fanin.next() is None


@pytest.mark.parametrize("thing", [None, "queue", object()])
def test_only_readers_can_be_added(thing: Any):
    with chronicle.FanInReader() as fanin:
        with pytest.raises(TypeError):
            fanin.add_reader(thing)


@pytest.mark.parametrize("source", [0, 1, 99, 1 << 40])
def test_removing_a_source_that_is_not_there_is_refused(source: int):
    with chronicle.FanInReader() as fanin:
        with pytest.raises(chronicle.BadArgument, match="no source"):
            fanin.remove_reader(source)


def test_a_reader_that_was_removed_goes_on_at_its_first_undelivered_message(
    market: Callable[[int], Market],
):
    m = market(2)
    m.say(0, 1, 3, 5)
    m.say(1, 2, 4, 6)
    with chronicle.FanInReader(m.readers) as fanin:
        assert [fanin.next().timestamp_ns for _ in range(3)] == [1, 2, 3]  # type: ignore[union-attr]
        back = fanin.remove_reader(1)
        assert payloads(back) == [b"1@4", b"1@6"]
        assert payloads(fanin) == [b"0@5"]
        assert fanin.add_reader(back) == 1
        m.say(1, 7)
        assert payloads(fanin) == [b"1@7"]


def test_sources_come_and_go_while_reading(market: Callable[[int], Market]):
    m = market(4)
    with chronicle.FanInReader(m.readers[:2]) as fanin:
        m.say(0, 1)
        m.say(3, 0)
        assert payloads(fanin) == [b"0@1"]
        assert fanin.add_reader(m.readers[3]) == 2
        assert payloads(fanin) == [b"3@0"]
        fanin.remove_reader(0)
        fanin.remove_reader(1)
        assert len(fanin) == 1
        m.say(0, 8)
        m.say(3, 9)
        assert payloads(fanin) == [b"3@9"]
        # Numbers are used again.
        assert {fanin.add_reader(m.readers[0]), fanin.add_reader(m.readers[1])} == {0, 1}
        assert payloads(fanin) == [b"0@8"]


def test_live_mode_does_not_wait_for_an_idle_source(market: Callable[[int], Market]):
    m = market(2)
    m.say(0, 10)
    with chronicle.FanInReader(m.readers) as fanin:
        assert payloads(fanin) == [b"0@10"]
        m.say(1, 5)
        assert payloads(fanin) == [b"1@5"]


def test_strict_mode_waits_for_what_may_still_come_first(market: Callable[[int], Market]):
    m = market(2)
    m.say(0, 10, 20)
    with chronicle.FanInReader(m.readers, mode="strict") as fanin:
        assert fanin.next() is None
        m.say(1, 15)
        assert payloads(fanin) == [b"0@10", b"1@15"]
        m.say(1, 25)
        assert payloads(fanin) == [b"0@20"]
        m.say(0, 30)
        assert payloads(fanin) == [b"1@25"]


def test_a_clock_that_steps_back_does_not_unsort_its_source(market: Callable[[int], Market]):
    m = market(2)
    m.say(0, 10, 3, 4, 11)
    m.say(1, 9, 12)
    with chronicle.FanInReader(m.readers) as fanin:
        assert payloads(fanin) == [b"1@9", b"0@10", b"0@3", b"0@4", b"0@11", b"1@12"]


def test_commit_covers_what_was_delivered_and_nothing_else(market: Callable[[int], Market]):
    m = market(2)
    m.say(0, 1, 2, 3)
    m.say(1, 100, 101)
    with chronicle.FanInReader(m.readers) as fanin:
        assert [fanin.next().timestamp_ns for _ in range(2)] == [1, 2]  # type: ignore[union-attr]
        fanin.commit()
        fanin.next()
    for path, first in zip(m.paths, (3, 1), strict=True):
        with subscriber(path, "me") as reader:
            assert reader.next_seq == first


def test_wait_wakes_for_every_source(market: Callable[[int], Market]):
    m = market(5)
    with chronicle.FanInReader(m.readers, wait="sleep") as fanin:
        for source in (4, 0, 2, 1, 3):
            with running(lambda source=source: m.say(source, 1)):  # type: ignore[misc]
                assert fanin.wait() is True
            assert payloads(fanin) == [b"%d@1" % source]
        assert fanin.wait(0) is False


def test_wait_is_over_at_once_while_a_head_waits_for_delivery(market: Callable[[int], Market]):
    m = market(2)
    m.say(0, 1, 2)
    with chronicle.FanInReader(m.readers) as fanin:
        assert fanin.wait() is True
        fanin.next()
        assert fanin.wait() is True
        fanin.next()
        assert fanin.wait(0) is False


@pytest.mark.parametrize("count", [127, 128, 129, 200])
def test_more_sources_than_the_kernel_waits_for_at_once(
    market: Callable[[int], Market], count: int
):
    m = market(count)
    with chronicle.FanInReader(m.readers, wait="sleep") as fanin:
        for source in (0, 126, count // 2, count - 1):
            with running(lambda source=source: m.say(source, 1)):  # type: ignore[misc]
                assert fanin.wait() is True
            assert payloads(fanin) == [b"%d@1" % source]


@pytest.mark.parametrize(("mode", "wait"), [("fast", "spin"), ("live", "busy")])
def test_an_unknown_mode_or_wait_is_refused(mode: Any, wait: Any):
    with pytest.raises(chronicle.BadArgument, match="found="):
        chronicle.FanInReader(mode=mode, wait=wait)


def test_an_error_names_its_source_and_the_others_go_on(market: Callable[[int], Market]):
    m = market(2)
    m.say(0, 1, 3)
    m.say(1, 2)
    broken = m.writers[1].position
    m.say(1, 4)
    overwrite(segment_file(m.paths[1]), broken % SEGMENT_BYTES, b"\xfe\xff\xff\xff")
    with chronicle.FanInReader(m.readers) as fanin:
        seen: list[bytes] = []
        errors: list[chronicle.CorruptRecord] = []
        m.say(0, 5)
        while len(seen) < 4:
            try:
                message = fanin.next()
            except chronicle.CorruptRecord as error:
                errors.append(error)
                assert len(errors) < 100
            else:
                assert message is not None
                seen.append(bytes(message.payload))
    assert seen == [b"0@1", b"1@2", b"0@3", b"0@5"]
    assert errors
    assert {error.source for error in errors} == {1}
    assert {error.position for error in errors} == {broken}


def test_a_gap_names_its_source_and_comes_once(folder: Path):
    with publisher(folder / "a") as a, publisher(folder / "b") as b:
        subscriber(folder / "b", "me").close()
        fill(a, 1)
        fill_segments(b, 3)
        chronicle.apply_retention(folder / "b", bytes_max=SEGMENT_BYTES)
        readers = [subscriber(folder / name, "me") for name in "ab"]
        with chronicle.FanInReader(readers) as fanin:
            gaps: list[chronicle.Gap] = []
            found: list[chronicle.Message] = []
            for _ in range(200):
                try:
                    if (message := fanin.next()) is not None:
                        found.append(message)
                except chronicle.Gap as gap:
                    gaps.append(gap)
        assert [(gap.source, gap.first_missing) for gap in gaps] == [(1, 1)]
        of_b = [message.seq for message in found if message.source == 1]
        assert of_b == list(range(gaps[0].next, b.next_seq))


@pytest.mark.parametrize(
    "use",
    [
        lambda f: f.next(),
        lambda f: f.wait(0),
        lambda f: f.commit(),
        lambda f: f.remove_reader(0),
        lambda f: f.sources,
        len,
        list,
    ],
)
def test_a_closed_fanin_says_so_and_its_readers_are_closed(
    market: Callable[[int], Market], use: Callable[[Any], object]
):
    m = market(1)
    fanin = chronicle.FanInReader(m.readers)
    fanin.close()
    fanin.close()
    assert fanin.closed
    with pytest.raises(chronicle.Closed, match="fan-in"):
        use(fanin)
    with pytest.raises((chronicle.Moved, chronicle.Closed)):
        m.readers[0].next()
    # The name is free again.
    subscriber(m.paths[0], "me").close()


def test_a_fanin_that_is_forgotten_frees_its_readers(market: Callable[[int], Market]):
    m = market(1)
    chronicle.FanInReader(m.readers)
    gc.collect()
    subscriber(m.paths[0], "me").close()


def test_messages_outlive_the_fanin(market: Callable[[int], Market]):
    m = market(2)
    m.say(0, 1)
    m.say(1, 2)
    with chronicle.FanInReader(m.readers) as fanin:
        messages = list(fanin)
    del fanin
    gc.collect()
    assert payloads(messages) == [b"0@1", b"1@2"]


def test_a_fanin_of_a_thousand_messages_over_rolls_loses_nothing(folder: Path):
    paths = [folder / str(index) for index in range(3)]
    for index, path in enumerate(paths):
        with publisher(path) as writer:
            for n in range(300):
                writer.append(1, bytes(900), timestamp_ns=n * 3 + index)
    with chronicle.FanInReader([subscriber(path) for path in paths]) as fanin:
        messages = list(fanin)
    assert [message.timestamp_ns for message in messages] == list(range(900))
    for source in range(3):
        assert seqs(m for m in messages if m.source == source) == list(range(1, 301))
