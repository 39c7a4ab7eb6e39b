"""`HotThread`: what it runs, what it takes and gives back, what it answers, how it ends."""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import pickle
import threading
import time
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import chronicle
import numpy as np
import pytest
from chronicle.hot.acks import (
    CommandDone,
    FirstMessage,
    GapSeen,
    ReaderAdded,
    ReaderRemoved,
    Refused,
    SourceFailed,
    WriterAdded,
)
from chronicle.hot.guard import GuardReport
from chronicle.hot.meter import Histogram
from chronicle.hot.program import LogSite, NativeHandler, Program, as_program
from chronicle.hot.replay import replay

from tests.native_support import (
    TYPE_FAIL,
    TYPE_SLOW,
    TYPE_STOP,
    TYPE_SUM,
    library,
    native,
    until,
    word,
)
from tests.queue_support import (
    SEGMENT_BYTES,
    Trade,
    fill_segments,
    payloads,
    publisher,
    seqs,
    subscriber,
)

#: Threads that sleep when there is nothing: the tests' cores are few.
WAIT: dict[str, Any] = {"wait": "hybrid", "spin_ns": 5_000}


def hot_thread(handler: Any, **options: Any) -> chronicle.HotThread:
    return chronicle.HotThread(handler, **{**WAIT, **options})


def send_words(writer: chronicle.QueueWriter, *values: int) -> None:
    for value in values:
        writer.append(TYPE_SUM, word(value))


# --- Running ---


def test_a_native_handler_sees_messages_and_publishes_counts_and_logs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with publisher(tmp_path / "in") as writer, publisher(tmp_path / "out") as output:
        reader = subscriber(tmp_path / "in")
        send_words(writer, 1, 2, 3)
        caplog.set_level(logging.INFO, "chronicle.hot.native")
        with hot_thread(native(), readers=[reader], outputs={"out": output}) as hot:
            until(lambda: hot.counters == {"seen": 3})
            assert hot.poll() == []
        assert hot.state["sum"] == 6
        assert (hot.state["started"], hot.state["stopped"]) == (1, 1)
        texts = [record.getMessage() for record in caplog.records]
        assert texts == [f"word={n} half={n / 2} text=abc flag=True" for n in (1, 2, 3)]
        assert caplog.records[0].lineno == 30
        assert caplog.records[0].created == pytest.approx(time.time(), abs=600)
        published = subscriber(tmp_path / "out")
        assert payloads(iter(published.next, None)) == [word(1), word(2), word(3)]
        # Given back: they work as before.
        assert reader.next_seq == 4
        assert output.append(1, b"mine") == 4


def test_a_callable_is_called_with_messages_that_may_be_kept(tmp_path: Path) -> None:
    kept: list[chronicle.Message] = []
    with publisher(tmp_path / "in") as writer:
        reader = subscriber(tmp_path / "in")
        with hot_thread(kept.append, readers=[reader], name="kept") as hot:
            fill_segments(writer, 3)
            last = writer.next_seq - 1
            until(lambda: len(kept) == last)
            assert hot.status.messages == last
            assert hot.status.guard_seen == 0
        reader.close()
    assert seqs(kept) == list(range(1, last + 1))
    assert all(message.source == 0 for message in kept)
    # The mappings live as long as the messages.
    assert kept[0].payload.tobytes()[:8] == word(1)


def test_the_names_that_are_loaded_when_asked_for(tmp_path: Path) -> None:
    assert {"HotThread", "NativeHandler"} <= set(dir(chronicle))
    with pytest.raises(AttributeError, match="no attribute 'Hot'"):
        getattr(chronicle, "Hot")  # noqa: B009


def test_idle_turns_and_stops_that_a_handler_asks_for(tmp_path: Path) -> None:
    with publisher(tmp_path / "in") as writer:
        reader = subscriber(tmp_path / "in")
        hot = hot_thread(native(), readers=[reader]).start()
        until(lambda: hot.state["idles"] > 2)
        writer.append(TYPE_STOP, b"")
        hot.join(60)
        assert hot.status.state == "stopped"
        assert hot.failure is None
        assert hot.state["stopped"] == 1
        hot.stop()
        reader.close()


