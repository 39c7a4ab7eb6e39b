"""LOCK: an open-file-description lock, which tells who lives and cannot be left behind."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

from chronicle.bus.markers import Lease, read_marker
from chronicle.bus.names import refused
from chronicle.errors import EndpointActive

__all__ = ["LOCK_FILE", "free_lock", "is_locked", "take_lock"]

LOCK_FILE: Final = "LOCK"
#: ``struct flock`` of 64-bit Linux: type, whence, start, length, pid.
_FLOCK: Final = struct.Struct("@hhqqi4x")
_WRITE_LOCK: Final = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_NO_LOCK: Final = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)


def take_lock(directory: int, path: str) -> int:
    """Take the lock of an endpoint; return the descriptor that holds it.

    Raises
    ------
    EndpointActive
        If somebody else has it.
    """
    descriptor = _open_lock(directory, path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WRITE_LOCK)
    except BlockingIOError as error:
        os.close(descriptor)
        lease = read_marker(directory, path, Lease)
        pid = 0 if lease is None else lease.pid
        raise EndpointActive(
            f"the endpoint has a live owner: path='{path}' pid={pid}; stop it, or use another name",
            pid=pid,
        ) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def free_lock(descriptor: int) -> None:
    """Free a lock that this process took.

    Closing the descriptor is not enough at once: a child that was forked meanwhile, and has not run
    its program yet, has it too.
    """
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _NO_LOCK)


def is_locked(directory: int, path: str) -> bool:
    """Ask about the lock without taking it."""
    try:
        # Not for writing: that such a descriptor is closed is a sign that an owner has ended.
        descriptor = _open_lock(directory, path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WRITE_LOCK)
    finally:
        os.close(descriptor)
    kind: int = _FLOCK.unpack(found)[0]
    return kind != fcntl.F_UNLCK


def _open_lock(directory: int, path: str, flags: int) -> int:
    try:
        return os.open(
            LOCK_FILE, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=directory
        )
    except FileNotFoundError:
        raise
    except OSError as error:
        raise refused(
            f"{path}/{LOCK_FILE}", f"cannot be opened: {error.strerror}; remove it"
        ) from error
