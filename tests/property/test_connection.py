"""A connection against a naive oracle: each change and each message comes once."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import chronicle
import hypothesis.strategies as st
from chronicle.bus import Connected, Connection, Lost, Missing, Reconnected
from chronicle.bus.connection import Observer, Sight
from hypothesis import given, settings

from tests.queue_support import publisher


class World:
    """One queue and its owner, and what is true of them."""

    def __init__(self, root: Path) -> None:
        self.path = str(root / "q")
        self.writer: chronicle.QueueWriter | None = None
        self.owner = 0
        self.works = True
        #: Payloads published, in order.
        self.said: list[int] = []

    def look(self) -> Sight:
        if self.writer is None:
            return Sight("", "lock free")
        if not self.works:
            return Sight("", "heartbeat stale")
        queue_id = self.writer.queue_id
        return Sight(f"{self.owner}:{queue_id}", "", queue_id, self.owner)

    def start(self) -> None:
        if self.writer is None:
            self.owner += 1
            self.works = True
            self.writer = publisher(Path(self.path))

    def end(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def restart(self) -> None:
        self.end()
        self.start()

    def stall(self) -> None:
        self.works = False

    def go_on(self) -> None:
        self.works = True

    def say(self) -> None:
        if self.writer is not None:
            self.said.append(len(self.said))
            self.writer.append(1, self.said[-1].to_bytes(8, "little"))

    def replace(self) -> None:
        """Another queue, by another owner. Only with nothing unread, which nobody could get."""
        self.end()
        shutil.rmtree(self.path, ignore_errors=True)
        self.start()


STEPS = st.lists(
    st.sampled_from(
        ["start", "end", "restart", "stall", "go_on", "say", "say", "replace", "take", "take_one"]
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=100, deadline=None)
def test_everything_comes_once_in_an_order_that_makes_sense(steps):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        world = World(Path(folder))
        connection = Connection(world, name=None, interval_s=1e-9)
        items: list[Any] = []
        for step in [*steps, "take"]:
            if step == "take":
                items += connection
            elif step == "take_one":
                item = connection.next()
                items += [] if item is None else [item]
            else:
                if step == "replace":
                    # What is read of a queue that is gone depends on what is mapped.
                    items += connection
                    world.works = True
                    items += connection
                getattr(world, step)()
        # An end that nobody saw is seen now, and everything that can be read is read.
        world.start()
        world.works = True
        items += connection
        connection.close()
        world.end()
    check_order(items)
    read = [
        int.from_bytes(item.payload, "little")
        for item in items
        if isinstance(item, chronicle.Message)
    ]
    assert read == world.said


def check_order(items: list[Any]) -> None:
    """`Connected` first and once; then losses and returns in turns; no message while lost."""
    state = "waiting"
    for item in items:
        match item:
            case Connected():
                assert state == "waiting"
                state = "connected"
            case Lost():
                assert state == "connected"
                state = "lost"
            case Reconnected(missing=missing):
                assert (state, missing) == ("lost", None)
                state = "connected"
            case Missing():
                raise AssertionError("nothing was deleted")
            case _:
                assert state == "connected"
    assert state == "connected"


class Given:
    """A source that shows what it is told to."""

    path = "/q"

    def __init__(self, sights: list[Sight]) -> None:
        self.sights = iter(sights)

    def look(self) -> Sight:
        return next(self.sights)


SIGHTS = st.lists(
    st.sampled_from(["", "1:a", "1:b", "2:a", "2:b"]).map(
        lambda life: Sight(life, "" if life else "gone", life[2:], int(life[:1] or 0))
    ),
    max_size=20,
)


@given(SIGHTS)
def test_an_observer_tells_what_a_list_of_sights_says(sights):
    observer = Observer(Given(sights))
    found = [observer.poll() for _ in sights]
    # The oracle: for each look, what differs from the last life that was seen, in full.
    last, is_there = None, False
    for sight, events in zip(sights, found, strict=True):
        expected: list[Any] = []
        if is_there and (last is None or sight.life != last.life):
            expected.append(Lost("/q", sight.reason or "another life"))
            is_there = False
        if sight.life and not is_there:
            if last is None:
                expected.append(Connected("/q", sight.epoch))
            else:
                changed = (sight.life != last.life, sight.queue_id != last.queue_id)
                expected.append(Reconnected("/q", sight.epoch, *changed, None))
            last, is_there = sight, True
        assert events == expected
