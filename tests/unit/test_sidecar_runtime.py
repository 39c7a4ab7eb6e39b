"""The sidecar's thread: start, stop, the user's tasks, timers and connections, and its death."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from pathlib import Path

import chronicle
import pytest
from chronicle.sidecar import Backoff, Service, Stage, State, affinity
from chronicle.sidecar.workers import in_worker

from tests.queue_support import PATIENCE_S, Child, run_python
from tests.sidecar_support import eventually

QUICK = Backoff(first_s=0.001, max_s=0.01)


def test_tasks_and_timers_run_on_a_thread_with_the_sidecars_name():
    ticks, names, tasks = [], [], []
    sidecar = chronicle.Sidecar()

    @sidecar.every(0.001)
    def tick():
        ticks.append(threading.current_thread().name)

    @sidecar.task
    async def once():
        names.append(Path("/proc/thread-self/comm").read_text().strip())

    with sidecar:
        assert sidecar.alive

        @sidecar.every(0.001, name="later")
        async def later():
            tasks.append(1)

        eventually(lambda: len(ticks) > 3 and len(tasks) > 3 and names)
        assert sidecar.healthy, sidecar.health()
    assert set(ticks) == {"chr-sidecar"}
    assert names == ["chr-sidecar"]
    assert not sidecar.alive
    states = {name.rpartition(".")[2]: h.state for name, h in sidecar.health().items()}
    assert states == {"tick": State.STOPPED, "once": State.FINISHED, "later": State.STOPPED}
    assert not any(thread.name.startswith("chr-") for thread in threading.enumerate())


def test_a_task_that_raises_does_not_disturb_the_others(caplog):
    calls = {"bad": 0, "good": 0}
    with caplog.at_level(logging.CRITICAL), chronicle.Sidecar(backoff=QUICK) as sidecar:

        @sidecar.every(0.001, name="bad")
        def bad():
            calls["bad"] += 1
            raise ValueError("always")

        @sidecar.every(0.001, name="good")
        def good():
            calls["good"] += 1

        eventually(lambda: calls["bad"] > 3 and calls["good"] > 3)
        eventually(lambda: sidecar.health()["bad"].restarts >= 3)
        assert sidecar.health()["bad"].last_error == "ValueError: always"
        assert sidecar.health()["good"].restarts == 0
        assert sidecar.health()["good"].healthy


def test_run_and_call_soon_work_from_other_threads_and_refuse_after_the_end(caplog):
    async def answer():
        await asyncio.sleep(0)
        return 42

    sidecar = chronicle.Sidecar()
    with pytest.raises(chronicle.Closed, match="not started"):
        sidecar.run(answer())
    with sidecar:
        assert sidecar.run(answer()).result(PATIENCE_S) == 42
        called = threading.Event()
        sidecar.call_soon(called.set)
        assert called.wait(PATIENCE_S)
        with caplog.at_level(logging.ERROR, logger="chronicle.sidecar"):
            sidecar.call_soon(lambda: 1 / 0)
            eventually(lambda: "ZeroDivisionError" in caplog.text)
    with pytest.raises(chronicle.Closed):
        sidecar.run(answer())
    with pytest.raises(chronicle.Closed):
        sidecar.call_soon(called.set)
    with pytest.raises(chronicle.Closed):
        sidecar.start()
    with pytest.raises(chronicle.Closed):
        sidecar.every(1.0)(lambda: None)


def test_stop_twice_and_before_start_is_fine():
    sidecar = chronicle.Sidecar()
    assert sidecar.stop().clean
    sidecar = chronicle.Sidecar().start()
    assert sidecar.start() is sidecar
    first = sidecar.stop()
    assert first.clean
    assert sidecar.stop() is first


def test_stop_from_two_threads_at_once_gives_both_the_same_report():
    sidecar = chronicle.Sidecar().start()
    reports = []
    threads = [threading.Thread(target=lambda: reports.append(sidecar.stop())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(reports) == 4
    assert all(report is reports[0] for report in reports)


def test_a_service_may_add_services_and_ask_for_the_end_but_not_wait_for_it(caplog):
    sidecar = chronicle.Sidecar()
    failures = []
    closed = threading.Event()
    sidecar.close_at_stop(closed.set)

    @sidecar.task
    async def boss():
        sidecar.task(asyncio.Event().wait, name="child")
        try:
            sidecar.stop()
        except chronicle.BadArgument as error:
            failures.append(str(error))
        sidecar.request_stop()

    sidecar.start()
    assert closed.wait(PATIENCE_S)
    assert sidecar.stop().clean
    assert failures == ["stop() was called on the sidecar's own thread; call request_stop() there"]
    assert sidecar.health()["child"].state is State.STOPPED


def test_if_the_sidecars_thread_dies_it_says_so_and_stop_still_does_the_rest(caplog):
    finished = []
    sidecar = chronicle.Sidecar()

    async def finish():
        finished.append(await in_worker(None, lambda: threading.current_thread().name))

    sidecar.add_service(Service("x", asyncio.Event().wait, Stage.HOT, finish))

    def die():
        raise SystemExit("enough")

    with caplog.at_level(logging.CRITICAL, logger="chronicle.sidecar"):
        sidecar.start()
        sidecar.call_soon(die)
        eventually(lambda: not sidecar.alive)
        assert "hot threads run on without it" in caplog.text
        assert isinstance(sidecar.died, SystemExit)
        assert not sidecar.healthy
        with pytest.raises(chronicle.Closed):
            sidecar.call_soon(die)
        report = sidecar.stop()
    assert report.unfinished == ("sidecar: its thread has died",)
    assert len(finished) == 1


def test_a_loop_that_is_stuck_does_not_keep_stop_from_doing_the_rest(caplog):
    finished = []
    let_go = threading.Event()
    sidecar = chronicle.Sidecar(shutdown_timeout_s=0.05)

    async def finish():
        finished.append(1)

    sidecar.add_service(Service("x", asyncio.Event().wait, Stage.HOT, finish))
    sidecar.start()
    sidecar.call_soon(let_go.wait, PATIENCE_S)
    with caplog.at_level(logging.CRITICAL, logger="chronicle.sidecar"):
        report = sidecar.stop()
    assert report.unfinished[0] == "sidecar: its loop is stuck"
    assert finished == [1]
    caplog.clear()
    let_go.set()


def test_wrong_arguments_are_refused_with_what_would_be_right():
    sidecar = chronicle.Sidecar()
    with pytest.raises(chronicle.BadArgument, match="an async def function"):
        sidecar.task(lambda: None)
    with pytest.raises(chronicle.BadArgument, match="seconds above 0"):
        sidecar.every(0)
    with pytest.raises(chronicle.BadArgument, match="seconds above 0"):
        chronicle.Sidecar(shutdown_timeout_s=0)
    sidecar.task(asyncio.Event().wait, name="x")
    with pytest.raises(chronicle.BadArgument, match="pass another name="):
        sidecar.task(asyncio.Event().wait, name="x")


# --- Connections ---


def test_a_connection_comes_back_after_its_peer_has_closed_it():
    lines = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sidecar = chronicle.Sidecar(backoff=QUICK)

        @sidecar.connect("127.0.0.1", port)
        async def session(reader, writer):
            writer.write(b"hello\n")
            lines.append(await reader.readline())
            if len(lines) == 2:
                raise ValueError("a session may fail")

        name = f"127.0.0.1:{port}"
        with sidecar:
            for number in range(3):
                peer, _ = server.accept()
                with peer:
                    assert peer.recv(6) == b"hello\n"
                    peer.sendall(b"line %d\n" % number)
                    assert peer.recv(1) == b""
            eventually(lambda: sidecar.health()[name].restarts >= 2)
        assert lines == [b"line 0\n", b"line 1\n", b"line 2\n"]
        assert sidecar.health()[name].last_error == "ValueError: a session may fail"


def test_a_connection_is_tried_again_until_somebody_listens(caplog):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    connected = threading.Event()

    async def session(reader, writer):
        connected.set()
        await reader.read()

    with chronicle.Sidecar(backoff=QUICK) as sidecar:
        connection = sidecar.connect("127.0.0.1", port, session, name="feed")
        with pytest.raises(chronicle.BadArgument, match="has its session already"):
            connection(session)
        eventually(lambda: sidecar.health()["feed"].restarts >= 2)
        assert not connection.connected
        with socket.create_server(("127.0.0.1", port)):
            assert connected.wait(PATIENCE_S)
            eventually(lambda: connection.connected)
        assert connection.connects == 1
    assert not connection.connected
    assert "Connect call failed" in caplog.text
    assert not any(record.exc_info for record in caplog.records)


# --- Where its threads run ---


def test_helper_threads_keep_off_the_cores_of_hot_threads():
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    with chronicle.Sidecar() as sidecar, chronicle.Provisioner():
        # A native thread names itself once it runs: the sidecar's own and the provisioner's.
        eventually(lambda: len(list(affinity.helper_threads())) >= 2)
        sidecar.keep_off({cores[0]})
        allowed = {t: os.sched_getaffinity(t) for t in affinity.helper_threads()}
        assert len(allowed) >= 2
        assert all(found == set(cores[1:]) for found in allowed.values())

        async def worker():
            return await in_worker(None, lambda: os.sched_getaffinity(0))

        # New threads inherit it.
        assert sidecar.run(worker()).result(PATIENCE_S) == set(cores[1:])
        sidecar.keep_off(cores)
        assert sidecar.run(worker()).result(PATIENCE_S) == set(cores)
    assert os.sched_getaffinity(0) == set(cores)


# --- Processes ---

SERVING = """
    import asyncio, logging
    logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
    sidecar = chronicle.Sidecar()

    @sidecar.task
    async def ready():
        say("ready")

    async def finish():
        say("finishing")
        if args[0] == "slow":
            await asyncio.sleep(1000)

    from chronicle.sidecar import Service, Stage
    sidecar.add_service(Service("x", asyncio.Event().wait, Stage.MIRROR, finish))
    report = sidecar.serve()
    say("clean" if report.clean else report.unfinished)
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_leads_to_the_ordered_shutdown(number):
    import signal

    with Child(SERVING, "quick") as child:
        child.expect("ready")
        child.signal(getattr(signal, number))
        child.expect(f"WARNING {number}: shutting down; once more to end at once")
        assert child.finish() == ["finishing", "clean"]


