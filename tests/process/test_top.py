"""`chronicle top` as a process: on a bus that lives and dies, on a terminal, in a browser."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from chronicle.cli.top import address, interval
from chronicle.top import Collector
from chronicle.top.serving import TopServer

from tests.kernel_trace import missing
from tests.queue_support import PATIENCE_S, Child, publisher, segment_file
from tests.sidecar_support import eventually

ROOT = Path(__file__).resolve().parents[2]
IS_FULL = os.environ.get("CHRONICLE_FIRE") == "full"
TOP = [sys.executable, "-m", "chronicle.cli", "top"]

OWNER = """
import chronicle, sys
from pathlib import Path
from chronicle.bus import Bus
from chronicle.hot import CountersFile
bus, name = sys.argv[1:]
endpoint = Bus(bus).open_endpoint(name, valid_s=86_400)
counters = CountersFile.create(endpoint.path / "COUNTERS")
with chronicle.Sidecar() as sidecar:
    writer = chronicle.Queue.open_publisher(endpoint.path / "out", segment_bytes=1 << 16)
    reader = chronicle.Queue.open_subscriber(endpoint.path / "out", "hot")
    hot = chronicle.HotThread(
        lambda message: None, readers=[reader], name="echo", wait="sleep", counters_file=counters
    )
    sidecar.attach(hot)
    sidecar.publish_counters(counters, interval_s=0.05)
    for number in range(100):
        writer.append(1, b"x" * 40)
    while hot.status.messages < 100:
        pass
    endpoint.ready(["out"])
    say("ready")
    hear()
endpoint.close()
"""


def once(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TOP, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_S
    )


def document(bus: Path) -> dict[str, Any]:
    run = once(bus, "--once", "--json", "--interval", "0.05")
    assert (run.returncode, run.stderr) == (0, "")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_a_process_that_lives_is_killed_and_comes_back(folder: Path) -> None:
    with Child(OWNER, folder, "orders/alpha") as owner:
        owner.expect("ready")
        found = document(folder)
        (process,), (thread,), (queue,) = found["processes"], found["threads"], found["queues"]
        assert (process["state"], process["pid"], process["ready"]) == ("alive", owner.pid, True)
        assert (thread["name"], thread["counts"]["messages"]) == ("echo", 100)
        assert (queue["next_seq"], queue["writer_pid"]) == (101, owner.pid)
        assert [(r["name"], r["live"]) for r in queue["readers"]] == [("hot", True)]
        owner.kill()
    found = document(folder)
    (process,), (queue,) = found["processes"], found["queues"]
    assert (process["state"], process["reason"]) == ("dead", "lock free")
    assert not queue["writer_live"]
    assert [reader["live"] for reader in queue["readers"]] == [False]
    text = once(folder, "--once", "--interval", "0.05")
    assert text.returncode == 0
    assert "orders/alpha is dead" in text.stdout.splitlines()[0]
    with Child(OWNER, folder, "orders/alpha") as owner:
        owner.expect("ready")
        (process,) = document(folder)["processes"]
        assert (process["state"], process["epoch"]) == ("alive", 2)
        owner.tell()
        owner.finish()
    assert document(folder)["processes"][0]["state"] in ("alive", "dead", "absent")


def test_a_process_that_is_stopped_is_stalled_in_the_events(folder: Path) -> None:
    from chronicle.top.watch import Watch

    with Child(OWNER.replace("86_400", "0.5"), folder, "alpha") as owner:
        owner.expect("ready")
        collector, watch = Collector(folder), Watch()
        watch.add(collector.look())
        owner.kill()
        eventually(lambda: collector.look().processes[0].state == "dead", "the death")
        view = watch.add(collector.look())
    codes = {(event.kind, event.code) for event in view.events}
    assert ("process", "dead") in codes
    assert ("queue", "writer-gone") in codes
    assert ("queue", "reader-gone") in codes


def test_files_that_are_cut_short_while_they_are_looked_at_kill_nobody(folder: Path) -> None:
    with publisher(folder / "q") as writer:
        for _ in range(800):
            writer.append(1, b"x" * 40)
    from chronicle.hot import CountersFile

    CountersFile.create(folder / "COUNTERS").close()
    files = [segment_file(folder / "q"), folder / "q" / "control", folder / "COUNTERS"]
    whole = {file: file.read_bytes() for file in files}
    looking = """
