"""The wire between the demo's venue and its feed handler: a veth pair, or the loopback.

A veth pair needs the right to make network namespaces. The venue's end lies in a namespace that
belongs to the venue's process and to nothing else: it goes when that process does, and with it both
ends of the pair. So nothing stays behind, however the demo ends.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import socket
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

CLONE_NEWNET: Final = 0x4000_0000
GROUPS: Final = ("233.215.21.4", "233.215.21.132")
#: Networks of the pair are cut out of 198.18.0.0/15, which is set aside for tests (RFC 2544).
_NETWORKS: Final = 1 << 15


class Wire(NamedTuple):
    """How packets come.

    Attributes
    ----------
    name, why
        What is used, and why not something better.
    interface
        That the feed handler listens at.
    lines
        Groups and ports.
    address
        Of the venue's end.
    peer
        The venue's end, if the venue must be started in a namespace of its own (`enter`).
    connect
        Called with the venue's process id when it is in its namespace; makes the pair.
    """

    name: str
    why: str
    interface: str
    lines: tuple[str, ...]
    address: str
    peer: str | None = None
    connect: Callable[[int], None] = lambda _pid: None


def choose_wire(path: str) -> Wire | None:
    """Return what `path` asks for: ``"auto"`` the best that may be had, ``None`` no packets."""
    if path == "queue":
        return None
    reason = ""
    if path != "loopback":
        why = _why_no_namespace()
        if why is None:
            return _veth()
        if path == "veth":
            raise OSError(f"no veth pair: {why}; try --path loopback or --path queue")
        reason = f", no veth pair: {why}"
    why = _why_no_packets()
    if why is None:
        return _loopback(reason)
    if path == "loopback":
        raise OSError(f"no packets: {why}; try --path queue")
    return None


def _loopback(why: str) -> Wire:
    # Ports of this run only: several demos may run beside each other.
    port = 20_000 + secrets.randbelow(20_000)
    lines = tuple(f"{group}:{port}" for group in GROUPS)
    return Wire("multicast on the loopback", why, "lo", lines, "127.0.0.1")


def _veth() -> Wire:
    mark = secrets.token_hex(3)
    network = (198 << 24) + (18 << 16) + 4 * secrets.randbelow(_NETWORKS)
    ours, theirs = (socket.inet_ntoa((network + end).to_bytes(4, "big")) for end in (1, 2))

    def connect(pid: int) -> None:
        make_pair(pid, f"demo{mark}a", f"demo{mark}b", ours)

    lines = tuple(f"{group}:10378" for group in GROUPS)
    peer = f"demo{mark}b"
    return Wire("multicast over a veth pair", "", f"demo{mark}a", lines, theirs, peer, connect)


def make_pair(pid: int, interface: str, peer: str, address: str) -> None:
    """Make a veth pair whose other end is in the network namespace of a process."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("add", ifname=interface, kind="veth", peer={"ifname": peer, "net_ns_pid": pid})
        bring_up(route, interface, address)


def bring_up(route: Any, interface: str, address: str) -> int:
    """Give an interface its address; return its index."""
    index: int = route.link_lookup(ifname=interface)[0]
    route.addr("add", index=index, address=address, prefixlen=30)
    route.link("set", index=index, state="up")
    return index


def _why_no_namespace() -> str | None:
    """Try in a child: what is not left behind need not be cleaned up."""
    if os.geteuid() != 0:
        return "it needs root"
    try:
        import pyroute2  # noqa: F401 - only whether it is there
    except ImportError:
        return "it needs pyroute2 (`make setup` installs it)"
    child = os.fork()
    if child == 0:
        os._exit(0 if _unshare() == 0 else 1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        return "network namespaces cannot be made here"
    return None


def _why_no_packets() -> str | None:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except OSError as error:
        return f"packet sockets need CAP_NET_RAW ({error.strerror})"
    return None


def _unshare() -> int:
    return int(ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET))


def enter(interface: str, address: str, command: list[str]) -> None:
    """Run a command in a new network namespace, when a line comes in: then the pair is there."""
    from pyroute2 import IPRoute

    if _unshare() != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"no network namespace: {os.strerror(error)}")
    print("in its namespace", flush=True)
    # Not by `sys.stdin`, which would take more than the line.
    while os.read(0, 1) not in (b"\n", b""):
        pass
    with IPRoute() as route:
        index = bring_up(route, interface, address)
        route.route("add", dst="224.0.0.0/4", oif=index)
    os.execv(command[0], command)


if __name__ == "__main__":
    enter(sys.argv[1], sys.argv[2], sys.argv[3:])
