"""Readiness for discovery: a queue is there for others when its endpoint says so, and lives."""

from __future__ import annotations

from typing import Final

from chronicle.bus.lock import LOCK_FILE, is_locked
from chronicle.bus.markers import Lease, Ready, read_marker
from chronicle.bus.names import open_below, open_directory, split_name
from chronicle.errors import BadArgument
from chronicle.queue import read_queue_id

__all__ = ["Readiness"]


class Readiness:
    """Tells from a queue's path the identity of what is ready there: of a life of its owner.

    Made by `Bus.readiness`; passed to `Sidecar.watch` and `Sidecar.discover`.

    A queue is ready while the READY of the endpoint that it stands in names it, is of the instance
    of its LEASE, and that instance holds its LOCK; and once a writer has opened it. An owner that
    is stalled is still there. The identity is the instance with the queue's id, so the next life
    of the owner has another.

    Attributes
    ----------
    quiet_names, closing_names
        Which events of the kernel are worth a look: a lease that is renewed is not, a lock that
        its owner's end has closed is.
    """

    quiet_names: Final = frozenset({Lease.FILE, f".{Lease.FILE}", f".{Ready.FILE}"})
    closing_names: Final = frozenset({LOCK_FILE})

    def __init__(self, root: str) -> None:
        self._root = root

    def __call__(self, path: str) -> str | None:
        """Look; some system calls.

        Raises
        ------
        BadArgument
            If the path cannot be that of a queue in an endpoint of this bus.
        BusRefused
            If something on the way, or a marker, is not what it should be.
        """
        parts = self.parts_of(path)
        try:
            with open_directory(self._root, parts[:-1]) as directory:
                return self._look(directory, path.rpartition("/")[0], parts[-1])
        except FileNotFoundError:
            return None

    def parts_of(self, path: str) -> tuple[str, ...]:
        """Return the names below the bus that a path consists of; `BadArgument` if it cannot be."""
        prefix = f"{self._root}/"
        parts = split_name(path[len(prefix) :]) if path.startswith(prefix) else ()
        if len(parts) < 2:
            raise BadArgument(
                f"bad path of a queue: path='{path}' bus='{self._root}' expected=an endpoint's "
                "name and a queue's below the bus; discover a pattern that begins with the bus"
            )
        return parts

    def _look(self, directory: int, endpoint: str, queue: str) -> str | None:
        # The lock last: an owner that ends in between is not there.
        lease = read_marker(directory, endpoint, Lease)
        ready = read_marker(directory, endpoint, Ready)
        if lease is None or ready is None or ready.instance != lease.instance:
            return None
        if queue not in ready.queues or not is_locked(directory, endpoint, lease.instance):
            return None
        with open_below(directory, queue, f"{endpoint}/{queue}") as below:
            queue_id = read_queue_id("control", directory=below)
        # An empty text says that it will be there soon.
        return f"{ready.instance}:{queue_id}" if queue_id else queue_id
