"""Orders survive: whoever is killed, wherever, every order is acknowledged once or refused once.

The oracle is `accounts`, which knows nothing of how it is done.
"""

from __future__ import annotations

import os

from accounts import account
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.orders_world import World

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