# --- Ownership ---


def test_what_was_handed_over_says_so_and_works_again_after_the_stop(tmp_path: Path) -> None:
    with publisher(tmp_path / "in") as writer, publisher(tmp_path / "out") as output:
        reader = subscriber(tmp_path / "in")
        hot = hot_thread(native(name="mover"), readers=[reader], outputs={"out": output}).start()
        for use in (reader.next, reader.commit, lambda: output.append(1, b"")):
            with pytest.raises(chronicle.Moved, match="handed to hot thread 'mover'") as error:
                use()
            assert error.value.owner == "hot thread 'mover'"
        # In containers and under other names too: it is the object that is moved.
        with pytest.raises(chronicle.Moved):
            next(iter({"a": [reader]}.values()))[0].next()
        with pytest.raises(chronicle.Moved):
            chronicle.FanInReader([reader])
        with pytest.raises(chronicle.Moved):
            hot_thread(native(), readers=[reader]).start()
        reader.close()  # what was moved stays with its owner
        hot.stop()
        assert reader.next() is None
        assert output.append(1, b"x") == 1
        send_words(writer, 7)
        message = reader.next()
        assert message is not None
        assert message.seq == 1
        reader.close()


def test_a_start_that_fails_gives_back_what_it_had_taken(tmp_path: Path) -> None:
    with publisher(tmp_path / "in"), publisher(tmp_path / "out") as output:
        reader, closed = subscriber(tmp_path / "in"), subscriber(tmp_path / "in", "other")
        closed.close()
        hot = hot_thread(native(), readers=[reader, closed], outputs={"out": output})
        with pytest.raises(chronicle.Closed):
            hot.start()
        assert reader.next() is None
        failing = native(on_start=library().fails)
        hot = hot_thread(failing, readers=[reader], outputs={"out": output})
        with pytest.raises(chronicle.HotThreadFailed, match="failed during start") as error:
            hot.start()
        assert error.value.during == "start"
        assert reader.next() is None
        assert output.append(1, b"x") == 1
        # It may be started again, and fails again.
        with pytest.raises(chronicle.HotThreadFailed):
            hot.start()
        hot.stop()
        reader.close()


def test_two_readers_of_one_object_cannot_be_handed_over(tmp_path: Path) -> None:
    with publisher(tmp_path / "in"):
        reader = subscriber(tmp_path / "in")
        with pytest.raises(chronicle.Moved):
            hot_thread(native(), readers=[reader, reader]).start()
        assert reader.next() is None
        reader.close()


# --- Commands ---


def test_commands_are_answered_in_order(tmp_path: Path) -> None:
    with hot_thread(native()) as hot:
        tickets = [hot.send(word(n), type_id=TYPE_SUM) for n in range(5)]
        unknown = hot.send(Trade(price=1, symbol=b"a", qty=2))
        ack = hot.wait_for(unknown, 60)
        assert isinstance(ack, CommandDone)
        assert not ack.handled
        assert 0 < ack.sent_ns <= ack.taken_ns
        acks = hot.poll()
        assert [a.ticket for a in acks if isinstance(a, CommandDone)] == [*tickets, unknown]
        assert all(a.handled for a in acks[:-1] if isinstance(a, CommandDone))
        assert hot.poll() == []
        # Known for a while, whoever has polled.
        assert hot.wait_for(tickets[0]) == acks[0]
        assert hot.state["commands"] == 5


