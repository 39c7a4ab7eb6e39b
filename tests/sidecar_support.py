"""What the tests of the sidecar share: a loop whose time only passes when nothing else is to do."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from chronicle.sidecar.discovery import Appeared, Change, Ready, Vanished

from tests.queue_support import PATIENCE_S

R = TypeVar("R")


class _Selector(selectors.DefaultSelector):
    """Where a loop would sleep, its clock jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or timeout is None:
            return ready or super().select(timeout)
        self.now_s += timeout
        return ready


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in which a minute of waiting takes no time."""

    def __init__(self) -> None:
        self.fake = _Selector()
        super().__init__(self.fake)

    def time(self) -> float:
        return self.fake.now_s


def in_fake_time(make: Callable[[], Coroutine[Any, Any, R]]) -> R:
    """Run a coroutine function to its end on a loop with fake time."""
    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        return runner.run(make())


def eventually(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait until something is true, as long as tests are patient."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, f"waited in vain for {what}"
        time.sleep(0.001)


def what_is_there(changes: list[Change]) -> dict[str, str | None]:
    """Return path and identity of what the changes have left there; they must make sense.

    Each `Appeared` has one `Vanished` behind it, and one `Ready` between at most.
    """
    state: dict[str, str | None] = {}
    for change in changes:
        match change:
            case Appeared(path):
                assert path not in state
                state[path] = None
            case Ready(path, identity):
                assert state[path] is None
                state[path] = identity
            case Vanished(path, identity):
                assert state.pop(path) == identity
    return state
