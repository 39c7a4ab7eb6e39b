"""The sidecar: an asyncio runtime for everything that a hot thread must not do.

`Sidecar` is the door; each service is a file beside it. How it works: docs/internals/sidecar.md.
"""

from __future__ import annotations

from chronicle.sidecar.handover import Admission
from chronicle.sidecar.mirror import Mirror, MirrorStatus
from chronicle.sidecar.restore import RestoreReport, restore
from chronicle.sidecar.runtime import ShutdownReport, Sidecar
from chronicle.sidecar.supervise import Backoff, Health, Service, Stage, State

__all__ = [
    "Admission",
    "Backoff",
    "Health",
    "Mirror",
    "MirrorStatus",
    "RestoreReport",
    "Service",
    "ShutdownReport",
    "Sidecar",
    "Stage",
    "State",
    "restore",
]