def test_readers_and_writers_come_and_go(tmp_path: Path) -> None:
    with publisher(tmp_path / "in") as writer, publisher(tmp_path / "out") as first:
        second = publisher(tmp_path / "second")
        send_words(writer, 5)
        with hot_thread(native(), sources_max=2) as hot:
            reader = subscriber(tmp_path / "in")
            added = hot.wait_for(hot.send(chronicle.AddReader(reader)), 60)
            assert isinstance(added, ReaderAdded)
            assert added.source == 0
            until(lambda: hot.state["sum"] == 5)
            first_message = until(lambda: [a for a in hot.poll() if isinstance(a, FirstMessage)])[0]
            assert first_message.ticket == added.ticket
            assert first_message.first_message_ns >= added.taken_ns
            assert hot.status.appends_dropped == 1
            ack = hot.wait_for(hot.add_writer("out", first), 60)
            assert isinstance(ack, WriterAdded)
            assert (ack.output, ack.old) == ("out", None)
            ack = hot.wait_for(hot.send(chronicle.AddWriter("out", second)), 60)
            assert isinstance(ack, WriterAdded)
            assert ack.old is first
            assert first.next_seq == 1
            ack = hot.wait_for(hot.send(chronicle.RemoveReader(0)), 60)
            assert isinstance(ack, ReaderRemoved)
            assert ack.reader is reader
            assert reader.next() is None
            hot.wait_for(hot.add_reader(reader), 60)
            hot.wait_for(hot.add_reader(subscriber(tmp_path / "in", "b")), 60)
            surplus = subscriber(tmp_path / "in", "c")
            ticket = hot.add_reader(surplus)
            with pytest.raises(chronicle.CommandRefused, match="sources_max=2") as error:
                hot.wait_for(ticket, 60)
            assert error.value.ticket == ticket
            refused = next(a for a in hot.poll() if isinstance(a, Refused))
            assert refused.given_back is surplus
            surplus.close()
            with pytest.raises(chronicle.CommandRefused, match="no source=9"):
                hot.wait_for(hot.remove_reader(9), 60)
            with pytest.raises(chronicle.BadArgument, match="'out' or 'other'"):
                hot.add_writer("missing", first)
        assert second.append(1, b"x") == 2  # after the first message of reader "b"
        second.close()
        reader.close()


def test_writers_that_were_exchanged_are_given_back_to_their_own_objects(tmp_path: Path) -> None:
    with publisher(tmp_path / "a") as first, publisher(tmp_path / "b") as second:
        hot = hot_thread(native(), outputs={"out": first}).start()
        hot.add_writer("out", second)
        hot.send(chronicle.Stop())
        # Nobody has polled: the answers are still on their way when the thread is joined.
        until(hot._core.is_finished)
        hot.stop()
        assert (first.append(1, b"a"), second.append(1, b"b")) == (1, 1)
    for name in "ab":
        with subscriber(tmp_path / name, None) as reader:
            assert payloads(reader) == [name.encode()]


def test_a_message_whose_batch_could_not_begin_is_put_back(tmp_path: Path) -> None:
    handled: list[int] = []

    def handle(_context: int, _message: int) -> int:
        handled.append(1)
        return 0

    begin = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(lambda _context: 2)
    on_message = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)(handle)

    with publisher(tmp_path / "in") as writer, subscriber(tmp_path / "in") as reader:
        send_words(writer, 1, 2, 3)
        handler = NativeHandler(on_message=on_message, on_batch_begin=begin, batched=True)
        hot = hot_thread(handler, readers=[reader], guard="off").start()
        until(lambda: hot.failure)
        assert (handled, seqs(reader)) == ([], [1, 2, 3])


def test_a_full_channel_is_an_error_at_once_or_a_wait(tmp_path: Path) -> None:
    with hot_thread(native(), commands_max=2) as hot:
        # Counts for some seconds, or until the test has seen what it wants.
        hot.send(word(20_000_000), type_id=5)
        until(lambda: hot.status.commands == 1)
        hot.send(b"", type_id=TYPE_SUM)
        hot.send(b"", type_id=TYPE_SUM)
        with pytest.raises(chronicle.ChannelFull, match="capacity=2") as error:
            [hot.send(b"", type_id=TYPE_SUM) for _ in range(1_000)]
        assert error.value.capacity == 2
        ticket = hot.send(b"", type_id=TYPE_SUM, timeout=120)
        hot.wait_for(ticket, 120)


