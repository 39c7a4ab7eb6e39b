"""Threads, signals, forks, and the end of the interpreter."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import chronicle
import pytest

from tests.queue_support import (
    Child,
    Trade,
    fill,
    payloads,
    publisher,
    run_python,
    running,
    seqs,
    subscriber,
    trades,
)

# --- The interpreter lock ---


@pytest.mark.parametrize("wait", ["spin", "hybrid", "sleep"])
@pytest.mark.parametrize("kind", ["reader", "fanin", "nothing"])
def test_other_threads_run_while_one_waits(path: Path, wait: Any, kind: str):
    turns = 0
    with publisher(path) as writer:
        reader = subscriber(path, wait=wait)
        waiter = chronicle.FanInReader([reader], wait=wait) if kind == "fanin" else reader

        def work() -> None:
            nonlocal turns
            for _ in range(1_000):
                turns += 1
                time.sleep(0)
            fill(writer, 1)

        with running(work):
            # If the lock were held, nobody could ever append.
            assert waiter.wait() is True
        assert turns == 1_000
        waiter.close()


def test_a_wait_that_was_begun_before_the_append_sees_it(path: Path):
    with publisher(path) as writer, subscriber(path, wait="sleep") as reader:
        for _ in range(300):
            with running(lambda: fill(writer, 1)):
                assert reader.wait() is True
            assert reader.next() is not None


def test_another_thread_may_close_a_reader_that_waits(path: Path):
    with publisher(path):
        reader = subscriber(path)
        with running(reader.close):
            with suppress(chronicle.Closed, chronicle.Busy):  # Closing may come first.
                assert reader.wait(0.05) is False
        with pytest.raises(chronicle.Closed):
            reader.next()


# --- Two threads at one object ---


def hammer(use: Callable[[], object], *, threads: int = 4) -> list[BaseException]:
    """Call `use` from several threads at once; return what they raised, but for `Busy`."""
    barrier = threading.Barrier(threads)
    failures: list[BaseException] = []

    def work() -> None:
        barrier.wait()
        for _ in range(2_000):
            try:
                use()
            except chronicle.Busy:
                time.sleep(0)
            except BaseException as error:
                failures.append(error)
                return

    made = [threading.Thread(target=work) for _ in range(threads)]
    for thread in made:
        thread.start()
    for thread in made:
        thread.join()
    return failures


def test_a_writer_hammered_by_threads_is_busy_or_works_and_never_corrupt(path: Path):
    said: list[int] = []
    array = trades(50)

    def use() -> None:
        said.append(writer.append(1, b"x" * 100))
        if len(said) % 10 == 0:
            said.extend(range(first := writer.append_many(array, type_id=Trade), first + 50))
        if len(said) % 100 == 0:
            writer.flush()

    with publisher(path) as writer:
        assert hammer(use) == []
    assert sorted(said) == list(range(1, len(said) + 1))
    report = chronicle.verify(path)
    assert report["damage"] == []
    assert report["records"] == len(said)


def test_a_reader_hammered_by_threads_gives_each_message_once(path: Path):
    got: list[int] = []

    def use() -> None:
        if (message := reader.next()) is not None:
            got.append(message.seq)
        reader.wait(0)
        reader.commit()

    with publisher(path) as writer, subscriber(path) as reader:
        fill(writer, 5_000)
        assert hammer(use) == []
        got += seqs(reader)
    assert sorted(got) == list(range(1, 5_001))


def test_a_reader_that_is_sought_closed_and_batched_by_threads_survives(path: Path):
    with publisher(path, schema=[Trade]) as writer:
        writer.append_many(trades(5_000))
        reader = subscriber(path)
        turn = iter(range(1 << 30))

        def use() -> None:
            match next(turn) % 7:
                case 0:
                    reader.seek(1 + next(turn) % 5_000)
                case 1:
                    assert reader.next_seq >= 1
                case 2:
                    assert reader.position
                case _:
                    batch = reader.read_batch(count_max=10)
                    assert (batch["price"][1:] - batch["price"][:-1] == 100).all()

        failures = hammer(use)
        assert failures == []
        reader.close()


def test_a_fanin_hammered_by_threads_gives_each_message_once(folder: Path):
    paths = [folder / str(n) for n in range(3)]
    for path in paths:
        with publisher(path) as writer:
            fill(writer, 2_000)
    got: list[tuple[int | None, int]] = []

    def use() -> None:
        if (message := fanin.next()) is not None:
            got.append((message.source, message.seq))
        fanin.commit()
        fanin.wait(0)

    with chronicle.FanInReader(subscriber(path) for path in paths) as fanin:
        assert hammer(use) == []
        got += [(m.source, m.seq) for m in fanin]
    assert sorted(got) == [(s, n) for s in range(3) for n in range(1, 2_001)]


def test_a_call_during_another_threads_call_is_busy(path: Path):
    """`verify`-like long calls let go of the lock, so a second thread does get in between."""
    with publisher(path, segment_bytes=1 << 24) as writer:
        caught: list[chronicle.Busy] = []
        over = threading.Event()

        def poke() -> None:
            while not over.is_set():
                try:
                    assert writer.next_seq
                except chronicle.Busy as error:
                    caught.append(error)

        with running(poke):
            array = trades(200_000)
            for _ in range(200):
                try:
                    writer.append_many(array, type_id=Trade)
                except chronicle.Busy:
                    continue
                if caught:
                    break
                chronicle.apply_retention(path, bytes_max=1)
            over.set()
    assert caught
    assert "writer is in use by another thread" in str(caught[0])


# --- Signals ---

WAITS = {
    "reader": "subscriber(path, wait=args[1]).wait()",
    "reader with a timeout": "subscriber(path, wait=args[1]).wait(1e6)",
    "fanin": "chronicle.FanInReader([subscriber(path)], wait=args[1]).wait()",
    "fanin of two": "chronicle.FanInReader([subscriber(path), subscriber(path, 'b')]).wait()",
    "fanin of nothing": "chronicle.FanInReader(wait=args[1]).wait()",
    "channel": "ends = chronicle.channel(1); ends[0].send(1); ends[0].send(2, timeout=1e6)",
    "async for": "import asyncio; asyncio.run(take(subscriber(path, wait=args[1])))",
}


@pytest.mark.parametrize("wait", ["spin", "hybrid", "sleep"])
@pytest.mark.parametrize("kind", WAITS)
def test_ctrl_c_ends_a_wait(path: Path, kind: str, wait: str):
    with publisher(path):
        with Child(
            f"""
            async def take(reader):
                async for message in reader:
                    pass
            path = Path(args[0])
            say("waiting")
            try:
                {WAITS[kind]}
            except KeyboardInterrupt:
                say("interrupted")
            """,
            path,
            wait,
        ) as child:
            child.expect("waiting")
            time.sleep(0.1)
            child.signal(signal.SIGINT)
            child.expect("interrupted")
            assert child.finish() == []


def test_a_signal_whose_handler_returns_does_not_end_a_wait(path: Path):
    lines = run_python(
        """
        import signal, threading
        path = Path(args[0])
        ran = []
        signal.signal(signal.SIGALRM, lambda *_: ran.append(1))
        with publisher(path) as writer, subscriber(path, wait="sleep") as reader:
            def late():
                while len(ran) < 5:
                    time.sleep(0.001)
                writer.append(1, b"x")
            signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
            thread = threading.Thread(target=late)
            thread.start()
            say(reader.wait(60))
            signal.setitimer(signal.ITIMER_REAL, 0)
            thread.join()
            reader.next()
            before = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            say(reader.wait(0.04), time.monotonic() - before >= 0.04)
        """,
        path,
    )
    assert lines == ["True", "False True"]


# --- Forks ---

FORK = """
path = Path(args[0])
def in_child(body):
    child = os.fork()
    if child == 0:
        try:
            body()
            os._exit(0)
        except BaseException as error:
            say("child:", type(error).__name__, error)
            os._exit(1)
    say("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_cannot_write_with_its_parents_writer(path: Path):
    lines = run_python(
        FORK
        + """
writer = publisher(path)
fill(writer, 3)
def body():
    import numpy as np
    for use in (
        lambda: writer.append(1, b"from the child"),
        lambda: writer.append_many(trades(2), type_id=Trade),
        lambda: writer.flush(),
        lambda: writer.append_mixed(
            b"x", np.zeros(1, "u8"), np.ones(1, "u4"), np.ones(1, "u2")
        ),
    ):
        try:
            use()
        except chronicle.Forked as error:
            say(error.category)
    writer.close()
in_child(body)
say(writer.append(1, b"from the parent"))
writer.close()
say(chronicle.verify(path)["records"])
""",
        path,
    )
    assert lines == ["error"] * 4 + ["exit 0", "4", "4"]


def test_a_child_forked_while_a_thread_was_writing_is_told_that_it_was_forked(path: Path):
    lines = run_python(
        FORK
        + """
import sys, threading, time
# The thread cannot end its call before the fork, once it was seen in it.
sys.setswitchinterval(100)
writer = publisher(path, segment_bytes=1 << 26)
many = trades(1_000_000)
thread = threading.Thread(target=lambda: writer.append_many(many, type_id=Trade))
def is_busy():
    try:
        return not writer.next_seq
    except chronicle.Busy:
        return True
thread.start()
while not is_busy():
    assert thread.is_alive(), "never seen at it"
    time.sleep(0)
def body():
    for use in (lambda: writer.append(1, b"x"), lambda: writer.next_seq):
        try:
            use()
        except chronicle.Forked as error:
            say(error.category)
    writer.close()
in_child(body)
thread.join()
say(writer.next_seq)
writer.close()
""",
        path,
    )
    assert lines == ["error", "error", "exit 0", "1000001"]


def test_a_forked_child_does_not_hold_its_parents_locks(path: Path):
    with Child(
        FORK
        + """
writer, reader = publisher(path), subscriber(path, "me")
child = os.fork()
if child == 0:
    hear()
    os._exit(0)
writer.close()
reader.close()
publisher(path).close()
subscriber(path, "me").close()
say("reopened")
os.waitpid(child, 0)
""",
        path,
    ) as child:
        child.expect("reopened")
        child.tell()
        assert child.finish() == []


def test_a_forked_child_that_exits_leaves_its_parents_locks_alone(path: Path):
    lines = run_python(
        FORK
        + """
writer, reader = publisher(path), subscriber(path, "me")
in_child(lambda: (writer.close(), reader.close()))
in_child(lambda: None)
for again in (publisher, lambda p: subscriber(p, "me")):
    try:
        again(path)
    except chronicle.ChronicleError as error:
        say(type(error).__name__, error.pid == os.getpid())
say(writer.append(1, b"x"), reader.next().seq)
""",
        path,
    )
    assert lines == ["exit 0", "exit 0", "WriterActive True", "ReaderActive True", "1 1"]


def test_a_forked_childs_copy_of_a_reader_never_moves_its_parents_cursor(path: Path):
    lines = run_python(
        FORK
        + """
with publisher(path) as writer, subscriber(path, "me") as reader:
    fill(writer, 10)
    next(iter(reader))
    reader.commit()
    def body():
        try:
            list(reader)
            reader.commit()
        except chronicle.Forked:
            pass
    in_child(body)
with subscriber(path, "me") as reader:
    say(reader.next_seq)
""",
        path,
    )
    assert lines == ["exit 0", "2"]


def test_a_forked_child_may_open_queues_of_its_own(path: Path, folder: Path):
    lines = run_python(
        FORK
        + """
with publisher(path) as writer, subscriber(path, "me") as reader, chronicle.Provisioner() as p:
    p.attach(writer)
    fill(writer, 10)
    def body():
        with subscriber(path, "child") as mine:
            say(len(list(mine)))
            mine.commit()
        with chronicle.Provisioner() as own:
            with publisher(path.parent / "child", provisioner=own) as mine:
                fill(mine, 300, size=1000)
        p.close()
    in_child(body)
    say(len(list(reader)))
say(chronicle.verify(path.parent / "child")["records"])
""",
        path,
    )
    assert lines == ["10", "exit 0", "10", "300"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_workers_read_what_the_parent_writes(path: Path, method: str):
    lines = run_python(
        """
        import multiprocessing, warnings
        from tests.unit.test_threads import read_all_of
        warnings.simplefilter("ignore")
        path = Path(args[0])
        context = multiprocessing.get_context(args[1])
        with publisher(path) as writer:
            fill(writer, 100, size=2000)
            with context.Pool(2) as pool:
                say(*pool.starmap(read_all_of, [(path, "a"), (path, "b")]))
            say(writer.append(1, b"x"))
        """,
        path,
        method,
    )
    assert lines == ["100 100", "101"]


def read_all_of(path: Path, name: str) -> int:
    with subscriber(path, name) as reader:
        return len(list(reader))


# --- The end of the interpreter ---

ENDS = {
    "open objects": """
        writer, reader = publisher(path), subscriber(path)
        fanin = chronicle.FanInReader([subscriber(path, "two")])
        fill(writer, 10)
        kept = [m.payload for m in reader] + [reader, fanin]
        """,
    "provisioner": """
        provisioner = chronicle.Provisioner()
        writer = publisher(path, provisioner=provisioner, flush_interval=0.0001, retention_bytes=1)
        reader = subscriber(path, provisioner=provisioner)
        fill(writer, 300, size=1000)
        """,
    "waiting daemon thread": """
        import threading
        writer, reader = publisher(path), subscriber(path, wait=args[1])
        threading.Thread(target=reader.wait, daemon=True).start()
        time.sleep(0.05)
        """,
    "daemon threads at work": """
        import threading
        writer, reader = publisher(path), subscriber(path)
        def write():
            while True:
                writer.append(1, b"x" * 100)
        def read():
            while True:
                reader.wait()
                for message in reader:
                    bytes(message.payload)
        threading.Thread(target=write, daemon=True).start()
        threading.Thread(target=read, daemon=True).start()
        time.sleep(0.05)
        """,
    "cycle through a channel": """
        tx, rx = chronicle.channel(4)
        tx.send([tx, rx, subscriber(path) if path.exists() else publisher(path)])
        """,
    "an exception that holds everything": """
        import sys
        def fail():
            writer, reader = publisher(path), subscriber(path)
            fill(writer, 1)
            view = next(iter(reader)).payload
            raise ValueError(view)
        try:
            fail()
        except ValueError as error:
            sys.kept = error
        """,
}


@pytest.mark.parametrize("wait", ["spin", "sleep"])
@pytest.mark.parametrize("kind", ENDS)
def test_the_interpreter_ends_cleanly_with(path: Path, kind: str, wait: str):
    assert run_python("path = Path(args[0])\n" + dedent(ENDS[kind]), path, wait) == []
    # Whatever was open, the queue is free.
    with publisher(path) as writer, subscriber(path, "after", start="latest") as reader:
        made = fill(writer, 1)
        assert payloads(reader) == made


def test_a_thread_may_end_with_a_reader_of_its_own(path: Path):
    with publisher(path) as writer:
        made = fill(writer, 3)
        got: list[bytes] = []

        def work() -> None:
            got.extend(payloads(subscriber(path, "mine")))

        with running(work):
            pass
        assert got == made
        subscriber(path, "mine").close()


def test_subinterpreters_are_refused_or_work(path: Path):
    lines = run_python(
        """
        try:
            import _xxsubinterpreters as interpreters
        except ImportError:
            import _interpreters as interpreters
        path = Path(args[0])
        with publisher(path) as writer:
            fill(writer, 1)
            number = interpreters.create()
            try:
                interpreters.run_string(number, f'''
        import chronicle
        reader = chronicle.Queue.open_subscriber({str(path)!r}, "sub")
        assert reader.next().seq == 1
        ''')
            except Exception as error:
                say("refused", "ImportError" in str(error) or "interpreter" in str(error))
            else:
                say("works")
            interpreters.destroy(number)
            say(writer.append(1, b"x"))
        """,
        path,
    )
    assert lines[0] in ("works", "refused True")
    assert lines[1:] == ["2"]
