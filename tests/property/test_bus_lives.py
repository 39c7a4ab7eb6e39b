"""Lives on a bus against naive oracles: each is told once, admitted once, and read completely."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Imported here, not by the first watch: looking for its C library it runs a program, and the child
# has this process's locks until then, also of an owner that was just "killed".
import asyncinotify  # noqa: F401
import chronicle
import hypothesis.strategies as st
from chronicle.bus import Bus, Endpoint
from chronicle.hot.acks import ReaderAdded, ReaderRemoved, Refused, SourceFailed
from chronicle.sidecar import Admission, Backoff
from chronicle.sidecar.discovery import Appeared, Change, Discovery, Ready, Vanished
from chronicle.sidecar.scan import Pattern
from hypothesis import given, settings

from tests.fake_hot import FakeHot
from tests.queue_support import publisher
from tests.sidecar_support import eventually, what_is_there

NAMES = ("a", "b")


@dataclass
class Place:
    """What is true of one endpoint and its queue ``out``."""

    owner: Endpoint | None = None
    has_said_ready: bool = False
    is_garbage: bool = False
    #: Number of the queue's directory, and the queue's id once a writer has opened it.
    directory: int = 0
    queue_id: str | None = None

    @property
    def identity(self) -> str | None:
        if self.owner is None or not self.has_said_ready or self.queue_id is None:
            return None
        return None if self.is_garbage else f"{self.owner.lease.instance}:{self.queue_id}"


class World:
    """A bus in which owners come, say that they are ready, die, and come back."""

    def __init__(self, root: Path) -> None:
        self.bus = Bus(root / "bus")
        self.places = {name: Place() for name in NAMES}
        self.directories = 0
        #: How often each identity has become ready.
        self.readied: Counter[str] = Counter()

    def path(self, name: str) -> Path:
        return self.bus.path / "orders" / name / "out"

    def _note(self, name: str) -> None:
        identity = self.places[name].identity
        if identity is not None:
            self.readied[identity] += 1

    def open(self, name: str) -> None:
        place = self.places[name]
        if place.owner is None:
            with contextlib.suppress(chronicle.BusRefused):
                place.owner = self.bus.open_endpoint(f"orders/{name}")
                place.has_said_ready = place.is_garbage = False

    def ready(self, name: str) -> None:
        place = self.places[name]
        if place.owner is not None:
            place.owner.ready(["out"])
            place.has_said_ready, place.is_garbage = True, False
            self._note(name)

    def unready(self, name: str) -> None:
        place = self.places[name]
        if place.owner is not None:
            place.owner.ready([])
            place.has_said_ready = place.is_garbage = False

    def renew(self, name: str) -> None:
        owner = self.places[name].owner
        if owner is not None:
            owner.renew()

    def spoil(self, name: str) -> None:
        place = self.places[name]
        if place.owner is not None:
            # As whoever replaces a file does: not the bytes of the one that is being read.
            aside = place.owner.path / "garbage"
            aside.write_text("garbage")
            aside.rename(place.owner.path / "READY")
            place.is_garbage = True

    def close(self, name: str) -> None:
        place = self.places[name]
        if place.owner is not None:
            place.owner.close()
            place.owner = None

    def kill(self, name: str) -> None:
        """Do what the kernel does at the end of a process: nothing but closing."""
        place = self.places[name]
        if place.owner is not None:
            place.owner._release()
            place.owner = None

    def restart(self, name: str) -> None:
        self.kill(name)
        self.open(name)
        self.ready(name)

    def make(self, name: str) -> None:
        place = self.places[name]
        if self.path(name).parent.is_dir() and not self.path(name).exists():
            new = self.path(name).with_name(".new")
            with publisher(new) as writer:
                place.queue_id = writer.queue_id
            self.directories += 1
            place.directory = self.directories
            new.rename(self.path(name))
            self._note(name)

    def remove(self, name: str) -> None:
        if self.path(name).exists():
            aside = self.path(name).with_name(".old")
            self.path(name).rename(aside)
            shutil.rmtree(aside)
        self.places[name].directory, self.places[name].queue_id = 0, None

    def replace(self, name: str) -> None:
        self.remove(name)
        self.make(name)

    def remove_all(self, name: str) -> None:
        """Remove the endpoint's directory under its owner."""
        self.kill(name)
        if self.path(name).parent.exists():
            aside = self.path(name).parent.with_name(f".{name}")
            self.path(name).parent.rename(aside)
            shutil.rmtree(aside)
        self.places[name] = Place()

    def truth(self) -> dict[str, tuple[int, str | None]]:
        return {
            str(self.path(name)): (place.directory, place.identity)
            for name, place in self.places.items()
            if place.directory
        }

    def end(self) -> None:
        for name in NAMES:
            self.kill(name)