def test_commands_are_limited_and_typed(tmp_path: Path) -> None:
    with hot_thread(native()) as hot:
        with pytest.raises(chronicle.TooLarge, match="65536"):
            hot.send(bytes(65_537), type_id=1)
        hot.wait_for(hot.send(bytes(65_536), type_id=TYPE_SUM), 60)
        with pytest.raises(chronicle.BadArgument, match="type_id"):
            hot.send(b"", type_id=0)
        with pytest.raises(chronicle.BadArgument, match="cannot send: found=bytes"):
            hot.send(b"")
        with pytest.raises(TimeoutError, match="ticket=12345"):
            hot.wait_for(12345, 0.01)


def test_a_stop_that_is_sent_comes_behind_what_was_sent_before(tmp_path: Path) -> None:
    hot = hot_thread(native()).start()
    hot.send(word(1), type_id=TYPE_SUM)
    hot.send(chronicle.Stop())
    hot.join(60)
    assert hot.state["commands"] == 1


# --- Failures ---


def test_a_failing_message_is_named_and_everything_is_given_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with publisher(tmp_path / "in") as writer, publisher(tmp_path / "out") as output:
        reader = subscriber(tmp_path / "in")
        send_words(writer, 1, 2)
        writer.append(TYPE_FAIL, b"")
        send_words(writer, 4)
        hot = hot_thread(native(), readers=[reader], outputs={"out": output}).start()
        with pytest.raises(chronicle.HotThreadFailed, match="source=0 seq=3 type_id=2") as error:
            hot.join(60)
        failure = error.value
        assert (failure.during, failure.source, failure.seq) == ("message", 0, 3)
        assert failure.reason == "its handler returned 2, fail_code=-7"
        assert hot.status.state == "failed"
        assert hot.failure is failure
        assert hot.state["stopped"] == 0
        assert any("failed during message" in r.getMessage() for r in caplog.records)
        hot.stop()  # nothing more happens
        # Not committed, not passed.
        message = reader.next()
        assert message is not None
        assert message.seq == 3
        with pytest.raises(chronicle.HotThreadFailed):
            hot.send(b"", type_id=1)
        reader.close()
        with subscriber(tmp_path / "in") as again:
            assert again.next_seq == 3


def test_what_a_callable_raises_is_the_cause(tmp_path: Path) -> None:
    def handler(message: chronicle.Message) -> None:
        if message.seq == 2:
            raise ValueError("no such price")

    with publisher(tmp_path / "in") as writer:
        reader = subscriber(tmp_path / "in")
        send_words(writer, 1, 2, 3)
        hot = hot_thread(handler, readers=[reader])
        with pytest.raises(chronicle.HotThreadFailed, match="ValueError: no such price") as error:
            with hot:
                until(lambda: hot.status.state == "failed")
        assert isinstance(error.value.__cause__, ValueError)
        assert error.value.__cause__.__traceback__ is not None
        assert error.value.seq == 2
        reader.close()


def test_the_text_of_a_failure_comes_from_who_made_the_handler(tmp_path: Path) -> None:
    program = native().program
    told: list[tuple[int, int]] = []

    def explain(info: int, code: int) -> str:
        told.append((info, code))
        return "line 7: price < 0"

    values = {name: getattr(program, name) for name in Program.__slots__}
    program = Program(**{**values, "explain": explain})
    hot = hot_thread(program).start()
    hot.send(b"", type_id=TYPE_FAIL)
    with pytest.raises(chronicle.HotThreadFailed, match="line 7: price < 0") as error:
        hot.join(60)
    assert told == [(5, -7)]
    assert (error.value.during, error.value.source) == ("command", None)
    again = pickle.loads(pickle.dumps(error.value))
    assert again.reason == "line 7: price < 0"


