"""What the kernel counts about threads and cores, and the independent witness of the tests."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chronicle.hot import kernel
from chronicle.hot.kernel import CoreInterrupts, ThreadCounters, core_interrupts, thread_counters

from tests import kernel_trace
from tests.guard_support import Plain, Words, address, library, start
from tests.kernel_trace import KernelTrace, TraceLost, TraceUnavailable

# --- /proc ---


def test_the_counters_of_a_thread_only_grow_and_count_its_own_doings():
    before = thread_counters(threading.get_native_id())
    for _ in range(20):
        time.sleep(0.0001)
    # Fresh pages, not some that the allocator has left over.
    with mmap.mmap(-1, 4 << 20) as blank:
        blank.write(bytes(4 << 20))
    added = thread_counters(threading.get_native_id()).since(before)
    assert added.switches_voluntary >= 20
    assert added.faults_minor > 0
    assert added.faults_major >= 0
    assert added.switches_involuntary >= 0
    assert added.run_ns is None or added.run_ns > 0
    assert added.queued_ns is None or added.queued_ns >= 0
    assert added.core in os.sched_getaffinity(0)


def test_the_counters_of_another_process_can_be_read():
    child = subprocess.Popen(["sleep", "60"])
    try:
        counters = thread_counters(child.pid, process_id=child.pid)
        assert counters.faults_minor >= 0
    finally:
        child.kill()
        child.wait()
    with pytest.raises(ProcessLookupError, match=f"thread_id={child.pid}"):
        thread_counters(child.pid, process_id=child.pid)


def test_a_thread_that_does_not_exist_is_an_error_that_names_it():
    with pytest.raises(ProcessLookupError, match=r"no such thread.*thread_id=999999999"):
        thread_counters(999_999_999)


def test_a_thread_may_have_any_name():
    text = "7 (a) b (c)) R " + " ".join(str(n) for n in range(4, 60))
    assert kernel._parse_stat(text) == (10, 12, 39)


@pytest.mark.parametrize("text", ["", "7 a R 1", "7 (a) R 1 2 3", "7 (a) R " + "x " * 40])
def test_a_stat_that_is_no_stat_is_an_error(text: str):
    with pytest.raises(ValueError, match=r"cannot read thread counters|invalid literal"):
        kernel._parse_stat(text)


def test_a_status_without_the_counters_is_an_error():
    with pytest.raises(ValueError, match="nonvoluntary_ctxt_switches"):
        kernel._parse_status("Name:\tx\nvoluntary_ctxt_switches:\t1\n")


def test_a_kernel_that_does_not_count_waiting_says_none():
    assert kernel._parse_schedstat("0 0 0\n") == (None, None)
    assert kernel._parse_schedstat("") == (None, None)
    assert kernel._parse_schedstat("5 0 1\n") == (5, 0)
    none = ThreadCounters(1, 0, 2, 3, 0, None, None)
    assert none.since(none) == ThreadCounters(0, 0, 0, 0, 0, None, None)


INTERRUPTS = """\
           CPU0       CPU2
  0:         22          0   IO-APIC   2-edge      timer
 27:          5          7   PCI-MSI 32769-edge      nvme0q1
