"""Frames that were bent in every way, through a real ring, against a naive parser.

Each example is a batch of frames, sent through a veth pair to two rings (with and without
checksums) and closed by a datagram that marks its end. What comes out must be what the naive parser
makes of them, in order, and every frame that is ours must be in one of the counts.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest
from chronicle import PacketRing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.net_support import Link, missing, veth
from tests.packet_frames import SERVICE_VLAN, VLAN, ethernet, frame, ip, naive, udp

FULL = os.environ.get("CHRONICLE_FIRE") == "full"
MISSING = missing()
pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]

LINES = [("239.215.21.4", 10378), ("239.215.21.132", 10378), ("239.215.21.4", 10379)]
SOURCE = "198.19.255.1"
END = frame(LINES[2], b"this batch is over")
MTU = 4000
BATCH = 400
#: What is counted exactly.
REASONS = {"malformed", "fragments", "truncated", "bad_checksums"}
FRAME_BYTES = 1024
#: What the kernel puts before a frame: its header, an address, and alignment (packet_mmap).
OVERHEAD_BYTES = 66

OTHERS = [("239.215.21.5", 10378), ("239.215.21.132", 10379), ("10.1.2.3", 10378)]

ODDITIES = ["", "length", "udp", "udp sum", "ip", "ip sum", "options", "fragment", "kind"]


def one_in(rng: Random, count: int) -> bool:
    return rng.randrange(count) == 0


def built(rng: Random) -> bytes:
    """A frame in which one thing is odd, or none."""
    line = rng.choice(OTHERS) if one_in(rng, 8) else rng.choice(LINES)
    odd = rng.choice(
        ["", "length", "udp", "udp sum", "ip", "ip sum", "options", "fragment", "kind"]
    )
    payload = rng.randbytes(rng.randrange(3000) if odd == "length" else rng.randrange(64))
    body = udp(
        SOURCE,
        line,
        payload,
        length=rng.randrange(80) if odd == "udp" else None,
        sum_offset=rng.randrange(3) if odd == "udp sum" else 0,
        with_sum=not one_in(rng, 5),
    )
    packet = ip(
        SOURCE,
        line[0],
        body,
        protocol=rng.randrange(256) if odd == "kind" and one_in(rng, 2) else 17,
        options=rng.randbytes(4 * rng.randrange(11)) if odd == "options" else b"",
        fragment=rng.randrange(1 << 16) if odd == "fragment" else rng.choice([0, 0x4000]),
        length=rng.randrange(120) if odd == "ip" and one_in(rng, 2) else None,
        version=rng.randrange(16) if odd == "ip" and one_in(rng, 2) else 4,
        header_words=rng.randrange(16) if odd == "options" and one_in(rng, 2) else None,
        sum_offset=rng.randrange(2) if odd == "ip sum" else 0,
    )
    tags = [
        (rng.choice([VLAN, SERVICE_VLAN, VLAN, SERVICE_VLAN, 0x9100]), rng.randrange(1 << 16))
        for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 2, 3]))
    ]
    kind = rng.randrange(1 << 16) if odd == "kind" and one_in(rng, 2) else 0x0800
    return ethernet(packet + bytes(rng.choice([0, 0, 18])), tags=tags, kind=kind)


def bent(rng: Random) -> bytes:
    """A built frame; of one in three bytes were changed, or the end is missing."""
    data = bytearray(built(rng))
    if one_in(rng, 5):
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(12, min(len(data), 70))] = rng.randrange(256)
    if one_in(rng, 8):
        del data[rng.randrange(14, len(data)) :]
    return bytes(data)


@pytest.fixture(scope="module")
def rings() -> Iterator[tuple[Link, PacketRing, PacketRing]]:
    with veth(mtu=MTU) as link:
        with (
            PacketRing(link.interface, LINES, frame_bytes=FRAME_BYTES) as strict,
            PacketRing(link.interface, LINES, frame_bytes=FRAME_BYTES, checksums=False) as lenient,
        ):
            yield link, strict, lenient


def made_of(data: bytes, *, verify: bool) -> tuple[int, bytes] | str:
    """What a ring must make of a frame that was sent."""
    seen, tag_taken_out = seen_as(data)
    room = FRAME_BYTES - OVERHEAD_BYTES
    return naive(seen, LINES, room=room, tag_taken_out=tag_taken_out, verify=verify)


def seen_as(data: bytes) -> tuple[bytes, bool]:
    """The frame as a ring sees it, and whether a tag was taken out.

    The kernel takes a tag out that stands at the outside, if there is one whole.
    """
    kind = int.from_bytes(data[12:14], "big")
    if kind in (VLAN, SERVICE_VLAN) and len(data) >= 18:
        return data[:12] + data[16:], True
    return data, False


@given(st.integers(0, (1 << 32) - 1))
@settings(
    max_examples=500 if FULL else 50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_ring_makes_of_bent_frames_what_a_naive_parser_makes_of_them(
    rings: tuple[Link, PacketRing, PacketRing], seed: int
):
    rng = Random(seed)
    frames = [*(bent(rng) for _ in range(BATCH)), END]
    link, *both = rings
    before = [ring.statistics() for ring in both]
    link.send_frames(frames)
    for ring, earlier, verify in zip(both, before, (True, False), strict=True):
        made = [made_of(data, verify=verify) for data in frames]
        counts = Counter(what for what in made if isinstance(what, str))
        # A batch that lacks one of them would test less than it seems to.
        assert counts.keys() >= REASONS - (set() if verify else {"bad_checksums"})
        for what in made:
            if not isinstance(what, str):
                datagram = ring.next()
                assert datagram is not None
                assert (datagram.line, datagram.payload) == what
        assert ring.next() is None
        now = ring.statistics()
        for name in (*REASONS, "drops"):
            assert getattr(now, name) - getattr(earlier, name) == counts[name], name
        # What is not ours should not even come in, but may.
        assert now.not_ours - earlier.not_ours <= counts["not_ours"]
