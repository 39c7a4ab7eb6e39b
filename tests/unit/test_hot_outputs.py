"""Outputs that come and go, tables of them, and the tags of sources, on a hot thread."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import chronicle
import pytest
from chronicle.channel import AddReader, AddWriter, RemoveWriter
from chronicle.hot import (
    Bytes,
    Handler,
    Info,
    Output,
    Outputs,
    Slots,
    SourceAdded,
    SourceRemoved,
    on,
)
from chronicle.hot.acks import ReaderAdded, WriterAdded, WriterRemoved
from chronicle.hot.replay import replay
from chronicle.message import MessageBase, i64, message, u32

from tests.native_support import until
from tests.queue_support import PATIENCE_S, payloads, publisher, subscriber

WAIT: dict[str, Any] = {"wait": "hybrid", "spin_ns": 5_000}


@message(51)
class Ask(MessageBase):
    slot: i64


@message(52)
class Report(MessageBase):
    cause: i64
    tag: u32
    kind: u32


class Router(Handler):
    """Answers each message in the slot that it names, with the tag of where it came from."""

    last: i64
    events: Output
    reports: Annotated[Outputs, Slots(4)]

    @on(Ask)
    def ask(self, ask: Ask, info: Info) -> None:
        self.last = self.reports[ask.slot].publish(Report(cause=info.seq, tag=info.tag, kind=0))

    @on.bytes(53)
    def raw(self, data: Bytes, info: Info) -> None:
        self.reports[info.tag].publish_bytes(54, data)

    @on(SourceAdded)
    def added(self, event: SourceAdded, info: Info) -> None:
        self.events.publish(Report(cause=event.source, tag=info.tag, kind=1))

    @on(SourceRemoved)
    def removed(self, event: SourceRemoved, info: Info) -> None:
        self.events.publish(Report(cause=event.source, tag=info.tag, kind=2))


def read(folder: Path) -> list[tuple[int, int, int]]:
    with subscriber(folder) as reader:
        found = [Report.view(m.payload) for m in iter(reader.next, None)]
        return [(each.cause, each.tag, each.kind) for each in found]


def test_tags_and_slots_come_and_go_and_the_run_replays_identically(tmp_path: Path) -> None:
    asks, more = publisher(tmp_path / "asks"), publisher(tmp_path / "more")
    events, journal = publisher(tmp_path / "events"), publisher(tmp_path / "journal")
    slots = [publisher(tmp_path / f"slot-{n}") for n in range(4)]
    hot = chronicle.HotThread(
        Router(),
        readers=[AddReader(subscriber(tmp_path / "asks", "hot"), tag=2)],
        outputs={"events": events, "reports": [slots[0], None, slots[2]]},
        journal=journal,
        **WAIT,
    )
    hot.start()
    assert list(hot.outputs) == ["events", "reports[0]", "reports[2]"]
    for slot in (0, 1, 2, 3):
        asks.publish(Ask(slot=slot))
    asks.append(53, b"raw")
    until(lambda: hot.status.messages == 5)
    # A slot without a writer is an output without a writer.
    assert hot.status.appends_dropped == 2

    reader = subscriber(tmp_path / "more", "hot")
    ack = hot.wait_for(hot.send(AddReader(reader, tag=0xFFFF_FFFF)), PATIENCE_S)
    assert isinstance(ack, ReaderAdded)
    added = hot.wait_for(hot.add_writer("reports", slots[3], slot=3), PATIENCE_S)
    assert isinstance(added, WriterAdded)
    assert (added.output, added.slot, added.old) == ("reports", 3, None)
    more.publish(Ask(slot=3))
    until(lambda: hot.status.messages == 6)

    removed = hot.wait_for(hot.remove_writer("reports", slot=0), PATIENCE_S)
    assert isinstance(removed, WriterRemoved)
    assert (removed.output, removed.slot) == ("reports", 0)
    # Given back while the thread runs: it works as before, and has another owner.
    assert removed.writer is slots[0]
    assert list(hot.outputs) == ["events", "reports[2]", "reports[3]"]
    more.publish(Ask(slot=0))
    until(lambda: hot.status.messages == 7)
    hot.wait_for(hot.remove_reader(ack.source), PATIENCE_S)
    back = hot.wait_for(hot.send(AddWriter("reports", slots[0], 0)), PATIENCE_S)
    assert isinstance(back, WriterAdded)
    asks.publish(Ask(slot=0))
    until(lambda: hot.status.messages == 8)
    assert hot.status.appends_dropped == 3
    hot.stop()
    assert hot.failure is None

    assert read(tmp_path / "slot-0") == [(1, 2, 0), (6, 2, 0)]
    with subscriber(tmp_path / "slot-2") as found:
        first = found.next()
        assert first is not None
        assert Report.view(first.payload) == Report(cause=3, tag=2, kind=0)
        assert payloads(iter(found.next, None)) == [b"raw"]
    assert read(tmp_path / "slot-3") == [(1, 0xFFFF_FFFF, 0)]
    assert read(tmp_path / "events") == [(1, 0xFFFF_FFFF, 1), (1, 0xFFFF_FFFF, 2)]
    assert [writer.next_seq for writer in slots] == [3, 1, 3, 2]

    report = replay(tmp_path / "journal", Router)
    assert report.verdict == "identical", report
    assert {o.name: o.equal for o in report.outputs} == {
        "events": 2,
        "reports[0]": 2,
        "reports[2]": 2,
        "reports[3]": 1,
    }
    for writer in (asks, more, events, journal, *slots):
        writer.close()


def test_a_plain_output_can_be_removed_and_given_to_another_thread(tmp_path: Path) -> None:
    with publisher(tmp_path / "events") as events:
        first = chronicle.HotThread(Router(), outputs={"events": events}, **WAIT)
        second = chronicle.HotThread(Router(), **WAIT)
        with first, second:
            ack = first.wait_for(first.send(RemoveWriter("events")), PATIENCE_S)
            assert isinstance(ack, WriterRemoved)
            assert (ack.output, ack.slot, ack.writer) == ("events", None, events)
            with pytest.raises(chronicle.CommandRefused, match="has no writer"):
                first.wait_for(first.remove_writer("events"), PATIENCE_S)
            second.wait_for(second.add_writer("events", events), PATIENCE_S)
            with pytest.raises(chronicle.Moved):
                events.append(1, b"")
        assert events.append(1, b"mine again") == 1


def test_a_writer_that_is_replaced_while_another_is_asked_back_stays_known(tmp_path: Path) -> None:
    with publisher(tmp_path / "a") as a, publisher(tmp_path / "b") as b:
        with chronicle.HotThread(Router(), outputs={"reports": {1: a}}, **WAIT) as hot:
            asked = hot.remove_writer("reports", slot=1)
            added = hot.add_writer("reports", b, slot=1)
            for ticket in (asked, added):
                hot.wait_for(ticket, PATIENCE_S)
            assert hot.outputs == {"reports[1]": b}
            a.append(1, b"free")
        assert b.append(1, b"free as well") == 1


def test_slots_and_tags_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with publisher(tmp_path / "a") as a, subscriber(tmp_path / "a") as reader:
        for outputs, text in (
            ({"reports": a}, "a table, expected=a slot as well"),
            ({"reports": {4: a}}, r"found='reports' slot=4 expected='events' or 'reports\[4\]'"),
            ({"reports": [None] * 4 + [a]}, "slot=4"),
            ({"events": {0: a}}, "slot=0"),
            ({"other": a}, "found='other'"),
        ):
            with pytest.raises(chronicle.BadArgument, match=text):
                chronicle.HotThread(Router(), outputs=outputs)
        for tag in (-1, 1 << 32, True, 1.0):
            with pytest.raises(ValueError, match="tag"):
                AddReader(reader, tag=tag)  # type: ignore[arg-type]
        with chronicle.HotThread(Router(), **WAIT) as hot:
            with pytest.raises(chronicle.BadArgument, match="bad tag"):
                hot.add_reader(reader, tag=-1)
            with pytest.raises(chronicle.BadArgument, match="slot=9"):
                hot.remove_writer("reports", slot=9)
        assert reader.next() is None


def test_outputs_say_how_many_they_are() -> None:
    with pytest.raises(TypeError, match=r"Annotated\[Outputs, Slots\(256\)\]"):

        class Bare(Handler):
            reports: Outputs

    for count in (0, 4097):
        with pytest.raises(ValueError, match="slots out of range"):
            Slots(count)
    handler = Router()
    assert len(handler.reports) == 4
    for slot in (-1, 4):
        with pytest.raises(IndexError, match=f"index={slot} count=4"):
            handler.reports[slot]
