"""Programs that the kernel runs on every packet of an interface, to pick those of a ring.

A packet socket takes classic BPF (`socket_filter`), an XDP socket eBPF (`xdp_program`). Both are
assembled here, a few instructions each, so that no compiler and no loader is needed. Both let pass
what may be a datagram for one of the lines: IPv4, UDP, address and port, behind at most two VLAN
tags. What passes is looked at again by whoever reads the ring; nothing depends on these programs
but how much that is.

A packet of which the port cannot be told (a fragment, or a header too short to be one) gets to a
packet socket by its address, and is counted there. The XDP program is stricter: what a packet
socket gets is a copy, but what goes to an XDP socket is gone for everybody else. So such a packet
is left to the stack.

The kernel's verifier checks each program before it runs. Instructions are those of linux/filter.h
and linux/bpf.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

from chronicle._core import XDP_STAMP_BYTES, XDP_STAMP_MAGIC

__all__ = ["Address", "socket_filter", "xdp_program"]

#: IPv4 address and port, as numbers.
Address: TypeAlias = tuple[int, int]

_TYPE_IPV4: Final = 0x0800
_TYPE_VLAN: Final = 0x8100
_TYPE_VLAN_SERVICE: Final = 0x88A8
_VLAN_TAGS_MAX: Final = 2
_PROTOCOL_UDP: Final = 17
#: More fragments follow, or this is not the first.
_FRAGMENT_BITS: Final = 0x3FFF
_NOT_THE_FIRST_BITS: Final = 0x1FFF


class _Label:
    """A place in a program that jumps may go to before it is known."""

    at: int

    def distance(self, origin: int) -> int:
        """Return how many instructions a jump from `origin` passes over."""
        distance = self.at - origin - 1
        assert distance >= 0, "jumps go forward"
        return distance


class _Assembler:
    """A program under construction: what makes each instruction, once places are known."""

    def __init__(self) -> None:
        self._made: list[Callable[[int], bytes]] = []

    def place(self, label: _Label) -> None:
        label.at = len(self._made)

    def finish(self) -> bytes:
        return b"".join(make(at) for at, make in enumerate(self._made))


# --- Classic BPF, for a packet socket ---

_SOCK_FILTER: Final = struct.Struct("<HBBI")
_KEEP, _DROP = 0xFFFF_FFFF, 0

#: From a place in the packet, and from one behind the index register.
_LOAD_HALF: Final = 0x28
_LOAD_BYTE_INDEXED, _LOAD_HALF_INDEXED, _LOAD_WORD_INDEXED = 0x50, 0x48, 0x40
_LOAD_SCRATCH, _STORE_SCRATCH = 0x60, 0x02
_LOAD_INDEX, _INDEX_FROM_A, _ADD_INDEX = 0x01, 0x07, 0x0C
_AND, _SHIFT_LEFT = 0x54, 0x64
_JUMP, _IF_EQUAL, _IF_ANY_BIT, _IF_AT_LEAST = 0x05, 0x15, 0x45, 0x35
_RETURN: Final = 0x06

#: Where the program keeps what it will compare.
_SCRATCH_ADDRESS, _SCRATCH_PORT = 0, 1


class _Classic(_Assembler):
    def plain(self, code: int, k: int = 0) -> None:
        self._made.append(lambda _: _SOCK_FILTER.pack(code, 0, 0, k))

    def jump(self, to: _Label) -> None:
        self._made.append(lambda at: _SOCK_FILTER.pack(_JUMP, 0, 0, to.distance(at)))

    def branch(self, code: int, k: int, yes: _Label, no: _Label) -> None:
        self._made.append(lambda at: _SOCK_FILTER.pack(code, yes.distance(at), no.distance(at), k))

    def branch_if(self, code: int, k: int, yes: _Label) -> None:
        """Go to `yes` if the comparison holds, else on."""
        following = _Label()
        self.branch(code, k, yes, following)
        self.place(following)

    def branch_unless(self, code: int, k: int, no: _Label) -> None:
        """Go on if the comparison holds, else to `no`."""
        following = _Label()
        self.branch(code, k, following, no)
        self.place(following)


def socket_filter(lines: Sequence[Address]) -> bytes:
    """Return the filter of a packet socket for these lines. Loads behind a packet's end drop it."""
    to = _Classic()
    drop, other, by_port, by_address = _Label(), _Label(), _Label(), _Label()
    # The kernel refuses a program that might load what it has not stored, and does not see that
    # nothing goes on behind a return.
    to.plain(_STORE_SCRATCH, _SCRATCH_ADDRESS)
    to.plain(_STORE_SCRATCH, _SCRATCH_PORT)
    _find_ip_classic(to, drop)
    to.plain(_LOAD_BYTE_INDEXED, 0)
    to.plain(_AND, 0xF0)
    to.branch_unless(_IF_EQUAL, 0x40, drop)
    to.plain(_LOAD_BYTE_INDEXED, 9)
    to.branch_unless(_IF_EQUAL, _PROTOCOL_UDP, drop)
    to.plain(_LOAD_WORD_INDEXED, 16)
    to.plain(_STORE_SCRATCH, _SCRATCH_ADDRESS)
    to.plain(_LOAD_HALF_INDEXED, 6)
    to.branch_if(_IF_ANY_BIT, _FRAGMENT_BITS, by_address)
    to.plain(_LOAD_BYTE_INDEXED, 0)
    to.plain(_AND, 0x0F)
    to.branch(_IF_AT_LEAST, 5, other, by_address)
    # What follows is longer than a branch reaches.
    to.place(other)
    to.jump(by_port)
    to.place(drop)
    to.plain(_RETURN, _DROP)
    to.place(by_address)
    _keep_addresses(to, lines)
    to.place(by_port)
    _keep_ports(to, lines)
    return to.finish()


