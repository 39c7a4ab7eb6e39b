"""IEX-TP on the hot thread: several lines of packets become one queue, once and in order.

The sender sends each packet on line A and on line B. Each line loses, doubles and reorders packets.
`FeedHandler` takes whichever copy comes first, holds what is ahead, asks the recovery session for
what neither line brought, and publishes the messages one by one.

**Telling runs apart.** A session may begin to count anew (in a real capture: eleven times within
five hours, under one session id, each time with heartbeats that say ``sequence=1, offset=0``).
A packet that is behind is therefore either a late copy or the first sign of a new run. What tells
them apart is the sender's clock in each header. Within a run, packets are sent in the order of
their numbers, and a run begins after the one before has ended. So, with *S* the send time of the
newest packet that was published:

* behind, and not sent later than *S*: a late copy, of this run or of an older one; so is a
  heartbeat that was not sent later than *S*;
* behind, and sent later than *S*: of a new run;
* next by its number, but at another offset in the run's bytes: of a new run as well;
* next, but sent more than `silence_ns` after *S*: not sure. Heartbeats come every second; who has
  heard nothing for longer may have missed a whole run;
* ahead, but sent before this run began: a late copy of an older run;
* another session: new if it was sent later than *S*, else old.

**A line never proves that a run is over.** Its last packets may have been lost on both lines. So
the first packet of a new run is held like any packet that is ahead; only the recovery session,
whose answers are complete and in order, moves the handler into the new run. (Without recovery the
handler does it by itself, after its patience.) The same rule covers everything else that is
unusual: what is not the next packet is held, sorted by its send time, and nothing that was sent
after it is published before it.

**Asking.** A gap that stays open for `patience_packets` or `patience_ns` is asked for, once: from
the position that was reached, until the send time of the first packet that is held. The answer ends
with "complete until"; what is held and was not sent later than that has been published, or was a
copy. Only one question is open at a time.

**The next life.** The queue itself tells how far it had come (`chronicle.feeds.stream`). The
handler starts there without knowing *S*, so it publishes nothing until recovery has given it the
packet that holds the last published message, and everything since.

**Limits.** If the sender's clock steps back over a restart, the new run is taken for late copies
until it overtakes the old one's time or numbers. Clocks that step within a run do no harm.

Sources: IEX-TP 1.25; the facts about restarts are of the capture that the tests use.
"""

from __future__ import annotations

from typing import Annotated, Final

from chronicle.feeds import hot_iex
from chronicle.feeds.iex import TABLE
from chronicle.feeds.recovery import (
    RECOVERED_PACKET,
    UNTIL_NOW,
    RecoveryDone,
    RecoveryGone,
    RecoveryRequest,
)
from chronicle.feeds.stream import (
    JOINED,
    PASSING,
    RESTARTED,
    RESUMED,
    FeedGap,
    FeedMark,
    Position,
)
from chronicle.hot import Buffer, Bytes, Cells, Counter, Handler, Info, Output, Size, on
from chronicle.message import Array, bool_, i64, u16, u32

__all__ = ["LIVE_CLASSES", "FeedHandler", "state_at"]

LIVE_CLASSES: Final = (*TABLE.classes.values(), FeedMark, FeedGap)
"""The schema of the live queue."""

HOLD_PACKETS: Final = 4_096
"""Packets that can be held: what the lines bring while recovery answers. If that is too little,
the handler runs after the feed for as long as recovery is slower than that."""
HOLD_BYTES: Final = 2_048
"""Room for one held packet; longer ones are left to recovery."""
LINES_MAX: Final = 8

DUPLICATE: Final = 0
NEXT: Final = 1
LATER: Final = 2


def state_at(position: Position | None) -> dict[str, int]:
    """Return the state with which `FeedHandler` goes on from a position.

    >>> state_at(None)
    {}
    """
    if position is None:
        return {}
    state = position._asdict()
    state["expected"] = state.pop("next")
    return state


