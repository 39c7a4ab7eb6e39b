"""Hot threads and the life of their process: forks, ends, interrupts, a sidecar that is busy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import chronicle
import pytest

from tests.native_support import native, until, word
from tests.queue_support import PATIENCE_S, ROOT, publisher, subscriber


def run(program: str, *arguments: Path | str, status: int = 0) -> str:
    """Run a program in an interpreter of its own; return what it printed."""
    made = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(program), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert made.returncode == status, made.stderr
    return made.stdout + made.stderr


START = """
    import chronicle, os, signal, sys, threading, time
    from tests.native_support import native, until, word
    from tests.queue_support import publisher, subscriber
    path = sys.argv[1]
    writer = publisher(path + "/in")
    reader = subscriber(path + "/in")
"""


def program(rest: str) -> str:
    return textwrap.dedent(START) + textwrap.dedent(rest)


def test_a_guard_whose_signal_another_library_takes_over_is_reported_once(tmp_path: Path) -> None:
    text = run(
        program("""
            import logging
            lines = []
            handler = logging.Handler(logging.ERROR)
            handler.emit = lambda record: lines.append(record.getMessage())
            logging.getLogger("chronicle").addHandler(handler)
            hot = chronicle.HotThread(native(), readers=[reader], guard="observe", wait="spin")
            hot.start()
            until(lambda: hot.status.state == "running")
            hot.poll()
            print(hot.status.guard_lost, len(lines))
            signal.signal(signal.SIGSYS, lambda number, frame: None)
            for _ in range(3):
                hot.poll()
            print(hot.status.guard_lost, len(lines), lines[0][:27], flush=True)
            # Its calls would go astray from here on, those of its end too.
            os._exit(0)
        """),
        str(tmp_path),
    )
    assert text == "False 0\nTrue 1 guard lost: another library\n"


@pytest.mark.parametrize("guard", ["off", "observe", "enforce"])
def test_the_interpreter_ends_cleanly_with_a_running_hot_thread(tmp_path: Path, guard: str) -> None:
    text = run(
        program(f"""
            hot = chronicle.HotThread(native(), readers=[reader], guard={guard!r}, wait="hybrid")
            hot.start()
            writer.append(1, word(7))
            until(lambda: hot.status.messages == 1)
            print("running")
        """),
        str(tmp_path),
    )
    assert text == "running\n"


def test_the_interpreter_ends_cleanly_with_a_running_callable(tmp_path: Path) -> None:
    text = run(
        program("""
            def handler(message):
                pass
            hot = chronicle.HotThread(handler, readers=[reader], wait="spin")
            hot.start()
            stop = False
            def feed():
                while not stop:
                    writer.append(1, b"x")
            feeder = threading.Thread(target=feed)
            feeder.start()
            until(lambda: hot.status.messages > 100)
            stop = True
            feeder.join()
            print("running")
        """),
        str(tmp_path),
    )
    assert text == "running\n"


def test_exit_in_a_failing_program_stops_the_thread_as_well(tmp_path: Path) -> None:
    text = run(
        program("""
            hot = chronicle.HotThread(native(), readers=[reader], wait="sleep").start()
            raise SystemExit(3)
        """),
        str(tmp_path),
        status=3,
    )
    assert text == ""
    # What the process had is free.
    with publisher(tmp_path / "in") as writer, subscriber(tmp_path / "in"):
        writer.append(1, b"")


def test_after_a_fork_the_child_s_object_says_so_and_the_parent_s_goes_on(tmp_path: Path) -> None:
    with publisher(tmp_path / "in") as writer:
        reader = subscriber(tmp_path / "in")
        hot = chronicle.HotThread(native(), readers=[reader], wait="hybrid", spin_ns=1_000)
        with hot:
            receiving, sending = os.pipe()
            child = os.fork()
            if child == 0:
                # Ends without pytest's own end.
                told = []
                for use in (
                    hot.stop,
                    hot.poll,
                    lambda: hot.send(b"", type_id=1),
                    lambda: hot.status,
                    lambda: hot.state,
                    hot.start,
                    hot.release_retired,
                ):
                    try:
                        use()
                    except chronicle.Forked:
                        told.append("forked")
                told.append(repr(hot))
                del hot
                os.write(sending, ";".join(told).encode())
                os._exit(0)
            os.close(sending)
            with os.fdopen(receiving) as pipe:
                text = pipe.read()
            assert os.waitpid(child, 0)[1] == 0
            assert text == "forked;" * 7 + "<HotThread 'native' forked>"
            writer.append(1, word(5))
            until(lambda: hot.state["sum"] == 5)
        reader.close()


def test_a_forked_child_ends_its_interpreter_without_the_thread(tmp_path: Path) -> None:
    text = run(
        program("""
            hot = chronicle.HotThread(native(), readers=[reader], wait="sleep").start()
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                print("child", flush=True)
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
            writer.append(1, word(1))
            until(lambda: hot.status.messages == 1)
            print("parent")
        """),
        str(tmp_path),
    )
    assert text == "child\nparent\n"


def test_waiting_for_a_hot_thread_answers_an_interrupt(tmp_path: Path) -> None:
    text = run(
        program("""
            hot = chronicle.HotThread(native(), readers=[reader], wait="sleep").start()
            try:
                # Inside: on a busy machine the signal may come before `join` is reached.
                threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
                hot.join()
            except KeyboardInterrupt:
                print("interrupted")
            hot.stop()
            print(hot.status.state)
        """),
        str(tmp_path),
    )
    assert text == "interrupted\nstopped\n"


def test_a_hot_thread_goes_on_while_the_interpreter_lock_is_held(tmp_path: Path) -> None:
    with publisher(tmp_path / "in") as writer, publisher(tmp_path / "out") as output:
        reader = subscriber(tmp_path / "in")
        hot = chronicle.HotThread(
            native(), readers=[reader], outputs={"out": output}, wait="hybrid", spin_ns=1_000
        )
        with hot, subscriber(tmp_path / "out", None, wait="spin") as published:
            # No call in between lets go of the interpreter lock: `next` does not wait.
            interval = sys.getswitchinterval()
            sys.setswitchinterval(1_000.0)
            try:
                for n in range(200):
                    writer.append(1, word(n))
                    while (message := published.next()) is None:
                        pass
                    assert bytes(message.payload) == word(n)
            finally:
                sys.setswitchinterval(interval)
        reader.close()


@pytest.mark.parametrize("room", range(3))
def test_a_callable_whose_journal_is_full_lets_go_of_the_interpreter_lock(
    tmp_path: Path, room: int
) -> None:
    """Whichever record is the first that does not fit: of a batch's begin, its message, its end."""
    text = run(
        program("""
            journal = publisher(path + "/journal", segments_max=2)
            journal.append(1, bytes(24 * int(sys.argv[2])))
            hot = chronicle.HotThread(lambda message: None, readers=[reader], journal=journal,
                                      wait="hybrid", spin_ns=1_000).start()
            while hot.failure is None:
                writer.append(1, b"x")
                time.sleep(0.00001)
            print(type(hot.failure).__name__, "journal" in str(hot.failure))
        """),
        str(tmp_path),
        str(room),
    )
    assert text.splitlines()[0] == "HotThreadFailed True"


