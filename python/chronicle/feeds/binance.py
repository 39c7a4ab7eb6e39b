"""Binance market streams, from a text capture: lines of JSON to typed messages.

A line is the local receive time in decimal ns, a space, and what came over the WebSocket:
``{"stream": …, "data": {…}}``; or the answer of the REST interface with a whole book
(``lastUpdateId``). Prices and quantities become integers with eight implied decimals, exactly.

A change of the book (`DepthUpdate`) or a whole book (`BookSnapshot`) is a header that says how
many levels of each side follow it, and then that many `DepthLevel` records, bids first, with the
same timestamp. Records are stamped with the local receive time.

Lines that are none of these, or not exactly representable, are kept raw under
`chronicle.feeds.type_ids.BINANCE_RAW`: their JSON, or the whole line if there is no time in front
of it. A depth update whose predecessor was not seen is announced by a `StreamGap`.

Each line is one call into msgspec's decoder; the numbers are converted for a whole chunk at once.

Sources: Binance USDⓈ-M Futures API documentation, "Individual Symbol Book Ticker Streams", "Trade
Streams", "Diff. Book Depth Streams" and "Order Book".
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from chronicle.errors import DecodeError
from chronicle.feeds.batch import I64, Assembler, Batch, Counts, Event, ragged_ranges
from chronicle.feeds.continuity import StreamGap
from chronicle.feeds.decimals import DECIMALS, parse_fixed, parse_fixed_many
from chronicle.feeds.type_ids import BINANCE, BINANCE_RAW
from chronicle.message import (
    MessageBase,
    Scale,
    bool_,
    char1,
    char16,
    char24,
    i64,
    message,
    u32,
    u64,
)

Fixed = Annotated[i64, Scale(DECIMALS)]

CHUNK_BYTES = 1 << 20
LINE_BYTES_MAX = 1 << 24
"""Longest line that is believed; memory must stay bounded when there are no newlines."""


@message(BINANCE + 1)
class BookTicker(MessageBase):
    """Best bid and ask."""

    event_time_ms: i64
    transaction_time_ms: i64
    update_id: u64
    bid_price: Fixed
    bid_quantity: Fixed
    ask_price: Fixed
    ask_quantity: Fixed
    symbol: char24


@message(BINANCE + 2)
class Trade(MessageBase):
    """A trade. `kind` is MARKET, INSURANCE_FUND or ADL."""

    event_time_ms: i64
    transaction_time_ms: i64
    trade_id: u64
    price: Fixed
    quantity: Fixed
    symbol: char24
    kind: char16
    buyer_is_maker: bool_


@message(BINANCE + 3)
class DepthUpdate(MessageBase):
    """Change of the book; `bid_count` and then `ask_count` levels follow."""

    event_time_ms: i64
    transaction_time_ms: i64
    first_update_id: u64
    final_update_id: u64
    previous_update_id: u64
    bid_count: u32
    ask_count: u32
    symbol: char24


@message(BINANCE + 4)
class BookSnapshot(MessageBase):
    """The whole book; `bid_count` and then `ask_count` levels follow."""

    event_time_ms: i64
    transaction_time_ms: i64
    last_update_id: u64
    bid_count: u32
    ask_count: u32


@message(BINANCE + 5)
class DepthLevel(MessageBase):
    """One price level, of the header before it. `side` is B or A; quantity 0 deletes it."""

    price: Fixed
    quantity: Fixed
    side: char1


CLASSES: dict[int, type[MessageBase]] = {
    cls.type_id: cls for cls in (BookTicker, Trade, DepthUpdate, BookSnapshot, DepthLevel)
}

_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Symbol = Annotated[str, msgspec.Meta(max_length=24)]
_Levels = list[tuple[str, str]]


class _Ticker(msgspec.Struct, gc=False, tag_field="e", tag="bookTicker"):
    E: _Count
    T: _Count
    u: _Count
    s: _Symbol
    b: str
    B: str
    a: str
    A: str


class _Trade(msgspec.Struct, gc=False, tag_field="e", tag="trade"):
    E: _Count
    T: _Count
    t: _Count
    s: _Symbol
    p: str
    q: str
    m: bool
    X: Annotated[str, msgspec.Meta(max_length=16)] = ""


class _Depth(msgspec.Struct, gc=False, tag_field="e", tag="depthUpdate"):
    E: _Count
    T: _Count
    s: _Symbol
    U: _Count
    u: _Count
    pu: _Count
    b: _Levels
    a: _Levels


class _Line(msgspec.Struct, gc=False, rename={"last": "lastUpdateId"}):
    """A line of either kind: a stream's event has `data`, a snapshot has the rest."""

    data: _Ticker | _Trade | _Depth | None = None
    last: _Count | None = None
    E: _Count = 0
    T: _Count = 0
    bids: _Levels = []
    asks: _Levels = []


