"""The counters file: what one process stores, any other reads."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chronicle
import pytest
from chronicle.errors import BadArgument, DecodeError
from chronicle.hot import Counter, CountersFile, Handler, read_counters
from chronicle.hot.counters import describe
from chronicle.hot.meter import HotStatus
from chronicle.message import MessageBase, i64
from chronicle.sidecar.supervise import Health, State
from chronicle.sidecar.telling import Telling

from tests.sidecar_support import eventually


@chronicle.message(1)
class Tick(MessageBase):
    price: i64


class Tally(Handler):
    ticks: Counter
    total: Counter

    @chronicle.on(Tick)
    def tick(self, tick: Tick) -> None:
        self.ticks.add(1)
        self.total.add(tick.price)


@pytest.fixture
def counters(tmp_path: Path) -> CountersFile:
    return CountersFile.create(tmp_path / "COUNTERS")


def run_some(tmp_path: Path, counters: CountersFile, count: int = 100) -> chronicle.HotThread:
    queue = tmp_path / f"ticks-{time.monotonic_ns()}"
    with chronicle.Queue.open_publisher(queue, segment_bytes=1 << 16) as writer:
        for price in range(count):
            writer.publish(Tick(price=price))
        reader = chronicle.Queue.open_subscriber(queue, "tally")
        hot = chronicle.HotThread(
            Tally(), readers=[reader], wait="sleep", counters_file=counters, meter="full"
        ).start()
        eventually(lambda: hot.counters["ticks"] == count)
    return hot


def test_what_the_file_tells_is_what_the_thread_tells(
    tmp_path: Path, counters: CountersFile
) -> None:
    hot = run_some(tmp_path, counters)
    hot.stop()
    counters.publish({"threads": [describe(hot)]})
    (thread,) = read_counters(counters.path).threads
    status = hot.status
    assert (thread.name, thread.state) == ("Tally", "stopped")
    assert thread.counters == {"ticks": 100, "total": 4950}
    assert thread.words["messages"] == status.messages == 100
    assert {name: getattr(status, name) for name in thread.words} == thread.words
    assert thread.loop_gap == hot.loop_gap
    assert thread.handler_time == hot.handler_time
    assert thread.handler_time.count >= 100
    assert thread.about["guard_seen"] == status.guard_seen


def test_another_process_reads_it_after_its_owner_was_killed(tmp_path: Path) -> None:
    program = f"""
import os, signal, chronicle
from chronicle.hot import CountersFile, Handler
from chronicle.hot.counters import describe
counters = CountersFile.create({str(tmp_path / "COUNTERS")!r})
hot = chronicle.HotThread(lambda message: None, name="gone", counters_file=counters).start()
while hot.status.turns < 1000:
    pass
