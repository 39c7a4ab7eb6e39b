"""Events: messages that the loop of a hot thread makes itself, for handlers that ask for them.

A handler takes them as any message, ``@on(SourceGap)``. They are never on a queue.
"""

from __future__ import annotations

from typing import Final

from chronicle.message import MessageBase, message, u32, u64

__all__ = [
    "REASON_CUT",
    "REASON_DAMAGE",
    "REASON_RETENTION",
    "SourceAdded",
    "SourceGap",
    "SourceRemoved",
]

REASON_RETENTION: Final = 1
"""Retention deleted the messages before this reader had seen them."""
REASON_CUT: Final = 2
"""A power failure took messages that were not yet flushed; their numbers are used again."""
REASON_DAMAGE: Final = 3
"""Bytes on file contradict themselves."""


@message(65_001)
class SourceAdded(MessageBase):
    """A reader was added to the fan-in; its messages carry this source from now on.

    Examples
    --------
    >>> import chronicle
    >>> from chronicle.hot import Handler, SourceAdded
    >>> from chronicle.message import u32
    >>> class Watcher(Handler):
    ...     noted: u32
    ...     @chronicle.on(SourceAdded)
    ...     def note(self, event: SourceAdded) -> None:
    ...         self.noted = event.source + 1
    >>> handler = Watcher()
    >>> handler.note(SourceAdded(source=3))
    >>> handler.noted
    4
    """

    source: u32


@message(65_002)
class SourceRemoved(MessageBase):
    """A source left the fan-in. `reason` is 0 if that was asked for, else one of ``REASON_*``.

    Examples
    --------
    >>> import chronicle
    >>> from chronicle.hot import Handler, SourceRemoved
    >>> from chronicle.message import u32
    >>> class Watcher(Handler):
    ...     noted: u32
    ...     @chronicle.on(SourceRemoved)
    ...     def note(self, event: SourceRemoved) -> None:
    ...         self.noted = event.source + 1
    >>> handler = Watcher()
    >>> handler.note(SourceRemoved(source=3, reason=0))
    >>> handler.noted
    4
    """

    source: u32
    reason: u32


@message(65_003)
class SourceGap(MessageBase):
    """Messages ``first_missing`` to ``next - 1`` of a source are gone; it goes on at `next`.

    Examples
    --------
    >>> import chronicle
    >>> from chronicle.hot import Handler, SourceGap
    >>> from chronicle.message import u32
    >>> class Watcher(Handler):
    ...     noted: u32
    ...     @chronicle.on(SourceGap)
    ...     def note(self, event: SourceGap) -> None:
    ...         self.noted = event.source + 1
    >>> handler = Watcher()
    >>> handler.note(SourceGap(source=3, reason=1, first_missing=5, next=9))
    >>> handler.noted
    4
    """

    first_missing: u64
    next: u64
    source: u32
    reason: u32
