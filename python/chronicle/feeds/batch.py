"""What a decoder yields: batches of records, and running counts.

A batch is one buffer of bytes and four parallel arrays that say where each record lies in it, in
stream order. It is what a queue writer takes in one call. Inside the buffer, records of one type
lie together, so that a decoder fills them a column at a time; only `Batch.offsets` knows the
order of the stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chronicle.message import MessageBase

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

RECORD_ALIGNMENT = 8


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Records in stream order.

    Attributes
    ----------
    type_ids
        Shape ``(n,)``.
    timestamps_ns
        Shape ``(n,)``, ns since the epoch, UTC.
    offsets, lengths
        Shape ``(n,)``: record ``i`` is ``buffer[offsets[i] : offsets[i] + lengths[i]]``. Offsets
        are multiples of 8.
    buffer
        The bytes, C-contiguous.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from chronicle.feeds import import_capture
    >>> from chronicle.feeds.generate import MarketGenerator, write_pcap
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = Path(folder.name, "day.pcap")
    >>> write_pcap(file, [MarketGenerator(venue=0)], count=500)
    >>> with import_capture(file) as capture:
    ...     batches = list(capture)
    >>> sum(len(batch.type_ids) for batch in batches) > 0
    True
    >>> folder.cleanup()
    """

    type_ids: U16
    timestamps_ns: U64
    offsets: U64
    lengths: U32
    buffer: U8

    def __len__(self) -> int:
        return len(self.type_ids)

    def payload(self, index: int) -> memoryview:
        """Return the bytes of record `index`, without a copy."""
        start = int(self.offsets[index])
        return self.buffer.data[start : start + int(self.lengths[index])]

    def messages(
        self, classes: Mapping[int, type[MessageBase]]
    ) -> Iterator[tuple[int, int, MessageBase | memoryview]]:
        """Yield ``(type_id, timestamp_ns, message)`` one by one; slow, for tools and tests.

        Records whose type is not in `classes` come as their bytes.
        """
        for index, type_id in enumerate(self.type_ids.tolist()):
            payload = self.payload(index)
            known = classes.get(type_id)
            yield (
                type_id,
                int(self.timestamps_ns[index]),
                payload if known is None else known.view(payload),
            )


@dataclass(slots=True)
class Counts:
    """What a decoder has found so far. Filled while batches are drawn.

    Attributes
    ----------
    packets
        Records of the capture file, of whatever protocol.
    heartbeats
        Packets of the feed that carry no message.
    messages
        Messages of the feed by type id; stream control messages are not among them.
    extended
        Messages longer than their layout, as later versions of a feed may send; the typed record
        has the known fields.
    restarts, gaps, missing, duplicates, late_joins, ends
        Restarts of a sequenced stream; gaps in it, and the messages missing in them; messages
        dropped because their sequence number had been seen; streams whose first packet did not
        carry the first message; ends of session.
    truncated
        1 if the file ends inside a record or line. What was complete has been decoded.
    skipped
        Packets that were not decoded, by reason.
    lines
        Lines of a text capture by kind.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from chronicle.feeds import import_capture
    >>> from chronicle.feeds.generate import MarketGenerator, write_pcap
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = Path(folder.name, "day.pcap")
    >>> write_pcap(file, [MarketGenerator(venue=0)], count=500)
    >>> with import_capture(file) as capture:
    ...     batches = list(capture)
    >>> sum(capture.counts.messages.values()) > 0, capture.counts.missing
    (True, 0)
    >>> folder.cleanup()
    """

    packets: int = 0
    heartbeats: int = 0
    messages: dict[int, int] = field(default_factory=dict)
    extended: int = 0
    restarts: int = 0
    gaps: int = 0
    missing: int = 0
    duplicates: int = 0
    late_joins: int = 0
    ends: int = 0
    truncated: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)

    @property
    def messages_count(self) -> int:
        """All messages of the feed."""
        return sum(self.messages.values())

    def add_messages(self, type_id: int, count: int) -> None:
        """Count `count` messages of one type."""
        if count:
            self.messages[type_id] = self.messages.get(type_id, 0) + count

    def skip(self, reason: str, count: int) -> None:
        """Count `count` packets or lines that are not decoded."""
        if count:
            self.skipped[reason] = self.skipped.get(reason, 0) + count

    def add_lines(self, kind: str, count: int) -> None:
        """Count `count` lines of one kind."""
        if count:
            self.lines[kind] = self.lines.get(kind, 0) + count


