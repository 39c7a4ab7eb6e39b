"""LEASE and READY: small files that are seen whole or not at all, and trusted in nothing."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, Self, TypeVar

from chronicle.bus.names import refused, split_name
from chronicle.errors import BadArgument

__all__ = ["Lease", "Ready", "read_marker", "remove_marker", "write_marker"]

_FORMAT: Final = 1
_BYTES_MAX: Final = 4096
_U64_MAX: Final = (1 << 64) - 1
_INSTANCE: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_BOOT: Final = re.compile(r"[0-9a-f-]{36}", re.ASCII)


@dataclass(frozen=True)
class Lease:
    """Who owns an endpoint.

    Attributes
    ----------
    instance
        32 hexadecimal digits, random, for each opening.
    pid
        Of the owner.
    epoch
        How often the endpoint was opened, this time included.
    boot
        Id of the boot that `renewed_ns` belongs to.
    renewed_ns
        ``CLOCK_BOOTTIME`` of the last renewal.
    valid_ns
        For how long a renewal counts.

    Examples
    --------
    >>> import tempfile
    >>> from chronicle.bus import Bus
    >>> folder = tempfile.TemporaryDirectory()
    >>> bus = Bus(folder.name)
    >>> with bus.open_endpoint("orders/alpha") as endpoint:
    ...     len(endpoint.lease.instance), endpoint.lease.epoch
    (32, 1)
    >>> folder.cleanup()
    """

    instance: str
    pid: int
    epoch: int
    boot: str
    renewed_ns: int
    valid_ns: int

    FILE = "LEASE"

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> Self:
        """Make one of what a file said; `ValueError` if that is not right."""
        _expect_names(fields, ("instance", "pid", "epoch", "boot", "renewed_ns", "valid_ns"))
        return cls(
            _text(fields, "instance", _INSTANCE),
            _number(fields, "pid", 1, (1 << 31) - 1),
            _number(fields, "epoch", 1, _U64_MAX),
            _text(fields, "boot", _BOOT),
            _number(fields, "renewed_ns", 0, _U64_MAX),
            _number(fields, "valid_ns", 1, _U64_MAX),
        )


@dataclass(frozen=True)
class Ready:
    """Which queues of an endpoint can be opened.

    Attributes
    ----------
    instance
        Of the lease.
    queues
        Names, below the endpoint.

    Examples
    --------
    >>> from chronicle.bus import Ready
    >>> Ready(instance="0" * 32, queues=("out",)).queues
    ('out',)
    """

    instance: str
    queues: tuple[str, ...]

    FILE = "READY"

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> Self:
        """Make one of what a file said; `ValueError` if that is not right."""
        _expect_names(fields, ("instance", "queues"))
        names = fields["queues"]
        if not isinstance(names, list):
            raise ValueError("queues: expected a list of names")
        queues = []
        for name in names:
            if not isinstance(name, str) or len(_split(name)) != 1:
                raise ValueError(f"queues: expected names of one part, found={name!r:.80}")
            queues.append(name)
        return cls(_text(fields, "instance", _INSTANCE), tuple(queues))


Marker = TypeVar("Marker", Lease, Ready)


def write_marker(directory: int, marker: Lease | Ready) -> None:
    """Put a marker into a directory, on disk when this returns; replaces the one that was there.

    Raises
    ------
    BadArgument
        If it would be longer than 4 KiB: too many queues.
    """
    data = json.dumps({"format": _FORMAT, **asdict(marker)}, separators=(",", ":")).encode() + b"\n"
    if len(data) > _BYTES_MAX:
        raise BadArgument(
            f"marker too long: file={marker.FILE} bytes={len(data)} max={_BYTES_MAX}; name fewer "
            "queues in one endpoint"
        )
    # Only the owner writes, so one name will do, and nothing piles up where owners are killed.
    hidden = f".{marker.FILE}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(hidden, flags, 0o600, dir_fd=directory)
    try:
        # A regular file takes a few bytes whole, or fails.
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(hidden, marker.FILE, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)


def remove_marker(directory: int, file: str) -> None:
    """Remove a marker, if there is one."""
    try:
        os.unlink(file, dir_fd=directory)
    except FileNotFoundError:
        return


def read_marker(directory: int, path: str, kind: type[Marker]) -> Marker | None:
    """Read a marker; ``None`` if there is none.

    Raises
    ------
    BusRefused
        If what is there is not a marker of ours.
    """
    where = f"{path}/{kind.FILE}"
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(kind.FILE, flags, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refused(where, f"cannot be opened: {error.strerror}; remove it") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise refused(where, "is no regular file; remove it")
        if found.st_uid != os.geteuid():
            raise refused(
                where, f"belongs to uid={found.st_uid}, expected uid={os.geteuid()}; remove it"
            )
        data = os.pread(descriptor, _BYTES_MAX + 1, 0)
    finally:
        os.close(descriptor)
    try:
        return kind.from_fields(_fields(data))
    except ValueError as error:
        raise refused(where, f"is not a marker: {error}; remove it") from error


def _fields(data: bytes) -> dict[str, object]:
    if len(data) > _BYTES_MAX:
        raise ValueError(f"longer than {_BYTES_MAX} bytes")
    try:
        fields = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(fields, dict):
        raise ValueError("expected a JSON object")
    version = fields.pop("format", None)
    if type(version) is not int or version != _FORMAT:
        raise ValueError(f"format: found={version!r:.80} expected={_FORMAT}")
    return fields


def _expect_names(fields: Mapping[str, object], names: tuple[str, ...]) -> None:
    if fields.keys() != set(names):
        raise ValueError(f"fields: found={sorted(fields)!r:.200} expected={sorted(names)}")


def _number(fields: Mapping[str, object], name: str, least: int, most: int) -> int:
    value = fields[name]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name}: found={value!r:.80} expected=an integer of {least} to {most}")
    return value


def _text(fields: Mapping[str, object], name: str, pattern: re.Pattern[str]) -> str:
    value = fields[name]
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise ValueError(f"{name}: found={value!r:.80} expected={pattern.pattern}")
    return value


def _split(name: str) -> tuple[str, ...]:
    try:
        return split_name(name)
    except BadArgument as error:
        raise ValueError(str(error)) from error