ACTIONS = [
    "open",
    "ready",
    "unready",
    "renew",
    "spoil",
    "close",
    "kill",
    "restart",
    "make",
    "remove",
    "replace",
    "remove_all",
]
STEPS = st.lists(
    st.tuples(
        st.sampled_from([*ACTIONS, "open", "ready", "make", "kill", *["look"] * 6]),
        st.sampled_from(NAMES),
    ),
    min_size=8,
    max_size=50,
)


#: So that there is something that can end.
BEGIN = [(step, name) for step in ("restart", "make") for name in NAMES]


def expected_changes(
    before: dict[str, tuple[int, str | None]], now: dict[str, tuple[int, str | None]]
) -> list[Change]:
    """The oracle: of each path, the old life and the new one, written down in full."""
    gone: list[Change] = []
    come: list[Change] = []
    for path in sorted({*before, *now}):
        old, new = before.get(path), now.get(path)
        has_become_ready = old is not None and new is not None and old == (new[0], None)
        if old == new:
            continue
        if old is not None and not has_become_ready:
            gone.append(Vanished(path, old[1]))
        if new is not None and not has_become_ready:
            come.append(Appeared(path))
        if new is not None and new[1] is not None:
            come.append(Ready(path, new[1]))
    return gone + come


@given(STEPS)
@settings(max_examples=100, deadline=None)
def test_each_life_of_an_owner_is_told_once_whatever_happens_between_two_looks(steps):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        world = World(Path(folder))
        told: list[Change] = []
        pattern = Pattern(world.bus.path / "orders/*/out")
        discovery = Discovery(pattern, told.append, readiness=world.bus.readiness)

        async def go() -> None:
            seen: dict[str, tuple[int, str | None]] = {}
            for step, name in [*BEGIN, *steps, ("look", ""), ("look", "")]:
                if step != "look":
                    getattr(world, step)(name)
                    continue
                await discovery.look()
                assert told == expected_changes(seen, world.truth())
                told.clear()
                seen = world.truth()

        asyncio.run(go())
        world.end()


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.sampled_from(NAMES)), max_size=60))
@settings(max_examples=25, deadline=None)
def test_what_happens_while_discovery_looks_is_told_at_most_once_and_the_end_is_true(steps):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        world = World(Path(folder))
        changes: list[Change] = []
        with chronicle.Sidecar() as sidecar:
            # An interval that no test waits for: what is seen is seen by the kernel's events.
            sidecar.watch(
                world.bus.path / "orders/*/out",
                changes.append,
                readiness=world.bus.readiness,
                interval_s=1e6,
            )
            for step, name in [*BEGIN, *steps]:
                getattr(world, step)(name)
            wanted = {path: identity for path, (_, identity) in world.truth().items()}
            eventually(lambda: what_is_there(list(changes)) == wanted)
        world.end()
    readied = Counter(change.identity for change in changes if isinstance(change, Ready))
    assert all(count <= world.readied[identity] for identity, count in readied.items())