_decode_line = msgspec.json.Decoder(_Line).decode
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_Parsed = _Ticker | _Trade | _Depth | _Line | bytes


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(slots=True)
class _Lines:
    """The lines of one chunk, decoded: what each is and when it came."""

    parsed: list[_Parsed] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    times: list[int] = field(default_factory=list)


class BinanceDecoder:
    """Decodes a text capture.

    Parameters
    ----------
    source
        Anything with ``read``, at the start of a line.
    counts
        Running counts.
    chunk_bytes
        Bytes to read at a time. Memory use is a small multiple of it.
    """

    def __init__(
        self, source: _Readable, counts: Counts, *, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        self._source = source
        self._counts = counts
        self._chunk_bytes = max(chunk_bytes, 1)
        self._last_ns = 0
        self._last_update: dict[str, int] = {}

    def batches(self) -> Iterator[Batch]:
        """Yield batches until the file ends.

        A last line without a newline that does not decode counts as cut, and is kept raw.

        Raises
        ------
        DecodeError
            If a line is longer than `LINE_BYTES_MAX`.
        """
        rest: list[bytes] = []
        rest_bytes = 0
        while piece := self._source.read(self._chunk_bytes):
            end = piece.rfind(b"\n") + 1
            if end == 0:
                rest.append(piece)
                rest_bytes += len(piece)
            else:
                data = b"".join([*rest, piece[: end - 1]])
                rest = [piece[end:]]
                rest_bytes = len(rest[0])
                yield from self._decode(data.split(b"\n"))
            if rest_bytes > LINE_BYTES_MAX:
                raise DecodeError(
                    f"line is too long: found={rest_bytes} limit={LINE_BYTES_MAX}; "
                    "this is no capture of lines"
                )
        last = b"".join(rest)
        if last:
            yield from self._decode([last], cut=True)

    def _decode(self, lines: list[bytes], *, cut: bool = False) -> Iterator[Batch]:
        chunk = _Lines()
        empty = 0
        for line in lines:
            if not line.strip():
                empty += 1
                continue
            body, parsed = self._parse(line)
            chunk.times.append(self._last_ns)
            chunk.bodies.append(body)
            chunk.parsed.append(parsed)
        self._counts.skip("empty line", empty)
        if not chunk.parsed:
            return
        if cut and isinstance(chunk.parsed[0], bytes):
            self._counts.truncated = 1
        yield self._assemble(chunk)

    def _parse(self, line: bytes) -> tuple[bytes, _Parsed]:
        """Return a line's JSON and what it says; what cannot be decoded comes back as bytes."""
        stamp, _, body = line.partition(b" ")
        if not stamp.isdigit() or len(stamp) > 19:
            return line, line
        self._last_ns = int(stamp)
        try:
            found = _decode_line(body)
        except _UNDECODABLE:
            return body, body
        event = found.data
        if event is None:
            return body, body if found.last is None else found
        if not event.s.isascii() or (type(event) is _Trade and not event.X.isascii()):
            return body, body
        return body, event

    def _assemble(self, chunk: _Lines) -> Batch:
        try:
            return _Assembly(chunk, self._counts, self._gap).batch()
        except _Inexact:
            # Somewhere in the chunk stands a number that fixed point cannot hold. Find its line.
            for index, parsed in enumerate(chunk.parsed):
                if any(parse_fixed(text) is None for text in _numbers(parsed)):
                    chunk.parsed[index] = chunk.bodies[index]
            return _Assembly(chunk, self._counts, self._gap).batch()

    def _gap(self, depth: _Depth) -> MessageBase | None:
        """Follow the chain of updates of one book."""
        last = self._last_update.get(depth.s)
        self._last_update[depth.s] = depth.u
        if last is None or depth.pu <= last:
            return None
        self._counts.gaps += 1
        symbol = depth.s.encode("ascii")
        return StreamGap(
            # A number for the book, the same in every run.
            stream=BINANCE << 32 | zlib.crc32(symbol),
            first_missing=last + 1,
            next=max(depth.U, last + 1),
            session=symbol,
        )


class _Inexact(Exception):
    """A number does not fit fixed point."""


def _numbers(parsed: _Parsed) -> list[str]:
    if isinstance(parsed, bytes):
        return []
    if isinstance(parsed, _Ticker):
        return [parsed.b, parsed.B, parsed.a, parsed.A]
    if isinstance(parsed, _Trade):
        return [parsed.p, parsed.q]
    bids, asks = _sides(parsed)
    return list(chain.from_iterable(chain(bids, asks)))


def _sides(parsed: _Depth | _Line) -> tuple[_Levels, _Levels]:
    return (parsed.b, parsed.a) if isinstance(parsed, _Depth) else (parsed.bids, parsed.asks)


def _fixed(texts: list[str]) -> I64:
    values, bad = parse_fixed_many(texts)
    if bad.any():
        raise _Inexact
    return values


class _Assembly:
    """Makes the batch of one chunk, one kind of line after the other."""

    def __init__(
        self, chunk: _Lines, counts: Counts, gap: Callable[[_Depth], MessageBase | None]
    ) -> None:
        self._chunk = chunk
        self._counts = counts
        self._gap = gap
        self._indices: dict[type, list[int]] = {
            kind: [] for kind in (_Ticker, _Trade, _Depth, _Line, bytes)
        }
        sizes = [1] * len(chunk.parsed)
        for index, parsed in enumerate(chunk.parsed):
            kind = type(parsed)
            self._indices[kind].append(index)
            if kind is _Depth or kind is _Line:
                bids, asks = _sides(parsed)  # type: ignore[arg-type]
                sizes[index] += len(bids) + len(asks)
        self._sizes = np.array(sizes, np.int64)
        self._first = np.cumsum(self._sizes) - self._sizes
        self._made = Assembler(int(self._sizes.sum()))
        self._found: list[tuple[int, NDArray[np.void], I64]] = []

    def batch(self) -> Batch:
        # Everything that can refuse comes first, so that nothing is counted twice.
        self._add_tickers(self._of(_Ticker))
        self._add_trades(self._of(_Trade))
        self._add_books(self._of(_Depth), _Depth)
        self._add_books(self._of(_Line), _Line)
        for type_id, records, where in self._found:
            self._made.add(where, type_id, records)
            self._counts.add_messages(type_id, len(records))
        self._add_raw(self._of(bytes))
        names: dict[type, str] = {
            _Ticker: "bookTicker",
            _Trade: "trade",
            _Depth: "depth",
            _Line: "snapshot",
        }
        for kind, indices in self._indices.items():
            self._counts.add_lines(names.get(kind, "raw"), len(indices))
        times = np.repeat(np.array(self._chunk.times, np.uint64), self._sizes)
        return self._made.finish(times, self._gaps())

    def _of(self, kind: type) -> list[Any]:
        parsed = self._chunk.parsed
        return [parsed[index] for index in self._indices[kind]]

    def _where(self, kind: type) -> I64:
        return self._first[np.array(self._indices[kind], np.int64)]

    def _add_tickers(self, tickers: Sequence[_Ticker]) -> None:
        records = np.zeros(len(tickers), BookTicker.dtype)
        records["update_id"] = [t.u for t in tickers]
        records["symbol"] = [t.s for t in tickers]
        _fill_times(records, tickers)
        numbers = _fixed([text for t in tickers for text in (t.b, t.B, t.a, t.A)]).reshape(-1, 4)
        for column, name in enumerate(("bid_price", "bid_quantity", "ask_price", "ask_quantity")):
            records[name] = numbers[:, column]
        self._found.append((BookTicker.type_id, records, self._where(_Ticker)))

    def _add_trades(self, trades: Sequence[_Trade]) -> None:
        records = np.zeros(len(trades), Trade.dtype)
        records["trade_id"] = [t.t for t in trades]
        records["symbol"] = [t.s for t in trades]
        records["kind"] = [t.X for t in trades]
        records["buyer_is_maker"] = [t.m for t in trades]
        _fill_times(records, trades)
        numbers = _fixed([text for t in trades for text in (t.p, t.q)]).reshape(-1, 2)
        records["price"], records["quantity"] = numbers[:, 0], numbers[:, 1]
        self._found.append((Trade.type_id, records, self._where(_Trade)))

    def _add_books(self, books: Sequence[Any], kind: type) -> None:
        cls = DepthUpdate if kind is _Depth else BookSnapshot
        records = np.zeros(len(books), cls.dtype)
        _fill_times(records, books)
        if kind is _Depth:
            records["first_update_id"] = [b.U for b in books]
            records["final_update_id"] = [b.u for b in books]
            records["previous_update_id"] = [b.pu for b in books]
            records["symbol"] = [b.s for b in books]
        else:
            records["last_update_id"] = [b.last for b in books]
        sides = [_sides(book) for book in books]
        records["bid_count"] = [len(bids) for bids, _ in sides]
        records["ask_count"] = [len(asks) for _, asks in sides]
        where = self._where(kind)
        self._found.append((cls.type_id, records, where))

        texts = [text for bids, asks in sides for level in (*bids, *asks) for text in level]
        numbers = _fixed(texts).reshape(-1, 2)
        levels = np.zeros(len(numbers), DepthLevel.dtype)
        levels["price"], levels["quantity"] = numbers[:, 0], numbers[:, 1]
        each = np.array([len(side) for pair in sides for side in pair], np.int64)
        names = np.array([b"B", b"A"] * len(sides), "S1")
        levels["side"] = np.repeat(names, each)
        counts = each.reshape(-1, 2).sum(axis=1)
        self._found.append((DepthLevel.type_id, levels, ragged_ranges(where + 1, counts)))

    def _add_raw(self, lines: Sequence[bytes]) -> None:
        if not lines:
            return
        raw = np.frombuffer(b"".join(lines), np.uint8)
        lengths = np.array([len(line) for line in lines], np.int64)
        starts = np.cumsum(lengths) - lengths
        self._made.add_bytes(self._where(bytes), BINANCE_RAW, raw, starts, lengths)
        self._counts.add_messages(BINANCE_RAW, len(lines))

    def _gaps(self) -> list[Event]:
        events: list[Event] = []
        for index in self._indices[_Depth]:
            depth: Any = self._chunk.parsed[index]
            gap = self._gap(depth)
            if gap is not None:
                events.append(Event(int(self._first[index]), gap, self._chunk.times[index]))
        return events


def _fill_times(records: NDArray[np.void], events: Sequence[Any]) -> None:
    records["event_time_ms"] = [event.E for event in events]
    records["transaction_time_ms"] = [event.T for event in events]


def is_binance(head: bytes) -> bool:
    """Whether a file that begins so is a capture of lines: digits, a space, a JSON object."""
    stamp, space, body = head.partition(b" ")
    return stamp.isdigit() and len(stamp) <= 19 and bool(space) and body[:1] == b"{"
