"""Hot threads in the care of a sidecar: hand-over, shutdown, failures, metrics."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle.heartbeat import HEARTBEAT_FILE, Heartbeat, read_heartbeat
from chronicle.hot import Counter, Output
from chronicle.message import MessageBase, i64
from chronicle.sidecar import Backoff, State
from chronicle.sidecar.handover import HandOver
from prometheus_client.parser import text_string_to_metric_families

from tests.queue_support import (
    PATIENCE_S,
    SEGMENT_BYTES,
    Child,
    fill,
    fill_segments,
    overwrite,
    publisher,
    segment_file,
    subscriber,
)
from tests.sidecar_support import eventually

QUICK = Backoff(first_s=0.001, max_s=0.01)


class Log:
    """A handler that remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.entered = threading.Event()

    def __call__(self, message: Any) -> None:
        self.entered.set()
        self.hold.wait(PATIENCE_S)
        self.seen.append((message.source, message.seq))

    def count(self) -> int:
        return len(self.seen)


def hot_thread(handler: Any, **options: Any) -> chronicle.HotThread:
    return chronicle.HotThread(handler, wait="sleep", **options)


def remove(path: Path) -> None:
    aside = path.with_name(f".{path.name}.removed")
    path.rename(aside)
    shutil.rmtree(aside)


# --- Attach, and the end ---


def test_a_thread_is_started_polled_and_stopped_and_everything_committed_is_handled(path):
    log = Log()
    with publisher(path) as writer:
        hot = hot_thread(log, readers=[subscriber(path)])
        assert not hot.status.supervised
        with chronicle.Sidecar() as sidecar:
            assert sidecar.attach(hot) is hot
            eventually(lambda: hot.status.supervised)
            fill(writer, 500)
        assert log.seen == [(0, seq) for seq in range(1, 501)]
        assert hot.status.state == "stopped"
        # The reader is back, and has committed.
        assert next(r for r in chronicle.inspect(path)["readers"])["next_seq"] == 501
        name = f"hot {hot.name}"
        assert sidecar.health()[name].state is State.STOPPED


def test_what_a_thread_has_written_is_flushed_after_it_has_stopped(folder):
    @chronicle.message(9)
    class Tick(MessageBase):
        price: i64

    class Relay(chronicle.Handler):
        out: Output

        @chronicle.on(Tick)
        def tick(self, tick: Tick) -> None:
            self.out.publish(tick)

    first, second = publisher(folder / "first"), publisher(folder / "second")
    with publisher(folder / "in", schema=[Tick]) as writer, chronicle.Sidecar() as sidecar:
        hot = chronicle.HotThread(
            Relay(), readers=[subscriber(folder / "in")], outputs={"out": first}, wait="sleep"
        )
        sidecar.attach(hot)
        for price in range(10):
            writer.publish(Tick(price=price))
        eventually(lambda: hot.status.appends == 10)
        hot.wait_for(hot.add_writer("out", second), PATIENCE_S)
        for price in range(7):
            writer.publish(Tick(price=price))
    assert chronicle.inspect(folder / "second")["durable_seq"] == 7
    assert second.next_seq == 8
    for given_back in (first, second):
        given_back.close()


def test_a_thread_that_is_too_slow_to_take_everything_is_stopped_and_named(path, caplog):
    log = Log()

    def slow(message):
        time.sleep(0.001)
        log(message)

    with publisher(path) as writer:
        fill(writer, 3_000)
        reader = subscriber(path)
        hot = hot_thread(slow, readers=[reader])
        sidecar = chronicle.Sidecar().start()
        sidecar.attach(hot, drain_s=0.05)
        eventually(log.count)
        report = sidecar.stop()
    assert hot.status.state == "stopped"
    assert len(report.unfinished) == 1
    assert "what is left stays in its queues" in report.unfinished[0]
    # It is given back, and what was not handled is still there.
    reader.close()
    with subscriber(path) as reader:
        assert reader.next_seq == log.count() + 1
    caplog.clear()


