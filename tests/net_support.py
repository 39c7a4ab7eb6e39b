"""A network of two machines, for tests: a veth pair whose other end is in a namespace of its own.

`veth` makes it and removes it. The other namespace belongs to a helper process and to nothing else:
it goes when that process does, and with it both ends of the pair, so that nothing stays behind even
if the tests are killed. The helper sends what the test asks it to, and other programs can be
started beside it (`Link.popen`).

Needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN); `missing` says what is not there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

ROOT = Path(__file__).resolve().parents[1]
CLONE_NEWNET = 0x4000_0000
#: How long a test waits for an answer of the helper: only a hang takes that long.
PATIENCE_S = 60.0
#: The networks are cut out of 198.18.0.0/15, which is set aside for such tests (RFC 2544).
_NETWORKS = 1 << 15


def missing() -> str | None:
    """What is missing to make networks, or ``None``."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    try:
        with veth():
            return None
    except OSError as error:
        return f"network namespaces cannot be made here: {error}"


class Link:
    """Both ends of a pair, and the process that has the other one.

    Attributes
    ----------
    interface, address
        Our end.
    peer_interface, peer_address
        The other end, in its own namespace.
    """

    def __init__(self, *, mtu: int = 1500, queues: int = 1, peer_queues: int = 1) -> None:
        mark = secrets.token_hex(3)
        self.interface = f"chr{mark}a"
        self.peer_interface = f"chr{mark}b"
        network = (198 << 24) + (18 << 16) + 4 * secrets.randbelow(_NETWORKS)
        self.address, self.peer_address = (
            socket.inet_ntoa((network + end).to_bytes(4, "big")) for end in (1, 2)
        )
        self.mtu = mtu
        self.queues, self.peer_queues = queues, peer_queues
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.net_support", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
            )
        self._pipe: Connection[Any, Any] = Connection(ours.detach())
        self._ask("ready")

    # --- The pair ---

    def make(self) -> None:
        """Make the pair: both ends with their addresses, up, multicast through them."""
        with IPRoute() as route:
            ours, theirs = (
                {"num_rx_queues": count, "num_tx_queues": count}
                for count in (self.queues, self.peer_queues)
            )
            peer = {"ifname": self.peer_interface, "net_ns_pid": self._process.pid, **theirs}
            route.link("add", ifname=self.interface, kind="veth", peer=peer, **ours)
        self._ask("make", self.peer_interface, self.peer_address, self.mtu)
        self._set_up()

    def _set_up(self) -> None:
        """Give our end its address, bring it up, and wait for the carrier."""
        with IPRoute() as route:
            index = route.link_lookup(ifname=self.interface)[0]
            route.addr("add", index=index, address=self.address, prefixlen=30)
            route.link("set", index=index, state="up", mtu=self.mtu)
        # The kernel finds out about a carrier in its own time.
        state = Path(f"/sys/class/net/{self.interface}/operstate")
        end_s = time.monotonic() + PATIENCE_S
        while state.read_text() != "up\n":
            if time.monotonic() >= end_s:
                raise TimeoutError(f"interface '{self.interface}' does not come up")
            time.sleep(0.001)

    def remove(self) -> None:
        """Remove the pair; the namespace stays, and `make` makes it anew."""
        with IPRoute() as route:
            for index in route.link_lookup(ifname=self.interface):
                route.link("del", index=index)

    def go_round(self) -> None:
        """Move our end into the other namespace and back again, and bring it up."""
        self.set(net_ns_pid=self._process.pid)
        self._ask("give_back", self.interface, os.getpid())
        self._set_up()

    def set(self, **attributes: Any) -> None:
        """Change our end: ``state="down"``, ``mtu=9000``."""
        with IPRoute() as route:
            route.link("set", index=route.link_lookup(ifname=self.interface)[0], **attributes)

    @property
    def mac(self) -> bytes:
        """The hardware address of our end."""
        return bytes.fromhex(
            Path(f"/sys/class/net/{self.interface}/address").read_text().strip().replace(":", "")
        )

    # --- What the other end does ---

    def send(self, datagrams: Iterable[tuple[str, int, bytes]], *, every_s: float = 0.0) -> None:
        """Send UDP datagrams from the other end, in order: address, port, payload.

        As any program does: through a socket, multicast by the interface. Returns when all were
        handed to the kernel, which on a veth pair means that they have arrived.

        Parameters
        ----------
        every_s
            Send one every so many seconds, for as long as it takes (it polls the clock).
        """
        given = list(datagrams)
        self._ask("send", given, every_s, patience_s=PATIENCE_S + len(given) * every_s)

    def pin(self, core: int) -> None:
        """Have the other end run on one core."""
        os.sched_setaffinity(self._process.pid, {core})

    def send_frames(self, frames: Iterable[bytes]) -> None:
        """Send whole Ethernet frames as they are, through the other end."""
        self._ask("send_frames", list(frames))

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in the other namespace; whoever starts it ends it."""
        enter = [sys.executable, "-m", "tests.net_support", "enter", str(self._process.pid)]
        return subprocess.Popen([*enter, *command], cwd=options.pop("cwd", ROOT), **options)

    def _ask(self, what: str, *arguments: Any, patience_s: float = PATIENCE_S) -> Any:
        self._pipe.send((what, arguments))
        if not self._pipe.poll(patience_s):
            raise TimeoutError(f"the other end did not answer: {what}")
        kind, answer = self._pipe.recv()
        if kind == "raised":
            raise OSError(f"the other end cannot {what}: {answer}")
        return answer

    def close(self) -> None:
        """Remove everything."""
        # Ours goes with the other end, but only when the kernel gets to it.
        self.remove()
        self._pipe.close()
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def veth(*, mtu: int = 1500, queues: int = 1, peer_queues: int = 1) -> Iterator[Link]:
    """Make a network of this namespace and another one; remove it at the end."""
    link = Link(mtu=mtu, queues=queues, peer_queues=peer_queues)
    try:
        link.make()
        yield link
    finally:
        link.close()


# --- The helper, in the other namespace ---


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), name)


class _Peer:
    """What the helper does when it is asked to."""

    def __init__(self) -> None:
        self._interface = ""
        self._sockets: list[socket.socket] = []

    def ready(self) -> None:
        """Nothing: the namespace is made before the first question."""

    def make(self, interface: str, address: str, mtu: int) -> None:
        with IPRoute() as route:
            loopback = route.link_lookup(ifname="lo")[0]
            route.link("set", index=loopback, state="up")
            index = route.link_lookup(ifname=interface)[0]
            route.addr("add", index=index, address=address, prefixlen=30)
            route.link("set", index=index, state="up", mtu=mtu)
            route.route("add", dst="224.0.0.0/4", oif=index)
        for old in self._sockets:
            old.close()
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        raw.bind((interface, 0))
        self._sockets = [udp, raw]

    def give_back(self, interface: str, pid: int) -> None:
        with IPRoute() as route:
            route.link("set", index=route.link_lookup(ifname=interface)[0], net_ns_pid=pid)

    def send(self, datagrams: list[tuple[str, int, bytes]], every_s: float) -> None:
        due_s = time.monotonic()
        for address, port, payload in datagrams:
            while time.monotonic() < due_s:
                pass
            due_s += every_s
            self._sockets[0].sendto(payload, (address, port))

    def send_frames(self, frames: list[bytes]) -> None:
        for frame in frames:
            self._sockets[1].send(frame)


def _serve(number: int) -> None:
    _call("unshare", CLONE_NEWNET)
    peer = _Peer()
    with Connection(number) as pipe:
        # Whoever started us has gone when there is nothing more to read.
        with contextlib.suppress(EOFError):
            while True:
                what, arguments = pipe.recv()
                try:
                    pipe.send(("done", getattr(peer, what)(*arguments)))
                except Exception as error:
                    pipe.send(("raised", f"{type(error).__name__}: {error}"))


def _enter(pid: int, command: list[str]) -> None:
    number = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    _call("setns", number, CLONE_NEWNET)
    os.close(number)
    os.execvp(command[0], command)


if __name__ == "__main__":
    if sys.argv[1] == "enter":
        _enter(int(sys.argv[2]), sys.argv[3:])
    else:
        _serve(int(sys.argv[1]))
