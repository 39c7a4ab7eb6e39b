"""Whether the hot thread notices what its process does: loop gaps with and without a disturbance.

The hot thread runs a compiled handler on the last core (the first does most of a machine's
housekeeping) and takes messages that another process writes at a fixed rate. A sidecar looks after
it, and the disturbances run on the sidecar's loop, or stall it. Calm and disturbed phases take
turns, so that what the host does hits both; each phase has its own p99.9 of the loop gap, and a
figure is the median of disturbed over calm, pair by pair.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import multiprocessing as mp
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import chronicle
from chronicle.hot import on
from chronicle.hot.meter import Histogram
from chronicle.message import MessageBase, i64

from benches.common import Run, median, median_ratio
from benches.hot import HOT_CORE, Ping, Sums, off_the_core

RATE_PER_S = 20_000
HOLD_S = 0.2
PATIENCE_S = 60
# Pure Python, not needed by anything here, and of some size.
IMPORTS = ("email.message", "xml.etree.ElementTree", "html.parser", "difflib", "pydoc")


@chronicle.message(3)
class Nothing(MessageBase):
    """A command that changes nothing."""

    zero: i64 = 0


class Talkative(Sums):
    """Logs every message, and takes commands."""

    @on(Ping)
    def ping(self, ping: Ping) -> None:
        """Add and log."""
        self.total += ping.due
        self.log.info("{} {}", ping.due, self.total)

    @on.command(Nothing)
    def nothing(self, command: Nothing) -> None:
        """Take a command."""
        self.total += command.zero


@dataclass(frozen=True)
class Rig:
    """A hot thread and the sidecar that looks after it."""

    sidecar: chronicle.Sidecar
    hot: chronicle.HotThread


Disturbance = Callable[[Rig], AbstractContextManager[None]]


@contextlib.contextmanager
def _while_runs(rig: Rig, work: Coroutine[Any, Any, None], over: threading.Event) -> Iterator[None]:
    """Run something on the sidecar until the block is left, which `over` says."""
    done = rig.sidecar.run(work)
    try:
        yield
    finally:
        over.set()
        done.result(PATIENCE_S)


@contextlib.contextmanager
def _on_the_sidecar(rig: Rig, work: Callable[[], object]) -> Iterator[None]:
    """Do something again and again on the sidecar's own loop, which it blocks."""
    over = threading.Event()

    async def repeat() -> None:
        while not over.is_set():
            work()
            # The loop gets a turn, as between two tasks that block.
            await asyncio.sleep(0.001)

    with _while_runs(rig, repeat(), over):
        yield


@contextlib.contextmanager
def _stalled(rig: Rig) -> Iterator[None]:
    """Block the sidecar's loop in a system call: nothing is polled, drained or answered."""
    begun, over = threading.Event(), threading.Event()

    async def block() -> None:
        begun.set()
        over.wait(PATIENCE_S)

    with _while_runs(rig, block(), over):
        if not begun.wait(PATIENCE_S):
            raise TimeoutError("the sidecar's loop does not come to the task that blocks it")
        yield


@contextlib.contextmanager
def hold_the_lock(rig: Rig) -> Iterator[None]:
    """Hold the interpreter lock for 200 ms at a time, in pure Python."""

    def spin() -> None:
        end = time.perf_counter() + HOLD_S
        while time.perf_counter() < end:
            pass
        time.sleep(0.005)

    before = sys.getswitchinterval()
    # Nobody is asked to let go of the lock before the 200 ms are over.
    sys.setswitchinterval(2 * HOLD_S)
    try:
        with _on_the_sidecar(rig, spin):
            yield
    finally:
        sys.setswitchinterval(before)


@contextlib.contextmanager
def collect_garbage(rig: Rig) -> Iterator[None]:
    """Make and collect a large graph of cycles."""

    def collect() -> None:
        nodes: list[list[object]] = [[] for _ in range(200_000)]
        for node, other in zip(nodes, reversed(nodes), strict=True):
            node.append(other)
        del nodes
        gc.collect()

    with _on_the_sidecar(rig, collect):
        yield


@contextlib.contextmanager
def import_modules(rig: Rig) -> Iterator[None]:
    """Import modules, forget them, and import them again."""

    def again() -> None:
        for name in IMPORTS:
            sys.modules.pop(name, None)
            importlib.import_module(name)

    with _on_the_sidecar(rig, again):
        yield


@contextlib.contextmanager
def block_on_the_disk(rig: Rig) -> Iterator[None]:
    """Write to the disk and wait for it."""
    with tempfile.TemporaryFile(dir=Path.cwd()) as file:
        block = os.urandom(1 << 20)

        def write() -> None:
            os.pwrite(file.fileno(), block, 0)
            os.fsync(file.fileno())

        with _on_the_sidecar(rig, write):
            yield


@contextlib.contextmanager
def fill_the_log(rig: Rig) -> Iterator[None]:
    """Leave the log ring full."""
    with _stalled(rig):
        drops = rig.hot.status.log_drops
        end = time.monotonic() + PATIENCE_S
        while rig.hot.status.log_drops == drops:
            if time.monotonic() > end:
                raise TimeoutError("the log ring does not fill")
            time.sleep(0.001)
        yield


@contextlib.contextmanager
def fill_the_channel(rig: Rig) -> Iterator[None]:
    """Leave the ack ring and the command channel full."""
    with _stalled(rig):
        # `send` makes room by draining when there is none; here there must stay none.
        core = rig.hot._core
        payload = Nothing().pack()
        ticket = 1 << 40
        end = time.monotonic() + 0.05
        while time.monotonic() < end:
            if core.send(ticket, Nothing.type_id, payload):
                ticket += 1
                end = time.monotonic() + 0.05
        yield


