"""Blocking calls away from the loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["in_worker"]

P = ParamSpec("P")
R = TypeVar("R")


async def in_worker(
    executor: concurrent.futures.Executor | None,
    function: Callable[P, R],
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Run a function that may block in a thread of `executor` (``None``: the loop's own).

    While the interpreter ends it gives no more threads; then the function runs here: the ordered
    shutdown must still be possible.
    """

    def call() -> R:
        return function(*args, **kwargs)

    loop = asyncio.get_running_loop()
    try:
        future = loop.run_in_executor(executor, call)
    except RuntimeError:
        return call()
    return await future