def _find_ip_classic(to: _Classic, drop: _Label) -> None:
    """Find the beginning of the IPv4 header; the index register then holds it."""
    found = _Label()
    for tags in range(_VLAN_TAGS_MAX + 1):
        is_ip, following = _Label(), _Label()
        start = 14 + 4 * tags
        to.plain(_LOAD_HALF, start - 2)
        to.branch_if(_IF_EQUAL, _TYPE_IPV4, is_ip)
        if tags == _VLAN_TAGS_MAX:
            to.jump(drop)
        else:
            to.branch_if(_IF_EQUAL, _TYPE_VLAN, following)
            to.branch(_IF_EQUAL, _TYPE_VLAN_SERVICE, following, drop)
        to.place(is_ip)
        to.plain(_LOAD_INDEX, start)
        to.jump(found)
        to.place(following)
    to.place(found)


def _keep_addresses(to: _Classic, lines: Iterable[Address]) -> None:
    """End the program: keep what is for the address of one of the lines."""
    to.plain(_LOAD_SCRATCH, _SCRATCH_ADDRESS)
    for address in sorted({address for address, _ in lines}):
        following = _Label()
        to.branch_unless(_IF_EQUAL, address, following)
        to.plain(_RETURN, _KEEP)
        to.place(following)
    to.plain(_RETURN, _DROP)


def _keep_ports(to: _Classic, lines: Iterable[Address]) -> None:
    """End the program: keep what is for one of the lines.

    The length of the IP header is in the accumulator, in words.
    """
    to.plain(_SHIFT_LEFT, 2)
    to.plain(_ADD_INDEX)
    to.plain(_INDEX_FROM_A)
    to.plain(_LOAD_HALF_INDEXED, 2)
    to.plain(_STORE_SCRATCH, _SCRATCH_PORT)
    for address, port in lines:
        following = _Label()
        to.plain(_LOAD_SCRATCH, _SCRATCH_ADDRESS)
        to.branch_unless(_IF_EQUAL, address, following)
        to.plain(_LOAD_SCRATCH, _SCRATCH_PORT)
        to.branch_unless(_IF_EQUAL, port, following)
        to.plain(_RETURN, _KEEP)
        to.place(following)
    to.plain(_RETURN, _DROP)


# --- eBPF, for an XDP socket ---

_BPF_INSN: Final = struct.Struct("<BBhi")

