"""What the tests of packet rings share: lines, and reading a ring to its end."""

from __future__ import annotations

from chronicle import PacketRing

from tests.net_support import Link
from tests.sidecar_support import eventually

A = ("239.215.21.4", 10378)
B = ("239.215.21.132", 10378)
SOURCE = "198.19.255.1"
END = b"this was the last one"


def drain(link: Link, ring: PacketRing) -> list[tuple[int, bytes]]:
    """Everything that has come, as line and payload.

    Over XDP packets come a moment after they were sent: so a last one is sent, and waited for.
    """
    address, port = ring.lines[0]
    link.send([(address, port, END)])
    found: list[tuple[int, bytes]] = []

    def is_over() -> bool:
        while (datagram := ring.next()) is not None:
            if datagram.payload == END:
                return True
            found.append((datagram.line, datagram.payload))
        return False

    eventually(is_over, "the last datagram")
    assert ring.next() is None
    return found


def drained(ring: PacketRing) -> list[bytes]:
    """What is there now."""
    found = []
    while (datagram := ring.next()) is not None:
        found.append(datagram.payload)
    return found


def counted(ring: PacketRing) -> dict[str, int]:
    """The counts that are not zero, without datagrams and bytes."""
    counts = ring.statistics()._asdict()
    for name in ("datagrams", "bytes", "state"):
        del counts[name]
    return {name: count for name, count in counts.items() if count}
