"""Looking after packet rings: sum up the kernel's drops, mend what an interface's absence broke.

The ring's reader, a hot thread, cannot do this: it takes system calls. It notices nothing of it but
that datagrams come again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from chronicle.errors import Closed
from chronicle.packets import PacketRing
from chronicle.sidecar.supervise import Service, Stage
from chronicle.sidecar.workers import in_worker

__all__ = ["PacketCare"]

_log = logging.getLogger("chronicle.sidecar")

#: How often each ring is looked at.
_INTERVAL_S = 1.0


def _said(state: str) -> str:
    if state == "partial":
        return "partial: an XDP socket gets what comes over the first of its receive queues only"
    return state


class PacketCare:
    """Looks at the rings of one hot thread, once a second.

    Parameters
    ----------
    rings
        Of the thread.
    interval_s
        Seconds between looks.
    """

    def __init__(self, rings: Sequence[PacketRing], *, interval_s: float = _INTERVAL_S) -> None:
        self._rings = rings
        self._interval_s = interval_s
        self._states = ["up"] * len(rings)
        self._told = [(0, 0)] * len(rings)

    def service(self, name: str) -> Service:
        """Make the service; it ends last, so that what was dropped at the end is counted too."""
        self._service = Service(
            name, self._run, Stage.WATCH, self._finish, expected=(OSError,), examine=self._examine
        )
        return self._service

    def _examine(self) -> str | None:
        away = [
            f"interface '{ring.interface}' is {_said(state)}"
            for ring, state in zip(self._rings, self._states, strict=True)
            if state not in ("up", "closed")
        ]
        return "; ".join(away) or None

    async def _run(self) -> None:
        while True:
            await in_worker(None, self.look)
            await asyncio.sleep(self._interval_s)

    async def _finish(self) -> None:
        await in_worker(None, self.look)

    def look(self) -> None:
        """Look once at each ring. A few system calls.

        Raises
        ------
        OSError
            If one of them could not be mended; the others were looked at all the same.
        """
        failure: OSError | None = None
        for place, ring in enumerate(self._rings):
            try:
                state = ring.look()
            except Closed:
                state = "closed"
            except OSError as error:
                failure = error
                continue
            self._tell(place, state)
        told = [f"{datagrams} datagrams, {drops} dropped" for datagrams, drops in self._told]
        self._service.beat("; ".join(told))
        if failure is not None:
            raise failure

    def _tell(self, place: int, state: str) -> None:
        """Log what has changed since the last look."""
        ring = self._rings[place]
        if state != self._states[place]:
            log = _log.info if state in ("up", "closed") else _log.warning
            log("packet ring '%s': interface '%s' is %s", ring.name, ring.interface, _said(state))
            self._states[place] = state
        counts = ring.statistics()
        _, drops = self._told[place]
        if counts.drops > drops:
            _log.warning(
                "packet ring '%s' was full: the kernel dropped %d frames; read faster, or raise "
                "frames",
                ring.name,
                counts.drops - drops,
            )
        self._told[place] = (counts.datagrams, counts.drops)
