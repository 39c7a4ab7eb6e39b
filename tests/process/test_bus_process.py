"""The bus with real processes that are killed, stopped, and started again."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle.bus import Bus, Connected, Connection, Event, Lost, Reconnected
from chronicle.sidecar import Admission
from chronicle.sidecar.discovery import Appeared, Change, Discovery, Ready, Vanished

from tests.queue_support import Child
from tests.sidecar_support import eventually

#: An owner that publishes when it is told to, and renews its lease meanwhile.
OWNER = """
from chronicle.bus import Bus
bus = Bus(args[0])
endpoint = bus.open_endpoint(args[1], valid_s=0.2)
writer = publisher(endpoint.path / "out")
with chronicle.Sidecar() as sidecar:
    sidecar.serve_endpoint(endpoint)
    endpoint.ready(["out"])
    say(endpoint.lease.epoch)
    while (line := hear()):
        for _ in range(int(line)):
            writer.append(1, b"x")
        say(writer.next_seq)
"""


@pytest.fixture
def bus(folder):
    return Bus(folder / "bus")


def owner(bus: Bus, name: str = "orders/a") -> Child:
    child = Child(OWNER, bus.path, name)
    child.hear()
    return child


def collect(connection: Connection, until: type[Event], into: list[Any]) -> None:
    """Take what comes, up to an event of a kind."""
    while True:
        connection.wait()
        for item in connection:
            into.append(item if isinstance(item, Event) else item.seq)
            if isinstance(item, until):
                return


def test_a_connection_notices_kill_and_stop_and_loses_no_message(bus):
    items: list[Any] = []
    with bus.connect("orders/a", "out", name="r", interval_s=0.005) as source:
        for life in (1, 2, 3):
            with owner(bus) as child:
                collect(source, Connected if life == 1 else Reconnected, items)
                child.tell("10")
                child.hear()
                child.signal(signal.SIGSTOP)
                collect(source, Lost, items)
                assert items[-1].reason == "heartbeat stale"
                child.signal(signal.SIGCONT)
                collect(source, Reconnected, items)
                assert not items[-1].epoch_changed
                child.tell("10")
                child.hear()
                child.kill()
                collect(source, Lost, items)
                assert items[-1].reason == "lock free"
    assert [item for item in items if isinstance(item, int)] == list(range(1, 61))
    path = source.path
    back, stale, free = "back", Lost(path, "heartbeat stale"), Lost(path, "lock free")
    events = [item for item in items if isinstance(item, Event)]
    shape = [back if isinstance(event, Connected | Reconnected) else event for event in events]
    assert shape == [back, stale, back, free] * 3


def wait_for_looks(discovery: Discovery, count: int) -> None:
    before = discovery.looks
    eventually(lambda: discovery.looks >= before + count)


def test_each_life_of_an_owner_that_is_killed_is_told_once(bus):
    changes: list[Change] = []
    identities = []
    with chronicle.Sidecar() as sidecar:
        discovery = sidecar.watch(
            bus.path / "orders/*/out", changes.append, readiness=bus.readiness, interval_s=0.05
        )
        for _ in range(5):
            with owner(bus) as child:
                eventually(lambda: changes and isinstance(changes[-1], Ready))
                assert isinstance(changes[-1], Ready)
                identities.append(changes[-1].identity)
                # Renewals, and a look at an interval, are no changes.
                wait_for_looks(discovery, 2)
                child.kill()
                eventually(lambda: isinstance(changes[-2], Vanished))
    path = str(bus.path / "orders/a/out")
    assert len(set(identities)) == 5
    # The directory of the queue stays.
    told = [change for change in changes if not isinstance(change, Appeared)]
    expected: list[Change] = []
    for identity in identities:
        expected += [Ready(path, identity), Vanished(path, identity)]
    assert told == expected


def test_a_killed_owner_is_noticed_by_its_lock_without_the_interval(bus):
    changes: list[Change] = []
    with chronicle.Sidecar() as sidecar:
        sidecar.watch(
            bus.path / "orders/*/out", changes.append, readiness=bus.readiness, interval_s=1e6
        )
        with owner(bus) as child:
            eventually(lambda: changes and isinstance(changes[-1], Ready))
            child.kill()
            eventually(lambda: isinstance(changes[-2], Vanished))


def test_owners_that_are_killed_again_and_again_are_read_completely_by_a_hot_thread(bus):
    seen: list[int] = []

    def take(message: Any) -> None:
        seen.append(message.seq)

    lives: list[str] = []

    def admit(path: str) -> Admission:
        lives.append(f"admit {Path(path).parent.name}")
        return Admission()

    with chronicle.Sidecar() as sidecar:
        hot = chronicle.HotThread(take, name="reader", wait="sleep", guard="off")
        sidecar.discover(
            bus.path / "orders/*/out",
            hot,
            name=None,
            readiness=bus.readiness,
            admit=admit,
            on_gone=lambda path: lives.append(f"gone {Path(path).parent.name}"),
        )
        for life in range(1, 5):
            with owner(bus) as child:
                # A life that nobody has seen is no life; its messages would be the next one's.
                eventually(lambda: lives.count("admit a") == life)  # noqa: B023  (called here)
                child.tell("25")
                child.hear()
                child.kill()
            eventually(lambda: lives.count("gone a") == life)  # noqa: B023  (called here)
            assert len(seen) == 25 * life
    assert seen == list(range(1, 101))
    assert lives == ["admit a", "gone a"] * 4
