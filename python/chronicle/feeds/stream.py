"""Where a queue of feed messages stands in its feed, and how a reader finds that out.

A feed handler publishes the messages of a feed one by one, so the numbers of the queue run beside
the numbers of the feed. Marks say how far apart the two are. Between one mark and the next message
of this module the distance is constant: with a mark at queue sequence ``q`` that says ``next=n``,
message ``q + k`` of the queue is message ``n + k - 1`` of the feed.

A *run* is one life of the sender's numbering: it begins with message 1. A session may have several
(see `chronicle.feeds.arbitration` for how they are told apart).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeAlias, TypeVar

from chronicle.errors import Gap
from chronicle.feeds.type_ids import STREAM
from chronicle.message import MessageBase, i64, message, u8, u32
from chronicle.queue import Queue, QueueReader

__all__ = [
    "JOINED",
    "PASSING",
    "RESTARTED",
    "RESUMED",
    "FeedGap",
    "FeedMark",
    "Position",
    "find_position",
    "position_after",
    "search_end",
]

JOINED: Final = 1
"""The queue begins here: what the feed sent before is not in it."""
RESTARTED: Final = 2
"""The sender began to count anew: a new run, and an empty market until it says otherwise."""
RESUMED: Final = 3
"""Another life of the feed handler goes on where the last one stopped. Nothing is missing."""
PASSING: Final = 4
"""Nothing has happened; this only tells the position, so that it is found near the end."""

#: A message that was read: sequence, type id, payload.
Read: TypeAlias = tuple[int, int, bytes]
Found = TypeVar("Found")

#: How many messages of the end are read first.
_WINDOW: Final = 4_096


@message(STREAM + 4)
class FeedMark(MessageBase):
    """The next message of the feed in this queue has the number `next`.

    Attributes
    ----------
    run_ns
        A time not before the run's beginning and not behind its first packet: sender's clock.
    sent_ns
        When the newest packet that was published here was sent.
    next, offset
        Number of the next message, and its place in the run's bytes (-1: not known).
    previous_next
        After `RESTARTED`: how far the run before had come.
    session, channel
        As in the packets' headers.
    reason
        `JOINED`, `RESTARTED`, `RESUMED` or `PASSING`.
    """

    run_ns: i64
    sent_ns: i64
    next: i64
    offset: i64
    previous_next: i64
    session: u32
    channel: u32
    reason: u8


@message(STREAM + 5)
class FeedGap(MessageBase):
    """Messages `first_missing` up to, but not including, `next` can be had from nowhere.

    `next` is -1 if a run ended without telling how far it had come.
    """

    first_missing: i64
    next: i64
    run_ns: i64
    session: u32


class Position(NamedTuple):
    """How far a queue has come in its feed: what the next life of a feed handler goes on from.

    Attributes
    ----------
    session, channel, run_ns, sent_ns
        Of the last mark.
    next
        Number of the first message that is not in the queue.
    """

    session: int
    channel: int
    run_ns: int
    sent_ns: int
    next: int


def position_after(messages: Iterable[Read]) -> Position | None:
    """Return the position that a run of messages tells.

    They must be consecutive. ``None`` if there is no mark among them.
    """
    found: Position | None = None
    at_seq = following = last = 0
    for seq, type_id, payload in messages:
        last = seq
        if type_id == FeedMark.type_id:
            mark = FeedMark.view(payload)
            found = Position(mark.session, mark.channel, mark.run_ns, mark.sent_ns, 0)
            at_seq, following = seq, mark.next
        elif type_id == FeedGap.type_id:
            told = FeedGap.view(payload)
            at_seq, following = seq, max(told.next, told.first_missing)
    return None if found is None else found._replace(next=following + last - at_seq)


def find_position(path: str | os.PathLike[str]) -> Position | None:
    """Read the end of a queue for its position in the feed.

    Reads backwards from the end until a mark is found: as many messages as lie between two marks,
    whatever the queue's length. Opens an unregistered reader; blocks for the disk.

    Returns
    -------
    Position or None
        ``None`` if no mark is in the queue: nothing was ever published.
    """
    return search_end(path, position_after)


def search_end(
    path: str | os.PathLike[str], search: Callable[[list[Read]], Found | None]
) -> Found | None:
    """Read ever more of the end of a queue until `search` finds something there.

    Opens an unregistered reader; blocks for the disk.

    Returns
    -------
    Found or None
        ``None`` if nothing is found in the whole queue, as far as retention has left it.
    """
    with Queue.open_subscriber(path, None, start="latest") as reader:
        end = reader.next_seq
        window = _WINDOW
        while True:
            first = max(1, end - window)
            messages, oldest = _read_span(reader, first, end)
            found = search(messages)
            if found is not None or first == 1 or oldest > first:
                return found
            window *= 8


def _read_span(reader: QueueReader, first: int, end: int) -> tuple[list[Read], int]:
    """Return messages `first` to `end - 1` as far as they exist, and the oldest number tried.

    Messages that retention has deleted meanwhile are left out, with all before them.
    """
    found: list[Read] = []
    oldest = first
    if first < end:
        reader.seek(first)
    while first < end:
        try:
            each = reader.next()
        except Gap as gap:
            found.clear()
            oldest = gap.next
            continue
        if each is None or each.seq >= end:
            break
        found.append((each.seq, each.type_id, bytes(each.payload)))
    return found, oldest