def test_a_handler_that_hangs_is_named_and_its_thread_is_left(path, caplog):
    log = Log()
    log.hold.clear()
    with publisher(path) as writer:
        fill(writer, 1)
        hot = hot_thread(log, readers=[subscriber(path)])
        sidecar = chronicle.Sidecar().start()
        sidecar.attach(hot, drain_s=0.05)
        assert log.entered.wait(PATIENCE_S)
        report = sidecar.stop()
        assert "its handler has not returned" in "".join(report.unfinished)
        caplog.clear()
        log.hold.set()
        hot.stop()
    assert log.count() == 1


def test_a_thread_that_fails_is_told_once_and_makes_its_service_unhealthy(path, caplog):
    def fails(message):
        raise ValueError("bad tick")

    told: list[Any] = []
    with publisher(path) as writer, chronicle.Sidecar() as sidecar:
        hot = hot_thread(fails, readers=[subscriber(path)], name="risky")
        sidecar.attach(hot, on_event=told.append)
        fill(writer, 1)
        eventually(lambda: not sidecar.healthy)
        eventually(lambda: told)
        assert "bad tick" in sidecar.health()["hot risky"].detail
    assert [type(event) for event in told] == [chronicle.HotThreadFailed]
    assert told[0].seq == 1


def test_a_program_that_is_nothing_without_its_thread_stops_when_that_fails(path, caplog):
    def fails(message):
        raise ValueError("bad tick")

    told: list[Any] = []
    sidecar = chronicle.Sidecar()
    with publisher(path) as writer:
        hot = hot_thread(fails, readers=[subscriber(path)])
        other = hot_thread(Log())
        sidecar.attach(hot, on_event=told.append, stop_on_failure=True)
        sidecar.attach(other, stop_on_failure=True)
        fill(writer, 1)
        # It returns by itself: nobody sends a signal, or calls `stop`.
        assert sidecar.serve().clean
    assert not sidecar.alive
    assert hot.failure is not None
    assert "bad tick" in str(hot.failure)
    assert told == [hot.failure]
    assert (other.status.state, other.failure) == ("stopped", None)


def test_an_answer_and_an_orderly_end_stop_no_program(path, monkeypatch):
    stops: list[bool] = []
    told: list[Any] = []
    with publisher(path), chronicle.Sidecar() as sidecar:
        monkeypatch.setattr(sidecar, "request_stop", lambda: stops.append(True))
        hot = hot_thread(Log())
        sidecar.attach(hot, on_event=told.append, stop_on_failure=True)
        hot.add_reader(subscriber(path))
        eventually(lambda: told)
        hot.stop()
    # The end of the sidecar has looked once more at what came back.
    assert stops == []


def test_when_the_sidecar_dies_the_hot_thread_runs_on_and_says_so(path, caplog):
    log = Log()

    def die():
        raise SystemExit("enough")

    with publisher(path) as writer:
        hot = hot_thread(log, readers=[subscriber(path)])
        sidecar = chronicle.Sidecar().start()
        sidecar.attach(hot)
        eventually(lambda: hot.status.supervised)
        sidecar.call_soon(die)
        eventually(lambda: not hot.status.supervised)
        fill(writer, 100)
        eventually(lambda: log.count() == 100)
        fill(writer, 100)
        report = sidecar.stop()
        assert report.unfinished == ("sidecar: its thread has died",)
        assert log.count() == 200
        assert hot.status.state == "stopped"
    caplog.clear()


def test_the_log_of_a_hot_thread_and_listeners_that_fail(path, caplog):
    def on_event(event):
        raise ValueError("not mine")

    log = Log()
    with caplog.at_level(logging.ERROR), publisher(path) as writer, chronicle.Sidecar() as sidecar:
        hot = hot_thread(log)
        sidecar.attach(hot, on_event=on_event)
        ticket = hot.add_reader(subscriber(path))
        # Who has sent a command gets its answer, whoever polls.
        assert getattr(hot.wait_for(ticket, PATIENCE_S), "ticket", None) == ticket
        fill(writer, 1)
        eventually(lambda: "a listener failed on ReaderAdded" in caplog.text)
        assert sidecar.health()[f"hot {hot.name}"].restarts == 0


# --- Discovery and hand-over ---