def test_an_error_in_a_with_block_is_not_replaced(tmp_path: Path) -> None:
    hot = hot_thread(native())

    def use() -> None:
        with hot:
            hot.send(b"", type_id=TYPE_FAIL)
            until(lambda: hot.status.state == "failed")
            raise KeyError("mine")

    with pytest.raises(KeyError):
        use()
    assert hot.failure is not None


def test_a_gap_and_a_source_that_fails_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with publisher(tmp_path / "in") as writer, publisher(tmp_path / "bad") as bad:
        reader, broken = subscriber(tmp_path / "in", None), subscriber(tmp_path / "bad", None)
        fill_segments(writer, 5)
        chronicle.apply_retention(tmp_path / "in", bytes_max=2 * SEGMENT_BYTES)
        bad.append(1, b"12345678")
        segment = tmp_path / "bad/segments/00000000000000000000.seg"
        with segment.open("r+b") as file:
            file.seek(4224)
            file.write((0x00FF_FFFF).to_bytes(4, "little"))
        messages: list[int] = []
        hot = hot_thread(lambda m: messages.append(m.seq), readers=[reader, broken])
        events: list[Any] = []

        def told() -> bool:
            events.extend(hot.poll())
            return len(events) >= 2

        with hot:
            until(lambda: bool(messages) and messages[-1] == writer.next_seq - 1)
            until(told)
        gap = next(e for e in events if isinstance(e, GapSeen))
        assert (gap.source, gap.reason, gap.handled) == (0, "retention", False)
        missing = set(range(gap.first_missing, gap.next))
        assert missing
        assert messages == [n for n in range(1, writer.next_seq) if n not in missing]
        failed = next(e for e in events if isinstance(e, SourceFailed))
        assert failed.reader is broken
        assert isinstance(failed.error, chronicle.CorruptRecord)
        assert broken.next_seq == 1  # given back at once
        texts = " ".join(r.getMessage() for r in caplog.records)
        assert "missed messages" in texts
        assert "failed and was taken out" in texts
        reader.close()
        broken.close()


def test_privileges_that_are_missing_are_warnings_or_with_strict_errors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with hot_thread(native(), core=9_999) as hot:
        assert len(hot.status.warnings) == 1
        assert "core=9999" in hot.status.warnings[0]
    assert any("core=9999" in r.getMessage() for r in caplog.records)
    with publisher(tmp_path / "in"):
        reader = subscriber(tmp_path / "in")
        with pytest.raises(chronicle.HotThreadFailed, match="core=9999"):
            hot_thread(native(), core=9_999, strict=True, readers=[reader]).start()
        assert reader.next() is None
        reader.close()


def test_a_real_time_policy_is_set_or_its_refusal_is_told(tmp_path: Path) -> None:
    with hot_thread(native(), wait="sleep", fifo_priority=1) as hot:
        policy = os.sched_getscheduler(hot.status.thread_id)
        if hot.status.warnings:
            assert "CAP_SYS_NICE" in hot.status.warnings[0]
            assert policy == os.SCHED_OTHER
        else:
            assert policy == os.SCHED_FIFO
    with hot_thread(native(), fifo_priority=1_000) as hot:
        assert "priority=1000" in hot.status.warnings[0]


# --- Guard ---


def test_observe_reports_a_call_with_its_name_and_lets_it_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with hot_thread(native(), guard="observe") as hot:
        hot.wait_for(hot.send(b"", type_id=TYPE_SLOW), 60)
        report = until(lambda: [e for e in hot.poll() if isinstance(e, GuardReport)])[0]
        assert (report.name, report.action) == ("getppid", "allowed")
        hot.wait_for(hot.send(word(1), type_id=TYPE_SUM), 60)
        assert hot.status.guard_seen == 1
    assert hot.failure is None
    assert any("getppid" in r.getMessage() for r in caplog.records)


