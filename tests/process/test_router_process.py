"""The router's cold half with a real hot thread: seats, lives, and strategies that nobody knew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import router
from accounts import account, read_bus
from chronicle import ChannelFull, HotThread, Queue, QueueWriter, Sidecar
from chronicle.bus import Bus, Endpoint
from chronicle.hot.audit import audit
from chronicle.hot.rebuild import Past, rebuild
from exchange import Exchange
from orders import Cancel, Execution, Order, Report
from router import Router, Seats, start
from strategy import Strategy

from tests.orders_support import made
from tests.sidecar_support import eventually


@pytest.mark.parametrize("handler", [Exchange, Router, Strategy])
def test_every_path_of_the_handlers_passes_the_audit(
    handler: type[Exchange] | type[Router] | type[Strategy],
):
    verdict = audit(handler)
    assert verdict.accepted, verdict.findings
    assert verdict.reach is not None
    assert set(verdict.reach.core) <= {"chr_hot_append", "chr_hot_log"}
    assert verdict.reach.libm == ()


#: On a busy machine an order may lie there for longer than a second.
LIMITS = """
price_min = 1
price_max = 1000
quantity_max = 10
notional_max = 1000
open_orders_max = 10
orders_per_s = 1000
burst = 100
stale_ms = 3600000
"""


class Client:
    """A strategy by hand."""

    def __init__(self, bus: Bus, name: str) -> None:
        self.bus, self.name = bus, name
        self.endpoint: Endpoint = bus.open_endpoint(f"orders/{name}", valid_s=600.0)
        self.out: QueueWriter = Queue.open_publisher(
            self.endpoint.path / "out", schema=[Order, Cancel], segment_bytes=1 << 16
        )
        self.endpoint.ready(["out"])
        self.sent = 0

    def order(self) -> None:
        self.sent += 1
        fields = {"price": 100, "quantity": 1, "symbol": b"ZXIET", "gateway": b"main", "side": 1}
        self.out.publish(made(Order, order_id=self.sent, **fields))

    def reports(self) -> list[Report]:
        queue = self.bus.path / "orders" / self.name / "in" / "main"
        with Queue.open_subscriber(queue, None, start="earliest") as reader:
            return [Report.view(bytes(message.payload)) for message in reader]

    def leave(self) -> None:
        self.out.close()
        self.endpoint.close()


@contextmanager
def running(bus: Bus) -> Iterator[HotThread]:
    """A life of the router."""
    limits = bus.path / "limits.toml"
    limits.write_text(LIMITS)
    with Sidecar() as sidecar:
        yield start(sidecar, bus, "main", "sim", allowed=["s*"], limits=limits)


def forwarded(hot: HotThread, count: int) -> None:
    eventually(lambda: hot.counters["forwarded"] >= count, f"{count} orders")


def test_each_life_of_the_router_goes_on_behind_the_last_one(folder: Path):
    bus = Bus(folder)
    first, second = Client(bus, "s1"), Client(bus, "s2")
    stranger = Client(bus, "x1")
    with running(bus) as hot:
        first.order()
        first.order()
        second.order()
        stranger.order()
        forwarded(hot, 3)
        eventually(lambda: hot.counters["rejected"] == 1, "the stranger's refusal")
    # While there is no router, and a strategy that no life has seen.
    first.order()
    third = Client(bus, "s3")
    third.order()
    with running(bus) as hot:
        forwarded(hot, 2)
        seats = {int(seat["session"]): int(seat["open_orders"]) for seat in hot.state["seats"]}
        assert sorted(seats.values())[-3:] == [1, 1, 3]
        assert hot.counters["repeated"] == 0
    for client in (first, second, third, stranger):
        client.leave()
    accounts = account(read_bus(folder), running=True)
    assert accounts.faults == []
    assert (accounts.orders, accounts.rejected) == (6, 1)
    assert accounts.reasons == {"UNKNOWN_STRATEGY": 1}


def test_a_seat_is_used_again_only_when_nothing_is_open_on_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(router, "SEATS", 2)
    bus = Bus(folder)
    kept, gone = Client(bus, "s1"), Client(bus, "s2")
    with Queue.open_publisher(folder / "exchanges/sim/main", schema=[Execution]) as exchange:
        with running(bus) as hot:
            kept.order()
            gone.order()
            forwarded(hot, 2)
            gone.leave()
            third = Client(bus, "s3")
            third.order()
            session = next(s for name, s in read_bus(folder).sessions.items() if name == "s2")
            # Its order is open: what comes of it must still find its way.
            eventually(
                lambda: len([seat for seat in hot.state["seats"] if seat["session"]]) == 2,
                "both seats",
            )
            assert hot.counters["forwarded"] == 2
            ended = {"session": session, "order_id": 1, "request": 1, "seat": 1}
            exchange.publish(made(Execution, **ended, cause=2, kind=2, reason=10, last=1, closed=1))
            eventually(lambda: len(gone.reports()) == 1, "the end of its order")
            forwarded(hot, 3)
            assert hot.counters["orphans"] == 0
        kept.leave()
        third.leave()


def test_the_seats_of_earlier_lives_are_there_before_the_first_order(folder: Path):
    bus = Bus(folder)
    client = Client(bus, "s1")
    with running(bus) as hot:
        client.order()
        forwarded(hot, 1)
    seats = Seats(folder, "main", ["*"])
    state = seats.rebuild(Router(name=b"main"), folder / "gateways/main/exchange")
    seats.close()
    seat = state["seats"][seats.seats["s1"]]
    assert (int(seat["cause"]), int(seat["open_orders"]), int(seat["order_id"])) == (1, 1, 1)
    client.leave()
    past = [Past(folder / "gateways/main/exchange")]
    assert int(rebuild(Router(name=b"main"), past)["cause"]) == 0


class FullOnce:
    """A hot thread whose channel is full at first."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def add_writer(self, output: str, writer: QueueWriter, **options: object) -> int:
        self.calls.append(f"{output}[{options['slot']}]")
        if len(self.calls) == 1:
            raise ChannelFull("no room", capacity=1)
        return 1

    def send(self, command: object, **options: object) -> int:
        self.calls.append(type(command).__name__)
        return 2


def test_a_strategy_that_found_no_room_is_admitted_in_full_the_next_time(folder: Path):
    client = Client(Bus(folder), "s1")
    seats = Seats(folder, "main", ["*"])
    hot = FullOnce()
    seats.hot = hot  # type: ignore[assignment]
    path = str(folder / "orders/s1/out")
    with pytest.raises(ChannelFull):
        seats.admit(path)
    assert seats.admit(path).tag == seats.admit(path).tag == 0
    assert hot.calls == ["reports[0]", "reports[0]", "Sit", "Sit"]
    seats.close()
    client.leave()
