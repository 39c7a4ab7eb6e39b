"""What machine and what file system this is, for `bench` and `doctor`."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

MEMORY_FILE_SYSTEMS = frozenset({"hugetlbfs", "ramfs", "tmpfs"})


@dataclass(frozen=True, slots=True)
class FileSystem:
    """Where a path is.

    Attributes
    ----------
    kind
        As the kernel calls it: ``tmpfs``, ``ext4``.
    mount_point
        Where it is mounted.
    """

    kind: str
    mount_point: str

    @property
    def is_memory(self) -> bool:
        """Whether its files live in memory, without writeback."""
        return self.kind in MEMORY_FILE_SYSTEMS


def file_system_of(path: str | os.PathLike[str]) -> FileSystem:
    """Return the file system of a path that exists, by proc(5) mountinfo."""
    device = os.stat(path).st_dev  # noqa: PTH116  (a plain number is wanted)
    wanted = f"{os.major(device)}:{os.minor(device)}"
    real = os.path.realpath(path)
    best = FileSystem("unknown", "/")
    by_device = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        mount_point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4])
        found = FileSystem(after.split()[0], mount_point)
        inside = real == mount_point or real.startswith(mount_point.rstrip("/") + "/")
        if inside and fields[2] == wanted:
            by_device = found
        if inside and len(mount_point) >= len(best.mount_point):
            best = found
    return by_device or best


def cpu_name() -> str:
    """Return the processor's name, as the kernel knows it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    name = found[1].strip() if found else platform.machine()
    is_virtual = re.search(r"^flags.*\bhypervisor\b", text, re.MULTILINE) is not None
    return name + " (virtual machine)" * is_virtual


def clock_source() -> str:
    """Return the kernel's clock source; ``tsc`` is read without a system call."""
    file = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    try:
        return file.read_text().strip()
    except OSError:
        return "unknown"


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _chosen(path: str) -> str:
    """Return the choice in brackets of a file such as ``always [madvise] never``."""
    text = _first_line(path)
    found = re.search(r"\[(\S+)\]", text)
    return found[1] if found else text


def kernel_facts() -> dict[str, str]:
    """Return how the kernel is set up, as far as tails of latencies depend on it."""
    cpu = "/sys/devices/system/cpu"
    words = re.findall(r"\bPREEMPT(?:_\w+)?\b", platform.version())
    governor = _first_line(f"{cpu}/cpu0/cpufreq/scaling_governor")
    preemption = _chosen("/sys/kernel/debug/sched/preempt") or " ".join(words)
    return {
        "isolated cores": _first_line(f"{cpu}/isolated") or "none",
        "tickless cores": _first_line(f"{cpu}/nohz_full").replace("(null)", "") or "none",
        "frequency governor": governor or "not the kernel's",
        "preemption": preemption or "unknown",
        "large pages, tmpfs": _chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
        or "unknown",
        "load of the last minute": f"{os.getloadavg()[0]:.2f}",
    }


def busy_note(load: float | None = None) -> list[str]:
    """Return a warning for a report if others had much to do; else nothing.

    A measurement keeps two cores busy itself.

    >>> busy_note(load=1_000.0)[0][:42], busy_note(load=0.1)
    ('The machine was busy: the load of the last', [])
    """
    load = os.getloadavg()[0] if load is None else load
    cores = len(os.sched_getaffinity(0))
    if load <= cores + 2:
        return []
    return [
        f"The machine was busy: the load of the last minute was {load:.1f}, for {cores} cores. "
        "Tails, and the medians of all that waits for a core, are those of the scheduler."
    ]


def machine_facts(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return what a table of figures must name."""
    from chronicle._core import __version__

    where = file_system_of(path)
    return {
        "cpu": cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "file system": f"{where.kind} at {where.mount_point}",
        "clock source": clock_source(),
        "python": platform.python_version(),
        "chronicle": __version__,
    }