def test_a_second_signal_ends_the_process_at_once():
    import signal

    with Child(SERVING, "slow") as child:
        child.expect("ready")
        child.signal(signal.SIGTERM)
        child.hear()
        child.expect("finishing")
        child.signal(signal.SIGTERM)
        assert child.process.wait(PATIENCE_S) == 128 + signal.SIGTERM


def test_the_end_of_the_interpreter_stops_a_sidecar_in_order():
    lines = run_python(
        """
        import asyncio
        from chronicle.sidecar import Service, Stage
        from chronicle.sidecar.workers import in_worker
        sidecar = chronicle.Sidecar().start()

        async def finish():
            await in_worker(None, say, "finishing")

        sidecar.add_service(Service("x", asyncio.Event().wait, Stage.MIRROR, finish))
        say("end of main")
        """
    )
    assert lines == ["end of main", "finishing"]


def test_a_forked_child_leaves_its_parents_sidecar_alone():
    lines = run_python(
        """
        import warnings
        # Python 3.12 warns of any fork with threads; this one is about what follows.
        warnings.simplefilter("ignore", DeprecationWarning)
        sidecar = chronicle.Sidecar().start()
        child = os.fork()
        if child == 0:
            assert sidecar.stop().clean
            os._exit(0)
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        say(sidecar.alive, sidecar.stop().clean)
        """
    )
    assert lines == ["0", "True True"]


def test_serve_is_for_the_main_thread():
    failures = []

    def work():
        try:
            chronicle.Sidecar().serve()
        except chronicle.BadArgument as error:
            failures.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE_S)
    assert failures == ["serve() handles signals, which only the main thread can; call it there"]
