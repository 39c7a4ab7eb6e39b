"""Does looking disturb? A guarded hot thread under load, with and without somebody who looks.

    make watched                   some two minutes
    make watched SECONDS=5         less

The load is that of the soak: two writers in processes of their own, commands, a compiled handler
that is guarded in ``enforce``, pinned to the last core, and there before everything else
(SCHED_FIFO): without an isolated core, whatever else runs on the machine would be measured.

Phases take turns: in one nobody looks, in the next ``chronicle top`` runs on a terminal of its own,
looking every half second, and the metrics are scraped every half second. Both are started in each
of these phases, so that what it takes to attach is part of it.

Printed are the loop gaps of both kinds of phases, their ratio, and what guard, kernel tracing and
the kernel's counts have seen of the hot thread. The ratio of p99.9 is the median over pairs of
phases that follow each other, so that what else the machine does for a while counts in one of them
only. A system call, or a ratio above ``--ratio-max``, is an error.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import multiprocessing as mp
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

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
    SOURCES_MAX,
    STREAMS,
    Checker,
    Counting,
    Echo,
    Report,
    SetFactor,
    feed,
    publisher,
    wait_until,
)
from tests.kernel_trace import KernelTrace, missing  # noqa: E402

LOOK_EVERY_S = 0.5
#: Nobody looks, somebody does, somebody does, nobody looks: what drifts, drifts in both.
ORDER = (False, True, True, False)


@dataclass
class Phases:
    """What one kind of phases has seen."""

    gaps: Counter[int] = field(default_factory=Counter)
    p999_ns: list[int] = field(default_factory=list)
    worst_ns: int = 0
    system_calls: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    switches: int = 0
    messages: int = 0
    screen_bytes: int = 0
    scrapes: int = 0

    @property
    def times(self) -> Histogram:
        """All loop gaps."""
        return Histogram(sorted(self.gaps.items()), self.worst_ns)


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

    def close(self) -> None:
        """Quit as a user does."""
        assert self._process.poll() is None, "the dashboard has ended by itself"
        os.write(self._ours, b"q")
        self._process.wait(PATIENCE_S)
        self._thread.join(PATIENCE_S)
        os.close(self._ours)


class Scraper:
    """Asks for the metrics again and again."""

    def __init__(self, port: int) -> None:
        self.count = 0
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(LOOK_EVERY_S):
            with urllib.request.urlopen(self._url, timeout=PATIENCE_S) as answer:
                assert b"chronicle_hot_loop_gap" in answer.read()
            self.count += 1

    def close(self) -> None:
        """Ask no more."""
        self._end.set()
        self._thread.join(PATIENCE_S)


def phase(
    hot: chronicle.HotThread, bus: Path, port: int, seconds: float, into: Phases, *, watched: bool
) -> None:
    """Run the load for so long, and note what the hot thread did."""
    before, gap_before = hot.status, hot.loop_gap
    assert before.kernel is not None
    with KernelTrace(before.thread_id) as trace:
        screen = Screen(bus) if watched else None
        scraper = Scraper(port) if watched else None
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sent = [
                hot.send(SetFactor(factor=2), timeout=PATIENCE_S) for _ in range(COMMANDS_AT_ONCE)
            ]
            hot.wait_for(sent[-1], PATIENCE_S)
            time.sleep(0.05)
        if screen is not None and scraper is not None:
            # On a machine that is busy it may just have begun.
            wait_until(lambda: screen.drawn_bytes and scraper.count, "nobody has looked")
            scraper.close()
            screen.close()
            into.screen_bytes += screen.drawn_bytes
            into.scrapes += scraper.count
    after = hot.status
    assert after.kernel is not None
    gaps = hot.loop_gap.since(gap_before)
    into.gaps.update(dict(gaps.buckets))
    into.p999_ns.append(gaps.quantile(0.999))
    into.worst_ns = max(into.worst_ns, gaps.max_ns)
    into.system_calls.update(trace.system_calls)
    kernel = after.kernel.since(before.kernel)
    into.faults += kernel.faults_minor + kernel.faults_major
    into.switches += kernel.switches_involuntary
    into.messages += after.messages - before.messages


@contextlib.contextmanager
def loaded(bus: Path, report: Report, fifo: int) -> Iterator[tuple[chronicle.HotThread, int]]:
    """Start a hot thread with its load and with metrics; yield the thread and the port."""
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
            context.Process(target=feed, args=(str(bus / "streams" / str(i)), i, stop, sent))
            for i in range(1, STREAMS + 1)
        ]
        for process in feeders:
            process.start()
        sidecar.discover(bus / "streams" / "*", hot, name="soak")
        wait_until(lambda: hot.status.sources == STREAMS, "the sources were not found")
        yield hot, metrics.port
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
        f"{title} {times.quantile(q):,}"
        for title, q in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999))
    )
    print(f"{name:10} loop gap (ns): {quantiles}  max {times.max_ns:,}  of {times.count:,} turns")
    print(
        f"{'':10} {phases.messages:,} messages, page faults {phases.faults}, involuntary "
        f"switches {phases.switches}, screen {phases.screen_bytes:,} bytes, "
        f"scrapes {phases.scrapes}"
    )


def main() -> int:
    """Measure, and say what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase")
    parser.add_argument("--rounds", type=int, default=3, help="of four phases")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before")
    parser.add_argument("--ratio-max", type=float, default=1.1, help="of p99.9 of the loop gaps")
    parser.add_argument(
        "--fifo",
        type=int,
        default=50,
        help="real-time priority of the hot thread, so that other programs of this machine do not "
        "count; 0: none",
    )
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where to put queues")
    options = parser.parse_args()
    if (reason := missing()) is not None:
        print(f"the kernel's tracing cannot be used: {reason}", file=sys.stderr)
        return 1
    report = Report()
    alone, watched = Phases(), Phases()
    with tempfile.TemporaryDirectory(prefix="chronicle-watched-", dir=options.folder) as folder:
        bus = Path(folder)
        with loaded(bus, report, options.fifo) as (hot, port):
            phase(hot, bus, port, options.warm_up, Phases(), watched=True)
            for _ in range(options.rounds):
                for is_watched in ORDER:
                    into = watched if is_watched else alone
                    phase(hot, bus, port, options.seconds, into, watched=is_watched)
    show("alone", alone)
    show("watched", watched)
    pooled = watched.times.quantile(0.999) / max(1, alone.times.quantile(0.999))
    ratio = median_ratio(watched.p999_ns, alone.p999_ns)
    print(f"p99.9 alone (ns):   {alone.p999_ns}")
    print(f"p99.9 watched (ns): {watched.p999_ns}")
    print(f"ratio of p99.9, all phases together: {pooled:.3f}")
    print(f"ratio of p99.9, median of pairs: {ratio:.3f} (at most {options.ratio_max})")
    calls = dict(alone.system_calls), dict(watched.system_calls)
    report.expect("kernel: system calls, alone and watched", calls, ({}, {}))
    report.expect("page faults while watched", watched.faults, 0)
    if ratio > options.ratio_max:
        report.wrong.append(f"looking disturbs: ratio={ratio:.3f} max={options.ratio_max}")
    return report.say(width=40)


if __name__ == "__main__":
    sys.exit(main())
