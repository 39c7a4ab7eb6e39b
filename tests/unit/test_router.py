"""The router's handler, uncompiled: what it passes on, what it refuses and why, whom it tells."""

from __future__ import annotations

from typing import Any

import pytest
from chronicle.hot import Info
from orders import Action, Cancel, Execution, Forward, Kind, Order, Reason, Report
from router import EXCHANGE, NS_PER_S, PRICE_MAX, SEATS, Leave, Limits, Router, Sit

from tests.orders_support import changed, made

NOW = 1_000_000_000_000
ORDER = made(Order, order_id=1, price=1_000, quantity=5, symbol=b"ZXIET", gateway=b"main", side=1)
SEAT = 3


def router_with(**state: Any) -> Router:
    router = Router(name=b"main", is_live=1, **state)
    router.set_clock(NOW)
    router.sit(Sit(session=77, seat=SEAT, is_known=1))
    return router


def give(router: Router, message: Any, seq: int = 1, tag: int = SEAT, age_ns: int = 0) -> None:
    assert router.receive(message, Info(seq=seq, timestamp_ns=NOW - age_ns, tag=tag))


def forwarded(router: Router) -> list[Any]:
    return router.forwards.published


def answers(router: Router, seat: int = SEAT) -> list[Any]:
    return router.reports[seat].published


def test_an_order_in_order_is_passed_on_and_names_its_cause():
    router = router_with()
    give(router, ORDER, seq=9)
    assert router.forwards.published == [
        made(
            Forward,
            cause=9,
            session=77,
            order_id=1,
            expires_ns=NOW + NS_PER_S,
            price=1_000,
            quantity=5,
            symbol=b"ZXIET",
            seat=SEAT,
            action=Action.NEW,
            side=1,
        )
    ]
    assert answers(router) == []