import sys
from pathlib import Path
from chronicle.top import Collector
from chronicle.top.messages import last_lines
from chronicle.errors import ChronicleError
collector = Collector(sys.argv[1])
say("looking")
looks = 0
while looks < int(sys.argv[2]):
    collector.look()
    try:
        last_lines(Path(sys.argv[1], "q"), 20)
    except (ChronicleError, OSError):
        pass
    looks += 1
say("done")
"""
    with Child(looking, folder, 2_000 if IS_FULL else 300) as child:
        child.expect("looking")
        done = threading.Event()

        def cut() -> None:
            while not done.is_set():
                for file, data in whole.items():
                    os.truncate(file, 100)
                    os.truncate(file, 0)
                    with file.open("r+b") as stream:
                        stream.write(data)

        cutter = threading.Thread(target=cut)
        cutter.start()
        try:
            child.expect("done")
        finally:
            done.set()
            cutter.join()
        child.finish()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nowhere", "--once"], 1, "no such directory"),
        ([".", "--json"], 1, "add --once"),
        ([".", "--interval", "0"], 2, "not an interval"),
        ([".", "--once", "--serve"], 2, "not allowed with"),
        ([".", "--serve", "host"], 2, "not an address"),
        ([".", "--serve", "127.0.0.1:70000"], 2, "not an address"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: list[str], code: int, text: str) -> None:
    run = once(*arguments)
    assert (run.returncode, run.stdout) == (code, "")
    assert text in run.stderr


def test_without_a_terminal_it_says_what_to_use_instead_of_drawing(folder: Path) -> None:
    run = once(folder)
    assert (run.returncode, run.stdout) == (1, "")
    assert "needs a terminal; use --once" in run.stderr
    assert "\x1b" not in run.stderr


@pytest.mark.parametrize("kind", ["dumb", ""])
def test_on_a_terminal_that_cannot_be_drawn_on_it_says_so(folder: Path, kind: str) -> None:
    ours, theirs = pty.openpty()
    try:
        run = subprocess.run(
            [*TOP, str(folder)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": kind},
            timeout=PATIENCE_S,
        )
        os.close(theirs)
        drawn = os.read(ours, 1 << 16)
    finally:
        os.close(ours)
    assert run.returncode == 1
    assert b"cannot draw on this terminal" in drawn
    assert b"\x1b" not in drawn


@pytest.mark.parametrize("name", ["textual", "textual_serve"])
def test_without_the_extra_it_says_what_to_install_and_once_works(folder: Path, name: str) -> None:
    serve = ", '--serve'" if name == "textual_serve" else ""
    program = (
        f"import sys; sys.modules[{name!r}] = None\n"
        "from chronicle.cli import main\n"
        f"print(main(['top', {str(folder)!r}, '--once', '--interval', '0.05']))\n"
        f"print(main(['top', {str(folder)!r}{serve}]))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert [line for line in run.stdout.splitlines() if line.isdigit()] == ["0", "1"]
    assert "pip install 'chronicle-python[top]'" in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_intervals_and_addresses() -> None:
    assert (interval("0.05"), interval("10")) == (0.05, 10.0)
    assert address("[::1]:9000") == ("::1", 9000)
    assert address("0.0.0.0:80") == ("0.0.0.0", 80)
    assert TopServer(".", 1.0, host="::1", port=80).is_local
    assert not TopServer(".", 1.0, host="0.0.0.0", port=80).is_local
    assert not TopServer(".", 1.0, host="example.org", port=80).is_local


@pytest.mark.parametrize("ending", ["q", signal.SIGTERM, signal.SIGINT])
def test_on_a_terminal_it_draws_and_gives_it_back_at_the_end(
    folder: Path, ending: str | signal.Signals
) -> None:
    publisher(folder / "some-queue").close()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [*TOP, str(folder), "--interval", "0.05"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(theirs)
    drawn = bytearray()

    def take() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(ours, 1 << 16):
                drawn.extend(data)

    taker = threading.Thread(target=take)
    taker.start()
    try:
        eventually(lambda: b"some-queue" in drawn, "the queue on the screen")
        if isinstance(ending, str):
            os.write(ours, ending.encode())
        else:
            process.send_signal(ending)
        expected = 0 if isinstance(ending, str) else 128 + ending
        assert process.wait(PATIENCE_S) == expected
    finally:
        process.kill()
        process.wait()
        taker.join()
        os.close(ours)
    assert b"\x1b[?1049l" in drawn, "the terminal is given back as it was"


# --- In a browser ---


class Served:
    """``chronicle top --serve`` that runs."""

    def __init__(self, bus: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.process = subprocess.Popen(
            [*TOP, str(bus), "--serve", str(self.port), "--interval", "0.05"],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = f"http://127.0.0.1:{self.port}/"
        eventually(self._answers, "the server")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()[1]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def get(self, path: str = "", **headers: str) -> tuple[int, str, Any]:
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), error.headers


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    publisher(folder / "some-queue").close()
    server = Served(folder)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 0
        assert server.process.stderr is not None
        server.process.stderr.close()


def listeners(port: int) -> list[str]:
    """Return the addresses that listen on a port, as the kernel tells."""
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.partition(":")[2], 16) == port:
                found.append(local.partition(":")[0])
    return found


def test_the_browser_sees_the_same_on_loopback_and_nowhere_else(served: Served) -> None:
    assert listeners(served.port) == ["0100007F"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", served.port), 10)
    status, page, headers = served.get()
    assert status == 200
    assert "textual.js" in page
    assert f'data-session-websocket-url="ws://127.0.0.1:{served.port}/ws"' in page
    assert "default-src 'self'" in headers["Content-Security-Policy"]

    async def watch() -> None:
        url = f"ws://127.0.0.1:{served.port}/ws?width=80&height=24"
        origin = {"Origin": f"http://127.0.0.1:{served.port}"}
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(url, headers=origin) as screen:
                drawn = b""
                while b"some-queue" not in drawn:
                    got = await asyncio.wait_for(screen.receive(), PATIENCE_S)
                    assert got.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), got
                    drawn += got.data if isinstance(got.data, bytes) else got.data.encode()
                await screen.send_json(["stdin", "q"])
                while not screen.closed:
                    await asyncio.wait_for(screen.receive(), PATIENCE_S)

    asyncio.run(watch())


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started, as the kernel tells."""
    found = Path("/proc", str(pid), "task", str(pid), "children").read_text()
    return [int(child) for child in found.split()]


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_the_dashboards_of_visitors_end_with_the_server(
    folder: Path, ending: signal.Signals
) -> None:
    publisher(folder / "some-queue").close()
    server = Served(folder)
    dashboards: list[int] = []

    async def visit() -> None:
        url = f"ws://127.0.0.1:{server.port}/ws"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as screen:
            drawn = b""
            while b"some-queue" not in drawn:
                got = await asyncio.wait_for(screen.receive(), PATIENCE_S)
                drawn += got.data if isinstance(got.data, bytes) else got.data.encode()
            dashboards.extend(children_of(server.process.pid))
            server.process.send_signal(ending)
            # Whoever does not read keeps the server from saying more.
            while not screen.closed:
                await asyncio.wait_for(screen.receive(), PATIENCE_S)

    try:
        asyncio.run(visit())
        code = server.process.wait(PATIENCE_S)
        assert code == (0 if ending == signal.SIGTERM else -signal.SIGKILL)
        assert len(dashboards) == 1
        eventually(lambda: not Path("/proc", str(dashboards[0])).exists(), "its end")
    finally:
        server.process.kill()
        server.process.wait()
        assert server.process.stderr is not None
        server.process.stderr.close()


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({"Host": "evil.example"}, "not for this host"),
        ({"Origin": "http://evil.example"}, "asked for by another page"),
        ({"Origin": "null"}, "asked for by another page"),
    ],
)
def test_other_pages_cannot_reach_it_through_the_browser_of_a_visitor(
    served: Served, headers: dict[str, str], text: str
) -> None:
    for path in ("", "ws", "static/js/textual.js"):
        status, answer, _ = served.get(path, **headers)
        assert (status, text in answer) == (403, True)


