"""A TCP connection that comes back: made again, with growing pauses, whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from chronicle.errors import BadArgument
from chronicle.sidecar.supervise import Service

__all__ = ["Connection", "Session"]

#: What is done with a connection; it lasts until this returns or raises.
Session: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


class Connection:
    """A connection that `Sidecar.connect` keeps.

    Attributes
    ----------
    connected
        Whether it stands now.
    connects
        How often it was made.
    """

    def __init__(
        self,
        host: str,
        port: int,
        connect_timeout_s: float,
        options: dict[str, Any],
    ) -> None:
        self.host = host
        self.port = port
        self.connected = False
        self.connects = 0
        self.begin: Callable[[], object] = lambda: None
        """Called once, when it is known what to do with the connection."""
        self._session: Session | None = None
        self._connect_timeout_s = connect_timeout_s
        self._options = options
        self._service: Service | None = None

    def __call__(self, on_connected: Session) -> Session:
        """Say what is done with the connection. For use as a decorator; once."""
        if self._session is not None:
            raise BadArgument(f"{self!r} has its session already; connect again for another one")
        self._session = on_connected
        self.begin()
        return on_connected

    def service(self, name: str) -> Service:
        """Make the service that keeps the connection."""
        self._service = Service(
            name,
            self._run,
            restart_on_return=True,
            expected=(OSError, TimeoutError, asyncio.IncompleteReadError),
        )
        return self._service

    async def _run(self) -> None:
        assert self._session is not None  # It was begun.
        async with asyncio.timeout(self._connect_timeout_s):
            reader, writer = await asyncio.open_connection(self.host, self.port, **self._options)
        self.connects += 1
        self.connected = True
        self._say("connected")
        try:
            await self._session(reader, writer)
        finally:
            self.connected = False
            self._say("not connected")
            writer.close()
            # The peer may be gone; that it could not be told is no news.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    def _say(self, what: str) -> None:
        if self._service is not None:
            self._service.beat(f"{what}, connects={self.connects}")

    def __repr__(self) -> str:
        state = "connected" if self.connected else "not connected"
        return f"<Connection {self.host}:{self.port} {state}, connects={self.connects}>"
