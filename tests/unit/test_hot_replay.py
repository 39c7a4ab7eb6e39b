"""Replay: what is identical, what differs first, and what cannot be proved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle.cli import main
from chronicle.errors import BadArgument, DecodeError, HotThreadFailed, NotAQueue
from chronicle.hot.program import NativeHandler
from chronicle.hot.replay import replay

from tests.native_support import TYPE_SUM, library, native, word
from tests.queue_support import SEGMENT_BYTES, fill_segments, publisher
from tests.replay_support import (
    Folds,
    FoldsChanged,
    Plain,
    PlainCount,
    PlainFails,
    PlainFixed,
    PlainLoud,
    PlainQuiet,
    PlainState,
    PlainWider,
    Session,
    SetAlpha,
    contents,
    small_run,
)


def test_a_run_with_readers_that_come_and_go_and_commands_replays_identically(
    folder: Path,
) -> None:
    session = Session(folder, Folds(alpha=0.25))
    session.hot.start()
    source = None
    for i in range(600):
        session.tick(i % 3, i)
        if i % 50 == 20:
            source = session.add(2)
        if i % 50 == 45:
            assert source is not None
            session.remove(source)
        if i % 40 == 0:
            session.command(SetAlpha(alpha=0.1 + i / 1_000))
    session.stop()
    before = {name: contents(folder / name) for name in ("seen", "told")}
    report = replay(session.path)
    assert report.verdict == "identical", report
    assert (report.state, report.difference, report.notes) == ("identical", None, ())
    assert report.same_code
    assert report.handler == "tests.replay_support:Folds"
    assert report.inputs["message"] == session.sent
    assert (report.inputs["command"], report.inputs["event"]) == (15, 24)
    assert (report.inputs["start"], report.inputs["stop"]) == (1, 1)
    assert {o.name: o.equal for o in report.outputs} == {n: len(r) for n, r in before.items()}
    assert {name: contents(folder / name) for name in ("seen", "told")} == before
    assert report.clock_ns == before["told"][-1][2]


def test_a_handler_changed_by_one_line_is_caught_at_the_first_difference(folder: Path) -> None:
    session = Session(folder, Folds(alpha=0.25), sources=1)
    session.hot.start()
    for i in range(1, 1_200):
        session.tick(0, i)
    session.stop()
    report = replay(session.path, FoldsChanged())
    found = report.difference
    assert report.verdict == "different"
    assert found is not None
    assert report.same_code is False
    assert (found.kind, found.name, found.field, found.seq) == ("output", "seen", "mean", 1_000)
    assert found.found == 250.0
    assert found.expected_message is not None
    assert found.expected_message.fields is not None
    assert found.expected == found.expected_message.fields["mean"] != found.found
    given = found.input
    assert given is not None
    assert given.message is not None
    assert given.message.fields is not None
    assert (given.kind, given.source, given.seq) == ("message", 0, 1_000)
    assert given.message.fields == {"price": 1_000, "qty": 1}
    assert contents(session.path)[given.journal_seq - 1][2] == given.now_ns
    (seen, _) = report.outputs
    assert seen.equal == 999


@pytest.mark.parametrize(
    ("handler", "kind", "name", "expected", "found"),
    [
        (PlainQuiet, "count", "out", 9, 8),
        (PlainState, "state", "last[2]", 4, 77),
        (PlainCount, "counter", "seen", 9, 18),
        (PlainFails, "failure", "", "no failure", "HandlerFailed: five"),
    ],
)
def test_each_kind_of_difference_is_named(
    folder: Path, handler: Any, kind: str, name: str, expected: Any, found: Any
) -> None:
    report = replay(small_run(folder), handler)
    difference = report.difference
    assert report.verdict == "different", report
    assert difference is not None
    assert (difference.kind, difference.name, difference.expected) == (kind, name, expected)
    if kind == "failure":
        assert difference.found.startswith(found)
        assert difference.input is not None
        assert difference.input.seq == 5
    else:
        assert difference.found == found


def test_a_message_too_many_is_a_difference_with_nothing_expected(folder: Path) -> None:
    found = replay(small_run(folder), PlainLoud).difference
    assert found is not None
    assert (found.kind, found.seq, found.expected_message) == ("output", 10, None)
    assert found.found_message is not None
    assert found.found_message.fields == {"kind": 0, "source": 0, "number": 9}


def test_a_failure_of_the_handler_is_reproduced(folder: Path) -> None:
    session = Session(folder, Plain(), sources=1, outputs=("out",))
    session.hot.start()
    for price in range(1, 14):
        session.tick(0, price)
    with pytest.raises(HotThreadFailed, match="thirteen"):
        session.hot.join(60)
    session.close()
    report = replay(session.path)
    assert report.verdict == "identical", report
    assert "failed on the last input, as it did then" in report.notes[0]
    # A handler that is mended is different.
    found = replay(session.path, PlainFixed).difference
    assert found is not None
    assert (found.kind, found.expected, found.found) == (
        "failure",
        "the handler fails",
        "no failure",
    )


def test_another_layout_of_state_is_taken_over_by_name_and_said(folder: Path) -> None:
    report = replay(small_run(folder), PlainWider)
    assert report.verdict == "unproved"
    assert report.state == "not compared"
    (why,) = report.unproved
    assert "not taken over: last; new: extra, last" in why
    assert report.outputs[0].equal == 9


def test_state_that_was_passed_in_is_what_the_replay_begins_with(folder: Path) -> None:
    old = Plain(total=1_000).state
    session = Session(folder, Plain(), sources=1, outputs=("out",), state=old)
    session.hot.start()
    session.tick(0, 4)
    session.stop()
    assert session.hot.state["total"] == 1_004
    assert replay(session.path).verdict == "identical"


def test_outputs_that_begin_later_and_move_to_another_queue_are_compared(folder: Path) -> None:
    # The output has messages of others before, so numbers do not begin at 1.
    with publisher(folder / "seen") as writer:
        for _ in range(5):
            writer.append(9, b"before")
    session = Session(folder, Folds(), sources=1, outputs=("seen",))
    session.hot.start()
    for price in range(10):
        session.tick(0, price)
    session.command(SetAlpha(alpha=0.3))  # Nobody has `told` yet: it is dropped.
    session.settle()
    other = publisher(folder / "other")
    told = publisher(folder / "told")
    session.hot.wait_for(session.hot.add_writer("seen", other), 60)
    session.hot.wait_for(session.hot.add_writer("told", told), 60)
    for price in range(10):
        session.tick(0, price)
    session.command(SetAlpha(alpha=0.4))
    session.stop()
    other.close()
    told.close()
    report = replay(session.path)
    assert report.verdict == "identical", report
    assert {o.name: o.equal for o in report.outputs} == {"seen": 20, "told": 2}


def test_a_gap_is_an_input_and_is_replayed(folder: Path) -> None:
    session = Session(folder, Folds(), sources=1)
    queue = folder / "in-1"
    fill_segments(session.inputs[1], 4)
    reader = session.reader(1, start="earliest")
    reader.close()
    chronicle.apply_retention(queue, bytes_max=2 * SEGMENT_BYTES)
    session.hot.start()
    session.where[session.add(1, start=1)] = 1
    kept = contents_from_floor(queue)
    session.sent += kept
    session.tick(0, 7)
    session.stop()
    told = [record for record in contents(folder / "told") if record[3][0] == 4]
    assert len(told) == 1
    report = replay(session.path)
    assert report.verdict == "identical", report
    assert report.inputs["message"] == kept + 1


def contents_from_floor(path: Path) -> int:
    """Return how many messages a queue still has."""
    with chronicle.Queue.open_subscriber(path, None, start=_floor(path)) as reader:
        return sum(1 for _ in reader)


def _floor(path: Path) -> int:
    found: int = next(s["first_seq"] for s in chronicle.inspect(path)["segments"] if s["first_seq"])
    return found


def test_functions_in_c_with_hooks_around_batches_replay_identically(folder: Path) -> None:
    code = library()

    def handler() -> NativeHandler:
        # The hooks change state, so a batch that begins elsewhere would show.
        return native(batched=True, on_batch_begin=code.on_idle, on_batch_end=code.on_start)

    session = Session(folder, handler(), sources=2, outputs=("out",))
    session.hot.start()
    for number in range(500):
        session.inputs[number % 2].append(TYPE_SUM, word(number))
        session.sent += 1
        if number % 50 == 0:
            session.settle()
    session.stop()
    report = replay(session.path, handler())
    assert report.verdict == "identical", report
    assert report.inputs["batch begin"] == report.inputs["batch end"] >= 10
    assert report.same_code is None
    assert any("unaudited" in note for note in report.notes)
    with pytest.raises(BadArgument, match="no name that can be imported"):
        replay(session.path)


# --- What cannot be proved ---


def test_messages_that_retention_deleted_stop_the_replay_and_it_says_so(folder: Path) -> None:
    session = Session(folder, Plain(), sources=1, outputs=("out",))
    session.hot.start()
    for price in range(14, 5_000):
        session.tick(0, price)
    session.stop()
    chronicle.remove_reader(folder / "in-0", "reader-0")
    chronicle.apply_retention(folder / "in-0", bytes_max=2 * SEGMENT_BYTES)
    report = replay(session.path)
    assert report.verdict == "unproved"
    assert report.inputs["message"] == 0
    assert any("message seq=1 of source 0" in why for why in report.unproved)


def test_output_messages_that_retention_deleted_are_counted(folder: Path) -> None:
    session = Session(folder, Plain(), sources=1, outputs=("out",))
    session.hot.start()
    for price in range(14, 5_000):
        session.tick(0, price)
    session.stop()
    chronicle.apply_retention(folder / "out", bytes_max=2 * SEGMENT_BYTES)
    kept = contents_from_floor(folder / "out")
    report = replay(session.path)
    assert report.verdict == "unproved"
    assert report.state == "identical"
    (out,) = report.outputs
    assert (out.equal, out.skipped) == (kept, session.sent - kept)
    assert any("are gone (retention)" in why for why in report.unproved)


def test_a_journal_without_a_final_record_is_compared_as_far_as_it_goes(folder: Path) -> None:
    session = Session(folder, Plain(), sources=1, outputs=("out",))
    session.hot.start()
    for price in range(1, 10):
        session.tick(0, price)
    session.settle()
    report = replay(session.path)
    assert report.verdict == "unproved"
    assert "still runs" in report.unproved[0]
    assert report.outputs[0].equal == 9
    session.stop()
    assert replay(session.path).verdict == "identical"


def test_other_runs_in_the_same_journal_are_chosen_by_number(folder: Path) -> None:
    path = small_run(folder)
    shutil.rmtree(folder / "in-0")
    small_run(folder, prices=range(20, 30))
    report = replay(path)
    assert (report.run, report.runs, report.verdict) == (2, 2, "identical")
    first = replay(path, run=1)
    assert first.verdict != "identical"  # Its messages are gone.
    assert any("another queue" in note for note in first.notes)
    with pytest.raises(BadArgument, match="found=3 expected=1 to 2"):
        replay(path, run=3)


def test_a_queue_that_moved_is_found_where_the_caller_says(folder: Path) -> None:
    path = small_run(folder)
    (folder / "in-0").rename(folder / "moved")
    report = replay(path)
    assert report.verdict == "unproved"
    assert any("source 0" in note and "cannot be opened" in note for note in report.notes)
    assert replay(path, sources={0: folder / "moved"}).verdict == "identical"
    assert replay(path, sources={str(folder / "in-0"): folder / "moved"}).verdict == "identical"


def test_an_output_that_was_made_anew_is_not_compared(folder: Path) -> None:
    path = small_run(folder)
    shutil.rmtree(folder / "out")
    with publisher(folder / "out") as writer:
        writer.append(7, b"other")
    report = replay(path)
    assert report.verdict == "unproved"
    assert any("another queue than the one that was written" in note for note in report.notes)
    assert report.outputs[0].skipped == 9
    assert report.state == "identical"


def rewritten(folder: Path, path: Path, *, records_max: int | None = None, **head: Any) -> Path:
    """Copy a journal with some parts of its head changed, and cut off."""
    copy = folder / "rewritten"
    with publisher(copy) as writer:
        for number, (_, type_id, _, data) in enumerate(contents(path)[:records_max]):
            if number == 0:
                data = json.dumps(json.loads(data) | head).encode()
            writer.append(type_id, data)
    return copy


def copied_output(folder: Path, count: int, **more: Any) -> dict[str, Any]:
    """Copy the first messages of the output to another queue; return how a head names that."""
    with publisher(folder / "copy") as writer:
        for _, type_id, timestamp_ns, data in contents(folder / "out")[:count]:
            writer.append(type_id, data, timestamp_ns=timestamp_ns)
        path, queue_id = str(folder / "copy"), writer.queue_id
        place = {"path": path, "queue_id": queue_id, "next_seq": 1, "epoch": writer.epoch}
    return {"out": place | more}


def test_outputs_that_end_early_are_no_difference_once_the_machine_has_rebooted(
    folder: Path,
) -> None:
    path = small_run(folder)
    writers = copied_output(folder, 6)
    report = replay(rewritten(folder, path, writers=writers, boot_id="another"))
    assert report.verdict == "unproved"
    assert any("ends at seq=7; the machine has rebooted since" in why for why in report.unproved)
    assert (report.outputs[0].equal, report.outputs[0].skipped) == (6, 2)
    assert report.state == "identical"
    shutil.rmtree(folder / "rewritten")
    # On the same boot nothing is lost: the handler publishes more than it did.
    found = replay(rewritten(folder, path, writers=writers)).difference
    assert found is not None
    assert (found.kind, found.seq, found.expected_message) == ("output", 7, None)


def test_what_others_wrote_where_a_run_was_cut_off_is_no_difference(folder: Path) -> None:
    path = small_run(folder)
    writers = copied_output(folder, 5)
    with publisher(folder / "copy") as writer:
        writer.append(9, b"of the next run")
    # Head and six inputs: what the sixth published was lost, and its number used again.
    report = replay(rewritten(folder, path, records_max=7, writers=writers))
    assert report.verdict == "unproved"
    assert report.difference is None
    assert any("was written by others from seq=6 on" in why for why in report.unproved)
    assert report.outputs[0].equal == 5
    shutil.rmtree(folder / "rewritten")
    # An earlier message that is another one is a difference.
    found = replay(rewritten(folder, path, records_max=8, writers=writers)).difference
    assert found is not None
    assert (found.seq, found.field, found.expected) == (6, "type_id", 9)


def test_messages_that_only_the_cut_off_run_published_are_a_difference(folder: Path) -> None:
    path = small_run(folder)
    found = replay(rewritten(folder, path, records_max=7)).difference
    assert found is not None
    assert (found.kind, found.expected, found.found) == ("count", 9, 6)


def test_an_output_that_refused_a_message_leaves_the_state_unproved(folder: Path) -> None:
    with publisher(folder / "out", segments_max=2) as writer:
        assert writer.next_seq == 1
    session = Session(folder, Plain(), sources=1, outputs=("out",))
    session.hot.start()
    for price in range(14, 5_000):
        session.tick(0, price)
    with pytest.raises(HotThreadFailed, match="cannot be written"):
        session.hot.join(60)
    session.close()
    published = len(contents(folder / "out"))
    report = replay(session.path)
    assert report.difference is None
    assert (report.verdict, report.state) == ("unproved", "not compared")
    assert any("an output refused a message" in why for why in report.unproved)
    assert report.outputs[0].equal == published
    assert report.inputs["message"] == published + 1


def test_a_journal_that_is_full_ends_the_run_before_the_input_and_replays(folder: Path) -> None:
    with publisher(folder / "journal", segments_max=2) as writer:
        assert writer.next_seq == 1
    session = Session(folder, Plain(), sources=1, outputs=("out",))
    session.hot.start()
    for price in range(14, 5_000):
        session.tick(0, price)
    with pytest.raises(HotThreadFailed, match="journal cannot be written"):
        session.hot.join(60)
    session.close()
    published = contents(folder / "out")
    report = replay(session.path)
    assert report.difference is None
    assert report.outputs[0].equal == len(published) == report.inputs["message"]


def test_until_stops_after_so_many_inputs(folder: Path) -> None:
    report = replay(small_run(folder), until=4)
    assert report.verdict == "unproved"
    assert sum(report.inputs.values()) == 4
    assert report.unproved == ("stopped after 4 inputs, as asked for",)


def test_progress_is_told(folder: Path) -> None:
    told: list[int] = []
    replay(small_run(folder), progress=told.append)
    assert told[-1] == 9


def test_what_cannot_be_replayed_is_refused_with_the_reason(folder: Path) -> None:
    session = Session(folder, lambda message: None, sources=1, outputs=())
    session.hot.start()
    session.tick(0, 1)
    session.stop()
    with pytest.raises(BadArgument, match="plain callable"):
        replay(session.path)
    with pytest.raises(BadArgument, match="plain callable"):
        replay(session.path, print)
    with pytest.raises(DecodeError, match="no head"):
        replay(folder / "in-0")
    with pytest.raises(NotAQueue):
        replay(folder / "nothing")

    class Local(Plain):
        pass

    with pytest.raises(BadArgument, match="no name that can be imported"):
        replay(small_run(folder / "local", handler=Local()))
    assert replay(folder / "local" / "journal", Local()).verdict == "identical"


# --- The command ---


def test_the_command_says_identical(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_run(folder)
    assert main(["replay", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("journal of hot thread 'replayed': tests.replay_support:Plain\n")
    assert "inputs: 9 messages\n" in out
    assert "output 'out': 9 messages identical\n" in out
    assert out.endswith("IDENTICAL\n")


def test_the_command_shows_the_first_difference(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_run(folder)
    assert main(["replay", str(path), "--handler", "tests.replay_support:PlainLoud"]) == 1
    out = capsys.readouterr().out
    assert "first difference: output 'out', message seq=10\n" in out
    assert "input      #9 message of source 0" in out
    assert "    price = 9\n" in out
    assert "expected   no message" in out
    assert "    number = 9\n" in out
    assert main(["replay", str(path), "--handler", "tests.replay_support:PlainState"]) == 1
    out = capsys.readouterr().out
    assert "state at the end, field 'last[2]'" in out
    assert "expected   4\n" in out
    assert "found      77\n" in out


def test_the_command_speaks_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_run(folder)
    assert main(["replay", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["difference"]) == ("identical", None)
    assert found["outputs"] == [{"name": "out", "identical": 9, "not_compared": 0}]
    other = ["--handler", "tests.replay_support:PlainLoud", "--json"]
    assert main(["replay", str(path), *other]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["difference"]["input"]["message"]["fields"] == {"price": 9, "qty": 1}
    assert found["difference"]["expected_message"] is None


def test_the_command_has_a_code_of_its_own_for_what_is_not_proved(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_run(folder)
    (folder / "in-0").rename(folder / "moved")
    assert main(["replay", str(path)]) == 3
    assert "NOT PROVED" in capsys.readouterr().out
    assert main(["replay", str(path), "--source", f"0={folder / 'moved'}"]) == 0
    assert main(["replay", str(path), "--source", "nonsense"]) == 2
    assert main(["replay", str(path), "--handler", "no.such:Thing"]) == 1
    assert main(["replay", str(folder / "nothing")]) == 1
