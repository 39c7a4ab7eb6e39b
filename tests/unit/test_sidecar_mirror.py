"""Mirrors: the same bytes at the same positions, continued, refused, restored."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
from pathlib import Path

import chronicle
import pytest
from chronicle.cli import main
from chronicle.sidecar import Backoff, Mirror, State, restore
from chronicle.sidecar.files import Control, Disk, Geometry, WriterLock, segment_index

from tests.queue_support import (
    SEGMENT_BYTES,
    Trade,
    fill,
    fill_segments,
    overwrite,
    payloads,
    publisher,
    run_python,
    run_python_mounted,
    running,
    segment_file,
    seqs,
    snapshot,
    subscriber,
    trades,
)
from tests.sidecar_support import eventually

CHECKSUM = pytest.mark.parametrize("checksum", [False, True])


@pytest.fixture
def disk():
    """A folder for mirrors, on a disk."""
    with tempfile.TemporaryDirectory(prefix="chronicle-mirror-") as name:
        yield Path(name)


def everything(path) -> list[tuple[int, int, bytes]]:
    first = chronicle.verify(path)["first_seq"]
    with subscriber(path, None, start=first) as reader:
        return [(m.seq, m.timestamp_ns, bytes(m.payload)) for m in reader]


def assert_same_bytes(queue: Path, mirror: Path) -> None:
    """Compare all that is committed, and all that leads there."""
    ours, theirs = chronicle.inspect(mirror), chronicle.inspect(queue)
    different = {name for name in ours if ours[name] != theirs[name]}
    assert different <= {"writer_live", "durable_seq", "durable_position", "readers"}
    for file in sorted((mirror / "segments").iterdir()):
        assert file.read_bytes() == (queue / "segments" / file.name).read_bytes(), file.name
    table = "segments.table"
    assert (mirror / table).read_bytes() == (queue / table).read_bytes()
    assert not chronicle.verify(mirror)["damage"]


@CHECKSUM
def test_a_mirror_has_the_same_bytes_at_the_same_positions(path, disk, checksum):
    with publisher(path, checksum=checksum, schema=[Trade]) as writer:
        with Mirror(path, disk / "m") as mirror:
            for step in range(12):
                fill(writer, 17 * step, size=11 * step)
                writer.append_many(trades(20 * step), type_id=Trade)
                if step % 3 == 0:
                    fill_segments(writer, 1)
                assert mirror.turn()
                assert mirror.status.durable_seq == writer.next_seq - 1
                assert mirror.status.durable_position == writer.position
                assert everything(disk / "m") == everything(path)
        assert_same_bytes(path, disk / "m")
        assert (disk / "m" / "queue.json").read_bytes() == (path / "queue.json").read_bytes()


def test_an_empty_queue_can_be_mirrored_and_restored(path, disk):
    with publisher(path), Mirror(path, disk / "m") as mirror:
        assert mirror.turn()
        assert mirror.status.durable_seq == 0
    shutil.rmtree(path)
    report = restore(disk / "m", path)
    assert (report.next_seq, report.lost, report.segments) == (1, None, 1)
    with publisher(path) as writer:
        assert writer.append(1, b"first") == 1


def test_a_mirror_that_begins_late_and_behind_retention_has_what_there_is(path, disk):
    with publisher(path) as writer:
        fill_segments(writer, 4)
        chronicle.apply_retention(path, bytes_max=2 * SEGMENT_BYTES)
        first = chronicle.inspect(path)["segments"][0]["first_seq"]
        assert first > 1
        with Mirror(path, disk / "m") as mirror:
            assert mirror.turn()
            assert mirror.status.gaps == 0
        assert everything(disk / "m") == everything(path)
        assert everything(disk / "m")[0][0] == first
        assert chronicle.inspect(disk / "m")["floor_segment"] > 0


def test_turns_are_bounded(path, disk):
    with publisher(path) as writer:
        fill_segments(writer, 6)
        with Mirror(path, disk / "m", turn_bytes_max=SEGMENT_BYTES) as mirror:
            turns = 1
            while not mirror.turn():
                turns += 1
                assert everything(disk / "m")[-1][0] == mirror.status.durable_seq
            assert turns > 3
        assert_same_bytes(path, disk / "m")


def test_a_mirror_is_continued_where_it_was(path, disk):
    with publisher(path) as writer:
        for step in range(6):
            fill_segments(writer, step % 3)
            fill(writer, 10)
            with Mirror(path, disk / "m") as mirror:
                before = writer.next_seq
                fill(writer, 50)
                assert mirror.turn()
                assert mirror.status.durable_seq == before + 49
        with Mirror(path, disk / "m") as mirror:
            # Nothing new: nothing is copied again.
            assert mirror.turn()
            assert mirror.status.bytes_copied == 0
        fill(writer, 1)
    with publisher(path) as writer:
        fill(writer, 5)
        with Mirror(path, disk / "m") as mirror:
            assert mirror.turn()
        # The index of the last segment is complete again, too.
        assert_same_bytes(path, disk / "m")


def test_the_source_is_never_written(path, disk):
    with publisher(path) as writer:
        fill_segments(writer, 2)
    with subscriber(path, "risk") as reader:
        reader.next()
        reader.commit()
    before = snapshot(path)
    for file in path.rglob("*"):
        file.chmod(0o500 if file.is_dir() else 0o400)
    with Mirror(path, disk / "m") as mirror:
        mirror.catch_up()
    assert snapshot(path) == before


def test_whoever_reads_a_mirror_meanwhile_sees_a_growing_prefix(path, disk):
    done = threading.Event()
    with publisher(path) as writer, Mirror(path, disk / "m") as mirror:
        fill(writer, 1)
        mirror.turn()
        found: list[int] = []

        def read():
            with subscriber(disk / "m", None, start="earliest") as reader:
                while not done.is_set() or found[-1] < writer.next_seq - 1:
                    found.extend(seqs(reader))

        with running(read):
            for step in range(60):
                fill(writer, 40, size=8 * (step % 50))
                mirror.turn()
            done.set()
    assert found == list(range(1, writer_next(path)))


def writer_next(path) -> int:
    next_seq: int = chronicle.verify(path)["next_seq"]
    return next_seq


def test_cursors_come_along_and_never_ahead_of_the_messages(path, disk):
    with publisher(path) as writer, subscriber(path, "risk") as reader:
        fill(writer, 100)
        for _ in range(40):
            reader.next()
        reader.commit()
        with Mirror(path, disk / "m", cursor_interval_s=0.0) as mirror:
            mirror.turn()
            for _ in range(10):
                reader.next()
            reader.commit()
            mirror.turn()
            found = {r["name"]: r for r in chronicle.inspect(disk / "m")["readers"]}
            assert (found["risk"]["next_seq"], found["risk"]["live"]) == (51, False)
            with subscriber(path, "gone") as other:
                other.next()
            mirror.turn()
            chronicle.remove_reader(path, "gone")
            mirror.turn()
            assert [r["name"] for r in chronicle.inspect(disk / "m")["readers"]] == ["risk"]
    shutil.rmtree(path)
    assert restore(disk / "m", path).readers == ("risk",)
    with subscriber(path, "risk") as reader:
        assert seqs(reader) == list(range(51, 101))


# --- What is refused ---


def test_another_queues_mirror_is_refused(path, disk):
    with publisher(path), Mirror(path, disk / "m") as mirror:
        mirror.turn()
    shutil.rmtree(path)
    with publisher(path):
        with pytest.raises(chronicle.MirrorDiverged, match="restore that queue first"):
            Mirror(path, disk / "m").open()


def test_a_mirror_that_was_written_to_is_refused(path, disk):
    with publisher(path) as writer:
        fill(writer, 10)
        with Mirror(path, disk / "m") as mirror:
            mirror.turn()
        with publisher(disk / "m") as other:
            fill(other, 1)
        with pytest.raises(chronicle.MirrorDiverged, match="opened for writing"):
            Mirror(path, disk / "m").open()


def test_a_mirror_with_another_history_is_refused_and_both_stay_as_they_are(path, disk):
    with publisher(path) as writer:
        fill(writer, 100)
        for name in ("old", "new"):
            with Mirror(path, disk / name) as mirror:
                mirror.turn()
            fill(writer, 10)
    shutil.rmtree(path)
    restore(disk / "old", path)
    before = snapshot(disk / "new")
    # The restored queue is behind the newer mirror, ...
    with pytest.raises(chronicle.MirrorDiverged, match="the mirror ends at seq=110"):
        Mirror(path, disk / "new").open()
    with publisher(path) as writer:
        fill(writer, 200)
        # ... and then ahead of it, by other messages. Same lengths, same numbers.
        with pytest.raises(chronicle.MirrorDiverged, match="holds other messages"):
            Mirror(path, disk / "new").open()
        with Mirror(path, disk / "old") as mirror:
            assert mirror.turn()
        assert everything(disk / "old") == everything(path)
    assert snapshot(disk / "new") == before


def test_only_one_at_a_time_works_on_a_mirror(path, disk):
    with publisher(path), Mirror(path, disk / "m") as mirror:
        mirror.turn()
        for attempt in (
            lambda: Mirror(path, disk / "m").open(),
            lambda: publisher(disk / "m"),
            lambda: restore(disk / "m", disk / "elsewhere"),
        ):
            with pytest.raises(chronicle.WriterActive):
                attempt()
    with WriterLock(disk / "m", shared=True), WriterLock(disk / "m", shared=True):
        with pytest.raises(chronicle.WriterActive):
            WriterLock(disk / "m")


def test_a_directory_with_something_else_in_it_is_refused(path, disk):
    (disk / "precious").write_text("mine")
    with publisher(path):
        with pytest.raises(chronicle.NotAQueue, match="holds 'precious'"):
            Mirror(path, disk).open()
    with pytest.raises(chronicle.NotAQueue, match="there is no control file"):
        Mirror(disk / "nothing", disk / "m").open()
    with pytest.raises(chronicle.BadArgument, match="source and target"):
        Mirror(path, path)
    with pytest.raises(chronicle.Closed):
        Mirror(path, disk / "m").turn()
    assert sorted(disk.iterdir()) == [disk / "precious"]


def test_a_removed_source_is_noticed_after_its_last_message_is_safe(path, disk):
    with publisher(path) as writer, Mirror(path, disk / "m") as mirror:
        fill(writer, 10)
        mirror.turn()
        fill(writer, 10)
        shutil.rmtree(path)
        assert mirror.turn()
        assert mirror.status.durable_seq == 20
        with pytest.raises(chronicle.QueueRemoved, match="up to seq=20"):
            mirror.turn()
        with publisher(path):
            with pytest.raises(chronicle.QueueRemoved):
                mirror.turn()


# --- Retention ---


def test_what_retention_deletes_before_it_is_mirrored_is_a_gap_and_the_rest_is_set_aside(
    path, disk, caplog
):
    with publisher(path) as writer:
        fill_segments(writer, 1)
        with Mirror(path, disk / "m") as mirror:
            mirror.turn()
            had = mirror.status.durable_seq
        fill_segments(writer, 5)
        chronicle.apply_retention(path, bytes_max=2 * SEGMENT_BYTES)
        first = chronicle.inspect(path)["segments"][0]["first_seq"]
        with caplog.at_level(logging.ERROR), Mirror(path, disk / "m") as mirror:
            mirror.catch_up()
            assert mirror.status.gaps == 1
        assert f"first_missing={had + 1} next={first}" in caplog.text
        assert everything(disk / "m") == everything(path)
        assert chronicle.inspect(disk / "m")["set_aside"] == [
            f"{index:020}.seg.gap.cut" for index in (0, 1)
        ]
        # And it is an ordinary mirror again.
        fill_segments(writer, 2)
        with Mirror(path, disk / "m") as mirror:
            mirror.catch_up()
            assert mirror.status.gaps == 0
        assert not chronicle.verify(disk / "m")["damage"]
    shutil.rmtree(path)
    assert restore(disk / "m", path).lost is None
    assert everything(path)[0][0] == first


@pytest.mark.parametrize("alive", [True, False])
def test_a_segment_that_was_complete_but_for_its_marker_is_no_gap(path, disk, alive):
    with publisher(path) as writer:
        mirror = Mirror(path, disk / "m")
        # Fill the first segment up to where the next message will not fit.
        fill(writer, 1, size=4_000)
        while writer.position + 2 * 4_100 < SEGMENT_BYTES:
            fill(writer, 1, size=4_000)
        mirror.catch_up()
        if not alive:
            mirror.close()
        fill(writer, 1, size=SEGMENT_BYTES // 2)
        fill_segments(writer, 1)
        chronicle.apply_retention(path, bytes_max=2 * SEGMENT_BYTES)
        assert chronicle.inspect(path)["floor_segment"] == 1
        mirror.catch_up()
        mirror.close()
        assert mirror.status.gaps == 0
        assert [seq for seq, _, _ in everything(disk / "m")] == list(range(1, writer.next_seq))
        assert not chronicle.verify(disk / "m")["damage"]


def test_retention_waits_for_a_mirror_that_has_a_name(path, disk):
    with publisher(path) as writer, Mirror(path, disk / "m", name="mirror") as mirror:
        fill_segments(writer, 5)
        report = chronicle.apply_retention(path, bytes_max=2 * SEGMENT_BYTES)
        assert (report["segments_deleted"], report["held_by"]) == (0, "mirror")
        mirror.catch_up()
        report = chronicle.apply_retention(path, bytes_max=2 * SEGMENT_BYTES)
        assert report["segments_deleted"] == 4
        # Its own cursor does not come along.
        assert chronicle.inspect(disk / "m")["readers"] == []
        assert [seq for seq, _, _ in everything(disk / "m")] == list(range(1, writer.next_seq))


def test_a_mirror_keeps_as_much_as_it_is_told_to(path, disk):
    with publisher(path) as writer:
        with Mirror(path, disk / "m", keep_bytes=3 * SEGMENT_BYTES) as mirror:
            for _ in range(8):
                fill_segments(writer, 1)
                mirror.catch_up()
        found = chronicle.inspect(disk / "m")
        assert [s["index"] for s in found["segments"]] == [6, 7, 8]
        assert found["floor_segment"] == 6
        with Mirror(path, disk / "m", keep_age_s=0.0) as mirror:
            fill(writer, 1)
            mirror.catch_up()
        assert [s["index"] for s in chronicle.inspect(disk / "m")["segments"]] == [8]
    shutil.rmtree(path)
    assert restore(disk / "m", path).segments == 1


def test_without_a_policy_a_mirror_keeps_all_until_its_table_is_full(path, disk):
    with publisher(path, segments_max=4) as writer:
        with Mirror(path, disk / "m", name="mirror") as mirror:

            def go_on():
                for _ in range(10):
                    fill_segments(writer, 1)
                    mirror.catch_up()
                    chronicle.apply_retention(path, bytes_max=SEGMENT_BYTES)

            with pytest.raises(chronicle.QueueFull, match="give it keep_bytes="):
                go_on()
        had = everything(disk / "m")
        assert had[0][0] == 1
        with Mirror(path, disk / "m", keep_bytes=2 * SEGMENT_BYTES) as mirror:
            mirror.catch_up()
        assert mirror.status.durable_seq == writer.next_seq - 1


# --- Restore ---


@CHECKSUM
def test_what_stands_behind_the_promise_comes_back_as_far_as_checksums_prove_it(
    path, disk, checksum
):
    class Silent(Disk):
        """A disk that dies before the promise is stored."""

        def write(self, path, data, offset):
            if path.name == "control" and armed:
                raise OSError(5, "Input/output error")
            super().write(path, data, offset)

    armed = False
    with publisher(path, checksum=checksum) as writer:
        fill(writer, 100)
        with Mirror(path, disk / "m", disk=Silent()) as mirror:
            mirror.turn()
            fill(writer, 20)
            armed = True
            with pytest.raises(OSError, match="Input/output"):
                mirror.turn()
    shutil.rmtree(path)
    report = restore(disk / "m", path)
    assert report.durable_seq == 100
    if checksum:
        assert (report.next_seq, report.beyond, report.lost) == (121, 20, None)
    else:
        assert (report.next_seq, report.beyond) == (101, 0)
        assert str(report.lost).startswith("1280 bytes behind seq=100 that could not be verified")
        assert [Path(name).parent.parent for name in report.recovery.set_aside] == [path]
    assert seqs(subscriber(path, None, start="earliest")) == list(range(1, report.next_seq))


def test_a_mirror_that_is_behind_its_promise_is_told(path, disk):
    with publisher(path, checksum=True) as writer:
        fill(writer, 100)
        with Mirror(path, disk / "m") as mirror:
            mirror.turn()
    file = segment_file(disk / "m")
    # The device has lost what it had confirmed.
    overwrite(file, file.stat().st_size // 2 & ~7, bytes(100))
    content = file.read_bytes()
    overwrite(file, content.rindex(b"\x64\0\0\0\0\0\0\0" * 5), b"\0")
    shutil.rmtree(path)
    report = restore(disk / "m", path)
    assert report.next_seq == 100
    assert str(report.lost).startswith("1 messages that the mirror had promised")


def test_restore_never_overwrites_anything(path, disk):
    with publisher(path) as writer:
        fill(writer, 10)
        with Mirror(path, disk / "m") as mirror:
            mirror.turn()
    with pytest.raises(chronicle.BadArgument, match="there is a queue"):
        restore(disk / "m", path)
    other = path.with_name("other")
    other.mkdir()
    (other / "x").write_text("mine")
    with pytest.raises(chronicle.BadArgument, match="there is something else"):
        restore(disk / "m", other)
    (other / "x").unlink()
    assert restore(disk / "m", other).next_seq == 11
    with pytest.raises(chronicle.NotAQueue):
        restore(disk / "nothing", path.with_name("third"))
    assert sorted(p.name for p in path.parent.iterdir()) == ["other", path.name]


def test_a_restore_that_died_is_cleared_away_by_the_next(path, disk):
    with publisher(path) as writer:
        fill(writer, 10)
        with Mirror(path, disk / "m") as mirror:
            mirror.turn()
    shutil.rmtree(path)
    staging = path.with_name(f".{path.name}.restoring")
    (staging / "segments").mkdir(parents=True)
    (staging / "segments" / f"{7:020}.seg").write_bytes(b"half")
    (staging / "control").write_bytes(b"half")
    assert restore(disk / "m", path).next_seq == 11
    assert not staging.exists()


def test_a_damaged_mirror_is_refused_with_the_file_that_is_damaged(path, disk):
    with publisher(path) as writer:
        fill(writer, 10)
        with Mirror(path, disk / "m") as mirror:
            mirror.turn()
    shutil.rmtree(path)
    segment_file(disk / "m").write_bytes(b"short")
    with pytest.raises(chronicle.NotAQueue, match=r"\.seg' has not the size"):
        restore(disk / "m", path)
    assert not path.exists()
    (disk / "m" / "control").write_bytes(bytes(4096))
    with pytest.raises(chronicle.NotAQueue):
        restore(disk / "m", path)


def test_restore_on_the_command_line(path, disk, capsys):
    with publisher(path, schema=[Trade]) as writer, subscriber(path, "risk"):
        fill(writer, 1_234)
        with Mirror(path, disk / "m") as mirror:
            mirror.turn()
    assert main(["restore", str(disk / "m"), str(path)]) == 1
    assert "move it away" in capsys.readouterr().err
    shutil.rmtree(path)
    assert main(["restore", str(disk / "m"), str(path)]) == 0
    out = capsys.readouterr().out
    assert "the mirror had promised seq=1234; the next message is 1235" in out
    assert "readers: risk" in out
    assert "lost: nothing that the mirror had" in out
    shutil.rmtree(path)
    assert main(["restore", "--json", str(disk / "m"), str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["next_seq"], found["lost"], found["readers"]) == (1_235, None, ["risk"])
    assert subscriber(path).schema.keys() == {Trade.type_id}


# --- As a service ---


def test_a_sidecar_keeps_a_mirror_and_lets_it_catch_up_at_the_end(path, disk):
    with publisher(path) as writer:
        with chronicle.Sidecar() as sidecar:
            mirror = sidecar.mirror(path, disk / "m", interval_s=0.001, name="m")
            fill(writer, 10)
            eventually(lambda: mirror.status.durable_seq == 10)
            assert sidecar.healthy
            assert mirror.status.behind_s < 60
            # Never looked at before the end.
            slow = sidecar.mirror(path, disk / "slow", interval_s=1e6)
            eventually(lambda: slow.status.turns)
            fill_segments(writer, 2)
        for mirrored in (mirror, slow):
            assert mirrored.status.durable_seq == writer.next_seq - 1
        assert sidecar.health()["m"].detail == f"caught up at seq={writer.next_seq - 1}"
        assert_same_bytes(path, disk / "m")
        # Both were closed.
        Mirror(path, disk / "m").open()


def test_a_mirror_waits_for_its_queue_and_comes_back_when_the_disk_works_again(
    path, disk, caplog, monkeypatch
):
    broken = threading.Event()
    real = Disk.sync

    def sync(self, file):
        if broken.is_set():
            raise OSError(5, "Input/output error", str(file))
        real(self, file)

    monkeypatch.setattr(Disk, "sync", sync)
    backoff = Backoff(first_s=0.001, max_s=0.01)
    with chronicle.Sidecar(backoff=backoff) as sidecar:
        mirror = sidecar.mirror(path, disk / "m", interval_s=0.001, behind_s_max=0.05, name="m")
        eventually(lambda: sidecar.health()["m"].restarts > 2)
        with publisher(path) as writer:
            fill(writer, 10)
            eventually(lambda: mirror.status.durable_seq == 10)
            broken.set()
            fill(writer, 10)
            eventually(lambda: sidecar.health()["m"].state is State.BACKOFF)
            eventually(lambda: "s are allowed" in sidecar.health()["m"].detail)
            assert not sidecar.healthy
            assert mirror.status.durable_seq == 10
            broken.clear()
            eventually(lambda: mirror.status.durable_seq == 20)
            eventually(lambda: sidecar.healthy)
    # What is expected in operation is a line each.
    assert not any(record.exc_info for record in caplog.records)


def test_a_disk_that_hangs_stops_its_own_mirror_only(path, disk, caplog, monkeypatch):
    hang, hanging = threading.Event(), threading.Event()
    real = Disk.sync

    def sync(self, file):
        if "stuck" in file.parts and not hang.is_set():
            hanging.set()
            hang.wait(60)
        real(self, file)

    monkeypatch.setattr(Disk, "sync", sync)
    with publisher(path) as writer:
        sidecar = chronicle.Sidecar().start()
        sidecar.mirror(path, disk / "stuck", name="stuck")
        fine = sidecar.mirror(path, disk / "fine", interval_s=0.001)
        assert hanging.wait(60)
        fill(writer, 10)
        eventually(lambda: fine.status.durable_seq == 10)
        fill(writer, 10)
        report = sidecar.stop(0.2)
        # What can be finished is, and what cannot is named.
        assert fine.status.durable_seq == 20
        assert [line.partition(":")[0] for line in report.unfinished] == ["stuck"]
        hang.set()
    caplog.clear()


@pytest.mark.needs_root
def test_a_full_disk_is_a_typed_error_and_the_mirror_goes_on_when_there_is_room():
    lines = run_python_mounted(
        ["-t", "tmpfs", "-o", "size=768k", "x", "/mnt"],
        """
        from chronicle.sidecar import Mirror, restore
        import shutil, tempfile
        folder = tempfile.mkdtemp(dir="/dev/shm")
        path = Path(folder) / "q"
        writer = publisher(path)
        mirror = Mirror(path, "/mnt/m")
        filler = Path("/mnt/filler")
        fill(writer, 10)
        mirror.catch_up()
        filler.write_bytes(bytes(300_000))
        try:
            fill_segments(writer, 2)
            mirror.turn()
        except chronicle.DiskFull as error:
            say("DiskFull", error.needed_bytes)
        mirror.close()
        filler.unlink()
        say(mirror.status.durable_seq, len(list(subscriber("/mnt/m", None))))
        fill(writer, 1)
        mirror.open()
        mirror.catch_up()
        say(mirror.status.durable_seq == writer.next_seq - 1, chronicle.verify("/mnt/m")["damage"])
        mirror.close()
        shutil.rmtree(folder)
        """,
    )
    assert lines[0] == "DiskFull 65536"
    assert lines[1].startswith("10 ")
    assert lines[2] == "True []"


# --- The bytes ---


@CHECKSUM
def test_the_layout_is_the_cores_own(path, checksum):
    with publisher(path, checksum=checksum, segment_bytes=1 << 20, segments_max=77) as writer:
        fill(writer, 5)
        writer.flush()
        control, found = Control.read(path), chronicle.inspect(path)
        assert control.queue_id == found["queue_id"]
        assert control.geometry.segment_bytes == found["segment_bytes"]
        assert control.table_capacity == found["segments_max"]
        assert control.floor_segment == found["floor_segment"]
        assert control.tail_segment == found["tail_segment"]
        assert control.durable == (found["durable_seq"], found["durable_position"])
        assert control.durable == (5, writer.position)
        assert control.was_opened_for_writing
        assert control.geometry.data_offset + 5 * 72 == writer.position
        control.forget_the_machine()
        assert not control.was_opened_for_writing
        overwrite(path / "control", 8, (2).to_bytes(4, "little"))
        with pytest.raises(chronicle.FormatError, match="version=2 expected=1"):
            Control.read(path)


def test_positions_and_names_of_segments():
    geometry = Geometry(16)
    assert geometry.split(geometry.position(3, 4224)) == (3, 4224)
    assert segment_index(f"{12:020}.seg") == 12
    for name in ("12.seg", f"{12:020}.seg.tmp", f"{12:020}", "x" * 20 + ".seg", f"{12:021}.seg"):
        assert segment_index(name) is None


def test_the_writer_lock_is_the_cores_own_and_goes_with_its_process(path):
    with publisher(path):
        with pytest.raises(chronicle.WriterActive):
            WriterLock(path)
    with WriterLock(path):
        with pytest.raises(chronicle.WriterActive):
            publisher(path)
        assert chronicle.inspect(path)["writer_live"]
    run_python(
        """
        from chronicle.sidecar.files import WriterLock
        WriterLock(Path(args[0]))
        os._exit(0)
        """,
        path,
    )
    assert payloads(subscriber(path)) == []
    publisher(path).close()
