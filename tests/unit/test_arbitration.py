"""The feed handler at its edges: no recovery, what is gone, damaged packets, its audit."""

from __future__ import annotations

import random
from typing import Any

import pytest
from chronicle.feeds.arbitration import HOLD_PACKETS, FeedHandler, state_at
from chronicle.feeds.books import Books
from chronicle.feeds.recovery import (
    RECOVERED_PACKET,
    UNTIL_NOW,
    RecoveryDone,
    RecoveryGone,
    RecoveryRequest,
)
from chronicle.feeds.snapshot import SnapshotPublisher
from chronicle.feeds.stream import (
    JOINED,
    RESTARTED,
    RESUMED,
    FeedGap,
    FeedMark,
    Position,
    find_position,
    position_after,
)
from chronicle.hot import Bytes, Handler, Info
from chronicle.hot.audit import audit
from chronicle.message import MessageBase

from tests.feed_support import (
    SECOND_NS,
    SILENCE_NS,
    Impairment,
    Published,
    arrivals,
    stream,
)
from tests.feeds_support import iex, quote
from tests.hot_support import Step, assert_same
from tests.queue_support import publisher

POOR = Impairment(drop=0.1, double=0.1, late=0.2, late_by=8, burst=0.02)


def packet(sequence: int, count: int = 1, **more: int) -> bytes:
    wanted = {"sent_ns": sequence * 100, "offset": (sequence - 1) * 44, "channel": 3} | more
    return iex([quote(time_ns=sequence + n) for n in range(count)], sequence, **wanted)


def joined(**state: Any) -> FeedHandler:
    """Return a handler that knows where it is: at message 1 of session 9."""
    handler = FeedHandler(patience_packets=4, recovery=False, **state)
    handler.set_clock(SECOND_NS)
    handler.begin()
    send(handler, iex([], 1, sent_ns=50, offset=0, channel=3))
    assert handler.known
    return handler


def send(handler: FeedHandler, data: bytes, line: int = 0) -> None:
    handler.datagram(Bytes(data), Info(line=line))


def told(handler: FeedHandler) -> list[Any]:
    """Return what was published: numbers of messages, and what is no message."""
    return [each.time_ns if hasattr(each, "time_ns") else each for each in handler.live.published]


def gaps(handler: FeedHandler) -> list[tuple[int, int]]:
    found = [each for each in handler.live.published if isinstance(each, FeedGap)]
    return [(each.first_missing, each.next) for each in found]


def marks(handler: FeedHandler) -> list[tuple[int, int]]:
    found = [each for each in handler.live.published if isinstance(each, FeedMark)]
    return [(each.reason, each.next) for each in found]


def test_without_recovery_a_gap_is_told_once_the_lines_had_their_chance():
    handler = joined()
    send(handler, packet(1))
    for sequence in (3, 4, 5):
        send(handler, packet(sequence))
        assert gaps(handler) == []
    send(handler, packet(6))
    assert gaps(handler) == [(2, 3)]
    assert told(handler)[1:] == [1, handler.live.published[2], 3, 4, 5, 6]
    assert handler.lost.value == 1
    # What comes after all is late, and stays out.
    send(handler, packet(2))
    assert told(handler)[-1] == 6


def test_without_recovery_a_gap_is_told_when_it_is_old_enough():
    handler = joined(patience_ns=1_000)
    send(handler, packet(2))
    handler.idle()
    assert gaps(handler) == []
    handler.set_clock(SECOND_NS + 1_000)
    handler.idle()
    assert gaps(handler) == [(1, 2)]


def test_without_recovery_what_is_published_is_in_order_and_the_rest_is_told():
    lost = 0
    for seed in range(40):
        rng = random.Random(seed)
        # Of every run something arrives.
        sent = stream(rng, runs=rng.randint(1, 3), packets=50, shortest=30)
        handler = FeedHandler(recovery=False, patience_packets=30, silence_ns=SILENCE_NS)
        for step, (line, index) in enumerate(arrivals(rng, len(sent.packets), (POOR, POOR))):
            handler.set_clock(step * 1_000)
            handler.datagram(Bytes(sent.packets[index]), Info(line=line))
        # The last heartbeat comes through.
        send(handler, sent.packets[-1])
        handler.set_clock(1 << 60)
        while handler.held_count:
            handler.idle()
        published = Published(sent)
        each: Any
        for each in handler.live.published:
            payload = each.pack() if isinstance(each, MessageBase) else each.payload
            published.take(each.type_id, payload)
        assert published.run == len(sent.runs) - 1
        assert published.next == len(sent.runs[-1]) + 1
        told_lost = sum(following - first for _, first, following in published.gaps)
        ends = sum(len(run) for run in sent.runs)
        # The end of a run that nobody brought is not known to anybody.
        assert published.messages + told_lost <= ends
        lost += told_lost
    assert lost > 10


