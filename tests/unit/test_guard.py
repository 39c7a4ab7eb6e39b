"""The guard from Python: seeded system calls of C code, their names, call sites and results."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from chronicle import errors
from chronicle._core import GuardTrial
from chronicle.hot import symbols, system_calls
from chronicle.hot.guard import GuardReport, register_code, unregister_code
from chronicle.hot.symbols import CallSite, find_callers, locate

from tests import guard_support
from tests.guard_support import Words, address, run, start

MODES = ["observe", "enforce"]

# Name of the call (where architectures differ: any of them), argument, result if it is made.
SEEDS: dict[str, tuple[int, Callable[[], int]]] = {
    "getpid": (0, os.getpid),
    "clock_gettime": (0, lambda: 0),
    "write": (-1, lambda: -errno.EBADF),
    "read": (-1, lambda: -errno.EBADF),
    "openat": (0, lambda: -errno.ENOENT),
    "mmap": (0, lambda: 77),
    "munmap": (0, lambda: 0),
    "futex": (0, lambda: -errno.EAGAIN),
    "clock_nanosleep": (0, lambda: 0),
    "sched_yield": (0, lambda: 0),
    "getrandom": (0, lambda: 8),
    "ioctl": (-1, lambda: -errno.EBADF),
    "madvise": (0, lambda: 0),
}

# Made under enforce as well: a refusal would break the heap, or a crash on its way to its end.
MADE = {"getpid", "mmap", "munmap", "madvise"}


@pytest.mark.parametrize("name", SEEDS)
def test_an_observed_call_is_reported_with_name_and_call_site_and_made(name: str):
    argument, expected = SEEDS[name]
    result, reports, trial = run(f"seed_{name}", argument % 2**64)
    assert result == expected()
    assert not trial.must_stop
    assert trial.counts == (1, 0, 0, 0)
    [report] = reports
    assert (report.name, report.action) == (name, "allowed")
    assert report.number == system_calls_of_this_machine()[name]
    assert report.call_site.object is not None
    assert "libc" in report.call_site.object
    assert report.caller is not None
    assert report.caller.symbol == f"seed_{name}"
    assert report.caller.file == "seeds.c"
    assert report.caller.line in lines_of(f"int64_t seed_{name}(")
    assert abs(report.timestamp_ns - time.time_ns()) < 3600 * 10**9
    assert f"{name} allowed: at " in str(report)


@pytest.mark.parametrize("name", SEEDS)
def test_an_enforced_call_is_refused_unless_that_would_harm_and_stops_the_thread(name: str):
    argument, expected = SEEDS[name]
    result, reports, trial = run(f"seed_{name}", argument % 2**64, mode="enforce")
    if name in MADE:
        assert result == expected()
    else:
        # The C library would end the process if a wait on a futex failed with EPERM.
        assert result == -(errno.EAGAIN if name == "futex" else errno.EPERM)
    assert trial.must_stop
    assert trial.counts == ((1, 0, 1, 0) if name in MADE else (1, 1, 0, 0))
    [report] = reports
    assert (report.name, report.action) == (name, "made, stopping" if name in MADE else "refused")
    assert report.caller is not None
    assert report.caller.symbol == f"seed_{name}"


def lines_of(start_of_line: str) -> range:
    """Lines of a C function, from 1."""
    lines = guard_support.SOURCE.splitlines()
    [first] = [n for n, line in enumerate(lines, start=1) if line.startswith(start_of_line)]
    last = next(n for n in range(first, len(lines)) if lines[n - 1].endswith(("}", "*/")))
    return range(first, last + 1)


def system_calls_of_this_machine() -> dict[str, int]:
    return {name: number for number, name in system_calls._names(platform.machine()).items()}


def test_seeds_make_the_calls_they_are_named_after_without_a_guard():
    for name, (argument, expected) in SEEDS.items():
        result, reports, trial = run(f"seed_{name}", argument % 2**64, mode="off")
        assert (result, reports, trial.counts) == (expected(), [], (0, 0, 0, 0)), name


def test_a_call_from_a_function_of_ours_is_named_with_file_and_line():
    result, [report], _ = run("own_instruction")
    assert result == os.getppid()
    assert report.call_site.symbol == "hidden_call"
    assert (report.call_site.file, report.name) == ("seeds.c", "getppid")


def test_code_that_makes_no_call_is_not_reported():
    for mode in MODES:
        result, reports, trial = run("none", 1000, mode=mode)
        assert (result, reports, trial.counts) == (sum(range(1000)), [], (0, 0, 0, 0))
        assert not trial.must_stop


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["try_fork", "try_thread", "try_exec"])
def test_starting_threads_and_programs_is_refused_in_both_modes(name: str, mode: str):
    result, reports, trial = run(name, mode=mode)
    assert result in (-errno.EPERM, -errno.EAGAIN)
    refused = {report.name for report in reports if report.action == "refused"}
    if mode == "observe":
        expected = {
            "try_fork": {"clone", "fork"},
            "try_thread": {"clone", "clone3"},
            "try_exec": {"execve"},
        }
        assert refused
        assert refused <= expected[name]
        assert not trial.must_stop
    else:
        assert refused
        assert trial.must_stop


def test_buffered_files_work_under_observe_as_without_a_guard():
    result, reports, _ = run("use_stdio")
    assert result == 1
    # However deep inside of the C library the call is.
    assert {report.caller.symbol for report in reports if report.caller} == {"use_stdio"}
    names = [report.name for report in reports]
    assert names[0] == "openat"
    assert names[-1] == "close"
    assert "read" in names


def test_a_full_ring_drops_the_newest_and_counts():
    result, reports, trial = run("many_getppid", 100, capacity=8)
    assert result == 100
    assert len(reports) == 8
    assert trial.counts == (100, 0, 0, 92)


def test_reports_can_be_drained_while_the_thread_runs():
    words = Words()
    trial = start("call_until_go", ctypes.addressof(words), capacity=1 << 14)
    drained = 0
    while drained < 100:
        drained += len(trial.drain())
    words.go = 1
    assert trial.join() == 0
    drained += len(trial.drain())
    seen, refused, made, dropped = trial.counts
    # The first call is the parent's number to compare with.
    assert seen == words.progress + 1
    assert drained + dropped == seen
    assert (refused, made) == (0, 0)


def test_the_thread_is_not_held_up_if_nobody_drains():
    words = Words()
    trial = start("call_until_go", ctypes.addressof(words), capacity=1)
    while words.progress < 1000:
        time.sleep(0.001)
    words.go = 1
    assert trial.join() == 0
    assert trial.counts[3] == trial.counts[0] - 1


def test_the_thread_goes_on_after_its_python_object_is_gone():
    words = Words()
    trial = start("call_until_go", ctypes.addressof(words))
    thread_id = trial.thread_id
    del trial
    while words.progress < 1000:
        time.sleep(0.001)
    assert Path(f"/proc/self/task/{thread_id}").exists()
    words.go = 1
    while Path(f"/proc/self/task/{thread_id}").exists():
        time.sleep(0.001)
    assert words.errors == 0


@pytest.mark.parametrize("mode", ["off", *MODES])
def test_many_guarded_threads_at_once_end_cleanly(mode: str):
    words = Words()
    trials = [start("wait_for_go", ctypes.addressof(words), mode=mode) for _ in range(8)]
    assert len({trial.thread_id for trial in trials}) == 8
    words.go = 1
    assert [trial.join() for trial in trials] == [5] * 8


def test_no_more_than_256_threads_are_guarded_and_the_refusal_says_so():
    # They do not spin, or they would need the two cores for long: they wait in a read.
    reader, writer = os.pipe()
    trials: list[GuardTrial] = []
    try:
        trials += [start("seed_read", reader) for _ in range(256)]
        with pytest.raises(OSError, match="256 threads of this process are guarded"):
            start("none")
    finally:
        os.close(writer)
        for trial in trials:
            trial.join()
        os.close(reader)
    assert start("none").join() == 0


def test_other_threads_of_the_process_are_not_filtered():
    words = Words()
    trial = start("wait_for_go", ctypes.addressof(words), mode="enforce")
    try:
        modes = {
            task.name: (task / "status").read_text().partition("Seccomp:\t")[2][:1]
            for task in Path("/proc/self/task").iterdir()
        }
        assert modes.pop(str(trial.thread_id)) == "2"
        assert set(modes.values()) == {"0"}
        started = threading.Thread(target=os.getppid)
        started.start()
        started.join()
    finally:
        words.go = 1
        trial.join()


def test_a_root_thread_keeps_the_right_to_gain_privileges():
    trial = start("none")
    trial.join()
    assert trial.no_new_privs == (os.geteuid() != 0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"function": 0}, "bad function: found=0"),
        ({"mode": "watch"}, "bad guard mode: found='watch' expected='off', 'observe' or 'enforce'"),
        ({"capacity": 0}, "bad guard capacity: found=0 expected=1 to 65536"),
        ({"capacity": 65537}, "bad guard capacity: found=65537"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], expected: str):
    given: dict[str, object] = {"function": address("none"), **arguments}
    with pytest.raises(errors.BadArgument, match=expected):
        GuardTrial(**given)  # type: ignore[arg-type]


def test_a_trial_is_joined_once():
    trial = start("none", 10)
    assert trial.join() == 45
    with pytest.raises(errors.Closed):
        trial.join()


# --- Names ---


@pytest.mark.parametrize(("ours", "theirs"), [("x86_64", "x86_64"), ("aarch64", "arm64")])
def test_the_table_of_system_calls_is_that_of_the_kernel(ours: str, theirs: str):
    import system_calls as reference

    known = {
        number: name
        for name, number in reference.syscalls().load_arch_table(theirs).items()
        # Numbers from 512 on are those of x32.
        if number < 512
    }
    assert system_calls._names(ours) == known


def test_an_unknown_number_is_shown_as_it_is():
    assert system_calls.system_call_name(100_000) == "system call 100000"
    assert system_calls.system_call_name(1, "i386") == "system call 1"


def test_a_32_bit_call_is_named_by_its_architecture():
    stack = (0,) * 64
    report = GuardReport.from_native(
        (20, 0x4000_0003, (1, 2, 3, 4, 5, 6), 0, stack, 0, "refused"),
    )
    assert (report.architecture, report.action) == ("i386", "refused")
    if platform.machine() != "i386":
        assert str(report).startswith("system call 20 (i386) refused: at ")


def test_arguments_read_as_numbers_and_addresses():
    report = GuardReport(
        number=1,
        name="write",
        args=(2**64 - 100, 2, 0x7F00_1234, 2**63, 4095, 4096),
        call_site=CallSite(0x1234),
        callers=(),
        action="allowed",
        timestamp_ns=0,
        architecture=platform.machine(),
    )
    expected = "write allowed: at 0x1234, args -100 2 0x7f001234 0x8000000000000000 4095 0x1000"
    assert str(report) == expected


def test_registered_code_is_found_by_any_address_in_it_and_by_no_other():
    register_code(0x1000, 0x20, "Ewma.trade", line_of=lambda offset: ("ewma.py", 31 + offset))
    register_code(0x1020, 0x10, "Ewma.set_alpha")
    try:
        first = CallSite(0x1000, "Ewma.trade", 0, None, "ewma.py", 31, is_registered=True)
        assert locate(0x1000) == first
        last = CallSite(0x101F, "Ewma.trade", 31, None, "ewma.py", 62, is_registered=True)
        assert locate(0x101F) == last
        assert locate(0x1020) == CallSite(0x1020, "Ewma.set_alpha", is_registered=True)
        assert locate(0x1030) == CallSite(0x1030)
        assert locate(0xFFF) == CallSite(0xFFF)
        assert str(locate(0x1000)) == "Ewma.trade+0x0 (ewma.py:31)"
        # What was registered for the same bytes before is gone.
        register_code(0x1010, 0x18, "Other.trade")
        assert locate(0x1020).symbol == "Other.trade"
        assert locate(0x1000).symbol is None
    finally:
        for begin in (0x1000, 0x1010, 0x1020):
            unregister_code(begin)
    assert locate(0x1010).symbol is None
    with pytest.raises(errors.BadArgument, match="bad size of code: found=0"):
        register_code(1, 0, "nothing")


def test_the_caller_is_registered_code_if_any_is_on_the_stack():
    begin = address("seed_getpid")
    register_code(begin, 64, "Ewma.trade", line_of=lambda _: ("ewma.py", 7))
    try:
        _, [report], _ = run("seed_getpid")
    finally:
        unregister_code(begin)
    assert report.caller is not None
    assert (report.caller.symbol, report.caller.file, report.caller.line) == (
        "Ewma.trade",
        "ewma.py",
        7,
    )
    assert "called by Ewma.trade+" in str(report)


def test_words_that_are_no_return_addresses_name_no_caller():
    data = ctypes.create_string_buffer(16)
    words = (0, 1, 2**64 - 1, ctypes.addressof(data), address("none"), 0xFFFF_FFFF_FF60_0000)
    assert find_callers(words, CallSite(0)) == []


def test_memory_that_is_not_there_is_read_as_nothing():
    assert symbols._read_memory(0, 8) == b""
    assert symbols._read_memory(2**63, 2**63 + 8) == b""
    data = ctypes.create_string_buffer(b"12345678")
    assert symbols._read_memory(ctypes.addressof(data), ctypes.addressof(data) + 8) == b"12345678"


def test_an_address_in_no_object_stays_a_number():
    assert str(locate(0x10)) == "0x10"


def test_what_an_object_does_not_export_is_found_in_its_symbol_table(
    monkeypatch: pytest.MonkeyPatch,
):
    at = next(report.call_site.address for report in [run("own_instruction")[1][0]])
    assert locate(at).symbol == "hidden_call"
    # Without pyelftools only the dynamic linker's names are left.
    monkeypatch.setattr(symbols, "_elf", lambda path: None)
    site = locate(at)
    assert (site.symbol, site.line) == (None, None)
    assert str(site).startswith("seeds.so+0x")


def test_rust_symbols_read_as_paths():
    assert symbols._demangled("_ZN4core3ptr5write17h0123456789abcdefE") == "core::ptr::write"
    for other in ("main", "_ZN3foo3barEv", "_ZN", "_ZN4core", "_ZN99999core17h0123456789abcdefE"):
        assert symbols._demangled(other) == other