def test_every_queue_that_appears_is_handed_over_and_taken_back_when_it_vanishes(folder):
    log = Log()
    with chronicle.Sidecar(backoff=QUICK) as sidecar:
        hot = hot_thread(log)
        changes: list[Any] = []
        found = sidecar.discover(
            folder / "*" / "out", hot, name="strategy", on_change=changes.append, interval_s=1e6
        )
        writers = {}
        for name in ("a", "b", "c"):
            writers[name] = publisher(folder / name / "out")
            fill(writers[name], 10)
        eventually(lambda: log.count() == 30)
        eventually(lambda: found.attached == [str(folder / name / "out") for name in "abc"])
        assert len(changes) >= 6
        assert {reader.name for reader in hot.sources.values()} == {"strategy"}

        writers["b"].close()
        remove(folder / "b" / "out")
        eventually(lambda: found.attached == [str(folder / name / "out") for name in "ac"])
        eventually(lambda: hot.status.sources == 2)

        # Another queue at the same place.
        writers["b"] = publisher(folder / "b" / "out")
        fill(writers["b"], 10)
        eventually(lambda: log.count() == 40)
        assert found.opened == 4
    for name in ("a", "b", "c"):
        # All that was read here is closed again.
        readers = chronicle.inspect(folder / name / "out")["readers"]
        assert [(r["name"], r["live"], r["next_seq"]) for r in readers] == [("strategy", False, 11)]
        writers[name].close()
    # Four queues, each of their messages once. (A source's number may be used again.)
    assert sorted(seq for _, seq in log.seen) == sorted([*range(1, 11)] * 4)


def is_attached(found: HandOver, path: Any) -> bool:
    return str(path) in found.attached


def has_seen(hot: chronicle.HotThread, count: int) -> bool:
    return hot.counters["seen"] >= count


def test_many_readers_come_and_go_and_the_hot_thread_asks_the_kernel_for_nothing(folder):
    @chronicle.message(9)
    class Tick(MessageBase):
        number: i64

    class Sum(chronicle.Handler):
        total: i64
        seen: Counter

        @chronicle.on(Tick)
        def tick(self, tick: Tick) -> None:
            self.total += tick.number
            self.seen.add(1)

    count, alive = (2_000 if os.environ.get("CHRONICLE_FIRE") == "full" else 100), 10
    writers: list[chronicle.QueueWriter] = []
    with chronicle.Sidecar() as sidecar:
        hot = chronicle.HotThread(Sum(), wait="hybrid")
        found = sidecar.discover(folder / "*", hot, name="strategy")
        for number in range(count):
            writers.append(publisher(folder / str(number), schema=[Tick]))
            for offset in range(10):
                writers[-1].publish(Tick(number=number * 10 + offset))
            if number >= alive:
                # What it had to say is handled before the oldest goes.
                eventually(partial(is_attached, found, writers[0].path))
                eventually(partial(has_seen, hot, (number - alive + 1) * 10))
                gone = writers.pop(0)
                gone.close()
                remove(Path(gone.path))
        eventually(lambda: hot.counters["seen"] == count * 10)
        eventually(lambda: len(sidecar.cares[0].retired) == count - alive)
        eventually(lambda: len(found.attached) == alive)
        status = hot.status
        assert (status.sources, status.guard_seen, status.allocations) == (alive, 0, 0)
        assert (status.gaps, status.sources_failed, status.unhandled) == (0, 0, 0)
        assert found.opened == count
    assert hot.state["total"] == sum(range(count * 10))
    for writer in writers:
        writer.close()


def test_a_queue_that_cannot_be_opened_is_tried_again_until_it_can(folder):
    log = Log()
    path = folder / "q"
    with publisher(path) as writer, chronicle.Sidecar(backoff=QUICK) as sidecar:
        fill(writer, 10)
        other = subscriber(path, "strategy")
        found = sidecar.discover(folder / "*", hot_thread(log), name="strategy")
        service = f"discovery {folder / '*'}"
        eventually(lambda: "ReaderActive" in sidecar.health()[service].detail)
        assert not sidecar.healthy
        other.close()
        eventually(lambda: log.count() == 10)
        eventually(lambda: found.attached)
        assert sidecar.healthy


