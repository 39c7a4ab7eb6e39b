"""Gap, restart and duplicate detection for sequenced packet streams.

Both IEX-TP and MoldUDP64 number their messages: each packet carries the sequence number of its
first message and their count, and a heartbeat carries the number that comes next. One detector
serves both. It answers two questions for each packet: what has happened to the stream before it
(a control message goes into the output, in its place), and how many of its messages have been
seen already (they are dropped, and counted).

A stream is named by a 64-bit key that the feed's decoder chooses. What the detector says:

* *late join*: the first packet ever seen does not carry message 1. Nothing was lost that had been
  promised; it is only counted.
* *gap*: a packet starts beyond the next expected message. `StreamGap`.
* *restart*: the session changed; or, where packets carry a send time, a packet that was sent later
  than the newest one starts again at the first message, or lies wholly behind. `StreamRestart`, and
  a gap as well if the restarted stream does not begin with message 1.
* *duplicate*: anything else that starts before the next expected message.

The common case, an unbroken chain, is checked for a whole chunk in a few array operations; Python
looks only at the packets where the chain breaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chronicle.feeds.batch import I64, U64, Bools, Counts
from chronicle.feeds.type_ids import STREAM
from chronicle.message import MessageBase, char24, message, u64


@message(STREAM + 1)
class StreamGap(MessageBase):
    """Messages `first_missing` up to, but not including, `next` never arrived."""

    stream: u64
    first_missing: u64
    next: u64
    session: char24


@message(STREAM + 2)
class StreamRestart(MessageBase):
    """The stream began again. Message `previous_next` of the old run never arrived."""

    stream: u64
    previous_next: u64
    next: u64
    previous_session: char24
    session: char24


@message(STREAM + 3)
class StreamEnd(MessageBase):
    """The sender closed the session; `next` is the number that would have come next."""

    stream: u64
    next: u64
    session: char24


@dataclass(frozen=True, slots=True)
class Headers:
    """Packet headers of one chunk, in stream order.

    Attributes
    ----------
    keys
        Which stream each packet belongs to.
    sessions
        Session of each packet: numbers or text.
    sequences
        Number of the first message, or of the next one for a heartbeat.
    counts
        Messages in the packet.
    sent_ns
        Send time, or ``None`` if the protocol has none.
    first
        Packets that are the very first of a stream.
    ends
        Packets that close the session.
    """

    keys: U64
    sessions: NDArray[Any]
    sequences: U64
    counts: I64
    sent_ns: I64 | None
    first: Bools
    ends: Bools


@dataclass(slots=True)
class _Stream:
    """State of one stream between packets: what comes next, and when the newest was sent."""

    session: Any = None
    expected: int = -1
    sent_ns: int = 0


def session_text(session: Any) -> bytes:
    """Return a session id as the control messages carry it."""
    if isinstance(session, bytes):
        return session.rstrip(b" ")[:24]
    return str(int(session)).encode()


class Continuity:
    """The detector. One for each capture; it remembers every stream it has seen.

    Parameters
    ----------
    counts
        Where gaps, restarts and duplicates are counted.
    """

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._streams: dict[int, _Stream] = {}

    def check(self, headers: Headers) -> tuple[I64, list[tuple[int, MessageBase]]]:
        """Follow the streams through the packets of one chunk.

        Returns
        -------
        drop : ndarray
            For each packet, how many messages at its start have been seen before.
        events : list
            ``(packet, message)``: the control message goes before that packet's messages.
        """
        drop = np.zeros(len(headers.keys), np.int64)
        events: list[tuple[int, MessageBase]] = []
        if not len(drop):
            return drop, events
        if (headers.keys == headers.keys[0]).all():
            groups = [(int(headers.keys[0]), np.arange(len(drop)))]
        else:
            groups = [
                (int(key), np.flatnonzero(headers.keys == key)) for key in np.unique(headers.keys)
            ]
        for key, indices in groups:
            self._follow(key, headers, indices, drop, events)
        events.sort(key=lambda event: event[0])
        return drop, events

    def _follow(
        self,
        key: int,
        headers: Headers,
        indices: I64,
        drop: I64,
        events: list[tuple[int, MessageBase]],
    ) -> None:
        state = self._streams.setdefault(key, _Stream())
        sessions = headers.sessions[indices]
        sequences = headers.sequences[indices]
        following = sequences + headers.counts[indices].astype(np.uint64)
        sent = None if headers.sent_ns is None else headers.sent_ns[indices]
        broken = (sequences[1:] != following[:-1]) | (sessions[1:] != sessions[:-1])
        breaks = np.flatnonzero(broken | headers.ends[indices][1:]) + 1
        at = 0
        while at < len(indices):
            packet = int(indices[at])
            sent_ns = 0 if sent is None else int(sent[at])
            found, seen = self._decide(key, state, headers, packet, sent_ns)
            drop[packet] = seen
            events.extend((packet, message) for message in found)
            at += 1
            if state.expected != int(following[at - 1]):
                continue  # After a duplicate the chain says nothing about the next packet.
            next_break = int(np.searchsorted(breaks, at))
            at = int(breaks[next_break]) if next_break < len(breaks) else len(indices)
            state.expected = int(following[at - 1])
            if sent is not None:
                state.sent_ns = int(sent[at - 1])

    def _decide(
        self, key: int, state: _Stream, headers: Headers, packet: int, sent_ns: int
    ) -> tuple[list[MessageBase], int]:
        """Judge one packet against the state, and move the state past it."""
        counts = self._counts
        session: Any = headers.sessions[packet]
        sequence = int(headers.sequences[packet])
        count = int(headers.counts[packet])
        found: list[MessageBase] = []
        seen = 0
        name = session_text(session)
        if state.expected < 0:
            counts.late_joins += sequence > 1
            state.expected = sequence
        else:
            behind = sequence < state.expected and sent_ns > state.sent_ns
            again = behind and (headers.first[packet] or sequence + count <= state.expected)
            if again or session != state.session:
                counts.restarts += 1
                found.append(
                    StreamRestart(
                        stream=key,
                        previous_next=state.expected,
                        next=sequence,
                        previous_session=session_text(state.session),
                        session=name,
                    )
                )
                state.expected = min(1, sequence)
            if sequence > state.expected:
                counts.gaps += 1
                counts.missing += sequence - state.expected
                found.append(
                    StreamGap(stream=key, first_missing=state.expected, next=sequence, session=name)
                )
                state.expected = sequence
        state.session = session
        if sequence < state.expected:
            seen = min(count, state.expected - sequence)
            counts.duplicates += seen
        if sequence + count >= state.expected:
            # The time of the newest packet, not the largest time ever: one packet with a wrong
            # clock must not make every later restart look like a duplicate.
            state.sent_ns = sent_ns
            state.expected = sequence + count
        if headers.ends[packet]:
            counts.ends += 1
            found.append(StreamEnd(stream=key, next=sequence, session=name))
        return found, seen


CLASSES: dict[int, type[MessageBase]] = {
    cls.type_id: cls for cls in (StreamGap, StreamRestart, StreamEnd)
}
