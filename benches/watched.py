"""Does looking disturb? A guarded hot thread under load, with and without somebody who looks.

    make watched                   some four minutes
    make watched SECONDS=1         half of that

The load is that of the soak: two writers in processes of their own, commands, a compiled handler
that is guarded in ``enforce`` and pinned to the last core. The hot thread and the writers come
before everything else on their cores (SCHED_FIFO): without isolated cores, whatever else runs on
the machine would be measured.

Three kinds of phases take turns. *Alone*: nobody looks. *Watched*: ``chronicle top`` runs on a
terminal of its own, looking every half second, and the metrics are scraped every half second.
*Elsewhere*: the same two programs do the same, but look at another bus, an idle one: what they cost
by using the other cores, and not by looking. Whoever does not look is paused, so that phases can be
short and many; attaching is a phase of its own, before the others.

Printed are the loop gaps of each kind, the ratios, and what guard, kernel tracing and the kernel's
counts have seen of the hot thread. A ratio of p99.9 is the median over pairs of phases of one
round, so that what else the machine does for a while counts in one of them only; that of *alone* to
*alone* tells what such a median is worth here. The quantile is interpolated between two values of
the clock, since one step of it can be a seventh of the whole.

A system call, a page fault, or a ratio of *watched* to *alone* above ``--ratio-max`` is an error.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import multiprocessing as mp
import os
import pty
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import chronicle  # noqa: E402
from chronicle.hot import CountersFile  # noqa: E402
from chronicle.hot.meter import Histogram  # noqa: E402

from benches.common import median_ratio  # noqa: E402
from benches.soak import (  # noqa: E402
    COMMANDS_AT_ONCE,
    PATIENCE_S,
    RATE_PER_S,
    SOURCES_MAX,
    STREAMS,
    Checker,
    Counting,
    Echo,
    Report,
    SetFactor,
    Tick,
    feed,
    publisher,
    wait_until,
)
from tests.kernel_trace import KernelTrace, missing  # noqa: E402

LOOK_EVERY_S = 0.5
#: What drifts, drifts in all kinds of phases; this, then the same backwards.
KINDS = ("alone", "elsewhere", "watched")


@dataclass
class Phases:
    """What one kind of phases has seen."""

    gaps: Counter[int] = field(default_factory=Counter)
    p999_ns: list[float] = field(default_factory=list)
    handler_p99_ns: list[float] = field(default_factory=list)
    worst_ns: int = 0
    faults: int = 0
    switches: int = 0
    messages: int = 0
    screen_bytes: int = 0
    scrapes: int = 0

    @property
    def times(self) -> Histogram:
        """All loop gaps."""
        return Histogram(sorted(self.gaps.items()), self.worst_ns)


def interpolated_quantile(times: Histogram, q: float) -> float:
    """Return a quantile as if the values of a bucket lay evenly between it and the one before.

    `Histogram.quantile` gives the bucket's upper end, which is what a user wants to know; but the
    clock that is read here has steps of 10 ns or so, and a ratio of two upper ends hides what is
    less than a step, or makes a whole step of it.

    Examples
    --------
    >>> interpolated_quantile(Histogram([(10, 50), (20, 50)], 20), 0.75)
    15.0
    """
    wanted, seen, low = q * times.count, 0, 0
    for high, count in times.buckets:
        if seen + count >= wanted:
            return low + (high - low) * (wanted - seen) / count
        seen, low = seen + count, high
    return float(low)


class Screen:
    """``chronicle top`` on a terminal of its own, and somebody who takes what it draws."""

    def __init__(self, bus: Path) -> None:
        self.drawn_bytes = 0
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        command = [sys.executable, "-m", "chronicle.cli", "top", str(bus)]
        self._process = subprocess.Popen(
            [*command, f"--interval={LOOK_EVERY_S}"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(theirs)
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        # A terminal whose other side is closed is an error to read.
        with contextlib.suppress(OSError):
            while data := os.read(self._ours, 1 << 16):
                self.drawn_bytes += len(data)

    def pause(self) -> None:
        """Have it stand still, or look again."""
        os.write(self._ours, b"p")

    def close(self) -> float:
        """Quit as a user does; tell how much CPU it has used, in seconds."""
        assert self._process.poll() is None, "the dashboard has ended by itself"
        os.write(self._ours, b"q")
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._thread.join(PATIENCE_S)
        os.close(self._ours)
        return used.ru_utime + used.ru_stime


class Scraper:
    """Asks for the metrics again and again."""

    def __init__(self, port: int) -> None:
        self.count = 0
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._wanted, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.go_on()

    def _run(self) -> None:
        while not self._end.wait(LOOK_EVERY_S):
            self._wanted.wait()
            with urllib.request.urlopen(self._url, timeout=PATIENCE_S) as answer:
                assert b"chronicle_hot_loop_gap" in answer.read()
            self.count += 1

    def stop(self) -> None:
        """Ask no more for now."""
        self._wanted.clear()

    def go_on(self) -> None:
        """Ask again."""
        self._wanted.set()

    def close(self) -> None:
        """Ask no more."""
        self._end.set()
        self.go_on()
        self._thread.join(PATIENCE_S)


@dataclass(frozen=True)
class Bus:
    """What can be looked at."""

    path: Path
    port: int


class Lookers:
    """A dashboard and somebody who scrapes; they stand still but in ``with lookers``."""

    def __init__(self, bus: Bus) -> None:
        self._screen, self._scraper = Screen(bus.path), Scraper(bus.port)
        wait_until(lambda: all(self.seen), "nobody has looked")
        self._stop()

    @property
    def seen(self) -> tuple[int, int]:
        """Bytes drawn and scrapes made, so far."""
        return self._screen.drawn_bytes, self._scraper.count

    def __enter__(self) -> None:
        self._screen.pause()
        self._scraper.go_on()

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        self._screen.pause()
        self._scraper.stop()

    def close(self) -> None:
        """End both; print what they took."""
        self._scraper.close()
        drawn, scrapes = self.seen
        print(
            f"a dashboard drew {drawn:,} bytes in {self._screen.close():.1f} s of CPU; "
            f"scrapes: {scrapes}"
        )


@contextlib.contextmanager
def noted(hot: chronicle.HotThread, into: Phases) -> Iterator[None]:
    """Note what the hot thread does in the meantime."""
    before, gap_before, time_before = hot.status, hot.loop_gap, hot.handler_time
    assert before.kernel is not None
    yield
    after = hot.status
    assert after.kernel is not None
    gaps = hot.loop_gap.since(gap_before)
    into.gaps.update(dict(gaps.buckets))
    into.p999_ns.append(interpolated_quantile(gaps, 0.999))
    times = hot.handler_time.since(time_before)
    into.handler_p99_ns.append(interpolated_quantile(times, 0.99))
    into.worst_ns = max(into.worst_ns, gaps.max_ns)
    kernel = after.kernel.since(before.kernel)
    into.faults += kernel.faults_minor + kernel.faults_major
    into.switches += kernel.switches_involuntary
    into.messages += after.messages - before.messages


def phase(hot: chronicle.HotThread, lookers: Lookers | None, seconds: float, into: Phases) -> None:
    """Run the load for so long, and note what the hot thread did."""
    with lookers or contextlib.nullcontext(), noted(hot, into):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sent = [
                hot.send(SetFactor(factor=2), timeout=PATIENCE_S) for _ in range(COMMANDS_AT_ONCE)
            ]
            hot.wait_for(sent[-1], PATIENCE_S)
            time.sleep(0.05)


def idle_bus(path: str, stop: Event, port: Any) -> None:
    """Have a bus like the one under load, in which nothing happens."""
    bus = Path(path)
    counters = CountersFile.create(bus / "COUNTERS")
    with (
        chronicle.Sidecar() as sidecar,
        publisher(bus / "echoes", [Echo], sidecar.provisioner) as out,
        chronicle.HotThread(
            Checker(),
            outputs={"echoes": out},
            name="idle",
            wait="sleep",
            sources_max=SOURCES_MAX,
            provisioner=sidecar.provisioner,
            counters_file=counters,
        ) as hot,
        contextlib.ExitStack() as streams,
    ):
        sidecar.attach(hot)
        sidecar.publish_counters(counters)
        for index in range(1, STREAMS + 1):
            name = bus / "streams" / str(index)
            streams.enter_context(publisher(name, [Tick], sidecar.provisioner))
        sidecar.discover(bus / "streams" / "*", hot, name="soak")
        wait_until(lambda: hot.status.sources == STREAMS, "the sources were not found")
        port.put(sidecar.metrics(port=0).port)
        parent = mp.parent_process()
        assert parent is not None
        while not stop.wait(1.0) and parent.is_alive():
            pass


@contextlib.contextmanager
def elsewhere(path: Path) -> Iterator[Bus]:
    """Have another process with an idle bus, to look at."""
    context = mp.get_context("spawn")
    stop, port = context.Event(), context.Queue()
    process = context.Process(target=idle_bus, args=(str(path), stop, port))
    process.start()
    yield Bus(path, port.get(timeout=PATIENCE_S))
    stop.set()
    process.join(PATIENCE_S)


@contextlib.contextmanager
def loaded(
    bus: Path, report: Report, *, fifo: int, rate: int
) -> Iterator[tuple[chronicle.HotThread, Bus]]:
    """Start a hot thread with its load and with metrics."""
    context = mp.get_context("spawn")
    stop, sent = context.Event(), context.Queue()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[:-1]) or set(cores))
    log = logging.getLogger("chronicle.hot.soak")
    log.addHandler(Counting())
    log.setLevel(logging.INFO)
    log.propagate = False
    counters = CountersFile.create(bus / "COUNTERS")
    with (
        chronicle.Sidecar() as sidecar,
        publisher(bus / "echoes", [Echo], sidecar.provisioner) as out,
    ):
        hot = chronicle.HotThread(
            Checker(),
            outputs={"echoes": out},
            name="soak",
            core=cores[-1],
            guard="enforce",
            fifo_priority=fifo or None,
            sources_max=SOURCES_MAX,
            provisioner=sidecar.provisioner,
            counters_file=counters,
        )
        sidecar.attach(hot)
        sidecar.publish_counters(counters)
        metrics = sidecar.metrics(port=0)
        feeders = [
            context.Process(target=feed, args=(str(bus / "streams" / str(i)), i, stop, sent, rate))
            for i in range(1, STREAMS + 1)
        ]
        for process in feeders:
            process.start()
            if fifo:
                assert process.pid is not None
                os.sched_setscheduler(process.pid, os.SCHED_FIFO, os.sched_param(fifo))
        sidecar.discover(bus / "streams" / "*", hot, name="soak")
        wait_until(lambda: hot.status.sources == STREAMS, "the sources were not found")
        yield hot, Bus(bus, metrics.port)
        stop.set()
        expected = sum(sent.get(timeout=PATIENCE_S)[1] for _ in feeders)
        for process in feeders:
            process.join(PATIENCE_S)
        wait_until(lambda: hot.counters["seen"] >= expected, "the rest was not handled")
        hot.stop()
        report.expect("messages handled", hot.counters["seen"], expected)
        report.expect("out of order", hot.counters["wrong"], 0)
        report.expect("guard: system calls", hot.status.guard_seen, 0)
        report.expect("failure", hot.failure, None)
        report.facts["refused by the kernel"] = hot.status.warnings


def show(name: str, phases: Phases) -> None:
    """Print what one kind of phases has seen."""
    times = phases.times
    quantiles = "  ".join(
        f"{title} {interpolated_quantile(times, q):,.1f}"
        for title, q in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999))
    )
    ordered = sorted(phases.p999_ns)
    print(f"{name:10} loop gap (ns): {quantiles}  max {times.max_ns:,}  of {times.count:,} turns")
    print(
        f"{'':10} p99.9 of {len(ordered)} phases (ns): median {statistics.median(ordered):.1f}, "
        f"{ordered[0]:.1f} to {ordered[-1]:.1f}; "
        f"handler p99: median {statistics.median(phases.handler_p99_ns):.0f}"
    )
    print(
        f"{'':10} {phases.messages:,} messages, in {phases.messages / times.count:.2%} of the "
        f"turns; page faults {phases.faults}, involuntary switches {phases.switches}"
    )


def judge(phases: Mapping[str, Phases], ratio_max: float, report: Report) -> None:
    """Print the ratios of p99.9; a hot thread that is slower while it is watched is an error."""
    alone, control, watched = (phases[kind].p999_ns for kind in KINDS)
    ratio = median_ratio(watched, alone)
    print("ratio of p99.9, median of pairs:")
    print(f"  {'watched / alone':20} {ratio:.3f} (at most {ratio_max})")
    print(f"  {'watched / elsewhere':20} {median_ratio(watched, control):.3f}")
    print(f"  {'elsewhere / alone':20} {median_ratio(control, alone):.3f}")
    print(f"  {'alone / alone':20} {median_ratio(alone[1::2], alone[::2]):.3f}")
    if ratio > ratio_max:
        report.wrong.append(f"looking disturbs: ratio={ratio:.3f} max={ratio_max}")


def main() -> int:
    """Measure, and say what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each phase")
    parser.add_argument("--rounds", type=int, default=20, help="of six phases")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds of a phase before")
    parser.add_argument("--ratio-max", type=float, default=1.1, help="of p99.9 of the loop gaps")
    parser.add_argument("--rate", type=int, default=RATE_PER_S, help="messages/s of each writer")
    parser.add_argument(
        "--fifo",
        type=int,
        default=50,
        help="real-time priority of the hot thread and of the writers, so that other programs of "
        "this machine do not count; 0: none",
    )
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where to put queues")
    options = parser.parse_args()
    if (reason := missing()) is not None:
        print(f"the kernel's tracing cannot be used: {reason}", file=sys.stderr)
        return 1
    report = Report()
    phases = {kind: Phases() for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="chronicle-watched-", dir=options.folder) as folder:
        (bus := Path(folder) / "bus").mkdir()
        (idle := Path(folder) / "idle").mkdir()
        with (
            elsewhere(idle) as other,
            loaded(bus, report, fifo=options.fifo, rate=options.rate) as (hot, this),
        ):
            # The allocator is not watched, as in the soak: each of its calls in every process would
            # cost a trap.
            with KernelTrace(hot.status.thread_id, heap=False) as trace:
                with noted(hot, attaching := Phases()):
                    lookers = [Lookers(other), Lookers(this)]
                looks = dict(zip(KINDS, (None, *lookers), strict=True))
                phase(hot, lookers[1], options.warm_up, attaching)
                for _ in range(options.rounds):
                    for kind in (*KINDS, *reversed(KINDS)):
                        phase(hot, looks[kind], options.seconds, phases[kind])
            for one in lookers:
                one.close()
    for kind in KINDS:
        show(kind, phases[kind])
    judge(phases, options.ratio_max, report)
    report.expect("kernel: system calls, attaching and all phases", dict(trace.system_calls), {})
    for kind, seen in {"attaching": attaching, **phases}.items():
        report.expect(f"page faults, {kind}", seen.faults, 0)
    return report.say(width=48)


if __name__ == "__main__":
    sys.exit(main())