NMI:          1          2   Non-maskable interrupts
LOC:     123456      99999   Local timer interrupts
ERR:          3
MIS:          0
XYZ:          9          8
"""


def test_interrupts_are_those_of_the_core_even_if_others_are_offline():
    found = kernel._parse_interrupts(INTERRUPTS, 2)
    assert found.counts == {
        "0 IO-APIC 2-edge timer": 0,
        "27 PCI-MSI 32769-edge nvme0q1": 7,
        "NMI Non-maskable interrupts": 2,
        "LOC Local timer interrupts": 99999,
        "XYZ": 8,
    }
    assert found.total == 7 + 2 + 99999 + 8


def test_an_offline_core_is_an_error_that_names_the_others():
    with pytest.raises(LookupError, match="core=1 online=CPU0 CPU2"):
        kernel._parse_interrupts(INTERRUPTS, 1)
    with pytest.raises(LookupError):
        kernel._parse_interrupts("", 0)


def test_of_two_looks_only_what_changed_is_told():
    earlier = CoreInterrupts(0, {"a": 1, "b": 2})
    later = CoreInterrupts(0, {"a": 1, "b": 5, "c": 1})
    assert later.since(earlier) == CoreInterrupts(0, {"b": 3, "c": 1})


def test_this_machine_s_interrupts_can_be_read():
    core = min(os.sched_getaffinity(0))
    before = core_interrupts(core)
    assert before.total > 0
    after = core_interrupts(core)
    assert all(count >= 0 for count in after.since(before).counts.values())


# --- The witness ---

MISSING = kernel_trace.missing()
needs_tracing = [
    pytest.mark.needs_root,
    pytest.mark.skipif(MISSING is not None, reason=f"no kernel tracing: {MISSING}"),
]


@contextlib.contextmanager
def plain_thread(name: str, argument: int) -> Iterator[Plain]:
    """A thread that waits at `go`, runs the function, and then lives until the block ends."""
    plain = Plain(function=address(name), argument=argument)
    assert library().start_plain(ctypes.byref(plain)) == 0
    while not plain.thread_id:
        time.sleep(0.0005)
    try:
        yield plain
    finally:
        plain.go = plain.end = 1
        # The thread reads `plain` until it is gone.
        while Path(f"/proc/self/task/{plain.thread_id}").exists():
            time.sleep(0.0005)


def traced(name: str, argument: int, *, buffer_kib_per_core: int = 1024) -> KernelTrace:
    with plain_thread(name, argument) as plain:
        trace = KernelTrace(plain.thread_id, buffer_kib_per_core=buffer_kib_per_core)
        with trace:
            plain.go = 1
            while not plain.done:
                time.sleep(0.0005)
        return trace


def assert_nothing_is_left():
    own = f"chronicle_{os.getpid()}_"
    instances = [path.name for path in (kernel_trace.TRACEFS / "instances").iterdir()]
    assert not [name for name in instances if name.startswith(own)]
    assert own not in (kernel_trace.TRACEFS / "uprobe_events").read_text()


class TestWitness:
    pytestmark = needs_tracing

    def test_n_calls_are_counted_n_and_nothing_else(self):
        for count in (0, 1, 137):
            trace = traced("many_getppid", count)
            assert trace.system_calls == ({"getppid": count} if count else {})
            assert trace.heap_calls == {}
        assert_nothing_is_left()

    def test_a_thread_that_only_computes_does_nothing_that_the_kernel_sees(self):
        trace = traced("none", 1_000_000)
        assert (trace.system_calls, trace.page_faults, trace.heap_calls) == ({}, {}, {})

    def test_allocator_calls_are_counted_by_function(self):
        trace = traced("use_heap", 50)
        assert trace.heap_calls == {"malloc": 50, "realloc": 50, "calloc": 50, "free": 100}

    def test_each_page_that_was_not_there_is_a_fault(self):
        trace = traced("touch_pages", 33)
        assert trace.page_faults.total() == 33
        assert len(trace.page_faults) == 33
        assert trace.system_calls == {"mmap": 1, "madvise": 1, "munmap": 1}

    def test_without_the_heap_nothing_is_probed(self):
        with plain_thread("use_heap", 10) as plain:
            with KernelTrace(plain.thread_id, heap=False, buffer_kib_per_core=256) as trace:
                plain.go = 1
                while not plain.done:
                    time.sleep(0.0005)
        assert trace.heap_calls == {}

    def test_other_threads_are_not_counted(self):
        words = Words()
        busy = start("call_until_go", ctypes.addressof(words), mode="off")
        try:
            assert traced("many_getppid", 3).system_calls == {"getppid": 3}
        finally:
            words.go = 1
            busy.join()

    def test_a_call_that_the_guard_traps_is_seen_by_what_its_handler_does(self):
        # The trapped call never gets to the kernel's entry; the guard's own calls do.
        words = Words()
        trial = start("call_until_go", ctypes.addressof(words))
        try:
            with KernelTrace(trial.thread_id, heap=False) as trace:
                begin = words.progress
                while words.progress < begin + 10:
                    time.sleep(0.0005)
        finally:
            words.go = 1
            trial.join()
        assert trace.system_calls["rt_sigreturn"] >= 10
        assert trace.system_calls["getppid"] >= 10

    def test_lost_events_are_an_error_and_not_a_smaller_number(self):
        with pytest.raises(TraceLost, match="overrun="):
            traced("many_getppid", 20_000, buffer_kib_per_core=16)
        assert_nothing_is_left()

    def test_an_error_in_the_block_passes_through_and_all_is_taken_away(self):
        with pytest.raises(ZeroDivisionError):
            with KernelTrace(threading.get_native_id(), buffer_kib_per_core=64):
                raise ZeroDivisionError
        assert_nothing_is_left()

    def test_what_a_killed_witness_left_is_swept_by_the_next(self):
        program = (
            "import os, signal, threading; from tests.kernel_trace import KernelTrace\n"
            "with KernelTrace(threading.get_native_id(), buffer_kib_per_core=64):\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        root = Path(__file__).resolve().parents[2]
        child = subprocess.Popen([sys.executable, "-c", program], cwd=root)
        assert child.wait() == -9
        left = f"chronicle_{child.pid}_0"
        assert (kernel_trace.TRACEFS / "instances" / left).exists()
        traced("none", 1)
        assert not (kernel_trace.TRACEFS / "instances" / left).exists()
        assert left not in (kernel_trace.TRACEFS / "uprobe_events").read_text()


def test_without_root_the_witness_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert kernel_trace.missing() == "needs root"
    with pytest.raises(TraceUnavailable, match="needs root"):
        with KernelTrace(1):
            pass
