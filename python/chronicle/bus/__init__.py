"""The bus: a directory in which processes find each other, and see who is alive.

It gives signals; what to do about them is the application's policy. See docs/internals/bus.md.
"""

from chronicle.bus.connection import (
    Connected,
    Connection,
    Event,
    Lost,
    Missing,
    Observer,
    PlainQueue,
    Reconnected,
)
from chronicle.bus.endpoint import Bus, Endpoint, Status
from chronicle.bus.liveness import QueueStatus, ReaderStatus, WriterStatus, queue_status
from chronicle.bus.markers import Lease, Ready

__all__ = [
    "Bus",
    "Connected",
    "Connection",
    "Endpoint",
    "Event",
    "Lease",
    "Lost",
    "Missing",
    "Observer",
    "PlainQueue",
    "QueueStatus",
    "ReaderStatus",
    "Ready",
    "Reconnected",
    "Status",
    "WriterStatus",
    "queue_status",
]
