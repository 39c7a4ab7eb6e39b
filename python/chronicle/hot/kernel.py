"""What the kernel counts about a thread and about a core.

Read from outside, by anybody, without disturbing the thread: a few files below ``/proc``.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NamedTuple

__all__ = ["CoreInterrupts", "ThreadCounters", "core_interrupts", "thread_counters"]


class ThreadCounters(NamedTuple):
    """Counts since a thread started; fields and their files in proc_pid_stat(5).

    Attributes
    ----------
    faults_minor
        Page faults that needed no disk: ``minflt`` in ``stat``.
    faults_major
        Page faults that waited for a disk: ``majflt`` in ``stat``.
    switches_voluntary
        Times that the thread gave up its core, to wait: ``voluntary_ctxt_switches`` in ``status``.
    switches_involuntary
        Times that its core was taken from it: ``nonvoluntary_ctxt_switches`` in ``status``.
    core
        Where it ran last: ``processor`` in ``stat``.
    run_ns, queued_ns
        Time on a core, and time it was ready to run but waited for a core: ``schedstat``
        (Documentation/scheduler/sched-stats.rst). ``None`` on kernels that do not count it.
    """

    faults_minor: int
    faults_major: int
    switches_voluntary: int
    switches_involuntary: int
    core: int
    run_ns: int | None
    queued_ns: int | None

    def since(self, earlier: ThreadCounters) -> ThreadCounters:
        """Return what was added since `earlier`; `core` is the present one."""
        return ThreadCounters(
            self.faults_minor - earlier.faults_minor,
            self.faults_major - earlier.faults_major,
            self.switches_voluntary - earlier.switches_voluntary,
            self.switches_involuntary - earlier.switches_involuntary,
            self.core,
            None if self.run_ns is None or earlier.run_ns is None else self.run_ns - earlier.run_ns,
            None
            if self.queued_ns is None or earlier.queued_ns is None
            else self.queued_ns - earlier.queued_ns,
        )


def thread_counters(thread_id: int, *, process_id: int | None = None) -> ThreadCounters:
    """Read the counters of a thread: three small files, some 30 µs. Any thread may call it.

    Parameters
    ----------
    thread_id
        The kernel's id, as ``threading.get_native_id`` gives.
    process_id
        Whose thread; ``None`` is this process.

    Raises
    ------
    ProcessLookupError
        If there is no such thread (any more).
    ValueError
        If the kernel writes what proc_pid_stat(5) does not know.
    """
    folder = Path("/proc", "self" if process_id is None else str(process_id), "task")
    folder /= str(thread_id)
    try:
        stat = (folder / "stat").read_text(errors="replace")
        status = (folder / "status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        text = f"no such thread, or it has ended: thread_id={thread_id}"
        raise ProcessLookupError(errno.ESRCH, text) from None
    minor, major, core = _parse_stat(stat)
    voluntary, involuntary = _parse_status(status)
    try:
        run_ns, queued_ns = _parse_schedstat((folder / "schedstat").read_text())
    except OSError:
        run_ns, queued_ns = None, None
    return ThreadCounters(minor, major, voluntary, involuntary, core, run_ns, queued_ns)


def _parse_stat(text: str) -> tuple[int, int, int]:
    """Take fields 10, 12 and 39: minor faults, major faults, core."""
    # The name, field 2, may hold anything, blanks and parentheses included.
    _, closing, rest = text.rpartition(")")
    fields = rest.split()
    if not closing or len(fields) < 37:
        raise ValueError(f"cannot read thread counters: stat={text!r} expected=39 fields or more")
    return int(fields[7]), int(fields[9]), int(fields[36])


def _parse_status(text: str) -> tuple[int, int]:
    lines = (line.partition(":") for line in text.splitlines())
    fields = {name: value.strip() for name, _, value in lines}
    try:
        return int(fields["voluntary_ctxt_switches"]), int(fields["nonvoluntary_ctxt_switches"])
    except KeyError as missing:
        raise ValueError(f"cannot read thread counters: status has no {missing}") from None


def _parse_schedstat(text: str) -> tuple[int | None, int | None]:
    fields = text.split()
    # All three are zero where the kernel has them switched off.
    if len(fields) < 3 or fields[:3] == ["0", "0", "0"]:
        return None, None
    return int(fields[0]), int(fields[1])


class CoreInterrupts(NamedTuple):
    """Interrupts that one core has taken since it came up.

    Attributes
    ----------
    core
        Its number.
    counts
        By name: the kernel's short name and its description, for example
        ``"LOC Local timer interrupts"`` or ``"27 PCI-MSI 32769-edge nvme0q1"``.
    """

    core: int
    counts: dict[str, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts.values())

    def since(self, earlier: CoreInterrupts) -> CoreInterrupts:
        """Return what was added since `earlier`: only those that changed."""
        added = {
            name: count - earlier.counts.get(name, 0)
            for name, count in self.counts.items()
            if count != earlier.counts.get(name, 0)
        }
        return CoreInterrupts(self.core, added)


def core_interrupts(core: int) -> CoreInterrupts:
    """Read what interrupted a core: ``/proc/interrupts``, proc_interrupts(5).

    The kernel counts the interrupts of all cores for it: some hundred µs on a large machine. Any
    thread may call it.

    Raises
    ------
    LookupError
        If the core does not exist or is offline.
    """
    return _parse_interrupts(Path("/proc/interrupts").read_text(errors="replace"), core)


def _parse_interrupts(text: str, core: int) -> CoreInterrupts:
    header, *lines = text.splitlines() or [""]
    # Only cores that are online have a column.
    cores = header.split()
    if f"CPU{core}" not in cores:
        raise LookupError(f"no such core, or it is offline: core={core} online={' '.join(cores)}")
    column = cores.index(f"CPU{core}")
    counts: dict[str, int] = {}
    for line in lines:
        name, colon, rest = line.partition(":")
        fields = rest.split(maxsplit=len(cores))
        numbers = fields[: len(cores)]
        # Counts of the whole machine, as ERR and MIS, are no core's.
        if not colon or len(numbers) < len(cores) or not all(n.isdecimal() for n in numbers):
            continue
        description = " ".join(fields[len(cores)].split()) if len(fields) > len(cores) else ""
        counts[f"{name.strip()} {description}".strip()] = int(numbers[column])
    return CoreInterrupts(core, counts)