def test_a_source_that_fails_comes_back_and_resumes(folder):
    log = Log()
    path = folder / "q"
    with publisher(path, checksum=True) as writer, chronicle.Sidecar(backoff=QUICK) as sidecar:
        fill(writer, 10)
        found = sidecar.discover(folder / "*", hot_thread(log), name="strategy")
        eventually(lambda: log.count() == 10)
        # The next message is damaged before it can be read.
        log.entered.clear()
        log.hold.clear()
        fill(writer, 1)
        assert log.entered.wait(PATIENCE_S)
        position = writer.position
        fill(writer, 1)
        good = segment_file(path).read_bytes()[position + 40 : position + 44]
        overwrite(segment_file(path), position + 40, b"oops")
        log.hold.set()
        eventually(lambda: found.opened >= 3)
        overwrite(segment_file(path), position + 40, good)
        eventually(lambda: log.count() >= 12)
        eventually(lambda: found.attached)
    assert [seq for _, seq in log.seen][-2:] == [11, 12]
    # Nothing is lost or doubled: each try resumed behind what was committed.
    assert [seq for _, seq in log.seen] == list(range(1, 13))


def test_a_full_command_channel_only_delays_a_hand_over(folder):
    log = Log()
    with chronicle.Sidecar(backoff=QUICK) as sidecar:
        hot = hot_thread(log, commands_max=1)
        writers = [publisher(folder / f"{number}") for number in range(12)]
        for writer in writers:
            fill(writer, 5)
        found = sidecar.discover(folder / "*", hot, name="strategy")
        eventually(lambda: len(found.attached) == 12)
        eventually(lambda: log.count() == 60)
        for writer in writers:
            writer.close()


def test_readers_of_a_thread_that_ended_are_closed_and_nobody_tries_for_ever(folder, caplog):
    def fails(message):
        raise ValueError("bad tick")

    with publisher(folder / "q") as writer, chronicle.Sidecar(backoff=QUICK) as sidecar:
        hot = hot_thread(fails)
        found = sidecar.discover(folder / "*", hot, name="strategy")
        eventually(lambda: found.attached)
        fill(writer, 1)
        eventually(lambda: hot.failure is not None)
        eventually(lambda: not found.attached)
        with publisher(folder / "r"):
            eventually(lambda: found.opened == 2)
        assert found.opened == 2


def resident_kib(name: str) -> list[int]:
    """Return how much of each mapping of a file is in the page table."""
    lines = Path("/proc/self/smaps").read_text().split("\n")
    where = [index for index, line in enumerate(lines) if line.endswith(name)]
    return [int(x.split()[1]) for i in where for x in lines[i : i + 8] if x.startswith("Rss:")]


def test_readers_handed_over_are_prefaulted_and_provisioned(folder):
    # By the kernel's count: a page fault for each page of the segment, all of them on the sidecar.
    log = Log()
    with publisher(folder / "q", segment_bytes=1 << 22) as writer:
        fill(writer, 1)
        with chronicle.Sidecar() as sidecar:
            hot = hot_thread(log)
            sidecar.discover(folder / "*", hot, name="strategy", start="latest")
            eventually(lambda: hot.sources)
            (reader,) = hot.sources.values()
            # The writer's mapping and the reader's; in KiB.
            eventually(lambda: resident_kib(f"q/segments/{0:020}.seg") == [4096, 4096])
            assert Path(reader.path) == folder / "q"


# --- Retention, cursors, heartbeats ---


def test_retention_is_applied_to_every_queue_and_tells_who_holds(folder, caplog):
    with publisher(folder / "a") as one, publisher(folder / "b") as two:
        with subscriber(folder / "b", "slow"):
            fill_segments(one, 5)
            fill_segments(two, 5)
            with chronicle.Sidecar() as sidecar:
                retention = sidecar.retain(
                    folder / "*", bytes_max=2 * SEGMENT_BYTES, interval_s=0.001, name="r"
                )
                eventually(lambda: retention.segments_deleted == 4)
                eventually(lambda: retention.held == {str(folder / "b"): "slow"})
                eventually(lambda: "1 queues held by readers" in sidecar.health()["r"].detail)
                shutil.rmtree(folder / "a")
        assert chronicle.inspect(folder / "b")["floor_segment"] == 0
        assert caplog.text.count("reader 'slow' holds 4 segments") == 1
        with chronicle.Sidecar() as sidecar:
            retention = sidecar.retain(folder / "b", age_s_max=0.0, interval_s=0.001)
            eventually(lambda: retention.segments_deleted == 5)
    with pytest.raises(chronicle.BadArgument, match="no policy, no deletion"):
        chronicle.Sidecar().retain(folder / "*")


