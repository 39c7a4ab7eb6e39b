"""Commands between a sidecar and a hot loop: a bounded channel and what usually travels on it.

`channel` is native and lock-free. The command classes are plain data; a loop matches on them:

>>> tx, rx = channel(16)
>>> tx.send(Stop())
>>> match rx.try_recv():
...     case Stop():
...         print("stopping")
stopping
>>> rx.try_recv() is None
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chronicle._core import Receiver, Sender, channel
from chronicle.values import Value

if TYPE_CHECKING:
    from chronicle.queue import QueueReader, QueueWriter

__all__ = [
    "AddReader",
    "AddWriter",
    "Receiver",
    "RemoveReader",
    "RemoveWriter",
    "Sender",
    "Stop",
    "channel",
]


class AddReader(Value):
    """Take over this fully opened reader.

    Parameters
    ----------
    reader
        Opened and placed by the sidecar; the loop adds it to its `FanInReader`.
    tag
        A number of the application's own choice, 0 to 2**32 - 1: handlers of a hot thread see it as
        ``info.tag``.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> sender, receiver = chronicle.channel(16)
    >>> sender.send(chronicle.AddReader(chronicle.Queue.open_subscriber(path, "loop")))
    >>> fanin = chronicle.FanInReader()
    >>> match receiver.try_recv():
    ...     case chronicle.AddReader(reader):
    ...         fanin.add_reader(reader)
    0
    >>> fanin.close(); writer.close(); folder.cleanup()
    """

    __slots__ = ("reader", "tag")
    reader: QueueReader
    tag: int

    def __init__(self, reader: QueueReader, tag: int = 0) -> None:
        if not isinstance(tag, int) or isinstance(tag, bool) or not 0 <= tag <= 0xFFFF_FFFF:
            raise ValueError(f"tag of AddReader is out of range: value={tag!r} range=0..2**32-1")
        self._set(reader, tag)


class AddWriter(Value):
    """Publish an output of a hot thread to this queue from now on.

    Parameters
    ----------
    output
        The name that the handler gives it.
    writer
        Opened by the sidecar.
    slot
        Which one of a table of outputs.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/ticks"
    >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
    >>> command = chronicle.AddWriter("signals", writer)
    >>> command.output, command.slot
    ('signals', None)
    >>> writer.close(); folder.cleanup()
    """

    __slots__ = ("output", "writer", "slot")  # noqa: RUF023  (the order of the fields)
    output: str
    writer: QueueWriter
    slot: int | None

    def __init__(self, output: str, writer: QueueWriter, slot: int | None = None) -> None:
        self._set(output, writer, slot)


class RemoveReader(Value):
    """Give this source of the fan-in back.

    Parameters
    ----------
    source
        The number that `FanInReader.add_reader` gave.

    Examples
    --------
    >>> import chronicle
    >>> match chronicle.RemoveReader(3):
    ...     case chronicle.RemoveReader(source):
    ...         print(source)
    3
    """

    __slots__ = ("source",)
    source: int

    def __init__(self, source: int) -> None:
        self._set(source)


class RemoveWriter(Value):
    """Give the writer of this output back.

    Parameters
    ----------
    output
        The name that the handler gives it.
    slot
        Which one of a table of outputs.

    Examples
    --------
    >>> import chronicle
    >>> chronicle.RemoveWriter("reports", slot=2)
    RemoveWriter(output='reports', slot=2)
    """

    __slots__ = ("output", "slot")
    output: str
    slot: int | None

    def __init__(self, output: str, slot: int | None = None) -> None:
        self._set(output, slot)


class Stop(Value):
    """Finish.

    Examples
    --------
    >>> import chronicle
    >>> sender, receiver = chronicle.channel(1)
    >>> sender.send(chronicle.Stop())
    >>> receiver.try_recv() == chronicle.Stop()
    True
    """

    __slots__ = ()
