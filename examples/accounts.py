"""Accounts for every order of a bus: what was asked for, what was answered, and what is wrong.

    python examples/accounts.py BUS            a table and the faults; exit status 1 if any
    python examples/accounts.py BUS --closed   an order that is still open is a fault, too
    python examples/accounts.py BUS --running  what is on its way is none
    python examples/accounts.py BUS --json     for scripts

An order is accounted for when its strategy was told exactly once that it was taken (ack) or that it
was not (reject), its fills do not exceed its quantity, no execution id occurs twice, and nothing is
told after its end. Besides, each hop must have passed on all that it got, once, in order, and
unchanged: order to forward, forward to executions, execution to report.

It only reads, and registers nowhere, so it may look while everything runs; `--running` says so, and
what is on its way is no fault then.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import chronicle
from chronicle.message import MessageBase
from orders import Action, Cancel, Execution, Forward, Kind, Order, Report, session_of

__all__ = ["Accounts", "Log", "account", "read_bus"]

M = TypeVar("M", bound=MessageBase)
#: What one queue holds: sequence numbers and messages.
Entries = list[tuple[int, M]]

_CLASSES = {cls.type_id: cls for cls in (Order, Cancel, Forward, Execution, Report)}
_SAME = ("session", "order_id", "execution_id", "price", "quantity", "remaining", "symbol")
_TOLD = (*_SAME, "kind", "side", "reason", "closed", "request")


@dataclass
class Log:
    """What stands in the queues of a bus.

    Attributes
    ----------
    sessions
        By strategy.
    requests
        Orders and cancels, by strategy.
    reports
        By strategy and gateway.
    forwards
        By gateway.
    executions
        By exchange and gateway.
    """

    sessions: dict[str, int] = field(default_factory=dict)
    requests: dict[str, Entries[Any]] = field(default_factory=dict)
    reports: dict[tuple[str, str], Entries[Report]] = field(default_factory=dict)
    forwards: dict[str, Entries[Forward]] = field(default_factory=dict)
    executions: dict[tuple[str, str], Entries[Execution]] = field(default_factory=dict)


@dataclass
class Accounts:
    """The result: numbers, and what is wrong, each in one sentence."""

    strategies: int = 0
    orders: int = 0
    cancels: int = 0
    acked: int = 0
    rejected: int = 0
    fills: int = 0
    filled_quantity: int = 0
    cancelled: int = 0
    open: int = 0
    unanswered: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    #: What is not there, or not yet.
    missing: list[str] = field(default_factory=list)

    @property
    def perfect(self) -> bool:
        """Whether every order is accounted for."""
        return not self.faults


def read_bus(path: Path) -> Log:
    """Read all queues of orders on a bus."""
    log = Log()
    # Against the stream: what has caused something is read after it.
    for queue in sorted(path.glob("orders/*/in/*/control")):
        log.reports[queue.parents[2].name, queue.parent.name] = _read(queue.parent)
    for queue in sorted(path.glob("exchanges/*/*/control")):
        log.executions[queue.parents[1].name, queue.parent.name] = _read(queue.parent)
    for queue in sorted(path.glob("gateways/*/exchange/control")):
        log.forwards[queue.parents[1].name] = _read(queue.parent)
    for queue in sorted(path.glob("orders/*/out/control")):
        name = queue.parents[1].name
        log.requests[name] = _read(queue.parent)
        if log.requests[name]:
            log.sessions[name] = session_of(chronicle.inspect(queue.parent)["queue_id"])
    return log


def _read(queue: Path) -> Entries[Any]:
    try:
        reader = chronicle.Queue.open_subscriber(queue, None, start="earliest")
    except chronicle.NotAQueue:
        # Its first writer has not finished creating it.
        return []
    with reader:
        return [
            (message.seq, _CLASSES[message.type_id].view(bytes(message.payload)))
            for message in reader
        ]


def account(log: Log, *, closed: bool = False, running: bool = False) -> Accounts:
    """Check everything; return the numbers and the faults.

    Parameters
    ----------
    closed
        An order that is still open is a fault.
    running
        What is on its way is none.
    """
    accounts = Accounts(strategies=len(log.requests))
    names = {session: name for name, session in log.sessions.items()}
    _check_forwards(log, names, accounts)
    _check_executions(log, accounts)
    _check_reports(log, names, accounts)
    for name in sorted(log.requests):
        _check_strategy(name, log, accounts, closed=closed)
    if not running:
        accounts.faults += accounts.missing
    return accounts


def _check_forwards(log: Log, names: dict[int, str], accounts: Accounts) -> None:
    """Each request became one forward, unchanged and in order, or was refused by the router."""
    faults = accounts.faults
    outcomes: Counter[tuple[str, int]] = Counter()
    requests = {name: dict(entries) for name, entries in log.requests.items()}
    for gateway, forwards in log.forwards.items():
        last: dict[int, int] = defaultdict(int)
        for seq, forward in forwards:
            where = f"forward {gateway}:{seq}"
            name = names.get(forward.session)
            if name is None:
                faults.append(f"{where} is of a session that is nobody's: {forward.session}")
                continue
            if forward.cause <= last[forward.session]:
                faults.append(f"{where} comes again, or late: {name}:{forward.cause}")
            last[forward.session] = forward.cause
            outcomes[name, forward.cause] += 1
            request = requests[name].get(forward.cause)
            if request is None or not _is_forwarded(request, forward, gateway):
                faults.append(f"{where} is not what {name}:{forward.cause} asked for")
    for (name, _), reports in log.reports.items():
        for _, report in reports:
            if report.cause == 0:
                outcomes[name, report.request] += 1
    for name, entries in requests.items():
        for seq in entries:
            count = outcomes.pop((name, seq), 0)
            if count != 1:
                wrong = faults if count else accounts.missing
                wrong.append(f"request {name}:{seq} was handled {count} times by its router")
    for name, seq in outcomes:
        faults.append(f"a router handled {name}:{seq}, which nobody wrote")


def _is_forwarded(request: Any, forward: Forward, gateway: str) -> bool:
    if request.order_id != forward.order_id or request.gateway != gateway.encode():
        return False
    if forward.action == Action.CANCEL:
        return isinstance(request, Cancel)
    fields = ("price", "quantity", "symbol", "side")
    return isinstance(request, Order) and all(
        getattr(request, name) == getattr(forward, name) for name in fields
    )


def _check_executions(log: Log, accounts: Accounts) -> None:
    """Each forward was answered: ack or refusal first, the last one marked, ids used once."""
    faults = accounts.faults
    for (exchange, gateway), executions in log.executions.items():
        forwards = dict(log.forwards.get(gateway, ()))
        ids: set[int] = set()
        handled: set[int] = set()
        for cause, group in itertools.groupby(executions, key=lambda entry: entry[1].cause):
            found = [execution for _, execution in group]
            where = f"{exchange} on forward {gateway}:{cause}"
            forward = forwards.get(cause)
            if forward is None or cause in handled:
                faults.append(f"{where}: {'comes again' if forward else 'nobody wrote that'}")
                continue
            handled.add(cause)
            marks = [bool(execution.last) for execution in found]
            if any(marks[:-1]):
                faults.append(f"{where}: one that is not the last of {len(found)} is marked so")
            elif not marks[-1]:
                accounts.missing.append(f"{where}: the last of {len(found)} is not marked")
            first = found[0].kind
            answers = (Kind.ACK, Kind.REJECT)
            if forward.action == Action.CANCEL:
                answers = (Kind.CANCELLED, Kind.CANCEL_REJECT)
            if first not in answers or any(item.kind != Kind.FILL for item in found[1:]):
                faults.append(f"{where}: kinds {[item.kind for item in found]}")
            for item in found:
                if (item.session, item.order_id) != (forward.session, forward.order_id):
                    faults.append(f"{where}: tells of order {item.session}/{item.order_id}")
                if item.kind == Kind.FILL and item.execution_id in ids:
                    faults.append(f"{where}: execution_id={item.execution_id} occurs twice")
                ids.add(item.execution_id)
        for cause in forwards.keys() - handled:
            accounts.missing.append(f"{exchange} has not answered forward {gateway}:{cause}")


def _check_reports(log: Log, names: dict[int, str], accounts: Accounts) -> None:
    """Each execution was told once, unchanged, to the strategy that the order came from."""
    faults = accounts.faults
    told: dict[tuple[str, str], dict[int, Report]] = {}
    for (name, gateway), reports in log.reports.items():
        mine = told.setdefault((name, gateway), {})
        for seq, report in reports:
            where = f"report {name}/{gateway}:{seq}"
            if report.session != log.sessions.get(name):
                faults.append(f"{where} is of another session: {report.session}")
            if report.cause == 0:
                continue
            if report.cause in mine:
                faults.append(f"{where} comes again: execution {report.cause}")
            mine[report.cause] = report
    for (exchange, gateway), executions in log.executions.items():
        for seq, execution in executions:
            where = f"execution {exchange}/{gateway}:{seq}"
            name = names.get(execution.session, "")
            found = told.get((name, gateway), {}).pop(seq, None)
            if found is None:
                accounts.missing.append(f"{where} was not told to {name or 'anybody'}")
            elif any(getattr(found, item) != getattr(execution, item) for item in _TOLD):
                faults.append(f"{where} was told differently to {name}")
    for (name, gateway), left in told.items():
        for cause in left:
            faults.append(f"{name} was told of execution {gateway}:{cause}, which is not its own")


@dataclass
class _Order:
    """What a strategy was told of one order."""

    quantity: int
    answers: int = 0
    refused: bool = False
    filled: int = 0
    ended: bool = False


def _check_strategy(name: str, log: Log, accounts: Accounts, *, closed: bool) -> None:
    """Each order has one answer, each cancel too, and fills stay within the order."""
    faults = accounts.faults
    orders: dict[int, _Order] = {}
    cancels: dict[int, int] = {}
    for seq, request in log.requests[name]:
        if isinstance(request, Cancel):
            cancels[seq] = 0
            continue
        if request.order_id <= max(orders, default=0):
            faults.append(f"order {name}:{seq} has order_id={request.order_id} again")
        orders[request.order_id] = _Order(request.quantity)
    ids: set[tuple[str, int]] = set()
    for gateway in sorted(gateway for owner, gateway in log.reports if owner == name):
        for seq, report in log.reports[name, gateway]:
            where = f"report {name}/{gateway}:{seq}"
            order = orders.get(report.order_id)
            if report.kind in (Kind.CANCELLED, Kind.CANCEL_REJECT):
                if report.request not in cancels:
                    faults.append(f"{where} answers a cancel that nobody wrote")
                cancels[report.request] = cancels.get(report.request, 0) + 1
            if report.kind == Kind.FILL:
                if (gateway, report.execution_id) in ids:
                    faults.append(f"{where}: execution_id={report.execution_id} occurs twice")
                ids.add((gateway, report.execution_id))
            if report.kind in (Kind.REJECT, Kind.CANCEL_REJECT):
                _count_reason(report, where, accounts)
            if order is not None:
                _apply(order, report, where, accounts)
            elif report.kind != Kind.CANCEL_REJECT:
                faults.append(f"{where} is of order {report.order_id}, which nobody wrote")
    for order_id, order in orders.items():
        if order.answers != 1:
            wrong = faults if order.answers else accounts.missing
            wrong.append(f"order {name}/{order_id} has {order.answers} answers")
        if closed and order.answers and not order.ended:
            faults.append(f"order {name}/{order_id} is still open")
    for seq, count in cancels.items():
        if count != 1:
            wrong = faults if count else accounts.missing
            wrong.append(f"cancel {name}:{seq} has {count} answers")
    accounts.orders += len(orders)
    accounts.cancels += len(cancels)
    accounts.open += sum(order.answers > 0 and not order.ended for order in orders.values())
    accounts.unanswered += sum(order.answers == 0 for order in orders.values())


def _count_reason(report: Report, where: str, accounts: Accounts) -> None:
    try:
        from orders import Reason

        reason = Reason(report.reason)
    except ValueError:
        accounts.faults.append(f"{where} has no known reason: {report.reason}")
        return
    if reason is Reason.NONE:
        accounts.faults.append(f"{where} refuses without a reason")
    accounts.reasons[reason.name] = accounts.reasons.get(reason.name, 0) + 1


def _apply(order: _Order, report: Report, where: str, accounts: Accounts) -> None:
    faults = accounts.faults
    if order.ended and report.kind != Kind.CANCEL_REJECT:
        faults.append(f"{where} comes after the order's end")
    match report.kind:
        case Kind.ACK:
            order.answers += 1
            accounts.acked += 1
        case Kind.REJECT:
            order.answers += 1
            order.refused = True
            accounts.rejected += 1
        case Kind.FILL:
            accounts.fills += 1
            accounts.filled_quantity += report.quantity
            order.filled += report.quantity
            if order.filled > order.quantity:
                faults.append(f"{where} fills {order.filled} of {order.quantity}")
            if not order.answers or order.refused:
                faults.append(f"{where} fills an order that was not taken")
            if report.remaining != order.quantity - order.filled:
                faults.append(f"{where} says remaining={report.remaining}")
        case Kind.CANCELLED:
            accounts.cancelled += 1
        case Kind.CANCEL_REJECT:
            pass
        case _:
            faults.append(f"{where} has no known kind: {report.kind}")
    order.ended = order.ended or bool(report.closed)


def main(arguments: Iterable[str] | None = None) -> int:
    """Print the accounts of a bus."""
    parser = argparse.ArgumentParser(description="Account for every order of a bus.")
    parser.add_argument("bus", type=Path)
    parser.add_argument("--closed", action="store_true", help="an open order is a fault, too")
    parser.add_argument("--running", action="store_true", help="what is on its way is none")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--faults", type=int, default=20, help="how many to print")
    options = parser.parse_args(None if arguments is None else list(arguments))
    accounts = account(read_bus(options.bus), closed=options.closed, running=options.running)
    told = dataclasses.asdict(accounts)
    if options.json:
        print(json.dumps(told))
        return int(not accounts.perfect)
    for key, value in told.items():
        if key not in ("faults", "missing", "reasons"):
            print(f"{key:16} {value:>12,}")
    for reason, count in sorted(accounts.reasons.items()):
        print(f"  refused {reason:16} {count:>12,}")
    for fault in accounts.faults[: options.faults]:
        print(f"FAULT {fault}")
    if len(accounts.faults) > options.faults:
        print(f"... and {len(accounts.faults) - options.faults} more")
    print("every order is accounted for" if accounts.perfect else "the accounts are wrong")
    return int(not accounts.perfect)


if __name__ == "__main__":
    sys.exit(main())
