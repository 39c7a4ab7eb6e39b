"""What a compiled handler costs on its thread, and two hops through it.

The floors are native: the bare loop of the subject ``hot``, and one hop between the same cores,
taken in turns with two hops (crates/chronicle-core/benches/figures/{hot,echo}.rs).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import chronicle
import numpy as np
from chronicle.hot import Counter, Handler, Output
from chronicle.hot.acks import ReaderAdded
from chronicle.hot.guard import GuardMode
from chronicle.message import MessageBase, i64

from benches import native
from benches.common import Run, median, median_ratio

PATIENCE_S = 120
# Of those that this process started with: it keeps off the hot thread's later.
HOT_CORE = max(os.sched_getaffinity(0))


@chronicle.message(1)
class Ping(MessageBase):
    """64 bytes, as all figures have."""

    due: i64
    a: i64 = 0
    b: i64 = 0
    c: i64 = 0
    d: i64 = 0
    e: i64 = 0
    f: i64 = 0
    g: i64 = 0


@chronicle.message(2)
class Pong(MessageBase):
    """What comes back."""

    due: i64
    a: i64 = 0
    b: i64 = 0
    c: i64 = 0
    d: i64 = 0
    e: i64 = 0
    f: i64 = 0
    g: i64 = 0


class Echo(Handler):
    """Two hops: publishes what it takes."""

    pongs: Output

    @chronicle.on(Ping)
    def ping(self, ping: Ping) -> None:
        """Publish an answer."""
        self.pongs.publish(Pong(due=ping.due))


class Sums(Handler):
    """The floor of a handler: one load, one add, one store."""

    total: i64
    done: Counter

    @chronicle.on(Ping)
    def ping(self, ping: Ping) -> None:
        """Add."""
        self.total += ping.due


class Counts(Sums):
    """With a counter besides."""

    @chronicle.on(Ping)
    def ping(self, ping: Ping) -> None:
        """Add and count."""
        self.total += ping.due
        self.done.add(1)


class Logs(Sums):
    """With a log call of three numbers besides."""

    @chronicle.on(Ping)
    def ping(self, ping: Ping) -> None:
        """Add and log."""
        self.total += ping.due
        self.log.info("{} {} {}", ping.due, ping.a, self.total)


@contextlib.contextmanager
def off_the_core(core: int) -> Iterator[None]:
    """Leave a core to the hot thread: this thread, and what it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before - {core} or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure_compiled(run: Run) -> dict[str, float]:
    """Measure what a message costs a compiled handler, and a counter and a log call more."""
    # Under a million: each may be a log record, and the ring must have room for all.
    count = run.size(1 << 20, 1 << 12)
    with run.scratch("hot-compiled") as path, off_the_core(HOT_CORE):
        pings = np.zeros(count, dtype=Ping.dtype)
        pings["due"] = np.arange(count)
        segment_bytes = max(1 << 16, 1 << (count * 128).bit_length())
        with chronicle.Queue.open_publisher(
            path, schema=[Ping], segment_bytes=segment_bytes
        ) as writer:
            writer.append_many(pings)
        handlers = {"sums": Sums, "counts": Counts, "logs": Logs, "unguarded": Sums}
        found: dict[str, list[float]] = {name: [] for name in handlers}
        for _ in range(run.size(9, 1)):
            for name, handler in handlers.items():
                guard: GuardMode = "off" if name == "unguarded" else "enforce"
                found[name].append(_message_ns(path, handler(), count, guard))
    sums = found["sums"]
    return {
        "compiled_message_count": count,
        "compiled_message_median_ns": median(sums),
        "compiled_message_unguarded_median_ns": median(found["unguarded"]),
        "compiled_guard_enforce_over_off_ratio": median_ratio(sums, found["unguarded"]),
        "compiled_counter_ns": _over(found["counts"], sums),
        "compiled_log_ns": _over(found["logs"], sums),
    }


def _over(found: list[float], floor: list[float]) -> float:
    """Return what something costs more; noise may make nothing less than that."""
    return max(0.0, median([a - b for a, b in zip(found, floor, strict=True)]))


def _message_ns(path: Path, handler: Sums, count: int, guard: GuardMode) -> float:
    with (
        chronicle.Provisioner() as provisioner,
        chronicle.Queue.open_subscriber(path, None, provisioner=provisioner) as reader,
        chronicle.HotThread(
            handler, core=HOT_CORE, guard=guard, log_records=2 * count, provisioner=provisioner
        ) as hot,
    ):
        # The provisioner maps the pages meanwhile; the bare loop's are mapped as well.
        time.sleep(0.1)
        ticket = hot.add_reader(reader)
        # Polling would drain the log: what that costs belongs to the sidecar's core.
        end = time.monotonic() + PATIENCE_S
        while (messages := hot.status.messages) < count:
            if time.monotonic() > end:
                raise TimeoutError(f"{messages} of {count} messages were handled")
        ended_ns = time.time_ns()
        added = hot.wait_for(ticket, PATIENCE_S)
        assert isinstance(added, ReaderAdded)
        assert hot.state["total"] == count * (count - 1) // 2
        assert hot.status.log_drops == 0
        return (ended_ns - added.taken_ns) / count


def measure_hops(run: Run) -> dict[str, float]:
    """Measure queue, compiled handler, queue, reader: both hops between cores, against one."""
    with (
        run.scratch("hot-there") as there,
        run.scratch("hot-back") as back,
        chronicle.Provisioner() as provisioner,
        off_the_core(HOT_CORE),
    ):
        chronicle.Queue.open_publisher(there, schema=[Ping], segment_bytes=1 << 23).close()
        output = chronicle.Queue.open_publisher(
            back, schema=[Pong], segment_bytes=1 << 23, provisioner=provisioner
        )
        reader = chronicle.Queue.open_subscriber(there, "echo", provisioner=provisioner)
        command = [str(native.program(optimized=not run.quick)), "echo", str(there), str(back)]
        command += ["--dir", str(run.folder), *(["--quick"] if run.quick else [])]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as other:
            assert other.stdout is not None
            try:
                _take_turns(other, reader, output, provisioner)
            except BaseException:
                other.kill()
                raise
            results: dict[str, float] = json.loads(other.stdout.read())
        reader.close()
        output.close()
    return results


def _take_turns(
    other: subprocess.Popen[str],
    reader: chronicle.QueueReader,
    output: chronicle.QueueWriter,
    provisioner: chronicle.Provisioner,
) -> None:
    """Run the hot thread whenever the other side measures two hops; it says so."""
    assert other.stdin is not None
    assert other.stderr is not None
    hot: chronicle.HotThread | None = None
    for line in other.stderr:
        match line.strip():
            case "two":
                hot = chronicle.HotThread(
                    Echo(),
                    readers=[reader],
                    outputs={"pongs": output},
                    core=HOT_CORE,
                    guard="enforce",
                    provisioner=provisioner,
                ).start()
            case "one":
                assert hot is not None
                hot.stop()
                assert hot.failure is None, hot.failure
            case text:
                raise RuntimeError(f"the other side says {text!r}")
        other.stdin.write("go\n")
        other.stdin.flush()
    if other.wait() != 0:
        raise RuntimeError(f"the other side ended with {other.returncode}")
