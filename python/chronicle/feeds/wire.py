"""From bytes on the wire to typed records, a column at a time.

A `WireLayout` says where each field of one wire message stands. Decoding takes all messages of
that type in a chunk at once:

1. *Gather.* ``windows(raw, size)[positions]`` copies each message, whatever its alignment, into a
   dense array of opaque items. It is one fancy index over a view whose stride is one byte.
2. *Name.* The dense array is viewed, without a copy, as a packed structured type of the wire.
3. *Fill.* Each field is copied into the natively aligned structured array of the message class;
   NumPy swaps the bytes where the wire is big-endian.

So the cost is a few nanoseconds for each field, and no Python object is made for a message.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chronicle.feeds.batch import I64, U8, U64, Assembler, Batch, Counts, Event
from chronicle.hot.wire import Wire, WireTable
from chronicle.message import MessageBase


def windows(raw: U8, dtype: Any) -> NDArray[Any]:
    """Return a view of `raw` whose item ``i`` starts at byte ``i``, for gathers at odd offsets.

    >>> raw = np.array([1, 0, 2, 0], np.uint8)
    >>> windows(raw, "<u2")[[0, 2]].tolist()
    [1, 2]
    """
    made = np.dtype(dtype)
    count = max(raw.size - made.itemsize + 1, 0)
    # A gather below never goes past the end, because callers have checked every length; the view
    # itself has no item that would.
    return np.ndarray((count,), made, raw, strides=(1,))


class WireLayout:
    """Where the fields of one wire message stand, and which message class takes them.

    Parameters
    ----------
    message
        The message class. Every one of its fields must have a place in `fields`.
    code
        The type byte, as a character.
    size_bytes
        Bytes on the wire, with the type byte.
    order
        ``"<"`` or ``">"``.
    fields
        By name: offset and format, a NumPy format without byte order (``u4``, ``S8``) or ``u6``
        for the 48-bit time of ITCH. Text wider than one byte loses the spaces at its end, which
        the exchanges pad with.
    """

    def __init__(
        self,
        message: type[MessageBase],
        code: str,
        size_bytes: int,
        order: str,
        **fields: tuple[int, str],
    ) -> None:
        if set(fields) != {field.name for field in message.FIELDS}:
            raise TypeError(f"wire layout of {message.__name__!r} does not cover its fields")
        self.message = message
        self.code = code
        self.size_bytes = size_bytes
        self.order = order
        self.fields = fields
        self._plain: list[str] = []
        self._padded: list[str] = []
        self._times: list[str] = []
        names: list[str] = []
        formats: list[str] = []
        offsets: list[int] = []
        for name, (offset, form) in fields.items():
            if form == "u6":
                # Numbers of six bytes do not exist; NumPy reads the two halves.
                self._times.append(name)
                names += [f"{name}.high", f"{name}.low"]
                formats += [order + "u2", order + "u4"]
                offsets += [offset, offset + 2]
                continue
            padded = form.startswith("S") and form != "S1"
            (self._padded if padded else self._plain).append(name)
            names.append(name)
            formats.append(form if form.startswith("S") else order + form)
            offsets.append(offset)
        self._wire = np.dtype(
            {"names": names, "formats": formats, "offsets": offsets, "itemsize": size_bytes}
        )

    def decode(self, raw: U8, positions: I64) -> NDArray[np.void]:
        """Return the messages that start at `positions`, as records of the message class."""
        wire = windows(raw, f"V{self.size_bytes}")[positions].view(self._wire)
        records = np.zeros(len(positions), self.message.dtype)
        for name in self._plain:
            records[name] = wire[name]
        for name in self._padded:
            records[name] = strip_spaces(wire[name])
        for name in self._times:
            high = wire[f"{name}.high"].astype(np.uint64)
            records[name] = (high << np.uint64(32)) | wire[f"{name}.low"]
        return records

    def encode(self, records: NDArray[np.void]) -> U8:
        """Return `records` as they are on the wire, shape ``(n, size_bytes)``; for generators."""
        wire = np.zeros(len(records), self._wire)
        for name in self._plain:
            wire[name] = records[name]
        for name in self._padded:
            text = np.char.ljust(records[name], wire.dtype[name].itemsize, b" ")
            wire[name] = text
        for name in self._times:
            wire[f"{name}.high"] = records[name] >> np.uint64(32)
            wire[f"{name}.low"] = records[name] & np.uint64(0xFFFF_FFFF)
        made = wire.view(np.uint8).reshape(len(records), self.size_bytes)
        made[:, 0] = ord(self.code)
        return made


_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def strip_spaces(text: NDArray[Any]) -> NDArray[Any]:
    """Return fixed-width `text` with the spaces at its end replaced by NUL.

    Widths of 2, 4 and 8 bytes are handled as one number each: the difference to all spaces is
    smeared downwards, so that every byte at or below the last one that is no space becomes
    nonzero, and what stays zero is the padding.

    >>> strip_spaces(np.array([b"A B ", b"    "], "S4")).tolist()
    [b'A B', b'']
    """
    width = text.dtype.itemsize
    word: Any = _WORDS.get(width)
    if word is None:
        return np.char.rstrip(text, b" ").astype(text.dtype)
    value = np.ascontiguousarray(text).view(word)
    spaces = word(int.from_bytes(b" " * width, "little"))
    ones = word(int.from_bytes(b"\x01" * width, "little"))
    seen = value ^ spaces
    shift = 8 * width // 2
    while shift >= 8:
        seen |= seen >> word(shift)
        shift //= 2
    # Fold the bits of each byte onto its lowest bit, then spread that over the byte. Bits that
    # come in from the byte above do no harm: a byte below a nonzero one is nonzero itself.
    for bits in (4, 2, 1):
        seen |= seen >> word(bits)
    keep = (seen & ones) * word(0xFF)
    kept: NDArray[Any] = (value & keep).view(text.dtype)
    return kept


class MessageTable:
    """All wire layouts of one feed, by type byte.

    Messages of unknown type, or shorter than their layout, become records of `raw_type_id` with
    the bytes of the wire; so nothing is lost.
    """

    def __init__(self, raw_type_id: int, layouts: Iterable[WireLayout]) -> None:
        self.raw_type_id = raw_type_id
        self.layouts = {ord(layout.code): layout for layout in layouts}

    @property
    def classes(self) -> dict[int, type[MessageBase]]:
        """Message classes by type id."""
        return {layout.message.type_id: layout.message for layout in self.layouts.values()}

    def for_handlers(self) -> WireTable:
        """Return the same table for handlers: ``TABLE.publish(output, data, at, length)``."""
        return WireTable(
            self.raw_type_id,
            (
                Wire(
                    layout.message,
                    code,
                    layout.size_bytes,
                    is_big_endian=layout.order == ">",
                    fields=layout.fields,
                )
                for code, layout in self.layouts.items()
            ),
        )

    def assemble(
        self,
        raw: U8,
        positions: I64,
        lengths: I64,
        timestamps_ns: U64,
        counts: Counts,
        *,
        events: Sequence[Event] = (),
        unknown: NDArray[np.bool_] | None = None,
    ) -> Batch:
        """Make a batch of the messages at `positions`, in that order.

        Parameters
        ----------
        raw
            The chunk.
        positions, lengths
            Where each message starts (at its type byte) and how long it is; all within `raw`.
        timestamps_ns
            One for each message.
        counts
            Gets the messages by type.
        events
            Stream control messages to put in.
        unknown
            Messages to keep raw whatever their type byte says.
        """
        made = Assembler(len(positions))
        types = self._types(raw, positions, lengths)
        if unknown is not None:
            types[unknown] = 0
        present = np.flatnonzero(np.bincount(types, minlength=256))
        left: list[I64] = []
        for code in present.tolist():
            indices = np.flatnonzero(types == code)
            layout = self.layouts.get(code)
            if layout is None:
                left.append(indices)
                continue
            extra = lengths[indices] - layout.size_bytes
            if extra.any():
                left.append(indices[extra < 0])
                indices = indices[extra >= 0]
                counts.extended += int((extra > 0).sum())
            type_id = layout.message.type_id
            if len(indices):
                made.add(indices, type_id, layout.decode(raw, positions[indices]))
            counts.add_messages(type_id, len(indices))
        if left:
            rest = np.sort(np.concatenate(left))
            made.add_bytes(rest, self.raw_type_id, raw, positions[rest], lengths[rest])
            counts.add_messages(self.raw_type_id, len(rest))
        return made.finish(timestamps_ns, events)

    @staticmethod
    def _types(raw: U8, positions: I64, lengths: I64) -> U8:
        if not len(positions):
            return np.zeros(0, np.uint8)
        # An empty block has no type byte, and may stand at the very end.
        types = raw.take(positions, mode="clip")
        types[lengths == 0] = 0
        return types
