"""Orders survive: whoever is killed, wherever, every order is acknowledged once or refused once.

The oracle is `accounts`, which knows nothing of how it is done.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from accounts import account
from hypothesis import given, settings
from hypothesis import strategies as st
from orders import BUY, Kind, Reason

from tests.orders_world import World


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The strategies say each time that they lose their feed."""
    logging.getLogger("chronicle.hot.Strategy").setLevel(logging.ERROR)
    yield
    logging.getLogger("chronicle.hot.Strategy").setLevel(logging.NOTSET)


FULL = os.environ.get("CHRONICLE_FIRE") == "full"


@settings(max_examples=400 if FULL else 25, deadline=None, database=None)
@given(seed=st.integers(0, 1 << 32), steps=st.integers(1, 400))
def test_every_order_is_accounted_for_whoever_is_killed_wherever(seed: int, steps: int):
    world = World(seed)
    for _ in range(steps):
        world.happen()
    world.end()
    accounts = account(world.log(), closed=True)
    assert accounts.faults == []
    for name in world.strategies:
        strategy: Any = world.lives[name].handler
        fills = [report for _, report in world.told[name].entries if report.kind == Kind.FILL]
        signed = [fill.quantity if fill.side == BUY else -fill.quantity for fill in fills]
        assert (strategy.position, strategy.open_orders) == (sum(signed), 0)


def test_the_world_has_all_that_can_happen():
    counts: Counter[str] = Counter()
    for seed in range(40):
        world = World(seed)
        for _ in range(400):
            world.happen()
        world.end()
        accounts = account(world.log(), closed=True)
        counts.update(accounts.reasons)
        counts.update(
            kills=world.kills,
            acked=accounts.acked,
            fills=accounts.fills,
            cancelled=accounts.cancelled,
            sent=sum(world.lives[name].handler.order_id for name in world.strategies),  # type: ignore[attr-defined]
        )
    expected = {reason.name for reason in Reason} - {"NONE", "BOOK_FULL", "RATE", "ORDER_ID"}
    assert set(counts) >= expected
    assert min(counts["kills"], counts["acked"], counts["fills"], counts["sent"]) > 100
