"""LOCK: open-file-description locks, which tell who lives and cannot be left behind.

An owner locks two bytes of the file (which need not exist): byte 0, so that it is the only owner,
and one that its instance chooses. Whoever reads a lease asks about that second byte. So a lease
never comes to life again: between the moment when a next owner has byte 0 and the moment when it
has replaced the lease, the lease's own byte is free.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

from chronicle.bus.markers import Lease, read_marker
from chronicle.bus.names import refused
from chronicle.errors import EndpointActive

__all__ = ["LOCK_FILE", "free_lock", "is_locked", "lock_instance", "take_lock"]

LOCK_FILE: Final = "LOCK"
#: ``struct flock`` of 64-bit Linux: type, whence, start, length, pid.
_FLOCK: Final = struct.Struct("@hhqqi4x")
_OWNER: Final = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
#: From the first byte to the last.
_NOTHING: Final = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)


def take_lock(directory: int, path: str) -> int:
    """Take the lock of an endpoint; return the descriptor that holds it.

    Raises
    ------
    EndpointActive
        If somebody else has it.
    """
    descriptor = _open_lock(directory, path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _OWNER)
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
    """Free the locks that this process took.

    Closing the descriptor is not enough at once: a child that was forked meanwhile, and has not run
    its program yet, has it too.
    """
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _NOTHING)


def lock_instance(descriptor: int, instance: str) -> None:
    """Lock the byte of an instance, for the owner. Before its lease is written."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _of_instance(instance))


def is_locked(directory: int, path: str, instance: str) -> bool:
    """Ask whether an instance lives, without taking anything."""
    try:
        # Not for writing: that such a descriptor is closed is a sign that an owner has ended.
        descriptor = _open_lock(directory, path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _of_instance(instance))
    finally:
        os.close(descriptor)
    kind: int = _FLOCK.unpack(found)[0]
    return kind != fcntl.F_UNLCK


def _of_instance(instance: str) -> bytes:
    """Describe an instance's byte: 62 bits of it, behind byte 0."""
    start = 1 + (int(instance, 16) & ((1 << 62) - 1))
    return _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)


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
