"""How long a hand-off takes: from a queue that is ready on disk to its first message handled.

A writer opens one queue after the other and appends one message; a sidecar discovers each, opens
it, and hands it to a hot thread that runs a compiled handler. Segments have the default size, so
mapping and prefaulting are in it.
"""

from __future__ import annotations

import shutil
import threading

import chronicle
from chronicle.hot import Counter
from chronicle.hot.acks import FirstMessage
from chronicle.message import MessageBase, i64

from benches.common import Run, median

PATIENCE_S = 60.0


@chronicle.message(1)
class Tick(MessageBase):
    number: i64


class Count(chronicle.Handler):
    """Counts messages, and adds them up."""

    total: i64
    seen: Counter

    @chronicle.on(Tick)
    def tick(self, tick: Tick) -> None:
        self.total += tick.number
        self.seen.add(1)


def measure(run: Run) -> dict[str, float]:
    """Hand one queue after the other over."""
    count = run.size(100, 3)
    handled_ns: list[int] = []
    told = threading.Event()

    def on_event(event: object) -> None:
        if isinstance(event, FirstMessage):
            handled_ns.append(event.first_message_ns)
            told.set()

    took_ms = []
    with run.scratch("handoff") as folder:
        folder.mkdir()
        with chronicle.Sidecar() as sidecar:
            hot = chronicle.HotThread(Count(), name="handoff", wait="hybrid", sources_max=count)
            sidecar.attach(hot, on_event=on_event)
            sidecar.discover(folder / "*", hot, name="hot", interval_s=PATIENCE_S)
            for number in range(count):
                told.clear()
                with chronicle.Queue.open_publisher(folder / str(number)) as writer:
                    ready_ns = chronicle.clock_ns()
                    writer.publish(Tick(number=number))
                    assert told.wait(PATIENCE_S), "the message was not handled"
                    took_ms.append((handled_ns[-1] - ready_ns) / 1e6)
                # 64 MiB each: all of them at a time may fill a tmpfs.
                shutil.rmtree(folder / str(number))
            assert hot.counters["seen"] == count
        assert hot.state["total"] == sum(range(count))
    return {"handoff_p50_median_ms": median(took_ms), "handoff_max_ms": max(took_ms)}
