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
    """A reader was added to the fan-in; its messages carry this source from now on."""

    source: u32


@message(65_002)
class SourceRemoved(MessageBase):
    """A source left the fan-in. `reason` is 0 if that was asked for, else one of ``REASON_*``."""

    source: u32
    reason: u32


@message(65_003)
class SourceGap(MessageBase):
    """Messages ``first_missing`` to ``next - 1`` of a source are gone; it goes on at `next`."""

    first_missing: u64
    next: u64
    source: u32
    reason: u32