def test_a_thread_that_has_joined_a_callables_keeps_its_own_interpreter_state(
    tmp_path: Path,
) -> None:
    text = run(
        program("""
            import ctypes
            local = threading.local()
            local.value = "kept"
            hot = chronicle.HotThread(lambda message: None, readers=[reader], wait="hybrid")
            hot.start()
            writer.append(1, b"x")
            until(lambda: hot.status.messages == 1)
            hot.stop()
            callback = ctypes.CFUNCTYPE(None)(lambda: print(getattr(local, "value", "lost")))
            callback()
            print(ctypes.pythonapi.PyGILState_Check())
        """),
        str(tmp_path),
    )
    assert text == "kept\n1\n"


def test_a_stopped_process_leaves_its_queues_as_they_are(tmp_path: Path) -> None:
    """After `kill -9` what was handled is committed, and the rest is there."""
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            program("""
                hot = chronicle.HotThread(
                    native(), readers=[reader], outputs={"out": publisher(path + "/out")}
                ).start()
                for n in range(100):
                    writer.append(1, word(n))
                until(lambda: hot.status.messages == 100)
                print("done", flush=True)
                time.sleep(600)
            """),
            str(tmp_path),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    with child.stdout as output:
        assert output.readline() == "done\n"
        child.send_signal(signal.SIGKILL)
    child.wait()
    with publisher(tmp_path / "out") as again, subscriber(tmp_path / "in") as reader:
        assert reader.next_seq == 101
        assert again.append(1, b"") == 101
