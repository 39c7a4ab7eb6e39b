"""Discovery of queues on a bus: admitted, read to their end, let go, and admitted again."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle.bus import Bus, Endpoint
from chronicle.bus import Ready as ReadyMarker
from chronicle.bus.markers import write_marker
from chronicle.sidecar import Admission, Backoff
from chronicle.sidecar.discovery import Appeared, Change, Discovery, Ready, Vanished

from tests.fake_hot import FakeHot
from tests.queue_support import publisher, subscriber
from tests.sidecar_support import eventually

#: Longer than any test: what is seen is seen because the kernel told.
NEVER_S = 1e6


@pytest.fixture
def hot():
    return FakeHot()


@pytest.fixture
def sidecar():
    with chronicle.Sidecar(backoff=Backoff(first_s=0.001, max_s=0.005)) as made:
        yield made


@pytest.fixture
def bus(folder):
    return Bus(folder / "bus")


class Desk:
    """Writes down what it is asked and told, and fails when a test wants that."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.trouble: dict[str, Exception] = {}
        self.answer: Callable[[], Any] = Admission
        self.threads: set[str] = set()

    def admit(self, path: str) -> Admission:
        self._note("admit", path)
        admission: Admission = self.answer()
        return admission

    def on_gone(self, path: str) -> None:
        self._note("gone", path)

    def _note(self, what: str, path: str) -> None:
        self.threads.add(threading.current_thread().name)
        if what in self.trouble:
            raise self.trouble[what]
        self.said.append(f"{what} {Path(path).name}")


def remove(path: Path) -> None:
    aside = path.with_name(f".{path.name}.removed")
    path.rename(aside)
    shutil.rmtree(aside)


def open_ready(bus: Bus, name: str = "orders/a", queue: str = "out") -> Endpoint:
    endpoint = bus.open_endpoint(name)
    publisher(endpoint.path / queue).close()
    endpoint.ready([queue])
    return endpoint


def test_what_is_admitted_says_where_to_begin_and_what_its_tag_is(hot, sidecar, folder):
    desk = Desk()
    desk.answer = lambda: Admission(start=3, tag=7)
    with publisher(folder / "q") as writer:
        for _ in range(5):
            writer.append(1, b"x")
        sidecar.discover(folder / "*", hot, name="r", admit=desk.admit, on_gone=desk.on_gone)
        eventually(lambda: 1 in hot.added)
        assert (hot.added[1].next_seq, hot.tags[1]) == (3, 7)
        hot.say_added(1, 0)
    remove(folder / "q")
    eventually(lambda: hot.removals)
    assert desk.said == ["admit q"]
    hot.say_removed()
    # Two messages were not read yet, so it is given once more, with the same tag.
    eventually(lambda: 2 in hot.added)
    assert (hot.added[2], hot.tags[2]) == (hot.added[1], 7)
    assert [message.seq for message in hot.added[2]] == [3, 4, 5]
    hot.say_added(2, 0)
    eventually(lambda: hot.removals)
    hot.say_removed()
    eventually(lambda: desk.said == ["admit q", "gone q"])
    assert all(name.startswith("chr-sidecar_") for name in desk.threads)


@pytest.mark.parametrize("tag", [-1, 1 << 32, 1.5, True])
def test_a_tag_that_does_not_fit_is_refused(tag):
    with pytest.raises(chronicle.BadArgument, match="bad tag"):
        Admission(tag=tag)


@pytest.mark.parametrize(
    "trouble", [chronicle.BadArgument("not yet known"), RuntimeError("not yet known")]
)
def test_an_admission_that_raises_is_told_and_tried_again(hot, sidecar, folder, trouble, caplog):
    desk = Desk()
    desk.trouble["admit"] = trouble
    found = sidecar.discover(folder / "*", hot, name="r", admit=desk.admit, on_gone=desk.on_gone)
    name = f"discovery {folder / '*'}"
    with publisher(folder / "q"):
        eventually(lambda: "not yet known" in sidecar.health()[name].detail)
        assert not sidecar.healthy
        assert found.opened == 0
        del desk.trouble["admit"]
        eventually(lambda: 1 in hot.added)
        hot.say_added(1, 0)
        eventually(lambda: sidecar.healthy)
    assert desk.said == ["admit q"]
    assert "not yet known" in caplog.text


