"""What is told of the difference between two looks at a bus."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chronicle.top.changes import compare
from chronicle.top.document import document
from chronicle.top.model import BusLook, KernelCounts, LogLine, ReaderLook, ServiceLook
from chronicle.top.tables import KINDS, summary, table_of
from chronicle.top.watch import Watch

from tests.top_support import AT_NS, SECOND_NS, look, process, queue, thread, times


def told(before: BusLook, after: BusLook) -> list[tuple[str, str, str, str]]:
    events = compare(before, after).events
    return [(event.severity, event.kind, event.subject, event.code) for event in events]


def one(**parts: object) -> BusLook:
    """Make a look with nothing in it but these."""
    empty = BusLook("/bus", AT_NS, 0)
    return replace(empty, **parts)  # type: ignore[arg-type]


def test_two_equal_looks_tell_nothing() -> None:
    assert told(look(0), look(0)) == []


def test_rates_are_differences_over_the_time_between() -> None:
    changes = compare(look(0), look(2))
    assert changes.seconds == 2.0
    ewma = changes.threads["orders/alpha", "ewma"]
    assert (ewma.messages_per_s, ewma.turns_per_s) == (16_500.0, 10**6)
    assert changes.queues["orders/alpha/out"].messages_per_s == 16_500.0
    assert changes.queues["orders/alpha/out"].bytes_per_s == 1_200_000.0
    assert changes.cpu["orders/alpha"] == 0.25
    assert ewma.loop_gap.count == 2 * (900_000 + 90_000 + 1_000 + 10)
    assert ewma.loop_gap.max_ns == 40_000, "the highest one was before"


def test_counts_that_go_back_are_no_rates() -> None:
    before = one(threads=(thread(words={"messages": 1 << 63}),), queues=(queue(),))
    after = one(
        threads=(thread(words={"messages": 5}, kernel=KernelCounts(1, 0, 0, 0)),),
        queues=(queue(next_seq=5, position=8),),
    )
    changes = compare(before, after)
    ewma = changes.threads["orders/alpha", "ewma"]
    assert (ewma.messages_per_s, ewma.faults) == (0.0, 0)
    assert (ewma.switches_voluntary, ewma.switches_involuntary) == (0, 0)
    assert changes.queues["orders/alpha/out"].messages_per_s == 0.0
    assert changes.queues["orders/alpha/out"].bytes_per_s == 0.0


def test_another_thread_of_the_same_name_has_no_rates_yet() -> None:
    before, after = one(threads=(thread(),)), one(threads=(thread(words={"started_ns": 6}),))
    assert compare(before, after).threads == {}
    assert ("warning", "thread", "orders/alpha:ewma", "restarted") in told(before, after)


def test_a_queue_that_was_made_anew_has_no_rates_yet() -> None:
    before = one(queues=(queue(),))
    after = one(queues=(queue(queue_id="00" * 16, next_seq=5),))
    assert compare(before, after).queues == {}
    assert [event[3] for event in told(before, after)] == ["replaced"]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param(None, {}, [("note", "up")], id="new"),
        pytest.param({}, None, [("note", "vanished")], id="directory gone"),
        pytest.param(
            {}, {"state": "stalled", "reason": "heartbeat stale"}, [("warning", "stalled")]
        ),
        pytest.param({}, {"state": "dead", "reason": "lock free"}, [("error", "dead")]),
        pytest.param({"state": "stalled"}, {}, [("note", "recovered")]),
        pytest.param({}, {"instance": "00" * 16}, [("warning", "restarted")]),
        pytest.param({"state": "dead"}, {"instance": "00" * 16}, [("warning", "restarted")]),
        pytest.param(
            {"state": "absent", "instance": ""}, {"instance": "00" * 16}, [("note", "up")]
        ),
        pytest.param({}, {"state": "absent", "instance": ""}, [("note", "closed")]),
        pytest.param({"ready": False}, {}, [("note", "ready")]),
        pytest.param({}, {"state": "refused", "reason": "a link"}, [("error", "refused")]),
    ],
)
def test_the_life_of_a_process(
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    expected: list[tuple[str, str]],
) -> None:
    old, new = (
        one(processes=() if part is None else (process(**part),)) for part in (before, after)
    )
    assert told(old, new) == [
        (severity, "process", "orders/alpha", code) for severity, code in expected
    ]


def test_a_service_that_complains_is_told_once_and_when_it_works_again() -> None:
    well, sick = (
        one(processes=(process(services=(ServiceLook("m", s, 0, "no", "", healthy=h),)),))
        for s, h in (("running", True), ("backoff", False))
    )
    assert [event[3] for event in told(well, sick)] == ["service-sick"]
    assert told(sick, sick) == []
    assert [event[3] for event in told(sick, well)] == ["service-well"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"state": "parked"}, []),
        ({"state": "failed", "failure": "boom"}, [("error", "failed")]),
        ({"state": "stopped"}, [("note", "state")]),
        ({"outside": {"guard_seen": 2}}, [("error", "system-calls")]),
        ({"outside": {"guard_lost": 1}}, [("error", "guard-lost")]),
        ({"outside": {"rolls_late": 1}}, [("warning", "rolls-late")]),
        ({"words": {"allocations": 1}}, [("error", "allocations")]),
        ({"words": {"gaps": 1}}, [("warning", "gaps")]),
        ({"words": {"log_drops": 7}}, [("warning", "log-drops")]),
        ({"supervised": False}, [("warning", "unsupervised")]),
        ({"kernel": KernelCounts(101, 0, 2, 5)}, [("warning", "page-faults")]),
        ({"kernel": KernelCounts(100, 0, 2, 9)}, []),
    ],
)
def test_what_a_hot_thread_should_not_do(
    changes: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    found = told(one(threads=(thread(),)), one(threads=(thread(**changes),)))
    assert [(severity, code) for severity, _, _, code in found] == expected


SLOW = ReaderLook("slow", live=True, pid=1, next_seq=10)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {"writer_live": False}, ["writer-gone"]),
        ({"writer_live": False}, {"epoch": 4}, ["writer-up"]),
        ({}, {"epoch": 4, "writer_live": False}, ["writer-up", "writer-gone"]),
        ({}, {"recoveries": 1}, ["recovered"]),
        ({}, {"recoveries": 1, "cuts": 1, "cut_bytes": 40}, ["cut"]),
        ({}, {"rolls_inline": 2}, ["rolls-inline"]),
        ({}, {"beat_late": True}, ["heartbeat"]),
        ({}, {"problem": "damaged"}, ["unreadable"]),
        ({"problem": "damaged"}, {}, ["readable"]),
        ({"readers": ()}, {"readers": (SLOW,)}, ["reader-up"]),
        ({"readers": (SLOW,)}, {"readers": (replace(SLOW, live=False),)}, ["reader-gone"]),
        ({"readers": (SLOW,)}, {"readers": ()}, ["reader-removed"]),
        ({"readers": (SLOW,)}, {"readers": (SLOW,), "first_seq": 11}, ["gap"]),
        (
            {"readers": (SLOW,), "first_seq": 11},
            {"readers": (SLOW,), "first_seq": 12},
            [],
        ),
        ({"readers": (SLOW,)}, {"readers": (replace(SLOW, problem="no cursor"),)}, ["cursor"]),
    ],
)
def test_the_life_of_a_queue(
    before: dict[str, Any], after: dict[str, Any], expected: list[str]
) -> None:
    found = told(one(queues=(queue(**before),)), one(queues=(queue(**after),)))
    assert [code for _, _, _, code in found] == expected


def test_queues_that_appear_and_vanish_are_told() -> None:
    empty, full = one(), one(queues=(queue(),))
    assert [event[3] for event in told(empty, full)] == ["appeared"]
    assert [event[3] for event in told(full, empty)] == ["vanished"]


def test_what_cannot_be_looked_at_is_told_when_it_is_new() -> None:
    damaged = one(problems=(("a/COUNTERS", "no counters file"),))
    assert told(one(), damaged) == [("error", "bus", "a/COUNTERS", "unreadable")]
    assert told(damaged, damaged) == []


def test_counts_since_the_first_look_go_on_over_many_looks_and_can_begin_anew() -> None:
    watch = Watch()
    looks = [
        one(threads=(thread(kernel=KernelCounts(100 + n, 0, 0, 2 * n)),), taken_ns=n * SECOND_NS)
        for n in range(4)
    ]
    views = [watch.add(each) for each in looks[:3]]
    key = "orders/alpha", "ewma"
    assert [view.since[key].faults for view in views] == [0, 1, 2]
    assert [view.since[key].switches_involuntary for view in views] == [0, 2, 4]
    watch.restart()
    view = watch.add(looks[3])
    assert view.since[key].faults == 0
    assert [event.code for event in view.events] == ["page-faults"]


def test_lines_of_a_log_are_taken_once_though_they_are_told_again() -> None:
    watch = Watch()
    lines = tuple(LogLine(n, AT_NS + n, "INFO", "x", f"line {n}") for n in range(1, 6))
    for first in range(3):
        view = watch.add(one(processes=(process(log=lines[first : first + 3]),)))
    assert [line.text for _, line in view.log] == [f"line {n}" for n in range(1, 6)]
    view = watch.add(one(processes=(process(log=lines[:1], instance="00" * 16),)))
    assert [line.text for _, line in view.log][-1] == "line 1", "another life counts from one"


def test_the_summary_tells_the_worst_first() -> None:
    def line(*looks: BusLook) -> tuple[str, str]:
        watch = Watch()
        for each in looks:
            view = watch.add(each)
        return summary(view)

    assert line(look(0), look(1)) == ("clean: 2/2 alive, 2 hot, 2 queues, 16.5k msg/s", "good")
    off = look(0, threads=(thread(guard="off"),))
    assert line(off)[0].startswith("nothing wrong: "), "what it calls is not known"
    faults = look(1, threads=(thread(kernel=KernelCounts(103, 0, 0, 5)),))
    assert line(look(0), faults)[0].startswith("ewma: 3 page faults; ")
    broken = replace(faults, queues=(queue(problem="damaged"),))
    text, tone = line(look(0), broken)
    assert (text.partition(";")[0], tone) == ("orders/alpha/out cannot be read (+1)", "bad")


def test_every_table_has_a_cell_for_every_column_and_meanings_for_all() -> None:
    watch = Watch()
    watch.add(look(0))
    view = watch.add(look(1, queues=(queue(problem="x", newest_ns=0), *look(1).queues[1:])))
    for kind in KINDS:
        table = table_of(kind, view)
        assert table.rows, kind
        assert all(len(row.cells) == len(table.columns) for row in table.rows)
        assert all(column.meaning for column in table.columns)
        assert len({column.title for column in table.columns}) == len(table.columns)


def test_rows_are_sorted_by_value_and_not_by_text() -> None:
    threads = tuple(
        thread(f"t{n}", loop_gap=times((gap, 10)))
        for n, gap in enumerate((900, 20_000, 3_000_000, 40))
    )
    watch = Watch()
    watch.add(look(0, threads=tuple(replace(t, loop_gap=times()) for t in threads)))
    table = table_of("threads", watch.add(look(1, threads=threads)))
    rows = table.chosen(by="gmax", descending=True).rows
    assert [row.cells[0].text for row in rows] == ["t2", "t1", "t0", "t3"]
    assert [row.cells[6].text for row in rows] == ["3.0ms", "20us", "900ns", "40ns"]
    assert [row.cells[0].text for row in table.chosen(text="T1").rows] == ["t1"]


def test_the_document_is_the_one_that_is_documented() -> None:
    watch = Watch()
    watch.add(look(0))
    found = document(watch.add(look(1, problems=(("a", "b"),))))
    assert found["format"] == 1
    assert set(found) == {
        *("format", "bus", "at_ns", "interval_s"),
        *("processes", "threads", "queues", "events", "problems"),
    }
    assert set(found["processes"][0]) == {
        *("name", "state", "reason", "instance", "pid", "ready", "epoch", "told_age_s"),
        *("cpu_s", "cpu", "services", "log"),
    }
    assert set(found["threads"][0]) == {
        *("process", "name", "state", "core", "guard", "wait", "meter", "thread_id"),
        *("supervised", "failure", "warnings", "counts", "counters", "kernel"),
        *("loop_gap_ns", "handler_time_ns", "interval", "since_first_look"),
    }
    assert set(found["threads"][0]["interval"]) == {
        *("messages_per_s", "turns_per_s", "appends_per_s", "system_calls", "faults"),
        *("switches_voluntary", "switches_involuntary", "loop_gap_ns", "handler_time_ns"),
    }
    times_keys = {"count", "p50", "p90", "p99", "p999", "p9999", "max"}
    assert set(found["threads"][0]["loop_gap_ns"]) == times_keys
    assert set(found["queues"][0]) == {
        *("name", "path", "queue_id", "epoch", "writer_live", "writer_pid", "first_seq"),
        *("next_seq", "position", "newest_ns", "durable_seq", "segment_bytes", "segments"),
        *("floor_segment", "tail_segment", "rolls", "rolls_inline", "recoveries", "cuts"),
        *("cut_bytes", "segments_deleted", "readers", "held_by", "beat_age_s", "beat_late"),
        *("problem", "size_bytes", "lag_messages", "messages_per_s", "bytes_per_s"),
    }
    assert set(found["queues"][0]["readers"][0]) == {
        *("name", "live", "pid", "next_seq", "position", "lag_messages", "lag_bytes", "problem"),
    }
    assert found["problems"] == [{"path": "a", "reason": "b"}]
