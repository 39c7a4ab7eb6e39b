"""`Bytes` and `Buffer`: bytes of any length in a handler.

`Bytes` is a view: a datagram, a raw record, or a part of one. It is valid during the call of the
handler. `Buffer` is room for bytes in the state. Every place and length is checked, here as in
compiled code, and what is wrong is an `IndexError` with the same text.

>>> data = Bytes(bytes([1, 2, 0, 0, 0x41, 0x20]))
>>> data.u16(0), data.u16_be(0), data.chars(4, 2), data.padded(4, 2), len(data.part(4, 2))
(513, 258, b'A ', b'A', 2)
"""

from __future__ import annotations

import struct
from operator import index as as_index
from typing import Any, Final

from chronicle.hot.info import I64_MAX
from chronicle.values import Value

__all__ = ["Buffer", "Bytes", "Size"]

READS: Final[dict[str, tuple[str, bool]]] = {
    f"{number}{suffix}": (number, bool(suffix))
    for number in ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64")
    for suffix in ("", "_be")
    if number[1:] != "8" or not suffix
}
"""What can be read from bytes: the number, and whether it is big-endian."""

TEXT_BYTES_MAX: Final = 8
"""Longest text that is read from bytes: it is one integer in compiled code."""

BUFFER_BYTES_MAX: Final = 1 << 28

BAD_PLACE: Final = "place out of range: {what} at={value}"
BAD_LENGTH: Final = "length out of range: {what} length={value}"
BAD_U64: Final = (
    "u64 of bytes holds a number beyond 64-bit signed, which a handler cannot use: value={value}; "
    "read it as i64"
)

_CODES: Final = {
    "u8": "B",
    "i8": "b",
    "u16": "H",
    "i16": "h",
    "u32": "I",
    "i32": "i",
    "u64": "Q",
    "i64": "q",
    "f32": "f",
    "f64": "d",
}
_STRUCTS: Final = {
    name: struct.Struct((">" if is_big else "<") + _CODES[number])
    for name, (number, is_big) in READS.items()
}


class Size(Value):
    """How many bytes a `Buffer` has: ``held: Annotated[Buffer, Size(65536)]``.

    Examples
    --------
    >>> from chronicle.hot import Size
    >>> Size(65_536)
    Size(bytes_max=65536)
    """

    __slots__ = ("bytes_max",)
    bytes_max: int

    def __init__(self, bytes_max: int) -> None:
        if not isinstance(bytes_max, int) or isinstance(bytes_max, bool):
            raise TypeError(f"the size of a buffer is a number of bytes, not {bytes_max!r}")
        if not 1 <= bytes_max <= BUFFER_BYTES_MAX:
            raise ValueError(
                f"buffer size out of range: bytes={bytes_max} range=1..{BUFFER_BYTES_MAX}"
            )
        self._set(bytes_max)


def _place(what: str, at: int, size: int, limit: int) -> int:
    """Return a place with `size` bytes behind it, or raise."""
    place = as_index(at)
    if not 0 <= place <= limit - size:
        raise IndexError(BAD_PLACE.format(what=what, value=place))
    return place


def _span(what: str, at: int, length: int, limit: int) -> tuple[int, int]:
    """Return a place and the end of what begins there, or raise."""
    place = _place(what, at, 0, limit)
    count = as_index(length)
    if not 0 <= count <= limit - place:
        raise IndexError(BAD_LENGTH.format(what=what, value=count))
    return place, place + count


