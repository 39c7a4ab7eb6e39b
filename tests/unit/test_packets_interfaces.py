"""Packet rings and their interfaces: which backend it is to be, what becomes of others' packets,
interfaces with several queues, that were elsewhere meanwhile, or in a namespace of their own.
"""

from __future__ import annotations

import array
import fcntl
import gc
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle import PacketRing, _core
from chronicle.packets import _against_xdp, _Facts
from chronicle.sidecar.packetcare import PacketCare
from pyroute2 import IPRoute

from tests.net_support import ROOT, Link, missing, veth
from tests.packet_support import A, B, counted, drain, drained
from tests.sidecar_support import eventually

MISSING = missing()
pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]

#: Enough of them that every queue of four gets some.
MANY = [(f"239.1.1.{n}", 5000 + n) for n in range(1, 33)]


# --- Which it is to be ---


@pytest.mark.parametrize(
    ("device", "queues", "frame_bytes", "reason"),
    [
        ("0000:03:00.0", 1, 2048, None),
        ("virtio2", 1, 4096, None),
        (None, 1, 2048, "there is no device behind the interface"),
        (None, 8, 8192, "there is no device behind the interface"),
        ("0000:03:00.0", 2, 2048, "there are 2 receive queues"),
        ("0000:03:00.0", 64, 8192, "there are 64 receive queues"),
        # A kernel that does not say.
        ("0000:03:00.0", 0, 2048, "there are 0 receive queues"),
        ("0000:03:00.0", 1, 1024, "frame_bytes=1024"),
        ("0000:03:00.0", 1, 16_384, "frame_bytes=16384"),
    ],
)
def test_the_choice_is_a_function_of_what_is_known(
    device: str | None, queues: int, frame_bytes: int, reason: str | None
):
    against = _against_xdp(_Facts(device, queues), frame_bytes)
    if reason is None:
        assert against is None
    else:
        assert against is not None
        assert against.startswith(reason)


def pretend(monkeypatch: pytest.MonkeyPatch, device: str | None, queues: int) -> None:
    """Have every interface look as if it were this one."""
    monkeypatch.setattr(_core, "interface_facts", lambda _name: (device, queues))


