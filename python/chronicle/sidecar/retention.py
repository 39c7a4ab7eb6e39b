"""Retention: delete old segments of queues at an interval, by a policy per queue.

For queues whose writer has no provisioner that does it, or is not in this process. What a live
registered reader still needs stays; the core sees to that.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from chronicle.errors import BadArgument, ChronicleError, NotAQueue
from chronicle.queue import apply_retention
from chronicle.sidecar.scan import Pattern, queue_identity
from chronicle.sidecar.supervise import Service, Stage
from chronicle.sidecar.workers import in_worker

__all__ = ["Retention"]

_log = logging.getLogger("chronicle.sidecar")


class Retention:
    """Applies one policy to every queue that matches a pattern.

    Attributes
    ----------
    segments_deleted
        Since the start.
    held
        By queue: the live reader that keeps segments which the policy would let go.
    """

    def __init__(
        self,
        pattern: Pattern,
        *,
        bytes_max: int | None,
        age_s_max: float | None,
        interval_s: float,
    ) -> None:
        if bytes_max is None and age_s_max is None:
            raise BadArgument("no policy, no deletion: give bytes_max=, age_s_max= or both")
        self.segments_deleted = 0
        self.held: dict[str, str] = {}
        self._pattern = pattern
        self._bytes_max = bytes_max
        self._age_ns_max = None if age_s_max is None else int(age_s_max * 1e9)
        self._interval_s = interval_s
        self._readiness = queue_identity()

    def service(self, name: str) -> Service:
        """Make the service that applies the policy."""
        # Until the end of the shutdown: it may be what makes room.
        self._service = Service(name, self._run, Stage.WATCH, expected=(ChronicleError, OSError))
        return self._service

    async def _run(self) -> None:
        while True:
            await in_worker(None, self.apply)
            held = f", {len(self.held)} queues held by readers" if self.held else ""
            self._service.beat(f"{self.segments_deleted} segments deleted{held}")
            await asyncio.sleep(self._interval_s)

    def apply(self) -> None:
        """Apply the policy once to every queue. Blocks on the file system."""
        held: dict[str, str] = {}
        failure: Exception | None = None
        for path, found in self._pattern.look(self._readiness).found.items():
            if found.identity is None:
                continue
            try:
                report = self._apply_to(path)
            except (NotAQueue, FileNotFoundError):
                continue  # It has vanished meanwhile.
            except (ChronicleError, OSError) as error:
                # The others' turn comes all the same.
                failure = error
                continue
            self.segments_deleted += report["segments_deleted"]
            if report["held_by"] is not None:
                held[path] = report["held_by"]
                if self.held.get(path) != report["held_by"]:
                    _log.warning(
                        "retention of '%s': reader '%s' holds %d segments that the policy lets go",
                        path,
                        report["held_by"],
                        report["allowed_segment"] - report["floor_segment"],
                    )
        self.held = held
        if failure is not None:
            raise failure

    def _apply_to(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        return apply_retention(path, bytes_max=self._bytes_max, age_ns_max=self._age_ns_max)