_X_LOAD_BYTE, _X_LOAD_HALF, _X_LOAD_WORD, _X_STORE_LONG = 0x71, 0x69, 0x61, 0x7B
_X_LOAD_IMMEDIATE, _X_MOVE, _X_MOVE_IMMEDIATE = 0x18, 0xBF, 0xB7
_X_ADD_IMMEDIATE, _X_AND = 0x07, 0x57
_X_JUMP, _X_IF_EQUAL, _X_IF_NOT_EQUAL = 0x05, 0x15, 0x55
#: Of the low 32 bits only: the immediate is signed.
_X_IF_NOT_EQUAL_WORD: Final = 0x56
_X_IF_ABOVE, _X_IF_ANY_BIT = 0x2D, 0x45
_X_CALL, _X_EXIT = 0x85, 0x95
#: Source register of an immediate that is a map; whoever loads the program puts its descriptor in.
_OF_MAP: Final = 1

_HELPER_CLOCK, _HELPER_REDIRECT, _HELPER_ROOM_IN_FRONT = 5, 51, 54
_XDP_PASS: Final = 2
#: Fields of ``struct xdp_md``.
_CONTEXT_DATA, _CONTEXT_END, _CONTEXT_IN_FRONT, _CONTEXT_QUEUE = 0, 4, 8, 16

_R0, _R1, _R2, _R3, _ADDRESS, _PORT = range(6)
#: _AT is where the header stands that is looked at.
_AT, _END, _NOW, _CONTEXT = range(6, 10)


class _Extended(_Assembler):
    def emit(self, code: int, to: int = 0, source: int = 0, offset: int = 0, k: int = 0) -> None:
        self._made.append(lambda _: _BPF_INSN.pack(code, to | source << 4, offset, k))

    def load_long(self, to: int, kind: int, value: int) -> None:
        """Load 64 bits that stand in the program."""
        low, high = struct.unpack("<ii", value.to_bytes(8, "little"))
        self.emit(_X_LOAD_IMMEDIATE, to, kind, k=low)
        self.emit(0, k=high)

    def jump_if(self, code: int, of: int, k: int, to: _Label, *, source: int = 0) -> None:
        self._made.append(lambda at: _BPF_INSN.pack(code, of | source << 4, to.distance(at), k))

    def need(self, count: int, otherwise: _Label) -> None:
        """Go to the label unless so many bytes from `_AT` on are in the packet."""
        self.emit(_X_MOVE, _R2, _AT)
        self.emit(_X_ADD_IMMEDIATE, _R2, k=count)
        self.jump_if(_X_IF_ABOVE, _R2, 0, otherwise, source=_END)


def _wire16(value: int) -> int:
    """Return a field of a packet as a load on this machine gives it."""
    return int.from_bytes(value.to_bytes(2, "big"), "little")


def _wire32(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "big"), "little", signed=True)


def xdp_program(lines: Sequence[Address]) -> bytes:
    """Return the XDP program for these lines: ours go to its socket, everything else to the stack.

    Its map, from the queue to the socket, is put in by whoever loads it.
    """
    to = _Extended()
    passes, ours = _Label(), _Label()
    to.emit(_X_MOVE, _CONTEXT, _R1)
    to.emit(_X_LOAD_WORD, _AT, _R1, _CONTEXT_DATA)
    to.emit(_X_LOAD_WORD, _END, _R1, _CONTEXT_END)
    _find_ip_extended(to, passes)
    to.need(20, passes)
    to.emit(_X_LOAD_BYTE, _R2, _AT, 0)
    to.emit(_X_MOVE, _R3, _R2)
    to.emit(_X_AND, _R3, k=0xF0)
    to.jump_if(_X_IF_NOT_EQUAL, _R3, 0x40, passes)
    to.emit(_X_LOAD_BYTE, _R3, _AT, 9)
    to.jump_if(_X_IF_NOT_EQUAL, _R3, _PROTOCOL_UDP, passes)
    to.emit(_X_LOAD_WORD, _ADDRESS, _AT, 16)
    to.emit(_X_LOAD_HALF, _R3, _AT, 6)
    # Only the first part of a datagram has the port; the others may be for anybody at the address.
    to.jump_if(_X_IF_ANY_BIT, _R3, _wire16(_NOT_THE_FIRST_BITS), passes)
    _skip_ip(to, passes)
    to.need(4, passes)
    to.emit(_X_LOAD_HALF, _PORT, _AT, 2)
    for address, port in lines:
        following = _Label()
        to.jump_if(_X_IF_NOT_EQUAL_WORD, _ADDRESS, _wire32(address), following)
        to.jump_if(_X_IF_EQUAL, _PORT, _wire16(port), ours)
        to.place(following)
    to.place(passes)
    to.emit(_X_MOVE_IMMEDIATE, _R0, k=_XDP_PASS)
    to.emit(_X_EXIT)
    to.place(ours)
    _hand_over(to)
    return to.finish()


