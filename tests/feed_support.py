"""What the tests of the feed handler share: streams with restarts, lines that lose, an oracle."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from chronicle.feeds.iex import TABLE
from chronicle.feeds.stream import JOINED, RESTARTED, FeedGap, FeedMark

from tests.feeds_support import iex, quote

SECOND_NS = 1_000_000_000
SILENCE_NS = SECOND_NS // 10
"""Runs are at least so far apart."""


class Sent(NamedTuple):
    """What a sender has sent.

    Attributes
    ----------
    packets
        In order.
    runs
        The wire messages of each run.
    """

    packets: list[bytes]
    runs: list[list[bytes]]


def stream(rng: random.Random, *, runs: int, packets: int, shortest: int = 1) -> Sent:
    """Make a stream: so many runs of up to so many packets, heartbeats among them."""
    sent = Sent([], [])
    now_ns, session, number = SECOND_NS, 7, 0
    for _ in range(runs):
        if sent.runs and rng.random() < 0.3:
            session += 1
        messages: list[bytes] = []
        offset = 0
        last = rng.randint(shortest - 1, packets - 1)
        for index in range(last + 1):
            now_ns += 0 if index and rng.random() < 0.05 else rng.randint(1, 2_000_000)
            # A run without a message cannot be told from no run at all.
            count = rng.randint(1, 4) if rng.random() < 0.8 else 0
            if index == last and not messages:
                count = 1
            made = []
            for _ in range(count):
                number += 1
                made.append(
                    quote(time_ns=number) if rng.random() < 0.9 else b"?" + bytes(number % 90)
                )
            packet = iex(
                made, len(messages) + 1, offset=offset, sent_ns=now_ns, session=session, channel=3
            )
            sent.packets.append(packet)
            messages += made
            offset += len(packet) - 40
        sent.runs.append(messages)
        # A run ends, and some time later the next one begins.
        now_ns += rng.randint(SILENCE_NS, SECOND_NS)
    end = len(sent.runs[-1]) + 1
    sent.packets.append(iex([], end, offset=offset, sent_ns=now_ns, session=session, channel=3))
    return sent


class Impairment(NamedTuple):
    """What a line does to packets: probabilities, and how far a packet may be late."""

    drop: float = 0.0
    double: float = 0.0
    late: float = 0.0
    late_by: int = 0
    burst: float = 0.0


def line(rng: random.Random, count: int, how: Impairment) -> list[tuple[float, int]]:
    """Return what arrives of packets ``0..count-1``: ``(when, packet)``, in units of packets."""
    arrivals: list[tuple[float, int]] = []
    lost = 0
    for index in range(count):
        if lost == 0 and rng.random() < how.burst:
            lost = rng.randint(1, 12)
        if lost > 0:
            lost -= 1
            continue
        if rng.random() < how.drop:
            continue
        for _ in range(2 if rng.random() < how.double else 1):
            late = rng.uniform(0, how.late_by) if rng.random() < how.late else 0.0
            arrivals.append((index + late, index))
    return arrivals


def arrivals(
    rng: random.Random, count: int, lines: Iterable[Impairment]
) -> Iterator[tuple[int, int]]:
    """Yield ``(line, packet)`` in the order of arrival."""
    found = [
        (when + rng.random() * 0.5, number, index)
        for number, how in enumerate(lines)
        for when, index in line(rng, count, how)
    ]
    for _, number, index in sorted(found):
        yield number, index


def expected_record(wire: bytes) -> tuple[int, bytes]:
    """Return type id and payload of one wire message, by the decoder of captures."""
    layout = TABLE.layouts.get(wire[0]) if wire else None
    if layout is None or len(wire) < layout.size_bytes:
        return TABLE.raw_type_id, wire
    import numpy as np

    row = layout.decode(np.frombuffer(wire, np.uint8), np.array([0], np.int64))
    return layout.message.type_id, row.tobytes()


class Published:
    """Walks over what a feed handler published, and holds it against what was sent.

    Attributes
    ----------
    run, next
        Where the walk is.
    gaps
        What was told to be lost: ``(run, first, next)``.
    """

    def __init__(self, sent: Sent) -> None:
        self._sent = sent
        self.run = -1
        self.next = 0
        self.gaps: list[tuple[int, int, int]] = []
        self.messages = 0

    def take(self, type_id: int, payload: bytes) -> None:
        if type_id == FeedMark.type_id:
            self._mark(FeedMark.view(payload))
        elif type_id == FeedGap.type_id:
            gap = FeedGap.view(payload)
            assert gap.first_missing == self.next
            self.gaps.append((self.run, gap.first_missing, gap.next))
            self.next = max(gap.next, self.next)
        else:
            wire = self._sent.runs[self.run][self.next - 1]
            assert (type_id, payload) == expected_record(wire), (self.run, self.next)
            self.next += 1
            self.messages += 1

    def _mark(self, mark: Any) -> None:
        if mark.reason == JOINED:
            assert self.run == -1
            self.run, self.next = 0, mark.next
        elif mark.reason == RESTARTED:
            assert mark.previous_next == self.next
            self.run += 1
            self.next = mark.next
        else:
            assert mark.next == self.next

    def assert_complete(self) -> None:
        """Check that nothing that was sent is missing."""
        assert self.run == len(self._sent.runs) - 1
        assert self.next == len(self._sent.runs[-1]) + 1
        assert not self.gaps
        assert self.messages == sum(map(len, self._sent.runs))