def test_what_is_no_admission_is_told_and_the_one_who_gave_it_hears_of_the_end(
    hot, sidecar, folder
):
    desk = Desk()
    desk.answer = lambda: None
    sidecar.discover(folder / "*", hot, name="r", admit=desk.admit, on_gone=desk.on_gone)
    with publisher(folder / "q"):
        eventually(lambda: len(desk.said) >= 4)
    assert desk.said[:4] == ["admit q", "gone q"] * 2


def test_each_admission_has_one_end_whatever_fails_behind_it(hot, sidecar, folder):
    desk = Desk()
    sidecar.discover(folder / "*", hot, name="r", admit=desk.admit, on_gone=desk.on_gone)
    with publisher(folder / "q"):
        eventually(lambda: 1 in hot.added)
        hot.say_refused(1)
        eventually(lambda: 2 in hot.added)
        hot.say_added(2, 0)
        hot.say_failed(0, chronicle.CorruptRecord("it is damaged", position=0))
        eventually(lambda: 3 in hot.added)
        assert desk.said == ["admit q", "gone q", "admit q", "gone q", "admit q"]


def test_a_next_life_is_admitted_when_the_last_one_has_been_let_go(hot, sidecar, folder):
    desk = Desk()
    desk.trouble["gone"] = RuntimeError("not now")
    sidecar.discover(folder / "*", hot, name="r", admit=desk.admit, on_gone=desk.on_gone)
    with publisher(folder / "q"):
        eventually(lambda: 1 in hot.added)
        hot.say_added(1, 0)
    remove(folder / "q")
    with publisher(folder / "q"):
        eventually(lambda: hot.removals)
        hot.say_removed()
        name = f"discovery {folder / '*'}"
        eventually(lambda: "cannot be let go" in sidecar.health()[name].detail)
        assert desk.said == ["admit q"]
        del desk.trouble["gone"]
        eventually(lambda: 2 in hot.added)
        assert desk.said == ["admit q", "gone q", "admit q"]


def test_a_queue_that_vanishes_while_it_is_admitted_is_let_go_at_once(hot, sidecar, folder):
    desk = Desk()
    begun, may_end = threading.Event(), threading.Event()

    def slow() -> Admission:
        begun.set()
        may_end.wait()
        return Admission()

    desk.answer = slow
    found = sidecar.discover(folder / "*", hot, name="r", admit=desk.admit, on_gone=desk.on_gone)
    with publisher(folder / "q"):
        begun.wait()
    remove(folder / "q")
    eventually(lambda: not found._kept)
    may_end.set()
    eventually(lambda: desk.said == ["admit q", "gone q"])
    assert (found.opened, hot.added) == (0, {})


def test_a_queue_is_ready_when_its_endpoint_says_so_and_gone_when_its_owner_is(sidecar, bus):
    changes: list[Change] = []
    sidecar.watch(
        bus.path / "orders/*/out", changes.append, readiness=bus.readiness, interval_s=NEVER_S
    )
    path = str(bus.path / "orders/a/out")
    identities = []
    for _ in range(2):
        changes.clear()
        with bus.open_endpoint("orders/a") as endpoint:
            with publisher(endpoint.path / "out") as writer:
                identity = f"{endpoint.lease.instance}:{writer.queue_id}"
                identities.append(identity)
            endpoint.renew()
            endpoint.ready(["other"])
            endpoint.ready(["out"])
            eventually(lambda: changes[-1:] == [Ready(path, identities[-1])])
            endpoint.ready(["out", "other"])
            endpoint.renew()
        eventually(lambda: changes[-2:] == [Vanished(path, identities[-1]), Appeared(path)])
        assert changes.count(Ready(path, identity)) == changes.count(Vanished(path, identity)) == 1
    assert identities[0] != identities[1]


def test_the_messages_of_a_dead_owner_are_read_and_its_next_life_goes_on_behind_them(
    hot, sidecar, bus
):
    desk = Desk()
    found = sidecar.discover(
        bus.path / "orders/*/out",
        hot,
        name=None,
        start="latest",
        readiness=bus.readiness,
        admit=desk.admit,
        on_gone=desk.on_gone,
    )
    endpoint = open_ready(bus)
    eventually(lambda: 1 in hot.added)
    hot.say_added(1, 0)
    with publisher(endpoint.path / "out") as writer:
        writer.append(1, b"the last words")
    endpoint.close()
    eventually(lambda: hot.removals)
    hot.say_removed()
    eventually(lambda: 2 in hot.added)
    assert [message.seq for message in hot.added[2]] == [1]
    hot.say_added(2, 0)
    eventually(lambda: hot.removals)
    assert desk.said == ["admit out"]
    hot.say_removed()
    eventually(lambda: desk.said == ["admit out", "gone out"])
    # Not attached to anybody, and not given up.
    eventually(lambda: not found._tasks)
    with publisher(endpoint.path / "out") as writer:
        writer.append(1, b"said before anybody could hear it")
        with open_ready_again(bus):
            eventually(lambda: 3 in hot.added)
            assert hot.added[3] is hot.added[1]
            assert found.opened == 1
            assert [message.seq for message in hot.added[3]] == [2]
    assert sidecar.stop().clean
    assert hot.added[1].closed