def test_cursors_that_have_moved_are_flushed_at_the_interval_and_at_the_end(folder, monkeypatch):
    flushed: list[str] = []
    real = os.fsync

    def fsync(descriptor):
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        if name.suffix == ".cursor":
            flushed.append(f"{name.parent.parent.name}/{name.name}")
        real(descriptor)

    monkeypatch.setattr("chronicle.sidecar.cursors.os.fsync", fsync)
    log = Log()
    with publisher(folder / "q") as writer, publisher(folder / "r") as other:
        reader = subscriber(folder / "r", "slow")
        hot = hot_thread(log, readers=[subscriber(folder / "q", "hot")])
        with chronicle.Sidecar() as sidecar:
            sidecar.attach(hot)
            sidecar.flush_cursors(folder / "r", folder / "missing", interval_s=1e6)
            eventually(lambda: sorted(flushed) == ["q/hot.cursor", "r/slow.cursor"])
            flushed.clear()
            fill(writer, 10)
            fill(other, 10)
        # The hot thread was stopped before; the other reader has not committed.
        assert flushed == ["q/hot.cursor"]
        reader.close()


def test_a_heartbeat_beats_while_its_owner_works_and_is_taken_away_at_the_end(folder):
    works = threading.Event()
    works.set()
    with publisher(folder / "q"):
        assert read_heartbeat(folder / "q") is None
        with chronicle.Sidecar() as sidecar:
            sidecar.heartbeat(folder / "q", interval_s=0.001, works=works.is_set, name="h")
            eventually(lambda: (beat := read_heartbeat(folder / "q")) and beat.number > 3)
            beat = read_heartbeat(folder / "q")
            assert beat is not None
            assert (beat.pid, beat.interval_ns) == (os.getpid(), 1_000_000)
            assert beat.age_s < PATIENCE_S
            works.clear()
            eventually(lambda: not sidecar.health()["h"].healthy)
            beat = read_heartbeat(folder / "q")
            eventually(lambda: beat is not None and beat.is_late())
            assert read_heartbeat(folder / "q") == beat
            works.set()
            eventually(lambda: sidecar.health()["h"].healthy)
        assert read_heartbeat(folder / "q") is None
        assert not chronicle.verify(folder / "q")["damage"]


def test_the_heartbeat_of_a_hot_thread_stops_when_it_fails(folder, caplog):
    def fails(message):
        raise ValueError("bad tick")

    with publisher(folder / "q") as writer, chronicle.Sidecar() as sidecar:
        hot = sidecar.attach(hot_thread(fails, readers=[subscriber(folder / "q")]))
        sidecar.heartbeat(folder / "q", interval_s=0.001, works=hot, name="h")
        eventually(lambda: read_heartbeat(folder / "q"))
        fill(writer, 1)
        eventually(lambda: sidecar.health()["h"].detail == "no beat: its owner does not work")


def test_what_is_no_heartbeat_is_not_taken_for_one(folder):
    file = folder / HEARTBEAT_FILE
    good = Heartbeat(1, 2, 3, 4).pack()
    for content in (b"", good[:-1], good + b"x", b"x" + good[1:], good[:20] + b"\xff" + good[21:]):
        file.write_bytes(content)
        assert read_heartbeat(folder) is None
    file.write_bytes(good)
    assert read_heartbeat(folder) == Heartbeat(1, 2, 3, 4)
    file.unlink()
    os.mkfifo(file)
    assert read_heartbeat(folder) is None