def asking(**state: Any) -> FeedHandler:
    handler = FeedHandler(patience_packets=1, **state)
    handler.set_clock(SECOND_NS)
    handler.begin()
    return handler


def requests(handler: FeedHandler) -> list[tuple[int, int, int]]:
    found = [each for each in handler.requests.published if isinstance(each, RecoveryRequest)]
    return [(each.session, each.next, each.until_ns) for each in found]


def test_a_new_life_asks_for_the_packet_of_the_last_message_and_waits_for_it():
    handler = asking(**state_at(Position(9, 3, 40, 60, 5)))
    assert requests(handler) == [(9, 4, UNTIL_NOW)]
    send(handler, packet(5))
    send(handler, packet(6))
    assert told(handler) == []
    for sequence, count in ((3, 2), (5, 1)):
        handler.recovered_packet(Bytes(packet(sequence, count)), Info())
    assert marks(handler) == [(RESUMED, 5)]
    assert told(handler)[1:] == [5, 6]


def test_what_recovery_does_not_have_is_told_in_its_place():
    handler = asking(**state_at(Position(9, 3, 40, 60, 5)))
    gone = {"ticket": 1, "run_ns": 40, "session": 9}
    # Of another run, or ahead of us: not meant for us any more.
    handler.receive(RecoveryGone(first_missing=4, next=8, **(gone | {"run_ns": 41})))
    handler.receive(RecoveryGone(first_missing=6, next=8, **gone))
    assert told(handler) == []
    handler.receive(RecoveryGone(first_missing=4, next=8, **gone))
    handler.recovered_packet(Bytes(packet(8)), Info())
    assert gaps(handler) == [(5, 8)]
    assert told(handler)[-1] == 8


def test_a_run_whose_end_is_gone_ends_with_a_gap_and_the_next_one_begins():
    handler = asking(**state_at(Position(9, 3, 40, 60, 5)))
    gone = RecoveryGone(ticket=1, run_ns=40, session=9, first_missing=4, next=-1)
    handler.receive(gone)
    handler.receive(gone)
    handler.recovered_packet(Bytes(packet(1, 2, sent_ns=90_000, offset=0)), Info())
    handler.recovered_packet(Bytes(packet(3, sent_ns=90_001, offset=88)), Info())
    assert gaps(handler) == [(5, -1)]
    assert marks(handler) == [(RESTARTED, 1)]
    assert told(handler)[-3:] == [1, 2, 3]
    messages = [(seq, each.type_id, each.pack()) for seq, each in enumerate(handler.live.published)]
    found = position_after(messages)
    assert found is not None
    assert found.next == 4


def test_what_recovery_promises_and_does_not_bring_is_told_as_lost():
    handler = asking()
    handler.recovered_packet(Bytes(packet(1)), Info())
    handler.receive(RecoveryDone(ticket=1, until_ns=100))
    send(handler, packet(3))
    assert requests(handler)[1:] == [(9, 2, 300)]
    handler.receive(RecoveryDone(ticket=1, until_ns=300))
    assert gaps(handler) == []
    handler.receive(RecoveryDone(ticket=2, until_ns=300))
    assert gaps(handler) == [(2, 3)]
    assert told(handler)[-1] == 3


def test_a_venue_without_history_is_joined_where_it_is():
    handler = asking()
    send(handler, packet(7))
    handler.receive(RecoveryDone(ticket=1, until_ns=0))
    assert marks(handler) == [(JOINED, 7)]
    assert told(handler)[1:] == [7]


def test_a_packet_that_is_behind_and_was_sent_later_is_held_until_recovery_has_spoken():
    handler = asking()
    handler.recovered_packet(Bytes(packet(1, 3)), Info())
    handler.receive(RecoveryDone(ticket=1, until_ns=100))
    # The end of the run was lost on both lines; the next one has begun.
    send(handler, packet(1, 2, sent_ns=9_000, offset=0))
    assert told(handler)[1:] == [1, 2, 3]
    assert requests(handler)[1:] == [(9, 4, 9_000)]
    handler.recovered_packet(Bytes(packet(4)), Info())
    handler.recovered_packet(Bytes(packet(1, 2, sent_ns=9_000, offset=0)), Info())
    handler.receive(RecoveryDone(ticket=2, until_ns=9_000))
    assert marks(handler) == [(JOINED, 1), (RESTARTED, 1)]
    assert [each for each in told(handler) if isinstance(each, int)] == [1, 2, 3, 4, 1, 2]
    assert handler.held_count == 0