def open_ready_again(bus: Bus) -> Endpoint:
    endpoint = bus.open_endpoint("orders/a")
    endpoint.ready(["out"])
    return endpoint


def test_a_next_life_may_be_read_from_elsewhere(hot, sidecar, bus):
    desk = Desk()
    sidecar.discover(
        bus.path / "orders/*/out", hot, name="r", readiness=bus.readiness, admit=desk.admit
    )
    with open_ready(bus) as endpoint:
        with publisher(endpoint.path / "out") as writer:
            for _ in range(3):
                writer.append(1, b"x")
        eventually(lambda: 1 in hot.added)
        assert len(list(hot.added[1])) == 3
        hot.say_added(1, 0)
    eventually(lambda: hot.removals)
    hot.say_removed()
    desk.answer = lambda: Admission(start=2)
    with open_ready_again(bus):
        eventually(lambda: 2 in hot.added)
        assert hot.added[2].next_seq == 2


def test_a_reader_that_waits_for_a_next_life_is_retired_when_the_queue_goes_or_is_another(
    hot, sidecar, bus
):
    sidecar.discover(bus.path / "orders/*/out", hot, name="r", readiness=bus.readiness)
    (care,) = sidecar.cares
    for life in (1, 2, 3):
        with open_ready(bus) as endpoint:
            eventually(lambda: max(hot.added, default=0) == life)  # noqa: B023  (called here)
            hot.say_added(life, 0)
        eventually(lambda: hot.removals)
        hot.say_removed()
        eventually(lambda: not sidecar.cares[0].thread.removals)
        if life == 1:
            remove(endpoint.path / "out")
            eventually(lambda: care.retired == [hot.added[1]])
        elif life == 2:
            # At one blow, so that the discovery sees another queue and never none.
            publisher(endpoint.path / ".new").close()
            (endpoint.path / "out").rename(endpoint.path / ".old")
            (endpoint.path / ".new").rename(endpoint.path / "out")
            eventually(lambda: care.retired == [hot.added[1], hot.added[2]])
    with pytest.raises(chronicle.ReaderActive):
        subscriber(endpoint.path / "out", "r")


def test_what_is_refused_is_told_and_does_not_hide_the_others(sidecar, bus, caplog):
    changes: list[Change] = []
    discovery = sidecar.watch(
        bus.path / "orders/*/out", changes.append, readiness=bus.readiness, interval_s=0.01
    )
    with open_ready(bus), open_ready(bus, "orders/b") as bad:
        eventually(lambda: len(changes) == 4)
        (bad.path / "READY").write_text("garbage")
        path = str(bad.path / "out")
        eventually(lambda: path in discovery.refused)
        (name,) = sidecar.health()
        eventually(lambda: "1 refused" in sidecar.health()[name].detail)
        looks = discovery.looks
        eventually(lambda: discovery.looks > looks + 3)
        assert isinstance(changes[-2], Vanished)
        assert changes[-2].path == path
        assert caplog.text.count("is not a marker") == 1
        bad.ready(["out"])
        eventually(lambda: changes[-1].path == path and isinstance(changes[-1], Ready))
        assert discovery.refused == {}


def test_a_path_that_is_not_of_this_bus_is_refused(bus):
    for path in (bus.path / "out", "/elsewhere/a/out", f"{bus.path}/../bus/a/out"):
        with pytest.raises(chronicle.BadArgument):
            bus.readiness(str(path))
    assert bus.readiness(str(bus.path / "a/out")) is None


