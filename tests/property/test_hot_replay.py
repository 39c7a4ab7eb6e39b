"""Whatever a hot thread is given: its journal replays identically."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import chronicle
import hypothesis.strategies as st
from chronicle.hot.meter import HotStatus
from chronicle.hot.replay import replay
from chronicle.hot.thread import HotThread
from hypothesis import HealthCheck, given, settings

from tests.queue_support import PATIENCE_S, publisher
from tests.replay_support import Folds, FoldsChanged, Seen, Session, SetAlpha, Told, until

FULL = os.environ.get("CHRONICLE_FIRE") == "full"

PRICES = st.integers(-(1 << 40), 1 << 40)
ACTIONS = st.one_of(
    st.tuples(st.just("tick"), st.integers(0, 3), st.lists(PRICES, min_size=1, max_size=40)),
    st.tuples(st.just("command"), st.floats(0, 1)),
    st.tuples(st.just("add"), st.integers(0, 3), st.sampled_from(["latest", "earliest"])),
    st.tuples(st.just("remove"), st.integers(0, 20)),
    st.tuples(st.just("unhandled"), st.binary(max_size=40)),
    st.tuples(st.just("gap"), st.integers(1, 3)),
    st.tuples(st.just("output"), st.sampled_from(["seen", "told"])),
    st.tuples(st.just("idle")),
)


def perform(session: Session, action: tuple[Any, ...], folder: Path) -> list[Any]:
    """Do one thing; return what has to be closed at the end."""
    match action:
        case ("tick", number, prices):
            for price in prices:
                session.tick(number, price)
        case ("command", alpha):
            session.command(SetAlpha(alpha=alpha))
        case ("add", number, start):
            behind = kept(session, number) if start == "earliest" else 0
            session.settle()
            session.add(number, start=start)
            session.sent += behind
        case ("remove", which):
            if session.where:
                session.remove(list(session.where)[which % len(session.where)])
        case ("unhandled", data):
            session.hot.wait_for(session.hot.send(data, type_id=9), PATIENCE_S)
            if session.where:
                number = next(iter(session.where.values()))
                session.inputs[number].append(99, data)
                session.sent += sum(1 for queue in session.where.values() if queue == number)
        case ("gap", segments):
            lose_messages(session, segments)
        case ("output", name):
            count = len(list(folder.iterdir()))
            writer = publisher(folder / f"{name}-{count}", schema=[Seen, Told])
            session.hot.wait_for(session.hot.add_writer(name, writer), PATIENCE_S)
            return [writer]
        case ("idle",):
            idles = session.hot.status.idles
            # Asked again: under a journal there is one idle call in a millisecond at most.
            until(lambda: woken(session.hot).idles > idles)
    return []


def woken(hot: HotThread) -> HotStatus:
    """Wake a thread that sleeps; return its status."""
    hot.nudge()
    return hot.status


def kept(session: Session, number: int) -> int:
    """Return how many messages an input still has."""
    segments = chronicle.inspect(session.folder / f"in-{number}")["segments"]
    first: int = next(s["first_seq"] for s in segments if s["first_seq"])
    return session.inputs[number].next_seq - first


def lose_messages(session: Session, segments: int) -> None:
    """Add a reader whose first messages retention has deleted."""
    if 3 in session.ever_read:
        # They must not be missed later: the replay would say so, and rightly.
        return
    for _ in range(segments * 1_500):
        session.inputs[3].append(99, b"x" * 20)
    chronicle.apply_retention(session.folder / "in-3", bytes_max=1 << 17)
    behind = kept(session, 3)
    session.add(3, start=1)
    session.sent += behind


@given(st.lists(ACTIONS, max_size=25), st.integers(0, 4), st.floats(0, 1))
@settings(
    max_examples=2_000 if FULL else 150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_every_journal_replays_identically(
    actions: list[tuple[Any, ...]], sources: int, alpha: float
) -> None:
    with tempfile.TemporaryDirectory(prefix="chronicle-test-", dir="/dev/shm") as name:
        folder = Path(name)
        session = Session(folder, Folds(alpha=alpha), sources=sources)
        session.hot.start()
        more = []
        for action in actions:
            more += perform(session, action, folder)
        session.stop()
        for writer in more:
            writer.close()
        report = replay(session.path)
        assert report.verdict == "identical", report
        assert report.inputs["message"] == session.sent
        # The oracle: another handler differs just if it was given the one price it is about.
        thousand = any(a[0] == "tick" and 1_000 in a[2] for a in actions)
        if not thousand:
            assert replay(session.path, FoldsChanged()).verdict == "identical"