def test_enforce_stops_the_thread_with_the_violation(tmp_path: Path) -> None:
    with publisher(tmp_path / "in") as writer:
        reader = subscriber(tmp_path / "in")
        hot = hot_thread(native(), guard="enforce", readers=[reader]).start()
        send_words(writer, 1)
        writer.append(TYPE_SLOW, b"")
        send_words(writer, 1)
        with pytest.raises(chronicle.GuardViolation, match=r"seq=2 .*system call"):
            hot.join(60)
        assert hot.state["messages"] == 1
        assert reader.next_seq == 2  # not passed, not committed
        reader.close()
    assert any(isinstance(e, GuardReport) and e.action == "refused" for e in hot.poll())
    with pytest.raises(chronicle.BadArgument, match="plain callable"):
        hot_thread(print, guard="enforce")


# --- Life ---


def test_stopping_twice_and_before_the_start_is_no_error(tmp_path: Path) -> None:
    hot = hot_thread(native())
    hot.stop()
    hot.ask_to_stop()
    assert hot.status.state == "new"
    assert hot.counters == {"seen": 0}
    assert hot.loop_gap.count == 0
    with pytest.raises(chronicle.Closed, match=r"was not started; .*call start\(\)"):
        hot.send(b"", type_id=1)
    with pytest.raises(chronicle.Closed, match="was not started"):
        hot.wait_for(1)
    hot.start()
    hot.stop()
    hot.stop()
    assert hot.poll() == []
    with pytest.raises(chronicle.Closed, match="is stopped"):
        hot.send(b"", type_id=1)
    with pytest.raises(chronicle.Closed, match=r"state=old\.state"):
        hot.start()


