"""What a hot thread answers: `HotThread.poll` returns these, and `wait_for` the one of a ticket.

Times are wall clock, in nanoseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chronicle.values import Value

if TYPE_CHECKING:
    from chronicle.queue import QueueReader, QueueWriter

__all__ = [
    "Ack",
    "CommandDone",
    "FirstMessage",
    "GapSeen",
    "ReaderAdded",
    "ReaderRemoved",
    "Refused",
    "SourceFailed",
    "WriterAdded",
    "WriterRemoved",
]


class Ack(Value):
    """The base of all answers."""

    __slots__ = ()


class CommandDone(Ack):
    """The handler has seen the message; not `handled` if it has no method for it."""

    __slots__ = ("ticket", "sent_ns", "taken_ns", "handled")  # noqa: RUF023
    ticket: int
    sent_ns: int
    taken_ns: int
    handled: bool

    def __init__(self, ticket: int, sent_ns: int, taken_ns: int, handled: bool) -> None:
        self._set(ticket, sent_ns, taken_ns, handled)


class ReaderAdded(Ack):
    """A reader is a source of the hot thread now."""

    __slots__ = ("ticket", "sent_ns", "taken_ns", "source")  # noqa: RUF023
    ticket: int
    sent_ns: int
    taken_ns: int
    source: int

    def __init__(self, ticket: int, sent_ns: int, taken_ns: int, source: int) -> None:
        self._set(ticket, sent_ns, taken_ns, source)


class FirstMessage(Ack):
    """The first message of a reader that was added has been handled: the latency of a hand-off."""

    __slots__ = ("ticket", "sent_ns", "taken_ns", "source", "first_message_ns")  # noqa: RUF023
    ticket: int
    sent_ns: int
    taken_ns: int
    source: int
    first_message_ns: int

    def __init__(
        self, ticket: int, sent_ns: int, taken_ns: int, source: int, first_message_ns: int
    ) -> None:
        self._set(ticket, sent_ns, taken_ns, source, first_message_ns)


class ReaderRemoved(Ack):
    """A reader is given back; its Python object works again."""

    __slots__ = ("ticket", "sent_ns", "taken_ns", "source", "reader")  # noqa: RUF023
    ticket: int
    sent_ns: int
    taken_ns: int
    source: int
    reader: QueueReader

    def __init__(
        self, ticket: int, sent_ns: int, taken_ns: int, source: int, reader: QueueReader
    ) -> None:
        self._set(ticket, sent_ns, taken_ns, source, reader)


class WriterAdded(Ack):
    """An output writes to another queue now. `old`, if there was one, is given back.

    `slot` says which one of a table of outputs.
    """

    __slots__ = ("ticket", "sent_ns", "taken_ns", "output", "old", "slot")  # noqa: RUF023
    ticket: int
    sent_ns: int
    taken_ns: int
    output: str
    old: QueueWriter | None
    slot: int | None

    def __init__(
        self,
        ticket: int,
        sent_ns: int,
        taken_ns: int,
        output: str,
        old: QueueWriter | None,
        slot: int | None = None,
    ) -> None:
        self._set(ticket, sent_ns, taken_ns, output, old, slot)


class WriterRemoved(Ack):
    """An output has no writer any more; its Python object works again."""

    __slots__ = ("ticket", "sent_ns", "taken_ns", "output", "writer", "slot")  # noqa: RUF023
    ticket: int
    sent_ns: int
    taken_ns: int
    output: str
    writer: QueueWriter
    slot: int | None

    def __init__(
        self,
        ticket: int,
        sent_ns: int,
        taken_ns: int,
        output: str,
        writer: QueueWriter,
        slot: int | None = None,
    ) -> None:
        self._set(ticket, sent_ns, taken_ns, output, writer, slot)


class Refused(Ack):
    """A command could not be carried out. What it carried is given back."""

    __slots__ = ("ticket", "sent_ns", "taken_ns", "reason", "given_back")  # noqa: RUF023
    ticket: int
    sent_ns: int
    taken_ns: int
    reason: str
    given_back: QueueReader | QueueWriter | None

    def __init__(
        self,
        ticket: int,
        sent_ns: int,
        taken_ns: int,
        reason: str,
        given_back: QueueReader | QueueWriter | None,
    ) -> None:
        self._set(ticket, sent_ns, taken_ns, reason, given_back)


class SourceFailed(Ack):
    """A source failed and was taken out; the others go on. `ticket` is the one it came with."""

    __slots__ = ("ticket", "source", "reader", "error")  # noqa: RUF023
    ticket: int
    source: int
    reader: QueueReader
    error: Exception

    def __init__(self, ticket: int, source: int, reader: QueueReader, error: Exception) -> None:
        self._set(ticket, source, reader, error)


class GapSeen(Ack):
    """Messages of a source are gone. `handled` if the handler has been told and took it."""

    __slots__ = ("source", "first_missing", "next", "reason", "handled")  # noqa: RUF023
    source: int
    first_missing: int
    next: int
    reason: str
    handled: bool

    def __init__(
        self,
        source: int,
        first_missing: int,
        next: int,  # noqa: A002
        reason: str,
        handled: bool,
    ) -> None:
        self._set(source, first_missing, next, reason, handled)
