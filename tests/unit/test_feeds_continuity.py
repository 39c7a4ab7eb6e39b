"""The gap and restart detector, against a model that keeps the set of all numbers seen."""

from __future__ import annotations

import numpy as np
from chronicle.feeds.batch import Counts
from chronicle.feeds.continuity import Continuity, Headers, StreamGap, StreamRestart
from hypothesis import given, settings
from hypothesis import strategies as st

Packet = tuple[int, int, int]
"""Stream, first sequence number, count."""


def headers(packets: list[Packet]) -> Headers:
    count = len(packets)
    return Headers(
        keys=np.array([p[0] for p in packets], np.uint64),
        sessions=np.zeros(count, np.uint32),
        sequences=np.array([p[1] for p in packets], np.uint64),
        counts=np.array([p[2] for p in packets], np.int64),
        sent_ns=None,
        first=np.zeros(count, np.bool_),
        ends=np.zeros(count, np.bool_),
    )


packets_strategy = st.lists(
    st.tuples(st.integers(1, 2), st.integers(1, 30), st.integers(0, 6)), max_size=40
)


@given(packets_strategy, st.integers(1, 10))
@settings(deadline=None)
def test_every_number_comes_once_or_is_announced_as_missing(
    packets: list[Packet], chunk: int
) -> None:
    counts = Counts()
    detector = Continuity(counts)
    next_of: dict[int, int] = {}
    for at in range(0, len(packets), chunk):
        part = packets[at : at + chunk]
        drop, events = detector.check(headers(part))
        for index, (stream, sequence, count) in enumerate(part):
            found = [m for packet, m in events if packet == index]
            expected = next_of.get(stream, sequence)
            if sequence > expected:
                (gap,) = found
                assert isinstance(gap, StreamGap)
                assert (gap.first_missing, gap.next) == (expected, sequence)
                expected = sequence
            else:
                assert found == []
            assert drop[index] == min(count, expected - sequence)
            next_of[stream] = max(expected, sequence + count)
    assert counts.restarts == 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 20))
@settings(deadline=None)
def test_an_unbroken_chain_is_silent_however_it_is_chunked(counts: list[int], chunk: int) -> None:
    sequence = 1
    packets: list[Packet] = []
    for count in counts:
        packets.append((1, sequence, count))
        sequence += count
    found = Counts()
    detector = Continuity(found)
    for at in range(0, len(packets), chunk):
        drop, events = detector.check(headers(packets[at : at + chunk]))
        assert not drop.any()
        assert events == []
    assert found == Counts()


def test_a_change_of_session_in_the_middle_of_a_chunk_is_a_restart() -> None:
    made = headers([(1, 1, 2), (1, 3, 2), (1, 5, 1), (1, 6, 1)])
    made.sessions[2:] = 7
    counts = Counts()
    drop, events = Continuity(counts).check(made)
    assert not drop.any()
    assert [(packet, type(m)) for packet, m in events] == [(2, StreamRestart), (2, StreamGap)]
    assert events[0][1].as_dict() == {
        "stream": 1,
        "previous_next": 5,
        "next": 5,
        "previous_session": b"0",
        "session": b"7",
    }
    assert counts.missing == 4


def test_no_packets_are_no_events() -> None:
    drop, events = Continuity(Counts()).check(headers([]))
    assert (len(drop), events) == (0, [])
