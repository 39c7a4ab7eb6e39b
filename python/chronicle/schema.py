"""The schema of a queue: `queue.json` in its directory, for people and for tools that decode.

Imported when a schema is first needed: `json` and `pathlib` would double the time that
``import chronicle`` takes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from chronicle._core import inspect
from chronicle.errors import FormatError, SchemaMismatch
from chronicle.message import MessageBase, message_from_schema

__all__ = ["SCHEMA_FILE", "merge_schema", "read_schema"]

SCHEMA_FILE = "queue.json"
_SCHEMA_VERSION = 1
# Nothing that is larger was written by `_write_schema`; it need not be read to be refused.
_SCHEMA_BYTES_MAX = 64 << 20


def read_schema(path: Path) -> dict[int, type[MessageBase]]:
    """Return the stored classes by type id; none if there is no file. Nothing in it is trusted."""
    file = path / SCHEMA_FILE
    try:
        # Not blocking: somebody may have put a pipe there.
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    with os.fdopen(descriptor, "rb") as stream:
        text = stream.read(_SCHEMA_BYTES_MAX)
    try:
        stored = json.loads(text)
        version = stored["version"]
        entries = stored["schema"]
        if not isinstance(entries, list):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(
            f"'{file}' is not a queue schema; restore it, or delete it to read without a schema",
            field="schema",
            found=text[:40].decode(errors="replace"),
            expected="JSON with version and schema",
        ) from None
    if version != _SCHEMA_VERSION:
        raise FormatError(
            f"'{file}' cannot be read by this version: "
            f"version={version} expected={_SCHEMA_VERSION}",
            field="version",
            found=str(version),
            expected=str(_SCHEMA_VERSION),
        )
    classes = [message_from_schema(entry) for entry in entries]
    found = {cls.type_id: cls for cls in classes}
    if len(found) != len(classes):
        raise FormatError(
            f"'{file}' has two messages with one type_id; restore it",
            field="schema",
            found="a type_id twice",
            expected="each type_id once",
        )
    return found


def merge_schema(
    directory: str | os.PathLike[str], schema: Sequence[type[MessageBase]]
) -> dict[int, type[MessageBase]]:
    """Add classes to the stored schema. The caller is the queue's writer, so nobody else does."""
    path = Path(directory)
    stored = read_schema(path)
    merged = dict(stored)
    for cls in schema:
        old = merged.get(cls.type_id)
        if old is not None and old.schema != cls.schema:
            raise SchemaMismatch(
                f"type_id={cls.type_id} of queue '{path}' is {old.schema}, not {cls.schema}; "
                "give a changed message a new type id"
            )
        merged[cls.type_id] = cls
    if merged.keys() != stored.keys() or not (path / SCHEMA_FILE).exists():
        _write_schema(path, merged)
    return merged


def _write_schema(path: Path, types: Mapping[int, type[MessageBase]]) -> None:
    facts = inspect(path)
    document = {
        "version": _SCHEMA_VERSION,
        "queue_id": facts["queue_id"],
        "format_version": facts["version"],
        "options": {k: facts[k] for k in ("segment_bytes", "segments_max", "checksum")},
        "schema": [cls.schema for _, cls in sorted(types.items())],
    }
    # Whoever created the queue decided who may read it, whatever this open was told.
    mode = (path / "control").stat().st_mode & 0o666
    tmp = path / f"{SCHEMA_FILE}.tmp"
    descriptor = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "w") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    tmp.replace(path / SCHEMA_FILE)
