"""What a bus looks like at a moment, what has changed since, and how both are shown.

Looking is apart from showing: `collect` makes plain data (`model`) out of a bus, `changes` compares
two of them, and only `app` and `screens` know a terminal. Looking disturbs nobody: files are read,
never mapped, locks are asked about and never taken, no reader is registered.
"""

# The layout, lowest first:
#
#   model      dataclasses: processes, threads, queues at a moment
#   queues     a queue's files, read with pread
#   collect    a bus: its endpoints, counters files and queues
#   changes    two looks: rates and events
#   tables     rows of text, for the terminal and for `--once`
#   document   the JSON of `--once --json`
#   app, screens, serving   the dashboard; these need the extra `top`

from __future__ import annotations

from chronicle.top.changes import Changes, compare
from chronicle.top.collect import Collector
from chronicle.top.model import BusLook, ProcessLook, QueueLook, ReaderLook, ThreadLook

__all__ = [
    "BusLook",
    "Changes",
    "Collector",
    "ProcessLook",
    "QueueLook",
    "ReaderLook",
    "ThreadLook",
    "compare",
]
