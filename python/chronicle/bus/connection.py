"""Passive connections: waits for a source, notices its loss, and connects again, by itself.

An `Observer` looks at a source now and then and tells what has become of it: it is there, it is
lost and why, it is back. It has no reader: it is for whoever has given the reader to somebody else,
a hot thread for example. A `Connection` is a subscriber with an observer inside.

Both say each change once, in an order that makes sense: `Connected` at first, then `Lost` and
`Reconnected` in turns. An owner that ended and came back between two looks is both. What to do
about it is the caller's.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeAlias

from chronicle.aio import Messages
from chronicle.bus.liveness import queue_status
from chronicle.errors import BadArgument, BusRefused, ChronicleError, Closed, Gap
from chronicle.queue import Message, Queue, QueueReader, Start, Wait, inspect

if TYPE_CHECKING:
    from chronicle.bus.endpoint import Bus

__all__ = [
    "Connected",
    "Connection",
    "EndpointQueue",
    "Event",
    "Lost",
    "Missing",
    "Observer",
    "PlainQueue",
    "Reconnected",
    "Sight",
    "Source",
]


@dataclass(frozen=True)
class Connected:
    """The source is there, for the first time.

    Attributes
    ----------
    path
        Of its queue.
    epoch
        How often the source was opened by an owner.

    Examples
    --------
    >>> from chronicle.bus import Connected
    >>> match Connected(path="/dev/shm/bus/ticks", epoch=1):
    ...     case Connected(epoch=epoch):
    ...         print("connected", epoch)
    connected 1
    """

    path: str
    epoch: int


@dataclass(frozen=True)
class Lost:
    """The source is gone, or does not work.

    Attributes
    ----------
    path
        Of its queue.
    reason
        ``"lock free"``: its owner has ended. ``"heartbeat stale"``: it lives and does not work.
        ``"not ready"``, ``"no lease"``, ``"missing"``: it has given up the queue, itself, or all.
        ``"no queue"``: the queue was removed. ``"another life"``: it is back already.
        ``"refused: ..."``, ``"damaged: ..."``: what is there is not what it should be.

    Examples
    --------
    >>> from chronicle.bus import Lost
    >>> match Lost(path="/dev/shm/bus/ticks", reason="lock free"):
    ...     case Lost(reason="lock free"):
    ...         print("cancel all, then wait")
    cancel all, then wait
    """

    path: str
    reason: str


@dataclass(frozen=True)
class Reconnected:
    """The source is back.

    Attributes
    ----------
    path
        Of its queue.
    epoch
        How often the source was opened by an owner.
    epoch_changed
        Its owner is another life than before: whatever it kept in memory is gone.
    queue_changed
        It is another queue than before: its numbers start anew, and it is read from its beginning.
    missing
        Numbers of the first message that was deleted unread, and of the next one that exists;
        ``None`` if there is none, or for an observer, which does not read.

    Examples
    --------
    >>> from chronicle.bus import Reconnected
    >>> event = Reconnected("/dev/shm/bus/ticks", 2, True, False, None)
    >>> event.epoch_changed, event.queue_changed
    (True, False)
    """

    path: str
    epoch: int
    epoch_changed: bool
    queue_changed: bool
    missing: tuple[int, int] | None


@dataclass(frozen=True)
class Missing:
    """Messages are missing, while the source was there.

    Attributes
    ----------
    path
        Of its queue.
    first_missing, next_seq
        Numbers of the first that is missing, and of the next that is there.
    reason
        As of `chronicle.Gap`.

    Examples
    --------
    >>> from chronicle.bus import Missing
    >>> event = Missing(path="/dev/shm/bus/ticks", first_missing=5, next_seq=9, reason="retention")
    >>> event.next_seq - event.first_missing
    4
    """

    path: str
    first_missing: int
    next_seq: int
    reason: str


Event: TypeAlias = Connected | Lost | Reconnected | Missing


@dataclass(frozen=True)
class Sight:
    """What a look at a source has shown.

    Attributes
    ----------
    life
        Tells one life of the owner from the next; empty if the source is not there.
    reason
        Why it is not there.
    queue_id
        Of the queue.
    epoch
        How often the source was opened.
    """

    life: str
    reason: str = ""
    queue_id: str = ""
    epoch: int = 0


class Source(Protocol):
    """Something to connect to. Tests have another one."""

    @property
    def path(self) -> str:
        """Of the queue."""

    def look(self) -> Sight:
        """See whether it is there. May block as files do."""


class EndpointQueue:
    """A queue of an endpoint: there while its owner lives, works, and has declared it ready."""

    def __init__(self, bus: Bus, endpoint: str, queue: str) -> None:
        self._bus = bus
        self._endpoint = endpoint
        self._queue = queue
        self.path = str(bus.path / endpoint / queue)
        self._readiness = bus.readiness
        # A bad name is an error of the caller, not a source that is not there.
        self._readiness.parts_of(self.path)

    def look(self) -> Sight:
        """See whether it is there."""
        try:
            status = self._bus.status(self._endpoint)
            if status.lease is None or status.state != "alive":
                return Sight("", status.reason)
            identity = self._readiness(self.path)
        except (BusRefused, OSError) as error:
            return Sight("", f"refused: {error}")
        if identity:
            instance, _, queue_id = identity.partition(":")
            if instance == status.lease.instance:
                return Sight(identity, "", queue_id, status.lease.epoch)
            # Its owner has changed between the two looks.
            return Sight("", "not ready")
        if self._queue in status.queues and identity is None:
            return Sight("", "no queue")
        return Sight("", "not ready")


class PlainQueue:
    """A queue outside of any endpoint: there while its writer lives, and works.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> from chronicle.bus import Connection, PlainQueue
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> with Connection(PlainQueue(path), name="risk") as connection:
    ...     connection.next() is None  # nobody is there yet
    True
    >>> folder.cleanup()
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def look(self) -> Sight:
        """See whether it is there."""
        status = queue_status(self.path)
        writer = status.writer
        if writer.state != "alive":
            return Sight("", writer.reason)
        return Sight(f"{writer.epoch}:{status.queue_id}", "", status.queue_id, writer.epoch)


