"""The soak: a guarded hot thread under load, with two witnesses that count what it must not do.

    make soak                      ten minutes
    make soak SECONDS=30           less

One process has the sidecar and the hot thread, which is pinned to the last core, compiled, guarded
in ``enforce``, journalled, and never parks. Others write its sources and verify its output.
Segments are small, so that every side rolls all the time; readers are handed in and retired again,
by commands and by discovery in turns; commands and log records flow; now and then what is retired
is unmapped.

After a warm-up two witnesses watch: the product (guard, allocation count, the thread's page faults
in /proc) and the kernel's own tracing (`tests/kernel_trace.py`: system calls, page faults, and
uprobes on the C library's allocator). Both must have counted nothing at the end, and not one
message may be lost, repeated or out of order. A control shows that the kernel's tracing sees such
things here. Anything else is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import mmap
import multiprocessing as mp
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import chronicle  # noqa: E402
from chronicle.hot import Cells, Counter, Handler, Info, Output, SourceAdded  # noqa: E402
from chronicle.hot.acks import CommandDone, ReaderAdded  # noqa: E402
from chronicle.message import Array, MessageBase, i64  # noqa: E402

from tests.kernel_trace import KernelTrace, missing  # noqa: E402

SEGMENT_BYTES = 1 << 17
KEPT_BYTES = 64 << 20
RATE_PER_S = 20_000
STREAMS = 2
SOURCES_MAX = 256
EXTRA_MESSAGES = 10
WARM_UP_READERS = 6
# Handed in and out: two thousand in ten minutes.
READERS_PER_S = 3.5
# Of each side.
ROLLS_MIN = 10
# Streams from here on are those of readers that come and go.
EXTRA_FIRST = 1_000
COMMANDS_AT_ONCE = 20
RELEASE_EVERY_S = 5.0
PATIENCE_S = 60


@chronicle.message(1)
class Tick(MessageBase):
    """One message of a source; its value follows from the other two."""

    stream: i64
    number: i64
    value: i64


@chronicle.message(2)
class Echo(MessageBase):
    """What the handler makes of it."""

    stream: i64
    number: i64
    value: i64
    seq: i64


@chronicle.message(3)
class SetFactor(MessageBase):
    """A command: the same factor again, so that the output stays predictable."""

    factor: i64


def value_of(stream: int, number: int) -> int:
    """Return the value that belongs to a message."""
    return (stream * 1_000_003 + number * 7_919) & 0xFFFF_FFFF


class Checker(Handler):
    """Passes everything on, and counts what is out of order."""

    factor: i64 = 2
    last: Annotated[Cells[int], Array(i64, SOURCES_MAX)]
    echoes: Output
    seen: Counter
    extra: Counter
    wrong: Counter
    told: Counter
    logged: Counter

    @chronicle.on(SourceAdded)
    def added(self, event: SourceAdded) -> None:
        """Begin anew: the number of a source is used again."""
        self.last[event.source] = 0

    @chronicle.on(Tick)
    def tick(self, tick: Tick, info: Info) -> None:
        """Check one message and pass it on."""
        self.seen.add(1)
        if tick.stream >= EXTRA_FIRST:
            self.extra.add(1)
        if tick.number != self.last[info.source] + 1:
            self.wrong.add(1)
        self.last[info.source] = tick.number
        self.echoes.publish(
            Echo(
                stream=tick.stream,
                number=tick.number,
                value=tick.value * self.factor,
                seq=info.seq,
            )
        )
        if tick.number % 20 == 0:
            self.logged.add(1)
            self.log.info("stream {} at {} of source {}", tick.stream, tick.number, info.source)

    @chronicle.on.command(SetFactor)
    def set_factor(self, command: SetFactor) -> None:
        """Take a command."""
        self.factor = command.factor
        self.told.add(1)


@dataclass
class Report:
    """What was found."""

    wrong: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def expect(self, name: str, found: object, wanted: object) -> None:
        """Note a fact; a difference is an error."""
        self.facts[name] = found
        if found != wanted:
            self.wrong.append(f"{name}: found={found} expected={wanted}")

    def say(self, width: int) -> int:
        """Print everything, names as wide as this; return the program's exit status."""
        for name, fact in self.facts.items():
            print(f"{name:{width}} {fact}")
        for line in self.wrong:
            print(f"WRONG   {line}")
        print("clean" if not self.wrong else f"{len(self.wrong)} things are wrong")
        return 1 if self.wrong else 0


