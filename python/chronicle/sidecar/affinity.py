"""Keeping the sidecar's threads off the cores of hot threads.

Linux gives each thread its own set of allowed cores, which new threads inherit. What belongs to
the sidecar is told by the thread's name, as ``top -H`` shows it: native workers are found too.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

__all__ = ["HELPER_PREFIX", "HOT_PREFIX", "helper_threads", "keep_off", "name_this_thread"]

HELPER_PREFIX = "chr-"
HOT_PREFIX = "chr-hot"
_TASKS = Path("/proc/self/task")


def name_this_thread(name: str) -> None:
    """Give the calling thread the name that ``top -H`` shows: at most 15 bytes of `name`.

    Python sets only its own name for a thread before 3.14.
    """
    Path("/proc/thread-self/comm").write_text(name[:15], encoding="ascii")


def helper_threads() -> Iterator[int]:
    """Yield the ids of this process's threads that help hot threads, and are none."""
    for task in _TASKS.iterdir():
        try:
            name = (task / "comm").read_text(encoding="utf-8", errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has ended meanwhile.
        if name.startswith(HELPER_PREFIX) and not name.startswith(HOT_PREFIX):
            yield int(task.name)


def keep_off(hot_cores: Collection[int], allowed: Collection[int]) -> set[int]:
    """Move all helper threads to the allowed cores that no hot thread has; return those cores.

    If that would leave none, the allowed cores stay as they are: a slow sidecar is better than
    none.
    """
    cores = set(allowed) - set(hot_cores) or set(allowed)
    for thread in helper_threads():
        try:
            os.sched_setaffinity(thread, cores)
        except (ProcessLookupError, PermissionError):
            continue  # It has ended, or a control group forbids it; it runs where it was.
    return cores
