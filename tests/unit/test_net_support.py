"""The tests' networks: what was made is there, and nothing of it stays."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.net_support import ROOT, missing, veth

MISSING = missing()
pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]
INTERFACES = Path("/sys/class/net")


def test_a_datagram_comes_through_and_the_pair_goes_at_the_end():
    with veth() as link:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inbox:
            inbox.bind((link.address, 0))
            link.send([(*inbox.getsockname(), b"hello"), (*inbox.getsockname(), b"again")])
            assert inbox.recv(100) == b"hello"
            payload, (sender, _) = inbox.recvfrom(100)
            assert (payload, sender) == (b"again", link.peer_address)
        assert (INTERFACES / link.interface).exists()
        assert not (INTERFACES / link.peer_interface).exists()
    assert not (INTERFACES / link.interface).exists()


def test_multicast_goes_through_the_interface():
    with veth() as link, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inbox:
        inbox.bind(("239.255.7.1", 0))
        group = socket.inet_aton("239.255.7.1") + socket.inet_aton(link.address)
        inbox.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        link.send([(*inbox.getsockname(), b"to all")])
        assert inbox.recv(100) == b"to all"


def test_the_pair_can_be_removed_and_made_anew():
    with veth() as link:
        link.remove()
        assert not (INTERFACES / link.interface).exists()
        link.make()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inbox:
            inbox.bind((link.address, 0))
            link.send([(*inbox.getsockname(), b"hello")])
            assert inbox.recv(100) == b"hello"


def test_a_program_runs_on_the_other_side():
    with veth() as link, socket.create_server((link.address, 0)) as server:
        code = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])))"
        address, port = server.getsockname()
        with link.popen([sys.executable, "-c", code, address, str(port)]) as process:
            connection, (sender, _) = server.accept()
            connection.close()
            assert (process.wait(), sender) == (0, link.peer_address)


def test_a_test_that_is_killed_leaves_nothing_behind():
    code = (
        "import os, signal; from tests.net_support import veth\n"
        "with veth() as link:\n"
        "    print(link.interface, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode < 0
    interface = INTERFACES / done.stdout.strip()
    # The kernel removes a namespace in its own time.
    while interface.exists():
        os.sched_yield()


def test_what_the_other_end_cannot_do_is_told():
    with veth() as link, pytest.raises(OSError, match="cannot send: OSError"):
        link.send([(link.address, 9, bytes(70_000))])
