"""Who writes and reads a queue, whether they live, and why that is thought."""

from __future__ import annotations

import os
import shutil
import time

import chronicle
import pytest
from chronicle.bus import Bus, WriterStatus, queue_status
from chronicle.heartbeat import HEARTBEAT_FILE, Heartbeat

from tests.fake_hot import FakeHot
from tests.queue_support import (
    Child,
    fill_segments,
    overwrite,
    publisher,
    run_python,
    segment_file,
    subscriber,
)
from tests.sidecar_support import eventually


def test_a_writer_is_seen_from_nothing_to_its_end(folder):
    path = folder / "q"
    assert queue_status(path).writer == WriterStatus("absent", "no such queue")
    path.mkdir()
    assert queue_status(path).writer == WriterStatus("absent", "no queue")
    path.rmdir()
    with publisher(path) as writer:
        writer.append(1, b"x")
        status = queue_status(path)
        assert (status.queue_id, status.first_seq, status.next_seq) == (writer.queue_id, 1, 2)
        assert status.writer == WriterStatus("alive", "", os.getpid(), 1)
    assert queue_status(path).writer == WriterStatus("dead", "lock free", os.getpid(), 1)


def test_a_queue_that_no_writer_has_opened_yet_is_told_as_such(folder):
    publisher(folder / "q").close()
    overwrite(folder / "q" / "control", 128, bytes(8))
    assert queue_status(folder / "q").writer == WriterStatus("absent", "never opened")


def test_a_killed_writer_is_dead_and_its_heartbeat_does_not_speak_for_the_next(folder):
    path = folder / "q"
    with Child("w = publisher(Path(args[0])); say('there'); hear()", path) as child:
        child.expect("there")
        pid = queue_status(path).writer.pid
        assert pid == child.pid
        late = Heartbeat(1, 1, pid, 1)
        (path / HEARTBEAT_FILE).write_bytes(late.pack())
        assert queue_status(path).writer == WriterStatus("stalled", "heartbeat stale", pid, 1, late)
        in_time = Heartbeat(time.time_ns(), 10**15, pid, 2)
        (path / HEARTBEAT_FILE).write_bytes(in_time.pack())
        assert queue_status(path).writer.state == "alive"
        child.kill()
        assert queue_status(path).writer.reason == "lock free"
    (path / HEARTBEAT_FILE).write_bytes(late.pack())
    with publisher(path):
        assert queue_status(path).writer == WriterStatus("alive", "", os.getpid(), 2, late)


def test_readers_are_told_with_their_lag_and_what_is_wrong(folder):
    path = folder / "q"
    with publisher(path) as writer:
        for _ in range(10):
            writer.append(1, b"x" * 40)
        subscriber(path, "gone", start=4).close()
        with subscriber(path, "there") as reader:
            reader.next()
            reader.commit()
            subscriber(path, "broken").close()
            overwrite(path / "readers" / "broken.cursor", 0, b"garbage!")
            broken, gone, there = queue_status(path).readers
    assert (broken.state, broken.name) == ("damaged", "broken")
    assert broken.reason.startswith("damaged: ")
    assert (gone.state, gone.reason, gone.next_seq) == ("dead", "lock free", 4)
    assert (gone.lag_messages, gone.pid) == (7, os.getpid())
    assert (there.state, there.reason, there.lag_messages) == ("alive", "", 9)
    assert there.lag_bytes > gone.lag_bytes > 0


def test_a_reader_whose_messages_were_deleted_is_told(folder):
    path = folder / "q"
    with publisher(path, segment_bytes=65_536) as writer:
        subscriber(path, "late").close()
        fill_segments(writer, 4)
        chronicle.apply_retention(path, bytes_max=65_536)
        (late,) = queue_status(path).readers
    assert (late.state, late.reason) == ("dead", "messages deleted")


