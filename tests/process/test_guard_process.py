"""The guard and what happens to whole processes: stopped, debugged, ended, left without a sidecar.

Each test runs the guarded thread in a child process, so that a hang or a crash is that child's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import ctypes, os, signal, sys, threading, time
from tests.guard_support import Words, address, run, start

def say(*words):
    print(*words, flush=True)

def wait_for(words, count):
    begin = words.progress
    while words.progress < begin + count:
        time.sleep(0.001)
"""


@contextmanager
def child(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    text = PRELUDE + textwrap.dedent(program)
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", text, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def hear(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the child has ended"
    return line.split()


def tell(process: subprocess.Popen[str], text: str = "") -> None:
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


@pytest.mark.parametrize("mode", ["off", "observe", "enforce"])
@pytest.mark.parametrize("end", ["return", "sys.exit", "os._exit", "exception"])
def test_a_process_ends_under_a_running_guarded_thread(mode: str, end: str):
    program = """
        words = Words()
        trial = start("wait_for_go", ctypes.addressof(words), mode=sys.argv[1])
        while not words.progress:
            time.sleep(0.001)
        end = sys.argv[2]
        if end == "sys.exit":
            sys.exit(7)
        if end == "os._exit":
            os._exit(7)
        if end == "exception":
            sys.stderr = open(os.devnull, "w")
            raise RuntimeError
    """
    with child(program, mode, end) as process:
        expected = {"return": 0, "exception": 1}.get(end, 7)
        assert process.wait(timeout=60) == expected


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_a_guarded_thread_may_end_the_process_itself(mode: str):
    with child("start('exit_process', 9, mode=sys.argv[1]).join()", mode) as process:
        assert process.wait(timeout=60) == 9


def test_a_guarded_thread_survives_the_end_of_every_python_thread_but_the_main_one():
    program = """
        words = Words()
        keep = []

        def sidecar():
            keep.append(start("call_until_go", ctypes.addressof(words)))
            keep[0].drain()
            raise SystemExit

        thread = threading.Thread(target=sidecar)
        thread.start()
        thread.join()
        wait_for(words, 1000)
        words.go = 1
        say(keep[0].join(), keep[0].must_stop, keep[0].counts[3] > 0)
    """
    with child(program) as process:
        assert hear(process) == ["0", "False", "True"]
        assert process.wait(timeout=60) == 0


def test_a_stopped_and_continued_process_goes_on_where_it_was():
    program = """
        words = Words()
        trial = start("call_until_go", ctypes.addressof(words))
        say(trial.thread_id)
        sys.stdin.readline()
        wait_for(words, 100)
        words.go = 1
        say(trial.join(), trial.must_stop)
    """
    with child(program) as process:
        [thread_id] = hear(process)
        for _ in range(5):
            process.send_signal(signal.SIGSTOP)
            wait_for_state(process.pid, int(thread_id), "T")
            process.send_signal(signal.SIGCONT)
        tell(process)
        assert hear(process) == ["0", "False"]
        assert process.wait(timeout=60) == 0


def test_a_blocked_call_of_a_guarded_thread_is_restarted_after_a_stop():
    program = """
        reader, writer = os.pipe()
        trial = start("seed_read", reader)
        say(trial.thread_id)
        sys.stdin.readline()
        os.write(writer, b"abcd")
        say(trial.join(), trial.counts)
    """
    with child(program) as process:
        [thread_id] = hear(process)
        wait_for_state(process.pid, int(thread_id), "S")
        process.send_signal(signal.SIGSTOP)
        wait_for_state(process.pid, int(thread_id), "T")
        process.send_signal(signal.SIGCONT)
        tell(process)
        assert hear(process) == ["4", "(1,", "0,", "0,", "0)"]
        assert process.wait(timeout=60) == 0


def wait_for_state(pid: int, thread_id: int, *wanted: str) -> None:
    """Wait until the kernel says that a thread is in one of these states: proc_pid_stat(5)."""
    while True:
        stat = Path(f"/proc/{pid}/task/{thread_id}/stat").read_text()
        if stat.rpartition(")")[2].split(maxsplit=1)[0] in wanted:
            return
        time.sleep(0.001)


# --- Debuggers ---

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207
WAIT_ALL = 0x40000000  # __WALL: threads, not only processes.


def ptrace(request: int, thread_id: int, data: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(request, thread_id, None, data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request:#x}: {os.strerror(number)}")


@contextmanager
def stopped_by_a_debugger(pid: int, thread_id: int) -> Iterator[None]:
    """Stop one thread as a debugger does, and let it go on with the signal that it was taking."""
    ptrace(PTRACE_SEIZE, thread_id)
    ptrace(PTRACE_INTERRUPT, thread_id)
    _, status = os.waitpid(thread_id, WAIT_ALL)
    wait_for_state(pid, thread_id, "t")
    try:
        yield
    finally:
        # A stop on the way to a signal handler has no event: a debugger that did not pass that
        # signal on would take it from the thread.
        caught = os.WSTOPSIG(status) if status >> 16 == 0 else 0
        ptrace(PTRACE_DETACH, thread_id, caught)


SIDECAR_AND_HOT = """
    words = Words()
    trial = start("call_until_go", ctypes.addressof(words), capacity=64)
    reports = []

    def sidecar():
        while not words.go:
            reports.extend(trial.drain())
            time.sleep(0.0005)

    thread = threading.Thread(target=sidecar)
    thread.start()
    while not reports:
        time.sleep(0.001)
    say(thread.native_id, trial.thread_id, ctypes.addressof(words))
    sys.stdin.readline()
    before = len(reports)
    while len(reports) == before:
        time.sleep(0.001)
    words.go = 1
    thread.join()
    say(trial.join(), trial.must_stop)
"""


def progress(pid: int, words: int) -> int:
    """Read `progress` of the child's `Words` from outside: the child may be stopped."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(words + 8)
        return int.from_bytes(memory.read(8), "little")


def wait_for_progress(pid: int, words: int, count: int) -> None:
    begin = progress(pid, words)
    while progress(pid, words) < begin + count:
        time.sleep(0.001)


def may_trace() -> str | None:
    with child("say(1); sys.stdin.readline()") as process:
        hear(process)
        try:
            with stopped_by_a_debugger(process.pid, process.pid):
                return None
        except OSError as error:
            return str(error)


@pytest.mark.needs_root
def test_a_sidecar_that_a_debugger_has_stopped_does_not_hold_up_the_hot_thread():
    if refusal := may_trace():
        pytest.skip(f"this machine does not let us debug: {refusal}")
    with child(SIDECAR_AND_HOT) as process:
        sidecar, hot, words = (int(word) for word in hear(process))
        # Wherever the sidecar is: asleep, formatting, or in the middle of taking a report.
        for _ in range(20):
            with stopped_by_a_debugger(process.pid, sidecar):
                # More calls than the ring holds: it fills, and the thread goes on.
                wait_for_progress(process.pid, words, 200)
        assert Path(f"/proc/{process.pid}/task/{hot}").exists()
        tell(process)
        assert hear(process) == ["0", "False"]
        assert process.wait(timeout=60) == 0


@pytest.mark.needs_root
def test_a_hot_thread_that_a_debugger_has_stopped_goes_on_afterwards():
    if refusal := may_trace():
        pytest.skip(f"this machine does not let us debug: {refusal}")
    with child(SIDECAR_AND_HOT) as process:
        _, hot, words = (int(word) for word in hear(process))
        for _ in range(20):
            with stopped_by_a_debugger(process.pid, hot):
                pass
            wait_for_progress(process.pid, words, 10)
        tell(process)
        assert hear(process) == ["0", "False"]
        assert process.wait(timeout=60) == 0


# --- Processes that are started beside a guarded thread ---


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_programs_started_by_other_threads_are_free(mode: str):
    program = """
        import subprocess
        words = Words()
        trial = start("wait_for_go", ctypes.addressof(words), mode=sys.argv[1])
        status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True)
        say(*[line for line in status.stdout.splitlines() if line.startswith("Seccomp:")])
        pid = os.fork()
        if pid == 0:
            result, reports, _ = run("seed_getpid")
            os._exit(0 if result == os.getpid() and len(reports) == 1 else 1)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        words.go = 1
        say(trial.join(), trial.counts)
    """
    with child(program, mode) as process:
        assert hear(process) == ["Seccomp:", "0"]
        assert hear(process) == ["0"]
        assert hear(process) == ["5", "(0,", "0,", "0,", "0)"]
        assert process.wait(timeout=60) == 0


def test_python_s_own_signal_handling_of_other_signals_is_not_touched():
    program = """
        seen = []
        signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
        words = Words()
        trial = start("call_until_go", ctypes.addressof(words))
        for _ in range(50):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.0005)
        words.go = 1
        say(trial.join(), len(seen) > 0)
    """
    with child(program) as process:
        assert hear(process) == ["0", "True"]
        assert process.wait(timeout=60) == 0


# --- Locks that a guarded thread shares with others ---

LOCKS = """
    from pathlib import Path
    from tests.guard_support import library

    seeds = library()
    mode = sys.argv[1]
    words = Words()

    def state(thread_id):
        stat = Path(f"/proc/self/task/{thread_id}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]

    def go_on_when(ready):
        while not ready():
            time.sleep(0.001)
"""


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_a_guarded_thread_gets_a_lock_that_another_holds(mode: str):
    program = (
        LOCKS
        + """
    seeds.lock(None)
    trial = start("take_lock", ctypes.addressof(words), mode=mode)
    # It has tried, and the call was reported.
    go_on_when(lambda: trial.counts[0] > 0)
    seeds.unlock(None)
    say(trial.join(), trial.must_stop)
    """
    )
    with child(program, mode) as process:
        assert hear(process) == ["0", str(mode == "enforce")]
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_a_thread_that_waits_for_a_guarded_one_is_woken(mode: str):
    program = (
        LOCKS
        + """
    trial = start("hold_lock", ctypes.addressof(words), mode=mode)
    go_on_when(lambda: words.progress)
    waiter = threading.Thread(target=seeds.take_lock, args=[ctypes.byref(Words())])
    waiter.start()
    go_on_when(lambda: state(waiter.native_id) == "S")
    words.go = 1
    say(trial.join(), trial.must_stop)
    waiter.join()
    say("woken")
    """
    )
    with child(program, mode) as process:
        assert hear(process) == ["0", str(mode == "enforce")]
        assert hear(process) == ["woken"]
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_a_guarded_thread_may_wait_for_a_condition_without_ending_the_process(mode: str):
    program = (
        LOCKS
        + """
    trial = start("wait_for_condition", ctypes.addressof(words), mode=mode)
    go_on_when(lambda: trial.counts[0] > 0)
    seeds.set_condition(None)
    say(trial.join(), trial.must_stop)
    """
    )
    with child(program, mode) as process:
        assert hear(process) == ["0", str(mode == "enforce")]
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("mode", ["off", "observe", "enforce"])
@pytest.mark.parametrize("crash_handler", ["faulthandler", "none"])
@pytest.mark.parametrize(
    ("how", "number"), [("abort_process", signal.SIGABRT), ("crash", signal.SIGSEGV)]
)
def test_a_guarded_thread_that_crashes_ends_the_process(
    how: str, number: signal.Signals, crash_handler: str, mode: str
):
    program = (
        LOCKS
        + """
    import faulthandler
    if sys.argv[2] == "none":
        faulthandler.disable()
    else:
        faulthandler.enable(open(os.devnull, "w"))
    start(sys.argv[3], mode=mode).join()
    """
    )
    with child(program, mode, crash_handler, how) as process:
        assert process.wait(timeout=60) == -number
