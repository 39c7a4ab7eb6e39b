"""Packet rings on a real veth pair: what comes out, what is counted, what is refused."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle import PacketRing, PacketStatistics

from tests.net_support import ROOT, Link, missing, veth
from tests.packet_frames import SERVICE_VLAN, VLAN, ethernet, frame, ip, udp
from tests.packet_support import SOURCE, A, B, counted, drain, drained
from tests.sidecar_support import eventually

MISSING = missing()
pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]

NOTHING = PacketStatistics(0, 0, 0, 0, 0, 0, 0, 0, 0, "up")


# --- What comes out ---


def test_datagrams_of_both_lines_come_out_in_order_with_line_number_and_time(
    link: Link, backend: Any
):
    with PacketRing(link.interface, [A, B], backend=backend) as ring:
        before_ns = chronicle.clock_ns()
        sent = [((A, B)[n % 2], b"%d" % n * (n % 100)) for n in range(1000)]
        link.send([(*line, payload) for line, payload in sent])
        datagrams: list[chronicle.Datagram] = []

        def read() -> bool:
            while (datagram := ring.next()) is not None:
                datagrams.append(datagram)
            return len(datagrams) >= len(sent)

        eventually(read, "all datagrams")
        after_ns = chronicle.clock_ns()
        assert [d.payload for d in datagrams] == [payload for _, payload in sent]
        assert [d.line for d in datagrams] == [n % 2 for n in range(1000)]
        assert [d.number for d in datagrams] == list(range(1, 1001))
        assert all(d.source is None for d in datagrams)
        times = [d.timestamp_ns for d in datagrams]
        assert times == sorted(times)
        assert before_ns <= times[0]
        assert times[-1] <= after_ns
        size = sum(len(payload) for _, payload in sent)
        assert ring.statistics() == NOTHING._replace(datagrams=1000, bytes=size)


def test_only_our_addresses_and_ports_come_in(link: Link, backend: Any):
    with PacketRing(link.interface, [A, (link.address, 7)], backend=backend) as ring:
        link.send(
            [
                (A[0], A[1] + 1, b"other port"),
                (B[0], B[1], b"other group"),
                (link.address, A[1], b"our address, the group's port"),
                (link.address, 7, b"mine"),
                (A[0], 7, b"the group, our address's port"),
                (*A, b"group"),
            ]
        )
        assert drain(link, ring) == [(1, b"mine"), (0, b"group")]
        assert counted(ring) == {}


def test_an_empty_datagram_is_one(link: Link, backend: Any):
    with PacketRing(link.interface, [A], backend=backend) as ring:
        link.send([(*A, b""), (*A, b"behind it")])
        assert drain(link, ring) == [(0, b""), (0, b"behind it")]


@pytest.mark.parametrize(
    "tags", [[(VLAN, 5)], [(VLAN, 0)], [(SERVICE_VLAN, 100), (VLAN, 5)], [(VLAN, 1), (VLAN, 2)]]
)
def test_vlan_tags_are_looked_behind(link: Link, tags: list[tuple[int, int]], backend: Any):
    # The kernel takes the outer tag out of the frame before the ring sees it.
    with PacketRing(link.interface, [A], backend=backend) as ring:
        link.send_frames([frame(A, b"tagged", tags=tags), frame(B, b"not ours", tags=tags)])
        assert drain(link, ring) == [(0, b"tagged")]
        assert counted(ring) == {}


def test_three_vlan_tags_are_too_many(link: Link):
    with PacketRing(link.interface, [A]) as ring:
        link.send_frames([frame(A, b"tagged", tags=[(SERVICE_VLAN, 100), (VLAN, 5), (VLAN, 6)])])
        assert drain(link, ring) == []
        assert counted(ring) == {"not_ours": 1}


def test_ip_options_and_padding_do_not_count_as_payload(link: Link, backend: Any):
    options = b"\x94\x04\0\0"  # Router alert.
    packet = ip(SOURCE, A[0], udp(SOURCE, A, b"behind options"), options=options)
    short = ip(SOURCE, A[0], udp(SOURCE, A, b"x"))
    with PacketRing(link.interface, [A], backend=backend) as ring:
        link.send_frames([ethernet(packet), ethernet(short + bytes(40))])
        assert drain(link, ring) == [(0, b"behind options"), (0, b"x")]


def test_the_loopback_gives_each_datagram_once(backend: Any):
    line = ("127.0.0.1", 10378)
    with PacketRing("lo", [line], backend=backend) as ring:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for n in range(100):
                sender.sendto(b"%d" % n, line)
        found: list[bytes] = []

        def read() -> bool:
            while (datagram := ring.next()) is not None:
                found.append(datagram.payload)
            return len(found) >= 100

        eventually(read, "all datagrams")
        assert found == [b"%d" % n for n in range(100)]


def test_the_port_of_an_own_address_answers_to_nobody(link: Link, backend: Any):
    with PacketRing("lo", [("127.0.0.1", 10378)], backend=backend):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect(("127.0.0.1", 10378))
            # Without a socket on the port the first one would come back as an error.
            sender.send(b"one")
            sender.send(b"two")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", 10378))


# --- What is counted ---


def test_fragments_are_counted_and_dropped(link: Link, backend: Any):
    body = udp(SOURCE, A, bytes(64))
    parts = [
        ip(SOURCE, A[0], body[:32], fragment=0x2000),
        ip(SOURCE, A[0], body[32:], fragment=4),
        ip(SOURCE, B[0], body[32:], fragment=4),
    ]
    with PacketRing(link.interface, [A], backend=backend) as ring:
        link.send_frames([*map(ethernet, parts), frame(A, b"whole")])
        assert drain(link, ring) == [(0, b"whole")]
        # Only the first part says whose it is; over XDP the others are left to the stack.
        assert counted(ring) == {"fragments": 1 if backend == "xdp" else 2}


def test_the_kernels_own_fragments_are_counted_too(link: Link, backend: Any):
    with PacketRing(link.interface, [A], backend=backend) as ring:
        link.send([(*A, bytes(4000))])
        assert drain(link, ring) == []
        assert counted(ring) == {"fragments": 1 if backend == "xdp" else 3}


def test_a_frame_that_does_not_fit_is_counted_and_never_given_in_part():
    with veth(mtu=9000) as link:
        with PacketRing(link.interface, [A], frame_bytes=2048) as ring:
            link.send([(*A, bytes(8000)), (*A, b"small")])
            assert drain(link, ring) == [(0, b"small")]
            assert counted(ring) == {"truncated": 1}
        with PacketRing(link.interface, [A], frame_bytes=16_384) as ring:
            link.send([(*A, bytes(8000))])
            assert drain(link, ring) == [(0, bytes(8000))]
            assert counted(ring) == {}


def test_bad_checksums_are_counted_and_dropped(link: Link, backend: Any):
    frames = [
        ethernet(ip(SOURCE, A[0], udp(SOURCE, A, b"bad udp", sum_offset=1))),
        ethernet(ip(SOURCE, A[0], udp(SOURCE, A, b"bad ip"), sum_offset=1)),
        ethernet(ip(SOURCE, A[0], udp(SOURCE, A, b"none", with_sum=False))),
        frame(A, b"odd length"[:9]),
    ]
    with PacketRing(link.interface, [A], backend=backend) as ring:
        link.send_frames(frames)
        assert drain(link, ring) == [(0, b"none"), (0, b"odd lengt")]
        assert counted(ring) == {"bad_checksums": 2}
    with PacketRing(link.interface, [A], checksums=False, backend=backend) as ring:
        link.send_frames(frames)
        assert [payload for _, payload in drain(link, ring)] == [
            b"bad udp",
            b"bad ip",
            b"none",
            frames[3][42:],
        ]
        assert counted(ring) == {}


def test_one_call_passes_over_a_ring_of_bad_packets_and_no_more(link: Link, backend: Any):
    bad = ethernet(ip(SOURCE, A[0], udp(SOURCE, A, b"bad", sum_offset=1)))
    with PacketRing(link.interface, [A], frames=64, backend=backend) as ring:
        link.send_frames([bad] * 100)
        # The ring is full of them, and the kernel has said so: nothing more is on its way.
        eventually(lambda: ring.statistics().drops == 100 - 64, "the drops")
        assert ring.next() is None
        assert counted(ring) == {"bad_checksums": 64, "drops": 100 - 64}
        link.send_frames([*[bad] * 32, frame(A, b"behind them")])
        assert drain(link, ring) == [(0, b"behind them")]
        assert counted(ring) == {"bad_checksums": 64 + 32, "drops": 100 - 64}


def test_lengths_that_contradict_each_other_are_counted(link: Link, backend: Any):
    body = udp(SOURCE, A, b"0123456789")
    frames = [
        ethernet(ip(SOURCE, A[0], body, length=20 + 7)),
        ethernet(ip(SOURCE, A[0], body, length=500)),
        ethernet(ip(SOURCE, A[0], udp(SOURCE, A, b"0123456789", length=7))),
        ethernet(ip(SOURCE, A[0], udp(SOURCE, A, b"0123456789", length=19))),
        ethernet(ip(SOURCE, A[0], body, header_words=4)),
    ]
    with PacketRing(link.interface, [A], backend=backend) as ring:
        link.send_frames(frames)
        assert drain(link, ring) == []
        # The last one has no port, so over XDP it is left to the stack.
        assert counted(ring) == {"malformed": 4 if backend == "xdp" else 5}


def test_what_is_not_udp_over_ipv4_never_comes_in(link: Link, backend: Any):
    body = udp(SOURCE, A, b"x")
    with PacketRing(link.interface, [A], backend=backend) as ring:
        link.send_frames(
            [
                ethernet(ip(SOURCE, A[0], body, protocol=6)),
                ethernet(ip(SOURCE, A[0], body, version=6)),
                ethernet(ip(SOURCE, A[0], body), kind=0x86DD),
                ethernet(ip(SOURCE, A[0], b"")),
                b"\xff" * 14,
                frame(A, b"ours"),
            ]
        )
        assert drain(link, ring) == [(0, b"ours")]
        assert counted(ring) == {}


def test_a_full_ring_drops_and_every_drop_is_counted(link: Link, backend: Any):
    with PacketRing(link.interface, [A], frames=64, backend=backend) as ring:
        link.send([(*A, b"%d" % n) for n in range(1000)])
        eventually(lambda: ring.statistics().drops == 1000 - 64, "the drops")
        # The oldest are kept.
        assert drained(ring) == [b"%d" % n for n in range(64)]
        link.send([(*A, b"room again")])
        assert drain(link, ring) == [(0, b"room again")]
        assert counted(ring) == {"drops": 1000 - 64}


def test_over_xdp_a_frame_that_does_not_fit_is_among_the_drops():
    with veth(mtu=3000) as link:
        with PacketRing(link.interface, [A], backend="xdp", frame_bytes=2048) as ring:
            link.send([(*A, bytes(2500))])
            assert drain(link, ring) == []
            assert counted(ring) == {"drops": 1}
        with PacketRing(link.interface, [A], backend="xdp", frame_bytes=4096) as ring:
            link.send([(*A, bytes(2500))])
            assert drain(link, ring) == [(0, bytes(2500))]
            assert counted(ring) == {}


def test_over_xdp_what_is_not_ours_goes_to_the_stack():
    with veth() as link, PacketRing(link.interface, [A, (link.address, 7)], backend="xdp") as ring:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inbox:
            inbox.bind((link.address, 0))
            ours, port = (link.address, 7), inbox.getsockname()[1]
            link.send([(*ours, b"ours"), (link.address, port, b"the stack's")])
            assert inbox.recv(100) == b"the stack's"
        assert drain(link, ring) == [(1, b"ours")]
        # A second program would never see a packet.
        with pytest.raises(OSError, match="cannot bind an XDP socket"):
            PacketRing(link.interface, [B], backend="xdp")
    with PacketRing("lo", [A], backend="xdp"):
        assert (
            "xdp"
            in subprocess.run(["ip", "link", "show", "lo"], capture_output=True).stdout.decode()
        )
    assert (
        "xdp"
        not in subprocess.run(["ip", "link", "show", "lo"], capture_output=True).stdout.decode()
    )


def test_an_xdp_program_goes_with_its_process():
    with veth() as link:
        code = (
            "import os, signal, sys, chronicle\n"
            "ring = chronicle.PacketRing(sys.argv[1], [('239.1.1.1', 5)], backend='xdp')\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, link.interface], cwd=ROOT)
        assert done.returncode < 0
        with PacketRing(link.interface, [A], backend="xdp") as ring:
            link.send([(*A, b"free again")])
            assert drain(link, ring) == [(0, b"free again")]


def test_over_xdp_what_nobody_read_while_two_interfaces_went_is_among_the_drops():
    with veth() as link, PacketRing(link.interface, [A], backend="xdp") as ring:
        link.send([(*A, b"kept")])
        for _ in range(2):
            link.remove()
            ring.look()
            link.make()
            eventually(lambda: ring.look() == "up", "the carrier")
            before = ring.statistics().drops
            link.send([(*A, b"lost"), (*A, b"lost")])
        assert before == 2
        assert [payload for _, payload in drain(link, ring)] == [b"kept", b"lost", b"lost"]


def dropped(ring: PacketRing, count: int) -> bool:
    return ring.statistics().drops == count


def test_xdp_counts_from_all_its_sockets_are_added_up():
    with veth() as link, PacketRing(link.interface, [A], frames=16, backend="xdp") as ring:
        for turn in range(1, 3):
            link.send([(*A, b"x")] * 20)
            eventually(partial(dropped, ring, 4 * turn), "the drops")
            link.remove()
            assert ring.look() == "absent"
            # What had come before is read first.
            assert len(drained(ring)) == 16
            link.make()
            eventually(lambda: ring.look() == "up", "the carrier")
        assert counted(ring) == {"drops": 8, "rebinds": 2}


def test_many_rounds_of_a_small_ring_lose_nothing(link: Link):
    with PacketRing(link.interface, [A], frames=16, frame_bytes=512) as ring:
        found = []
        for start in range(0, 1000, 10):
            link.send([(*A, b"%d" % n) for n in range(start, start + 10)])
            found += drain(link, ring)
        assert found == [(0, b"%d" % n) for n in range(1000)]


# --- The interface goes and comes ---


def test_an_interface_that_was_down_goes_on_by_itself(backend: Any):
    with veth() as link, PacketRing(link.interface, [A], backend=backend) as ring:
        link.send([(*A, b"one")])
        link.set(state="down")
        assert ring.look() == "down"
        assert ring.statistics().state == "down"
        link.set(state="up")
        eventually(lambda: ring.look() == "up", "the carrier")
        link.send([(*A, b"two")])
        assert drain(link, ring) == [(0, b"one"), (0, b"two")]
        assert counted(ring) == {}


def test_an_interface_that_was_made_anew_is_bound_and_joined_again(backend: Any):
    with (
        veth() as link,
        PacketRing(link.interface, [A, (link.address, 7)], backend=backend) as ring,
    ):
        link.send([(*A, b"one")])
        found = drain(link, ring)
        for turn in range(2):
            link.remove()
            assert ring.look() == "absent"
            link.make()
            eventually(lambda: ring.look() == "up", "the carrier")
            assert joined(link.interface) >= {A[0]}
            link.send([(*A, b"%d" % turn), (link.address, 7, b"mine")])
            found += drain(link, ring)
        expected = [(0, b"one"), (0, b"0"), (1, b"mine"), (0, b"1"), (1, b"mine")]
        assert found == expected
        assert counted(ring) == {"rebinds": 2}
        assert joined(link.interface) >= {A[0]}
    assert A[0] not in joined(link.interface)


def joined(interface: str) -> set[str]:
    """The groups that the kernel has joined on an interface, from its own table."""
    groups: set[str] = set()
    current = ""
    for line in Path("/proc/net/igmp").read_text().splitlines()[1:]:
        if not line.startswith("\t"):
            current = line.split()[1].rstrip(":")
        elif current == interface:
            groups.add(socket.inet_ntoa(int(line.split()[0], 16).to_bytes(4, "little")))
    return groups


def test_the_groups_are_joined_while_the_ring_is_open(link: Link, backend: Any):
    lines = [(f"239.1.{n // 200}.{n % 200 + 1}", 5) for n in range(256)]
    with PacketRing(link.interface, lines, backend=backend) as ring:
        assert joined(link.interface) >= {group for group, _ in lines}
        link.send([(*line, line[0].encode()) for line in lines])
        assert drain(link, ring) == [(n, line[0].encode()) for n, line in enumerate(lines)]
    assert not joined(link.interface) & {group for group, _ in lines}


# --- What is refused ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interface": "no-such-one"}, "bad interface: found='no-such-one' expected=the name of"),
        ({"interface": "a-name-that-is-too-long"}, "expected=the name of an interface"),
        ({"lines": []}, "bad number of lines: found=0 expected=1 to 256"),
        ({"lines": [A] * 2}, "bad lines: found=239.215.21.4:10378 at 0 and at 1 expected=each"),
        ({"lines": [("ff02::1", 5)]}, r"bad line: found=\('ff02::1', 5\) expected=an IPv4"),
        ({"lines": [("239.1.1", 5)]}, r"bad line: found=\('239.1.1', 5\)"),
        ({"lines": [("239.1.1.1", 70_000)]}, "port, 1 to 65535"),
        ({"lines": [("239.1.1.1", -1)]}, "port, 1 to 65535"),
        ({"lines": [("239.1.1.1", 0)]}, "a port from 1"),
        ({"lines": [("0.0.0.0", 5)]}, "bad line: found=0.0.0.0:5 expected=a multicast group"),
        ({"lines": [("255.255.255.255", 5)]}, "a multicast group or an address of this host"),
        ({"lines": [("239.1.1.1", 1 + n) for n in range(257)]}, "bad number of lines: found=257"),
        ({"lines": ["239.1.1.1"]}, "expected=a pair of an IPv4 address and a port"),
        ({"lines": [("239.1.1.1", "5")]}, "expected=a pair of an IPv4 address and a port"),
        ({"frames": 1000}, "bad frames: found=1000 expected=a power of two, 16 to 1048576"),
        ({"frame_bytes": 256}, "bad frame_bytes: found=256 expected=a power of two, 512 to"),
        ({"frames": 1 << 20}, "at most 1073741824 bytes in all"),
        ({"backend": "dpdk"}, "bad backend: found='dpdk'"),
        ({"backend": "xdp", "frame_bytes": 8192}, "expected=2048 or 4096 with backend 'xdp'"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(arguments: dict[str, Any], message: str):
    given: dict[str, Any] = {"interface": "lo", "lines": [A], **arguments}
    with pytest.raises(chronicle.BadArgument, match=message):
        PacketRing(given.pop("interface"), given.pop("lines"), **given)


def test_without_the_capability_the_error_says_which_and_how_to_get_it():
    code = (
        "import os, logging, pathlib, chronicle\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    chronicle.PacketRing('lo', [('239.1.1.1', 5)])\n"
        "except PermissionError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "cannot open a packet socket for 'lo'" in done.stdout, done.stderr
    assert "CAP_NET_RAW" in done.stdout
    assert "AmbientCapabilities" in done.stdout


def test_a_closed_ring_says_so_and_keeps_its_counts(link: Link):
    with PacketRing(link.interface, [A]) as ring:
        link.send([(*A, b"x")])
        assert drained(ring) == [b"x"]
        assert not ring.closed
    ring.close()
    assert ring.closed
    assert ring.statistics() == NOTHING._replace(datagrams=1, bytes=1, state="closed")
    for use in (ring.next, ring.look):
        with pytest.raises(chronicle.Closed):
            use()


def test_rings_leave_no_descriptor_and_no_mapping_behind(link: Link):
    def held() -> tuple[int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text().splitlines()
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        return descriptors, sum("socket:" in line for line in maps)

    before = held()
    for _ in range(3):
        with PacketRing(link.interface, [A, (link.address, 7)]):
            assert held() > before
        PacketRing(link.interface, [A])
        with pytest.raises(chronicle.BadArgument):
            PacketRing("no-such-one", [A])
    assert held() == before


def test_a_forked_child_is_refused_and_the_parent_reads_on(link: Link):
    with PacketRing(link.interface, [A]) as ring:
        link.send([(*A, b"x")])
        child = os.fork()
        if child == 0:
            code = 1
            try:
                refused = 0
                for use in (ring.next, ring.look, ring.statistics):
                    try:
                        use()
                    except chronicle.Forked:
                        refused += 1
                ring.close()
                code = 0 if refused == 3 else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert drain(link, ring) == [(0, b"x")]
        link.send([(*A, b"y")])
        assert drain(link, ring) == [(0, b"y")]


def packet_sockets(interface: str) -> int:
    """How many packet sockets are bound to an interface."""
    index = str(socket.if_nametoindex(interface))
    lines = Path("/proc/net/packet").read_text().splitlines()[1:]
    return sum(line.split()[4] == index for line in lines)


@contextlib.contextmanager
def forked_child() -> Iterator[None]:
    """A child that has closed its copies of the sockets, and lives to the end of the block."""
    wait, go = os.pipe()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.write(tell, b"x")
        os.read(wait, 1)
        os._exit(0)
    try:
        assert os.read(told, 1) == b"x"
        yield
    finally:
        for descriptor in (go, wait, told, tell):
            os.close(descriptor)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_does_not_keep_the_ring_that_its_parent_closes(link: Link):
    before = packet_sockets(link.interface)
    ring = PacketRing(link.interface, [A], frames=16, frame_bytes=4096)
    assert packet_sockets(link.interface) == before + 1
    with forked_child():
        ring.close()
        assert packet_sockets(link.interface) == before


def test_an_xdp_ring_can_be_opened_again_whatever_was_forked(link: Link):
    ring = PacketRing(link.interface, [A], backend="xdp")
    with forked_child():
        ring.close()
        # There is one socket for each queue of an interface, and one program for an interface.
        with PacketRing(link.interface, [A], backend="xdp") as again:
            link.send([(*A, b"again")])
            assert drain(link, again) == [(0, b"again")]


def test_a_forked_child_that_closes_the_ring_unmaps_nothing_of_its_own(link: Link, backend: Any):
    with PacketRing(link.interface, [A], backend=backend, frames=16, frame_bytes=4096) as ring:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                # The kernel takes the highest gap that is large enough: one is where the ring was.
                rooms = [mmap.mmap(-1, 16 * 4096) for _ in range(64)]
                ring.close()
                for room in rooms:
                    room[:] = bytes(len(room))
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_ring_shows_what_it_is(link: Link):
    with PacketRing(link.interface, [A, B], name="feed") as ring:
        assert (ring.interface, ring.lines, ring.name) == (link.interface, (A, B), "feed")
        assert (ring.backend, ring.reason.partition(":")[0]) == (
            "packet",
            "there is no device behind the interface",
        )
    for backend in ("packet", "xdp"):
        with PacketRing(link.interface, [A], backend=backend) as ring:
            assert (ring.backend, ring.reason) == (backend, "asked for")
    with PacketRing(link.interface, [A, B], name="feed") as ring:
        assert repr(ring) == f"<PacketRing 'feed' {link.interface} 2 lines packet>"
