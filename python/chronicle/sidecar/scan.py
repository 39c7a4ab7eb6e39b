"""Looking for queues by a pattern of directories. Only looks; keeps no state but a small cache.

A pattern is a path whose parts may be shell wildcards: ``bus/orders/*/out``. As in a shell, a
wildcard does not stand for names that begin with a dot. Symbolic links are not followed. Paths are
text here: a look at a thousand directories would spend most of its time in `pathlib`.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from chronicle.errors import BadArgument, ChronicleError
from chronicle.queue import read_queue_id

__all__ = ["ALMOST", "Found", "Look", "Pattern", "Readiness", "queue_at", "queue_identity"]

_CONTROL = "control"
_WILD = frozenset("*?[")

#: Device and inode of a directory.
DirectoryId: TypeAlias = tuple[int, int]
#: What tells one incarnation of a queue from the next at the same path; ``None``: not ready (yet).
#: `ALMOST`: not ready yet, but about to be, which no event will tell. A `ChronicleError` says why
#: what is there is not taken; it is told, and does not keep others from being seen.
#:
#: It may have two attributes, sets of names of files in the directories on the way: `quiet_names`,
#: of which no change matters to it, and `closing_names`: that somebody has closed one of those,
#: which he had open for writing, is a reason to look.
Readiness: TypeAlias = Callable[[str], str | None]
ALMOST = ""


@dataclass(frozen=True)
class Found:
    """What a look has seen at one path: which directory, and which queue if it is ready."""

    directory: DirectoryId
    identity: str | None


@dataclass
class Look:
    """What there was.

    Attributes
    ----------
    found
        By path.
    directories
        The directories on the way: who watches these knows when to look again.
    almost
        Paths that are about to be ready, which no event will tell: look again soon.
    refused
        By path: why what is there is not taken.
    """

    found: dict[str, Found] = field(default_factory=dict)
    directories: dict[str, DirectoryId] = field(default_factory=dict)
    almost: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)


class Pattern:
    """A path with wildcards, made absolute.

    >>> pattern = Pattern("/bus/orders/*/out")
    >>> pattern.root, pattern.parts
    ('/bus/orders', ('*', 'out'))
    """

    def __init__(self, text: str | os.PathLike[str]) -> None:
        given = os.fspath(text)
        if "**" in given:
            raise BadArgument(
                f"bad pattern: found={given!r} expected=one wildcard per directory; "
                "'**' is not supported: write out how deep the queues are"
            )
        if not given:
            raise BadArgument("bad pattern: found='' expected=a path, as 'bus/orders/*/out'")
        parts = Path(given).absolute().parts[1:]
        wild = [index for index, part in enumerate(parts) if _WILD & set(part)]
        # Without a wildcard the last part is what comes and goes.
        first = wild[0] if wild else len(parts) - 1
        self.text = "/" + "/".join(parts)
        self.root = "/" + "/".join(parts[:first])
        self.parts = tuple(parts[first:])

    def look(self, readiness: Readiness) -> Look:
        """See what is there now. May block as long as the file system does.

        Raises
        ------
        OSError
            If a directory cannot be read. That nothing is there is no error.
        """
        look = Look()
        _note_ancestor(look, self.root)
        at = [self.root]
        for part in self.parts:
            below: list[str] = []
            for directory in at:
                if (seen := _directory_id(directory)) is None:
                    continue
                look.directories[directory] = seen
                below += _matching(directory, part)
            at = below
        for path in at:
            if (seen := _directory_id(path)) is not None:
                look.directories[path] = seen
                try:
                    identity = readiness(path)
                except ChronicleError as error:
                    identity = None
                    look.refused[path] = str(error)
                if (now := _directory_id(path)) != seen:
                    # It was replaced in between: nobody knows whose identity this is.
                    look.almost.add(path)
                    if now is None:
                        continue
                    seen, identity = now, None
                look.found[path] = Found(seen, identity or None)
                if identity == ALMOST:
                    look.almost.add(path)
        return look


def _note_ancestor(look: Look, root: str) -> None:
    """If the root is missing, its nearest ancestor is where to see it coming."""
    while _directory_id(root) is None and root != "/":
        root = root.rpartition("/")[0] or "/"
    if (seen := _directory_id(root)) is not None:
        look.directories[root] = seen


def _directory_id(path: str) -> DirectoryId | None:
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None


def _matching(directory: str, part: str) -> Iterator[str]:
    if not _WILD & set(part):
        yield f"{directory}/{part}"
        return
    try:
        with os.scandir(directory) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if fnmatch.fnmatchcase(name, part) and (part.startswith(".") or not name.startswith(".")):
            yield f"{directory}/{name}"


def queue_identity() -> Readiness:
    """Make the readiness of queues: the queue id, once a writer has opened the queue.

    Before that ``control`` is there, but not the first segment. The writer then stores its epoch
    into mapped memory, of which the kernel tells nobody.

    Remembers what it has read of queues that are ready, for as long as the file is the same.
    """
    cache: dict[str, tuple[tuple[int, int, int, int], str]] = {}

    def readiness(path: str) -> str | None:
        control = f"{path}/{_CONTROL}"
        try:
            found = os.lstat(control)
        except (FileNotFoundError, NotADirectoryError):
            cache.pop(path, None)
            return None
        key = (found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size)
        known = cache.get(path)
        if known is None or known[0] != key:
            identity = read_queue_id(control)
            if not identity:
                return identity
            known = cache[path] = (key, identity)
        return known[1]

    return readiness


def queue_at(path: str) -> str | None:
    """Return the id of the queue that is at a path and has been opened by a writer, or ``None``."""
    return read_queue_id(f"{path}/{_CONTROL}") or None
