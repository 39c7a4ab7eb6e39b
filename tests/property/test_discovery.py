"""Discovery against a naive oracle, on real directories: each change exactly once."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from chronicle.sidecar.discovery import Appeared, Change, Discovery, Ledger, Ready, Vanished
from chronicle.sidecar.scan import Found, Pattern
from hypothesis import given, settings

from tests.sidecar_support import what_is_there

VENUES = ("a", "b")
ENDS = ("in", "out")


class World:
    """Directories that come and go, and a list of what is true of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lives = 0
        #: By path: number of this life, and identity once it is ready.
        self.truth: dict[str, tuple[int, str | None]] = {}

    def path(self, venue: str, end: str) -> Path:
        return self.root / venue / end

    def create(self, venue: str, end: str) -> None:
        path = self.path(venue, end)
        if not path.exists():
            path.mkdir(parents=True)
            self.lives += 1
            if end == "out":
                self.truth[str(path)] = (self.lives, None)

    def ready(self, venue: str, end: str) -> None:
        path = self.path(venue, end)
        if path.exists() and not (path / "control").exists():
            identity = os.urandom(16)
            page = b"CHRNCTL1" + struct.pack("<II", 1, 16) + identity + bytes(96) + b"\1"
            (path / "control.tmp").write_bytes(page.ljust(4096, b"\0"))
            (path / "control.tmp").rename(path / "control")
            if end == "out":
                self.truth[str(path)] = (self.truth[str(path)][0], identity.hex())

    def spoil(self, venue: str, end: str) -> None:
        """Put something there that is no queue, or will be one when its writer has come."""
        path = self.path(venue, end)
        if path.exists() and not (path / "control").exists():
            (path / "control.tmp").write_bytes(b"something else")
            page = b"CHRNCTL1" + struct.pack("<II", 1, 16) + bytes(4080)
            (path / "other").write_bytes(page)

    def remove(self, venue: str, end: str) -> None:
        shutil.rmtree(self.path(venue, end), ignore_errors=True)
        self.truth.pop(str(self.path(venue, end)), None)

    def remove_venue(self, venue: str, end: str) -> None:
        shutil.rmtree(self.root / venue, ignore_errors=True)
        self.truth.pop(str(self.path(venue, "out")), None)

    def swap(self, venue: str, end: str) -> None:
        """Replace a queue by another one in one step, as a rename does."""
        self.remove(venue, end)
        self.create(venue, end)
        self.ready(venue, end)


def expected_changes(
    before: dict[str, tuple[int, str | None]], now: dict[str, tuple[int, str | None]]
) -> list[Change]:
    """The oracle: life by life, written down in full."""
    gone: list[Change] = []
    come: list[Change] = []
    for path in sorted({*before, *now}):
        old_life, old_identity = before.get(path, (0, None))
        life, identity = now.get(path, (0, None))
        if life == old_life:
            if identity is not None and old_identity is None:
                come.append(Ready(path, identity))
            continue
        if old_life:
            gone.append(Vanished(path, old_identity))
        if life:
            come.append(Appeared(path))
            if identity is not None:
                come.append(Ready(path, identity))
    return gone + come


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["create", "ready", "spoil", "remove", "remove_venue", "swap", "look"]),
        st.sampled_from(VENUES),
        st.sampled_from(ENDS),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=200, deadline=None)
def test_each_change_is_told_once_whatever_happens_between_two_looks(steps):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        world = World(Path(folder))
        told: list[Change] = []
        discovery = Discovery(Pattern(f"{folder}/*/out"), told.append)

        async def go() -> None:
            seen: dict[str, tuple[int, str | None]] = {}
            for step, venue, end in [*steps, ("look", "", ""), ("look", "", "")]:
                if step != "look":
                    getattr(world, step)(venue, end)
                    continue
                await discovery.look()
                assert told == expected_changes(seen, world.truth)
                told.clear()
                seen = dict(world.truth)

        asyncio.run(go())


FOUND = st.builds(
    Found, st.tuples(st.just(1), st.integers(1, 3)), st.none() | st.sampled_from("xyz")
)


@given(st.lists(st.dictionaries(st.sampled_from(["/a", "/b"]), FOUND), max_size=20))
def test_what_is_told_of_a_path_always_makes_sense_in_order(looks):
    ledger = Ledger()
    told: list[Change] = []
    for look in [*looks, {}]:
        told += ledger.update(look)
        assert what_is_there(told) == {path: found.identity for path, found in look.items()}
