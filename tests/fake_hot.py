"""A hot thread whose answers come when a test lets them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import chronicle
from chronicle.hot.acks import ReaderAdded, ReaderRemoved, Refused, SourceFailed


class FakeHot:
    """Takes commands, and answers when it is told to."""

    name = "fake"
    core = None

    def __init__(self) -> None:
        self.failure: chronicle.HotThreadFailed | None = None
        self.added: dict[int, chronicle.QueueReader] = {}
        self.sources: dict[int, chronicle.QueueReader] = {}
        self.removals: list[tuple[int, int]] = []
        self.events: list[Any] = []
        self.full = False
        self.ended = False
        self.stopped = False
        self.tickets = 0
        self.removal_tickets = 1_000_000
        self.turns = 0
        self.tags: dict[int, int] = {}
        self.loop_gap = self.handler_time = None
        self.counters: dict[str, int] = {}
        self.guard_counts: dict[tuple[str, str], int] = {}
        self.outputs: dict[str, chronicle.QueueWriter] = {}
        self.packets: tuple[chronicle.PacketRing, ...] = ()

    @property
    def status(self) -> Any:
        state = "stopped" if self.stopped else "running"
        return SimpleNamespace(state=state, messages=0, turns=self.turns)

    def start(self) -> None:
        raise AssertionError("it was not new")

    def release_retired(self) -> int:
        return 0

    def nudge(self) -> None:
        self.turns += 2  # There is nothing to wait for.

    def stop(self, timeout: float | None = None) -> None:
        self.stopped = True

    def poll(self) -> list[Any]:
        events, self.events = self.events, []
        return events

    def add_reader(
        self, reader: chronicle.QueueReader, *, tag: int = 0, timeout: float | None = None
    ) -> int:
        if self.ended:
            raise chronicle.Closed("it has ended")
        if self.full:
            raise chronicle.ChannelFull("no room", capacity=1)
        self.tickets += 1
        self.added[self.tickets] = reader
        self.tags[self.tickets] = tag
        return self.tickets

    def remove_reader(self, source: int, *, timeout: float | None = None) -> int:
        if self.full:
            raise chronicle.ChannelFull("no room", capacity=1)
        # Numbers of their own, so that readers are numbered as they come.
        self.removal_tickets += 1
        self.removals.append((self.removal_tickets, source))
        return self.removal_tickets

    # --- What the test lets it say ---

    def say_added(self, ticket: int, source: int) -> None:
        self.sources[source] = self.added[ticket]
        self.events.append(ReaderAdded(ticket, 0, 0, source))

    def say_removed(self) -> None:
        ticket, source = self.removals.pop(0)
        self.events.append(ReaderRemoved(ticket, 0, 0, source, self.sources.pop(source)))

    def say_failed(self, source: int, error: Exception) -> None:
        self.events.append(SourceFailed(0, source, self.sources.pop(source), error))

    def say_refused(self, ticket: int) -> None:
        self.events.append(Refused(ticket, 0, 0, "no room for another source", self.added[ticket]))
