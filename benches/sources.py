"""What idle sources cost: a message of the router's only busy strategy, beside 1 and beside 200."""

from __future__ import annotations

from strategies import cost_ns

from benches.common import Run

FEW = 1
MANY = 200


def measure(run: Run) -> dict[str, float]:
    """Have the router of `examples/` pass on a backlog; medians over turns, the best of rounds."""
    messages, rounds = run.size(200_000, 640), run.size(7, 1)
    many = MANY if not run.quick else 3
    few_ns = cost_ns(FEW, messages=messages, rounds=rounds)
    many_ns = cost_ns(many, messages=messages, rounds=rounds)
    return {
        "sources_few_message_ns": few_ns,
        "sources_many_message_ns": many_ns,
        "sources_many_over_few_ratio": many_ns / few_ns,
    }