class Observer:
    """Tells when a source is there, lost, and back. Made by `Bus.observe`. Any thread.

    Attributes
    ----------
    state
        ``"waiting"``, ``"connected"`` or ``"lost"``.
    reason
        Why it is not connected.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> from chronicle.bus import Observer, PlainQueue
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> observer = Observer(PlainQueue(path))
    >>> observer.state
    'waiting'
    >>> folder.cleanup()
    """

    def __init__(self, source: Source) -> None:
        self.state: Literal["waiting", "connected", "lost"] = "waiting"
        self.reason = ""
        self._source = source
        self._turn = threading.Lock()
        self._last = Sight("")

    @property
    def path(self) -> str:
        """Of the queue."""
        return self._source.path

    def poll(self) -> list[Event]:
        """Look now; return what has changed since the last look. Some hundred microseconds."""
        with self._turn:
            return self._compare(self._source.look())

    def _compare(self, sight: Sight) -> list[Event]:
        events: list[Event] = []
        if self.state == "connected" and sight.life != self._last.life:
            self.state = "lost"
            self.reason = sight.reason or "another life"
            events.append(Lost(self.path, self.reason))
        if not sight.life:
            self.reason = sight.reason
        elif self.state != "connected":
            events.append(self._come(sight, None))
        return events

    def _come(self, sight: Sight, missing: tuple[int, int] | None) -> Event:
        before, self._last = self._last, sight
        was_there = self.state == "lost"
        self.state, self.reason = "connected", ""
        if not was_there:
            return Connected(self.path, sight.epoch)
        return Reconnected(
            self.path,
            sight.epoch,
            epoch_changed=sight.life != before.life,
            queue_changed=sight.queue_id != before.queue_id,
            missing=missing,
        )

    async def events(self, *, interval_s: float = 0.05) -> AsyncIterator[Event]:
        """Look at an interval, in a worker thread; yield what changes. Never ends by itself.

        >>> async def watch_feed(feed, hot):  # for example as a task of the sidecar
        ...     async for event in feed.events():
        ...         hot.send(FeedLost() if isinstance(event, Lost) else FeedBack())
        """
        _check_interval(interval_s)
        while True:
            for event in await asyncio.to_thread(self.poll):
                yield event
            await asyncio.sleep(interval_s)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} '{self.path}' {self.state} {self.reason}>"