REFUSED: dict[str, tuple[Reason, dict[str, Any], dict[str, Any]]] = {
    "no side": (Reason.SIDE, {}, {"side": 3}),
    "below the band": (Reason.PRICE_BAND, {"price_min": 1_001}, {}),
    "above the band": (Reason.PRICE_BAND, {"price_max": 999}, {}),
    "no price": (Reason.PRICE_BAND, {}, {"price": 0}),
    "a price beyond what can be multiplied": (Reason.PRICE_BAND, {}, {"price": PRICE_MAX + 1}),
    "the lowest price there is": (Reason.PRICE_BAND, {}, {"price": -(1 << 63)}),
    "too many": (Reason.QUANTITY, {"quantity_max": 4}, {}),
    "none": (Reason.QUANTITY, {}, {"quantity": 0}),
    "less than none": (Reason.QUANTITY, {}, {"quantity": -5}),
    "as many as there are numbers": (Reason.QUANTITY, {}, {"quantity": (1 << 63) - 1}),
    "too much money": (Reason.NOTIONAL, {"notional_max": 4_999}, {}),
    "no order at all may be open": (Reason.OPEN_ORDERS, {"open_orders_max": 0}, {}),
    "a number that was used": (Reason.ORDER_ID, {}, {"order_id": 0}),
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_an_order_that_breaks_a_limit_is_refused_with_the_reason(what: str):
    reason, limits, fields = REFUSED[what]
    router = router_with(**limits)
    give(router, changed(ORDER, **fields), seq=9)
    assert router.forwards.published == []
    (report,) = answers(router)
    assert (report.kind, report.reason, report.closed) == (Kind.REJECT, reason, 1)
    assert (report.cause, report.request, report.session) == (0, 9, 77)


def test_an_order_that_lay_there_too_long_is_refused_as_stale():
    router = router_with(stale_ns=100)
    give(router, ORDER, seq=1, age_ns=100)
    give(router, changed(ORDER, order_id=2), seq=2, age_ns=101)
    assert len(router.forwards.published) == 1
    assert [report.reason for report in answers(router)] == [Reason.STALE]


def test_a_strategy_that_is_not_known_is_refused_and_its_cancels_are_not():
    router = router_with()
    router.sit(Sit(session=77, seat=SEAT, is_known=0))
    give(router, ORDER, seq=1)
    give(router, made(Cancel, order_id=1, gateway=b"main"), seq=2)
    assert [report.reason for report in answers(router)] == [Reason.UNKNOWN_STRATEGY]
    (forward,) = forwarded(router)
    assert forward.action == Action.CANCEL


def test_the_rate_is_a_burst_and_then_so_many_a_second():
    router = router_with(burst=3, interval_ns=NS_PER_S // 10)
    for number in range(1, 6):
        give(router, changed(ORDER, order_id=number), seq=number)
    assert len(router.forwards.published) == 3
    assert [report.reason for report in answers(router)] == [Reason.RATE] * 2
    router.set_clock(NOW + NS_PER_S // 10)
    give(router, changed(ORDER, order_id=6), seq=6)
    give(router, changed(ORDER, order_id=7), seq=7)
    assert len(router.forwards.published) == 4


def test_a_clock_that_goes_back_saves_nothing_up_and_costs_nothing():
    router = router_with(burst=1, interval_ns=NS_PER_S)
    give(router, ORDER, seq=1)
    router.set_clock(NOW - 50 * NS_PER_S)
    give(router, changed(ORDER, order_id=2), seq=2)
    assert [report.reason for report in answers(router)] == [Reason.RATE]


def test_open_orders_are_counted_until_they_are_closed():
    router = router_with(open_orders_max=1)
    give(router, ORDER, seq=1)
    give(router, changed(ORDER, order_id=2), seq=2)
    assert [report.reason for report in answers(router)] == [Reason.OPEN_ORDERS]
    closed = made(Execution, session=77, order_id=1, kind=Kind.FILL, seat=SEAT, closed=1)
    give(router, closed, seq=1, tag=EXCHANGE)
    give(router, changed(ORDER, order_id=3), seq=3)
    assert len(router.forwards.published) == 2


def test_a_message_is_handled_once_however_often_it_is_read():
    router = router_with()
    for _ in range(3):
        give(router, ORDER, seq=1)
    assert (len(router.forwards.published), router.repeated.value) == (1, 2)
    execution = made(Execution, session=77, order_id=1, kind=Kind.ACK, seat=SEAT)
    for _ in range(3):
        give(router, execution, seq=4, tag=EXCHANGE)
    assert (len(answers(router)), router.repeated.value) == (1, 4)


def test_an_order_for_another_gateway_is_left_to_it():
    router = router_with()
    give(router, changed(ORDER, gateway=b"other"), seq=1)
    assert (router.forwards.published, answers(router), router.others.value) == ([], [], 1)


def test_reports_go_to_whom_they_belong_also_if_the_seat_was_another_one():
    router = router_with()
    router.sit(Sit(session=88, seat=200, is_known=1))
    for session, seat in ((77, SEAT), (88, 200), (88, SEAT), (77, 0), (77, 4_000_000_000)):
        execution = made(Execution, session=session, kind=Kind.ACK, seat=seat)
        give(router, execution, seq=router.cause + 1, tag=EXCHANGE)
    assert [len(answers(router, seat)) for seat in (SEAT, 200)] == [3, 2]
    assert {report.session for report in answers(router, 200)} == {88}
    give(router, made(Execution, session=99, seat=SEAT), seq=6, tag=EXCHANGE)
    assert router.orphans.value == 1


def test_messages_where_they_have_no_business_change_nothing():
    router = router_with()
    before = router.state_bytes()
    give(router, made(Execution, session=77, seat=SEAT, kind=Kind.ACK), tag=SEAT)
    give(router, made(Forward, session=77, cause=1_000, action=1), tag=SEAT)
    give(router, made(Report, session=77, cause=1_000), tag=SEAT)
    give(router, ORDER, tag=EXCHANGE)
    give(router, ORDER, tag=SEATS - 1)
    give(router, made(Cancel, order_id=1, gateway=b"main"), tag=4_000_000_000)
    assert router.strangers.value == 6
    assert router.state_bytes() == before
    assert router.forwards.published == []


def test_a_seat_that_is_taken_again_begins_anew_and_one_that_is_kept_does_not():
    router = router_with()
    give(router, ORDER, seq=5)
    router.sit(Sit(session=77, seat=SEAT, is_known=1))
    assert router.seats[SEAT].cause == 5
    router.sit(Sit(session=78, seat=SEAT, is_known=1))
    assert (router.seats[SEAT].cause, router.seats[SEAT].open_orders) == (0, 0)
    router.leave(Leave(seat=SEAT))
    assert router.seats[SEAT].session == 0


def test_limits_come_as_one_command():
    router = router_with()
    router.limit(
        Limits(
            price_min=2,
            price_max=3,
            quantity_max=4,
            notional_max=5,
            open_orders_max=6,
            orders_per_s=7,
            burst=8,
            stale_ms=9,
        )
    )
    assert (router.price_min, router.price_max, router.quantity_max) == (2, 3, 4)
    assert (router.notional_max, router.open_orders_max, router.burst) == (5, 6, 8)
    assert (router.interval_ns, router.stale_ns) == (NS_PER_S // 7, 9_000_000)
