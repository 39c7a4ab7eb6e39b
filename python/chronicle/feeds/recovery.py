"""The recovery session: what no line brought is fetched over TCP.

```text
 hot thread ── requests ──> sidecar: RecoverySession ══ TCP ══ RecoveryServer ── PacketHistory
            <── recovered ──
```

The hot thread publishes a `RecoveryRequest`; the session sends it, and appends the packets that
come back, as they are, to the queue that the hot thread reads. If the connection ends it is made
again by `chronicle.sidecar.Sidecar.connect`, and the session asks for what is still missing. So a
cut costs time and nothing else.

**Protocol.** Frames, little-endian: ``u16 length, u8 kind``, and `length` bytes.

====  ==========  =================================================================================
kind  name        content
====  ==========  =================================================================================
1     request     the bytes of a `RecoveryRequest`
2     packet      an IEX-TP packet as it was sent
3     done        the bytes of a `RecoveryDone`
4     gone        the bytes of a `RecoveryGone`
5     alive       nothing; the server sends one each second, so that silence means a dead session
====  ==========  =================================================================================

An answer holds, in the order in which they were sent, *all* packets behind the position
``(session, run_ns, next)`` that were sent until ``until_ns``, those of later runs too; *gone*
stands in the place of what the server does not have; *done* ends it and says how far it is
complete. The run is the one that was under way at ``run_ns``, or began next. Session 0 means: all
that there is.

The server is for tests, for the demo and for simulations. A venue's own recovery service takes its
place with another session that appends the same records.
"""

from __future__ import annotations

import asyncio
import struct
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from chronicle.aio import Messages
from chronicle.feeds.type_ids import STREAM
from chronicle.message import MessageBase, i64, message, u32

if TYPE_CHECKING:
    from chronicle.queue import QueueReader, QueueWriter

__all__ = [
    "RECOVERED_CLASSES",
    "RECOVERED_PACKET",
    "REQUEST_CLASSES",
    "UNTIL_NOW",
    "PacketHistory",
    "RecoveryDone",
    "RecoveryGone",
    "RecoveryRequest",
    "RecoveryServer",
    "RecoverySession",
]

RECOVERED_PACKET: Final = STREAM + 6
"""Type id of a whole packet, as it was on the wire."""

UNTIL_NOW: Final = (1 << 63) - 1
"""`RecoveryRequest.until_ns`: everything that the server has."""

REQUEST, PACKET, DONE, GONE, ALIVE = range(1, 6)
FRAME: Final = struct.Struct("<HB")

#: What is read of a packet's header: count, sequence, send time.
_COUNT: Final = struct.Struct("<H")
_SEQUENCE_SENT: Final = struct.Struct("<qq")
_SESSION: Final = struct.Struct("<I")

_READ_BYTES: Final = 1 << 18
_FRAMES_AT_ONCE: Final = 64

ALIVE_S: Final = 1.0
SILENCE_S: Final = 5.0
"""A session without a frame for so long is given up and made again."""


@message(STREAM + 16)
class RecoveryRequest(MessageBase):
    """Wanted: every packet behind ``(session, run_ns, next)`` that was sent until `until_ns`.

    What was sent in that run before `sent_ns` is known; 0 if that is not sure.
    """

    ticket: i64
    run_ns: i64
    sent_ns: i64
    next: i64
    until_ns: i64
    session: u32
    channel: u32


@message(STREAM + 17)
class RecoveryDone(MessageBase):
    """The answer to `ticket` is complete: nothing sent until `until_ns` is missing."""

    ticket: i64
    until_ns: i64


@message(STREAM + 18)
class RecoveryGone(MessageBase):
    """Messages `first_missing` up to `next` cannot be had; -1: nor anything else of that run.

    Session and `run_ns` are those of the request.
    """

    ticket: i64
    run_ns: i64
    first_missing: i64
    next: i64
    session: u32


REQUEST_CLASSES = (RecoveryRequest,)
"""The schema of the queue of requests."""
RECOVERED_CLASSES = (RecoveryDone, RecoveryGone)
"""The schema of the queue of what was recovered."""


def frame(kind: int, payload: bytes = b"") -> bytes:
    r"""Return one frame.

    >>> frame(ALIVE)
    b'\x00\x00\x05'
    """
    return FRAME.pack(len(payload), kind) + payload