counters.publish({{"threads": [describe(hot)]}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == -9
    found = read_counters(tmp_path / "COUNTERS")
    assert found.threads[0].name == "gone"
    assert found.threads[0].state == "running"
    assert found.threads[0].words["turns"] >= 1000


def test_each_thread_has_a_block_of_its_own_and_gives_it_back(
    tmp_path: Path, counters: CountersFile
) -> None:
    threads = [run_some(tmp_path, counters, count) for count in (3, 5)]
    counters.publish({"threads": [describe(hot) for hot in threads]})
    found = read_counters(counters.path).threads
    assert [thread.counters["ticks"] for thread in found] == [3, 5]
    assert threads[0].counters_block != threads[1].counters_block
    for hot in threads:
        hot.stop()
    for _ in range(62):
        counters.claim()
    again = run_some(tmp_path, counters, 2)
    assert again.counters == {"ticks": 2, "total": 1}, "the block was emptied"
    counters.claim()
    with pytest.raises(BadArgument, match="no block left"):
        counters.claim()
    again.stop()


def test_an_ended_thread_keeps_its_counts_when_another_has_its_block(
    tmp_path: Path, counters: CountersFile
) -> None:
    ended = run_some(tmp_path, counters, 3)
    ended.stop()
    told = ended.counters, ended.status, ended.loop_gap, ended.handler_time
    for _ in range(63):
        counters.claim()
    other = run_some(tmp_path, counters, 5)
    assert other.counters_block == ended.counters_block
    found = ended.counters, ended.status, ended.loop_gap, ended.handler_time
    assert found == told
    other.stop()
    assert (ended.counters["ticks"], other.counters["ticks"]) == (3, 5)


def test_a_thread_that_never_runs_keeps_no_block(counters: CountersFile) -> None:
    for _ in range(65):
        with pytest.raises(BadArgument):
            chronicle.HotThread(Tally(), counters_file=counters, wait="never")  # type: ignore[arg-type]
        chronicle.HotThread(Tally(), counters_file=counters)


def test_a_new_life_replaces_the_file_and_the_old_view_stays(
    tmp_path: Path, counters: CountersFile
) -> None:
    first = read_counters(counters.path)
    again = CountersFile.create(counters.path)
    counters.publish({"of": "the old one"})
    second = read_counters(again.path)
    assert first.instance != second.instance
    assert "of" not in second.document
    assert [entry.name for entry in tmp_path.iterdir()] == ["COUNTERS"]


def test_a_document_is_whole_whenever_one_looks(counters: CountersFile) -> None:
    for number in range(50):
        counters.publish({"number": number, "text": "x" * (number * 997 % 50_000)})
        assert read_counters(counters.path).document["number"] == number


def test_a_file_has_a_document_as_soon_as_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    rename = Path.rename

    def look_first(self: Path, target: Path) -> Path:
        found.append(read_counters(self).document["at_ns"])
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", look_first)
    CountersFile.create(tmp_path / "COUNTERS").close()
    assert len(found) == 1


def test_a_document_that_was_torn_gives_the_one_before(counters: CountersFile) -> None:
    counters.publish({"number": 1})
    counters.publish({"number": 2})
    data = bytearray(counters.path.read_bytes())
    newest = data.index(b'"number": 2')
    data[newest] ^= 1
    counters.path.write_bytes(data)
    assert read_counters(counters.path).document["number"] == 1


def test_too_long_a_document_is_refused_and_the_last_one_stays(counters: CountersFile) -> None:
    counters.publish({"number": 1})
    with pytest.raises(BadArgument, match="document too long"):
        counters.publish({"text": "x" * 200_000})
    assert read_counters(counters.path).document["number"] == 1


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:-1], id="short"),
        pytest.param(lambda data: b"X" + data[1:], id="magic"),
        pytest.param(lambda data: data[:8] + b"\x02" + data[9:], id="version"),
        pytest.param(lambda data: data[:12] + b"\xff" * 4 + data[16:], id="blocks"),
        pytest.param(lambda data: data[:4096] + bytes(len(data) - 4096), id="no document"),
        pytest.param(lambda data: data[:4096] + b"\xff" * (len(data) - 4096), id="all ones"),
    ],
)
def test_what_is_no_counters_file_is_refused(counters: CountersFile, damage: object) -> None:
    assert callable(damage)
    counters.path.write_bytes(damage(counters.path.read_bytes()))
    with pytest.raises(DecodeError, match="counters file"):
        read_counters(counters.path)


def test_a_document_that_lies_of_blocks_is_not_followed(counters: CountersFile) -> None:
    about = [
        {"block": 10**9, "name": "far", "counters": ["a"]},
        {"block": "4", "name": "text"},
        "nothing",
        {"block": 4, "name": "near", "counters": ["a"] * 100_000},
    ]
    about[3]["counters"] = ["a", "b"]  # type: ignore[index]
    counters.publish({"threads": about})
    found = read_counters(counters.path)
    assert [(t.name, t.state, t.counters) for t in found.threads] == [
        ("near", "new", {"a": 0, "b": 0})
    ]


def test_a_log_record_that_cannot_be_shown_is_told_as_such(counters: CountersFile) -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no text")

    telling = Telling(Crowd(1, 1), counters, interval_s=1.0, log="odd")
    for message, arguments in (("%s", (Odd(),)), ("%d", (Odd(),)), (Odd(), None), ("%d", ("x",))):
        telling._tail.emit(logging.LogRecord("odd", 10, "x.py", 7, message, arguments, None))
    telling.tell()
    texts = [line["text"] for line in read_counters(counters.path).document["log"]]
    assert texts == ["a log record that cannot be shown: x.py:7"] * 3 + ["%d ('x',)"]


def test_of_two_threads_with_one_block_the_later_one_has_it(counters: CountersFile) -> None:
    counters.publish({"threads": [{"block": 4, "name": f"t{number}"} for number in range(4_000)]})
    assert [thread.name for thread in read_counters(counters.path).threads] == ["t3999"]
    crowd = Crowd(1, 1)
    later = SimpleNamespace(**{**vars(crowd.cares[0].thread), "name": "later"})
    crowd.cares.append(SimpleNamespace(thread=later))
    Telling(crowd, counters, interval_s=1.0).tell()
    assert [about["name"] for about in read_counters(counters.path).document["threads"]] == [
        "later"
    ]


def test_a_link_in_the_place_of_the_file_is_not_followed(
    tmp_path: Path, counters: CountersFile
) -> None:
    link = tmp_path / "link"
    link.symlink_to(counters.path)
    with pytest.raises(OSError, match="symbolic links"):
        read_counters(link)


