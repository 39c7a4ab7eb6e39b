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

#: What to do about an error: go on, mend the call, or stop using the file.
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

    What to do: look at `category`, and at the message, which says so.

    Attributes
    ----------
    category
        What to do: ``"warn"``, ``"error"`` or ``"fatal"``; see the module.
    source
        The source it came from, if a `FanInReader` raised it; otherwise ``None``.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> try:
    ...     chronicle.Queue.open_subscriber(f"{folder.name}/ticks", "risk")
    ... except chronicle.ChronicleError as error:
    ...     print(type(error).__name__, error.category)
    NotAQueue error
    >>> folder.cleanup()
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

    What to do: write what the finding's `remedy` says, or move the work to the sidecar.

    Attributes
    ----------
    findings
        Each with `construct`, `file`, `line` and `remedy`; `chronicle.hot.rules.Finding`.

    Examples
    --------
    >>> import chronicle
    >>> from chronicle.hot import Handler
    >>> from chronicle.message import MessageBase, f64
    >>> @chronicle.message(1)
    ... class Trade(MessageBase):
    ...     price: f64
    >>> class Keeper(Handler):
    ...     @chronicle.on(Trade)
    ...     def trade(self, trade: Trade) -> None:
    ...         seen = [trade.price]
    >>> try:
    ...     chronicle.HotThread(Keeper())
    ... except chronicle.AuditRefused as error:
    ...     print(error.findings[0].construct)
    building a list
    """

    findings: tuple[Any, ...]


class BadArgument(ChronicleError, ValueError):
    """An argument has a value that cannot work; the message says what was found and expected.

    What to do: mend the call.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> with chronicle.Queue.open_publisher(path, segment_bytes=1 << 16) as writer:
    ...     try:
    ...         writer.append(70_000, b"")
    ...     except chronicle.BadArgument as error:
    ...         print(error)
    bad type_id: found=70000 expected=1 to 65535
    >>> folder.cleanup()
    """


class BusRefused(ChronicleError):
    """What was found on a bus is not what belongs there; it was not used.

    What to do: look at what is there; remove it if nobody owns it.

    Attributes
    ----------
    path
        Of what was refused.
    reason
        What is wrong with it, and what to do.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> from pathlib import Path
    >>> from chronicle.bus import Bus
    >>> bus = Bus(folder.name)
    >>> bus.open_endpoint("orders/alpha").close()
    >>> _ = Path(folder.name, "orders", "alpha", "LEASE").write_text("no lease")
    >>> try:
    ...     bus.status("orders/alpha")
    ... except chronicle.BusRefused as error:
    ...     print(error.path.removeprefix(folder.name))
    /orders/alpha/LEASE
    >>> folder.cleanup()
    """

    path: str
    reason: str


class Busy(ChronicleError):
    """Another thread is inside of this object. Open one per thread.

    What to do: open one object for each thread.

    Examples
    --------
    >>> import chronicle
    >>> issubclass(chronicle.Busy, chronicle.ChronicleError), chronicle.Busy.category
    (True, 'error')
    """


class ChannelFull(ChronicleError):
    """A channel holds as many objects as it can; nothing was sent.

    What to do: send later, or with a timeout; if it happens often, the receiver is too slow.

    Attributes
    ----------
    capacity
        Objects that the channel can hold.

    Examples
    --------
    >>> import chronicle
    >>> sender, receiver = chronicle.channel(1)
    >>> sender.send("first")
    >>> try:
    ...     sender.send("second")
    ... except chronicle.ChannelFull as error:
    ...     print(error.capacity)
    1
    """

    category = "warn"
    capacity: int


class Closed(ChronicleError):
    """The object was closed.

    What to do: open a new one.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> writer = chronicle.Queue.open_publisher(f"{folder.name}/ticks", segment_bytes=1 << 16)
    >>> writer.close()
    >>> try:
    ...     writer.append(1, b"late")
    ... except chronicle.Closed as error:
    ...     print(error)
    this writer is closed; open a new one
    >>> folder.cleanup()
    """


class CommandRefused(ChronicleError):
    """A hot thread could not do what a command asked. What the command carried is given back.

    What to do: mend what the message names, and send it again.

    Attributes
    ----------
    ticket
        Of the command.

    Examples
    --------
    >>> import chronicle
    >>> error = chronicle.CommandRefused("no room for another source", ticket=7)
    >>> error.ticket
    7
    """

    ticket: int


class CompileError(ChronicleError):
    """A handler could not be compiled, for a reason that is not in its source.

    What to do: do what the message says; most often the handler is to stand in a file.

    Examples
    --------
    >>> import chronicle
    >>> from chronicle.hot import Handler
    >>> class Short(Handler):
    ...     idle = chronicle.on.idle(lambda self: None)
    >>> try:
    ...     chronicle.HotThread(Short())
    ... except chronicle.CompileError as error:
    ...     print("a lambda" in str(error))
    True
    """


class CorruptRecord(ChronicleError):
    """A record, an index entry or a segment contradicts itself. The reader stays before it.

    What to do: look how far the damage reaches with ``chronicle doctor --verify``; `seek` goes past
    it.

    Attributes
    ----------
    position
        Where: segment index and offset in one number, as `QueueReader.position`.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> from pathlib import Path
    >>> path = f"{folder.name}/ticks"
    >>> with chronicle.Queue.open_publisher(path, segment_bytes=1 << 16) as writer:
    ...     writer.append(1, b"hello"), writer.append(1, b"world")
    (1, 2)
    >>> segment = next(Path(folder.name, "ticks", "segments").iterdir())
    >>> damaged = bytearray(segment.read_bytes())
    >>> damaged[4264 + 8] ^= 0xFF  # the second record's number
    >>> _ = segment.write_bytes(damaged)
    >>> with chronicle.Queue.open_subscriber(f"{folder.name}/ticks", None) as reader:
    ...     try:
    ...         print(bytes(reader.next().payload))
    ...         reader.next()
    ...     except chronicle.CorruptRecord as error:
    ...         print(error.position, error.category)
    b'hello'
    4264 fatal
    >>> folder.cleanup()
    """

    category = "fatal"
    position: int


class DecodeError(ChronicleError, ValueError):
    """Bytes do not have the layout that was asked for.

    What to do: ask for the layout that was written; the schema of the queue has it.

    Examples
    --------
    >>> import chronicle
    >>> issubclass(chronicle.DecodeError, ValueError)
    True
    """


class DiskFull(ChronicleError, OSError):
    """There is no room for another segment. Nothing was written; append again when there is.

    What to do: make room, or lower the retention limits.

    Attributes
    ----------
    needed_bytes
        Size of the segment that did not fit.

    Examples
    --------
    >>> import chronicle
    >>> error = chronicle.DiskFull("no room for another segment", needed_bytes=65_536)
    >>> error.needed_bytes, isinstance(error, OSError)
    (65536, True)
    """

    needed_bytes: int


class EndpointActive(ChronicleError):
    """The endpoint has a live owner.

    What to do: stop the other owner, or choose another name.

    Attributes
    ----------
    pid
        Of the owner, as its lease says; 0 if there is none yet.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> from chronicle.bus import Bus
    >>> bus = Bus(folder.name)
    >>> with bus.open_endpoint("orders/alpha"):
    ...     try:
    ...         bus.open_endpoint("orders/alpha")
    ...     except chronicle.EndpointActive as error:
    ...         print("owned")
    owned
    >>> folder.cleanup()
    """

    pid: int


class Forked(ChronicleError):
    """The object was opened before `os.fork`, and this is the child. Open queues after forking.

    What to do: open the queue again in the child.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> import os
    >>> writer = chronicle.Queue.open_publisher(f"{folder.name}/ticks", segment_bytes=1 << 16)
    >>> child = os.fork()
    >>> if child == 0:
    ...     try:
    ...         writer.append(1, b"")
    ...     except chronicle.Forked:
    ...         os._exit(7)
    ...     os._exit(0)
    >>> os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    7
    >>> writer.close(); folder.cleanup()
    """


class FormatError(ChronicleError):
    """A file is of another kind or version.

    What to do: read it with the version that wrote it, or restore the file.

    Attributes
    ----------
    field, found, expected
        What differs.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> from pathlib import Path
    >>> chronicle.Queue.open_publisher(f"{folder.name}/ticks", segment_bytes=1 << 16).close()
    >>> control = Path(folder.name, "ticks", "control")
    >>> _ = control.write_bytes(b"OTHERONE" + control.read_bytes()[8:])
    >>> try:
    ...     chronicle.Queue.open_subscriber(f"{folder.name}/ticks", None)
    ... except chronicle.FormatError as error:
    ...     print(error.field, error.expected)
    magic "CHRNCTL1"
    >>> folder.cleanup()
    """

    category = "fatal"
    field: str
    found: str
    expected: str


class Gap(ChronicleError):
    """Messages that this reader should have seen are gone. Raised once; reading goes on at `next`.

    What to do: decide what the missing messages mean to you, and go on reading.

    Attributes
    ----------
    first_missing
        Sequence number of the first message that is gone.
    next
        Sequence number of the message that `next()` returns next.
    reason
        ``"retention"``, ``"cut"`` (lost in a power failure before they were flushed; their numbers
        are used again) or ``"damage"``.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> reader = chronicle.Queue.open_subscriber(path, None)  # no name: holds nothing back
    >>> for _ in range(8):
    ...     _ = writer.append(1, bytes(30_000))
    >>> reader.next().seq
    1
    >>> chronicle.apply_retention(path, bytes_max=1 << 17)["segments_deleted"]
    2
    >>> while True:
    ...     try:
    ...         message = reader.next()
    ...     except chronicle.Gap as gap:
    ...         print(gap.first_missing, gap.next, gap.reason)
    ...         break
    3 5 retention
    >>> reader.close(); writer.close(); folder.cleanup()
    """

    category = "warn"
    first_missing: int
    next: int
    reason: str


class HandlerFailed(ChronicleError):
    """A handler gave up: it called ``self.fail(...)``. Raised by handlers that are not compiled.

    What to do: look at the message that the handler gave up on.

    Examples
    --------
    >>> import chronicle
    >>> from chronicle.hot import Handler
    >>> class Careful(Handler):
    ...     def check(self, size: int) -> None:
    ...         if size < 0:
    ...             self.fail("size is negative")
    >>> try:
    ...     Careful().check(-1)
    ... except chronicle.HandlerFailed as error:
    ...     print(error)
    size is negative
    """


class HotThreadFailed(ChronicleError):
    """A hot thread ended, or did not start, because something failed. Everything was given back.

    What to do: `reason` names the cause, and `seq` the message; mend that and start again.

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

    Examples
    --------
    >>> import chronicle
    >>> def stumble(messages):
    ...     raise ValueError("no")
    >>> issubclass(chronicle.HotThreadFailed, chronicle.ChronicleError)
    True
    """

    thread: str
    during: str
    seq: int
    type_id: int
    reason: str


class GuardViolation(HotThreadFailed):
    """A hot thread under ``guard="enforce"`` made a system call, which was refused.

    What to do: the message names the call and its site: move it to the sidecar.

    Examples
    --------
    >>> import chronicle
    >>> issubclass(chronicle.GuardViolation, chronicle.HotThreadFailed)
    True
    """


class MirrorDiverged(ChronicleError):
    """A mirror and its queue have different histories; to go on would destroy one of them.

    What to do: restore the queue from the mirror, or have the queue mirrored into another
    directory.

    Restore the queue from the mirror, or have the queue mirrored into another directory.

    Examples
    --------
    >>> import chronicle
    >>> chronicle.MirrorDiverged.category
    'error'
    """


class Moved(ChronicleError):
    """The object was handed to another owner.

    What to do: use what has it now; `stop()` of a hot thread gives it back.

    Attributes
    ----------
    owner
        Who has it now.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> writer = chronicle.Queue.open_publisher(f"{folder.name}/ticks", segment_bytes=1 << 16)
    >>> reader = chronicle.Queue.open_subscriber(f"{folder.name}/ticks", "risk")
    >>> fanin = chronicle.FanInReader([reader])
    >>> try:
    ...     reader.next()
    ... except chronicle.Moved as error:
    ...     print(error.owner)
    a fan-in
    >>> fanin.close(); writer.close(); folder.cleanup()
    """

    owner: str


class NotAQueue(ChronicleError):
    """There is no queue at this path (yet).

    What to do: check the path; wait for the writer, or use discovery.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> try:
    ...     chronicle.Queue.open_subscriber(f"{folder.name}/ticks", "risk")
    ... except chronicle.NotAQueue:
    ...     print("not yet")
    not yet
    >>> folder.cleanup()
    """


class QueueFull(ChronicleError):
    """The queue holds as many segments as its table has room for. Nothing was written.

    What to do: set a retention policy, or create the queue with a larger `segments_max`.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> writer = chronicle.Queue.open_publisher(
    ...     f"{folder.name}/ticks", segment_bytes=1 << 16, segments_max=8
    ... )
    >>> try:
    ...     for _ in range(20):
    ...         _ = writer.append(1, bytes(30_000))
    ... except chronicle.QueueFull:
    ...     print(writer.next_seq)
    17
    >>> writer.close(); folder.cleanup()
    """


class QueueRemoved(ChronicleError):
    """The queue's directory was removed while it was open.

    What to do: close the object, and open the queue that replaces it.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> import shutil
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> reader = chronicle.Queue.open_subscriber(path, None)
    >>> shutil.rmtree(path)
    >>> try:
    ...     reader.wait(0.01)
    ... except chronicle.QueueRemoved:
    ...     print("gone")
    gone
    >>> reader.close(); writer.close(); folder.cleanup()
    """

    category = "fatal"


class ReaderActive(ChronicleError):
    """A reader of this name is open already.

    What to do: close the other one (a hot thread gives its readers back open), or give each reader
    a name of its own.

    Attributes
    ----------
    name, pid
        Which, and in what process.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> reader = chronicle.Queue.open_subscriber(path, "risk")
    >>> try:
    ...     chronicle.Queue.open_subscriber(path, "risk")
    ... except chronicle.ReaderActive as error:
    ...     print(error.name)
    risk
    >>> reader.close(); writer.close(); folder.cleanup()
    """

    name: str
    pid: int


class SchemaMismatch(ChronicleError):
    """A message class and the schema that the queue was created with do not agree.

    What to do: give a changed message a new type id.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> from chronicle.message import MessageBase, f64, i64
    >>> @chronicle.message(1)
    ... class Price(MessageBase):
    ...     value: f64
    >>> @chronicle.message(1)
    ... class Ticks(MessageBase):
    ...     value: i64
    >>> path = f"{folder.name}/ticks"
    >>> chronicle.Queue.open_publisher(path, schema=[Price], segment_bytes=1 << 16).close()
    >>> try:
    ...     chronicle.Queue.open_publisher(path, schema=[Ticks])
    ... except chronicle.SchemaMismatch:
    ...     print("another layout")
    another layout
    >>> folder.cleanup()
    """


class SegmentMissing(ChronicleError):
    """A segment file is gone, and it was not retention that deleted it.

    What to do: restore the file, or `seek` to a later message.

    Attributes
    ----------
    index
        Of the segment.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> from pathlib import Path
    >>> path = f"{folder.name}/ticks"
    >>> with chronicle.Queue.open_publisher(path, segment_bytes=1 << 16) as writer:
    ...     for _ in range(6):
    ...         _ = writer.append(1, bytes(30_000))
    >>> sorted(Path(path, "segments").iterdir())[1].unlink()
    >>> with chronicle.Queue.open_subscriber(path, None) as reader:
    ...     try:
    ...         while reader.next() is not None:
    ...             pass
    ...     except chronicle.SegmentMissing as error:
    ...         print(error.index)
    1
    >>> folder.cleanup()
    """

    category = "fatal"
    index: int


class SettingsRefused(ChronicleError):
    """A settings file is not right; nothing was changed. Tells every key that is wrong.

    What to do: mend the keys that the message names; what was set before still holds.

    Examples
    --------
    >>> import chronicle
    >>> issubclass(chronicle.SettingsRefused, chronicle.ChronicleError)
    True
    """


class SequenceNotWritten(ChronicleError, ValueError):
    """A seek goes beyond the next message.

    What to do: seek to `latest` to wait for new messages.

    Attributes
    ----------
    sequence, next
        What was asked for, and the number that the next message will get.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> with chronicle.Queue.open_subscriber(path, None) as reader:
    ...     try:
    ...         reader.seek(10)
    ...     except chronicle.SequenceNotWritten as error:
    ...         print(error.sequence, error.next)
    10 1
    >>> writer.close(); folder.cleanup()
    """

    sequence: int
    next: int


class TooLarge(ChronicleError, ValueError):
    """A payload does not fit into a segment.

    What to do: split the payload, or create the queue with larger segments.

    Attributes
    ----------
    len_bytes, len_bytes_max
        Its length, and the most that fits.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> with chronicle.Queue.open_publisher(path, segment_bytes=1 << 16) as writer:
    ...     try:
    ...         writer.append(1, bytes(70_000))
    ...     except chronicle.TooLarge as error:
    ...         print(error.len_bytes, error.len_bytes_max)
    70000 61272
    >>> folder.cleanup()
    """

    len_bytes: int
    len_bytes_max: int


class WriterActive(ChronicleError):
    """The queue has a live writer.

    What to do: stop that process, or publish to a queue of your own and merge with a fan-in.

    Attributes
    ----------
    pid
        Of the process that writes.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> with chronicle.Queue.open_publisher(path, segment_bytes=1 << 16):
    ...     try:
    ...         chronicle.Queue.open_publisher(path)
    ...     except chronicle.WriterActive as error:
    ...         import os
    ...         print(error.pid == os.getpid())
    True
    >>> folder.cleanup()
    """

    pid: int
