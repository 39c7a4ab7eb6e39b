"""The sidecar's half of a counters file: names, health, and what the kernel counts."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

from chronicle.errors import BadArgument
from chronicle.hot.counters import CountersFile, describe
from chronicle.sidecar.hotcare import HotCare
from chronicle.sidecar.supervise import Health, Service, Stage
from chronicle.sidecar.workers import in_worker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chronicle.hot.kernel import ThreadCounters

__all__ = ["Telling"]

_INTERVAL_S_MIN = 0.05
#: A detail or an error of a service is cut to this, so that many services fit.
_TEXT_MAX = 300


class _Told(Protocol):
    def health(self) -> Mapping[str, Health]: ...

    @property
    def cares(self) -> Sequence[HotCare]: ...


class Telling:
    """Publishes the document of a counters file again and again.

    Parameters
    ----------
    sidecar
        Whose services and hot threads.
    counters
        Where to.
    interval_s
        How often.
    """

    def __init__(self, sidecar: _Told, counters: CountersFile, *, interval_s: float) -> None:
        if not interval_s >= _INTERVAL_S_MIN:
            raise BadArgument(f"bad interval_s: found={interval_s} expected>={_INTERVAL_S_MIN}")
        self._sidecar = sidecar
        self._counters = counters
        self._interval_s = interval_s
        self._service: Service | None = None
        #: By thread id: the kernel's counts at the first look and at the last one.
        self._kernel: dict[int, tuple[ThreadCounters, ThreadCounters]] = {}

    def service(self, name: str) -> Service:
        """As a service; it tells until the very end, when the hot threads have stopped."""
        self._service = Service(name, self._run, Stage.WATCH, finish=self._finish)
        return self._service

    async def _run(self) -> None:
        assert self._service is not None
        while True:
            await in_worker(None, self.tell)
            self._service.beat()
            await asyncio.sleep(self._interval_s)

    async def _finish(self) -> None:
        self.tell()

    def tell(self) -> None:
        """Publish what there is now."""
        attached: list[Any] = [care.thread for care in self._sidecar.cares]
        threads = [t for t in attached if getattr(t, "counters_block", None) is not None]
        services = {name: _health(health) for name, health in self._sidecar.health().items()}
        self._counters.publish(
            {
                "threads": [self._describe(thread) for thread in threads],
                "services": services,
                "cpu_s": time.process_time(),
            }
        )

    def _describe(self, thread: Any) -> dict[str, Any]:
        """Add what the kernel has counted since the first look; the last look outlives the thread.

        Before the first look lie the faults of its start: the loop, the handler and the rings are
        brought into memory there.
        """
        status = thread.status
        kernel = status.kernel
        if kernel is not None:
            first = self._kernel.get(status.thread_id, (kernel, kernel))[0]
            self._kernel[status.thread_id] = (first, kernel)
        told = describe(thread)
        if status.thread_id in self._kernel:
            first, last = self._kernel[status.thread_id]
            told["kernel"] = last._asdict()
            told["kernel_since_start"] = last.since(first)._asdict()
        return told


def _health(health: Health) -> dict[str, Any]:
    error = health.last_error
    return {
        "state": health.state.value,
        "restarts": health.restarts,
        "last_error": None if error is None else error[:_TEXT_MAX],
        "beat_age_s": health.beat_age_s,
        "detail": health.detail[:_TEXT_MAX],
        "healthy": health.healthy,
    }
