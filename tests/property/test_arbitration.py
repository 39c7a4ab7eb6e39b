"""Arbitration of lines: whatever they lose, double and reorder, it is published as it was sent."""

from __future__ import annotations

import random
from typing import Any

import pytest
from chronicle.feeds.arbitration import FeedHandler, state_at
from chronicle.feeds.recovery import (
    FRAME,
    RECOVERED_CLASSES,
    RECOVERED_PACKET,
    PacketHistory,
    RecoveryRequest,
    RecoverySession,
)
from chronicle.feeds.stream import Position, position_after
from chronicle.hot import Bytes, Info
from chronicle.message import MessageBase

from tests.feed_support import SILENCE_NS, Impairment, Published, Sent, arrivals, stream

CLEAN = Impairment()
POOR = Impairment(drop=0.1, double=0.1, late=0.2, late_by=8, burst=0.02)
BAD = Impairment(drop=0.5, double=0.3, late=0.5, late_by=40, burst=0.05)


CLASSES = {cls.type_id: cls for cls in RECOVERED_CLASSES}


class Recovered:
    """A writer that hands what is appended to whoever looks."""

    def __init__(self) -> None:
        self.records: list[tuple[int, bytes]] = []

    def append(self, type_id: int, payload: bytes) -> int:
        self.records.append((type_id, payload))
        return len(self.records)

    def publish(self, message: MessageBase) -> int:
        return self.append(message.type_id, message.pack())


class Life:
    """One life of the feed handler, with a recovery session that is slow, and is cut."""

    def __init__(
        self, rng: random.Random, history: PacketHistory, position: Position | None, **more: Any
    ) -> None:
        state = state_at(position)
        self.handler = FeedHandler(
            patience_packets=12, silence_ns=SILENCE_NS, mark_every=5, **state, **more
        )
        self.rng = rng
        self.history = history
        self.cuts = 0
        self._recovered = Recovered()
        self._session = RecoverySession(None, self._recovered)  # type: ignore[arg-type]
        self._frames: list[bytes] = []
        self._asked = 0
        self._taken = 0
        self._now_ns = 0
        self.tick()
        self.handler.begin()

    def tick(self) -> None:
        self._now_ns += 10_000
        self.handler.set_clock(self._now_ns)

    def packet(self, line: int, data: bytes) -> None:
        self.tick()
        self.handler.datagram(Bytes(data), Info(line=line))

    def idle(self) -> None:
        self._now_ns += 1_000_000
        self.handler.set_clock(self._now_ns)
        self.handler.idle()

    def recover(self) -> bool:
        """Take a step of the recovery session; return whether there is anything left to do."""
        asked = self.handler.requests.published
        if len(asked) > self._asked:
            self._asked = len(asked)
            pending = self._session.want(RecoveryRequest.view(asked[-1].pack()))
            self._frames = list(self.history.answer(pending))
        elif self._frames and self.rng.random() < 0.1:
            # The connection is cut; the next one asks for what is missing.
            self.cuts += 1
            left = self._session.left()
            assert left is not None
            self._frames = list(self.history.answer(left))
        elif self._frames:
            data = self._frames.pop(0)
            _, kind = FRAME.unpack_from(data)
            self._session.take(kind, data[FRAME.size :])
        elif self._taken < len(self._recovered.records):
            type_id, payload = self._recovered.records[self._taken]
            self._taken += 1
            self.tick()
            if type_id == RECOVERED_PACKET:
                self.handler.recovered_packet(Bytes(payload), Info())
            else:
                self.handler.receive(CLASSES[type_id].view(payload))
        else:
            return False
        return True


def records(published: list[Any]) -> list[tuple[int, bytes]]:
    """Return what an output collected as type ids and payloads."""
    return [
        (each.type_id, each.pack() if isinstance(each, MessageBase) else each.payload)
        for each in published
    ]


def run(
    rng: random.Random,
    sent: Sent,
    lines: tuple[Impairment, ...],
    *,
    kills: int = 0,
    speed: float = 0.3,
) -> tuple[Published, Life]:
    """Send a stream over impaired lines to a handler that is killed now and then."""
    history = PacketHistory()
    queue: list[tuple[int, bytes]] = []
    life = Life(rng, history, None)
    coming = list(arrivals(rng, len(sent.packets), lines))
    deaths = set(rng.sample(range(len(coming)), min(kills, len(coming))))
    for step, (number, index) in enumerate(coming):
        while len(history) <= index:
            history.append(sent.packets[len(history)])
        before = len(life.handler.live.published)
        life.packet(number, sent.packets[index])
        while rng.random() < speed and life.recover():
            pass
        if rng.random() < 0.05:
            life.idle()
        if step in deaths:
            found = records(life.handler.live.published)
            # Dead at any instruction since the last packet.
            queue += found[: rng.randint(before, len(found))]
            marks = ((seq, *each) for seq, each in enumerate(queue, 1))
            life = Life(rng, history, position_after(marks))
    # The sender's last heartbeat comes again and again, until all is well.
    for packet in sent.packets[len(history) :]:
        history.append(packet)
    quiet = 0
    for _ in range(100_000):
        quiet = 0 if life.recover() else quiet + 1
        if quiet:
            life.idle()
            life.packet(0, sent.packets[-1])
        if quiet > 20 and not life.handler.held_count:
            break
    queue += records(life.handler.live.published)
    published = Published(sent)
    for type_id, payload in queue:
        published.take(type_id, payload)
    return published, life


@pytest.mark.parametrize("lines", [(CLEAN,), (CLEAN, CLEAN), (POOR, POOR), (BAD, BAD), (BAD,)])
def test_what_is_published_is_what_was_sent(lines: tuple[Impairment, ...]):
    cuts = asks = recovered = 0
    for seed in range(30):
        rng = random.Random(seed)
        sent = stream(rng, runs=rng.randint(1, 4), packets=rng.choice((5, 60)))
        published, life = run(rng, sent, lines, speed=rng.choice((0.05, 0.5, 0.95)))
        published.assert_complete()
        cuts += life.cuts
        asks += life.handler.asks.value
        recovered += life.handler.recovered.value
    if lines[0] is not CLEAN:
        assert asks > 60
        assert recovered > 100
        assert cuts > 10


def test_a_killed_handler_goes_on_where_its_queue_ends():
    for seed in range(60):
        rng = random.Random(1_000 + seed)
        sent = stream(rng, runs=rng.randint(1, 4), packets=60)
        lines = rng.choice(((CLEAN, CLEAN), (POOR, POOR), (BAD, BAD)))
        published, _ = run(rng, sent, lines, kills=rng.randint(1, 6))
        published.assert_complete()