def test_a_segment_that_is_missing_and_garbage_in_its_place_are_told(folder):
    path = folder / "q"
    with publisher(path, segment_bytes=65_536) as writer:
        fill_segments(writer, 4)
        aside = folder / "aside"
        segment_file(path, 1).rename(aside)
        status = queue_status(path).writer
        assert (status.state, status.reason) == ("damaged", "segment missing: 1")
        aside.rename(segment_file(path, 1))
        assert queue_status(path).writer.state == "alive"
    overwrite(path / "control", 0, b"garbage!")
    status = queue_status(path).writer
    assert status.state == "damaged"
    assert "control" in status.reason
    shutil.rmtree(path)
    path.write_text("no directory")
    assert queue_status(path).writer == WriterStatus("absent", "no such queue")


@pytest.mark.parametrize("file", ["control", "segments.table", "writer.lock"])
@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_what_is_no_file_in_a_queue_is_damage_and_no_error(folder, file, kind):
    path = folder / "q"
    publisher(path).close()
    (path / file).unlink()
    if kind == "pipe":
        os.mkfifo(path / file)
    else:
        (path / file).mkdir()
    status = queue_status(path).writer
    assert status.state == "damaged"
    assert "not a regular file" in status.reason


def test_a_heartbeat_ages_although_the_wall_clock_was_set_back():
    now_ns, minute_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME), 60 * 10**9
    an_hour_ahead_ns = time.time_ns() + 60 * minute_ns
    beat = Heartbeat(an_hour_ahead_ns, 10**9, 1, 1, now_ns - minute_ns)
    assert 60 <= beat.age_s < 3_600
    assert beat.is_late()
    # Of a boot that lasted longer than this one, or of a version that did not tell.
    for unknown in (0, now_ns + minute_ns):
        assert Heartbeat(time.time_ns() - minute_ns, 10**9, 1, 1, unknown).age_s >= 60
    assert Heartbeat(1, 2, 3, 4, 5).pack()[48:56] == (5).to_bytes(8, "little")


# --- Leases that the sidecar renews ---


def test_the_sidecar_renews_a_lease_and_closes_the_endpoint_last(folder):
    bus = Bus(folder / "bus")
    endpoint = bus.open_endpoint("a", valid_s=0.01)
    first = endpoint.lease
    order: list[str] = []
    with chronicle.Sidecar() as sidecar:
        leases = sidecar.serve_endpoint(endpoint)
        sidecar.close_at_stop(lambda: order.append(bus.status("a").state))
        eventually(lambda: leases.count > 3)
        assert endpoint.lease.renewed_ns > first.renewed_ns
        assert endpoint.lease.instance == first.instance
    assert order[0] in ("alive", "stalled")
    assert endpoint.closed
    assert bus.status("a").reason == "no lease"


def test_a_lease_is_not_renewed_while_its_owner_does_not_work(folder):
    bus = Bus(folder / "bus")
    hot = FakeHot()
    with chronicle.Sidecar() as sidecar:
        sidecar.attach(hot)
        leases = sidecar.serve_endpoint(bus.open_endpoint("a", valid_s=0.01))
        eventually(lambda: leases.count > 0)
        hot.failure = chronicle.HotThreadFailed("it failed", reason="", thread="fake")
        eventually(lambda: bus.status("a").reason == "heartbeat stale")
        name = f"lease {bus.path / 'a'}"
        assert "hot thread 'fake' has failed" in sidecar.health()[name].detail
        assert not sidecar.health()[name].healthy
        hot.failure = None
        eventually(lambda: bus.status("a").state == "alive")
    assert bus.status("a").reason == "no lease"


def test_an_endpoint_that_its_owner_closes_is_renewed_no_more(folder):
    bus = Bus(folder / "bus")
    with chronicle.Sidecar() as sidecar:
        with bus.open_endpoint("a", valid_s=0.003) as endpoint:
            sidecar.serve_endpoint(endpoint, name="lease")
        eventually(lambda: sidecar.health()["lease"].state == "finished")
        assert bus.status("a").reason == "no lease"


def test_a_forked_child_neither_renews_nor_takes_away_what_is_its_parents(folder):
    run_python(
        """
        from chronicle.bus import Bus
        bus = Bus(args[0])
        endpoint = bus.open_endpoint("a")
        endpoint.ready(["q"])
        child = os.fork()
        if child == 0:
            try:
                endpoint.renew()
            except chronicle.Forked:
                endpoint.close()
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert bus.status("a").ready
        endpoint.close()
        """,
        folder / "bus",
    )