def test_many_threads_may_stop_it_at_once(tmp_path: Path) -> None:
    with publisher(tmp_path / "in"):
        for _ in range(5):
            reader = subscriber(tmp_path / "in")
            hot = hot_thread(native(), readers=[reader]).start()
            threads = [threading.Thread(target=hot.stop) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert hot.status.state == "stopped"
            reader.close()


def test_a_restart_goes_on_with_the_state_of_the_one_before(tmp_path: Path) -> None:
    first = hot_thread(native()).start()
    first.wait_for(first.send(word(40), type_id=TYPE_SUM), 60)
    first.stop()
    with hot_thread(native(), state=first.state) as second:
        second.wait_for(second.send(word(2), type_id=TYPE_SUM), 60)
    assert second.state["sum"] == 42
    assert second.state["started"] == 2
    assert isinstance(second.state, np.void)
    with pytest.raises(chronicle.BadArgument, match="bad state: found=3 bytes expected=64"):
        hot_thread(native(), state=b"abc")


def test_a_thread_that_is_dropped_while_it_runs_is_stopped(tmp_path: Path) -> None:
    with publisher(tmp_path / "in"):
        reader = subscriber(tmp_path / "in")
        hot = hot_thread(native(), readers=[reader]).start()
        thread_id = hot.status.thread_id
        assert Path(f"/proc/self/task/{thread_id}").exists()
        gone = weakref.ref(hot)
        del hot
        gc.collect()
        assert gone() is None
        until(lambda: not Path(f"/proc/self/task/{thread_id}").exists())
        # Given back all the same.
        assert reader.next() is None
        reader.close()


def test_a_callable_cannot_wait_for_its_own_end_but_may_ask_for_it(tmp_path: Path) -> None:
    raised: list[Exception] = []

    def handler(message: chronicle.Message) -> None:
        try:
            hot.stop()
        except chronicle.BadArgument as error:
            raised.append(error)

    with publisher(tmp_path / "in") as writer:
        reader = subscriber(tmp_path / "in")
        send_words(writer, 1, 2)
        hot = hot_thread(handler, readers=[reader])
        hot.start()
        hot.join(60)
        assert len(raised) == 1
        assert "own end" in str(raised[0])
        assert reader.next_seq == 2
        reader.close()


def test_two_hot_threads_share_a_core(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    a, b, c = (publisher(tmp_path / name) for name in "abc")
    with a, b, c:
        first = hot_thread(
            native(),
            name="first",
            core=core,
            readers=[subscriber(tmp_path / "a")],
            outputs={"out": b},
        )
        second = hot_thread(
            native(),
            name="second",
            core=core,
            readers=[subscriber(tmp_path / "b")],
            outputs={"out": c},
        )
        with first, second:
            send_words(a, *range(500))
            until(lambda: second.status.messages == 500)
            for hot in (first, second):
                name = Path(f"/proc/self/task/{hot.status.thread_id}/comm").read_text()
                assert name == f"chr-hot:{hot.name}\n"[:15].rstrip() + "\n"
        assert second.state["sum"] == sum(range(500))


def test_a_stop_waits_no_longer_than_asked(tmp_path: Path) -> None:
    hot = hot_thread(native()).start()
    hot.send(word(300_000_000), type_id=5)
    until(lambda: hot.status.commands == 1)
    with pytest.raises(TimeoutError, match=r"still runs after 0\.0 s"):
        hot.stop(timeout=0.0)
    hot.stop()
    assert hot.status.state == "stopped"


def test_output_keeps_order_over_rolls_on_both_sides(tmp_path: Path) -> None:
    with publisher(tmp_path / "in") as writer, publisher(tmp_path / "out") as output:
        hot = hot_thread(native(), readers=[subscriber(tmp_path / "in")], outputs={"out": output})
        with hot, subscriber(tmp_path / "out", None) as published:
            count = 0
            for _ in range(10):
                for _ in range(60):
                    writer.append(TYPE_SUM, word(count) + bytes(2_000))
                    count += 1
                until(partial(lambda n: hot.status.messages == n, count))
                hot.poll()
            assert hot.status.guard_seen == 0
            assert hot.status.allocations == 0
            words = [bytes(m.payload[:8]) for m in iter(published.next, None)]
            assert words == [word(n) for n in range(count)]
            kept = hot.status.segments_kept
            assert kept > 10
            assert hot.release_retired() >= kept
        assert hot.status.log_drops + hot.status.log_records == count


def test_the_meter_counts_turns_and_messages(tmp_path: Path) -> None:
    with publisher(tmp_path / "in") as writer:
        hot = hot_thread(native(), meter="full", readers=[subscriber(tmp_path / "in")])
        with hot:
            send_words(writer, *range(100))
            until(lambda: hot.handler_time.count == 100)
            before = hot.loop_gap
            send_words(writer, 1)
            until(lambda: hot.loop_gap.since(before).count > 0)
            status = hot.status
            assert status.kernel is not None
            assert status.turns > 0
        assert hot.status.kernel is None
        times = hot.handler_time
        assert 0 < times.quantile(0.5) <= times.quantile(1.0) == times.max_ns
    unmetered = hot_thread(native(), meter="off")
    with unmetered:
        until(lambda: unmetered.status.turns > 3)
    assert unmetered.loop_gap.count == 0


def test_quantiles_of_a_histogram() -> None:
    empty = Histogram([], 0)
    assert (empty.count, empty.quantile(0.5), empty.mean_ns) == (0, 0, 0.0)
    times = Histogram([(10, 90), (100, 9), (1_000, 1)], 1_000)
    assert [times.quantile(q) for q in (0.0, 0.9, 0.901, 0.99, 0.991, 1.0)] == [
        10,
        10,
        100,
        100,
        1_000,
        1_000,
    ]
    assert times.since(Histogram([(10, 90), (50, 1)], 50)).buckets == ((100, 8), (1_000, 1))
    for q in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"range=0\.0\.\.1\.0"):
            times.quantile(q)


# --- Programs ---


def test_functions_are_given_by_address_by_ctypes_or_in_a_capsule() -> None:
    function = library().on_message
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    capsule = new(address, b"function", None)
    for given in (function, address, capsule):
        program = NativeHandler(given, on_idle=given).program
        assert program.addresses == (address, address, 0, 0, 0, 0)
        assert not program.audited
    for wrong in ("text", 1.5, -1, 1 << 64, True, None):
        with pytest.raises(chronicle.BadArgument, match="bad on_message"):
            NativeHandler(wrong)


def test_what_is_no_handler_is_refused() -> None:
    with pytest.raises(chronicle.BadArgument, match=r"found=int expected=a chronicle\.Handler"):
        as_program(7)

    class Marked:
        __chronicle_handler__ = True

    with pytest.raises(chronicle.BadArgument, match=r"write Marked\(\)"):
        as_program(Marked)
    assert as_program(native().program).name == "native"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"wait": "loud"}, "bad wait strategy"),
        ({"meter": "some"}, "bad meter"),
        ({"mode": "both"}, "bad merge mode"),
        ({"guard": "maybe"}, "bad guard"),
        ({"sources_max": 0}, "bad sources_max"),
        ({"commands_max": 0}, "bad commands_max"),
        ({"log_records": True}, "bad log_records"),
        ({"outputs": {"nowhere": None}}, "bad output: found='nowhere'"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(chronicle.BadArgument, match=text):
        hot_thread(native(), **options)


def test_a_log_call_that_cannot_be_formatted_still_shows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = native().program
    values = {name: getattr(program, name) for name in Program.__slots__}
    for sites, text in (
        ((LogSite(40, "{} {} {} {} {}"),), "cannot be formatted"),
        ((), "site 0: 6 3.0 abc True"),
    ):
        caplog.clear()
        caplog.set_level(logging.DEBUG, "chronicle.hot.native")
        with hot_thread(Program(**{**values, "log_sites": sites})) as hot:
            hot.wait_for(hot.send(word(6), type_id=TYPE_SUM), 60)
        assert any(text in r.getMessage() for r in caplog.records)


def test_a_full_log_ring_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with publisher(tmp_path / "in") as writer:
        send_words(writer, *range(100))
        with hot_thread(native(), log_records=10, readers=[subscriber(tmp_path / "in")]) as hot:
            until(lambda: hot.status.messages == 100)
            hot.poll()
            hot.poll()
        drops = [r for r in caplog.records if "were dropped" in r.getMessage()]
        assert [r.getMessage().split()[0] for r in drops] == ["90"]


# --- Journal and replay ---


def test_a_journal_holds_every_input_and_its_replay_ends_in_the_same_state(tmp_path: Path) -> None:
    journal = publisher(tmp_path / "journal")
    with publisher(tmp_path / "in") as writer, publisher(tmp_path / "out") as output:
        reader = subscriber(tmp_path / "in")
        handler = native(on_idle=0)
        hot = hot_thread(handler, readers=[reader], outputs={"out": output}, journal=journal)
        with hot:
            send_words(writer, 1, 2)
            until(lambda: hot.status.messages == 2)
            hot.wait_for(hot.send(word(3), type_id=TYPE_SUM), 60)
            extra = subscriber(tmp_path / "in", "extra")
            hot.wait_for(hot.add_reader(extra), 60)
            until(lambda: hot.status.messages == 4)
        assert journal.append(1, b"mine again") > 0
        journal.close()
        records = [
            (m.type_id, bytes(m.payload)) for m in iter(subscriber(tmp_path / "journal").next, None)
        ]
        head = json.loads(records[0][1])
        assert head["sources"][0]["path"] == str(tmp_path / "in")
        assert head["writers"]["out"]["next_seq"] == 1
        assert [kind for kind, _ in records] == [
            65_101,  # head
            65_102,  # start
            *[65_102] * 2,
            65_103,  # command
            65_105,  # source
            65_104,  # event: source added
            *[65_102] * 2,
            65_102,  # stop
            65_107,  # final
            1,
        ]
        assert json.loads(records[5][1][32:])["name"] == "extra"

        report = replay(tmp_path / "journal", handler)
        assert (report.verdict, report.state) == ("identical", "identical"), report
        assert [(o.name, o.equal) for o in report.outputs] == [("out", 5), ("other", 0)]
        assert (report.inputs["message"], report.inputs["command"]) == (4, 1)
        assert report.same_code is None
        assert any("unaudited" in note for note in report.notes)
        reader.close()
        extra.close()
