"""Endpoints: a directory that one process owns, and what others can tell of it."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from chronicle.bus.lock import free_lock, is_locked, lock_instance, take_lock
from chronicle.bus.markers import Lease, Ready, read_marker, remove_marker, write_marker
from chronicle.bus.names import open_directory, split_name
from chronicle.bus.readiness import Readiness
from chronicle.errors import BadArgument, Closed, Forked

if TYPE_CHECKING:
    from chronicle.bus.connection import Connection, Observer
    from chronicle.queue import Start, Wait

__all__ = ["Bus", "Endpoint", "Status"]


@dataclass(frozen=True)
class Status:
    """What a look at an endpoint has told.

    Attributes
    ----------
    state
        ``"alive"``, ``"stalled"``, ``"dead"`` or ``"absent"``.
    reason
        Why that is thought; empty if alive.
    ready
        Whether the queues can be opened, as far as markers tell: alive or stalled, and READY is of
        this instance.
    lease
        Of the owner, or of the last one.
    queues
        Those that can be opened, as READY of this instance says.

    Examples
    --------
    >>> import tempfile
    >>> from chronicle.bus import Bus
    >>> folder = tempfile.TemporaryDirectory()
    >>> bus = Bus(folder.name)
    >>> status = bus.status("orders/alpha")
    >>> status.state, status.reason, status.ready
    ('absent', 'missing', False)
    >>> folder.cleanup()
    """

    state: Literal["alive", "stalled", "dead", "absent"]
    reason: str
    ready: bool
    lease: Lease | None
    queues: tuple[str, ...] = ()


class Bus:
    """A directory in which processes find each other.

    Parameters
    ----------
    path
        Of the directory. It is made, for its owner alone, when the first endpoint is opened.

    Examples
    --------
    >>> import tempfile
    >>> from chronicle.bus import Bus
    >>> folder = tempfile.TemporaryDirectory()
    >>> bus = Bus(folder.name)
    >>> with bus.open_endpoint("orders/alpha"):
    ...     bus.status("orders/alpha").state
    'alive'
    >>> bus.status("orders/alpha").state
    'absent'
    >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()

    def open_endpoint(self, name: str, *, valid_s: float = 3.0) -> Endpoint:
        """Become the owner of an endpoint, and make it if it is not there.

        Parameters
        ----------
        name
            As ``"orders/alpha"``.
        valid_s
            For how long a renewal counts; renew three times as often.

        Raises
        ------
        BadArgument
            If the name or the time cannot be.
        EndpointActive
            If it has a live owner.
        BusRefused
            If the directory, or a marker in it, is not what it should be.
        """
        return Endpoint(self, name, valid_s)

    def status(self, name: str) -> Status:
        """Look whether an endpoint is alive. Disturbs nobody; some system calls.

        Raises
        ------
        BadArgument
            If the name cannot be.
        BusRefused
            If the directory, or a marker in it, is not what it should be.
        """
        path = str(self.path / name)
        try:
            with open_directory(str(self.path), split_name(name)) as directory:
                # The lock last: an owner that ends in between is reported as dead.
                lease = read_marker(directory, path, Lease)
                ready = read_marker(directory, path, Ready)
                is_held = lease is not None and is_locked(directory, path, lease.instance)
        except FileNotFoundError:
            return Status("absent", "missing", False, None)
        if lease is None:
            return Status("absent", "no lease", False, None)
        if not is_held:
            return Status("dead", "lock free", False, lease)
        is_ready = ready is not None and ready.instance == lease.instance
        queues = ready.queues if ready is not None and is_ready else ()
        age_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - lease.renewed_ns
        if lease.boot != _boot_id() or age_ns > lease.valid_ns:
            return Status("stalled", "heartbeat stale", is_ready, lease, queues)
        return Status("alive", "", is_ready, lease, queues)

    def connect(
        self,
        endpoint: str,
        queue: str,
        *,
        name: str | None,
        start: Start = "resume",
        wait: Wait = "hybrid",
        interval_s: float = 0.05,
    ) -> Connection:
        """Subscribe to a queue whether it is there or not, for as long as the connection is open.

        Returns at once: what has become of the source comes in order with its messages.

        Parameters
        ----------
        endpoint, queue
            As ``"streams/iex", "live"``.
        name, start, wait
            As for `Queue.open_subscriber`; after a loss it goes on behind what was read.
        interval_s
            How often to look at the source: so late may a loss be noticed.

        Raises
        ------
        BadArgument
            If a name cannot be.
        """
        from chronicle.bus.connection import Connection, EndpointQueue

        source = EndpointQueue(self, endpoint, queue)
        return Connection(source, name=name, start=start, wait=wait, interval_s=interval_s)

    def observe(self, endpoint: str, queue: str) -> Observer:
        """Tell when a queue is there, lost, and back, to whoever does not read it himself."""
        from chronicle.bus.connection import EndpointQueue, Observer

        return Observer(EndpointQueue(self, endpoint, queue))

    @property
    def readiness(self) -> Readiness:
        """Which queues are ready, for `Sidecar.watch` and `Sidecar.discover`."""
        return Readiness(str(self.path))

    def __repr__(self) -> str:
        return f"Bus('{self.path}')"


