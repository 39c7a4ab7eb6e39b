"""Looks at buses that are there: what is told agrees with the core, and nothing can stop a look."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle.bus import Bus
from chronicle.errors import BadArgument
from chronicle.hot import CountersFile
from chronicle.hot.counters import describe
from chronicle.sidecar.telling import LogTail
from chronicle.top import Collector
from chronicle.top.messages import last_lines
from chronicle.top.queues import last_records, look_at_queue

from tests.queue_support import (
    SEGMENT_BYTES,
    Trade,
    fill,
    fill_segments,
    overwrite,
    payload_of,
    publisher,
    segment_file,
    snapshot,
    subscriber,
)
from tests.sidecar_support import eventually


def facts_of(path: Path) -> dict[str, object]:
    """Return what the core says of a queue, by the names of a look."""
    facts = chronicle.inspect(path)
    with subscriber(path, None, start="latest") as reader:
        facts |= {"next_seq": reader.next_seq, "position": reader.position}
    return facts


def assert_agrees(path: Path) -> None:
    found, facts = look_at_queue(path, "q"), facts_of(path)
    assert found.problem == ""
    assert found.segments == len(facts["segments"])  # type: ignore[arg-type]
    same = (
        *("queue_id", "epoch", "writer_live", "writer_pid", "next_seq", "position"),
        *("durable_seq", "segment_bytes", "floor_segment", "tail_segment", "rolls"),
        *("rolls_inline", "recoveries", "cuts", "cut_bytes", "segments_deleted"),
    )
    assert {name: getattr(found, name) for name in same} == {name: facts[name] for name in same}
    readers = [(r["name"], r["live"], r["pid"], r["next_seq"]) for r in facts["readers"]]  # type: ignore[attr-defined]
    assert [(r.name, r.live, r.pid, r.next_seq) for r in found.readers] == readers


def test_a_look_agrees_with_the_core_whatever_was_written(path: Path) -> None:
    chance = random.Random(5)
    with publisher(path, segments_max=64) as writer:
        assert_agrees(path)
        reader = subscriber(path, "a")
        for _ in range(60):
            size = chance.choice((0, 1, 8, 40, 300, 4_000, 30_000))
            fill(writer, chance.choice((1, 2, 50, 700)) if size < 4_000 else 1, size=size)
            if chance.random() < 0.3:
                while reader.next() is not None:
                    pass
                reader.commit()
            if chance.random() < 0.2:
                chronicle.apply_retention(path, bytes_max=4 * SEGMENT_BYTES)
            if chance.random() < 0.2:
                writer.flush()
            assert_agrees(path)
        assert writer.position // SEGMENT_BYTES > 10, "the sizes did not fill segments"
        reader.close()
    assert_agrees(path)


def test_the_last_messages_are_the_last_ones_over_segments(path: Path) -> None:
    with publisher(path) as writer:
        assert last_records(path, 10) == []
        for size in (40, 4_000, 0, 20_000, 8):
            fill(writer, 30, size=size)
            for count in (1, 7, 31, 80):
                found = last_records(path, count, payload_bytes_max=64)
                end = writer.next_seq
                wanted = list(range(max(1, end - count), end))
                # Far back not at any price: only so many segments are gone through.
                assert [record.seq for record in found] == wanted[-len(found) :]
                assert len(found) >= min(count, 16)
            assert found[-1].payload == payload_of(end - 1, size)[:64]
            assert found[-1].payload_bytes == size


def test_lag_and_who_holds_the_oldest_segment(path: Path) -> None:
    with publisher(path) as writer, subscriber(path, "fast") as fast, subscriber(path, "slow"):
        fill_segments(writer, 3)
        while fast.next() is not None:
            pass
        fast.commit()
        fill(writer, 5)
        found = look_at_queue(path, "q")
        lags = {reader.name: reader.lag_messages for reader in found.readers}
        assert lags == {"fast": 5, "slow": writer.next_seq - 1}
        assert found.lag_messages == writer.next_seq - 1
        assert found.held_by == "slow"
        assert found.readers[0].lag_bytes == 5 * 72


def test_messages_are_decoded_by_the_schema_of_the_queue(path: Path) -> None:
    with publisher(path, schema=[Trade]) as writer:
        writer.publish(Trade(price=5, symbol=b"A\x1bB", qty=2))
        writer.append(99, b"hello")
        (one, two) = last_lines(path, 5)
        assert one[2:] == ("Trade", "price=5  symbol=A\\x1bB  qty=2")
        assert two[2:] == ("type 99", "68 65 6c 6c 6f  |hello|")
        (path / "queue.json").write_text("{")
        assert [line[2] for line in last_lines(path, 5)] == ["type 7", "type 99"]


def test_looking_changes_nothing(folder: Path) -> None:
    bus = Bus(folder)
    with bus.open_endpoint("a") as endpoint:
        with publisher(endpoint.path / "q") as writer, subscriber(endpoint.path / "q", "r"):
            CountersFile.create(endpoint.path / "COUNTERS").close()
            fill_segments(writer, 2)
            before = snapshot(folder)
            look = Collector(folder).look()
            last_lines(endpoint.path / "q", 10)
            assert snapshot(folder) == before
            assert [q.name for q in look.queues] == ["a/q"]
            assert look.problems == ()


def test_a_bus_with_an_endpoint_a_hot_thread_and_its_log(folder: Path) -> None:
    endpoint = Bus(folder).open_endpoint("orders/alpha")
    counters = CountersFile.create(endpoint.path / "COUNTERS")
    with chronicle.Sidecar() as sidecar, publisher(endpoint.path / "out") as writer:
        hot = chronicle.HotThread(
            lambda message: None,
            readers=[subscriber(endpoint.path / "out", "hot")],
            name="echo",
            wait="sleep",
            counters_file=counters,
        )
        sidecar.attach(hot)
        sidecar.publish_counters(counters, interval_s=0.05)
        endpoint.ready(["out"])
        fill(writer, 10)
        logging.getLogger("chronicle.hot.echo").warning("seen %s", 10)
        collector = Collector(folder)
        eventually(lambda: collector.look().processes[0].log, "the log")
        eventually(lambda: collector.look().threads[0].count("messages") == 10, "the messages")
        look = collector.look()
    (process,), (thread,) = look.processes, look.threads
    assert (process.name, process.state, process.pid) == ("orders/alpha", "alive", os.getpid())
    assert (process.ready, process.epoch, process.instance) == (True, 1, endpoint.lease.instance)
    assert "hot echo" in [service.name for service in process.services]
    assert process.log[-1].text == "seen 10"
    assert (thread.process, thread.name, thread.guard) == ("orders/alpha", "echo", "off")
    assert (thread.wait, thread.meter) == ("sleep", "loop")
    assert thread.kernel is not None
    endpoint.close()
    (closed,) = Collector(folder).look().processes
    assert closed.state == "alive", "its counters file tells of a process that lives"
    assert closed.reason == ""


def test_a_process_without_a_lease_is_judged_by_its_counters_file(folder: Path) -> None:
    with_counters = CountersFile.create(folder / "COUNTERS")
    (process,) = Collector(folder).look().processes
    assert (process.name, process.state, process.pid) == (".", "alive", os.getpid())
    with_counters.publish({})
    data = bytearray(with_counters.path.read_bytes())
    data[16:24] = struct.pack("<Q", 2**22 + 5)  # Above the highest pid of Linux.
    with_counters.path.write_bytes(data)
    (process,) = Collector(folder).look().processes
    assert (process.state, process.reason) == ("dead", "no such process")
    data[56:57] = b"?"
    with_counters.path.write_bytes(data)
    (process,) = Collector(folder).look().processes
    assert (process.state, process.reason) == ("dead", "another boot")


def test_a_process_that_has_closed_its_endpoint_and_ended_is_absent_and_not_dead(
    folder: Path,
) -> None:
    endpoint = Bus(folder).open_endpoint("orders/alpha")
    counters = CountersFile.create(endpoint.path / "COUNTERS")
    data = bytearray(counters.path.read_bytes())
    data[16:24] = struct.pack("<Q", 2**22 + 5)  # Above the highest pid of Linux.
    counters.path.write_bytes(data)
    endpoint.close()
    (process,) = Collector(folder).look().processes
    assert (process.state, process.reason) == ("absent", "no lease")


def test_what_is_no_directory_is_refused(folder: Path) -> None:
    (folder / "file").touch()
    for name in ("file", "missing"):
        with pytest.raises(BadArgument, match="no such directory"):
            Collector(folder / name)


def test_a_bus_that_vanishes_is_empty(folder: Path) -> None:
    (folder / "bus").mkdir()
    collector = Collector(folder / "bus")
    (folder / "bus").rmdir()
    look = collector.look()
    assert (look.processes, look.threads, look.queues) == ((), (), ())


def test_links_are_not_followed_and_hidden_directories_not_entered(folder: Path) -> None:
    with publisher(folder / "elsewhere" / "q"):
        bus = folder / "bus"
        bus.mkdir()
        (bus / "link").symlink_to(folder / "elsewhere")
        with publisher(bus / ".making" / "q"):
            assert Collector(bus).look().queues == ()


def test_what_is_refused_or_damaged_is_told_and_the_rest_as_ever(folder: Path) -> None:
    (folder / "a").mkdir(0o700)
    (folder / "a" / "LEASE").write_text("{}")
    (folder / "b").mkdir(0o700)
    (folder / "b" / "COUNTERS").write_bytes(b"CHRNCNT1")
    (folder / "bad name").mkdir(0o700)
    (folder / "bad name" / "LOCK").touch()
    (folder / "c" / "control").mkdir(parents=True)
    (folder / "d").mkdir()
    (folder / "d" / "control").write_bytes(b"\0" * 4096)
    with publisher(folder / "e"):
        look = Collector(folder).look()
    assert {p.name: p.state for p in look.processes} == {"a": "refused", "bad name": "refused"}
    assert [path for path, _ in look.problems] == ["b/COUNTERS"]
    assert {q.name: bool(q.problem) for q in look.queues} == {"c": True, "d": True, "e": False}


def test_documents_that_lie_are_not_believed(folder: Path) -> None:
    counters = CountersFile.create(folder / "COUNTERS")
    lies: list[dict[str, Any]] = [
        {"threads": 5, "services": 5, "log": 5, "cpu_s": "much", "at_ns": -1},
        {"threads": [{"block": 4, "name": 5, "core": "x", "kernel": {"faults_minor": "y"}}]},
        {"threads": [{"block": 4, "name": "\x1b[2J", "warnings": [5, None], "settings": 5}]},
        {"services": {"a": 5, "b": {"state": 5, "restarts": "x"}}, "log": [5, {"text": 5}]},
        {"cpu_s": float("inf"), "log": [{"text": "\x1b[2J", "number": 1 << 80, "at_ns": 1e300}]},
    ]
    for lie in lies:
        counters.publish(lie)
        look = Collector(folder).look()
        texts = [t.name for t in look.threads] + [
            line.text for p in look.processes for line in p.log
        ]
        assert all(text.isprintable() for text in texts)
        json.dumps([p.cpu_s for p in look.processes], allow_nan=False)


@pytest.mark.parametrize("file", ["control", "queue.json", "segment", "cursor", "COUNTERS"])
def test_no_byte_of_a_file_can_stop_a_look(folder: Path, file: str) -> None:
    with publisher(folder / "q", schema=[Trade]) as writer, subscriber(folder / "q", "r"):
        for n in range(900):
            writer.publish(Trade(price=n, symbol=b"A", qty=n))
        counters = CountersFile.create(folder / "COUNTERS")
        with chronicle.HotThread(lambda message: None, name="x", counters_file=counters) as hot:
            counters.publish({"threads": [describe(hot)]})
    place = {
        "segment": segment_file(folder / "q"),
        "cursor": folder / "q" / "readers" / "r.cursor",
        "COUNTERS": folder / "COUNTERS",
    }.get(file, folder / "q" / file)
    whole = place.read_bytes()
    chance = random.Random(7)
    collector = Collector(folder)
    for _ in range(150):
        data = bytearray(whole)
        # Where the fields stand, more often than elsewhere.
        reach = chance.choice((64, 1024, 8192, len(data)))
        for _ in range(chance.choice((1, 4, 40))):
            at = chance.randrange(min(reach, len(data)))
            data[at : at + 8] = chance.choice((b"\xff" * 8, b"\0" * 8, chance.randbytes(8)))
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        place.write_bytes(data)
        collector.look()
        try:
            last_lines(folder / "q", 5)
        except (chronicle.ChronicleError, OSError):
            continue


def test_a_segment_that_is_missing_or_damaged_is_told(path: Path) -> None:
    with publisher(path) as writer:
        fill_segments(writer, 2)
        fill(writer, 3)
        tail = writer.position // SEGMENT_BYTES
    overwrite(segment_file(path, tail), 4224 + 8, b"\xff" * 8)
    assert "found seq=" in look_at_queue(path, "q").problem
    segment_file(path, tail).unlink()
    assert "a segment is missing" in look_at_queue(path, "q").problem
    assert last_lines(path, 5) == []


def test_queues_that_are_removed_while_they_are_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher(folder / "a").close()
    publisher(folder / "b").close()
    collector = Collector(folder)
    import chronicle.top.collect as collect

    def removed_first(path: Path, name: str) -> object:
        shutil.rmtree(path)
        return look_at_queue(path, name)

    monkeypatch.setattr(collect, "look_at_queue", removed_first)
    assert collector.look().queues == ()


def test_a_tail_of_a_log_leaves_warnings_on_stderr_where_nobody_else_takes_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("chronicle-test-tail")
    tail = LogTail(3)
    logger.addHandler(tail)
    try:
        for number in range(5):
            logger.warning("line %d", number)
        assert [line["text"] for line in tail.lines()] == ["line 2", "line 3", "line 4"]
        assert [line["number"] for line in tail.lines()] == [3, 4, 5]
        tail.emit(logging.LogRecord(logger.name, 30, "x.py", 1, "%d", ("no number",), None))
        assert tail.lines()[-1]["text"] == "%d ('no number',)"
        # pytest itself has handlers at the root.
        monkeypatch.setattr(logger, "propagate", False)
        capsys.readouterr()
        logger.warning("alone")
        assert capsys.readouterr().err == "alone\n"
        logger.addHandler(logging.NullHandler())
        logger.warning("not alone")
        assert capsys.readouterr().err == ""
    finally:
        logger.handlers.clear()


def test_lines_of_a_log_leave_room_in_the_document_however_long_they_are(folder: Path) -> None:
    tail = LogTail(200)
    for number in range(300):
        text = "\x1b" * 5_000 + str(number)
        tail.emit(logging.LogRecord("x" * 5_000, 10, "x.py", 1, text, None, None))
    lines = tail.lines()
    assert [line["number"] for line in lines] == list(range(301 - len(lines), 301))
    assert 10 < len(lines) < 200
    counters = CountersFile.create(folder / "COUNTERS")
    counters.publish({"log": lines, "services": {"x": "y" * 50_000}})
    assert len(Collector(folder).look().processes[0].log) == len(lines)