class FeedHandler(Handler):
    """Arbitrates the lines of one IEX-TP channel; publishes to `live`, asks through `requests`.

    State to start with: ``state_at(find_position(path of the live queue))``.
    """

    # --- Parameters ---
    recovery: bool_ = True
    """Whether somebody answers `requests`."""
    patience_packets: u32 = 64
    patience_ns: i64 = 2_000_000
    silence_ns: i64 = 5_000_000_000
    """Longest time between two packets of a run; those of two runs are further apart."""
    mark_every: u32 = 2_048

    # --- Position ---
    session: u32
    channel: u32
    run_ns: i64
    sent_ns: i64
    expected: i64
    offset: i64 = -1
    known: bool_
    """Whether `sent_ns` and `offset` are those of the last published packet."""
    run_over: bool_
    """Whether recovery said that nothing more can be had of this run."""

    # --- What is held: slots of `held`, sorted by send time ---
    held: Annotated[Buffer, Size(HOLD_PACKETS * HOLD_BYTES)]
    order: Annotated[Cells[int], Array(u16, HOLD_PACKETS)]
    held_sent_ns: Annotated[Cells[int], Array(i64, HOLD_PACKETS)]
    held_bytes: Annotated[Cells[int], Array(u16, HOLD_PACKETS)]
    held_first: u32
    """Where in `order`, which is used as a ring, the packet stands that was sent first."""
    held_count: u32
    gap_since_ns: i64
    gap_packets: u32
    asked: bool_
    ticket: i64
    since_mark: u32

    live: Output
    requests: Output

    packets: Counter
    messages: Counter
    heartbeats: Counter
    duplicates: Counter
    held_ever: Counter
    dropped: Counter
    gaps: Counter
    asks: Counter
    recovered: Counter
    restarts: Counter
    lost: Counter
    malformed: Counter
    foreign: Counter
    line_packets: Annotated[Cells[int], Array(i64, LINES_MAX)]
    line_first: Annotated[Cells[int], Array(i64, LINES_MAX)]
    """How many packets of each line were the first copy."""

    # --- What comes ---

    @on.start
    def begin(self) -> None:
        """Ask for everything since the last life."""
        for slot in range(HOLD_PACKETS):
            self.order[slot] = slot
        if self.recovery:
            self.ask(UNTIL_NOW)

    @on.datagram
    def datagram(self, data: Bytes, info: Info) -> None:
        """Take a packet of a line."""
        self.line_packet(data, info)

    def line_packet(self, data: Bytes, info: Info) -> None:
        """Publish a packet, hold it, or know it for a copy."""
        self.packets.add(1)
        line = info.line % LINES_MAX
        self.line_packets[line] += 1
        if not self.is_ours(data):
            return
        # First the common case: the next packet, and nothing is held.
        verdict = self.judge(data) if self.known else LATER
        if (
            verdict == NEXT
            and self.held_count > 0
            and hot_iex.sent_ns(data) > self.held_sent_ns[self.slot_at(0)]
        ):
            # What was sent after a packet that is held comes after it.
            verdict = LATER
        if verdict == NEXT:
            self.take(data)
            self.line_first[line] += 1
            if self.held_count > 0:
                self.drain()
        elif verdict == DUPLICATE:
            self.duplicates.add(1)
        else:
            self.hold(data)
        if self.held_count > 0:
            self.gap_packets += 1
            self.look()

    @on.idle
    def idle(self) -> None:
        """Look after a gap that grows old."""
        if self.held_count > 0:
            self.look()

    @on.bytes(RECOVERED_PACKET)
    def recovered_packet(self, data: Bytes, _info: Info) -> None:
        """Take a packet from recovery: what it brings is complete and in order."""
        self.recovered.add(1)
        if self.is_ours(data):
            self.follow(data)
            self.drain()

    @on(RecoveryGone)
    def recovery_gone(self, gone: RecoveryGone) -> None:
        """Give up what can be had from nowhere."""
        is_ours = self.session == gone.session and self.run_ns == gone.run_ns
        if not is_ours or self.run_over or gone.first_missing > self.expected:
            return
        if gone.next == -1:
            self.tell_gap(-1)
            self.run_over = True
        elif gone.next > self.expected:
            self.tell_gap(gone.next)
            self.expected = gone.next
            self.offset = -1
            self.become_known()

    @on(RecoveryDone)
    def recovery_done(self, done: RecoveryDone) -> None:
        """Conclude that all that was sent until then is published."""
        if done.ticket != self.ticket or not self.asked:
            return
        self.asked = False
        self.gap_since_ns = self.now_ns
        self.gap_packets = 0
        if not self.known:
            # Recovery has nothing for us: begin with what the lines have brought.
            if self.held_count > 0:
                self.skip()
            return
        while self.held_count > 0 and self.held_sent_ns[self.slot_at(0)] <= done.until_ns:
            if self.is_ahead(self.front()):
                # Recovery has promised what it did not bring: never in silence.
                self.skip()
            else:
                self.duplicates.add(1)
                self.pop()
        self.drain()

    # --- Judging a packet ---

    def is_ours(self, data: Bytes) -> bool:
        """Whether this is a sound packet of our channel."""
        verdict = hot_iex.check_packet(data)
        if verdict == hot_iex.MALFORMED:
            self.malformed.add(1)
            return False
        if verdict == hot_iex.FOREIGN:
            self.foreign.add(1)
            return False
        if self.channel == 0:
            self.channel = hot_iex.channel(data)
        elif self.channel != hot_iex.channel(data):
            self.foreign.add(1)
            return False
        return True

    def judge(self, data: Bytes) -> int:
        """Tell what a packet of a line is, by the rules at the head of this module."""
        sent_ns = hot_iex.sent_ns(data)
        is_later = sent_ns > self.sent_ns
        if hot_iex.session(data) != self.session:
            return LATER if is_later else DUPLICATE
        sequence = hot_iex.first_sequence(data)
        if sequence == self.expected:
            at_place = self.offset < 0 or hot_iex.stream_offset(data) == self.offset
            in_time = self.run_ns <= sent_ns <= self.sent_ns + self.silence_ns
            # A heartbeat that comes late has nothing to say.
            is_late = hot_iex.messages_count(data) == 0 and not is_later
            if at_place and in_time and not is_late and not self.run_over:
                return NEXT
            return LATER if is_later else DUPLICATE
        if sequence < self.expected:
            return LATER if is_later else DUPLICATE
        return LATER if sent_ns >= self.run_ns else DUPLICATE

    def is_ahead(self, data: Bytes) -> bool:
        """Whether a packet is of this run, as far as anybody can tell, and messages are missing."""
        return (
            hot_iex.session(data) == self.session
            and hot_iex.first_sequence(data) > self.expected
            and hot_iex.sent_ns(data) >= self.run_ns
        )

    # --- Publishing ---

    def take(self, data: Bytes) -> None:
        """Publish the messages of a packet that are new; it is where the position is now."""
        end = hot_iex.first_sequence(data) + hot_iex.messages_count(data)
        skip = self.expected - hot_iex.first_sequence(data)
        told = hot_iex.publish_messages(self.live, data, skip)
        if told == 0:
            self.heartbeats.add(1)
        self.messages.add(told)
        self.since_mark += told
        self.expected = max(self.expected, end)
        self.offset = hot_iex.stream_offset(data) + hot_iex.payload_bytes(data)
        self.sent_ns = hot_iex.sent_ns(data)
        if self.since_mark >= self.mark_every:
            self.mark(PASSING, 0)

    def follow(self, data: Bytes) -> None:
        """Take a packet that follows what was published, or is a copy of it: no gap before it."""
        sequence = hot_iex.first_sequence(data)
        end = sequence + hot_iex.messages_count(data)
        offset = hot_iex.stream_offset(data)
        is_later = hot_iex.sent_ns(data) > self.sent_ns
        is_same = hot_iex.session(data) == self.session and not self.run_over
        if self.session == 0:
            self.join(data)
        elif not self.known:
            # The packet that holds the last published message, or begins behind it.
            if is_same and sequence <= self.expected <= end:
                self.sent_ns = hot_iex.sent_ns(data)
                self.become_known()
                self.take(data)
            elif is_later and not is_same:
                self.restart(data)
        elif is_same and not is_later and end <= self.expected:
            self.duplicates.add(1)
        elif is_same and sequence == self.expected and (self.offset < 0 or offset == self.offset):
            self.take(data)
        elif is_later and not (is_same and sequence > self.expected and offset > self.offset):
            self.restart(data)
        else:
            self.duplicates.add(1)

    def join(self, data: Bytes) -> None:
        """Begin with this packet: nothing was published before."""
        self.session = hot_iex.session(data)
        self.run_ns = hot_iex.sent_ns(data)
        self.sent_ns = hot_iex.sent_ns(data)
        self.expected = hot_iex.first_sequence(data)
        self.offset = hot_iex.stream_offset(data)
        self.known = True
        self.mark(JOINED, 0)
        self.take(data)

    def restart(self, data: Bytes) -> None:
        """Begin a new run with this packet."""
        previous = self.expected
        self.session = hot_iex.session(data)
        self.run_ns = self.sent_ns + 1
        self.sent_ns = hot_iex.sent_ns(data)
        self.expected = min(1, hot_iex.first_sequence(data))
        self.offset = hot_iex.stream_offset(data)
        self.known = True
        self.run_over = False
        self.restarts.add(1)
        self.mark(RESTARTED, previous)
        if hot_iex.first_sequence(data) > self.expected:
            self.tell_gap(hot_iex.first_sequence(data))
            self.expected = hot_iex.first_sequence(data)
        self.take(data)

    def become_known(self) -> None:
        """Say that this life goes on where the last one stopped."""
        if not self.known:
            self.known = True
            self.mark(RESUMED, 0)

    def skip(self) -> None:
        """Go on with the first packet that is held, without what is missing before it."""
        data = self.front()
        if self.session == 0:
            self.join(data)
        elif self.is_ahead(data) or (
            hot_iex.first_sequence(data) == self.expected
            and hot_iex.session(data) == self.session
            and (self.offset < 0 or hot_iex.stream_offset(data) == self.offset)
        ):
            if hot_iex.first_sequence(data) > self.expected:
                self.tell_gap(hot_iex.first_sequence(data))
            self.expected = hot_iex.first_sequence(data)
            self.offset = hot_iex.stream_offset(data)
            self.become_known()
            self.take(data)
        else:
            self.restart(data)
        self.pop()
        self.drain()

    def mark(self, reason: int, previous: int) -> None:
        """Publish the position."""
        self.since_mark = 0
        self.live.publish(
            FeedMark(
                run_ns=self.run_ns,
                sent_ns=self.sent_ns,
                next=self.expected,
                offset=self.offset,
                previous_next=previous,
                session=self.session,
                channel=self.channel,
                reason=reason,
            )
        )

    def tell_gap(self, following: int) -> None:
        """Publish, in its place, that messages are gone; -1: the rest of the run."""
        self.lost.add(max(0, following - self.expected))
        self.live.publish(
            FeedGap(
                first_missing=self.expected,
                next=following,
                run_ns=self.run_ns,
                session=self.session,
            )
        )

    # --- Holding ---

    def front(self) -> Bytes:
        """Return the held packet that was sent first."""
        slot = self.slot_at(0)
        return self.held.view(slot * HOLD_BYTES, self.held_bytes[slot])

    def slot_at(self, rank: int) -> int:
        """Return which slot has the packet that was sent as the `rank`-th of those that are held.

        Ranks from `held_count` on are free slots.
        """
        return self.order[(self.held_first + rank) % HOLD_PACKETS]

    def pop(self) -> None:
        """Forget the held packet that was sent first. Its slot is the last of the free ones."""
        self.held_first = (self.held_first + 1) % HOLD_PACKETS
        self.held_count -= 1

    def hold(self, data: Bytes) -> None:
        """Keep a packet, by its send time. If there is no room, those sent last are let go."""
        sent_ns = hot_iex.sent_ns(data)
        count = self.held_count
        rank = count
        while rank > 0 and self.held_sent_ns[self.slot_at(rank - 1)] > sent_ns:
            rank -= 1
        before = rank
        while before > 0 and self.held_sent_ns[self.slot_at(before - 1)] == sent_ns:
            before -= 1
            slot = self.slot_at(before)
            other = self.held.view(slot * HOLD_BYTES, self.held_bytes[slot])
            if hot_iex.first_sequence(other) == hot_iex.first_sequence(
                data
            ) and hot_iex.messages_count(other) == hot_iex.messages_count(data):
                self.duplicates.add(1)
                return
        if len(data) > HOLD_BYTES or rank == HOLD_PACKETS:
            self.dropped.add(1)
            return
        if count == HOLD_PACKETS:
            self.dropped.add(1)
            count -= 1
        slot = self.slot_at(count)
        for place in range(count, rank, -1):
            self.order[(self.held_first + place) % HOLD_PACKETS] = self.slot_at(place - 1)
        self.order[(self.held_first + rank) % HOLD_PACKETS] = slot
        self.held.store(slot * HOLD_BYTES, data)
        self.held_sent_ns[slot] = sent_ns
        self.held_bytes[slot] = len(data)
        self.held_count = count + 1
        self.held_ever.add(1)
        if self.held_count == 1:
            self.gaps.add(1)
            self.gap_since_ns = self.now_ns
            self.gap_packets = 0

    def drain(self) -> None:
        """Publish what is held, as far as it follows."""
        moved = False
        while self.known and self.held_count > 0:
            verdict = self.judge(self.front())
            if verdict == LATER:
                break
            if verdict == DUPLICATE:
                self.duplicates.add(1)
            else:
                self.take(self.front())
            self.pop()
            moved = True
        if moved:
            # What is still held waits for another gap, which has its own time.
            self.gap_since_ns = self.now_ns
            self.gap_packets = 0

    # --- Asking ---

    def look(self) -> None:
        """Ask for what is missing before the held packets, once the lines had their chance."""
        if self.asked or (
            self.known
            and self.gap_packets < self.patience_packets
            and self.now_ns - self.gap_since_ns < self.patience_ns
        ):
            return
        if self.recovery:
            self.ask(self.held_sent_ns[self.slot_at(0)])
        else:
            self.skip()

    def ask(self, until_ns: int) -> None:
        """Ask recovery for everything behind the position, and until a send time."""
        self.ticket += 1
        self.asked = True
        self.asks.add(1)
        # Not knowing the packet of the last message, ask for that one as well.
        following = self.expected if self.known else max(0, self.expected - 1)
        self.requests.publish(
            RecoveryRequest(
                ticket=self.ticket,
                run_ns=self.run_ns,
                sent_ns=self.sent_ns if self.known else 0,
                next=following,
                until_ns=until_ns,
                session=self.session,
                channel=self.channel,
            )
        )
