"""Faults that other systems of this kind have (or had), one test each. None of them here."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import chronicle
import pytest

from tests.queue_support import (
    SEGMENT_BYTES,
    Child,
    fill,
    fill_segments,
    payloads,
    publisher,
    run_python,
    running,
    seqs,
    snapshot,
    subscriber,
)


def segments(path: Path) -> list[int]:
    return [segment["index"] for segment in chronicle.inspect(path)["segments"]]


def test_the_sequence_survives_a_restart(path: Path):
    for epoch in range(5):
        with publisher(path) as writer:
            assert writer.append(1, b"x") == epoch + 1
    assert run_python("say(publisher(Path(args[0])).append(1, b'x'))", path) == ["6"]


def test_without_a_policy_nothing_is_deleted_whatever_readers_do(path: Path):
    with chronicle.Provisioner() as provisioner:
        with publisher(path, provisioner=provisioner) as writer:
            last = fill_segments(writer, 4)
            with subscriber(path, "me", provisioner=provisioner) as reader:
                list(reader)
                reader.commit()
                report = chronicle.apply_retention(path)
                assert (report["segments_deleted"], report["floor_segment"]) == (0, 0)
            chronicle.remove_reader(path, "me")
            chronicle.apply_retention(path)
        publisher(path).close()
    assert segments(path)[:5] == [0, 1, 2, 3, 4]
    with subscriber(path, "late") as reader:
        assert seqs(reader) == list(range(1, last))


def test_a_late_joiner_gets_the_oldest_message_and_a_gap_and_pins_nothing(path: Path):
    with publisher(path) as writer:
        fill_segments(writer, 4)
        chronicle.apply_retention(path, bytes_max=2 * SEGMENT_BYTES)
        oldest = chronicle.inspect(path)["segments"][0]["first_seq"]
        assert oldest > 1
        with subscriber(path, "late") as reader:
            with pytest.raises(chronicle.Gap) as caught:
                reader.next()
            assert (caught.value.first_missing, caught.value.next) == (1, oldest)
            message = reader.next()
            assert message is not None
            assert message.seq == oldest
            list(reader)
            reader.commit()
            # It joined where the queue begins now, so what comes later goes as the policy says.
            fill_segments(writer, 2)
            list(reader)
            reader.commit()
            assert chronicle.apply_retention(path, bytes_max=1)["held_by"] is None
        assert len(segments(path)) == 1


def test_a_fanin_commit_never_covers_undelivered_messages(folder: Path):
    paths = [folder / "a", folder / "b"]
    for path, times in zip(paths, ([1, 2, 3], [10, 20]), strict=True):
        with publisher(path) as writer:
            for time_ns in times:
                writer.append(1, b"x", timestamp_ns=time_ns)
    for expected in ([2, 1], [3, 1], [4, 1], [4, 2], [4, 3]):
        with chronicle.FanInReader(subscriber(path, "me") for path in paths) as fanin:
            # It has looked at the next message of each source, and delivered one.
            assert fanin.next() is not None
            fanin.commit()
        for path, seq in zip(paths, expected, strict=True):
            with subscriber(path, "me") as reader:
                assert reader.next_seq == seq


def test_a_fanin_wait_wakes_for_any_source(folder: Path):
    with ExitStack() as stack:
        writers = [stack.enter_context(publisher(folder / str(n))) for n in range(4)]
        readers = [stack.enter_context(subscriber(folder / str(n))) for n in range(4)]
        fanin = stack.enter_context(chronicle.FanInReader(readers, wait="sleep"))
        for source in (3, 1, 0, 2):
            with running(lambda source=source: fill(writers[source], 1)):  # type: ignore[misc]
                assert fanin.wait() is True
            message = fanin.next()
            assert message is not None
            assert message.source == source


def test_a_spinning_reader_that_never_commits_stays_registered_as_alive(path: Path):
    with publisher(path) as writer:
        fill(writer, 1)
        with Child("subscriber(Path(args[0]), 'spinner', wait='spin', start=2).wait()", path):
            while not any(r["live"] for r in chronicle.inspect(path)["readers"]):
                pass
            fill_segments(writer, 1)
        # The child is dead now.
        (reader,) = chronicle.inspect(path)["readers"]
        assert reader["live"] is False
        with Child(
            """
            reader = subscriber(Path(args[0]), "spinner", wait="spin")
            say("open")
            while reader.next_seq < 10_000_000:
                reader.next()
            """,
            path,
        ) as child:
            child.expect("open")
            fill_segments(writer, 3)
            report = chronicle.apply_retention(path, bytes_max=1)
            assert (report["segments_deleted"], report["held_by"]) == (0, "spinner")
            (found,) = chronicle.inspect(path)["readers"]
            assert (found["live"], found["pid"]) == (True, child.pid)


def test_an_idle_writer_stays_alive(path: Path):
    with Child("with publisher(Path(args[0])):\n    say('open')\n    hear()", path) as child:
        child.expect("open")
        facts = chronicle.inspect(path)
        assert (facts["writer_live"], facts["writer_pid"]) == (True, child.pid)
        with pytest.raises(chronicle.WriterActive):
            publisher(path)
        child.tell()
        child.finish()
    assert chronicle.inspect(path)["writer_live"] is False


def test_two_writers_never_coexist_and_a_dead_one_never_blocks_the_next(path: Path):
    for turn in range(3):
        with Child("w = publisher(Path(args[0]))\nsay('open')\nhear()", path) as child:
            child.expect("open")
            with pytest.raises(chronicle.WriterActive) as caught:
                publisher(path)
            assert caught.value.pid == child.pid
            child.kill()
        with publisher(path) as writer:
            assert writer.epoch == 2 * turn + 2


@pytest.mark.parametrize("name", [None, "me"])
def test_a_reader_never_repairs_or_writes_what_it_reads(path: Path, name: str | None):
    with publisher(path) as writer:
        fill_segments(writer, 2)
        torn = writer.position
    # Half a record behind the tail, as a writer that was killed leaves it.
    file = path / "segments" / f"{torn // SEGMENT_BYTES:020}.seg"
    with file.open("r+b") as stream:
        stream.seek(torn % SEGMENT_BYTES + 4)
        stream.write(b"half a record")
    before = snapshot(path)
    with subscriber(path, name) as reader:
        while reader.next() is not None:
            pass
        reader.commit()
        reader.seek("earliest")
        reader.wait(0)
        reader.seek("latest")
    after = snapshot(path)
    if name is not None:
        assert after.pop(f"readers/{name}.cursor")
    assert after == before


def test_sequence_and_time_seeks_across_segments_land_exactly(path: Path):
    count = 500
    with publisher(path) as writer:
        for n in range(1, count + 1):
            writer.append(1, bytes(700), timestamp_ns=n * 10)
        assert writer.position // SEGMENT_BYTES >= 5
        with subscriber(path) as reader:
            for n in range(1, count + 1):
                reader.seek(n)
                assert reader.next().seq == n  # type: ignore[union-attr]
                reader.seek_time_ns(n * 10)  # Equal.
                assert reader.next().seq == n  # type: ignore[union-attr]
                reader.seek_time_ns(n * 10 - 5)  # Between.
                assert reader.next().seq == n  # type: ignore[union-attr]
            reader.seek_time_ns(0)  # Before.
            assert reader.next().seq == 1  # type: ignore[union-attr]
            reader.seek_time_ns(count * 10 + 1)  # After.
            assert reader.next() is None
            assert reader.next_seq == count + 1


def test_a_late_subscriber_never_misses_silently(path: Path):
    with publisher(path) as writer:
        last = fill_segments(writer, 5) - 1
        for keep in (5, 3, 1):
            chronicle.apply_retention(path, bytes_max=keep * SEGMENT_BYTES)
            with subscriber(path, f"late{keep}") as reader:
                seen: list[int] = []
                missed = 0
                while len(seen) + missed < last:
                    try:
                        seen += seqs(reader)
                    except chronicle.Gap as gap:
                        missed += gap.next - gap.first_missing
                assert seen == list(range(missed + 1, last + 1))
                assert reader.gaps == 1


def test_removing_a_queue_under_a_live_reader_is_an_error_and_not_a_crash(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        fill_segments(writer, 2)
        shutil.rmtree(path)
        got: list[int] = []

        def read_on() -> None:
            while True:
                got.extend(seqs(reader))
                reader.wait(0.001)

        with pytest.raises((chronicle.QueueRemoved, chronicle.SegmentMissing)):
            read_on()
        assert got == list(range(1, len(got) + 1))
        with pytest.raises(chronicle.QueueRemoved):
            fill_segments(writer, 1)
        reader.commit()


def test_clock_steps_backwards_break_nothing(folder: Path):
    path = folder / "stepping"
    times = [100, 200, 50, 60, 300, 10, 20, 400, 5]
    with publisher(path) as writer, subscriber(path) as reader:
        for round_number in range(60):
            for time_ns in times:
                writer.append(1, bytes(500), timestamp_ns=time_ns + round_number)
        assert writer.position // SEGMENT_BYTES >= 4
        messages = list(reader)
        assert seqs(messages) == list(range(1, 541))
        for wanted in (0, 5, 55, 150, 200, 201, 259, 301, 359, 400, 430, 459, 460):
            first = next((m.seq for m in messages if m.timestamp_ns >= wanted), 541)
            reader.seek_time_ns(wanted)
            assert reader.next_seq == first, wanted
    with publisher(folder / "steady") as writer:
        for time_ns in range(0, 500, 7):
            writer.append(1, b"x", timestamp_ns=time_ns)
    with ExitStack() as stack:
        readers = [stack.enter_context(subscriber(folder / n, "f")) for n in ("stepping", "steady")]
        fanin = stack.enter_context(chronicle.FanInReader(readers))
        merged = list(fanin)
    assert seqs(m for m in merged if m.source == 0) == list(range(1, 541))
    assert seqs(m for m in merged if m.source == 1) == list(range(1, 73))
    assert len(payloads(merged)) == 612