# --- Metrics ---


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_a_scrape_tells_of_threads_queues_mirrors_and_services(folder):
    log = Log()
    with publisher(folder / "q") as writer, chronicle.Sidecar() as sidecar:
        hot = hot_thread(log, readers=[subscriber(folder / "q", "risk")], name="h", meter="full")
        sidecar.attach(hot)
        mirror = sidecar.mirror(folder / "q", folder / "m", interval_s=0.001)
        other = subscriber(folder / "q", "slow")
        metrics = sidecar.metrics(queues=[str(folder / "?")])
        fill(writer, 100)
        eventually(lambda: log.count() == 100 and mirror.status.durable_seq == 100)
        eventually(lambda: hot.status.state == "parked")
        found = scrape(metrics.port)
        queue = f'queue="{folder / "q"}"'
        both = f'mirror="{folder / "m"}",{queue}'
        expected = {
            "chronicle_sidecar_up": 1,
            'chronicle_service_up{service="hot h"}': 1,
            'chronicle_service_restarts_total{service="hot h"}': 0,
            'chronicle_hot_messages_total{thread="h"}': 100,
            'chronicle_hot_sources{thread="h"}': 1,
            'chronicle_hot_supervised{thread="h"}': 1,
            'chronicle_hot_state{state="parked",thread="h"}': 1,
            'chronicle_hot_log_drops_total{thread="h"}': 0,
            'chronicle_hot_guard_seen_total{thread="h"}': 0,
            'chronicle_hot_guard_lost{thread="h"}': 0,
            'chronicle_hot_handler_time_seconds_count{thread="h"}': 100,
            f"chronicle_queue_next_seq{{{queue}}}": 101,
            f"chronicle_queue_segments{{{queue}}}": 1,
            f"chronicle_queue_bytes{{{queue}}}": SEGMENT_BYTES,
            f'chronicle_reader_lag_messages{{{queue},reader="risk"}}': 0,
            f'chronicle_reader_lag_messages{{{queue},reader="slow"}}': 100,
            f"chronicle_mirror_durable_seq{{{both}}}": 100,
            f"chronicle_mirror_gaps_total{{{both}}}": 0,
        }
        assert {name: found.get(name) for name in expected} == expected
        for name in (
            'chronicle_hot_loop_gap_seconds{quantile="0.999",thread="h"}',
            'chronicle_hot_handler_time_seconds{quantile="1",thread="h"}',
            'chronicle_hot_page_faults_total{kind="minor",thread="h"}',
            'chronicle_hot_context_switches_total{kind="voluntary",thread="h"}',
            f"chronicle_mirror_behind_seconds{{{both}}}",
        ):
            assert found[name] >= 0, name
        # Both are queues, and the mirror is told of because it was asked for.
        assert f'chronicle_queue_next_seq{{queue="{folder / "m"}"}}' in found
        other.close()
        # What vanishes is not told any more.
        with publisher(folder / "x"):
            assert f'chronicle_queue_next_seq{{queue="{folder / "x"}"}}' in scrape(metrics.port)
        remove(folder / "x")
        found = scrape(metrics.port)
        assert f'chronicle_queue_next_seq{{queue="{folder / "x"}"}}' not in found
        assert found['chronicle_hot_messages_total{thread="h"}'] == 100
    with pytest.raises(OSError, match="refused"):
        scrape(metrics.port)


