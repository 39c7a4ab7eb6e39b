"""`async for` over readers, without blocking the event loop.

The loop polls the reader itself, which costs one load; only when nothing is there does a worker
thread wait, in slices, without the interpreter lock. A cancelled task leaves the reader as it was:
a message is taken in the event loop's thread only, so none can be lost between the two.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

M_co = TypeVar("M_co", covariant=True)

# How long a worker waits before it looks whether anybody still wants the answer.
SLICE_S = 0.1


class Pollable(Protocol[M_co]):
    """What `async for` needs of a reader."""

    def next(self) -> M_co | None:
        """Return the next message, or ``None``."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for one, releasing the interpreter lock."""


class Messages(Generic[M_co]):
    """The asynchronous iterator of a reader. Never ends by itself: break out, or cancel."""

    def __init__(self, reader: Pollable[M_co]) -> None:
        self._reader = reader
        self._taken_in_a_row = 0

    def __aiter__(self) -> Messages[M_co]:
        return self

    async def __anext__(self) -> M_co:
        """Return the next message; raises what ``next()`` raises."""
        # Imported here: it takes longer to import than this whole package.
        import asyncio

        while True:
            message = self._reader.next()
            if message is not None:
                # A reader that always has something must not starve the other tasks.
                self._taken_in_a_row += 1
                if self._taken_in_a_row >= 256:
                    self._taken_in_a_row = 0
                    await asyncio.sleep(0)
                return message
            self._taken_in_a_row = 0
            await asyncio.to_thread(self._reader.wait, SLICE_S)
