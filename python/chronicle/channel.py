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

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chronicle._core import Receiver, Sender, channel

if TYPE_CHECKING:
    from chronicle.queue import QueueReader

__all__ = ["AddReader", "Receiver", "RemoveReader", "Sender", "Stop", "channel"]


@dataclass(frozen=True, slots=True)
class AddReader:
    """Take over this fully opened reader.

    Parameters
    ----------
    reader
        Opened and placed by the sidecar; the loop adds it to its `FanInReader`.
    """

    reader: QueueReader


@dataclass(frozen=True, slots=True)
class RemoveReader:
    """Give this source of the fan-in back.

    Parameters
    ----------
    source
        The number that `FanInReader.add_reader` gave.
    """

    source: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Finish."""
