"""The service that keeps a mirror: turn after turn in a thread of its own.

A disk that blocks stops that thread, and nothing else.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib

from chronicle.errors import ChronicleError
from chronicle.sidecar import affinity
from chronicle.sidecar.mirror import Mirror
from chronicle.sidecar.supervise import Service, Stage
from chronicle.sidecar.workers import in_worker

__all__ = ["MirrorService"]


class MirrorService:
    """Has a mirror take its turns.

    Parameters
    ----------
    mirror
        Opened here, and closed at the end.
    interval_s
        Pause after a turn that has caught up.
    behind_s_max
        Unhealthy beyond that.
    """

    def __init__(self, mirror: Mirror, *, interval_s: float, behind_s_max: float) -> None:
        self.mirror = mirror
        self._interval_s = interval_s
        self._behind_s_max = behind_s_max
        # One thread: what is asked of the mirror happens in the order in which it was asked, also
        # when the asker was cancelled meanwhile.
        self._thread = concurrent.futures.ThreadPoolExecutor(
            1,
            thread_name_prefix="chr-mirror",
            initializer=affinity.name_this_thread,
            initargs=("chr-mirror",),
        )

    def service(self, name: str) -> Service:
        """Make the service."""
        self._service = Service(
            name,
            self._run,
            Stage.MIRROR,
            self._finish,
            expected=(ChronicleError, OSError),
            examine=self._examine,
        )
        return self._service

    def _examine(self) -> str | None:
        status = self.mirror.status
        if status.turns == 0 or status.behind_s <= self._behind_s_max:
            return None
        return f"{status.behind_s:.1f} s behind: at most {self._behind_s_max:g} s are allowed"

    async def _run(self) -> None:
        try:
            await in_worker(self._thread, self.mirror.open)
            while True:
                caught_up = await in_worker(self._thread, self.mirror.turn)
                status = self.mirror.status
                self._service.beat(f"durable up to seq={status.durable_seq}")
                if caught_up:
                    await asyncio.sleep(self._interval_s)
        except Exception:
            # Opened again by the next try, from what is durable.
            await in_worker(self._thread, self.mirror.close)
            raise

    async def _finish(self) -> None:
        try:
            await in_worker(self._thread, self.mirror.catch_up)
            await in_worker(self._thread, self.mirror.close)
            self._service.beat(f"caught up at seq={self.mirror.status.durable_seq}")
        except BaseException:
            with contextlib.suppress(RuntimeError):
                # Behind whatever the thread still does; nobody waits for a disk that is stuck.
                self._thread.submit(self.mirror.close)
            raise
        finally:
            self._thread.shutdown(wait=False)
