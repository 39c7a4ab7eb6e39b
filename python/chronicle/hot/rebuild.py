"""Rebuild: the state of a handler from what earlier lives of it have published.

An application whose outputs name their inputs needs no other memory: after a kill at any
instruction its next life reads its own outputs to their end, and knows what it had done. The
handler has methods for the messages that it publishes itself; here it gets them, as compiled code
and on a hot thread of its own, merged by time, and nothing else.

    state = rebuild(Router(name=b"main"), [Past(path, tag=3)])
    hot = HotThread(Router(name=b"main"), state=state, ...)
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from chronicle.channel import AddReader
from chronicle.hot.guard import GuardMode
from chronicle.hot.thread import HotThread
from chronicle.queue import Queue, QueueReader, inspect
from chronicle.values import Value

if TYPE_CHECKING:
    from chronicle.queue import StrPath

__all__ = ["Past", "rebuild"]

#: Pause between two looks at how far the thread is, in seconds.
_NAP_S: Final = 0.0005


class Past(Value):
    """A queue of which everything shall be read again.

    Parameters
    ----------
    path
        Its directory. One that is not there, or was never written to, is empty.
    tag
        What the handler sees as ``info.tag``.
    """

    __slots__ = ("path", "tag")
    path: str
    tag: int

    def __init__(self, path: StrPath, tag: int = 0) -> None:
        self._set(os.fspath(path), tag)


def rebuild(
    handler: Any,
    queues: Iterable[Past],
    *,
    state: Any = None,
    guard: GuardMode = "enforce",
    timeout: float = 60.0,
) -> Any:
    """Give a handler everything that stands in these queues; return its state after that.

    Blocks. What is published there meanwhile is not read: go on behind what the handler has seen.
    The handler's outputs have no writers, so what it publishes goes nowhere; its `on_idle` is
    called as ever.

    Parameters
    ----------
    handler
        As for `HotThread`.
    queues
        Merged by the time of their messages, as a fan-in does; at equal times in this order.
    state
        To begin with; by default the handler's initial one.
    guard
        Of the thread that reads.
    timeout
        Longest time that it may take, in seconds.

    Returns
    -------
    numpy.void or bytes
        For ``HotThread(state=...)``.

    Raises
    ------
    HotThreadFailed
        If the handler failed on one of the messages.
    CorruptRecord
        If a queue is damaged.
    TimeoutError
        If it takes too long.
    """
    found = [(*opened, past.tag) for past in queues if (opened := _open(past.path)) is not None]
    try:
        expected = sum(count for _, count, _ in found)
        hot = HotThread(
            handler,
            readers=[AddReader(reader, tag) for reader, _, tag in found],
            name="rebuild",
            wait="sleep",
            guard=guard,
            meter="off",
            commit=False,
            state=state,
            sources_max=max(1, len(found)),
        )
        with hot:
            _wait(hot, expected, timeout)
        return hot.state
    finally:
        for reader, _, _ in found:
            reader.close()


def _open(path: str) -> tuple[QueueReader, int] | None:
    """Open a queue at the oldest message that exists; return how many there are as well."""
    if not os.path.exists(os.path.join(path, "control")):  # noqa: PTH110, PTH118
        return None
    about = inspect(path)
    if not about["segments"]:
        return None
    first = about["segments"][0]["first_seq"]
    with Queue.open_subscriber(path, None, start="latest") as end:
        last = end.next_seq - 1
    if last < first:
        return None
    return Queue.open_subscriber(path, None, start=first), last - first + 1


def _wait(hot: HotThread, expected: int, timeout: float) -> None:
    end_s = time.monotonic() + timeout
    while hot.status.messages < expected:
        if hot.failure is not None:
            raise hot.failure
        hot.poll()
        if time.monotonic() >= end_s:
            raise TimeoutError(
                f"the state of '{hot.name}' was not rebuilt in time: timeout={timeout} "
                f"messages={hot.status.messages} expected={expected}; was a queue cut meanwhile?"
            )
        time.sleep(_NAP_S)
