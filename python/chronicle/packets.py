"""Datagrams from the network, in memory that the kernel fills: `PacketRing`.

A ring is opened here, and read by a hot thread (`HotThread(packets=[ring])`) without a system call,
or by `PacketRing.next` in plain Python. How it works is said in ``docs/internals/packet-ring.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeAlias

from chronicle import _core
from chronicle.errors import BadArgument

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Datagram", "PacketRing", "PacketStatistics"]

Datagram = _core.Datagram

#: An XDP socket's frames lie within pages, two of them or one in each.
_XDP_FRAME_BYTES = (2048, 4096)

#: More would not fit into the kernel's filter, which has at most 4,096 instructions.
_LINES_MAX = 256
_BROADCAST = 0xFFFF_FFFF

#: An IPv4 address (of a multicast group, or of this host) and a port.
Line: TypeAlias = tuple[str, int]


class PacketStatistics(NamedTuple):
    """What a ring has counted since it was opened.

    Each frame that was read is either a datagram or counted under one of the five reasons; what the
    kernel had no room for is in `drops`, and was never in the ring.

    Attributes
    ----------
    datagrams, bytes
        Handed out, and the length of their payloads.
    not_ours
        Let pass by the kernel's filter, and refused by the second look.
    malformed
        For us, but with lengths that contradict each other.
    fragments
        Parts of datagrams; they are not put together. With XDP the first part of each only: the
        others do not say whose they are.
    truncated
        Longer than a frame of the ring: raise ``frame_bytes``.
    bad_checksums
        Damaged on the way.
    drops
        Lost because no frame of the ring was free: read faster, or raise ``frames``.
    rebinds
        Times that the ring was bound anew, since its interface had gone and come back.
    state
        Of the interface at the last look: ``"up"``, ``"down"`` (or without a carrier),
        ``"absent"``, or with XDP ``"partial"``: up, but now with more receive queues than the one
        that an XDP socket has, so that what comes over the others is not seen. ``"closed"`` once
        the ring is.

    Examples
    --------
    >>> from chronicle import PacketStatistics
    >>> PacketStatistics._fields[:2]
    ('datagrams', 'bytes')
    """

    datagrams: int
    bytes: int
    not_ours: int
    malformed: int
    fragments: int
    truncated: int
    bad_checksums: int
    drops: int
    rebinds: int
    state: str


class PacketRing(_core.PacketRing):
    """A ring of UDP datagrams of one interface, filtered by address and port. One reader at a time.

    ``next()`` returns the next `Datagram`, with a copy of its payload, or ``None`` if none was
    there when it was called; it never waits and makes no system call. A `Datagram` has ``payload``,
    ``line`` (the place in `lines`), ``timestamp_ns`` (arrival, by the kernel's clock of the day),
    ``number`` (counts the ring's datagrams from 1), and on a hot thread ``source`` (the place of
    the ring).

    Handed to a `HotThread`, the ring is the thread's until that stops (`Moved`). The sidecar that
    looks after the thread looks after the ring as well: once a second it sums up the kernel's
    drops, and binds and joins again if the interface was gone and has come back. Without a sidecar
    call `look` yourself.

    Needs CAP_NET_RAW; XDP also CAP_NET_ADMIN and CAP_BPF. Datagrams that the kernel has merged into
    one (UDP GRO, which is off by default) come out of a packet socket's ring as one.

    Parameters
    ----------
    interface
        Its name, as ``ip link`` lists it.
    lines
        Pairs of an address and a port. The groups are joined on the interface. At most 256.
    backend
        ``"packet"`` is a packet socket with a ring (AF_PACKET, TPACKET_V2): a copy of what the
        stack of this host sees. ``"xdp"`` is an XDP socket on the one receive queue (an interface
        with several is refused): ours never get to the stack, nor to other rings of the interface;
        `frame_bytes` is 2048 or 4096, and a frame longer than that less 256 counts under `drops`;
        of a datagram in fragments the first one is counted and taken, and the stack has the others.
        ``"auto"`` takes XDP where the driver of a device offers it and there is one receive queue,
        else the packet ring; `backend` and `reason` say what was chosen, and why, and so does the
        log.
    frames
        Room for so many frames: a power of two, 16 to 1,048,576. A ring that is full drops.
    frame_bytes
        Room for one frame, and for about 80 bytes that the kernel puts before it: a power of two,
        512 to 131,072. Take 16,384 for jumbo frames.
    checksums
        Verify checksums that neither the device nor the kernel has. ``False`` for traffic whose
        checksums were never filled in.
    name
        For logs and metrics; by default the interface's.

    Raises
    ------
    BadArgument
        A line, a size or an interface that cannot be; the message says what can.
    OSError
        What the kernel refused, and what to do: ``PermissionError`` without CAP_NET_RAW.

    Examples
    --------
    >>> ring = PacketRing("lo", [("0.0.0.0", 1)])
    Traceback (most recent call last):
    ...
    chronicle.errors.BadArgument: bad line: found=0.0.0.0:1 expected=a multicast group or an ...
    """

    #: Name of the interface.
    interface: str
    #: What the datagrams' `line` stands for, by place.
    lines: tuple[Line, ...]
    #: What is used.
    backend: str
    #: Why that.
    reason: str
    #: In logs and metrics.
    name: str

    def __new__(
        cls,
        interface: str,
        lines: Iterable[Line],
        *,
        backend: Literal["auto", "packet", "xdp"] = "auto",
        frames: int = 4096,
        frame_bytes: int = 2048,
        checksums: bool = True,
        name: str | None = None,
    ) -> Self:
        """Open the sockets and the ring, join the groups."""
        if backend not in ("auto", "packet", "xdp"):
            raise BadArgument(f"bad backend: found={backend!r} expected='auto', 'packet' or 'xdp'")
        pairs = tuple(_as_line(line) for line in lines)
        addresses = _as_addresses(pairs)

        from chronicle.packet_filters import socket_filter, xdp_program

        make = super().__new__

        def opened(chosen: str) -> Any:
            program = (socket_filter if chosen == "packet" else xdp_program)(addresses)
            shape = (frames, frame_bytes)
            return make(cls, interface, addresses, program, chosen, shape, checksums)

        self: Self
        taken: str = backend
        reason = "asked for"
        if backend == "auto":
            self, taken, reason = _choose(opened, interface, frame_bytes)
        else:
            self = opened(backend)
        self.interface = interface
        self.lines = pairs
        self.backend, self.reason = taken, reason
        self.name = interface if name is None else name
        _log(self)
        return self

    def look(self) -> str:
        """Look at the interface; bind and join anew if another one has its name now.

        The sidecar calls this once a second. A few system calls. Any thread, also while a hot
        thread has the ring, which notices nothing.

        Returns
        -------
        str
            ``"up"``, ``"down"``, ``"absent"``, or with XDP ``"partial"``: see `PacketStatistics`.

        Raises
        ------
        OSError
            What the kernel refused; the next look tries again.
        Closed, Forked
            If the ring is closed, or belongs to the parent of this process.
        """
        return super().look()

    def statistics(self) -> PacketStatistics:
        """Return all counts, with the kernel's drops of this moment. Any thread; one system call.

        Also while a hot thread has the ring, and after it was closed.
        """
        return PacketStatistics(**super().counts())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<PacketRing {self.name!r} {self.interface} {len(self.lines)} lines {self.backend}>"


class _Facts(NamedTuple):
    """What is known of an interface before anything is tried.

    Attributes
    ----------
    device
        Where on a bus the device behind it is; ``None`` if there is none, as with veth.
    receive_queues
        How many it has.
    """

    device: str | None
    receive_queues: int


def _choose(opened: Callable[[str], Any], interface: str, frame_bytes: int) -> tuple[Any, str, str]:
    """Open a ring by the best of what there is; return it, what it is, and why."""
    try:
        found = _core.interface_facts(interface)
    except OSError as error:
        against: str | None = f"nothing can be learnt about the interface: {error}"
    else:
        # One that does not exist is for the core to refuse.
        against = _against_xdp(_Facts(*found or (None, 0)), frame_bytes)
    if against is None:
        try:
            ring = opened("xdp-native")
        except OSError as error:
            against = f"XDP cannot be had: {error}"
        else:
            return ring, "xdp", "the driver offers XDP, and there is one receive queue"
    return opened("packet"), "packet", against


def _against_xdp(facts: _Facts, frame_bytes: int) -> str | None:
    """Return why an XDP socket would not do, as far as that can be told without trying."""
    if facts.device is None:
        return (
            "there is no device behind the interface: its packets come from hosts like this one, "
            "with checksums that nobody has filled in, which XDP cannot tell from bad ones"
        )
    if facts.receive_queues != 1:
        return f"there are {facts.receive_queues} receive queues, and an XDP socket has one"
    if frame_bytes not in _XDP_FRAME_BYTES:
        return f"frame_bytes={frame_bytes}, and the frames of an XDP socket have 2048 or 4096"
    return None


def _log(ring: PacketRing) -> None:
    # Not at the top: importing this package stays cheap.
    import logging

    logging.getLogger("chronicle.packets").info(
        "packet ring '%s' on interface '%s': backend=%s; %s",
        ring.name,
        ring.interface,
        ring.backend,
        ring.reason,
    )


def _as_line(line: Any) -> Line:
    try:
        address, port = line
    except (TypeError, ValueError):
        address, port = line, None
    if not isinstance(address, str) or not isinstance(port, int) or isinstance(port, bool):
        raise BadArgument(
            f"bad line: found={line!r} expected=a pair of an IPv4 address and a port, "
            "as ('239.1.2.3', 10378)"
        )
    return address, port


def _as_addresses(lines: tuple[Line, ...]) -> list[tuple[int, int]]:
    """Return lines as the core and the kernel take them, or say which one cannot be, and why."""
    from ipaddress import AddressValueError, IPv4Address

    if not 1 <= len(lines) <= _LINES_MAX:
        raise BadArgument(
            f"bad number of lines: found={len(lines)} expected=1 to {_LINES_MAX} pairs of an "
            "address and a port"
        )
    found: dict[tuple[int, int], int] = {}
    for place, (text, port) in enumerate(lines):
        try:
            address = int(IPv4Address(text))
        except AddressValueError:
            address = -1
        if address < 0 or not 0 <= port <= 0xFFFF:
            raise BadArgument(
                f"bad line: found=('{text}', {port}) expected=an IPv4 address as '239.1.2.3' and a "
                "port, 1 to 65535"
            )
        if address in (0, _BROADCAST) or port == 0:
            raise BadArgument(
                f"bad line: found={text}:{port} expected=a multicast group or an address of this "
                "host, and a port from 1"
            )
        first = found.setdefault((address, port), place)
        if first != place:
            raise BadArgument(
                f"bad lines: found={text}:{port} at {first} and at {place} expected=each address "
                "and port once"
            )
    return list(found)