class Endpoint:
    """An endpoint that this process owns, until it is closed or the process ends.

    Made by `Bus.open_endpoint`. A context manager. Any thread. `Sidecar.serve_endpoint` renews it.

    Attributes
    ----------
    name
        Below the bus.
    path
        Of the directory; queues go into it.
    lease
        As it was written last.

    Examples
    --------
    >>> import tempfile
    >>> from chronicle.bus import Bus
    >>> folder = tempfile.TemporaryDirectory()
    >>> bus = Bus(folder.name)
    >>> with bus.open_endpoint("orders/alpha") as endpoint:
    ...     endpoint.ready(["out"])
    ...     bus.status("orders/alpha").queues
    ('out',)
    >>> folder.cleanup()
    """

    def __init__(self, bus: Bus, name: str, valid_s: float) -> None:
        parts = split_name(name)
        if not 0.001 <= valid_s <= 86_400:
            raise BadArgument(
                f"bad time: valid_s={valid_s} expected=0.001 to 86400; it is in seconds"
            )
        self.path = bus.path.joinpath(*parts)
        self.name = name
        self._lock: int | None = None
        self._pid = os.getpid()
        # A marker that is written while another thread closes would come back to life.
        self._turn = threading.Lock()
        with open_directory(str(bus.path), parts, create=True) as directory:
            self._directory = os.dup(directory)
        try:
            self._lock = take_lock(self._directory, str(self.path))
            self.lease = self._begin(self._lock, int(valid_s * 1e9))
        except BaseException:
            self._release()
            raise

    def _begin(self, lock: int, valid_ns: int) -> Lease:
        last = read_marker(self._directory, str(self.path), Lease)
        # It spoke for the last owner.
        remove_marker(self._directory, Ready.FILE)
        lease = Lease(
            instance=secrets.token_hex(16),
            pid=os.getpid(),
            epoch=1 if last is None else last.epoch + 1,
            boot=_boot_id(),
            renewed_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            valid_ns=valid_ns,
        )
        lock_instance(lock, lease.instance)
        write_marker(self._directory, lease)
        return lease

    def ready(self, queues: Sequence[str]) -> None:
        """Say that these queues can be opened: names of directories in `path`.

        Raises
        ------
        BadArgument
            If a name cannot be, or there are too many for a marker.
        Closed, Forked
            If the endpoint was closed, or is the parent's.
        """
        for queue in queues:
            if len(split_name(queue)) != 1:
                raise BadArgument(
                    f"bad name of a queue: name={queue!r} expected=one part; queues stand directly "
                    "in the endpoint"
                )
        with self._turn:
            directory = self._open_directory()
            write_marker(directory, Ready(self.lease.instance, tuple(queues)))

    def renew(self) -> None:
        """Say that this process still makes progress. Writes and syncs one small file.

        Raises
        ------
        Closed, Forked
            If the endpoint was closed, or is the parent's.
        """
        with self._turn:
            directory = self._open_directory()
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            lease = replace(self.lease, renewed_ns=now_ns)
            write_marker(directory, lease)
            self.lease = lease

    @property
    def closed(self) -> bool:
        """Whether it was given up."""
        return self._lock is None

    def close(self) -> None:
        """Take the markers away and give the endpoint up. Queues in it stay. May be repeated.

        In a child made by `os.fork` it only lets go of what the child has of it: the parent is
        still the owner.
        """
        with self._turn:
            if self._lock is None:
                return
            if os.getpid() == self._pid:
                # READY first: nobody shall open what is about to go.
                remove_marker(self._directory, Ready.FILE)
                remove_marker(self._directory, Lease.FILE)
                free_lock(self._lock)
            self._release()

    def _open_directory(self) -> int:
        if self._lock is None:
            raise Closed(f"the endpoint was closed: path='{self.path}'; open it again")
        if os.getpid() != self._pid:
            raise Forked(
                f"the endpoint belongs to the parent process: path='{self.path}' pid={self._pid}; "
                "open endpoints after forking"
            )
        return self._directory

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        os.close(self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._lock is None else f"epoch={self.lease.epoch}"
        return f"<Endpoint '{self.path}' {state}>"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
