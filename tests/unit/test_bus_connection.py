"""Passive connections: each change of the source told once, in order with its messages."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle.bus import (
    Bus,
    Connected,
    Connection,
    Event,
    Lost,
    Missing,
    PlainQueue,
    Ready,
    Reconnected,
)
from chronicle.bus.markers import write_marker

from tests.queue_support import fill_segments, overwrite, publisher, segment_file
from tests.sidecar_support import eventually

#: Looks whenever it is asked.
AT_ONCE_S = 1e-9


@pytest.fixture
def bus(folder):
    return Bus(folder / "bus")


@pytest.fixture
def source(bus) -> Iterator[Connection]:
    with bus.connect("streams/x", "live", name="risk", interval_s=AT_ONCE_S) as made:
        yield made


def taken(connection: Connection) -> list[Any]:
    """Everything that is there: numbers of messages, and events."""
    return [item if isinstance(item, Event) else item.seq for item in connection]


class Owner:
    """An owner of ``streams/x`` with a writer of ``live``."""

    def __init__(self, bus: Bus, **options: Any) -> None:
        self.endpoint = bus.open_endpoint("streams/x")
        self.path = self.endpoint.path / "live"
        self.writer = publisher(self.path, **options)
        self.endpoint.ready(["live"])

    def say(self, count: int) -> None:
        for _ in range(count):
            self.writer.append(1, b"x")

    def end(self) -> None:
        self.writer.close()
        self.endpoint.close()


def test_a_connection_waits_for_its_source_and_goes_on_with_its_next_life(bus, source):
    path = source.path
    assert taken(source) == []
    assert (source.state, source.reason) == ("waiting", "missing")
    owner = Owner(bus)
    owner.say(2)
    assert taken(source) == [Connected(path, 1), 1, 2]
    owner.say(1)
    owner.end()
    assert taken(source) == [3, Lost(path, "no lease")]
    assert taken(source) == []
    assert (source.state, source.reason) == ("lost", "no lease")
    owner = Owner(bus)
    owner.say(1)
    assert taken(source) == [Reconnected(path, 1, True, False, None), 4]
    owner.end()


def test_an_owner_that_came_back_between_two_looks_is_lost_and_found(bus, source):
    owner = Owner(bus)
    assert taken(source) == [Connected(source.path, 1)]
    owner.say(2)
    owner.end()
    Owner(bus).end()
    owner = Owner(bus)
    owner.say(1)
    assert taken(source) == [
        1,
        2,
        3,
        Lost(source.path, "another life"),
        Reconnected(source.path, 1, True, False, None),
    ]
    owner.end()


def test_an_owner_that_stalls_is_lost_and_the_same_life_when_it_works_again(bus, source):
    owner = Owner(bus)
    assert taken(source) == [Connected(source.path, 1)]
    directory = owner.endpoint._directory
    write_marker(directory, replace(owner.endpoint.lease, renewed_ns=0))
    owner.say(1)
    assert taken(source) == [1, Lost(source.path, "heartbeat stale")]
    owner.say(1)
    assert taken(source) == []
    owner.endpoint.renew()
    assert taken(source) == [Reconnected(source.path, 1, False, False, None), 2]
    owner.end()


def test_a_queue_that_is_taken_out_of_ready_is_lost(bus, source):
    owner = Owner(bus)
    assert taken(source) == [Connected(source.path, 1)]
    owner.endpoint.ready([])
    assert taken(source) == [Lost(source.path, "not ready")]
    owner.endpoint.ready(["live"])
    assert taken(source) == [Reconnected(source.path, 1, False, False, None)]
    shutil.rmtree(owner.path)
    assert taken(source) == [Lost(source.path, "no queue")]
    owner.end()


def test_a_queue_that_is_made_anew_is_another_one_and_read_from_its_beginning(bus):
    with bus.connect(
        "streams/x", "live", name=None, start="latest", interval_s=AT_ONCE_S
    ) as source:
        owner = Owner(bus)
        owner.say(5)
        assert taken(source) == [Connected(source.path, 1)]
        owner.say(1)
        owner.end()
        shutil.rmtree(owner.path)
        owner = Owner(bus)
        owner.say(2)
        assert taken(source) == [
            6,
            Lost(source.path, "another life"),
            Reconnected(source.path, 1, True, True, None),
            1,
            2,
        ]
        owner.end()


def test_messages_that_were_deleted_while_the_source_was_lost_are_told_once(bus):
    with bus.connect("streams/x", "live", name=None, interval_s=AT_ONCE_S) as source:
        owner = Owner(bus, segment_bytes=65_536)
        owner.say(1)
        assert taken(source) == [Connected(source.path, 1), 1]
        owner.end()
        assert taken(source) == [Lost(source.path, "no lease")]
        with publisher(owner.path) as writer:
            fill_segments(writer, 4)
        chronicle.apply_retention(owner.path, bytes_max=65_536)
        first = next(s["first_seq"] for s in chronicle.inspect(owner.path)["segments"])
        owner = Owner(bus)
        found = taken(source)
        assert found[0] == Reconnected(source.path, 1, True, False, (2, first))
        assert found[1:] == list(range(first, owner.writer.next_seq))
        owner.end()


def test_messages_that_are_deleted_while_the_source_is_there_are_told_once(bus):
    with bus.connect("streams/x", "live", name=None, interval_s=AT_ONCE_S) as source:
        owner = Owner(bus, segment_bytes=65_536)
        assert taken(source) == [Connected(source.path, 1)]
        fill_segments(owner.writer, 4)
        chronicle.apply_retention(owner.path, bytes_max=65_536)
        first = next(s["first_seq"] for s in chronicle.inspect(owner.path)["segments"])
        found = taken(source)
        (missing,) = (item for item in found if isinstance(item, Event))
        assert isinstance(missing, Missing)
        assert (missing.next_seq, missing.reason) == (first, "retention")
        assert found[-1] == owner.writer.next_seq - 1
        owner.end()


def test_damage_is_a_loss_until_the_owner_is_another(bus, source):
    owner = Owner(bus)
    assert taken(source) == [Connected(source.path, 1)]
    owner.say(3)
    overwrite(segment_file(owner.path), offset_of_second(owner), b"\xff" * 4)
    found = taken(source)
    assert [type(item) for item in found[-1:]] == [Lost]
    assert found[-1].reason.startswith("damaged: ")
    assert taken(source) == []
    assert source.state == "lost"
    owner.end()
    # The next life has another queue.
    shutil.rmtree(owner.path)
    owner = Owner(bus)
    owner.say(1)
    assert taken(source) == [Reconnected(source.path, 1, True, True, None), 1]
    owner.end()


def offset_of_second(owner: Owner) -> int:
    """Where the second message stands in the first segment's file."""
    with chronicle.Queue.open_subscriber(owner.path, None) as reader:
        reader.next()
        return reader.position


