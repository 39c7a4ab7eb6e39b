"""Rebuild: a handler's state from what stands in queues."""

from __future__ import annotations

from pathlib import Path

import chronicle
import pytest
from chronicle import HotThreadFailed, Queue
from chronicle.hot import Handler, Output, on
from chronicle.hot.rebuild import Past, rebuild
from chronicle.message import MessageBase, i64, message


@message(1)
class Did(MessageBase):
    cause: i64


class Worker(Handler):
    cause: i64
    count: i64
    last: i64
    order_is_right: i64 = 1
    done: Output

    @on(Did)
    def remember(self, did: Did) -> None:
        if did.cause < 0:
            self.fail("a cause is never negative")
        if did.cause < self.last:
            self.order_is_right = 0
        self.last = did.cause
        self.cause = max(self.cause, did.cause)
        self.count += 1
        self.done.publish(Did(cause=did.cause))


def write(path: Path, causes: list[int]) -> None:
    with Queue.open_publisher(path, segment_bytes=1 << 16) as writer:
        for cause in causes:
            writer.publish(Did(cause=cause), timestamp_ns=1_000 + cause)


def test_everything_is_read_merged_by_time_and_published_nowhere(folder: Path):
    write(folder / "a", list(range(1, 5_000, 2)))
    write(folder / "b", list(range(2, 5_000, 2)))
    state = rebuild(Worker(), [Past(folder / "a"), Past(folder / "b")])
    assert int(state["cause"]) == 4_999
    assert int(state["count"]) == 4_999
    assert int(state["order_is_right"]) == 1
    assert [chronicle.inspect(folder / name)["readers"] for name in "ab"] == [[], []]


def test_queues_that_are_not_there_or_empty_are_nothing(folder: Path):
    write(folder / "empty", [])
    state = rebuild(Worker(), [Past(folder / "empty"), Past(folder / "none")])
    assert int(state["count"]) == 0
    assert int(rebuild(Worker(), [])["count"]) == 0


def test_a_state_to_begin_with_is_gone_on_with(folder: Path):
    write(folder / "a", [1, 2])
    first = rebuild(Worker(), [Past(folder / "a")])
    second = rebuild(Worker(), [Past(folder / "a")], state=first)
    assert int(second["count"]) == 4


def test_what_retention_has_deleted_is_not_waited_for(folder: Path):
    with (
        chronicle.Provisioner() as provisioner,
        Queue.open_publisher(
            folder / "a", segment_bytes=1 << 16, provisioner=provisioner
        ) as writer,
    ):
        for cause in range(5_000):
            writer.publish(Did(cause=cause))
    chronicle.apply_retention(folder / "a", bytes_max=1 << 17)
    first = chronicle.inspect(folder / "a")["segments"][0]["first_seq"]
    assert first > 1
    state = rebuild(Worker(), [Past(folder / "a")])
    assert int(state["count"]) == 5_000 - first + 1
    assert int(state["cause"]) == 4_999


def test_a_handler_that_fails_on_its_past_says_so(folder: Path):
    write(folder / "a", [1, -2, 3])
    with pytest.raises(HotThreadFailed, match="a cause is never negative"):
        rebuild(Worker(), [Past(folder / "a")])