def feed(path: str, stream: int, stop: Event, sent: Any, per_s: int = RATE_PER_S) -> None:
    """Write one source at a fixed rate, until told to stop or left alone."""
    parent = mp.parent_process()
    assert parent is not None
    with (
        chronicle.Provisioner() as provisioner,
        chronicle.Queue.open_publisher(
            path,
            schema=[Tick],
            segment_bytes=SEGMENT_BYTES,
            provisioner=provisioner,
            retention_bytes=KEPT_BYTES,
        ) as writer,
    ):
        number, batch = 0, max(1, per_s // 1000)
        due = time.monotonic()
        while not stop.is_set() and parent.is_alive():
            for _ in range(batch):
                number += 1
                writer.publish(Tick(stream=stream, number=number, value=value_of(stream, number)))
            due += batch / per_s
            time.sleep(max(0.0, due - time.monotonic()))
        sent.put((stream, number, writer.position // SEGMENT_BYTES))


def verify(path: str, finished: Event, ready: Event, found: Any) -> None:
    """Read the output to its end; tell how far each stream came, and what was wrong."""
    last: dict[int, int] = {}
    wrong: list[str] = []
    with (
        chronicle.Provisioner() as provisioner,
        chronicle.Queue.open_subscriber(
            path, "verify", provisioner=provisioner, wait="sleep"
        ) as reader,
    ):
        ready.set()
        while True:
            is_last_look = finished.is_set()
            try:
                batch = reader.read_batch(Echo)
            except chronicle.Gap as gap:
                wrong.append(str(gap))
                continue
            if len(batch) == 0:
                if is_last_look:
                    break
                reader.wait(0.2)
                continue
            for stream, number, value, _seq in batch.tolist():
                if number != last.get(stream, 0) + 1 or value != 2 * value_of(stream, number):
                    wrong.append(f"stream={stream} number={number} behind={last.get(stream, 0)}")
                last[stream] = number
            reader.commit()
    found.put((last, wrong[:10]))


class Counting(logging.Handler):
    """Counts the log records that come out of the ring; shows all others, such as the guard's."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Format as a file's handler would, and count."""
        text = record.getMessage()
        if text.startswith("stream "):
            self.count += 1
        else:
            print(text, file=sys.stderr)


class Load:
    """Keeps everything moving: readers that come and go, commands, unmapping."""

    def __init__(self, sidecar: chronicle.Sidecar, hot: chronicle.HotThread, bus: Path) -> None:
        self.done = 0
        self.released = 0
        self._sidecar, self._hot, self._bus = sidecar, hot, bus
        for name in ("making", "found", "direct"):
            (bus / name).mkdir()
        sidecar.discover(bus / "found" / "*", hot, name="soak")

    def run(self, seconds: float, hand_ins: int) -> None:
        """Go on for so long, and until so many readers have come and gone."""
        started = released = time.monotonic()
        done_before = self.done
        while True:
            now = time.monotonic()
            done = self.done - done_before
            if now - started >= seconds and done >= hand_ins:
                return
            self._send_commands()
            if done < hand_ins and done <= hand_ins * (now - started) / seconds:
                self._hand_in_and_out()
            else:
                time.sleep(0.005)
            if now - released >= RELEASE_EVERY_S:
                released = now
                self.released += self._sidecar.release_retired() + self._hot.release_retired()

    def _send_commands(self) -> None:
        sent = [
            self._hot.send(SetFactor(factor=2), timeout=PATIENCE_S) for _ in range(COMMANDS_AT_ONCE)
        ]
        answer = self._hot.wait_for(sent[-1], PATIENCE_S)
        assert isinstance(answer, CommandDone), answer

    def _hand_in_and_out(self) -> None:
        """Make a queue with a few messages, have them handled, take the reader out again."""
        index = self.done
        made = self._bus / "making" / str(index)
        stream = EXTRA_FIRST + index
        with chronicle.Queue.open_publisher(made, schema=[Tick], segment_bytes=1 << 16) as writer:
            for number in range(1, EXTRA_MESSAGES + 1):
                writer.publish(Tick(stream=stream, number=number, value=value_of(stream, number)))
        if index % 2 == 0:
            self._by_command(made)
        else:
            self._by_discovery(made)
        self.done += 1

    def _wait_until_handled(self) -> None:
        expected = (self.done + 1) * EXTRA_MESSAGES
        wait_until(
            lambda: self._hot.counters["extra"] >= expected,
            f"the messages of queue {self.done} were not handled",
        )

    def _by_command(self, made: Path) -> None:
        path = made.rename(self._bus / "direct" / made.name)
        provisioner = self._sidecar.provisioner
        reader = chronicle.Queue.open_subscriber(path, "soak", provisioner=provisioner)
        ticket = self._hot.add_reader(reader, timeout=PATIENCE_S)
        added = self._hot.wait_for(ticket, PATIENCE_S)
        assert isinstance(added, ReaderAdded), added
        self._wait_until_handled()
        self._hot.wait_for(self._hot.remove_reader(added.source, timeout=PATIENCE_S), PATIENCE_S)
        reader.close()
        shutil.rmtree(path)

    def _by_discovery(self, made: Path) -> None:
        before = self._hot.status.sources
        path = made.rename(self._bus / "found" / made.name)
        self._wait_until_handled()
        gone = path.rename(made)
        wait_until(
            lambda: self._hot.status.sources == before, f"the reader of '{path}' was not retired"
        )
        shutil.rmtree(gone)


def check_the_witness(report: Report) -> None:
    """See that the kernel's tracing finds what a thread does when it does something."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    with KernelTrace(threading.get_native_id()) as trace:
        os.getppid()
        libc.free(ctypes.c_void_p(libc.malloc(100)))
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            page[0] = 1
    report.expect(
        "control: the kernel's tracing sees",
        (
            trace.system_calls["getppid"],
            trace.heap_calls["malloc"] > 0,
            sum(trace.page_faults.values()) > 0,
        ),
        (1, True, True),
    )


def watched(
    hot: chronicle.HotThread, load: Load, options: argparse.Namespace, report: Report
) -> None:
    """Run the load under both witnesses."""
    before = hot.status
    assert before.kernel is not None
    reason = missing()
    if reason is None:
        with KernelTrace(before.thread_id) as trace:
            load.run(options.seconds, options.readers)
        report.expect("kernel: system calls", dict(trace.system_calls), {})
        faults = {hex(address): count for address, count in trace.page_faults.items()}
        report.expect("kernel: page faults", faults, {})
        report.expect("kernel: calls of the allocator", dict(trace.heap_calls), {})
        check_the_witness(report)
    else:
        report.wrong.append(f"the kernel's tracing cannot be used: {reason}")
        load.run(options.seconds, options.readers)
    after = hot.status
    assert after.kernel is not None
    report.expect("guard: system calls", after.guard_seen, 0)
    report.expect("allocations", after.allocations - before.allocations, 0)
    minor = after.kernel.faults_minor - before.kernel.faults_minor
    major = after.kernel.faults_major - before.kernel.faults_major
    report.expect("page faults", (minor, major), (0, 0))
    report.expect("gaps, parks", (after.gaps, after.parks), (0, 0))
    report.facts["rolls late, wakes inline"] = (after.rolls_late, after.wakes_inline)
    switches = after.kernel.switches_involuntary - before.kernel.switches_involuntary
    report.facts["involuntary context switches"] = switches


def publisher(
    path: Path, schema: list[type[MessageBase]], provisioner: chronicle.Provisioner
) -> chronicle.QueueWriter:
    """Open a queue with small segments, of which few are kept."""
    return chronicle.Queue.open_publisher(
        path,
        schema=schema,
        segment_bytes=SEGMENT_BYTES,
        provisioner=provisioner,
        retention_bytes=KEPT_BYTES,
    )


def run(options: argparse.Namespace, bus: Path, report: Report) -> None:
    """Soak: start everything, load it, watch it, stop it, compare."""
    context = mp.get_context("spawn")
    stop, finished, ready = context.Event(), context.Event(), context.Event()
    sent, found = context.Queue(), context.Queue()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[:-1]) or set(cores))
    log = Counting()
    logger = logging.getLogger("chronicle.hot.soak")
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    with chronicle.Sidecar() as sidecar:
        output = publisher(bus / "echoes", [Echo], sidecar.provisioner)
        journal = publisher(bus / "journal", [], sidecar.provisioner)
        hot = chronicle.HotThread(
            Checker(),
            outputs={"echoes": output},
            journal=journal,
            name="soak",
            core=cores[-1],
            guard="enforce",
            sources_max=SOURCES_MAX,
            provisioner=sidecar.provisioner,
        )
        sidecar.attach(hot)
        feeders = [
            context.Process(target=feed, args=(str(bus / "streams" / str(i)), i, stop, sent))
            for i in range(1, STREAMS + 1)
        ]
        reader = context.Process(target=verify, args=(str(bus / "echoes"), finished, ready, found))
        for process in (*feeders, reader):
            process.start()
        if not ready.wait(PATIENCE_S):
            raise TimeoutError("the verifying reader did not start")
        sidecar.discover(bus / "streams" / "*", hot, name="soak")
        load = Load(sidecar, hot, bus)
        load.run(options.warm_up, WARM_UP_READERS)
        watched(hot, load, options, report)
        stop.set()
        sources = [sent.get(timeout=PATIENCE_S) for _ in feeders]
        counts = {stream: count for stream, count, _ in sources}
        expected = sum(counts.values()) + load.done * EXTRA_MESSAGES
        wait_until(lambda: hot.counters["seen"] >= expected, "the rest was not handled")
        hot.stop()
        report.expect("failure", hot.failure, None)
        report.expect("readers in and out", load.done - WARM_UP_READERS, options.readers)
        report.expect("messages handled", hot.counters["seen"], expected)
        report.expect("out of order", hot.counters["wrong"], 0)
        report.expect(
            "log records, dropped", (log.count, hot.status.log_drops), (hot.counters["logged"], 0)
        )
        report.facts["commands"] = hot.counters["told"]
        report.facts["mappings released meanwhile"] = load.released
        for name, times in (("loop gap", hot.loop_gap), ("handler time", hot.handler_time)):
            quantiles = tuple(times.quantile(q) for q in (0.5, 0.999, 1.0))
            report.facts[f"{name} p50, p99.9, max (ns)"] = quantiles
        rolls = {f"source {stream}": n for stream, _, n in sources}
        rolls |= {"output": output.position // SEGMENT_BYTES}
        rolls |= {"journal": journal.position // SEGMENT_BYTES}
        report.facts["rolls"] = rolls
        if min(rolls.values()) < ROLLS_MIN:
            report.wrong.append(f"too few rolls to show anything: {rolls}")
        output.close()
        journal.close()
    finished.set()
    last, wrong = found.get(timeout=PATIENCE_S)
    report.expect("verified: wrong", wrong, [])
    report.expect("verified: messages", sum(last.values()), expected)
    wanted = dict.fromkeys(range(EXTRA_FIRST, EXTRA_FIRST + load.done), EXTRA_MESSAGES) | counts
    report.expect("verified: every stream to its end", last == wanted, True)
    for process in (*feeders, reader):
        process.join(PATIENCE_S)
        report.expect(f"exit code of {process.name}", process.exitcode, 0)


def wait_until(condition: Any, otherwise: str) -> None:
    """Wait, but not for ever."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(otherwise)
        time.sleep(0.001)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the witnesses watch")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before that")
    parser.add_argument(
        "--readers", type=int, help=f"to be handed in and out (default: {READERS_PER_S} a second)"
    )
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where to put queues")
    options = parser.parse_args()
    if options.readers is None:
        options.readers = max(1, round(options.seconds * READERS_PER_S))
    return options


def main() -> int:
    """Soak, and say what was found."""
    options = parse()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="chronicle-soak-", dir=options.folder) as folder:
        try:
            run(options, Path(folder), report)
        except TimeoutError as error:
            report.wrong.append(f"nothing came for {PATIENCE_S} s: {error}")
            # Before the queues that they work on go away.
            for process in mp.active_children():
                process.terminate()
                process.join()
    return report.say(width=36)


if __name__ == "__main__":
    sys.exit(main())
