"""An independent witness: what the kernel's own tracing saw one thread do.

Counts system calls, page faults and calls of the C library's allocator that a thread makes within a
``with`` block. It shares nothing with the guard, the meter or the counters of the product: events
come from ``raw_syscalls:sys_enter``, ``exceptions:page_fault_user`` and uprobes on the C library,
filtered by the thread's id, in a tracing instance of its own.

A call that a seccomp filter traps never reaches ``sys_enter``; those that the guard's handler makes
in its place do. So zero means zero, and anything else is seen.

Needs root and tracefs. `missing` says what is not there; the ``with`` statement raises
`TraceUnavailable` with the same words. A trace that lost events raises `TraceLost`: a count that
may be too low is none.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from chronicle.hot.system_calls import system_call_name

TRACEFS = Path("/sys/kernel/tracing")
BUFFER_KIB_PER_CORE = 8 * 1024
HEAP = ("malloc", "calloc", "realloc", "free", "posix_memalign", "aligned_alloc")

_numbers = itertools.count()
_LINE = re.compile(r"-(?P<thread>\d+)\s+\[\d+\].*?\s[\d.]+: (?P<event>\w+): (?P<rest>.*)")


class TraceUnavailable(Exception):
    """The kernel's tracing cannot be used here; the text says why."""


class TraceLost(Exception):
    """The trace buffer was too small for what happened, so the counts are worthless."""


def missing() -> str | None:
    """What is missing to trace, or ``None``. Mounts nothing that stays."""
    try:
        with _tracefs():
            for event in ("raw_syscalls/sys_enter", "exceptions/page_fault_user"):
                if not (TRACEFS / "events" / event / "enable").is_file():
                    return f"the kernel has no trace event {event}"
            if not (TRACEFS / "uprobe_events").is_file():
                return "the kernel has no uprobes (CONFIG_UPROBE_EVENTS)"
            return None
    except TraceUnavailable as reason:
        return str(reason)