class Bytes:
    r"""A view of bytes of any length.

    Numbers are little-endian, those whose name ends with ``_be`` big-endian; they may stand at any
    place. A ``u64`` beyond 64 bits signed cannot be read; read it as ``i64``.

    Raises
    ------
    IndexError
        By every method, if a place or a length is outside. Compiled, the handler fails.

    Examples
    --------
    >>> from chronicle.hot import Bytes
    >>> data = Bytes(b"AAPL\x01\x00\x00\x02")
    >>> len(data), data.chars(0, 4), data.u16(4), data.u16_be(6)
    (8, b'AAPL', 1, 2)
    """

    __slots__ = ("_memory",)

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._memory = memoryview(data).cast("B")

    def __len__(self) -> int:
        return len(self._memory)

    def __bytes__(self) -> bytes:
        """Return a copy; not for handlers."""
        return bytes(self._memory)

    def __repr__(self) -> str:
        return f"<Bytes: {len(self._memory)}>"

    def _read(self, name: str, at: int) -> Any:
        one = _STRUCTS[name]
        place = _place(f"{name} of bytes", at, one.size, len(self._memory))
        return one.unpack_from(self._memory, place)[0]

    def _unsigned(self, name: str, at: int) -> int:
        value: int = self._read(name, at)
        if value > I64_MAX:
            raise ValueError(BAD_U64.format(value=value))
        return value

    def u8(self, at: int) -> int:
        """Return the byte at `at`."""
        return self._unsigned("u8", at)

    def u16(self, at: int) -> int:
        """Return two bytes as an unsigned number."""
        return self._unsigned("u16", at)

    def u32(self, at: int) -> int:
        """Return four bytes as an unsigned number."""
        return self._unsigned("u32", at)

    def u64(self, at: int) -> int:
        """Return eight bytes as an unsigned number of at most 2**63 - 1."""
        return self._unsigned("u64", at)

    def i8(self, at: int) -> int:
        """Return the byte at `at` as a signed number."""
        found: int = self._read("i8", at)
        return found

    def i16(self, at: int) -> int:
        """Return two bytes as a signed number."""
        found: int = self._read("i16", at)
        return found

    def i32(self, at: int) -> int:
        """Return four bytes as a signed number."""
        found: int = self._read("i32", at)
        return found

    def i64(self, at: int) -> int:
        """Return eight bytes as a signed number."""
        found: int = self._read("i64", at)
        return found

    def f32(self, at: int) -> float:
        """Return four bytes as a float."""
        found: float = self._read("f32", at)
        return found

    def f64(self, at: int) -> float:
        """Return eight bytes as a float."""
        found: float = self._read("f64", at)
        return found

    def u16_be(self, at: int) -> int:
        """As `u16`, big-endian."""
        return self._unsigned("u16_be", at)

    def u32_be(self, at: int) -> int:
        """As `u32`, big-endian."""
        return self._unsigned("u32_be", at)

    def u64_be(self, at: int) -> int:
        """As `u64`, big-endian."""
        return self._unsigned("u64_be", at)

    def i16_be(self, at: int) -> int:
        """As `i16`, big-endian."""
        found: int = self._read("i16_be", at)
        return found

    def i32_be(self, at: int) -> int:
        """As `i32`, big-endian."""
        found: int = self._read("i32_be", at)
        return found

    def i64_be(self, at: int) -> int:
        """As `i64`, big-endian."""
        found: int = self._read("i64_be", at)
        return found

    def f32_be(self, at: int) -> float:
        """As `f32`, big-endian."""
        found: float = self._read("f32_be", at)
        return found

    def f64_be(self, at: int) -> float:
        """As `f64`, big-endian."""
        found: float = self._read("f64_be", at)
        return found

    def chars(self, at: int, length: int) -> bytes:
        """Return text of `length` bytes, 1 to 8 and constant, without the NULs that pad it."""
        return self._text(at, length).rstrip(b"\0")

    def padded(self, at: int, length: int) -> bytes:
        """As `chars`, for text that is padded with spaces."""
        return self._text(at, length).rstrip(b" ").rstrip(b"\0")

    def _text(self, at: int, length: int) -> bytes:
        if not 1 <= as_index(length) <= TEXT_BYTES_MAX:
            raise ValueError(f"text of bytes has 1 to {TEXT_BYTES_MAX} bytes: length={length}")
        place = _place("text of bytes", at, length, len(self._memory))
        return bytes(self._memory[place : place + length])

    def part(self, at: int, length: int) -> Bytes:
        """Return a view of `length` bytes from `at` on."""
        start, end = _span("part of bytes", at, length, len(self._memory))
        return Bytes(self._memory[start:end])


class Buffer:
    """Room for bytes in the state of a handler: ``held: Annotated[Buffer, Size(65536)]``.

    Raises
    ------
    IndexError
        By every method, if a place or a length is outside. Compiled, the handler fails.

    Examples
    --------
    >>> from typing import Annotated
    >>> from chronicle.hot import Buffer, Bytes, Handler, Size
    >>> class Keeper(Handler):
    ...     held: Annotated[Buffer, Size(16)]
    >>> handler = Keeper()
    >>> handler.held.store(2, Bytes(b"abc"))
    >>> handler.held.view(2, 3).chars(0, 3)
    b'abc'
    """

    __slots__ = ("_label", "_memory")

    def __init__(self, memory: memoryview, label: str) -> None:
        self._memory = memory
        self._label = label

    def __len__(self) -> int:
        return len(self._memory)

    def __repr__(self) -> str:
        return f"<Buffer of {len(self._memory)} bytes>"

    def store(self, at: int, data: Bytes) -> None:
        """Copy `data` to the place `at`; it may be a view of this buffer."""
        if not isinstance(data, Bytes):
            raise TypeError(f"{self._label} takes Bytes: value={data!r}")
        start, end = _span(self._label, at, len(data), len(self._memory))
        self._memory[start:end] = data._memory

    def view(self, at: int, length: int) -> Bytes:
        """Return a view of `length` bytes from `at` on. It shows what is stored there later."""
        start, end = _span(self._label, at, length, len(self._memory))
        return Bytes(self._memory[start:end])

    def move(self, to: int, at: int, length: int) -> None:
        """Copy `length` bytes from `at` to `to`, which may overlap."""
        start, end = _span(self._label, at, length, len(self._memory))
        target, target_end = _span(self._label, to, length, len(self._memory))
        self._memory[target:target_end] = self._memory[start:end]
