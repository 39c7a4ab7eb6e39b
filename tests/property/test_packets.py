"""Frames that were bent in every way, through a real ring, against a naive parser.

Each example is a batch of frames, sent through veth pairs to two rings of a backend (with and
without checksums) and closed by a datagram that marks its end. What comes out must be what the
naive parser makes of them, in order, and every frame that is ours must be in one of the counts.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from chronicle import PacketRing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.net_support import Link, missing, veth
from tests.packet_frames import SERVICE_VLAN, VLAN, ethernet, frame, ip, naive, udp
from tests.sidecar_support import eventually

FULL = os.environ.get("CHRONICLE_FIRE") == "full"
MISSING = missing()
pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]

LINES = [("239.215.21.4", 10378), ("239.215.21.132", 10378), ("239.215.21.4", 10379)]
SOURCE = "198.19.255.1"
END = frame(LINES[2], b"this batch is over")
#: More than the longest frame, and as much as veth bears with an XDP program.
MTU = 3400
BATCH = 400
#: What is counted exactly.
REASONS = {"malformed", "fragments", "truncated", "bad_checksums", "drops"}

#: Of the word with flags and offset: more fragments follow.
MORE = 0x2000

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
        fragment=rng.choice([rng.randrange(1 << 16), MORE])
        if odd == "fragment"
        else rng.choice([0, 0x4000]),
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


@dataclass(frozen=True)
class Side:
    """One backend: how it differs, and its rings, each with the other end of its network."""

    backend: str
    rings: tuple[tuple[Link, PacketRing, bool], ...]

    def made_of(self, data: bytes, *, verify: bool) -> tuple[int, bytes] | str:
        """What a ring must make of a frame that was sent."""
        if self.backend == "packet":
            seen, tag_taken_out = seen_as(data)
            room = PACKET_FRAME_BYTES - PACKET_OVERHEAD_BYTES
            return naive(seen, LINES, room=room, tag_taken_out=tag_taken_out, verify=verify)
        room = XDP_FRAME_BYTES - XDP_OVERHEAD_BYTES
        whole = len(data)
        options = {"verify": verify, "by_port": True, "may_be_partial": True}
        made = naive(data, LINES, room=whole, **options)
        # What is too long is dropped by the kernel, after the program has found that it is ours.
        return "drops" if made != "not_ours" and whole > room else made


PACKET_FRAME_BYTES = 1024
#: What the kernel puts before a frame: its header, an address, and alignment (packet_mmap).
PACKET_OVERHEAD_BYTES = 66
XDP_FRAME_BYTES = 2048
#: XDP_PACKET_HEADROOM.
XDP_OVERHEAD_BYTES = 256


def seen_as(data: bytes) -> tuple[bytes, bool]:
    """The frame as a packet ring sees it, and whether a tag was taken out.

    The kernel takes a tag out that stands at the outside, if there is one whole.
    """
    kind = int.from_bytes(data[12:14], "big")
    if kind in (VLAN, SERVICE_VLAN) and len(data) >= 18:
        return data[:12] + data[16:], True
    return data, False


@pytest.fixture(scope="module", params=["packet", "xdp"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    backend: Any = request.param
    frame_bytes = XDP_FRAME_BYTES if backend == "xdp" else PACKET_FRAME_BYTES
    # An XDP ring has its interface for itself.
    with veth(mtu=MTU) as one, veth(mtu=MTU) as two:
        options: Any = {"backend": backend, "frame_bytes": frame_bytes}
        with (
            PacketRing(one.interface, LINES, **options) as strict,
            PacketRing(two.interface, LINES, checksums=False, **options) as lenient,
        ):
            yield Side(backend, ((one, strict, True), (two, lenient, False)))


@given(st.integers(0, (1 << 32) - 1))
@settings(
    max_examples=500 if FULL else 50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_ring_makes_of_bent_frames_what_a_naive_parser_makes_of_them(side: Side, seed: int):
    rng = Random(seed)
    frames = [*(bent(rng) for _ in range(BATCH)), END]
    seen: Counter[str] = Counter()
    for link, ring, verify in side.rings:
        before = ring.statistics()
        expected = [side.made_of(data, verify=verify) for data in frames]
        counts = Counter(what for what in expected if isinstance(what, str))
        seen += counts
        datagrams = [what for what in expected if not isinstance(what, str)]
        link.send_frames(frames)
        found = read(ring, len(datagrams))
        assert [(datagram.line, datagram.payload) for datagram in found] == datagrams
        assert ring.next() is None
        now = ring.statistics()
        for name in REASONS:
            assert getattr(now, name) - getattr(before, name) == counts[name], name
        # What is not ours should not even come in, but may.
        assert now.not_ours - before.not_ours <= counts["not_ours"]
    # A batch that lacks one of them would test less than it seems to.
    never = {"packet": {"drops"}, "xdp": {"truncated"}}[side.backend]
    assert seen.keys() >= REASONS - never


def read(ring: PacketRing, count: int) -> list[Any]:
    """So many datagrams; over XDP they come a moment after they were sent."""
    found: list[Any] = []

    def is_over() -> bool:
        while (datagram := ring.next()) is not None:
            found.append(datagram)
        return len(found) >= count

    eventually(is_over, f"{count} datagrams")
    return found