@dataclass(frozen=True, slots=True)
class Event:
    """A stream control message that goes before record `index` of a batch."""

    index: int
    message: MessageBase
    timestamp_ns: int


class Assembler:
    """Collects regions of records and makes one batch of them.

    Parameters
    ----------
    count
        Records of the batch. Every index below it must be given to one `add` call.
    """

    def __init__(self, count: int) -> None:
        self._type_ids = np.zeros(count, np.uint16)
        self._offsets = np.zeros(count, np.uint64)
        self._lengths = np.zeros(count, np.uint32)
        self._regions: list[U8] = []
        self._size_bytes = 0

    def add(self, indices: I64, type_id: int, records: NDArray[np.void]) -> None:
        """Add one structured array; its element ``k`` is record ``indices[k]``."""
        itemsize = records.dtype.itemsize
        base = self._place(records.view(np.uint8))
        self._type_ids[indices] = type_id
        self._lengths[indices] = itemsize
        self._offsets[indices] = np.arange(
            base, base + itemsize * len(indices), itemsize, dtype=np.uint64
        )

    def add_bytes(self, indices: I64, type_id: int, raw: U8, starts: I64, lengths: I64) -> None:
        """Add records of any length, copied from `raw`."""
        room = -(-lengths // RECORD_ALIGNMENT) * RECORD_ALIGNMENT
        at = np.cumsum(room) - room
        region = np.zeros(int(room.sum()), np.uint8)
        target = ragged_ranges(at, lengths)
        region[target] = raw[ragged_ranges(starts, lengths)]
        base = self._place(region)
        self._type_ids[indices] = type_id
        self._lengths[indices] = lengths
        self._offsets[indices] = at + base

    def _place(self, region: U8) -> int:
        base = self._size_bytes
        self._regions.append(region)
        odd = len(region) % RECORD_ALIGNMENT
        if odd:
            self._regions.append(np.zeros(RECORD_ALIGNMENT - odd, np.uint8))
        self._size_bytes = base + len(region) + (RECORD_ALIGNMENT - odd if odd else 0)
        return base

    def finish(self, timestamps_ns: U64, events: Sequence[Event] = ()) -> Batch:
        """Return the batch, with `events` put in at their places."""
        type_ids, offsets, lengths = self._type_ids, self._offsets, self._lengths
        if events:
            where = [event.index for event in events]
            bases = [self._place(np.frombuffer(e.message.pack(), np.uint8)) for e in events]
            type_ids = _insert(type_ids, where, [e.message.type_id for e in events])
            offsets = _insert(offsets, where, bases)
            lengths = _insert(lengths, where, [e.message.size_bytes for e in events])
            timestamps_ns = _insert(timestamps_ns, where, [e.timestamp_ns for e in events])
        buffer = np.concatenate(self._regions) if self._regions else np.zeros(0, np.uint8)
        return Batch(type_ids, timestamps_ns, offsets, lengths, buffer)


def _insert(values: NDArray[Any], where: list[int], items: list[int]) -> NDArray[Any]:
    return np.insert(values, where, np.array(items, dtype=values.dtype))


def ragged_ranges(starts: I64, lengths: I64) -> I64:
    """Return the concatenation of ``range(start, start + length)`` for every pair.

    >>> ragged_ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    total = int(lengths.sum())
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(total, dtype=np.int64)
