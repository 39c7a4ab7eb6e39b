"""Names on a bus: what an endpoint may be called, and how its directory is reached safely."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chronicle.errors import BadArgument, BusRefused

__all__ = ["MARKERS", "open_below", "open_directory", "refused", "split_name"]

#: Names of files that the bus itself puts into an endpoint.
MARKERS: Final = frozenset({"LOCK", "LEASE", "READY"})
_PART: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", re.ASCII)
_PART_BYTES_MAX: Final = 255
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def refused(path: str, reason: str) -> BusRefused:
    """Make the error for something on a bus that does not belong there."""
    return BusRefused(f"refused: path='{path}' {reason}", path=path, reason=reason)


def split_name(name: str) -> tuple[str, ...]:
    """Split the name of an endpoint into its parts.

    Raises
    ------
    BadArgument
        If a part is empty, begins with a dot, is a marker's name or too long, or has other
        characters than ``A-Z a-z 0-9 . _ -``.

    >>> split_name("orders/alpha")
    ('orders', 'alpha')
    """
    parts = tuple(name.split("/"))
    for part in parts:
        if _PART.fullmatch(part) is None or part in MARKERS or len(part) > _PART_BYTES_MAX:
            raise BadArgument(
                f"bad name of an endpoint: name={name!r} part={part!r} expected=parts of "
                f"[A-Za-z0-9._-]+ that do not begin with a dot, at most {_PART_BYTES_MAX} bytes "
                "each, none of LOCK, LEASE, READY; as 'orders/alpha'"
            )
    return parts


@contextlib.contextmanager
def open_directory(root: str, parts: tuple[str, ...], *, create: bool = False) -> Iterator[int]:
    """Open a directory below `root`, part by part, and close it in the end.

    Parameters
    ----------
    root
        The bus. It may be reached through links; what is below may not.
    parts
        From `split_name`.
    create
        Make what is missing, for the owner alone (0700).

    Raises
    ------
    BusRefused
        If a part is a link, no directory, somebody else's, or writable by others.
    FileNotFoundError
        If a part is missing.
    """
    path = os.path.realpath(root)
    try:
        if create:
            Path(path).mkdir(0o700, parents=True, exist_ok=True)
        at = os.open(path, _DIRECTORY)
    except (FileExistsError, NotADirectoryError) as error:
        raise refused(path, "is no directory; a bus is one") from error
    try:
        _check_directory(at, path)
        for part in parts:
            path = f"{path}/{part}"
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=at)
            below = _open_below(at, part, path)
            os.close(at)
            at = below
            _check_directory(at, path)
        yield at
    finally:
        os.close(at)


@contextlib.contextmanager
def open_below(at: int, part: str, path: str) -> Iterator[int]:
    """Open one more directory, as `open_directory` does, and close it in the end."""
    descriptor = _open_below(at, part, path)
    try:
        _check_directory(descriptor, path)
        yield descriptor
    finally:
        os.close(descriptor)


def _open_below(at: int, part: str, path: str) -> int:
    try:
        return os.open(part, _DIRECTORY, dir_fd=at)
    except FileNotFoundError:
        raise
    except OSError as error:
        # ELOOP or ENOTDIR, as the kernel likes.
        found = os.stat(part, dir_fd=at, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            raise refused(path, "is a symbolic link; put a directory there") from error
        if not stat.S_ISDIR(found.st_mode):
            raise refused(path, "is no directory; remove it") from error
        raise


def _check_directory(descriptor: int, path: str) -> None:
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid():
        raise refused(path, f"belongs to uid={found.st_uid}, expected uid={os.geteuid()}; chown it")
    if found.st_mode & 0o022:
        mode = stat.S_IMODE(found.st_mode)
        raise refused(path, f"others may write into it: mode={mode:04o}; chmod go-w it")