class BusyHot(FakeHot):
    """Answers by a script, and reads a few messages in each turn."""

    def __init__(self, script: list[str]) -> None:
        super().__init__()
        self.script = script
        self.lock = threading.Lock()
        self.read: dict[str, list[int]] = {}
        self.tagged: dict[str, set[int]] = {}
        self.asked: list[tuple[int, Any]] = []
        self.numbers = 0

    def _next(self) -> str:
        return self.script.pop(0) if self.script else "well"

    def add_reader(
        self, reader: chronicle.QueueReader, *, tag: int = 0, timeout: float | None = None
    ) -> int:
        if self._next() == "full":
            raise chronicle.ChannelFull("no room", capacity=1)
        self.tickets += 1
        self.tagged.setdefault(str(reader.path), set()).add(tag)
        self.asked.append((self.tickets, reader))
        return self.tickets

    def remove_reader(self, source: int, *, timeout: float | None = None) -> int:
        self.tickets += 1
        self.asked.append((self.tickets, source))
        return self.tickets

    def poll(self) -> list[Any]:
        """A turn: all commands, then at most two messages of each source."""
        events: list[Any] = []
        self.turns += 1
        asked, self.asked = self.asked, []
        for ticket, what in asked:
            if isinstance(what, int):
                if what in self.sources:
                    events.append(ReaderRemoved(ticket, 0, 0, what, self.sources.pop(what)))
            elif self._next() == "refuse":
                events.append(Refused(ticket, 0, 0, "no room for another source", what))
            else:
                # No two at once of one queue, or a message would be read twice.
                assert all(reader.path != what.path for reader in self.sources.values())
                self.numbers += 1
                self.sources[self.numbers] = what
                events.append(ReaderAdded(ticket, 0, 0, self.numbers))
        for number, reader in list(self.sources.items()):
            if self._next() == "fail":
                error = chronicle.CorruptRecord("it is damaged", position=0)
                events.append(SourceFailed(0, number, self.sources.pop(number), error))
                continue
            for _ in range(2):
                if (message := reader.next()) is not None:
                    seen = int.from_bytes(message.payload, "little")
                    self.read.setdefault(str(reader.path), []).append(seen)
                    reader.commit()
        return events


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["say", "say", "kill", "restart", "pause"]), st.sampled_from(NAMES)
        ),
        max_size=25,
    ),
    st.lists(st.sampled_from(["well", "well", "full", "refuse", "fail"]), max_size=30),
)
@settings(max_examples=25, deadline=None)
def test_every_message_of_every_life_is_read_once_whatever_the_hot_thread_answers(steps, script):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        world = World(Path(folder))
        hot = BusyHot(list(script))
        said: dict[str, list[int]] = {str(world.path(name)): [] for name in NAMES}
        asked: dict[str, list[str]] = {path: [] for path in said}
        numbers = {path: number for number, path in enumerate(said, 1)}

        def admit(path: str) -> Admission:
            asked[path].append("admit")
            return Admission(tag=numbers[path])

        backoff = Backoff(first_s=0.0005, max_s=0.002)
        with chronicle.Sidecar(backoff=backoff) as sidecar:
            found = sidecar.discover(
                world.bus.path / "orders/*/out",
                hot,
                name="r",
                readiness=world.bus.readiness,
                admit=admit,
                on_gone=lambda path: asked[path].append("gone"),
                interval_s=0.01,
            )
            for name in NAMES:
                world.restart(name)
                world.make(name)
            for step, name in steps:
                path = str(world.path(name))
                if step == "pause":
                    time.sleep(0.002)
                elif step == "say":
                    with publisher(Path(path)) as writer:
                        for _ in range(5):
                            said[path].append(len(said[path]))
                            writer.append(1, said[path][-1].to_bytes(8, "little"))
                else:
                    getattr(world, step)(name)
            for name in NAMES:
                world.kill(name)
            # Dead, and read to the end: what was published is not lost with its owner, if it was
            # ever seen; a last life takes what is left.
            for name in NAMES:
                world.restart(name)
            eventually(lambda: all(hot.read.get(path, []) == said[path] for path in said))
            eventually(lambda: len(found.attached) == len(NAMES))
            for name in NAMES:
                world.close(name)
            # Several lives may stand in line: all of them have been let go.
            eventually(lambda: not found._kept and not found._tasks)
            assert not hot.sources
        assert hot.read == {path: messages for path, messages in said.items() if messages}
        for path, calls in asked.items():
            assert calls == ["admit", "gone"] * (len(calls) // 2)
            assert hot.tagged[path] == {numbers[path]}
        world.end()
