"""The sidecar's thread: an asyncio loop that runs in it, workers beside it, and how both end.

The thread may die, or its loop get stuck, at any moment. What is to be done at the end is then done
without it, by whoever asked for the end.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from typing import Any

from chronicle.errors import Closed
from chronicle.sidecar import affinity
from chronicle.sidecar.supervise import Supervisor

__all__ = ["LoopThread"]

_log = logging.getLogger("chronicle.sidecar")

#: Threads for what may block for a moment.
_WORKERS = 4
#: How much longer than its limit a shutdown may take before the loop counts as stuck.
_GRACE_S = 1.0


class LoopThread:
    """Runs the services of a supervisor, in a thread of its own. Starts once.

    Attributes
    ----------
    died
        What ended the thread, if it was not `shut_down`.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self.died: BaseException | None = None
        self._supervisor = supervisor
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._workers: concurrent.futures.ThreadPoolExecutor | None = None
        self._ending = False

    @property
    def started(self) -> bool:
        """Whether there is a thread, or was one."""
        return self._thread is not None

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether the caller is the thread."""
        return threading.current_thread() is self._thread

    @property
    def running(self) -> asyncio.AbstractEventLoop:
        """The loop.

        Raises
        ------
        Closed
            If it does not run.
        """
        if self._loop is None or self.died is not None:
            raise Closed("not started" if self._loop is None else "it was stopped")
        return self._loop

    def start(self) -> None:
        """Start the thread and, on it, all services. Returns when the loop runs."""
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._workers = concurrent.futures.ThreadPoolExecutor(
            _WORKERS,
            thread_name_prefix="chr-sidecar",
            initializer=affinity.name_this_thread,
            initargs=("chr-worker",),
        )
        self._loop.set_default_executor(self._workers)
        # A daemon: a loop that is stuck for ever must not keep the process from ending.
        self._thread = threading.Thread(
            target=self._main, args=(self._loop, started), name="chr-sidecar", daemon=True
        )
        self._thread.start()
        started.wait()

    def _main(self, loop: asyncio.AbstractEventLoop, started: threading.Event) -> None:
        affinity.name_this_thread("chr-sidecar")
        asyncio.set_event_loop(loop)
        loop.set_exception_handler(_log_callback_error)

        def begin() -> None:
            for service in self._supervisor.services.values():
                self._supervisor.start(service)
            started.set()

        loop.call_soon(begin)
        try:
            loop.run_forever()
            if not self._ending:
                raise RuntimeError("somebody has stopped the sidecar's loop")
        except BaseException as error:
            self.died = error
            _log.critical(
                "the sidecar's thread has died; hot threads run on without it", exc_info=error
            )
        finally:
            started.set()
            try:
                _cancel_all(loop)
            finally:
                loop.close()

    def shut_down(self, timeout_s: float) -> list[str]:
        """Stop all services in order, then the thread; return what did not finish.

        Blocks, at most about one and a half times `timeout_s`. Works without a thread, too.
        """
        self._ending = True
        thread, loop = self._thread, self._loop
        if thread is None or loop is None:
            return self._shut_down_here(timeout_s)
        unfinished: list[str] | None = None
        coro = self._supervisor.shut_down(timeout_s)
        try:
            future = asyncio.run_coroutine_threadsafe(coro, loop)
        except RuntimeError:  # The loop is closed: its thread has died.
            coro.close()
        else:
            unfinished = _wait(future, thread, timeout_s)
        if unfinished is None:
            why = "its thread has died" if not thread.is_alive() else "its loop is stuck"
            _log.critical("the sidecar cannot stop by itself: %s", why)
            unfinished = [f"sidecar: {why}"]
            unfinished += self._shut_down_here(timeout_s)
        if thread.is_alive():
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_GRACE_S)
        if self._workers is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)
        return unfinished

    def _shut_down_here(self, timeout_s: float) -> list[str]:
        """Do without the loop what is left to do."""
        result: list[str] = []

        def work() -> None:
            result.extend(asyncio.run(self._supervisor.shut_down(timeout_s)))

        # In a thread: the caller may be inside of a loop of its own.
        thread = threading.Thread(target=work, name="chr-stop", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # The interpreter ends, and gives no more threads.
            work()
        else:
            thread.join()
        return result


def _wait(
    future: concurrent.futures.Future[list[str]], thread: threading.Thread, limit_s: float
) -> list[str] | None:
    """Wait for the shutdown, as long as there is somebody who does it."""
    end_s = time.monotonic() + 1.6 * limit_s + _GRACE_S
    while time.monotonic() < end_s:
        try:
            return future.result(0.1)
        except concurrent.futures.TimeoutError:
            if not thread.is_alive():
                return None
        except concurrent.futures.CancelledError:
            return None
    future.cancel()
    return None


def _log_callback_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    _log.error("the sidecar's loop: %s", context.get("message"), exc_info=context.get("exception"))


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    """End what still runs on a loop that has stopped, as `asyncio.run` does."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=_GRACE_S))
    loop.run_until_complete(loop.shutdown_asyncgens())