@pytest.mark.parametrize(
    ("path", "headers", "code", "text"),
    [
        ("", {"Host": "127.0.0.1:1:2"}, 403, "not for this host"),
        ("", {"Host": "localhost:99999999"}, 403, "not for this host"),
        ("ws?width=99999999&height=24", {}, 403, "no size of a screen"),
        ("ws?width=80&height=-1", {}, 403, "no size of a screen"),
        ("ws?width=x", {}, 403, "no size of a screen"),
        ("static/../../../etc/passwd", {}, 404, "Not Found"),
        ("download/x", {}, 404, "not found"),
    ],
)
def test_what_no_browser_asks_is_refused_in_words(
    served: Served, path: str, headers: dict[str, str], code: int, text: str
) -> None:
    status, answer, _ = served.get(path, **headers)
    assert (status, text in answer) == (code, True), answer


#: Nothing that our own page would send.
NONSENSE = ("no json", "[" * 10_000, "[]", '["stdin", 5]', '["resize", {"width": "x"}]')


def test_visitors_who_talk_nonsense_are_sent_away_and_their_dashboards_end(served: Served) -> None:
    async def visit(session: aiohttp.ClientSession, sent: str) -> None:
        url = f"ws://127.0.0.1:{served.port}/ws?width=80&height=24"
        async with session.ws_connect(url) as screen:
            await asyncio.wait_for(screen.receive(), PATIENCE_S)
            # A size that no screen has is passed over; it would be drawn for minutes.
            await screen.send_json(["resize", {"width": 99_999_999, "height": 24}])
            await screen.send_str(sent)
            while not screen.closed:
                await asyncio.wait_for(screen.receive(), PATIENCE_S)

    async def visit_all() -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(visit(session, sent) for sent in NONSENSE))

    asyncio.run(visit_all())
    eventually(lambda: not children_of(served.process.pid), "the end of the dashboards")
    assert served.get()[0] == 200


