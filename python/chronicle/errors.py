"""What can go wrong, as one tree of exceptions under `ChronicleError`.

The native core raises these by name, with the attributes listed here; nothing else maps errors.
Errors of the operating system that have no special meaning for a queue stay `OSError`.

Each class has a `category`:

- ``"warn"``: expected in operation; handle it and go on.
- ``"error"``: fix the call or the set-up.
- ``"fatal"``: stop using this file; look at it with ``chronicle doctor``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

Category = Literal["warn", "error", "fatal"]

__all__ = [
    "AuditRefused",
    "BadArgument",
    "BusRefused",
    "Busy",
    "Category",
    "ChannelFull",
    "ChronicleError",
    "Closed",
    "CommandRefused",
    "CompileError",
    "CorruptRecord",
    "DecodeError",
    "DiskFull",
    "EndpointActive",
    "Forked",
    "FormatError",
    "Gap",
    "GuardViolation",
    "HandlerFailed",
    "HotThreadFailed",
    "MirrorDiverged",
    "Moved",
    "NotAQueue",
    "QueueFull",
    "QueueRemoved",
    "ReaderActive",
    "SchemaMismatch",
    "SegmentMissing",
    "SequenceNotWritten",
    "SettingsRefused",
    "TooLarge",
    "WriterActive",
]


class ChronicleError(Exception):
    """The base of all errors of this package.

    Attributes
    ----------
    category
        What to do: ``"warn"``, ``"error"`` or ``"fatal"``; see the module.
    source
        The source it came from, if a `FanInReader` raised it; otherwise ``None``.
    """

    category: ClassVar[Category] = "error"
    source: int | None = None

    def __init__(self, message: str, **attributes: object) -> None:
        super().__init__(message)
        # The core passes what the class documents; each is readable under its name.
        self.__dict__.update(attributes)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries (multiprocessing, futures) with their attributes.
        return (type(self), self.args, dict(self.__dict__))


class AuditRefused(ChronicleError):
    """A handler says or does something that must not be on a hot thread; it was not compiled.

    Attributes
    ----------
    findings
        Each with `construct`, `file`, `line` and `remedy`; `chronicle.hot.rules.Finding`.
    """

    findings: tuple[Any, ...]


class BadArgument(ChronicleError, ValueError):
    """An argument has a value that cannot work; the message says what was found and expected."""


class BusRefused(ChronicleError):
    """What was found on a bus is not what belongs there; it was not used.

    Attributes
    ----------
    path
        Of what was refused.
    reason
        What is wrong with it, and what to do.
    """

    path: str
    reason: str


class Busy(ChronicleError):
    """Another thread is inside of this object. Open one per thread."""


class ChannelFull(ChronicleError):
    """A channel holds as many objects as it can; nothing was sent.

    Attributes
    ----------
    capacity
        Objects that the channel can hold.
    """

    category = "warn"
    capacity: int


class Closed(ChronicleError):
    """The object was closed."""


class CommandRefused(ChronicleError):
    """A hot thread could not do what a command asked. What the command carried is given back.

    Attributes
    ----------
    ticket
        Of the command.
    """

    ticket: int


class CompileError(ChronicleError):
    """A handler could not be compiled, for a reason that is not in its source."""


class CorruptRecord(ChronicleError):
    """A record, an index entry or a segment contradicts itself. The reader stays before it.

    Attributes
    ----------
    position
        Where: segment index and offset in one number, as `QueueReader.position`.
    """

    category = "fatal"
    position: int


class DecodeError(ChronicleError, ValueError):
    """Bytes do not have the layout that was asked for."""


class DiskFull(ChronicleError, OSError):
    """There is no room for another segment. Nothing was written; append again when there is.

    Attributes
    ----------
    needed_bytes
        Size of the segment that did not fit.
    """

    needed_bytes: int


class EndpointActive(ChronicleError):
    """The endpoint has a live owner.

    Attributes
    ----------
    pid
        Of the owner, as its lease says; 0 if there is none yet.
    """

    pid: int


class Forked(ChronicleError):
    """The object was opened before `os.fork`, and this is the child. Open queues after forking."""


class FormatError(ChronicleError):
    """A file is of another kind or version.

    Attributes
    ----------
    field, found, expected
        What differs.
    """

    category = "fatal"
    field: str
    found: str
    expected: str


class Gap(ChronicleError):
    """Messages that this reader should have seen are gone. Raised once; reading goes on at `next`.

    Attributes
    ----------
    first_missing
        Sequence number of the first message that is gone.
    next
        Sequence number of the message that `next()` returns next.
    reason
        ``"retention"``, ``"cut"`` (lost in a power failure before they were flushed; their numbers
        are used again) or ``"damage"``.
    """

    category = "warn"
    first_missing: int
    next: int
    reason: str


class HandlerFailed(ChronicleError):
    """A handler gave up: it called ``self.fail(...)``. Raised by handlers that are not compiled."""


class HotThreadFailed(ChronicleError):
    """A hot thread ended, or did not start, because something failed. Everything was given back.

    Attributes
    ----------
    thread
        Its name.
    during
        ``"message"``, ``"command"``, ``"event"``, ``"idle"``, ``"start"``, ``"stop"``, ``"batch"``
        or ``"loop"``.
    source, seq, type_id
        The message that the handler failed on; of a command `seq` is its ticket. ``None``, 0 and 0
        if no message is to blame.
    reason
        What went wrong, in one line.
    """

    thread: str
    during: str
    seq: int
    type_id: int
    reason: str


class GuardViolation(HotThreadFailed):
    """A hot thread under ``guard="enforce"`` made a system call, which was refused."""


class MirrorDiverged(ChronicleError):
    """A mirror and its queue have different histories; to go on would destroy one of them.

    Restore the queue from the mirror, or have the queue mirrored into another directory.
    """


class Moved(ChronicleError):
    """The object was handed to another owner.

    Attributes
    ----------
    owner
        Who has it now.
    """

    owner: str


class NotAQueue(ChronicleError):
    """There is no queue at this path (yet)."""


class QueueFull(ChronicleError):
    """The queue holds as many segments as its table has room for. Nothing was written."""


class QueueRemoved(ChronicleError):
    """The queue's directory was removed while it was open."""

    category = "fatal"


class ReaderActive(ChronicleError):
    """A reader of this name is open already.

    Attributes
    ----------
    name, pid
        Which, and in what process.
    """

    name: str
    pid: int


class SchemaMismatch(ChronicleError):
    """A message class and the schema that the queue was created with do not agree."""


class SegmentMissing(ChronicleError):
    """A segment file is gone, and it was not retention that deleted it.

    Attributes
    ----------
    index
        Of the segment.
    """

    category = "fatal"
    index: int


class SettingsRefused(ChronicleError):
    """A settings file is not right; nothing was changed. Tells every key that is wrong."""


class SequenceNotWritten(ChronicleError, ValueError):
    """A seek goes beyond the next message.

    Attributes
    ----------
    sequence, next
        What was asked for, and the number that the next message will get.
    """

    sequence: int
    next: int


class TooLarge(ChronicleError, ValueError):
    """A payload does not fit into a segment.

    Attributes
    ----------
    len_bytes, len_bytes_max
        Its length, and the most that fits.
    """

    len_bytes: int
    len_bytes_max: int


class WriterActive(ChronicleError):
    """The queue has a live writer.

    Attributes
    ----------
    pid
        Of the process that writes.
    """

    pid: int
