"""What surrounds a queue: retention, damage, provisioners, permissions, disks."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import chronicle
import pytest

from tests.queue_support import (
    SEGMENT_BYTES,
    Trade,
    fill,
    fill_segments,
    payloads,
    publisher,
    run_python_mounted,
    segment_file,
    seqs,
    snapshot,
    subscriber,
)

# --- Retention, gaps, damage ---


def test_retention_keeps_what_a_live_reader_has_not_committed(path: Path):
    with publisher(path) as writer, subscriber(path, "slow") as reader:
        fill_segments(writer, 5)
        report = chronicle.apply_retention(path, bytes_max=1)
        assert report["segments_deleted"] == 0
        assert report["held_by"] == "slow"
        count = len(list(reader))
        reader.commit()
        report = chronicle.apply_retention(path, bytes_max=1)
        assert report["segments_deleted"] == 5
        assert report["held_by"] is None
        assert count == writer.next_seq - 1


def test_a_gap_is_raised_once_and_says_what_is_missing(path: Path):
    with publisher(path) as writer:
        subscriber(path, "away").close()
        fill_segments(writer, 3)
        chronicle.apply_retention(path, bytes_max=SEGMENT_BYTES)
        with subscriber(path, "away") as reader:
            with pytest.raises(chronicle.Gap) as caught:
                reader.next()
            gap = caught.value
            assert (gap.first_missing, gap.reason, gap.category) == (1, "retention", "warn")
            assert gap.source is None
            assert "away" in str(gap)
            assert reader.gaps == 1
            rest = seqs(reader)
            assert rest == list(range(gap.next, writer.next_seq))
            assert reader.gaps == 1


def test_a_reader_stays_at_a_corrupt_record_until_it_seeks(path: Path):
    with publisher(path) as writer:
        fill(writer, 3)
        second = writer.position
        fill(writer, 3)
    overwrite_commit(path, second, 0x7FFF_FFFF)
    with subscriber(path) as reader:
        assert [reader.next().seq for _ in range(3)] == [1, 2, 3]  # type: ignore[union-attr]
        for _ in range(3):
            with pytest.raises(chronicle.CorruptRecord) as caught:
                reader.next()
            assert caught.value.position == second == reader.position
            assert caught.value.category == "fatal"
        with pytest.raises(chronicle.CorruptRecord):
            reader.read_batch(Trade)
        reader.seek(2)
        assert reader.next() is not None


def overwrite_commit(path: Path, position: int, word: int) -> None:
    with segment_file(path, position // SEGMENT_BYTES).open("r+b") as file:
        file.seek(position % SEGMENT_BYTES)
        file.write(word.to_bytes(4, "little"))


def test_a_checksum_finds_one_changed_bit(path: Path):
    with publisher(path, checksum=True) as writer:
        fill(writer, 3)
        third = writer.position
        fill(writer, 1)
    with segment_file(path).open("r+b") as file:
        file.seek(third + 40)
        byte = file.read(1)[0]
        file.seek(third + 40)
        file.write(bytes([byte ^ 1]))
    with subscriber(path) as reader:
        assert [reader.next().seq for _ in range(3)] == [1, 2, 3]  # type: ignore[union-attr]
        with pytest.raises(chronicle.CorruptRecord, match="checksum"):
            reader.next()
    report = chronicle.verify(path)
    assert report["records"] == 3
    assert [position for position, _ in report["damage"]] == [third]


def test_a_queue_with_as_many_segments_as_its_table_is_full_until_retention(path: Path):
    with publisher(path, segments_max=2) as writer, subscriber(path) as reader:
        with pytest.raises(chronicle.QueueFull, match="segments_max"):
            fill_segments(writer, 5)
        last = writer.next_seq - 1
        with pytest.raises(chronicle.QueueFull):
            writer.append(1, bytes(4_000))
        assert writer.next_seq == last + 1
        assert len(seqs(reader)) == last
        reader.commit()
        chronicle.apply_retention(path, bytes_max=1)
        assert writer.append(1, bytes(4_000)) == last + 1
        assert seqs(reader) == [last + 1]


def test_removing_the_queue_under_its_users_is_an_error_to_each(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        made = fill(writer, 3)
        shutil.rmtree(path)
        assert payloads(reader) == made
        with pytest.raises(chronicle.QueueRemoved) as caught:
            reader.wait(0.01)
        assert caught.value.category == "fatal"
        with pytest.raises(chronicle.QueueRemoved):
            fill_segments(writer, 2)


def test_a_queue_that_replaces_a_removed_one_is_another_queue(path: Path):
    with publisher(path) as writer, subscriber(path) as old:
        fill(writer, 3)
        shutil.rmtree(path)
        with publisher(path) as fresh, subscriber(path) as reader:
            assert fresh.append(1, b"fresh") == 1
            assert payloads(reader) == [b"fresh"]
        assert len(list(old)) == 3


# --- Looking and looking after ---


def test_inspect_touches_nothing_and_tells_who_is_there(path: Path):
    with publisher(path) as writer, subscriber(path, "me") as reader:
        fill_segments(writer, 2)
        list(reader)
        reader.commit()
        before = snapshot(path)
        facts = chronicle.inspect(path)
        assert snapshot(path) == before
    assert facts["writer_live"] is True
    assert facts["writer_pid"] == os.getpid()
    assert facts["tail_segment"] == 2
    assert [s["index"] for s in facts["segments"]][:3] == [0, 1, 2]
    (found,) = facts["readers"]
    assert (found["name"], found["live"], found["pid"]) == ("me", True, os.getpid())
    assert found["next_seq"] == reader_next(path, "me")
    assert chronicle.inspect(path)["writer_live"] is False


def reader_next(path: Path, name: str) -> int:
    with subscriber(path, name) as reader:
        return reader.next_seq


def test_verify_counts_and_reports_progress(path: Path):
    with publisher(path) as writer:
        fill_segments(writer, 3)
        last = writer.next_seq - 1
    seen: list[tuple[int, int]] = []
    report = chronicle.verify(path, lambda done, total: seen.append((done, total)))
    assert report["damage"] == []
    assert (report["records"], report["first_seq"], report["next_seq"]) == (last, 1, last + 1)
    assert [done for done, _ in seen] == list(range(len(seen)))
    assert seen


def test_an_error_in_a_progress_report_comes_out(path: Path):
    publisher(path).close()

    def progress(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        chronicle.verify(path, progress)


def test_a_reader_that_was_removed_starts_anew(path: Path):
    with publisher(path) as writer:
        fill(writer, 3)
        with subscriber(path, "me") as reader:
            list(reader)
            reader.commit()
            with pytest.raises(chronicle.ReaderActive):
                chronicle.remove_reader(path, "me")
        chronicle.remove_reader(path, "me")
        assert chronicle.inspect(path)["readers"] == []
        assert reader_next(path, "me") == 1


@pytest.mark.parametrize("look", [chronicle.inspect, chronicle.verify, chronicle.apply_retention])
def test_looking_at_what_is_not_there_is_an_error(path: Path, look: Callable[[Path], object]):
    with pytest.raises((chronicle.NotAQueue, FileNotFoundError)):
        look(path)


# --- A provisioner ---


def test_a_provisioner_keeps_rolls_out_of_line_and_loses_nothing(path: Path):
    with chronicle.Provisioner() as provisioner:
        with publisher(path, provisioner=provisioner) as writer:
            with subscriber(path, provisioner=provisioner) as reader:
                made = fill(writer, 500, size=1_000)
                assert payloads(reader) == made
    facts = chronicle.inspect(path)
    assert facts["rolls"] + facts["rolls_inline"] == facts["tail_segment"] > 0


def test_a_provisioner_applies_retention_and_flushes(path: Path):
    with chronicle.Provisioner() as provisioner:
        with publisher(
            path, provisioner=provisioner, retention_bytes=2 * SEGMENT_BYTES, flush_interval=0.001
        ) as writer:
            fill_segments(writer, 6)
            goal = writer.next_seq
            wait_until(lambda: chronicle.inspect(path)["floor_segment"] >= 5)
            wait_until(lambda: chronicle.inspect(path)["durable_seq"] == goal - 1)
            # What is behind the tail was never touched.
            assert writer.append(1, b"x") == goal


def wait_until(true: Callable[[], bool]) -> None:
    while not true():  # The test's own time limit ends this.
        time.sleep(0.001)


def test_after_the_provisioner_is_gone_rolls_are_done_inline(path: Path):
    provisioner = chronicle.Provisioner()
    with publisher(path, provisioner=provisioner) as writer, subscriber(path) as reader:
        provisioner.close()
        provisioner.close()
        made = fill(writer, 300, size=1_000)
        assert payloads(reader) == made
        with pytest.raises(chronicle.Closed):
            provisioner.attach(reader)


def test_chores_belong_to_the_writer(path: Path):
    with chronicle.Provisioner() as provisioner, publisher(path), subscriber(path) as reader:
        with pytest.raises(chronicle.BadArgument, match="writer"):
            provisioner.attach(reader, flush_interval=1)
        with pytest.raises(chronicle.BadArgument, match="expected"):
            provisioner.attach("queue")  # type: ignore[arg-type]


# --- Permissions ---


def modes(path: Path) -> dict[str, int]:
    found = {".": path, **{p.relative_to(path).as_posix(): p for p in path.rglob("*")}}
    return {name: stat.S_IMODE(p.lstat().st_mode) for name, p in found.items()}


@pytest.mark.parametrize(
    ("group_readable", "of_folders", "of_files"), [(False, 0o700, 0o600), (True, 0o750, 0o640)]
)
@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_files_are_for_the_owner_alone_or_for_the_group_to_read(
    path: Path, group_readable: bool, of_folders: int, of_files: int, umask: int
):
    old = os.umask(umask)
    try:
        with publisher(path, group_readable=group_readable, schema=[Trade]) as writer:
            fill_segments(writer, 2)
            subscriber(path, "me").close()
    finally:
        os.umask(old)
    for name, mode in modes(path).items():
        expected = of_folders if (path / name).is_dir() else of_files
        assert mode == expected, f"{name}: {mode:o}"


@pytest.mark.parametrize(
    "name", ["control", "segments.table", "segments", "readers", "queue.json", "writer.lock"]
)
def test_a_symlink_inside_a_queue_is_not_followed(path: Path, folder: Path, name: str):
    publisher(path, schema=[Trade]).close()
    (path / name).rename(folder / "elsewhere")
    (path / name).symlink_to(folder / "elsewhere")
    before = elsewhere(folder)
    with pytest.raises((chronicle.ChronicleError, OSError)):
        with publisher(path, schema=[Trade]), subscriber(path, "me") as reader:
            assert reader.schema
    assert elsewhere(folder) == before


def elsewhere(folder: Path) -> dict[str, bytes]:
    return {k: v for k, v in snapshot(folder).items() if k.startswith("elsewhere")}


def test_a_symlink_in_place_of_a_segment_or_a_cursor_is_not_followed(path: Path, folder: Path):
    with publisher(path) as writer:
        fill(writer, 1)
    (folder / "victim").write_bytes(bytes(4_096))
    (path / "readers" / "me.cursor").symlink_to(folder / "victim")
    with pytest.raises((chronicle.ChronicleError, OSError)):
        subscriber(path, "me")
    segment_file(path).rename(folder / "segment")
    segment_file(path).symlink_to(folder / "segment")
    with pytest.raises((chronicle.ChronicleError, OSError)):
        subscriber(path, "other")
    assert (folder / "victim").read_bytes() == bytes(4_096)


def test_the_schema_is_not_written_through_a_symlink(path: Path, folder: Path):
    publisher(path).close()
    (folder / "victim").write_text("precious")
    (path / "queue.json.tmp").symlink_to(folder / "victim")
    with pytest.raises((chronicle.ChronicleError, OSError)):
        publisher(path, schema=[Trade])
    assert (folder / "victim").read_text() == "precious"


@pytest.mark.needs_root
def test_a_read_only_mount_can_be_read_and_waited_on_and_not_written(path: Path, folder: Path):
    with publisher(path, schema=[Trade]) as writer:
        for trade in (Trade(price=n, symbol=b"A", qty=1) for n in range(100)):
            writer.publish(trade)
    before = snapshot(path)
    lines = run_python_mounted(
        ["--bind", "-o", "ro", str(folder), str(folder)],
        """
        path = Path(args[0])
        reader = subscriber(path, "me")
        say(reader.registered, len(reader.read_batch()), reader.next(), reader.wait(0.001))
        reader.commit()
        reader.seek(50)
        say(reader.next().seq, reader.decode(reader.next()).price)
        say(chronicle.inspect(path)["writer_live"], chronicle.verify(path)["records"])
        try:
            publisher(path)
        except OSError as error:
            say(error.errno)
        """,
        path,
    )
    assert lines == ["False 100 None False", "50 50", "False 100", "30"]
    assert snapshot(path) == before


@pytest.mark.needs_root
def test_a_full_disk_is_an_error_at_the_roll_and_nothing_is_lost(folder: Path):
    lines = run_python_mounted(
        ["-t", "tmpfs", "-o", "size=1m", "small", str(folder)],
        """
        folder = Path(args[0])
        ballast = folder / "ballast"
        ballast.write_bytes(bytes(500_000))
        with publisher(folder / "queue") as writer, subscriber(folder / "queue") as reader:
            errors = []
            while not errors:
                try:
                    fill(writer, 1, size=1000)
                except chronicle.DiskFull as error:
                    errors.append(error)
            (error,) = errors
            say(error.needed_bytes, isinstance(error, OSError), error.category)
            last = writer.next_seq - 1
            try:
                writer.append_many(trades(10_000), type_id=Trade)
            except chronicle.DiskFull:
                say("full again")
            published = writer.next_seq - 1
            say(len(list(reader)) == published)
            try:
                publisher(folder / "other")
            except chronicle.DiskFull:
                say("no room for another")
            ballast.unlink()
            fill(writer, 100, size=1000)
            say(len(list(reader)))
        say(chronicle.verify(folder / "queue")["damage"])
        """,
        folder,
    )
    assert lines == [
        f"{SEGMENT_BYTES} True error",
        "full again",
        "True",
        "no room for another",
        "100",
        "[]",
    ]


def test_a_wrong_version_is_refused_with_what_was_found_and_expected(path: Path):
    publisher(path).close()
    with (path / "control").open("r+b") as file:
        file.seek(8)
        file.write((99).to_bytes(4, "little"))
    for open_it in (publisher, subscriber, chronicle.inspect):
        with pytest.raises(chronicle.FormatError) as caught:
            open_it(path)
        error = caught.value
        assert (error.field, error.found, error.expected) == ("version", "99", "1")
        assert error.category == "fatal"
