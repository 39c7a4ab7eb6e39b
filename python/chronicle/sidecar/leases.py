"""Leases: says of an endpoint of a bus, again and again, that its owner still makes progress.

The sidecar knows of an endpoint what `EndpointLike` says, and nothing of the bus. That a process
*lives* is told by the endpoint's lock, whatever happens here; a lease that is renewed no more tells
that it does not *work*: it was stopped, it hangs, or its hot thread has failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from chronicle.errors import Closed
from chronicle.sidecar.supervise import Service, Stage
from chronicle.sidecar.workers import in_worker

__all__ = ["EndpointLike", "Leases"]

#: So often within the time for which a renewal counts.
_RENEWALS = 3


class EndpointLike(Protocol):
    """What the sidecar needs of a `chronicle.bus.Endpoint`."""

    @property
    def path(self) -> Any:
        """Of its directory."""

    @property
    def lease(self) -> Any:
        """With `valid_ns`: for how long a renewal counts."""

    def renew(self) -> None:
        """Say that its owner makes progress; `Closed` if it was given up."""

    def close(self) -> None:
        """Give it up."""


class Leases:
    """Renews the lease of one endpoint for as long as its owner works.

    Parameters
    ----------
    endpoint
        Whose lease.
    works
        Asked before each renewal, on the sidecar: why it does not work, or ``None``.

    Attributes
    ----------
    count
        Renewals.
    """

    def __init__(self, endpoint: EndpointLike, *, works: Callable[[], str | None]) -> None:
        self.count = 0
        self._endpoint = endpoint
        self._works = works
        self._missing: str | None = None

    def service(self, name: str) -> Service:
        """Make the service. It renews until the very end of the shutdown."""
        self._service = Service(
            name, self._run, Stage.WATCH, expected=(OSError,), examine=lambda: self._missing
        )
        return self._service

    async def _run(self) -> None:
        while True:
            why = self._works()
            self._missing = None if why is None else f"the lease is not renewed: {why}"
            if why is None:
                try:
                    await in_worker(None, self._endpoint.renew)
                except Closed:
                    # Its owner has given it up.
                    return
                self.count += 1
                self._service.beat(f"{self.count} renewals")
            await asyncio.sleep(self._endpoint.lease.valid_ns / 1e9 / _RENEWALS)
