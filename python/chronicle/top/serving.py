"""The dashboard in a browser: textual-serve starts one for each visitor and sends what it draws.

It listens where it is told, by default on the loopback interface. What textual-serve does not do is
done here: a request must name this host (a page elsewhere could otherwise reach it under a name of
its own), and a web socket must have been asked for by our own page.
"""

from __future__ import annotations

import asyncio
import copy
import ipaddress
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiohttp import WSMsgType, web
from textual_serve.server import Server

if TYPE_CHECKING:
    from textual_serve.app_service import AppService

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

__all__ = ["TopServer", "end_with_server", "serve"]

#: Tells the dashboards which process serves them.
_SERVER = "CHRONICLE_TOP_SERVER"
#: How long the end of the server waits for those of the dashboards.
_PATIENCE_S = 5.0
_LOOK_S = 0.5
#: Each visitor has a dashboard, which is a process of its own.
_VISITORS_MAX: Final = 16
#: Columns and lines of the largest screen that is drawn; more than a browser has room for.
_SIZE_MAX: Final = (1_000, 500)

#: The page asks for nothing from elsewhere: its template names a font of another host.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; frame-ancestors 'none'"
)


class TopServer(Server):
    """Serves the dashboard of a bus.

    Parameters
    ----------
    bus
        Its directory.
    interval_s
        Time between two looks.
    host, port
        Where to listen.
    """

    def __init__(
        self, bus: str | os.PathLike[str], interval_s: float, *, host: str, port: int
    ) -> None:
        # In full: a name that begins with a hyphen is no option.
        words = [sys.executable, "-m", "chronicle.cli", "top", str(Path(bus).absolute())]
        # Without `exec` a shell stays between us and the dashboard, which then cannot see our end.
        command = "exec " + shlex.join([*words, "--interval", f"{interval_s:g}"])
        self._visitors: set[asyncio.Task[Any]] = set()
        super().__init__(command, host=host, port=port, title=f"chronicle top {os.fspath(bus)}")

    @property
    def is_local(self) -> bool:
        """Whether only this host can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def refusal(self, request: web.Request) -> str | None:
        """Say why a request is not answered; ``None`` if it is."""
        try:
            name = request.url.host or ""
        except ValueError:
            return "not for this host: it has no name that could be"
        if self.is_local and name not in ("localhost", "127.0.0.1", "::1", self.host):
            return f"not for this host: {name!r}"
        origin = request.headers.get("Origin")
        if origin is not None and origin != f"{request.scheme}://{request.host}":
            return "asked for by another page"
        asked = [request.query.get(name) for name in ("width", "height")]
        if asked != [None, None] and _size(*asked) is None:
            return f"no size of a screen: found={asked}"
        return None

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            why = self.refusal(request)
            if why is not None:
                raise web.HTTPForbidden(text=why)
            response = await handler(request)
            if not response.prepared:
                response.headers["Content-Security-Policy"] = _POLICY
            return response

        app.middlewares.append(check)
        return app

    async def handle_index(self, request: web.Request) -> Any:
        """Answer with the page; its links lead to where the visitor has found it."""
        seen = copy.copy(self)
        seen.public_url = f"{request.scheme}://{request.host}"
        return await Server.handle_index(seen, request)

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Show the dashboard to one visitor, until one of the two goes."""
        if len(self._visitors) >= _VISITORS_MAX:
            raise web.HTTPServiceUnavailable(text=f"{_VISITORS_MAX} visitors look already")
        task = asyncio.current_task()
        assert task is not None
        self._visitors.add(task)
        try:
            return await super().handle_websocket(request)
        finally:
            self._visitors.discard(task)

    async def _process_messages(
        self, websocket: web.WebSocketResponse, app_service: AppService
    ) -> None:
        """Pass on what a visitor does; what our own page would not send ends his visit."""
        async for message in websocket:
            if message.type != WSMsgType.TEXT:
                continue
            match _parsed(message.data):
                case ["stdin", str(keys)]:
                    await app_service.send_bytes(keys.encode("utf-8", "replace"))
                case ["resize", {"width": int(width), "height": int(height)}]:
                    if (size := _size(width, height)) is not None:
                        await app_service.set_terminal_size(*size)
                case ["ping", data]:
                    await websocket.send_json(["pong", data])
                case ["blur", *_]:
                    await app_service.blur()
                case ["focus", *_]:
                    await app_service.focus()
                case _:
                    return

    async def on_shutdown(self, app: web.Application) -> None:  # noqa: ARG002 - as it is called
        """Send all visitors away; their dashboards end."""
        visitors = list(self._visitors)
        for task in visitors:
            task.cancel()
        if visitors:
            await asyncio.wait(visitors, timeout=_PATIENCE_S)

    async def on_startup(self, app: web.Application) -> None:  # noqa: ARG002 - as it is called
        """Say where it is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        print(f"chronicle: http://{host}:{self.port}/ (Ctrl-C ends it)", file=sys.stderr)
        if not self.is_local:
            print(
                "chronicle: whoever reaches this address can look at the bus, messages included",
                file=sys.stderr,
            )

    def initialize_logging(self) -> None:
        """Leave logging as it is."""


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _size(width: object, height: object) -> tuple[int, int] | None:
    """Return a size that a screen can have.

    >>> _size("80", "24"), _size(80, 24), _size("99999999", "24"), _size(-1, 24), _size("x", None)
    ((80, 24), (80, 24), None, None, None)
    """
    try:
        columns, lines = int(str(width)), int(str(height))
    except ValueError:
        return None
    fits = 0 < columns <= _SIZE_MAX[0] and 0 < lines <= _SIZE_MAX[1]
    return (columns, lines) if fits else None


def end_with_server() -> None:
    """End this process when the one that serves it has ended; nothing if nobody serves it.

    Textual's driver for the web goes on without a reader and without a writer, and then even a
    SIGTERM does not end it.
    """
    server = os.environ.get(_SERVER)
    if server is None:
        return

    def watch() -> None:
        while str(os.getppid()) == server:
            time.sleep(_LOOK_S)
        os._exit(0)

    threading.Thread(target=watch, name="chr-top-server", daemon=True).start()


def serve(bus: str | os.PathLike[str], interval_s: float, *, host: str, port: int) -> int:
    """Serve the dashboard until SIGINT or SIGTERM; return the exit code.

    Raises
    ------
    OSError
        If the address is taken, or none of this host's.
    """
    os.environ[_SERVER] = str(os.getpid())
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    TopServer(bus, interval_s, host=host, port=port).serve()
    return 0
