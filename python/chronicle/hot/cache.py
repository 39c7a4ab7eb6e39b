"""The cache of compiled handlers on disk.

An entry is one file, named by the hash of everything that went into it: the rewritten source with
its constants, the layouts, this compiler, Numba and LLVM, the processor. So an entry never goes
stale, it is only never asked for again. Entries appear by rename, whole or not at all, and carry a
hash of their content: what is damaged is compiled anew, and said. Machine code is not taken from
files that somebody else could have written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import struct
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["Entry", "cache_folder", "load", "store"]

LOGGER: Final = logging.getLogger("chronicle.hot.cache")

_MAGIC: Final = b"CHRHOT01"
_HASH_BYTES: Final = 32
_LENGTH: Final = struct.Struct("<I")
_HEAD_BYTES: Final = len(_MAGIC) + _HASH_BYTES + _LENGTH.size
ENTRIES_MAX: Final = 512
"""More than these, and the least recently used go."""


class Entry(NamedTuple):
    """A compiled handler as it is kept.

    Attributes
    ----------
    facts
        Plain data about it.
    image
        The object file.
    """

    facts: dict[str, Any]
    image: bytes


def cache_folder() -> Path:
    """Return where entries are: ``CHRONICLE_CACHE_DIR``, else the user's cache."""
    named = os.environ.get("CHRONICLE_CACHE_DIR")
    if named:
        return Path(named) / "hot"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(base) / "chronicle" / "hot"


def load(key: str) -> Entry | None:
    """Return the entry of a key; ``None`` if there is none that can be used."""
    path = cache_folder() / f"{key}.hot"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        LOGGER.warning("cache entry '%s' cannot be read: %s; compiling", path, error.strerror)
        return None
    facts = os.fstat(descriptor)
    why = ""
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
        why = "is not a file of this user's"
    elif facts.st_mode & 0o022:
        why = "can be written by others"
    if why:
        os.close(descriptor)
        LOGGER.warning("cache entry '%s' %s; compiling", path, why)
        return None
    with os.fdopen(descriptor, "rb") as file:
        data = file.read()
        with contextlib.suppress(OSError):
            os.utime(descriptor)  # So that what is used stays.
    entry = _decode(data, key)
    if entry is None:
        LOGGER.warning("cache entry '%s' is damaged; compiling", path)
    return entry


def _decode(data: bytes, key: str) -> Entry | None:
    body = data[_HEAD_BYTES:]
    start = len(_MAGIC)
    digest = data[start : start + _HASH_BYTES]
    if data[:start] != _MAGIC or len(data) < _HEAD_BYTES:
        return None
    length_raw = data[start + _HASH_BYTES : _HEAD_BYTES]
    if hashlib.sha256(length_raw + body).digest() != digest:
        return None
    (length,) = _LENGTH.unpack(length_raw)
    try:
        facts = json.loads(body[:length])
    except ValueError:
        return None
    if not isinstance(facts, dict) or facts.get("key") != key:
        return None
    return Entry(facts, body[length:])


def store(key: str, entry: Entry) -> None:
    """Keep an entry. What the file system refuses is said, and nothing else."""
    folder = cache_folder()
    header = json.dumps({**entry.facts, "key": key}).encode()
    length = _LENGTH.pack(len(header))
    body = header + entry.image
    digest = hashlib.sha256(length + body).digest()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made for its owner only, by mkstemp.
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_MAGIC + digest + length + body)
            os.replace(temporary, folder / f"{key}.hot")  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise
        _prune(folder)
    except OSError as error:
        LOGGER.warning("cache '%s' cannot be written: %s", folder, error.strerror or error)


def _prune(folder: Path) -> None:
    """Remove the least recently used entries beyond the limit."""
    found: list[tuple[float, str]] = []
    with os.scandir(folder) as listing:
        for each in listing:
            if each.name.endswith(".hot"):
                with contextlib.suppress(OSError):
                    found.append((each.stat(follow_symlinks=False).st_mtime, each.path))
    for _, path in sorted(found)[:-ENTRIES_MAX]:
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108
