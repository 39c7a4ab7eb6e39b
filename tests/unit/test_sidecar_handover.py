"""Hand-over against a hot thread whose answers come when a test lets them: every race by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import chronicle
import pytest
from chronicle.sidecar import Backoff

from tests.fake_hot import FakeHot
from tests.queue_support import publisher, subscriber
from tests.sidecar_support import eventually


@pytest.fixture
def hot():
    return FakeHot()


@pytest.fixture
def sidecar(hot):
    with chronicle.Sidecar(backoff=Backoff(first_s=0.001, max_s=0.005)) as made:
        yield made


def remove(path: Path) -> None:
    aside = path.with_name(f".{path.name}.removed")
    path.rename(aside)
    shutil.rmtree(aside)


def test_a_queue_that_vanishes_before_the_answer_is_taken_back_after_it(hot, sidecar, folder):
    found = sidecar.discover(folder / "*", hot, name="r")
    with publisher(folder / "q"):
        eventually(lambda: hot.added)
    remove(folder / "q")
    eventually(lambda: not (folder / "q").exists() and not found._kept)
    assert hot.removals == []
    hot.say_added(1, 7)
    eventually(lambda: hot.removals)
    assert hot.removals[0][1] == 7
    hot.say_removed()
    (care,) = sidecar.cares
    eventually(lambda: care.retired == [hot.added[1]])
    # Its mapping is kept until somebody says that the interruption does not matter.
    assert not hot.added[1].closed
    assert sidecar.release_retired() == 1
    assert hot.added[1].closed


def test_readers_that_are_kept_are_a_complaint_when_they_are_many(
    hot, sidecar, folder, monkeypatch
):
    monkeypatch.setattr("chronicle.sidecar.hotcare._RETIRED_MANY", 1)
    found = sidecar.discover(folder / "*", hot, name="r")
    with publisher(folder / "q"):
        eventually(lambda: hot.added)
        hot.say_added(1, 0)
        eventually(lambda: found.attached)
        assert sidecar.healthy
    remove(folder / "q")
    eventually(lambda: hot.removals)
    hot.say_removed()
    eventually(lambda: "call release_retired()" in sidecar.health()["hot fake"].detail)
    assert not sidecar.healthy
    assert sidecar.release_retired() == 1
    assert sidecar.healthy


def test_a_queue_that_is_replaced_before_the_answer_gets_a_second_reader(hot, sidecar, folder):
    sidecar.discover(folder / "*", hot, name="r")
    with publisher(folder / "q"):
        eventually(lambda: len(hot.added) == 1)
    remove(folder / "q")
    with publisher(folder / "q"):
        eventually(lambda: len(hot.added) == 2)
        hot.say_added(2, 1)
        hot.say_added(1, 0)
        eventually(lambda: hot.removals)
        # The first one's source, not the second's.
        assert [source for _, source in hot.removals] == [0]
        hot.say_removed()
        (care,) = sidecar.cares
        eventually(lambda: care.retired == [hot.added[1]])
        assert not hot.added[2].closed


def test_a_source_that_fails_while_its_queue_vanishes_is_not_tried_again(hot, sidecar, folder):
    found = sidecar.discover(folder / "*", hot, name="r")
    with publisher(folder / "q"):
        eventually(lambda: hot.added)
        hot.say_added(1, 0)
        eventually(lambda: found.attached)
    remove(folder / "q")
    eventually(lambda: hot.removals)
    # It failed before it took the command to remove it.
    hot.say_failed(0, chronicle.QueueRemoved("the queue was removed"))
    eventually(lambda: not found._tasks)
    assert found.opened == 1
    assert sidecar.healthy


def test_a_refused_reader_is_closed_and_another_one_offered(hot, sidecar, folder):
    found = sidecar.discover(folder / "*", hot, name="r")
    with publisher(folder / "q"):
        eventually(lambda: 1 in hot.added)
        hot.say_refused(1)
        # The name is free for the second, so the first was closed.
        eventually(lambda: 2 in hot.added)
        assert hot.added[1].closed
        name = f"discovery {folder / '*'}"
        assert "no room for another source" in sidecar.health()[name].detail
        hot.say_added(2, 0)
        eventually(lambda: found.attached)
        assert sidecar.health()[name].healthy


def test_a_full_channel_is_no_failure_and_a_queue_that_vanishes_meanwhile_is_let_go(
    hot, sidecar, folder
):
    hot.full = True
    found = sidecar.discover(folder / "*", hot, name="r")
    with publisher(folder / "q"):
        eventually(lambda: found.opened == 1)
        with pytest.raises(chronicle.ReaderActive):
            subscriber(folder / "q", "r")
    remove(folder / "q")
    eventually(lambda: not found._tasks)
    assert found._readers == set()
    assert hot.added == {}


def test_a_thread_that_ends_is_offered_nothing_more(hot, sidecar, folder):
    found = sidecar.discover(folder / "*", hot, name="r")
    with publisher(folder / "a") as first, publisher(folder / "b") as second:
        eventually(lambda: len(hot.added) == 2)
        hot.say_added(1, 0)
        eventually(lambda: len(found.attached) == 1)
        # One is attached, one is not answered for.
        hot.ended = True
        hot.failure = chronicle.HotThreadFailed("it failed", reason="", thread="fake")
        eventually(lambda: not found._tasks)
        assert found.attached == []
        with publisher(folder / "c"):
            eventually(lambda: found.opened == 3)
            eventually(lambda: not found._tasks)
        assert len(hot.added) == 2
        first.close()
        second.close()


def test_a_reader_resumes_after_a_failure_and_begins_as_told_only_once(hot, sidecar, folder):
    with publisher(folder / "q") as writer:
        for _ in range(5):
            writer.append(1, b"x")
        sidecar.discover(folder / "*", hot, name="r", start="latest")
        eventually(lambda: 1 in hot.added)
        reader = hot.added[1]
        assert reader.next_seq == 6
        hot.say_added(1, 0)
        for _ in range(3):
            writer.append(1, b"x")
        eventually(lambda: not hot.events)
        reader.next()
        reader.commit()
        hot.say_failed(0, chronicle.CorruptRecord("it is damaged", position=0))
        eventually(lambda: 2 in hot.added)
        # Not at the latest: two messages would be lost.
        assert hot.added[2].next_seq == 7


def test_the_end_in_the_middle_of_everything_leaves_no_reader_open(hot, folder):
    sidecar = chronicle.Sidecar().start()
    found = sidecar.discover(folder / "*", hot, name="r")
    writers = [publisher(folder / name) for name in "abc"]
    eventually(lambda: len(hot.added) == 3)
    hot.say_added(1, 0)
    eventually(lambda: found.attached)
    assert sidecar.stop().clean
    assert all(reader.closed for reader in hot.added.values())
    for writer in writers:
        writer.close()