class Connection(Observer):
    """A subscriber that outlives its source. Made by `Bus.connect`; a context manager.

    Without a bus: ``Connection(PlainQueue(path), name="risk")``.

    What comes is a `Message` or an `Event`, in one order: everything that the owner has published
    stands before `Lost`. Messages of its next life may already come before `Reconnected`, for
    nothing in the queue tells them apart.

    Parameters
    ----------
    source
        What to connect to.
    name, start, wait
        As for `Queue.open_subscriber`, for the first connection. After a loss it goes on behind
        what was read, and in another queue at the beginning.
    interval_s
        How often to look at the source.

    Attributes
    ----------
    reader
        The reader; ``None`` while there never was a source, or after damage.
    error
        Why a source that is there cannot be read (yet); ``None`` if it can.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> from chronicle.bus import Connection, PlainQueue
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> seq = writer.append(1, b"hello")
    >>> connection = Connection(PlainQueue(path), name="risk", interval_s=0.001)
    >>> events = []
    >>> while len(events) < 2:
    ...     event = connection.next()
    ...     if event is not None:
    ...         events.append(event)
    >>> type(events[0]).__name__, bytes(events[1].payload)
    ('Connected', b'hello')
    >>> connection.close(); writer.close(); folder.cleanup()
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str | None,
        start: Start = "resume",
        wait: Wait = "hybrid",
        interval_s: float = 0.05,
    ) -> None:
        super().__init__(source)
        self.reader: QueueReader | None = None
        self.error: str | None = None
        self._name = name
        self._start: Start = start
        self._wait: Wait = wait
        self._interval_s = _check_interval(interval_s)
        self._look_at_s = 0.0
        self._events: deque[Event] = deque()
        #: What the last life has published, and why it is lost: told when that is read.
        self._end_seq: int | None = None
        self._loss: Lost | None = None
        self._unreadable_life = ""
        self._is_closed = False

    def poll(self) -> list[Event]:
        """Refuse: what changes comes in order with the messages, from `next`."""
        raise BadArgument("a connection tells its events by next(); use an Observer to poll")

    def next(self) -> Message | Event | None:
        """Return what comes next, or ``None``. Never waits; looks at the source when that is due.

        Raises
        ------
        Closed
            If the connection was closed.
        """
        with self._turn:
            if self._is_closed:
                raise Closed("the connection was closed; make a new one")
            if time.monotonic() >= self._look_at_s:
                self._look()
            if self._events:
                return self._events.popleft()
            item = self._read()
            if item is None and self._loss is not None:
                self._tell_loss()
                return self._events.popleft()
            return item

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is something, at most so many seconds; return whether there is."""
        end_s = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._turn:
                if self._is_closed:
                    raise Closed("the connection was closed; make a new one")
                now_s = time.monotonic()
                if now_s >= self._look_at_s:
                    self._look()
                    now_s = time.monotonic()
                if self._events or self._loss is not None:
                    return True
                reader = self.reader if self.state == "connected" else None
                until_s = self._look_at_s if end_s is None else min(self._look_at_s, end_s)
            left_s = max(0.0, until_s - now_s)
            if reader is None:
                time.sleep(left_s)
            else:
                try:
                    if reader.wait(left_s):
                        return True
                except ChronicleError:
                    # It was removed, or another thread has closed it: the look says so.
                    time.sleep(left_s)
            if end_s is not None and time.monotonic() >= end_s:
                return False

    def commit(self) -> None:
        """Remember that everything that came is done with, for the named reader."""
        with self._turn:
            if self.reader is not None:
                self.reader.commit()

    def close(self) -> None:
        """Close the reader. May be repeated."""
        with self._turn:
            self._is_closed = True
            self._drop()

    # --- Looking ---

    def _look(self) -> None:
        self._look_at_s = time.monotonic() + self._interval_s
        if self._loss is not None:
            # What is lost is told first; then what has become of it.
            return
        sight = self._source.look()
        if self.state == "connected" and sight.life != self._last.life:
            self._loss = Lost(self.path, sight.reason or "another life")
            self._end_seq = _end_of(self.path, self._last.queue_id)
            return
        if not sight.life:
            self.reason = sight.reason
        elif self.state != "connected" and sight.life != self._unreadable_life:
            self._connect(sight)

    def _connect(self, sight: Sight) -> None:
        missing = None
        try:
            if self.reader is not None and self.reader.queue_id == sight.queue_id:
                missing = _skip_missing(self.reader, self.path)
            else:
                self._drop()
                # Another queue is new to us, from its first message on.
                is_known = self._last.queue_id in ("", sight.queue_id)
                start = self._start if is_known else "earliest"
                self.reader = Queue.open_subscriber(
                    self.path, self._name, start=start, wait=self._wait
                )
                if self.reader.queue_id != sight.queue_id:
                    # Between the look and the opening it was replaced.
                    self._drop()
                    return
        except (ChronicleError, OSError) as error:
            self.error = f"{type(error).__name__}: {error}"
            return
        self.error = None
        self._events.append(self._come(sight, missing))

    # --- Reading ---

    def _read(self) -> Message | Event | None:
        if self.reader is None or (self.state != "connected" and self._loss is None):
            return None
        if self._end_seq is not None and self.reader.next_seq >= self._end_seq:
            return None
        try:
            return self.reader.next()
        except Gap as gap:
            return Missing(self.path, gap.first_missing, gap.next, gap.reason)
        except ChronicleError as error:
            if self._loss is None:
                self._loss = Lost(self.path, f"damaged: {error}")
            self._unreadable_life = self._last.life
            self._start = self.reader.next_seq
            self._drop()
            return None

    def _tell_loss(self) -> None:
        assert self._loss is not None
        self.state, self.reason = "lost", self._loss.reason
        self._events.append(self._loss)
        self._loss = self._end_seq = None
        self._look_at_s = 0.0

    def _drop(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    def __iter__(self) -> Iterator[Message | Event]:
        """Yield what is there now; ends when there is nothing more."""
        while (item := self.next()) is not None:
            yield item

    def __aiter__(self) -> Messages[Message | Event]:
        return Messages(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_interval(interval_s: float) -> float:
    if not interval_s > 0:
        raise BadArgument(f"bad interval_s: found={interval_s} expected=seconds above 0")
    return interval_s


def _end_of(path: str, queue_id: str) -> int | None:
    """Return the number behind the last message of a queue; ``None``: read until nothing comes."""
    try:
        with Queue.open_subscriber(path, None, start="latest") as reader:
            return reader.next_seq if reader.queue_id == queue_id else None
    except (ChronicleError, OSError):
        return None


def _skip_missing(reader: QueueReader, path: str) -> tuple[int, int] | None:
    """Move a reader past messages that were deleted before it came to them; return which."""
    numbers = [segment["first_seq"] for segment in inspect(path)["segments"]]
    first_seq = min((number for number in numbers if number), default=0)
    if reader.next_seq >= first_seq:
        return None
    missing = (reader.next_seq, first_seq)
    reader.seek(first_seq)
    return missing
