"""Accounts of orders: a bus in order has no fault, and each way to be wrong is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chronicle
import pytest
from accounts import Log, account, main, read_bus
from orders import Cancel, Execution, Forward, Order, Report, session_of

from tests.orders_support import changed, made, one_order

ALPHA = ("alpha", "main")
SIM = ("sim", "main")


def test_a_bus_in_order_has_no_fault():
    accounts = account(one_order(), closed=True)
    assert accounts.faults == []
    assert accounts.perfect
    assert (accounts.orders, accounts.acked, accounts.rejected) == (2, 1, 1)
    assert (accounts.fills, accounts.filled_quantity, accounts.open) == (2, 10, 0)
    assert accounts.reasons == {"QUANTITY": 1}


def drop(entries: list[tuple[int, Any]], seq: int) -> None:
    entries[:] = [entry for entry in entries if entry[0] != seq]


def again(entries: list[tuple[int, Any]], seq: int) -> None:
    found = dict(entries)[seq]
    entries.append((entries[-1][0] + 1, found))


def change(entries: list[tuple[int, Any]], number: int, /, **fields: Any) -> None:
    at = [seq for seq, _ in entries].index(number)
    entries[at] = (number, changed(entries[at][1], **fields))


def _lost_between(log: Log) -> None:
    log.requests["alpha"].append((3, made(Order, order_id=3, gateway=b"main", quantity=1)))


def _cancel_without_answer(log: Log) -> None:
    log.requests["alpha"].append((3, Cancel(order_id=1, gateway=b"main")))


def _reject_twice(log: Log) -> None:
    again(log.reports[ALPHA], 4)


WRONG: dict[str, tuple[Callable[[Log], None], str]] = {
    "an order is lost before the router": (_lost_between, "request alpha:3 was handled 0 times"),
    "an order has no answer": (lambda log: drop(log.reports[ALPHA], 1), "has 0 answers"),
    "an order is refused twice": (_reject_twice, "has 2 answers"),
    "an order is forwarded twice": (
        lambda log: again(log.forwards["main"], 1),
        "comes again, or late",
    ),
    "a forward is changed": (
        lambda log: change(log.forwards["main"], 1, quantity=11),
        "is not what alpha:1 asked for",
    ),
    "a forward goes through another gateway": (
        lambda log: change(log.requests["alpha"], 1, gateway=b"other"),
        "is not what alpha:1 asked for",
    ),
    "a forward of nobody": (
        lambda log: change(log.forwards["main"], 1, session=5),
        "is of a session that is nobody's",
    ),
    "a forward of nothing": (
        lambda log: change(log.forwards["main"], 1, cause=9),
        "a router handled alpha:9, which nobody wrote",
    ),
    "the exchange is silent": (
        lambda log: log.executions[SIM].clear(),
        "sim has not answered forward main:1",
    ),
    "the exchange begins again": (
        lambda log: log.executions[SIM].append(
            (4, changed(log.executions[SIM][0][1], cause=1, last=1))
        ),
        "one that is not the last of 4 is marked so",
    ),
    "the exchange comes back to an order": (
        lambda log: log.executions[SIM].extend(
            [
                (4, made(Execution, cause=9, session=77, order_id=1, kind=1, last=1)),
                (5, changed(log.executions[SIM][2][1])),
            ]
        ),
        "comes again",
    ),
    "the exchange does not end": (
        lambda log: change(log.executions[SIM], 3, last=0),
        "is not marked",
    ),
    "the exchange fills first": (
        lambda log: drop(log.executions[SIM], 1),
        "kinds [3, 3]",
    ),
    "an execution id occurs twice": (
        lambda log: change(log.executions[SIM], 3, execution_id=1),
        "execution_id=1 occurs twice",
    ),
    "a strategy is told an execution id twice": (
        lambda log: change(log.reports[ALPHA], 3, execution_id=1),
        "report alpha/main:3: execution_id=1 occurs twice",
    ),
    "the exchange tells of another order": (
        lambda log: change(log.executions[SIM], 2, order_id=2),
        "tells of order 77/2",
    ),
    "a fill is told twice": (lambda log: again(log.reports[ALPHA], 2), "comes again: execution 2"),
    "a fill is not told": (
        lambda log: drop(log.reports[ALPHA], 2),
        "execution sim/main:2 was not told to alpha",
    ),
    "a fill is told differently": (
        lambda log: change(log.reports[ALPHA], 2, price=1),
        "was told differently to alpha",
    ),
    "a fill of nobody is told": (
        lambda log: change(log.reports[ALPHA], 2, cause=44),
        "was told of execution main:44, which is not its own",
    ),
    "a report is somebody else's": (
        lambda log: change(log.reports[ALPHA], 2, session=78),
        "is of another session: 78",
    ),
    "a report is of no order": (
        lambda log: change(log.reports[ALPHA], 2, order_id=12),
        "is of order 12, which nobody wrote",
    ),
    "fills exceed the order": (
        lambda log: change(log.reports[ALPHA], 3, quantity=7),
        "fills 11 of 10",
    ),
    "a refused order is filled": (
        lambda log: change(log.reports[ALPHA], 1, kind=2, reason=1),
        "fills an order that was not taken",
    ),
    "something comes after the end": (
        lambda log: change(log.reports[ALPHA], 2, closed=1),
        "comes after the order's end",
    ),
    "what remains is wrong": (
        lambda log: change(log.reports[ALPHA], 2, remaining=7),
        "says remaining=7",
    ),
    "an order stays open": (
        lambda log: change(log.reports[ALPHA], 3, closed=0),
        "order alpha/1 is still open",
    ),
    "a refusal has no reason": (
        lambda log: change(log.reports[ALPHA], 4, reason=0),
        "refuses without a reason",
    ),
    "a refusal has a reason that nobody knows": (
        lambda log: change(log.reports[ALPHA], 4, reason=200),
        "has no known reason: 200",
    ),
    "a kind that nobody knows": (
        lambda log: change(log.reports[ALPHA], 2, kind=9),
        "has no known kind: 9",
    ),
    "an order id is used twice": (
        lambda log: change(log.requests["alpha"], 2, order_id=1),
        "has order_id=1 again",
    ),
    "a cancel has no answer": (_cancel_without_answer, "cancel alpha:3 has 0 answers"),
    "a cancel that nobody wrote is answered": (
        lambda log: change(log.reports[ALPHA], 2, kind=4),
        "answers a cancel that nobody wrote",
    ),
}


@pytest.mark.parametrize("what", sorted(WRONG))
def test_what_is_wrong_is_found(what: str):
    log = one_order()
    spoil, expected = WRONG[what]
    spoil(log)
    accounts = account(log, closed=True)
    assert not accounts.perfect
    assert [fault for fault in accounts.faults if expected in fault], accounts.faults


def test_an_order_that_is_still_open_is_counted_and_no_fault_meanwhile():
    log = one_order()
    for entries in (log.reports[ALPHA], log.executions[SIM]):
        drop(entries, 3)
    change(log.executions[SIM], 2, last=1)
    accounts = account(log)
    assert accounts.faults == []
    assert accounts.open == 1


def test_what_is_on_its_way_is_no_fault_while_everything_runs():
    log = one_order()
    _lost_between(log)
    drop(log.reports[ALPHA], 3)
    assert account(log, running=True).faults == []
    assert len(account(log).faults) == 3
    again(log.reports[ALPHA], 2)
    assert not account(log, running=True).perfect


def write_bus(bus: Path, log: Log) -> None:
    """Write a log as the queues of a bus."""
    places: dict[Path, list[tuple[int, Any]]] = {bus / "orders/alpha/out": log.requests["alpha"]}
    places[bus / "orders/alpha/in/main"] = log.reports[ALPHA]
    places[bus / "gateways/main/exchange"] = log.forwards["main"]
    places[bus / "exchanges/sim/main"] = log.executions[SIM]
    session = 0
    for path, entries in places.items():
        with chronicle.Queue.open_publisher(path, segment_bytes=1 << 16) as writer:
            session = session or session_of(chronicle.inspect(path)["queue_id"])
            for _, message in entries:
                is_named = isinstance(message, Forward | Execution | Report)
                writer.publish(changed(message, session=session) if is_named else message)


def test_a_bus_is_read_from_its_queues(folder: Path, capsys: pytest.CaptureFixture[str]):
    write_bus(folder, one_order())
    log = read_bus(folder)
    assert account(log, closed=True).faults == []
    assert main([str(folder), "--closed"]) == 0
    assert "every order is accounted for" in capsys.readouterr().out
    assert main([str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["orders"] == 2


def test_the_tool_tells_faults_and_fails(folder: Path, capsys: pytest.CaptureFixture[str]):
    log = one_order()
    again(log.reports[ALPHA], 2)
    write_bus(folder, log)
    assert main([str(folder), "--faults", "1"]) == 1
    told = capsys.readouterr().out
    assert "FAULT report alpha/main:5 comes again: execution 2" in told
    assert "more" in told