def test_a_life_that_ends_before_it_was_read_is_read_all_the_same(hot, sidecar, bus):
    desk = Desk()
    desk.trouble["gone"] = RuntimeError("not now")
    found = sidecar.discover(
        bus.path / "orders/*/out",
        hot,
        name="r",
        readiness=bus.readiness,
        admit=desk.admit,
        on_gone=desk.on_gone,
    )
    with open_ready(bus):
        eventually(lambda: 1 in hot.added)
        hot.say_added(1, 0)
    eventually(lambda: hot.removals)
    hot.say_removed()
    name = f"discovery {bus.path}/orders/*/out"
    eventually(lambda: "cannot be let go" in sidecar.health()[name].detail)
    # The next life comes, speaks, and dies while the last one is still being let go.
    with open_ready_again(bus) as endpoint:
        with publisher(endpoint.path / "out") as writer:
            writer.append(1, b"the only words")
        eventually(lambda: found._kept)
    eventually(lambda: not found._kept)
    del desk.trouble["gone"]
    eventually(lambda: 2 in hot.added)
    hot.say_added(2, 1)
    assert [message.seq for message in hot.added[2]] == [1]
    eventually(lambda: hot.removals)
    hot.say_removed()
    eventually(lambda: desk.said == ["admit out", "gone out"] * 2)


# --- What does not belong there ---


@pytest.fixture
def seen(sidecar, bus):
    """What discovery sees of ``orders/a/out``, and why not, at an interval of nothing."""
    return sidecar.watch(
        bus.path / "orders/*/out", lambda _change: None, readiness=bus.readiness, interval_s=0.002
    )


def is_ready(discovery: Discovery) -> bool:
    return any(found.identity for found in discovery.ledger.known.values())


@pytest.mark.parametrize("level", [".", "orders", "orders/a", "orders/a/out"])
def test_a_link_at_any_level_is_not_discovered(bus, seen, folder, level):
    with open_ready(bus):
        eventually(lambda: is_ready(seen))
        place = bus.path / level
        aside = folder / "elsewhere"
        place.rename(aside)
        place.symlink_to(aside)
        if level == ".":
            # The bus itself may be reached through a link.
            eventually(lambda: seen.looks > 50)
            assert is_ready(seen)
        else:
            eventually(lambda: not is_ready(seen))
            with pytest.raises(chronicle.BusRefused, match="symbolic link"):
                bus.readiness(str(bus.path / "orders/a/out"))
        place.unlink()
        aside.rename(place)
        eventually(lambda: is_ready(seen))


@pytest.mark.parametrize("level", [".", "orders", "orders/a", "orders/a/out", "orders/a/READY"])
def test_what_belongs_to_a_stranger_at_any_level_is_refused_and_told(bus, seen, level):
    path = str(bus.path / "orders/a/out")
    with open_ready(bus):
        eventually(lambda: is_ready(seen))
        os.chown(bus.path / level, 12_345, -1)
        eventually(lambda: "uid=12345" in seen.refused.get(path, ""))
        assert not is_ready(seen)
        os.chown(bus.path / level, 0, -1)
        eventually(lambda: is_ready(seen) and not seen.refused)


@pytest.mark.parametrize("level", [".", "orders", "orders/a", "orders/a/out"])
def test_what_others_may_write_into_at_any_level_is_refused_and_told(bus, seen, level):
    path = str(bus.path / "orders/a/out")
    with open_ready(bus):
        eventually(lambda: is_ready(seen))
        (bus.path / level).chmod(0o777)
        eventually(lambda: "others may write" in seen.refused.get(path, ""))
        (bus.path / level).chmod(0o700)
        eventually(lambda: is_ready(seen) and not seen.refused)


@pytest.mark.parametrize("marker", ["LOCK", "LEASE", "READY"])
def test_a_link_a_pipe_or_garbage_as_a_marker_is_refused_and_told(bus, seen, folder, marker):
    path = str(bus.path / "orders/a/out")
    target = folder / "target"
    with open_ready(bus) as endpoint:
        eventually(lambda: is_ready(seen))
        place = endpoint.path / marker
        kept = place.rename(folder / "kept")
        place.symlink_to(target)
        eventually(lambda: "cannot be opened" in seen.refused.get(path, ""))
        place.unlink()
        os.mkfifo(place)
        # A pipe in place of LOCK can be asked about, and nobody has locked it.
        eventually(lambda: not is_ready(seen))
        place.unlink()
        if marker != "LOCK":
            place.write_text("garbage")
            eventually(lambda: "is not a marker" in seen.refused.get(path, ""))
            place.unlink()
        kept.rename(place)
        eventually(lambda: is_ready(seen))
    assert not target.exists()


def test_ready_of_another_instance_is_not_discovered(bus, folder):
    with open_ready(bus) as endpoint:
        path = str(endpoint.path / "out")
        assert bus.readiness(path) is not None
        directory = os.open(endpoint.path, os.O_RDONLY)
        write_marker(directory, ReadyMarker("1" * 32, ("out",)))
        os.close(directory)
        assert bus.readiness(path) is None