def test_names_that_are_no_text_are_told_and_end_no_label(folder):
    odd = folder / os.fsdecode(b'\xff"}\n\\evil{x="')
    with (
        publisher(odd) as writer,
        subscriber(odd, "risk") as reader,
        chronicle.Sidecar() as sidecar,
    ):
        fill(writer, 3)
        reader.next()
        reader.commit()
        (odd / "readers" / os.fsdecode(b"\xfe.cursor")).write_bytes(b"\xff" * 4096)
        os.mkfifo(odd / "readers" / "pipe.cursor")
        metrics = sidecar.metrics(queues=[str(folder / "*")])
        sidecar.heartbeat(odd)
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics") as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    name = str(folder / "\\xff") + '"}\n\\evil{x="'
    (found,) = [one for one in samples if one.name == "chronicle_queue_next_seq"]
    assert (found.labels, found.value) == ({"queue": name}, 4)
    lags = [one for one in samples if one.name == "chronicle_reader_lag_messages"]
    assert {one.labels["reader"]: one.value for one in lags} == {"risk": 2, "\\xfe": 0}
    assert f"heartbeat {name}" in {one.labels.get("service") for one in samples}


def test_many_scrapes_while_the_sidecar_ends_are_whole_or_refused(folder):
    with publisher(folder / "q") as writer:
        fill(writer, 10)
        sidecar = chronicle.Sidecar().start()
        log = Log()
        hot = hot_thread(log, readers=[subscriber(folder / "q", "risk")], name="h")
        sidecar.attach(hot)
        port = sidecar.metrics().port
        whole, others = [], []

        def ask() -> None:
            try:
                while True:
                    whole.append('chronicle_hot_messages_total{thread="h"}' in scrape(port))
            except OSError:
                return
            except Exception as error:
                others.append(error)

        clients = [threading.Thread(target=ask) for _ in range(20)]
        for client in clients:
            client.start()
        eventually(lambda: len(whole) >= 40)
        assert sidecar.stop().unfinished == ()
        for client in clients:
            client.join()
    assert others == []
    assert all(whole)


def test_a_port_that_is_taken_and_a_missing_library_are_told_at_once(monkeypatch):
    with chronicle.Sidecar() as sidecar:
        first = sidecar.metrics()
        with pytest.raises(OSError, match="in use"):
            sidecar.metrics(first.port, name="second")
        monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
        with pytest.raises(
            chronicle.BadArgument, match=r"pip install 'chronicle-python\[metrics\]'"
        ):
            sidecar.metrics(name="third")


# --- A whole process ---

RELAY = """
    import logging
    logging.basicConfig(stream=sys.stderr)
    root, target = Path(args[0]), Path(args[1])
    out = publisher(root / "out" / "q")
    sidecar = chronicle.Sidecar()

    def relay(message):
        out.append(1, bytes(message.payload))

    hot = chronicle.HotThread(relay, wait="sleep", name="relay", provisioner=sidecar.provisioner)
    sidecar.attach(hot)
    sidecar.discover(root / "in" / "*", hot, name="relay", interval_s=1e6)
    sidecar.mirror(root / "out" / "q", target)
    sidecar.flush_cursors()
    sidecar.heartbeat(root / "out" / "q", interval_s=0.001)

    @sidecar.every(0.001)
    def tell():
        say(hot.status.messages)

    report = sidecar.serve()
    say("end", hot.status.messages, out.next_seq - 1, report.clean, report.unfinished)
"""


def test_sigterm_in_the_middle_loses_nothing_that_was_committed(folder):
    import signal

    from chronicle.sidecar import restore

    with Child(RELAY, folder, folder / "mirror") as child:
        with publisher(folder / "in" / "a") as one, publisher(folder / "in" / "b") as two:
            while int(child.hear()) < 2_000:
                fill(one, 20)
                fill(two, 20)
            # All of this is committed before the signal.
            sent = one.next_seq + two.next_seq - 2
            child.signal(signal.SIGTERM)
            line = child.hear()
            while not line.startswith("end"):
                line = child.hear()
            _, errors = child.process.communicate(timeout=PATIENCE_S)
    assert line == f"end {sent} {sent} True ()"
    assert child.process.returncode == 0
    assert b"Traceback" not in errors, errors.decode()
    # It is in the output, in the mirror, and the cursors say so.
    assert chronicle.verify(folder / "out" / "q")["records"] == sent
    assert restore(folder / "mirror", folder / "restored").next_seq == sent + 1
    ends = [chronicle.inspect(folder / "in" / name)["readers"][0]["next_seq"] for name in "ab"]
    assert sum(ends) - 2 == sent
    assert read_heartbeat(folder / "out" / "q") is None


def test_a_sidecar_that_is_stopped_leaves_threads_alone_that_it_was_not_given(path):
    log = Log()
    with publisher(path) as writer, hot_thread(log, readers=[subscriber(path)]) as hot:
        with chronicle.Sidecar() as sidecar:
            sidecar.task(asyncio.Event().wait, name="x")
        fill(writer, 10)
        eventually(lambda: log.count() == 10)
        assert hot.status.state in ("running", "parked")
