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

__all__ = ["AddReader", "AddWriter", "Receiver", "RemoveReader", "Sender", "Stop", "channel"]


class AddReader(Value):
    """Take over this fully opened reader.

    Parameters
    ----------
    reader
        Opened and placed by the sidecar; the loop adds it to its `FanInReader`.
    """

    __slots__ = ("reader",)
    reader: QueueReader

    def __init__(self, reader: QueueReader) -> None:
        self._set(reader)


class AddWriter(Value):
    """Publish an output of a hot thread to this queue from now on.

    Parameters
    ----------
    output
        The name that the handler gives it.
    writer
        Opened by the sidecar.
    """

    __slots__ = ("output", "writer")
    output: str
    writer: QueueWriter

    def __init__(self, output: str, writer: QueueWriter) -> None:
        self._set(output, writer)


class RemoveReader(Value):
    """Give this source of the fan-in back.

    Parameters
    ----------
    source
        The number that `FanInReader.add_reader` gave.
    """

    __slots__ = ("source",)
    source: int

    def __init__(self, source: int) -> None:
        self._set(source)


class Stop(Value):
    """Finish."""

    __slots__ = ()