def _place(packet: bytes) -> tuple[int, int, int, int]:
    """Return session, first number, the number behind it, and send time of a packet."""
    (session,) = _SESSION.unpack_from(packet, 8)
    (count,) = _COUNT.unpack_from(packet, 14)
    sequence, sent_ns = _SEQUENCE_SENT.unpack_from(packet, 24)
    return session, sequence, sequence + count, sent_ns


class RecoverySession:
    """The sidecar's side: give it to `Sidecar.connect` as the session of a connection.

    Parameters
    ----------
    requests
        What the hot thread asks; opened at its end before the hot thread starts.
    recovered
        Where the answers go.

    Attributes
    ----------
    asked, answered
        Requests sent, those repeated after a cut among them; answers that were completed.
    packets
        Packets that came.
    """

    def __init__(self, requests: QueueReader, recovered: QueueWriter) -> None:
        self._requests = requests
        self._recovered = recovered
        self._pending: RecoveryRequest | None = None
        self._newest: bytes | None = None
        self.asked = 0
        self.answered = 0
        self.packets = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, until it ends."""
        tasks = {
            asyncio.create_task(self._listen(reader)),
            asyncio.create_task(self._ask(writer)),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, writer: asyncio.StreamWriter) -> None:
        """Send what was not answered before the last cut, and then every request that comes."""
        left = self.left()
        if left is not None:
            await self._send(writer, left)
        async for each in Messages(self._requests):
            await self._send(writer, self.want(RecoveryRequest.view(bytes(each.payload))))

    def want(self, request: RecoveryRequest) -> RecoveryRequest:
        """Note what is wanted from now on; return it."""
        self._pending, self._newest = request, None
        return request

    def left(self) -> RecoveryRequest | None:
        """Return what is still wanted: behind the newest packet that came; ``None``: nothing."""
        if self._pending is None or self._newest is None:
            return self._pending
        session, _, end, sent_ns = _place(self._newest)
        return RecoveryRequest(
            ticket=self._pending.ticket,
            run_ns=sent_ns,
            sent_ns=sent_ns,
            next=end,
            until_ns=self._pending.until_ns,
            session=session,
            channel=self._pending.channel,
        )

    async def _send(self, writer: asyncio.StreamWriter, request: RecoveryRequest) -> None:
        self.asked += 1
        writer.write(frame(REQUEST, request.pack()))
        await writer.drain()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        # Many frames at a time: catching up must be faster than the feed.
        rest = b""
        while True:
            async with asyncio.timeout(SILENCE_S):
                data = await reader.read(_READ_BYTES)
            if not data:
                raise ConnectionResetError("the recovery server has closed the session")
            data = rest + data
            at = 0
            while at + FRAME.size <= len(data):
                length, kind = FRAME.unpack_from(data, at)
                end = at + FRAME.size + length
                if end > len(data):
                    break
                self.take(kind, data[at + FRAME.size : end])
                at = end
            rest = data[at:]

    def take(self, kind: int, payload: bytes) -> None:
        """Take one frame."""
        pending = self._pending
        if pending is None:
            return
        if kind == PACKET and len(payload) >= 40:
            self.packets += 1
            self._recovered.append(RECOVERED_PACKET, payload)
            self._newest = payload
        elif kind == GONE and len(payload) >= RecoveryGone.size_bytes:
            self._recovered.publish(RecoveryGone.view(payload))
        elif kind == DONE and len(payload) >= RecoveryDone.size_bytes:
            told = RecoveryDone.view(payload)
            if told.ticket == pending.ticket:
                self._recovered.publish(told)
                self._pending = None
                self.answered += 1


class PacketHistory:
    """Every packet that was sent on one channel, in order: what a recovery server replays.

    One thread appends, others may look.

    Parameters
    ----------
    packets_max
        Forget the oldest beyond so many; ``None``: keep all.
    """

    def __init__(self, *, packets_max: int | None = None) -> None:
        self._packets_max = packets_max
        self._packets: list[bytes] = []
        self._sent_ns: list[int] = []
        self._ends: list[int] = []
        #: First packets of runs, by their number since the beginning.
        self._runs: list[int] = []
        self._last: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._packets)

    def append(self, packet: bytes) -> None:
        """Add a packet; it must have been sent after all the others."""
        session, sequence, end, sent_ns = _place(packet)
        if self._last != (session, sequence):
            self._runs.append(len(self._packets))
        self._last = (session, end)
        self._sent_ns.append(sent_ns)
        self._ends.append(end)
        # Last: whoever looks goes by the number of packets.
        self._packets.append(packet)

    @property
    def sent_ns(self) -> int:
        """When the newest packet was sent; 0 if there is none."""
        return self._sent_ns[len(self._packets) - 1] if self._packets else 0

    def answer(self, request: RecoveryRequest) -> Iterator[bytes]:
        """Yield the frames of the answer to a request."""
        count = len(self._packets)
        oldest = 0 if self._packets_max is None else max(0, count - self._packets_max)
        until_ns = min(request.until_ns, self._sent_ns[count - 1] if count else 0)
        at = oldest
        if request.session != 0:
            at, gone = self._find(request, count, oldest)
            if gone is not None:
                yield frame(GONE, gone.pack())
        while at < count and self._sent_ns[at] <= until_ns:
            yield frame(PACKET, self._packets[at])
            at += 1
        yield frame(DONE, RecoveryDone(ticket=request.ticket, until_ns=until_ns).pack())

    def _find(
        self, request: RecoveryRequest, count: int, oldest: int
    ) -> tuple[int, RecoveryGone | None]:
        """Return the first packet behind a position, and what of it is gone."""
        at = bisect_left(self._sent_ns, request.run_ns, 0, count)
        if at == count:
            return count, None
        run = bisect_right(self._runs, at) - 1
        first = self._runs[run]
        end = self._runs[run + 1] if run + 1 < len(self._runs) else count
        if _place(self._packets[at])[0] != request.session or end <= oldest:
            # Nothing of that run is here any more.
            return max(at, oldest), _gone(request, -1)
        # The first packet that ends there may be one with messages, which are known; heartbeats
        # that say the same number come behind it.
        found = bisect_left(self._ends, request.next, first, end)
        if found < end and _place(self._packets[found])[1] < request.next == self._ends[found]:
            found += 1
        # There may be hours of heartbeats.
        found = max(found, bisect_left(self._sent_ns, request.sent_ns, first, end))
        if found >= oldest:
            return found, None
        sequence = _place(self._packets[oldest])[1]
        return oldest, _gone(request, sequence) if sequence > request.next else None


def _gone(request: RecoveryRequest, following: int) -> RecoveryGone:
    return RecoveryGone(
        ticket=request.ticket,
        run_ns=request.run_ns,
        first_missing=request.next,
        next=following,
        session=request.session,
    )


class RecoveryServer:
    """Answers requests from a history. For tests, demos and simulations.

    Parameters
    ----------
    history
        What was sent.
    cuts
        Cut so many connections, each in the middle of an answer: of every second one, so that
        there is something between two cuts.

    Attributes
    ----------
    cuts_made
        Connections cut so far.
    """

    def __init__(self, history: PacketHistory, *, cuts: int = 0) -> None:
        self._history = history
        self._cuts = cuts
        self._answers = 0
        self.cuts_made = 0
        self._server: asyncio.Server | None = None

    @asynccontextmanager
    async def serve(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
        """Listen as long as the block runs; the port is what the block is given."""
        self._server = await asyncio.start_server(self._session, host, port)
        try:
            yield self._server.sockets[0].getsockname()[1]
        finally:
            self._server.close()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        alive = asyncio.create_task(self._say_alive(writer))
        try:
            while True:
                length, kind = FRAME.unpack(await reader.readexactly(FRAME.size))
                payload = await reader.readexactly(length)
                if kind == REQUEST and length >= RecoveryRequest.size_bytes:
                    await self._answer(RecoveryRequest.view(payload), writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            alive.cancel()
            writer.close()

    async def _say_alive(self, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                writer.write(frame(ALIVE))
                await writer.drain()
                await asyncio.sleep(ALIVE_S)

    async def _answer(self, request: RecoveryRequest, writer: asyncio.StreamWriter) -> None:
        # What was sent is in the history; but a packet may be faster than the one who writes it.
        for _ in range(100):
            if request.until_ns == UNTIL_NOW or self._history.sent_ns >= request.until_ns:
                break
            await asyncio.sleep(0.01)
        frames = list(self._history.answer(request))
        self._answers += 1
        if self.cuts_made < self._cuts and self._answers % 2 == 1:
            self.cuts_made += 1
            writer.write(b"".join(frames[: len(frames) // 2]))
            await writer.drain()
            # Not closed: reset, as when a machine in between forgets the connection.
            writer.transport.abort()
            raise ConnectionAbortedError
        for first in range(0, len(frames), _FRAMES_AT_ONCE):
            writer.write(b"".join(frames[first : first + _FRAMES_AT_ONCE]))
            await writer.drain()