def test_the_sidecar_tells_names_and_health(tmp_path: Path, counters: CountersFile) -> None:
    with chronicle.Sidecar() as sidecar:
        hot = chronicle.HotThread(Tally(), wait="sleep", counters_file=counters)
        sidecar.attach(hot)
        sidecar.publish_counters(counters, interval_s=0.05)
        eventually(lambda: len(read_counters(counters.path).threads) == 1)
        found = read_counters(counters.path)
        assert found.pid == os.getpid()
        assert found.threads[0].state in ("running", "parked")
        assert found.document["services"]["hot Tally"]["state"] == "running"
    assert read_counters(counters.path).threads[0].state == "stopped"


def test_an_interval_that_would_only_burn_time_is_refused(counters: CountersFile) -> None:
    with chronicle.Sidecar() as sidecar, pytest.raises(BadArgument, match="interval_s"):
        sidecar.publish_counters(counters, interval_s=0.0)


def test_a_forked_child_cannot_write_into_the_file_of_its_parent(counters: CountersFile) -> None:
    counters.publish({"of": "the parent"})
    # As another thread that publishes may hold it at that moment: nobody frees it in the child.
    with counters._lock:
        child = os.fork()
        if child == 0:
            try:
                counters.release(counters.place_of(4)[2])
                for use in (counters.claim, lambda: counters.publish({"of": "the child"})):
                    with pytest.raises(chronicle.Forked, match="make one after forking"):
                        use()
                os._exit(7)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert read_counters(counters.path).document["of"] == "the parent"
    counters.publish({"of": "the parent, again"})
    assert read_counters(counters.path).document["of"] == "the parent, again"


def test_the_file_is_for_its_owner_or_for_a_group(tmp_path: Path) -> None:
    CountersFile.create(tmp_path / "own").close()
    CountersFile.create(tmp_path / "shared", group_readable=True).close()
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("own", "shared")]
    assert modes == [0o600, 0o640]


def test_what_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "COUNTERS").mkdir()
    with pytest.raises(IsADirectoryError):
        CountersFile.create(tmp_path / "COUNTERS")
    assert [entry.name for entry in tmp_path.iterdir()] == ["COUNTERS"]


def test_after_its_end_a_file_takes_no_document(counters: CountersFile) -> None:
    counters.close()
    counters.close()
    with pytest.raises(chronicle.Closed, match="make another one"):
        counters.publish({})
    assert read_counters(counters.path).threads == ()


@pytest.mark.parametrize("place", ["pipe", "directory", "socket"])
def test_what_is_no_file_is_refused_and_nobody_waits_for_it(tmp_path: Path, place: str) -> None:
    path = tmp_path / "COUNTERS"
    if place == "pipe":
        os.mkfifo(path)
    elif place == "directory":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    with pytest.raises(OSError, match=r"seek|directory|device"):
        read_counters(path)


class Crowd:
    """A sidecar with more to tell than there is room for."""

    def __init__(self, services: int, names: int) -> None:
        thread = SimpleNamespace(
            name="h",
            core=None,
            counters_block=4,
            settings={},
            failure=None,
            counters=[f"{number:0100}" for number in range(names)],
            status=HotStatus("running"),
        )
        self.cares: Any = [SimpleNamespace(thread=thread)]
        well = Health(State.RUNNING, 0, None, None, "x" * 300, healthy=True)
        sick = Health(State.FAILED, 9, "boom" * 75, None, "x" * 300, healthy=False)
        self._health = {f"service {number}": well for number in range(services)} | {"sick": sick}

    def health(self) -> dict[str, Health]:
        return self._health


@pytest.mark.parametrize(
    ("services", "names", "left_out"),
    [
        (1, 1, None),
        (200, 1, ["log"]),
        (700, 1, ["log", "details of services"]),
        (1_500, 1, ["log", "details of services", "services that work"]),
        (
            *(1, 2_000),
            ["log", "details of services", "services that work", "names of counters"],
        ),
    ],
)
def test_a_process_with_too_much_to_tell_tells_what_matters_most(
    counters: CountersFile, services: int, names: int, left_out: list[str] | None
) -> None:
    telling = Telling(Crowd(services, names), counters, interval_s=1.0, log="crowd", log_lines=200)
    service = telling.service("counters")
    for number in range(200):
        logging.getLogger("crowd").error("%0200d", number)
    telling.tell()
    logging.getLogger("crowd").removeHandler(telling._tail)
    found = read_counters(counters.path)
    assert [thread.name for thread in found.threads] == ["h"]
    assert found.document["services"]["sick"]["state"] == "failed"
    assert found.document.get("left_out") == left_out
    assert (left_out is None) == bool(found.document["log"])
    assert service.detail == (f"too long, left out: {', '.join(left_out)}" if left_out else "")
