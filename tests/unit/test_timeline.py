"""Chaos's witness: the table, and when trading ought to have begun again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import chronicle
import pytest
import timeline
from chronicle.bus import Bus
from orders import Kind, Order, Report
from timeline import BURST, PATIENCE, STILL, Look, Sight, Timeline, Witness

from tests.orders_support import made

EVERYBODY = {"feed": 1, "router": 2, "alpha": 3}


class Looks:
    """Looks at a system, each a second and a hundred market messages after the last one."""

    def __init__(self) -> None:
        self.timeline = Timeline(["feed", "router"], ["alpha"], window_s=5.0)
        self.rows: list[str] = []
        self.at_s = self.market = self.acked = 0
        self.counters: dict[str, int] = {}
        self.look()

    def look(self, *, up: dict[str, int] = EVERYBODY, market: int = 100, acked: int = 0) -> None:
        self.acked += acked
        sights = {"alpha": Sight(2 * self.acked, self.acked, dict(self.counters))}
        row = self.timeline.note(Look(self.at_s, up, self.market, sights))
        self.rows += [] if row is None else [row]
        self.at_s += 1
        self.market += market


def without(name: str) -> dict[str, int]:
    return {other: pid for other, pid in EVERYBODY.items() if other != name}


def test_a_strategy_that_has_everybody_and_does_not_trade_is_overdue():
    looks = Looks()
    looks.counters = {"looks": 7}
    looks.look(acked=1)
    looks.counters = {"looks": 1_207, "signals": 3, "held_gateway": 2, "held_pause": 1}
    for _ in range(PATIENCE // 100 - 1):
        looks.look()
    assert looks.timeline.wrong == []
    looks.look()
    (wrong,) = looks.timeline.wrong
    assert wrong == (
        "alpha has not traded from second 1 to 41, in 4,000 market messages with everybody up: "
        "3 signals in 1,200 changes: pause 1, no gateway 2"
    )
    assert looks.timeline.longest == {"alpha": PATIENCE}


def test_what_a_feed_publishes_at_once_after_an_outage_is_not_held_against_anybody():
    looks = Looks()
    looks.look(up=without("feed"))
    looks.look(market=50 * PATIENCE)
    looks.look()
    assert looks.timeline.wrong == []
    assert looks.timeline.longest == {"alpha": BURST}


def test_an_order_begins_the_clock_anew():
    looks = Looks()
    for number in range(3 * PATIENCE // 100):
        looks.look(acked=number % 20 == 0)
    assert looks.timeline.wrong == []
    assert looks.timeline.longest == {"alpha": 1_900}


@pytest.mark.parametrize("name", EVERYBODY)
def test_the_clock_stands_still_while_somebody_is_not_up(name: str):
    looks = Looks()
    for _ in range(3 * PATIENCE // 100):
        looks.look(up=without(name))
    assert looks.timeline.wrong == []
    assert looks.timeline.longest == {"alpha": 0}


def test_another_life_is_not_up_since_the_last_look():
    looks = Looks()
    for pid in range(3 * PATIENCE // 100):
        looks.look(up=EVERYBODY | {"router": pid})
    assert looks.timeline.longest == {"alpha": 0}


def test_what_passes_with_everybody_up_is_added_up_over_interruptions():
    looks = Looks()
    for number in range(3 * PATIENCE // 100):
        looks.look(up=EVERYBODY if number % 3 else without("feed"))
    assert len(looks.timeline.wrong) == 1


def test_a_feed_that_is_up_and_publishes_nothing_is_wrong_as_well():
    looks = Looks()
    for _ in range(3):
        for _ in range(STILL - 1):
            looks.look(market=0)
        looks.look()
    assert looks.timeline.wrong == []
    for _ in range(STILL + 1):
        looks.look(market=0)
    assert [line.split(",")[0] for line in looks.timeline.wrong] == ["feed is up"]


def test_a_row_says_who_was_up_what_was_traded_and_why_not():
    looks = Looks()
    heading = " ".join(looks.timeline.heading.split())
    assert heading == "seconds market up % feed route alpha orders alpha why not"
    for number in range(5):
        looks.look(up=EVERYBODY if number else without("router"), acked=3)
    looks.counters = {"looks": 50}
    for _ in range(5):
        looks.look()
    looks.counters = {"looks": 60, "signals": 4, "held_old": 4}
    for _ in range(5):
        looks.look()
    for _ in range(5):
        looks.look(up=without("alpha"))
    looks.look()
    looks.rows.append(looks.timeline.end() or "")
    # What is left is too short to say something.
    assert looks.timeline.end() is None
    assert [" ".join(row.split()) for row in looks.rows] == [
        "0-5 500 100% 80% 100% 30",
        "5-10 500 100% 100% 100% 0 alpha: no signals in 50 changes",
        "10-15 500 100% 100% 100% 0 alpha: 4 signals in 10 changes: old news 4",
        "15-20 500 100% 100% 0% 0 alpha: not all up",
        "20-21 100 100% 100% 100% 0 alpha: not all up",
    ]


# --- The witness ----------------------------------------------------------------------------------


@pytest.fixture
def witness(folder: Path) -> Iterator[Witness]:
    (folder / "bus").mkdir(mode=0o700)
    endpoints = {"alpha": "orders/alpha"}
    live = folder / "bus" / "streams" / "iex" / "live"
    made = Witness(folder / "bus", endpoints, ["alpha"], "main", live)
    yield made
    made.close()


def test_nothing_is_there_at_first(witness: Witness):
    assert witness.look(0.0, {"alpha": 1}) == Look(0.0, {}, 0, {"alpha": Sight()})


def test_up_is_who_runs_and_has_said_ready(witness: Witness, folder: Path):
    endpoint = Bus(folder / "bus").open_endpoint("orders/alpha")
    chronicle.Queue.open_publisher(endpoint.path / "out", schema=[Order]).close()
    lease = Bus(folder / "bus").status("orders/alpha").lease
    assert lease is not None
    assert witness.look(0.0, {"alpha": lease.pid}).up == {}
    endpoint.ready(["out"])
    assert witness.look(0.0, {"alpha": lease.pid}).up == {"alpha": lease.pid}
    # Another process that has not taken over yet; nobody; and one that is stopped.
    assert witness.look(0.0, {"alpha": lease.pid + 1}).up == {}
    assert witness.look(0.0, {}).up == {}
    endpoint.close()


def test_orders_and_acknowledgements_are_read_on(witness: Witness, folder: Path):
    alpha = folder / "bus" / "orders" / "alpha"
    alpha.mkdir(parents=True)
    with (
        chronicle.Queue.open_publisher(alpha / "out", schema=[Order]) as out,
        chronicle.Queue.open_publisher(alpha / "in" / "main", schema=[Report]) as told,
    ):
        for order_id in (1, 2, 3):
            out.publish(made(Order, order_id=order_id))
        told.publish(made(Report, kind=Kind.ACK, order_id=1))
        told.publish(made(Report, kind=Kind.FILL, order_id=1))
        seen = witness.look(0.0, {}).sights["alpha"]
        assert (seen.orders, seen.acked) == (3, 1)
        told.publish(made(Report, kind=Kind.ACK, order_id=2))
        seen = witness.look(0.0, {}).sights["alpha"]
        assert (seen.orders, seen.acked) == (3, 2)


def test_counters_of_all_lives_are_added_up(witness: Witness, monkeypatch: pytest.MonkeyPatch):
    def counted(instance: str, sent: int) -> int:
        found = SimpleNamespace(
            instance=instance, threads=[SimpleNamespace(counters={"sent": sent})]
        )
        monkeypatch.setattr(timeline, "read_counters", lambda _path: found)
        return witness.look(0.0, {}).sights["alpha"].counters["sent"]

    assert [counted("a", 5), counted("a", 7), counted("b", 0), counted("b", 2)] == [5, 7, 7, 9]