@contextlib.contextmanager
def _tracefs() -> Iterator[None]:
    """Make sure that tracefs is mounted; take it away again if it was not."""
    if os.geteuid() != 0:
        raise TraceUnavailable("needs root")
    if (TRACEFS / "instances").is_dir():
        yield
        return
    mount = ["mount", "-t", "tracefs", "none", str(TRACEFS)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        raise TraceUnavailable(f"cannot mount tracefs: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(TRACEFS)], check=True)


class KernelTrace:
    """Counts what one thread does while the ``with`` block runs; read the counts behind it.

    The block must not end before the thread has done what is to be counted.

    Parameters
    ----------
    thread_id
        Of a thread of any process.
    heap
        Whether to watch the allocator as well. While it is watched, each of its calls costs a trap
        in *every* process of this machine; only the thread's are counted.
    buffer_kib_per_core
        Room for events; some 20,000 per MiB.

    Attributes
    ----------
    system_calls
        Count by name.
    page_faults
        Count by address.
    heap_calls
        Count by function of the C library.
    """

    def __init__(
        self,
        thread_id: int,
        *,
        heap: bool = True,
        buffer_kib_per_core: int = BUFFER_KIB_PER_CORE,
    ) -> None:
        self.thread_id = thread_id
        self.system_calls: Counter[str] = Counter()
        self.page_faults: Counter[int] = Counter()
        self.heap_calls: Counter[str] = Counter()
        self._heap = heap
        self._buffer_kib = buffer_kib_per_core
        self._name = f"chronicle_{os.getpid()}_{next(_numbers)}"
        self._instance = TRACEFS / "instances" / self._name
        self._clean_up = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_tracefs())
            _sweep()
            if self._heap:
                self._add_probes(stack)
            self._add_instance(stack)
            self._clean_up = stack.pop_all()
        _write(self._instance / "tracing_on", "1")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._clean_up:
            _write(self._instance / "tracing_on", "0")
            if kind is None:
                self._read()

    def _add_probes(self, stack: contextlib.ExitStack) -> None:
        """Make one event of all functions: each event costs the kernel a grace period to end."""
        path, offsets = _heap_functions()
        events = TRACEFS / "uprobe_events"
        for index, name in enumerate(HEAP):
            _append(events, f"p:{self._name}/heap {path}:{offsets[name]:#x} function=\\{index}:u32")
            if index == 0:
                stack.callback(_append, events, f"-:{self._name}/heap")

    def _add_instance(self, stack: contextlib.ExitStack) -> None:
        self._instance.mkdir()
        stack.callback(self._instance.rmdir)
        _write(self._instance / "tracing_on", "0")
        _write(self._instance / "buffer_size_kb", str(self._buffer_kib))
        own = [f"{self._name}/heap"] if self._heap else []
        for event in ("raw_syscalls/sys_enter", "exceptions/page_fault_user", *own):
            folder = self._instance / "events" / event
            _write(folder / "filter", f"common_pid == {self.thread_id}")
            stack.callback(_write, folder / "enable", "0")
            _write(folder / "enable", "1")

    def _read(self) -> None:
        self._check_that_nothing_was_lost()
        with (self._instance / "trace").open(errors="replace") as trace:
            for line in trace:
                if line.startswith("#"):
                    continue
                found = _LINE.search(line)
                if found is None:
                    raise ValueError(f"cannot read a line of the kernel's trace: {line!r}")
                # The filter is set on each event; another thread's would mean it does not work.
                assert int(found["thread"]) == self.thread_id, line
                self._count(found["event"], found["rest"])

    def _count(self, event: str, rest: str) -> None:
        if event == "sys_enter":
            number = int(rest.split()[1])
            self.system_calls[system_call_name(number)] += 1
        elif event == "page_fault_user":
            self.page_faults[int(rest.split(maxsplit=1)[0].removeprefix("address="), 16)] += 1
        else:
            index = int(rest.rpartition("function=")[2])
            self.heap_calls[HEAP[index]] += 1

    def _check_that_nothing_was_lost(self) -> None:
        for stats in sorted(self._instance.glob("per_cpu/cpu*/stats")):
            fields = dict(line.split(": ", 1) for line in stats.read_text().splitlines())
            for field in ("overrun", "commit overrun", "dropped events"):
                if int(fields[field]) != 0:
                    raise TraceLost(
                        f"the trace lost events: {stats.parent.name} {field}={fields[field]}; "
                        f"use a larger buffer than {self._buffer_kib} KiB, or a shorter block"
                    )


def _heap_functions() -> tuple[str, dict[str, int]]:
    """Find the C library's file, and the offsets of its allocator's functions in it."""
    libc = ctypes.CDLL(None)
    path, offsets = "", {}
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    for name in HEAP:
        address = ctypes.cast(getattr(libc, name), ctypes.c_void_p).value or 0
        for fields in maps:
            start, stop = (int(part, 16) for part in fields[0].split("-"))
            if start <= address < stop:
                path = fields[5]
                offsets[name] = address - start + int(fields[2], 16)
    if set(offsets) != set(HEAP) or "libc" not in path:
        raise TraceUnavailable(f"the allocator is not the C library's: path={path!r}")
    return path, offsets


def _sweep() -> None:
    """Remove what witnesses of processes that were killed have left."""
    for folder in (TRACEFS / "instances").glob("chronicle_*"):
        # Another process may be sweeping as well.
        with contextlib.suppress(FileNotFoundError):
            if _is_left_over(folder.name):
                for switch in folder.glob("events/chronicle_*/*/enable"):
                    _write(switch, "0")
                folder.rmdir()
    lines = (TRACEFS / "uprobe_events").read_text().splitlines()
    for event in {line.split(maxsplit=1)[0].partition(":")[2] for line in lines}:
        with contextlib.suppress(FileNotFoundError):
            if _is_left_over(event.partition("/")[0]):
                _append(TRACEFS / "uprobe_events", f"-:{event}")


def _is_left_over(name: str) -> bool:
    prefix, *rest = name.split("_")
    return prefix == "chronicle" and bool(rest) and not Path("/proc", rest[0]).exists()


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _append(path: Path, text: str) -> None:
    # Not `open("a")`, which seeks to the end: these files cannot.
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, text.encode() + b"\n")
    finally:
        os.close(fd)
