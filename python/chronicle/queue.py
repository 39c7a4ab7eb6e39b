"""Queues as Python sees them: opening, typed and batched writing and reading, schemas, fan-in.

The classes derive from the native ones and add only what is policy or convenience. `append`,
`next` and `commit` are the native methods themselves, so they cost no Python frame.

NumPy is imported by the methods that return arrays, not by this module: it takes longer to import
than everything else together.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

from chronicle import _core
from chronicle.aio import Messages
from chronicle.errors import BadArgument, Gap, NotAQueue, SchemaMismatch
from chronicle.message import MessageBase

if TYPE_CHECKING:
    import datetime as dt
    from pathlib import Path

    import numpy as np
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from numpy.typing import NDArray

    from chronicle.frames import Block, Scaled, Text

__all__ = [
    "FanInReader",
    "Message",
    "Provisioner",
    "Queue",
    "QueueReader",
    "QueueWriter",
    "Recovery",
    "Start",
    "apply_retention",
    "inspect",
    "read_queue_id",
    "remove_reader",
    "verify",
]

Message = _core.Message
Provisioner = _core.Provisioner
apply_retention = _core.apply_retention
inspect = _core.inspect
remove_reader = _core.remove_reader
verify = _core.verify

StrPath: TypeAlias = str | os.PathLike[str]
Wait: TypeAlias = Literal["spin", "hybrid", "sleep"]
#: Where a reader starts: a word, a sequence number, or a time.
Start: TypeAlias = "Literal['resume', 'earliest', 'latest'] | int | dt.datetime"

_U64_MAX = (1 << 64) - 1


_CONTROL_BYTES = 4096
_CONTROL_MAGIC = b"CHRNCTL1"
#: Where the count of writers stands that ever opened the queue.
_CONTROL_EPOCH = 128


def read_queue_id(control: str, *, directory: int | None = None) -> str | None:
    """Read a queue's id from its control file: who has another id is another queue.

    A few system calls, whatever is there; never waits. An empty text: the queue is there, and no
    writer has opened it yet, so there is no segment to read. ``None``: no queue, or not ours to
    read.

    Parameters
    ----------
    control
        Path of the file.
    directory
        Descriptor of the directory that the path is relative to.
    """
    try:
        # Not blocking: somebody may have put a pipe there.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(control, flags, dir_fd=directory)
    except OSError:
        return None
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_size != _CONTROL_BYTES:
            return None
        head = os.pread(descriptor, _CONTROL_EPOCH + 8, 0)
    finally:
        os.close(descriptor)
    if head[:8] != _CONTROL_MAGIC:
        return None
    return head[16:32].hex() if any(head[_CONTROL_EPOCH:]) else ""


def start_as_pair(start: Start) -> tuple[str, int]:
    """Turn a start into what the core takes: a kind and a number.

    >>> start_as_pair("latest"), start_as_pair(42)
    (('latest', 0), ('sequence', 42))
    """
    if isinstance(start, str):
        return start, 0
    if isinstance(start, int) and not isinstance(start, bool) and 0 <= start <= _U64_MAX:
        return "sequence", start
    import datetime as dt

    if isinstance(start, dt.datetime):
        if start.tzinfo is None:
            raise BadArgument(
                f"bad start: found={start!r} expected=a time with a time zone; "
                "add tzinfo=datetime.timezone.utc"
            )
        # Not timestamp() * 1e9: a float has no room for nanoseconds.
        since = start - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
        micros = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
        # Whatever is later than the last time that a message can have is as late as that.
        return "time", min(max(micros, 0) * 1_000, _U64_MAX)
    raise BadArgument(
        f"bad start: found={start!r} expected='resume', 'earliest', 'latest', "
        "a sequence number or a datetime"
    )


class Recovery(NamedTuple):
    """What a writer found when it opened its queue.

    Attributes
    ----------
    same_boot
        The machine has not rebooted since the last writer: every committed message is here.
    next_seq, position
        Where writing goes on.
    bytes_discarded
        What could not be verified after a power loss and was cut off; 0 for none.
    set_aside
        Files that hold what was cut off.
    why
        What was wrong with the first message that was cut off.
    below_durable
        The device lost messages that it had confirmed to be flushed.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> recovery = writer.recovery
    >>> recovery.same_boot, recovery.next_seq, recovery.bytes_discarded
    (True, 1, 0)
    >>> writer.close(); folder.cleanup()
    """

    same_boot: bool
    next_seq: int
    position: int
    bytes_discarded: int = 0
    set_aside: tuple[str, ...] = ()
    why: str = ""
    below_durable: bool = False


class QueueWriter(_core.QueueWriter):
    """The one writer of a queue. Made by `Queue.open_publisher`. One thread at a time.

    `append(type_id, payload, *, timestamp_ns=None)` publishes one message and returns its sequence
    number: a copy, one release store and a fence; no system call unless a reader sleeps, no
    allocation but the number. `payload` is any C-contiguous buffer. Raises `TooLarge`, and at a
    roll without a provisioner `DiskFull`, `QueueFull` or `QueueRemoved`; nothing is written then,
    and the call may be repeated.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> writer.append(1, b"hello"), writer.append(1, b"")
    (1, 2)
    >>> writer.next_seq, writer.epoch
    (3, 1)
    >>> writer.flush()  # the last message that is durable
    2
    >>> writer.close(); folder.cleanup()
    """

    _types: dict[int, type[MessageBase]]

    def publish(self, message: MessageBase, *, timestamp_ns: int | None = None) -> int:
        """Publish a typed message; return its sequence number. As `append`, plus the packing."""
        return self.append(message.type_id, message.pack(), timestamp_ns=timestamp_ns)

    def append_many(
        self,
        array: NDArray[Any],
        *,
        type_id: int | type[MessageBase] | None = None,
        timestamp_ns: int | None = None,
    ) -> int:
        """Publish each item of an array as one message, in order; return the first sequence number.

        Copies; allocates nothing; releases the interpreter lock. Readers see the messages in steps
        of up to 256 KiB. All carry the same timestamp.

        Parameters
        ----------
        array
            Shape ``(n,)``, C-contiguous. Items of a structured array whose dtype belongs to a
            message class of this queue's schema need no `type_id`.
        type_id
            1 to 65_535, or a message class.
        timestamp_ns
            Since 1970 UTC; the clock's time by default.

        Raises
        ------
        BadArgument
            If the array is not one-dimensional, or its type is not known.
        DiskFull
            At a roll: the messages before it are published, `next_seq` tells how many.
        """
        if array.ndim != 1:
            raise BadArgument(f"bad batch: found=shape {array.shape} expected=one dimension")
        if type_id is None:
            type_id = self._type_of(array)
        elif isinstance(type_id, type):
            _check_item(type_id, array.dtype)
            type_id = type_id.type_id
        if array.size == 0:
            return self.next_seq
        return self._append_many(type_id, array.view("u1"), array.dtype.itemsize, timestamp_ns)

    def _type_of(self, array: NDArray[Any]) -> int:
        matches = [t for t, cls in self._types.items() if cls.dtype == array.dtype]
        if len(matches) == 1:
            return matches[0]
        raise BadArgument(
            f"bad batch: {len(matches)} message classes of this queue have dtype {array.dtype}; "
            "pass type_id=, or open the publisher with schema=[...]"
        )

    @property
    def recovery(self) -> Recovery:
        """What was found when this writer opened the queue."""
        found = self._recovery()
        found["set_aside"] = tuple(found.get("set_aside", ()))
        return Recovery(**found)

    @property
    def schema(self) -> dict[int, type[MessageBase]]:
        """The message classes of this queue, by type id."""
        return dict(self._types)

    def _repr_html_(self) -> str:
        """Return the queue that it writes as HTML, for notebooks."""
        return Queue(self.path)._repr_html_()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_item(cls: type[MessageBase], dtype: np.dtype[Any]) -> None:
    if cls.dtype != dtype:
        raise SchemaMismatch(
            f"an array of {dtype} does not hold {cls.__name__}; expected {cls.dtype}: "
            f"build it with np.zeros(n, dtype={cls.__name__}.dtype)"
        )


class QueueReader(_core.QueueReader):
    """One reader of one queue. Made by `Queue.open_subscriber`. One thread at a time.

    `next()` returns the next `Message` or ``None`` and never waits: one acquire load, one small
    object. It raises `Gap` once where messages are missing, and `CorruptRecord` where a record
    cannot be true. `wait(timeout=None)` waits, in seconds, without the interpreter lock, and
    answers Ctrl-C; it returns whether there is something to read. `commit()` remembers that
    everything delivered is done with: two stores, no system call.

    Iterating yields what is there and stops; ``async for`` waits for more.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> seq = writer.append(1, b"hello")
    >>> reader = chronicle.Queue.open_subscriber(path, "risk")
    >>> reader.wait(timeout=1)
    True
    >>> message = reader.next()
    >>> message.seq, bytes(message.payload)
    (1, b'hello')
    >>> reader.commit()
    >>> reader.next() is None
    True
    >>> reader.close(); writer.close(); folder.cleanup()
    """

    _queue: Queue

    def read_batch(
        self, cls: type[MessageBase] | None = None, *, count_max: int = 65_536
    ) -> NDArray[Any]:
        """Return the next messages of one type as an array over the mapping, without a copy.

        Does not wait. Takes the run of messages from here on that have the type of the first one
        and stand in one segment; the next call goes on behind them. Allocates one array header. The
        array keeps the mapping alive.

        Parameters
        ----------
        cls
            The message class. By default the one that the queue's schema has for the first message.
        count_max
            Messages, 1 or more.

        Returns
        -------
        ndarray
            Shape ``(n,)``, ``0 <= n <= count_max``, read-only, oldest first; items have the dtype
            of `cls`. Empty if there is nothing to read; without `cls`, and unless the queue has one
            class only, its items then have no fields.

        Raises
        ------
        SchemaMismatch
            If the first message is not a `cls`. It is not skipped.
        Gap, CorruptRecord
            As `next`.
        """
        run = self._typed_run(cls, count_max)
        if run is None:
            return self._nothing(cls)
        return _lay_over(run, (cls or self._queue.class_of(run.type_id)).dtype)

    def read_batch_with_headers(
        self, cls: type[MessageBase] | None = None, *, count_max: int = 65_536
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """As `read_batch`, with the records' headers beside.

        Returns
        -------
        (ndarray, ndarray)
            The messages, and their headers with the fields ``seq``, ``timestamp_ns`` (both u8) and
            ``type_id`` (u2). Both of shape ``(n,)``, over the mapping.
        """
        import numpy as np

        run = self._typed_run(cls, count_max)
        if run is None:
            return self._nothing(cls), np.zeros(0, dtype=_header_dtype())
        payloads = _lay_over(run, (cls or self._queue.class_of(run.type_id)).dtype)
        return payloads, _headers_of(run)

    def _nothing(self, cls: type[MessageBase] | None) -> NDArray[Any]:
        import numpy as np

        if cls is None and len(self._queue.types) == 1:
            (cls,) = self._queue.types.values()
        return np.zeros(0, dtype=cls.dtype if cls is not None else "V0")

    def _typed_run(self, cls: type[MessageBase] | None, count_max: int) -> _core.Run | None:
        if count_max < 1:
            raise BadArgument(f"bad count_max: found={count_max} expected=1 or more")
        seq = self.next_seq
        run = self.next_run(count_max=count_max)
        if run is None:
            return None
        try:
            wanted = cls if cls is not None else self._queue.class_of(run.type_id)
            _check_run(run, wanted)
        except Exception:
            # Nothing is skipped by a wrong guess.
            self.seek(max(seq, run.first_seq))
            raise
        return run

    def seek(self, to: Start) -> None:
        """Move to another place. The cursor stays until the next `commit`.

        Costs some microseconds: a search in the segment table, one file opened and mapped, a search
        in its index, a walk of at most 16 KiB.

        Parameters
        ----------
        to
            ``"earliest"``, ``"latest"``, ``"resume"`` (the last commit), a sequence number, or a
            datetime with a time zone: the first message, in sequence order, that is not older.

        Raises
        ------
        SequenceNotWritten
            For a number beyond the next message. The reader stays where it was.
        """
        self._seek(*start_as_pair(to))

    def seek_time_ns(self, timestamp_ns: int) -> None:
        """Move to the first message, in sequence order, whose timestamp is at least this."""
        if not 0 <= timestamp_ns <= _U64_MAX:
            raise BadArgument(
                f"bad timestamp_ns: found={timestamp_ns} expected=nanoseconds since 1970, 64 bits"
            )
        self._seek("time", timestamp_ns)

    def decode(self, message: Message) -> MessageBase:
        """Return a typed view of a message, by the queue's schema. No copy of the payload."""
        return self._queue.class_of(message.type_id).view(message.payload)

    @property
    def schema(self) -> dict[int, type[MessageBase]]:
        """The message classes of this queue, by type id."""
        return dict(self._queue.types)

    def _repr_html_(self) -> str:
        """Return the queue that it reads as HTML, for notebooks."""
        return self._queue._repr_html_()

    def __iter__(self) -> Iterator[Message]:
        """Yield what is there now; ends when there is nothing more to read."""
        while (message := self.next()) is not None:
            yield message

    def __aiter__(self) -> Messages[Message]:
        return Messages(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_run(run: _core.Run, wanted: type[MessageBase]) -> None:
    if wanted.type_id != run.type_id or wanted.size_bytes != run.payload_bytes:
        raise SchemaMismatch(
            f"message seq={run.first_seq} is not a {wanted.__name__}: "
            f"type_id={run.type_id} len={run.payload_bytes}, "
            f"expected type_id={wanted.type_id} len={wanted.size_bytes}; "
            "read it with next(), or with the class of that type"
        )


def _header_dtype() -> np.dtype[Any]:
    import numpy as np

    return np.dtype(
        {
            "names": ["type_id", "seq", "timestamp_ns"],
            "formats": ["<u2", "<u8", "<u8"],
            "offsets": [4, 8, 16],
            "itemsize": _core.RECORD_HEADER_BYTES,
        }
    )


def _headers_of(run: _core.Run) -> NDArray[Any]:
    import numpy as np

    shape, strides = (run.count,), (run.stride,)
    return np.ndarray(shape, _header_dtype(), buffer=_as_any(run), strides=strides)


def _as_any(run: _core.Run) -> Any:
    """Hide the type from NumPy's, which know only Python's own buffers before 3.12."""
    return run


def _lay_over(run: _core.Run, dtype: np.dtype[Any]) -> NDArray[Any]:
    import numpy as np

    return np.ndarray(
        (run.count,),
        dtype,
        buffer=_as_any(run),
        offset=_core.RECORD_HEADER_BYTES,
        strides=(run.stride,),
    )


class FanInReader(_core.FanInReader):
    """Many readers as one, merged by timestamp; ties go to the source that was added first.

    `add_reader(reader)` takes a reader over (using it raises `Moved` from then on) and returns its
    source number; `remove_reader(source)` gives it back. `next()` returns the next `Message`, with
    its `source`, or ``None``. `wait(timeout=None)` wakes for any source. `commit()` covers, on each
    source, exactly what was delivered.

    Parameters
    ----------
    readers
        Sources to begin with.
    mode
        ``"live"`` never waits for an idle source. ``"strict"`` delivers a message only when no
        source can still precede it, and so waits for sources that show nothing.
    wait
        ``"hybrid"`` spins 20 us and then sleeps; ``"spin"`` never sleeps; ``"sleep"`` sleeps at
        once.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> for name, at in {"a": 2, "b": 1}.items():
    ...     with chronicle.Queue.open_publisher(
    ...         f"{folder.name}/{name}", segment_bytes=1 << 16
    ...     ) as writer:
    ...         seq = writer.append(1, name.encode(), timestamp_ns=at)
    >>> readers = [chronicle.Queue.open_subscriber(f"{folder.name}/{n}", "me") for n in "ab"]
    >>> with chronicle.FanInReader(readers) as fanin:
    ...     [(message.source, bytes(message.payload)) for message in fanin]
    [(1, b'b'), (0, b'a')]
    >>> folder.cleanup()
    """

    def __new__(
        cls,
        readers: Iterable[QueueReader] = (),
        *,
        mode: Literal["live", "strict"] = "live",
        wait: Wait = "hybrid",
    ) -> Self:
        """Make the native half; `__init__` adds the readers."""
        del readers  # used by __init__
        return super().__new__(cls, mode, wait)

    if TYPE_CHECKING:
        # What went in comes out; the native half knows its own class only.
        def remove_reader(self, source: int) -> QueueReader: ...  # noqa: D102
        @property
        def sources(self) -> list[tuple[int, QueueReader]]: ...  # type: ignore[override]  # noqa: D102

    def __init__(
        self,
        readers: Iterable[QueueReader] = (),
        *,
        mode: Literal["live", "strict"] = "live",
        wait: Wait = "hybrid",
    ) -> None:
        del mode, wait  # used by __new__
        for reader in readers:
            self.add_reader(reader)

    def __iter__(self) -> Iterator[Message]:
        """Yield what is there now; ends when there is nothing more to deliver."""
        while (message := self.next()) is not None:
            yield message

    def __aiter__(self) -> Messages[Message]:
        return Messages(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Queue:
    """A queue: a directory of mapped files, one writer, any number of readers.

    The class is the door to writers and readers; an instance only looks.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as tmp:
    ...     with Queue.open_publisher(f"{tmp}/ticks", segment_bytes=1 << 16) as writer:
    ...         seq = writer.append(1, b"hello")
    ...     with Queue.open_subscriber(f"{tmp}/ticks", "me") as reader:
    ...         message = reader.next()
    >>> message.seq, bytes(message.payload)
    (1, b'hello')
    """

    def __init__(self, path: StrPath) -> None:
        from pathlib import Path

        self.path: Path = Path(path)
        self._types: dict[int, type[MessageBase]] | None = None

    @classmethod
    def open_publisher(
        cls,
        path: StrPath,
        *,
        schema: Sequence[type[MessageBase]] = (),
        segment_bytes: int = 64 << 20,
        checksum: bool = False,
        segments_max: int = 8192,
        group_readable: bool = False,
        retention_bytes: int | None = None,
        retention_age: float | None = None,
        flush_interval: float | None = None,
        provisioner: Provisioner | None = None,
    ) -> QueueWriter:
        """Open the queue for writing; create it if it is not there, recover it if its writer died.

        Blocks while files are allocated and mapped (tens of milliseconds for a new 64 MiB segment).

        Parameters
        ----------
        path
            The queue's directory. Parents are created. Put it on a tmpfs (``/dev/shm``) for rolls
            and appends that never fault.
        schema
            Message classes that this queue carries; stored with it, so that every tool can decode.
            A queue that exists may gain classes, not change them.
        segment_bytes
            A power of two, 64 KiB to 1 GiB. Creation only.
        checksum
            Give each message a CRC-32C, verified by readers and by recovery after a power loss.
            Creation only.
        segments_max
            Segments that can exist at a time, 2 to 1_048_576. Creation only.
        group_readable
            Modes 0750 and 0640 instead of 0700 and 0600. Creation only.
        retention_bytes, retention_age
            Delete the oldest segments while all take more than so many bytes, or once their newest
            message is older than so many seconds; never what a live registered reader still needs.
            Needs a provisioner. By default nothing is ever deleted.
        flush_interval
            Make the queue durable every so many seconds, in the provisioner. By default only
            `flush` does.
        provisioner
            Keeps the next segment mapped and ready, so that rolls make no system call.

        Raises
        ------
        WriterActive
            If another writer lives.
        DiskFull
            If there is no room for the first segment.
        FormatError, CorruptRecord, NotAQueue
            If what is there is of another version, damaged, or somebody else's.
        SchemaMismatch
            If a class contradicts the stored schema.
        """
        chores = (retention_bytes, retention_age, flush_interval)
        if provisioner is None and any(chore is not None for chore in chores):
            raise BadArgument(
                "retention and flush_interval are done by a provisioner; "
                "pass provisioner=chronicle.Provisioner()"
            )
        writer = QueueWriter(
            path,
            segment_bytes=segment_bytes,
            checksum=checksum,
            segments_max=segments_max,
            group_readable=group_readable,
        )
        try:
            from chronicle.schema import merge_schema

            writer._types = merge_schema(path, schema)
            if provisioner is not None:
                provisioner.attach(
                    writer,
                    flush_interval=flush_interval,
                    retention_bytes=retention_bytes,
                    retention_age=retention_age,
                )
        except BaseException:
            writer.close()
            raise
        return writer

    @classmethod
    def open_subscriber(
        cls,
        path: StrPath,
        name: str | None,
        *,
        start: Start = "resume",
        wait: Wait = "hybrid",
        provisioner: Provisioner | None = None,
    ) -> QueueReader:
        """Open a reader of a queue that exists.

        Costs some ten microseconds, however many segments there are.

        Parameters
        ----------
        path
            The queue's directory.
        name
            ``[A-Za-z0-9._-]+``; one live reader per name. A named reader is registered: it has a
            cursor, and retention waits for it while it lives. ``None``, or a queue that this
            process may not write to (a read-only mount): unregistered, nothing is written.
        start
            ``"resume"``: after the last commit under this name; a new name starts like
            ``"earliest"``: at the first message ever; if it was deleted, the first `next` raises
            `Gap` and the one after it returns the oldest message that exists.
            ``"latest"``: at the next message to be written. Or a sequence number, or a datetime.
            Anything but ``"resume"`` replaces the name's cursor.
        wait
            How `wait` waits: ``"hybrid"`` spins 20 us and then sleeps; ``"spin"`` never sleeps;
            ``"sleep"`` sleeps at once.
        provisioner
            Keeps the next segment mapped and ready, so that rolls make no system call.

        Raises
        ------
        NotAQueue
            If there is none (yet).
        ReaderActive
            If a reader of that name lives.
        SequenceNotWritten
            If `start` is a number beyond the next message.
        FormatError, CorruptRecord
            If what is there is of another version, or damaged.
        """
        kind, value = start_as_pair(start)
        try:
            reader = QueueReader(path, name, kind, value, wait)
        except FileNotFoundError as error:
            raise NotAQueue(
                f"'{path}' is not a queue: {error.strerror or error}; "
                "check the path, or create it with open_publisher"
            ) from None
        reader._queue = cls(path)
        if provisioner is not None:
            provisioner.attach(reader)
        return reader

    @property
    def types(self) -> Mapping[int, type[MessageBase]]:
        """The message classes of the stored schema, by type id. Read once."""
        if self._types is None:
            from chronicle.schema import read_schema

            self._types = read_schema(self.path)
        return self._types

    def class_of(self, type_id: int) -> type[MessageBase]:
        """Return the message class of a type id.

        Raises
        ------
        SchemaMismatch
            If the schema has none.
        """
        found = self.types.get(type_id)
        if found is None:
            # The writer may have gained a class since.
            from chronicle.schema import read_schema

            self._types = read_schema(self.path)
            found = self._types.get(type_id)
        if found is None:
            raise SchemaMismatch(
                f"the schema of queue '{self.path}' has no type_id={type_id}; "
                "pass the message class, or open the publisher with schema=[...]"
            )
        return found

    def inspect(self) -> dict[str, Any]:
        """Return everything that can be said without reading messages. Touches nothing."""
        return inspect(self.path)

    # --- For notebooks; chronicle.frames says which values are copied, and what becomes of them ---

    def to_numpy(
        self,
        message: type[MessageBase] | int | str | None = None,
        *,
        start: Start = "earliest",
        stop: int | dt.datetime | None = None,
    ) -> NDArray[Any]:
        """Return the messages of one type, in a range, as a structured array.

        A view of the file, without a copy, while the range stands in one segment and is one run of
        that type; a copy otherwise. Reads unregistered: nothing is written, nothing is held.

        Parameters
        ----------
        message
            The class, its name, or its type id; may be left out if the schema has one class only.
            Messages of other types are passed over.
        start
            The first message: ``"earliest"``, a sequence number, or a datetime with a time zone.
        stop
            The first message that is left out, or the time from which on messages are left out, as
            `QueueReader.seek` finds it. By default all that is there now. Not after `start`: no
            messages, as in a slice.

        Raises
        ------
        BadArgument
            If it cannot be told which type is meant, or where the range begins or ends.
        SchemaMismatch
            If the class has other fields than the stored schema, or a message another size.
        Gap
            If messages of the range were deleted; not for ``start="earliest"`` and what was
            deleted before.
        SequenceNotWritten
            If `start` or `stop` is a number beyond the next message.
        """
        from chronicle import frames

        cls, blocks = self._blocks(message, start, stop)
        return frames.to_numpy(cls, blocks)

    def to_arrow(
        self,
        message: type[MessageBase] | int | str | None = None,
        *,
        start: Start = "earliest",
        stop: int | dt.datetime | None = None,
        headers: bool = True,
        scaled: Scaled = "decimal",
        text: Text = "str",
    ) -> pa.Table:
        """Return the messages of one type, in a range, as an Arrow table; copies each value once.

        Needs the extra `frames`.

        Parameters
        ----------
        message, start, stop
            As for `to_numpy`.
        headers
            Give sequence numbers and timestamps as the columns ``_seq`` and ``_timestamp``.
        scaled
            What becomes of integers with implied decimals: exact ``"decimal"``, ``"float"``, or the
            ``"raw"`` integers.
        text
            ``"str"``, or ``"bytes"`` for text that is not ASCII.

        Raises
        ------
        BadArgument
            As `to_numpy`, and if a library is missing.
        DecodeError
            If text is not ASCII, or a timestamp later than the year 2262.
        Gap, SchemaMismatch, SequenceNotWritten
            As `to_numpy`.
        """
        from chronicle import frames

        cls, blocks = self._blocks(message, start, stop)
        return frames.to_arrow(cls, blocks, headers=headers, scaled=scaled, text=text)

    def to_polars(
        self,
        message: type[MessageBase] | int | str | None = None,
        *,
        start: Start = "earliest",
        stop: int | dt.datetime | None = None,
        headers: bool = True,
        scaled: Scaled = "decimal",
        text: Text = "str",
    ) -> pl.DataFrame:
        """Return the messages of one type, in a range, as a Polars frame; see `to_arrow`."""
        from chronicle import frames

        cls, blocks = self._blocks(message, start, stop)
        return frames.to_polars(cls, blocks, headers=headers, scaled=scaled, text=text)

    def to_pandas(
        self,
        message: type[MessageBase] | int | str | None = None,
        *,
        start: Start = "earliest",
        stop: int | dt.datetime | None = None,
        headers: bool = True,
        scaled: Scaled = "decimal",
        text: Text = "str",
    ) -> pd.DataFrame:
        """Return the messages of one type, in a range, as a pandas frame; see `to_arrow`.

        Columns of plain numbers are read-only views of the file, as `to_numpy` says.
        """
        from chronicle import frames

        cls, blocks = self._blocks(message, start, stop)
        return frames.to_pandas(cls, blocks, headers=headers, scaled=scaled, text=text)

    def _blocks(
        self,
        message: type[MessageBase] | int | str | None,
        start: Start,
        stop: int | dt.datetime | None,
    ) -> tuple[type[MessageBase], list[Block]]:
        """Find the messages; a block for each run of them."""
        cls = self._class_meant(message)
        if start == "resume":
            raise BadArgument("bad start: found='resume'; a queue has no cursor, its readers have")
        end = self._end_of(stop)
        blocks = []
        with self.open_subscriber(self.path, None, start=start) as reader:
            is_first = True
            while (left := end - reader.next_seq) > 0:
                try:
                    run = reader.next_run(count_max=left)
                except Gap as gap:
                    if start != "earliest" or not is_first or gap.reason != "retention":
                        raise
                    # What was deleted before is no part of what there is; the reader is behind it.
                    continue
                finally:
                    is_first = False
                if run is None:
                    break
                if run.type_id == cls.type_id:
                    _check_run(run, cls)
                    blocks.append((_lay_over(run, cls.dtype), _headers_of(run)))
        return cls, blocks

    def _end_of(self, stop: int | dt.datetime | None) -> int:
        """Return the number of the first message behind a range."""
        if isinstance(stop, str):
            raise BadArgument(f"bad stop: found={stop!r} expected=a sequence number or a datetime")
        place: Start = "latest" if stop is None else stop
        with self.open_subscriber(self.path, None, start=place) as reader:
            return reader.next_seq

    def _checked(self, cls: type[MessageBase]) -> type[MessageBase]:
        """Return the class, if it is a message's, and the one that the queue was written with."""
        # The base itself has no layout.
        if not issubclass(cls, MessageBase) or not hasattr(cls, "type_id"):
            raise BadArgument(f"no message: class={cls!r}; pass one made with @chronicle.message")
        stored = self.types.get(cls.type_id)
        if stored is not None and stored.schema["fields"] != cls.schema["fields"]:
            raise SchemaMismatch(
                f"type_id={cls.type_id} of queue '{self.path}' is {stored.schema}, not "
                f"{cls.schema}; leave the class out, or pass its name"
            )
        return cls

    def _class_meant(self, message: type[MessageBase] | int | str | None) -> type[MessageBase]:
        if isinstance(message, type):
            return self._checked(message)
        known = {cls.__name__: cls for cls in self.types.values()}
        if message is None and len(known) == 1:
            return next(iter(known.values()))
        if isinstance(message, int):
            return self.class_of(message)
        found = None if message is None else known.get(message)
        if found is None:
            names = ", ".join(sorted(known)) or "none"
            raise BadArgument(
                f"which messages? found={message!r} in_schema={names}; pass a message class, its "
                "name, or its type id"
            )
        return found

    def _repr_html_(self) -> str:
        """Return the queue as HTML, for notebooks: schema, rate, last messages. Only looks."""
        from chronicle.display import queue_html

        return queue_html(self, lambda start: self.open_subscriber(self.path, None, start=start))

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def __repr__(self) -> str:
        return f"Queue({str(self.path)!r})"