def test_late_copies_of_an_older_run_stay_out():
    handler = asking()
    handler.recovered_packet(Bytes(packet(1, 3)), Info())
    handler.recovered_packet(Bytes(packet(1, 2, sent_ns=9_000, offset=0)), Info())
    handler.receive(RecoveryDone(ticket=1, until_ns=9_000))
    before = told(handler)
    for late in (
        packet(1, 3),
        packet(1, 0, sent_ns=90),
        packet(3, sent_ns=100),
        packet(40, sent_ns=90),
        packet(2, sent_ns=9_000),
    ):
        send(handler, late)
    assert told(handler) == before
    assert handler.held_count == 0
    assert handler.duplicates.value == 5


def test_damaged_and_foreign_packets_are_counted_and_change_nothing():
    handler = joined()
    good = packet(1, 3)
    rng = random.Random(2)
    before = handler.state_bytes()
    for size in range(len(good)):
        send(handler, good[:size])
    send(handler, good + b"\0")
    send(handler, packet(1, channel=4))
    assert handler.malformed.value + handler.foreign.value == len(good) + 2
    handler.line_packets[0] = 1
    assert handler.state_bytes() == before
    for _ in range(2_000):
        bent = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            bent[rng.randrange(len(bent))] = rng.randrange(256)
        send(handler, bytes(bent))
        handler.idle()


def test_more_than_can_be_held_is_let_go_from_the_end():
    handler = asking()
    handler.recovered_packet(Bytes(packet(1)), Info())
    numbers = [*range(3, HOLD_PACKETS + 13)]
    # Nearly in order, so that this does not take long.
    rng = random.Random(3)
    for number in sorted(numbers, key=lambda number: number + rng.uniform(0, 20)):
        send(handler, packet(number))
    assert handler.held_count == HOLD_PACKETS
    assert handler.dropped.value == 10
    handler.recovered_packet(Bytes(packet(2)), Info())
    assert handler.expected == HOLD_PACKETS + 3
    messages = [each for each in told(handler) if isinstance(each, int)]
    assert messages == list(range(1, HOLD_PACKETS + 3))


def test_the_position_is_found_at_the_end_of_a_queue(path: Any):
    with publisher(path) as queue:
        assert find_position(path) is None
        mark = {"run_ns": 5, "offset": 0, "previous_next": 0, "session": 9, "channel": 3}
        queue.publish(FeedMark(sent_ns=6, next=10, reason=JOINED, **mark))
        assert find_position(path) == Position(9, 3, 5, 6, 10)
        # More than one look holds.
        for _ in range(5_000):
            queue.append(7, b"a message")
        assert find_position(path) == Position(9, 3, 5, 6, 5_010)
        queue.publish(FeedGap(first_missing=5_010, next=6_000, run_ns=5, session=9))
        queue.append(7, b"a message")
        assert find_position(path) == Position(9, 3, 5, 6, 6_001)


def steps(rng: random.Random) -> list[Step]:
    """Return what happens to a handler: packets of poor lines, recovered ones, time."""
    sent = stream(rng, runs=3, packets=60)
    found: list[Step] = []
    now_ns = SECOND_NS
    for line, index in arrivals(rng, len(sent.packets), (POOR, POOR)):
        now_ns += 300_000
        found.append(Step(sent.packets[index], Info(line=line), kind="datagram", now_ns=now_ns))
        if rng.random() < 0.1:
            found.append(Step(None, hook="idle", now_ns=now_ns))
        if rng.random() < 0.2:
            recovered = Info(type_id=RECOVERED_PACKET)
            found.append(Step(sent.packets[index], recovered, now_ns=now_ns))
        if rng.random() < 0.1:
            ticket = rng.randint(1, 4)
            done = RecoveryDone(ticket=ticket, until_ns=rng.choice((0, now_ns)))
            found.append(Step(done, now_ns=now_ns))
    return [Step(None, hook="start", now_ns=SECOND_NS), *found]


@pytest.mark.parametrize("recovery", [True, False])
def test_compiled_it_does_the_same(recovery: bool):
    for seed in range(3):
        happens = steps(random.Random(seed))
        outcome = assert_same(
            lambda: FeedHandler(
                recovery=recovery, patience_packets=10, mark_every=7, silence_ns=SILENCE_NS
            ),
            happens,
        )
        assert outcome.failure is None
        assert outcome.published["live"]
        assert bool(outcome.published["requests"]) == recovery


@pytest.mark.parametrize("handler", [FeedHandler, Books, SnapshotPublisher])
def test_every_path_passes_the_audit(handler: type[Handler]):
    verdict = audit(handler)
    assert verdict.accepted, verdict.findings
    assert not verdict.findings


def test_requests_say_what_is_known():
    handler = asking()
    handler.recovered_packet(Bytes(packet(1, 3)), Info())
    handler.receive(RecoveryDone(ticket=1, until_ns=100))
    send(handler, packet(6))
    asked = handler.requests.published[-1]
    assert isinstance(asked, RecoveryRequest)
    assert (asked.ticket, asked.run_ns, asked.sent_ns, asked.next) == (2, 100, 100, 4)
