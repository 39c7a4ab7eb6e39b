"""The recovery session and its server: what is asked for comes, whole and in order, or is gone."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import chronicle
import pytest
from chronicle.feeds.recovery import (
    DONE,
    FRAME,
    GONE,
    PACKET,
    RECOVERED_CLASSES,
    RECOVERED_PACKET,
    REQUEST_CLASSES,
    UNTIL_NOW,
    PacketHistory,
    RecoveryDone,
    RecoveryGone,
    RecoveryRequest,
    RecoveryServer,
    RecoverySession,
)
from chronicle.sidecar import Backoff, Sidecar

from tests.feeds_support import iex, quote
from tests.sidecar_support import eventually


def packet(sequence: int, count: int, sent_ns: int, *, session: int = 9) -> bytes:
    return iex([quote()] * count, sequence, sent_ns=sent_ns, session=session, offset=0)


#: Two runs of one session and one of another; heartbeats between.
FIRST = [packet(1, 0, 10), packet(1, 2, 20), packet(3, 1, 30), packet(4, 0, 40), packet(4, 0, 50)]
SECOND = [packet(1, 0, 1_000), packet(1, 3, 1_010)]
THIRD = [packet(1, 2, 5_000, session=10), packet(3, 2, 5_010, session=10)]
ALL = FIRST + SECOND + THIRD


def history(*, packets_max: int | None = None) -> PacketHistory:
    made = PacketHistory(packets_max=packets_max)
    for each in ALL:
        made.append(each)
    return made


def request(**more: int) -> RecoveryRequest:
    wanted = {"ticket": 1, "run_ns": 10, "sent_ns": 0, "next": 0, "until_ns": UNTIL_NOW}
    return RecoveryRequest(**(wanted | {"session": 9, "channel": 1} | more))


def answer(made: PacketHistory, wanted: RecoveryRequest) -> tuple[list[bytes], list[object], int]:
    """Return the packets of an answer, what is gone, and until when it is complete."""
    packets: list[bytes] = []
    gone: list[object] = []
    for each in made.answer(wanted):
        length, kind = FRAME.unpack_from(each)
        payload = each[FRAME.size :]
        assert len(payload) == length
        if kind == PACKET:
            packets.append(payload)
        elif kind == GONE:
            found = RecoveryGone.view(payload)
            gone.append((len(packets), found.first_missing, found.next, found.session))
        else:
            assert kind == DONE
            return packets, gone, RecoveryDone.view(payload).until_ns
    raise AssertionError("the answer has no end")


@pytest.mark.parametrize(
    ("wanted", "packets"),
    [
        (request(session=0, run_ns=0), ALL),
        (request(next=0), ALL),
        (request(next=1), ALL),
        (request(next=2), ALL[1:]),
        (request(next=3), ALL[2:]),
        (request(next=3, until_ns=30), ALL[2:3]),
        # Behind the last message: heartbeats that say so, and the runs that follow.
        (request(next=4), ALL[3:]),
        (request(next=4, sent_ns=45), ALL[4:]),
        (request(next=4, until_ns=45), ALL[3:4]),
        (request(run_ns=51, next=1), ALL[5:]),
        (request(run_ns=51, next=2), ALL[6:]),
        (request(run_ns=1_011, session=10, next=3), ALL[8:]),
        (request(run_ns=5_000, session=10, next=5), []),
    ],
)
def test_an_answer_is_everything_behind_the_position(wanted: RecoveryRequest, packets: list[bytes]):
    found, gone, until_ns = answer(history(), wanted)
    assert found == packets
    assert gone == []
    assert until_ns == min(wanted.until_ns, 5_010)


def test_what_the_server_has_forgotten_is_gone():
    made = history(packets_max=3)
    assert answer(made, request(run_ns=51, next=1)) == (ALL[6:], [], 5_010)
    assert answer(history(packets_max=2), request(run_ns=51, next=1)) == (
        ALL[7:],
        [(0, 1, -1, 9)],
        5_010,
    )
    assert answer(history(packets_max=1), request(run_ns=1_011, session=10, next=1)) == (
        ALL[8:],
        [(0, 1, 3, 10)],
        5_010,
    )
    # A session that it has never heard of.
    assert answer(history(), request(session=8, next=5))[1] == [(0, 5, -1, 8)]


def test_an_empty_server_has_nothing_and_says_so():
    assert answer(PacketHistory(), request()) == ([], [], 0)


def is_answered(session: RecoverySession, ticket: int) -> bool:
    return session.answered == ticket


@pytest.mark.parametrize("cuts", [0, 4])
def test_a_session_brings_everything_though_it_is_cut(folder: Path, cuts: int):
    many = history()
    sent_ns = 10_000
    for number in range(500):
        sent_ns += 1
        many.append(packet(1 + number, 1, sent_ns, session=11))
    with (
        chronicle.Queue.open_publisher(
            folder / "requests", schema=REQUEST_CLASSES, segment_bytes=1 << 16
        ) as requests,
        chronicle.Queue.open_publisher(
            folder / "recovered", schema=RECOVERED_CLASSES, segment_bytes=1 << 18
        ) as recovered,
        chronicle.Queue.open_subscriber(folder / "requests", None) as asked,
        chronicle.Queue.open_subscriber(folder / "recovered", None) as answers,
    ):
        session = RecoverySession(asked, recovered)
        server = RecoveryServer(many, cuts=cuts)
        with Sidecar() as sidecar:
            ports: list[int] = []

            @sidecar.task
            async def serve() -> None:
                async with server.serve() as port:
                    ports.append(port)
                    await asyncio.Event().wait()

            eventually(lambda: ports)
            again = Backoff(first_s=0.001, max_s=0.01)
            sidecar.connect("127.0.0.1", ports[0], session, backoff=again)
            for ticket in (1, 2, 3, 4):
                requests.publish(request(ticket=ticket, next=2))
                eventually(partial(is_answered, session, ticket))
        found: list[bytes] = []
        done: list[int] = []
        for each in answers:
            if each.type_id == RECOVERED_PACKET:
                found.append(bytes(each.payload))
            else:
                done.append(RecoveryDone.view(bytes(each.payload)).ticket)
        assert done == [1, 2, 3, 4]
        assert server.cuts_made == cuts
        wanted = [*ALL[1:], *(packet(1 + n, 1, 10_001 + n, session=11) for n in range(500))]
        # After a cut it goes on behind the newest packet; nothing comes twice, nothing is missing.
        assert found == wanted * 4
