"""The same class compiled and uncompiled does the same, byte for byte: on real data and on made-up.

State, outputs, counters, logs, statuses, and failures with their lines are compared.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest
from chronicle.feeds import import_capture, message_classes
from chronicle.hot import Handler, Info
from chronicle.message import MessageBase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import hot_handlers
from tests.feeds_support import IEX_FILE, sample
from tests.hot_support import Step, assert_same

FULL = os.environ.get("CHRONICLE_FIRE") == "full"
# Of each class of messages; the capture holds 390,000 in all.
REAL_COUNT_MAX = 100_000 if FULL else 1_500
EXAMPLES = 200 if FULL else 10
# So far apart that hooks and commands fall between messages of every kind.
HOOK_EVERY = 61
COMMAND_EVERY = 97
EVENT_EVERY = 151


@cache
def real_messages() -> tuple[MessageBase, ...]:
    """The first messages of each class of a real capture, in their order."""
    classes = message_classes("iex")
    seen: Counter[type] = Counter()
    found: list[MessageBase] = []
    with import_capture(sample(IEX_FILE)) as capture:
        for batch in capture:
            for _, _, each in batch.messages(classes):
                assert isinstance(each, MessageBase)
                if seen[type(each)] < REAL_COUNT_MAX:
                    seen[type(each)] += 1
                    found.append(type(each).view(each.pack()))
    return tuple(found)


def steps_for(handler: type[Handler]) -> Iterator[Step]:
    """All that a handler may be given: messages, commands, events and hooks in between."""
    spec = handler.SPEC
    wanted = {e.message.type_id for e in spec.entries if e.kind == 0}
    commands = [e.message for e in spec.entries if e.kind == 1]
    events = [e.message for e in spec.entries if e.kind == 2]
    if "start" in spec.hooks:
        yield Step(None, hook="start", now_ns=1)
    now_ns = 0
    for number, each in enumerate(m for m in real_messages() if m.type_id in wanted):
        now_ns = max(now_ns, getattr(each, "time_ns", 0))
        info = Info(number + 1 + number // 500, now_ns, number % 3, each.type_id)
        yield Step(each, info, now_ns=now_ns + number % 1_000)
        if number % HOOK_EVERY == 0 and "idle" in spec.hooks:
            yield Step(None, hook="idle", now_ns=now_ns)
        if number % COMMAND_EVERY == 0:
            for cls in commands:
                fields = {f.name: number % 2 if f.type == "bool" else number for f in cls.FIELDS}
                yield Step(cls(**fields), Info(seq=number), "command", now_ns=now_ns)
        if number % EVENT_EVERY == 0:
            for cls in events:
                fields = {f.name: number % 5 + index for index, f in enumerate(cls.FIELDS)}
                yield Step(cls(**fields), Info(), "event", now_ns=now_ns)
    if "stop" in spec.hooks:
        yield Step(None, hook="stop", now_ns=now_ns)


@pytest.mark.needs_data
@pytest.mark.parametrize("handler", hot_handlers.HANDLERS, ids=lambda cls: cls.__name__)
def test_both_ways_agree_on_a_real_capture(handler: type[Handler]):
    found = assert_same(handler, steps_for(handler))
    assert found.failure is None
    assert any(found.state)
    assert 0 in found.statuses


SPECIAL_FLOATS = st.sampled_from(
    [0.0, -0.0, 1.0, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan")]
)


def field_values(type_name: str, size: int) -> st.SearchStrategy[object]:
    """Values of one field, the ends of its range among them."""
    if type_name == "chars":
        symbols = st.sampled_from([b"ZXIET", b"ZIEXT", b"MSFT", b"A", b""]).map(lambda s: s[:size])
        return symbols | st.binary(max_size=size)
    if type_name == "bool":
        return st.booleans()
    if type_name in ("f32", "f64"):
        return SPECIAL_FLOATS | st.floats(width=32 if type_name == "f32" else 64)
    bits = int(type_name[1:])
    low = -(1 << bits - 1) if type_name[0] == "i" else 0
    high = (1 << bits - (type_name[0] == "i")) - 1
    small = st.integers(max(low, -3), 3)
    middle = st.integers(max(low, -(1 << 36)), min(high, 1 << 36))
    return small | middle | st.sampled_from([low, high]) | st.integers(low, high)


def messages_of(cls: type[MessageBase]) -> st.SearchStrategy[MessageBase]:
    return st.builds(cls, **{f.name: field_values(f.type, f.size_bytes) for f in cls.FIELDS})


def step_strategy(handler: type[Handler]) -> st.SearchStrategy[Step]:
    spec = handler.SPEC
    kinds = {0: "data", 1: "command", 2: "event"}
    infos = st.builds(
        Info,
        st.integers(0, 1 << 40),
        st.integers(0, 1 << 62),
        st.integers(0, 9) | st.just(0xFFFF_FFFF),
        st.integers(0, 0xFFFF),
    )
    clock = st.integers(0, 1 << 40)
    choices: list[st.SearchStrategy[Step]] = [
        st.builds(Step, messages_of(e.message), infos, st.just(kinds[e.kind]), now_ns=clock)
        for e in spec.entries
    ]
    choices += [
        st.builds(Step, st.none(), infos, st.just("data"), st.just(hook), clock)
        for hook in spec.hooks
    ]
    return st.one_of(choices)


@pytest.mark.parametrize("handler", hot_handlers.HANDLERS, ids=lambda cls: cls.__name__)
def test_both_ways_agree_on_made_up_messages(handler: type[Handler]):
    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(st.lists(step_strategy(handler), max_size=60))
    def agree(steps: list[Step]) -> None:
        assert_same(handler, steps)

    agree()