def test_garbage_in_a_marker_is_a_loss_with_the_reason(bus, source):
    owner = Owner(bus)
    assert taken(source) == [Connected(source.path, 1)]
    (owner.endpoint.path / "LEASE").write_text("garbage")
    (lost,) = taken(source)
    assert "is not a marker" in lost.reason
    owner.endpoint.renew()
    assert len(taken(source)) == 1
    owner.end()


def test_a_source_that_cannot_be_read_yet_says_why(bus):
    owner = Owner(bus)
    with bus.connect("streams/x", "live", name="r", interval_s=AT_ONCE_S) as first:
        assert len(taken(first)) == 1
        with bus.connect("streams/x", "live", name="r", interval_s=AT_ONCE_S) as second:
            assert taken(second) == []
            assert "ReaderActive" in str(second.error)
            first.close()
            assert taken(second) == [Connected(second.path, 1)]
            assert second.error is None
    owner.end()


def test_a_plain_queue_is_there_while_its_writer_lives(folder):
    path = folder / "q"
    with Connection(PlainQueue(str(path)), name=None, interval_s=AT_ONCE_S) as source:
        assert (taken(source), source.reason) == ([], "no such queue")
        with publisher(path) as writer:
            writer.append(1, b"x")
            assert taken(source) == [Connected(str(path), 1), 1]
        assert taken(source) == [Lost(str(path), "lock free")]
        with publisher(path):
            assert taken(source) == [Reconnected(str(path), 2, True, False, None)]