def _find_ip_extended(to: _Extended, passes: _Label) -> None:
    """Find the beginning of the IPv4 header."""
    found = _Label()
    for tags in range(_VLAN_TAGS_MAX + 1):
        tag = _Label()
        to.need(14, passes)
        to.emit(_X_LOAD_HALF, _R3, _AT, 12)
        to.jump_if(_X_IF_EQUAL, _R3, _wire16(_TYPE_IPV4), found)
        if tags < _VLAN_TAGS_MAX:
            to.jump_if(_X_IF_EQUAL, _R3, _wire16(_TYPE_VLAN), tag)
            to.jump_if(_X_IF_NOT_EQUAL, _R3, _wire16(_TYPE_VLAN_SERVICE), passes)
            to.place(tag)
            to.emit(_X_ADD_IMMEDIATE, _AT, k=4)
        else:
            to.jump_if(_X_JUMP, 0, 0, passes)
    to.place(found)
    to.emit(_X_ADD_IMMEDIATE, _AT, k=14)


def _skip_ip(to: _Extended, passes: _Label) -> None:
    """Go on behind the IPv4 header, whose first byte is in R2.

    By steps of known length: to add what stands in a packet to its address takes CAP_PERFMON, which
    nothing else here does.
    """
    behind = _Label()
    for words in range(5, 16):
        following = _Label()
        to.jump_if(_X_IF_NOT_EQUAL, _R2, 0x40 | words, following)
        to.emit(_X_ADD_IMMEDIATE, _AT, k=4 * words)
        to.jump_if(_X_JUMP, 0, 0, behind)
        to.place(following)
    to.jump_if(_X_JUMP, 0, 0, passes)
    to.place(behind)


def _hand_over(to: _Extended) -> None:
    """Put the frame into the socket, and the time of arrival in front of it if there is room.

    Without a socket the stack gets it.
    """
    redirect = _Label()
    to.emit(_X_CALL, k=_HELPER_CLOCK)
    to.emit(_X_MOVE, _NOW, _R0)
    to.emit(_X_MOVE, _R1, _CONTEXT)
    to.emit(_X_MOVE_IMMEDIATE, _R2, k=-XDP_STAMP_BYTES)
    to.emit(_X_CALL, k=_HELPER_ROOM_IN_FRONT)
    to.jump_if(_X_IF_NOT_EQUAL, _R0, 0, redirect)
    to.emit(_X_LOAD_WORD, _AT, _CONTEXT, _CONTEXT_IN_FRONT)
    to.emit(_X_LOAD_WORD, _END, _CONTEXT, _CONTEXT_DATA)
    to.need(XDP_STAMP_BYTES, redirect)
    to.emit(_X_STORE_LONG, _AT, _NOW, 0)
    to.load_long(_R3, 0, XDP_STAMP_MAGIC)
    to.emit(_X_STORE_LONG, _AT, _R3, 8)
    to.place(redirect)
    to.emit(_X_LOAD_WORD, _R2, _CONTEXT, _CONTEXT_QUEUE)
    to.load_long(_R1, _OF_MAP, 0)
    to.emit(_X_MOVE_IMMEDIATE, _R3, k=_XDP_PASS)
    to.emit(_X_CALL, k=_HELPER_REDIRECT)
    to.emit(_X_EXIT)