@contextlib.contextmanager
def _busy(cores: set[int]) -> Iterator[None]:
    """Keep cores busy from another process."""
    spin = f"import os\nos.sched_setaffinity(0, {cores})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as neighbour:
        try:
            yield
        finally:
            neighbour.kill()


@contextlib.contextmanager
def share_the_core(rig: Rig) -> Iterator[None]:
    """Not a disturbance that a sidecar may make: somebody else on the hot thread's own core.

    The control: a measure that does not show this shows nothing.
    """
    assert rig.hot.core is not None
    with _busy({rig.hot.core}):
        yield


DISTURBANCES: dict[str, Disturbance] = {
    "lock": hold_the_lock,
    "garbage": collect_garbage,
    "imports": import_modules,
    "disk": block_on_the_disk,
    "full_log": fill_the_log,
    "full_channel": fill_the_channel,
}


def feed(path: str, ready: Event, stop: Event) -> None:
    """Write at a fixed rate, until told to stop."""
    with (
        chronicle.Provisioner() as provisioner,
        chronicle.Queue.open_publisher(
            path,
            schema=[Ping],
            segment_bytes=1 << 20,
            provisioner=provisioner,
            retention_bytes=64 << 20,
        ) as writer,
    ):
        ready.set()
        number, due = 0, time.monotonic()
        while not stop.is_set():
            for _ in range(RATE_PER_S // 1000):
                number += 1
                writer.publish(Ping(due=number))
            due += 0.001
            time.sleep(max(0.0, due - time.monotonic()))


class Phase(NamedTuple):
    """Loop gaps of one phase: p99.9 of the turns, and of the moments.

    Nearly all turns are short, however long a few are; so the second counts each gap by its length:
    a moment, as that at which a message arrives, falls into a longer gap with one in a thousand.
    """

    turn_p999_ns: float
    moment_p999_ns: float


def moment_quantile_ns(gaps: Histogram, q: float) -> int:
    """Return the gap that a share `q` of all moments do not exceed: each counts by its length."""
    left_ns = (1 - q) * sum(high * count for high, count in gaps.buckets)
    for high, count in reversed(gaps.buckets):
        left_ns -= high * count
        if left_ns < 0:
            return high
    return 0


def _phase(hot: chronicle.HotThread, seconds: float) -> Phase:
    before = hot.loop_gap
    end = time.monotonic() + PATIENCE_S
    time.sleep(seconds)
    # Somebody else may have had the core all the time.
    while (gaps := hot.loop_gap.since(before)).count == 0:
        if time.monotonic() > end:
            raise TimeoutError("the hot thread makes no turn")
        time.sleep(seconds)
    return Phase(float(gaps.quantile(0.999)), float(moment_quantile_ns(gaps, 0.999)))


def measure(run: Run) -> dict[str, float]:
    """Measure all disturbances, one after the other, and the control."""
    context = mp.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    results: dict[str, float] = {}
    logging.getLogger("chronicle.hot.independence").disabled = True
    with run.scratch("independence") as path, off_the_core(HOT_CORE):
        feeder = context.Process(target=feed, args=(str(path), ready, stop))
        feeder.start()
        try:
            if not ready.wait(PATIENCE_S):
                raise TimeoutError("the feeder did not start")
            # The sidecar's core is busy in calm phases as well: on a core that nobody has isolated,
            # the scheduler places what the machine does besides where there is room.
            with _busy(os.sched_getaffinity(0)), chronicle.Sidecar() as sidecar:
                reader = chronicle.Queue.open_subscriber(
                    path, "hot", provisioner=sidecar.provisioner
                )
                hot = chronicle.HotThread(
                    Talkative(),
                    name="independence",
                    readers=[reader],
                    core=HOT_CORE,
                    guard="enforce",
                    provisioner=sidecar.provisioner,
                )
                rig = Rig(sidecar, sidecar.attach(hot))
                for name, disturbance in {**DISTURBANCES, "control": share_the_core}.items():
                    results |= _compare(run, rig, name, disturbance)
                results["independence_gaps_count"] = hot.loop_gap.count
                hot.stop()
                assert hot.failure is None, hot.failure
                reader.close()
        finally:
            stop.set()
            feeder.join(PATIENCE_S)
    for kind in ("turn", "moment"):
        worst = max(DISTURBANCES, key=lambda name: results[_key(name, kind, "over_calm_ratio")])
        for what in ("calm_p999_median_ns", "p999_median_ns", "over_calm_ratio"):
            results[_key("worst", kind, what)] = results[_key(worst, kind, what)]
    return results


def _key(name: str, kind: str, what: str) -> str:
    return f"independence_{name}_{kind}_{what}"


def _compare(run: Run, rig: Rig, name: str, disturbance: Disturbance) -> dict[str, float]:
    seconds = run.size(300, 20) / 1000
    calm: list[Phase] = []
    disturbed: list[Phase] = []
    for index in range(run.size(14, 2)):
        # Each is first as often as the other, so that no drift favours one.
        for is_disturbed in (index % 2 == 0, index % 2 != 0):
            with disturbance(rig) if is_disturbed else contextlib.nullcontext():
                time.sleep(0.02)
                (disturbed if is_disturbed else calm).append(_phase(rig.hot, seconds))
    results = {}
    for kind, index in (("turn", 0), ("moment", 1)):
        found = [phase[index] for phase in disturbed]
        floor = [phase[index] for phase in calm]
        results[_key(name, kind, "calm_p999_median_ns")] = median(floor)
        results[_key(name, kind, "p999_median_ns")] = median(found)
        results[_key(name, kind, "over_calm_ratio")] = median_ratio(found, floor)
    return results