def test_an_observer_tells_without_reading(bus):
    observer = bus.observe("streams/x", "live")
    assert observer.poll() == []
    owner = Owner(bus)
    assert observer.poll() == [Connected(observer.path, 1)]
    assert observer.poll() == []
    owner.end()
    owner = Owner(bus)
    assert observer.poll() == [
        Lost(observer.path, "another life"),
        Reconnected(observer.path, 1, True, False, None),
    ]
    owner.end()
    assert observer.poll() == [Lost(observer.path, "no lease")]
    assert chronicle.inspect(owner.path)["readers"] == []


def test_an_observer_is_a_task_of_the_sidecar(bus):
    observer = bus.observe("streams/x", "live")
    seen: list[Event] = []
    with chronicle.Sidecar() as sidecar:

        @sidecar.task
        async def watch_feed() -> None:
            async for event in observer.events(interval_s=0.001):
                seen.append(event)  # noqa: PERF401  (it never ends)

        owner = Owner(bus)
        eventually(lambda: len(seen) == 1)
        owner.end()
        eventually(lambda: len(seen) == 2)
    assert [type(event) for event in seen] == [Connected, Lost]


def test_a_connection_is_waited_for_and_iterated_asynchronously(bus):
    with bus.connect("streams/x", "live", name=None, interval_s=0.001) as source:
        assert not source.wait(0)
        assert not source.wait(0.002)
        owner = Owner(bus)
        owner.say(1)
        assert source.wait()

        async def take() -> list[Any]:
            found: list[Any] = []
            async for item in source:
                found.append(item)
                if len(found) == 2:
                    owner.end()
                if isinstance(item, Lost):
                    break
            return found

        found = asyncio.run(take())
        assert [type(item) for item in found] == [Connected, chronicle.Message, Lost]
    for call in (source.next, source.wait):
        with pytest.raises(chronicle.Closed):
            call()


@pytest.mark.parametrize(
    ("endpoint", "queue"), [("..", "q"), ("a", ".."), ("a", "LOCK"), ("a", ""), ("/a", "q")]
)
def test_names_that_leave_the_bus_are_refused_at_once(bus, endpoint, queue):
    with pytest.raises(chronicle.BadArgument):
        bus.connect(endpoint, queue, name=None)
    with pytest.raises(chronicle.BadArgument):
        bus.observe(endpoint, queue)


def test_what_does_not_belong_to_us_is_not_connected_to_and_said_why(bus, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    endpoint = bus.open_endpoint("streams/x")
    (endpoint.path / "live").symlink_to(outside)
    endpoint.ready(["live"])
    observer = bus.observe("streams/x", "live")
    assert observer.poll() == []
    assert "symbolic link" in observer.reason
    (endpoint.path / "live").unlink()
    publisher(endpoint.path / "live").close()
    for change, reason in (
        (lambda path: path.chmod(0o777), "others may write"),
        (lambda path: shutil.chown(path, 12_345), "uid=12345"),
    ):
        change(endpoint.path / "live")
        assert observer.poll() == []
        assert reason in observer.reason
        (endpoint.path / "live").chmod(0o700)
    shutil.chown(endpoint.path / "live", 0)
    assert observer.poll() == [Connected(observer.path, 1)]
    endpoint.close()


def test_ready_of_another_instance_connects_nobody(bus):
    owner = Owner(bus)
    directory = owner.endpoint._directory
    write_marker(directory, Ready("1" * 32, ("live",)))
    observer = bus.observe("streams/x", "live")
    assert (observer.poll(), observer.reason) == ([], "not ready")
    owner.end()


def test_what_makes_no_sense_is_refused(bus, source):
    with pytest.raises(chronicle.BadArgument, match="interval_s"):
        bus.connect("a", "q", name=None, interval_s=0)
    with pytest.raises(chronicle.BadArgument, match="Observer"):
        source.poll()
    assert Path(source.path) == bus.path / "streams/x/live"
