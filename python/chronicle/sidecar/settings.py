"""Settings: a TOML file that becomes one command, checked in full, whenever it changes.

The command's message class says which keys there are and of which type; ranges are added where the
type allows more than makes sense. A file that is not right changes nothing: what is wrong with it
is told, all of it, with file and key, in the log and in the service's health.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from chronicle.errors import ChannelFull, SettingsRefused
from chronicle.message import NUMBERS, MessageBase
from chronicle.sidecar.supervise import Service

__all__ = ["Ranges", "Settings", "TakesCommands", "read_settings"]

M = TypeVar("M", bound=MessageBase)
#: Lowest and highest value, both allowed, by key.
Ranges: TypeAlias = Mapping[str, tuple[float, float]]

_log = logging.getLogger("chronicle.sidecar")

_BYTES_MAX: Final = 1 << 20
#: Editors write in steps: truncate, write, rename. Look when it has been quiet for so long.
_QUIET_S: Final = 0.02


def read_settings(path: str | os.PathLike[str], cls: type[M], ranges: Ranges | None = None) -> M:
    """Read a TOML file whose keys are the fields of a message class; return the message.

    Raises
    ------
    SettingsRefused
        If the file cannot be read or is no TOML; or if keys are unknown or missing, or values have
        another type or are out of range. Tells all of it.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(_BYTES_MAX + 1)
        if len(data) > _BYTES_MAX:
            raise SettingsRefused(f"refused: path='{file}' is larger than {_BYTES_MAX} bytes")
        table = tomllib.loads(data.decode())
    except OSError as error:
        raise SettingsRefused(f"refused: path='{file}' cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsRefused(f"refused: path='{file}' is no TOML: {error}") from error
    names = [item.name for item in cls.FIELDS]
    wrong = [
        f"{key}: unknown key; there are {', '.join(names)}" for key in table if key not in names
    ]
    values: dict[str, Any] = {}
    for item in cls.FIELDS:
        if item.name not in table:
            wrong.append(f"{item.name}: missing")
            continue
        found = table[item.name]
        complaint = _check(item, found, (ranges or {}).get(item.name))
        if complaint is None:
            values[item.name] = found
        else:
            wrong.append(f"{item.name}: {complaint}")
    if wrong:
        raise SettingsRefused(f"refused: path='{file}' " + "; ".join(wrong))
    return cls(**values)


def _check(item: Any, found: Any, span: tuple[float, float] | None) -> str | None:
    """Return what is wrong with the value of a field."""
    shown = f"value={found!r}"
    if item.type == "chars":
        if not isinstance(found, str) or not found.isascii() or len(found) > item.size_bytes:
            return f"expected=ASCII text of up to {item.size_bytes} bytes {shown}"
        return None
    if item.count is not None:
        return "expected=a field that is no array; a settings file holds plain values"
    number = NUMBERS[item.type]
    if number.name == "bool":
        return None if isinstance(found, bool) else f"expected=true or false {shown}"
    is_integer = number.minimum is not None
    kinds = int if is_integer else int | float
    if not isinstance(found, kinds) or isinstance(found, bool):
        return f"expected={'an integer' if is_integer else 'a number'} {shown}"
    low, high = span or (number.minimum, number.maximum)
    if low is not None and high is not None and not low <= found <= high:
        return f"out of range: {shown} range={low}..{high}"
    if found != found:
        return f"expected=a number {shown}"
    return None


class TakesCommands(Protocol):
    """A hot thread, as far as settings need one."""

    def send(self, message: Any, /) -> int:
        """Send a command; return its ticket."""


class Settings:
    """Keeps a hot thread's settings as a file has them.

    Attributes
    ----------
    taken, refused
        Counters: how often the file was sent, and how often it was not right.
    error
        What is wrong with the file as it is now.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        cls: type[MessageBase],
        send: Callable[[MessageBase], object],
        ranges: Ranges | None = None,
    ) -> None:
        self.path = Path(path).absolute()
        self.taken = 0
        self.refused = 0
        self.error: str | None = None
        self._cls = cls
        self._send = send
        self._ranges = ranges
        self._last: bytes | None = None

    def service(self, name: str) -> Service:
        """Make the service that watches."""
        return Service(name, self._run, examine=lambda: self.error)

    def look(self) -> None:
        """Read the file once; send it if it is right and says something new."""
        try:
            message = read_settings(self.path, self._cls, self._ranges)
        except SettingsRefused as error:
            if str(error) != self.error:
                self.refused += 1
                self.error = str(error)
                _log.error("%s; the settings stay as they were", error)
            return
        self.error = None
        data = message.pack()
        if data == self._last:
            return
        self._send(message)
        self._last = data
        self.taken += 1
        _log.info("settings taken: path='%s'", self.path)

    async def _run(self) -> None:
        import asyncinotify

        mask = asyncinotify.Mask
        with asyncinotify.Inotify() as inotify:
            # Its directory: editors put another file in its place.
            inotify.add_watch(
                self.path.parent,
                mask.CLOSE_WRITE | mask.MOVED_TO | mask.CREATE | mask.DELETE | mask.MOVED_FROM,
            )
            while True:
                try:
                    self.look()
                except ChannelFull:
                    await asyncio.sleep(_QUIET_S)
                    continue
                await inotify.get()
                with contextlib.suppress(TimeoutError):
                    while True:
                        async with asyncio.timeout(_QUIET_S):
                            await inotify.get()