def test_a_device_whose_driver_offers_xdp_gets_an_xdp_socket(
    link: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    # All but the device is as it is there: veth has one queue, and runs XDP programs itself.
    assert _core.interface_facts(link.interface) == (None, 1)
    pretend(monkeypatch, "0000:03:00.0", 1)
    with caplog.at_level(logging.INFO, "chronicle.packets"):
        with PacketRing(link.interface, [A], name="feed") as ring:
            assert ring.backend == "xdp"
            assert ring.reason == "the driver offers XDP, and there is one receive queue"
            shown = subprocess.run(["ip", "link", "show", link.interface], capture_output=True)
            # In the driver: what runs behind it is "xdpgeneric".
            assert b" xdp " in shown.stdout
            link.send([(*A, b"one"), (*B, b"not ours")])
            assert drain(link, ring) == [(0, b"one")]
    assert f"'feed' on interface '{link.interface}': backend=xdp; the driver offers" in caplog.text


def test_a_driver_that_does_not_offer_xdp_gets_a_packet_ring(monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, "0000:03:00.0", 1)
    # The loopback runs such programs only behind its driver.
    with PacketRing("lo", [("127.0.0.1", 10378)]) as ring:
        assert ring.backend == "packet"
        assert ring.reason.startswith("XDP cannot be had: ")
        assert "attach an XDP program" in ring.reason


def test_an_interface_that_is_taken_gets_a_packet_ring(link: Link, monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, "0000:03:00.0", 1)
    with PacketRing(link.interface, [A], backend="xdp"):
        with PacketRing(link.interface, [B]) as ring:
            assert ring.backend == "packet"
            assert "bind an XDP socket" in ring.reason
            link.send([(*B, b"seen all the same")])
            assert drain(link, ring) == [(0, b"seen all the same")]


def test_where_nothing_can_be_learnt_there_is_a_packet_ring(
    link: Link, monkeypatch: pytest.MonkeyPatch
):
    def refuse(_name: str) -> None:
        raise PermissionError("no such sockets here")

    monkeypatch.setattr(_core, "interface_facts", refuse)
    with PacketRing(link.interface, [A]) as ring:
        assert ring.backend == "packet"
        assert "no such sockets here" in ring.reason


def devices() -> list[str]:
    """The interfaces that have a device behind them, as far as they are shown."""
    return [path.parent.name for path in Path("/sys/class/net").glob("*/device")]


@pytest.mark.skipif(not devices(), reason="needs an interface with a device behind it")
def test_what_is_known_is_of_the_namespace_that_the_ring_is_opened_in():
    # There an interface of the same name is another one, and `/sys` still shows the first.
    code = (
        "import sys\n"
        "from pyroute2 import IPRoute\n"
        "from tests.net_support import _call, CLONE_NEWNET\n"
        "from chronicle import PacketRing, _core\n"
        "name = sys.argv[1]\n"
        "before = _core.interface_facts(name)\n"
        "_call('unshare', CLONE_NEWNET)\n"
        "with IPRoute() as route:\n"
        "    route.link('add', ifname=name, kind='veth', peer={'ifname': 'other'})\n"
        "assert before[0] is not None, before\n"
        "assert _core.interface_facts(name) == (None, 1)\n"
        "with PacketRing(name, [('239.1.1.1', 5)]) as ring:\n"
        "    print(ring.backend, ring.reason)\n"
    )
    command = [sys.executable, "-c", code, devices()[0]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("packet there is no device behind"), done.stdout + done.stderr


# --- Several queues ---


def set_queues(interface: str, receive: int, send: int) -> None:
    """What ``ethtool -L`` does: struct ethtool_channels of linux/ethtool.h."""
    get, put, ioctl = 0x3C, 0x3D, 0x8946
    words = array.array("I", [get, *[0] * 8])
    request = struct.pack("16sP16x", interface.encode(), words.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        fcntl.ioctl(asking, ioctl, request)
        words[0], words[5], words[6] = put, receive, send
        fcntl.ioctl(asking, ioctl, request)


def test_an_interface_with_several_queues_is_refused_by_xdp_and_read_by_the_packet_ring(
    monkeypatch: pytest.MonkeyPatch,
):
    with veth(queues=4, peer_queues=4) as link:
        assert _core.interface_facts(link.interface) == (None, 4)
        message = r"found='xdp' on an interface with 4 receive queues expected=one queue \(`ethtool"
        with pytest.raises(chronicle.BadArgument, match=message):
            PacketRing(link.interface, MANY, backend="xdp")
        pretend(monkeypatch, "0000:03:00.0", 4)
        with PacketRing(link.interface, MANY) as ring:
            assert ring.backend == "packet"
            assert ring.reason == "there are 4 receive queues, and an XDP socket has one"
            link.send([(*line, b"x") for line in MANY])
            assert drain(link, ring) == [(n, b"x") for n in range(len(MANY))]


def test_queues_that_an_interface_gets_later_are_told():
    with veth(queues=4) as link:
        set_queues(link.interface, 1, 4)
        with PacketRing(link.interface, MANY, backend="xdp") as ring:
            assert ring.look() == "up"
            care = PacketCare([ring])
            service = care.service("packets")
            set_queues(link.interface, 2, 4)
            assert ring.look() == "partial"
            assert ring.statistics().state == "partial"
            care.look()
            assert service.examine is not None
            assert "is partial: an XDP socket gets" in str(service.examine())
            set_queues(link.interface, 1, 4)
            assert ring.look() == "up"
            link.send([(*line, b"x") for line in MANY])
            assert drain(link, ring) == [(n, b"x") for n in range(len(MANY))]
            assert counted(ring) == {}


# --- Other people's packets ---


def test_over_xdp_fragments_that_may_be_anybodys_go_to_the_stack(link: Link):
    with (
        PacketRing(link.interface, [A, (link.address, 7)], backend="xdp") as ring,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inbox,
    ):
        inbox.bind((link.address, 0))
        inbox.settimeout(60)
        large = bytes(range(250)) * 16
        link.send([(link.address, inbox.getsockname()[1], large)])
        assert inbox.recv(5000) == large
        link.send([(link.address, 7, large)])
        assert drain(link, ring) == []
        # Of ours the first one was taken, so the stack cannot put the rest together either.
        assert counted(ring) == {"fragments": 1}


def test_what_a_sender_has_merged_comes_as_one_out_of_a_packet_socket(link: Link, backend: Any):
    # A limit, and told as one: the ring's header does not say that there is more than one in it.
    code = (
        "import socket, sys\n"
        "udp_segment = 103\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:\n"
        "    own = socket.inet_aton(sys.argv[1])\n"
        "    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)\n"
        "    sender.setsockopt(socket.IPPROTO_UDP, udp_segment, 100)\n"
        "    sender.sendto(b'a' * 100 + b'b' * 100 + b'c' * 50, (sys.argv[2], int(sys.argv[3])))\n"
    )
    with PacketRing(link.interface, [A], backend=backend) as ring:
        command = [sys.executable, "-c", code, link.peer_address, A[0], str(A[1])]
        with link.popen(command) as process:
            assert process.wait(60) == 0
        parts = [b"a" * 100, b"b" * 100, b"c" * 50]
        expected = parts if backend == "xdp" else [b"".join(parts)]
        assert [payload for _, payload in drain(link, ring)] == expected


# --- Elsewhere meanwhile ---


def test_an_interface_that_was_elsewhere_between_two_looks_is_bound_again(backend: Any):
    with veth() as link, PacketRing(link.interface, [A], backend=backend) as ring:
        index = socket.if_nametoindex(link.interface)
        link.send([(*A, b"before")])
        found = drain(link, ring)
        link.go_round()
        assert socket.if_nametoindex(link.interface) == index
        eventually(lambda: ring.look() == "up", "the carrier")
        link.send([(*A, b"after")])
        found += drain(link, ring)
        assert found == [(0, b"before"), (0, b"after")]
        assert counted(ring) == {"rebinds": 1}


def test_an_interface_that_had_another_name_for_a_moment_is_read_on(backend: Any):
    with veth() as link, PacketRing(link.interface, [A], backend=backend) as ring:
        link.send([(*A, b"before")])
        found = drain(link, ring)
        link.set(state="down")
        link.set(ifname="elsewhere")
        assert ring.look() == "absent"
        with IPRoute() as route:
            index = route.link_lookup(ifname="elsewhere")[0]
            route.link("set", index=index, ifname=link.interface)
        link.set(state="up")
        eventually(lambda: ring.look() == "up", "the carrier")
        link.send([(*A, b"after")])
        found += drain(link, ring)
        assert found == [(0, b"before"), (0, b"after")]
        assert counted(ring) == {}


def test_xdp_is_not_opened_anew_from_a_thread_in_another_namespace():
    # There another interface has the index, or none has.
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from pyroute2 import IPRoute\n"
        "from tests.net_support import _call, CLONE_NEWNET\n"
        "from chronicle import PacketRing\n"
        "def make():\n"
        "    with IPRoute() as route:\n"
        "        route.link('add', ifname='here', kind='veth', peer={'ifname': 'there'})\n"
        "        for name in ('here', 'there'):\n"
        "            route.link('set', index=route.link_lookup(ifname=name)[0], state='up')\n"
        "with ThreadPoolExecutor(1) as elsewhere:\n"
        "    elsewhere.submit(int).result()\n"
        "    _call('unshare', CLONE_NEWNET)\n"
        "    make()\n"
        "    with PacketRing('here', [('239.1.1.1', 5)], backend='xdp') as ring:\n"
        "        assert elsewhere.submit(ring.look).result() in ('up', 'down')\n"
        "        with IPRoute() as route:\n"
        "            route.link('del', index=route.link_lookup(ifname='here')[0])\n"
        "        assert elsewhere.submit(ring.look).result() == 'absent'\n"
        "        make()\n"
        "        try:\n"
        "            elsewhere.submit(ring.look).result()\n"
        "        except OSError as error:\n"
        "            print(error)\n"
        "        while ring.look() != 'up':\n"
        "            pass\n"
        "        print(ring.statistics().rebinds)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert "in another network namespace than the ring" in done.stdout, done.stdout + done.stderr
    assert done.stdout.endswith("\n1\n")


def test_groups_that_could_not_be_joined_again_are_joined_by_a_later_look(backend: str):
    # In a namespace of its own, for the limit.
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pyroute2 import IPRoute\n"
        "from tests.net_support import _call, CLONE_NEWNET\n"
        "_call('unshare', CLONE_NEWNET)\n"
        "from chronicle import PacketRing\n"
        "limit = Path('/proc/sys/net/ipv4/igmp_max_memberships')\n"
        "def make():\n"
        "    with IPRoute() as route:\n"
        "        route.link('add', ifname='here', kind='veth', peer={'ifname': 'there'})\n"
        "        for name in ('here', 'there'):\n"
        "            route.link('set', index=route.link_lookup(ifname=name)[0], state='up')\n"
        "make()\n"
        "with PacketRing('here', [('239.1.1.1', 5)], backend=sys.argv[1]) as ring:\n"
        "    with IPRoute() as route:\n"
        "        route.link('del', index=route.link_lookup(ifname='here')[0])\n"
        "    assert ring.look() == 'absent'\n"
        "    make()\n"
        "    limit.write_text('0')\n"
        "    for _ in range(2):\n"
        "        try:\n"
        "            ring.look()\n"
        "        except OSError as error:\n"
        "            assert 'igmp_max_memberships' in str(error), error\n"
        "        else:\n"
        "            raise AssertionError('not refused')\n"
        "        # So that the reader goes over to the new memory.\n"
        "        assert ring.next() is None\n"
        "    limit.write_text('20')\n"
        "    while ring.look() != 'up':\n"
        "        pass\n"
        "    assert ring.statistics().rebinds == 1\n"
        "    assert '010101EF' in Path('/proc/net/igmp').read_text()\n"
        "    print('mended')\n"
    )
    command = [sys.executable, "-c", code, backend]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout == "mended\n", done.stdout + done.stderr


def settle(link: Link) -> None:
    """Wait until all that was sent has come to where it goes: one more, to the stack, has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inbox:
        inbox.bind((link.address, 0))
        inbox.settimeout(60)
        link.send([(*inbox.getsockname(), b"the last one")])
        assert inbox.recv(100) == b"the last one"


def test_what_was_dropped_last_is_counted_when_the_interface_goes_and_at_the_end(backend: Any):
    with veth() as link:
        with PacketRing(link.interface, [A], frames=16, backend=backend) as ring:
            link.send([(*A, b"x")] * 20)
            settle(link)
            link.remove()
            assert ring.look() == "absent"
            assert counted(ring) == {"drops": 4}
            link.make()
            eventually(lambda: ring.look() == "up", "the carrier")
            assert len(drained(ring)) == 16
            assert ring.next() is None
            link.send([(*A, b"x")] * 18)
            settle(link)
        assert counted(ring) == {"drops": 4 + 2, "rebinds": 1}


# --- What is left ---


def held() -> tuple[int, int]:
    """Descriptors of this process, and mappings of sockets and of memory for them."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text().splitlines()
    kept = sum("socket:" in line or "/dev/zero" in line for line in maps)
    return len(list(Path("/proc/self/fd").iterdir())), kept


def test_xdp_rings_and_attempts_at_them_leave_nothing_behind(
    link: Link, monkeypatch: pytest.MonkeyPatch
):
    lines = [A, (link.address, 7)]
    before = held()
    for _ in range(3):
        with PacketRing(link.interface, lines, backend="xdp"):
            assert held() > before
            taken = held()
            with pytest.raises(OSError, match="bind an XDP socket"):
                PacketRing(link.interface, lines, backend="xdp")
            assert held() == taken
        with pytest.raises(chronicle.BadArgument):
            PacketRing(link.interface, lines, backend="xdp", frame_bytes=512)
        with monkeypatch.context() as patch:
            # Refused at the last step.
            pretend(patch, "0000:03:00.0", 1)
            PacketRing("lo", lines).close()
        # Without a close.
        PacketRing(link.interface, lines, backend="xdp")
        assert held() == before


# --- Forks and privileges ---


def test_a_child_forked_while_another_thread_looks_is_refused_and_does_not_hang(
    link: Link, backend: Any
):
    is_over = threading.Event()
    with PacketRing(link.interface, [A], backend=backend) as ring:

        def keep_looking() -> None:
            while not is_over.is_set():
                ring.look()

        looker = threading.Thread(target=keep_looking)
        looker.start()
        try:
            codes = [child_that_uses(ring) for _ in range(30)]
        finally:
            is_over.set()
            looker.join()
        assert codes == [0] * 30


def child_that_uses(ring: PacketRing) -> int:
    """The exit code of a forked child that tries all that needs the ring's sockets."""
    child = os.fork()
    if child == 0:
        import signal

        code = 1
        try:
            # Should it wait for what the looking thread had: that is not in the child.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)
            refused = 0
            for use in (ring.look, ring.statistics):
                try:
                    use()
                except chronicle.Forked:
                    refused += 1
            ring.close()
            code = 0 if refused == 2 else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_xdp_needs_the_three_capabilities_that_are_named_and_no_other(link: Link):
    code = (
        "import ctypes, os, sys\n"
        "import chronicle, logging, pathlib, resource\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.prctl(8, 1, 0, 0, 0) == 0\n"  # PR_SET_KEEPCAPS
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "net_admin, net_raw, bpf = 12, 13, 39\n"
        "low, high = 1 << net_admin | 1 << net_raw, 1 << bpf - 32\n"
        "header = (ctypes.c_uint32 * 2)(0x20080522, 0)\n"
        "data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)\n"
        "assert libc.capset(header, data) == 0\n"
        "lines = [(f'239.1.{n // 200}.{n % 200 + 1}', 5) for n in range(256)]\n"
        "with chronicle.PacketRing(sys.argv[1], lines, backend='xdp', frames=64) as ring:\n"
        "    print(ring.backend)\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))\n"
        "try:\n"
        "    chronicle.PacketRing(sys.argv[1], lines, backend='xdp', frames=4096)\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, link.interface]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    first, _, second = done.stdout.partition("\n")
    assert first == "xdp", done.stdout + done.stderr
    assert "cannot make the memory of an XDP socket" in second
    assert "raise RLIMIT_MEMLOCK" in second