def test_no_more_visitors_are_let_in_than_a_machine_bears(folder: Path) -> None:
    async def visit() -> None:
        server = TopServer(folder, 1.0, host="127.0.0.1", port=80)
        there = [asyncio.create_task(asyncio.sleep(PATIENCE_S)) for _ in range(16)]
        server._visitors.update(there)
        async with TestClient(TestServer(await server._make_app())) as late:
            answer = await late.get("/ws")
            assert (answer.status, await answer.text()) == (503, "16 visitors look already")

    asyncio.run(visit())


def test_an_address_that_is_taken_is_told(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = once(folder, "--serve", taken.getsockname()[1])
    assert run.returncode == 1
    assert "address already in use" in run.stderr.casefold()


# --- Nobody is disturbed ---


@pytest.mark.needs_root
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hot_thread_that_is_watched_and_scraped_makes_no_system_call() -> None:
    if (reason := missing()) is not None:
        pytest.skip(f"the kernel's tracing cannot be used: {reason}")
    seconds, rounds = (2, 20) if IS_FULL else (1, 1)
    bench = [sys.executable, str(ROOT / "benches" / "watched.py")]
    sizes = [f"--seconds={seconds}", f"--rounds={rounds}", "--warm-up=1", "--ratio-max=inf"]
    run = subprocess.run([*bench, *sizes], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("clean\n")
