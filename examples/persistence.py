r"""Two venues, two writers, three readers, one kill -9: what Chronicle does, in a few seconds.

    make demo-queues                       a generated market
    make demo-queues FILE=capture.pcap.gz  a capture, dealt out to the venues in turn

Each writer and each reader is a process of its own; what is between them are queues:

    market-a -> writer-a -> venue-a ---> tape-a
                                    \
                                      -> strategy   (a fan-in: both venues, merged by time)
                                    /
    market-b -> writer-b -> venue-b ---> tape-b

The market stands in queues too, so that a writer can be started again without any memory of its
own: message n of the market is message n of the venue. In the middle writer-a is killed with
SIGKILL and started again. At the end every reader tells what it got, and both venues are replayed.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import chronicle

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from rich.console import Console

VENUES = ("a", "b")
READERS = ("tape-a", "tape-b", "strategy")
COMMIT_EVERY = 256
PATIENCE_S = 60.0
FILE_MESSAGES_MAX = 1_000_000

Wait = Literal["spin", "hybrid", "sleep"]


# --- What the writers and readers do ------------------------------------------------------------


def write_venue(folder: str, venue: str, count: int, rate: float, said: Any, go: Any) -> None:
    """Publish the market of one venue at a steady rate; go on where the last writer stopped."""
    market = chronicle.Queue(f"{folder}/market-{venue}")
    with (
        chronicle.Provisioner() as provisioner,
        chronicle.Queue.open_publisher(
            f"{folder}/venue-{venue}",
            schema=list(market.types.values()),
            segment_bytes=1 << 20,
            provisioner=provisioner,
        ) as writer,
        # The venue's own next number says which message of the market is due.
        chronicle.Queue.open_subscriber(market.path, None, start=writer.next_seq) as source,
    ):
        discarded = writer.recovery.bytes_discarded
        said.put({"epoch": writer.epoch, "next": writer.next_seq, "discarded": discarded})
        go.wait()
        first, started = writer.next_seq, time.monotonic()
        while writer.next_seq <= count:
            due = min(count, first + int((time.monotonic() - started) * rate))
            while writer.next_seq <= due:
                message = source.next()
                assert message is not None
                # A view of one queue goes straight into the other. The time is that of publishing.
                writer.append(message.type_id, message.payload)
            time.sleep(0.0005)


@dataclass
class Tally:
    """What a reader has got, per venue."""

    last: dict[int, int] = field(default_factory=dict)
    checksum: dict[int, int] = field(default_factory=dict)
    latencies_ns: array[int] = field(default_factory=lambda: array("q"))
    lost: int = 0
    repeated: int = 0
    gaps: int = 0

    def take(self, message: chronicle.Message) -> None:
        self.latencies_ns.append(chronicle.clock_ns() - message.timestamp_ns)
        venue = message.source or 0
        last = self.last.get(venue, 0)
        if message.seq > last:
            self.lost += message.seq - last - 1
        else:
            self.repeated += 1
        self.last[venue] = message.seq
        self.checksum[venue] = zlib.crc32(message.payload, self.checksum.get(venue, 0))

    def report(self, name: str) -> dict[str, Any]:
        ordered = sorted(self.latencies_ns) or [0]
        at = {q: ordered[int(q * (len(ordered) - 1))] for q in (0.5, 0.99, 0.999, 1.0)}
        return {
            "name": name,
            "messages": len(self.latencies_ns),
            "lost": self.lost,
            "repeated": self.repeated,
            "gaps": self.gaps,
            "checksums": [self.checksum.get(venue, 0) for venue in sorted(self.checksum)],
            "latency_ns": at,
        }


def read_venues(folder: str, name: str, venues: str, total: int, wait: Wait, results: Any) -> None:
    """Read one venue, or several through a fan-in, until `total` messages are there."""
    readers = [
        chronicle.Queue.open_subscriber(f"{folder}/venue-{venue}", name, wait=wait)
        for venue in venues
    ]
    reader: chronicle.QueueReader | chronicle.FanInReader = readers[0]
    if len(readers) > 1:
        reader = chronicle.FanInReader(readers, wait=wait)
    tally = Tally()
    with reader:
        while len(tally.latencies_ns) < total:
            try:
                message = reader.next()
            except chronicle.Gap:
                tally.gaps += 1
                continue
            if message is not None:
                tally.take(message)
                if len(tally.latencies_ns) % COMMIT_EVERY == 0:
                    reader.commit()
                continue
            reader.commit()
            if not reader.wait(PATIENCE_S):
                break  # What is missing shows in the report.
        reader.commit()
    results.put(tally.report(name))


# --- The market ---------------------------------------------------------------------------------


def stage_market(folder: str, options: argparse.Namespace) -> int:
    """Put the market into one queue per venue; return the messages of each."""
    if options.file is None:
        return _stage_generated(folder, options.messages or 100_000)
    return _stage_capture(folder, options.file, options.messages or FILE_MESSAGES_MAX)


def _stage_generated(folder: str, count: int) -> int:
    from chronicle.feeds.generate import MarketGenerator
    from chronicle.feeds.iex import QuoteUpdate, Trade

    for number, venue in enumerate(VENUES):
        path = f"{folder}/market-{venue}"
        with chronicle.Queue.open_publisher(path, schema=[QuoteUpdate, Trade]) as writer:
            for batch in MarketGenerator(seed=1, venue=number).batches(count):
                columns = (batch.offsets, batch.lengths, batch.type_ids)
                writer.append_mixed(batch.buffer.data, *(column.data for column in columns))
    return count


def _stage_capture(folder: str, file: str, limit: int) -> int:
    """Deal the first messages of a capture out to the venues in turn."""
    from chronicle.feeds import import_capture

    count = limit // len(VENUES)
    with import_capture(file) as capture:
        schema = list(capture.classes.values())
        writers = [
            chronicle.Queue.open_publisher(f"{folder}/market-{venue}", schema=schema)
            for venue in VENUES
        ]
        dealt = 0
        for batch in capture:
            for number, writer in enumerate(writers):
                turn = slice((number - dealt) % len(writers), None, len(writers))
                columns = (batch.offsets[turn], batch.lengths[turn], batch.type_ids[turn])
                writer.append_mixed(batch.buffer.data, *(column.copy().data for column in columns))
            dealt += len(batch)
            if min(writer.next_seq for writer in writers) > count:
                break
        count = min(count, *(writer.next_seq - 1 for writer in writers))
        for writer in writers:
            writer.close()
    return count


# --- The run ------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What happened, for the report."""

    killed_pid: int = 0
    new_pid: int = 0
    last_seq_before: int = 0
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_so_far(folder: str) -> dict[str, int]:
    """Return how many messages each reader has committed. The cursors say it; nobody is asked."""
    done = dict.fromkeys(READERS, 0)
    for venue in VENUES:
        for cursor in chronicle.inspect(f"{folder}/venue-{venue}")["readers"]:
            if cursor["placed"]:
                done[cursor["name"]] += cursor["next_seq"] - 1
    return done


class Crew:
    """The processes of the run."""

    def __init__(self, folder: str, count: int, options: argparse.Namespace, wait: Wait) -> None:
        self._spawn = multiprocessing.get_context("spawn")
        self._folder = folder
        self._count = count
        self._rate = count / (options.seconds or max(2.5, count / 50_000))
        self._wait = wait
        self._go = self._spawn.Event()
        self._results = self._spawn.SimpleQueue()
        self._processes: list[SpawnProcess] = []

    def start_writer(self, venue: str) -> tuple[SpawnProcess, dict[str, int]]:
        said = self._spawn.SimpleQueue()
        arguments = (self._folder, venue, self._count, self._rate, said, self._go)
        process = self._start(f"writer-{venue}", write_venue, arguments)
        return process, self._receive(said, process)

    def start_reader(self, name: str) -> None:
        venues = "".join(VENUES) if name == "strategy" else name[-1]
        total = self._count * len(venues)
        arguments = (self._folder, name, venues, total, self._wait, self._results)
        self._start(name, read_venues, arguments)

    def _start(self, name: str, target: Any, arguments: tuple[Any, ...]) -> SpawnProcess:
        process = self._spawn.Process(target=quietly, name=name, args=(target, *arguments))
        process.start()
        self._processes.append(process)
        return process

    def begin(self) -> None:
        """Let the writers write, once all readers have found their places."""
        places = len(VENUES) * 2
        until = time.monotonic() + PATIENCE_S
        while sum(self._placed(venue) for venue in VENUES) < places:
            if time.monotonic() > until:
                raise SystemExit("the readers did not start")
            time.sleep(0.01)
        self._go.set()

    def _placed(self, venue: str) -> int:
        readers = chronicle.inspect(f"{self._folder}/venue-{venue}")["readers"]
        return sum(reader["placed"] for reader in readers)

    def reports(self) -> Iterator[dict[str, Any]]:
        """Yield what readers have reported by now."""
        while not self._results.empty():
            yield self._results.get()

    def _receive(self, said: Any, process: SpawnProcess) -> dict[str, int]:
        until = time.monotonic() + PATIENCE_S
        while said.empty():
            if not process.is_alive() or time.monotonic() > until:
                raise SystemExit(f"{process.name} did not start")
            time.sleep(0.005)
        found: dict[str, int] = said.get()
        return found

    def check(self) -> None:
        """Stop the demo if a process has failed."""
        for process in self._processes:
            if process.exitcode not in (None, 0, -9):
                raise SystemExit(f"{process.name} failed with exit code {process.exitcode}")

    def stop(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()


def quietly(target: Any, *arguments: Any) -> None:
    """Run a process's function; Ctrl-C ends it without a traceback."""
    try:
        target(*arguments)
    except KeyboardInterrupt:
        sys.exit(0)


def run(folder: str, count: int, crew: Crew, out: Console) -> Outcome:
    """Run the market, with the kill in its middle; return what happened."""
    outcome = Outcome()
    victim, outcome.before = crew.start_writer("a")
    crew.start_writer("b")
    for name in READERS:
        crew.start_reader(name)
    crew.begin()
    with progress_bars(out, count) as show:
        while len(outcome.reports) < len(READERS):
            time.sleep(0.02)
            crew.check()
            done = read_so_far(folder)
            show(done)
            if not outcome.killed_pid and done["tape-a"] >= count // 2:
                kill_and_restart(folder, crew, victim, outcome, out)
            outcome.reports |= {report["name"]: report for report in crew.reports()}
        show(read_so_far(folder))
    return outcome


def kill_and_restart(
    folder: str, crew: Crew, victim: SpawnProcess, outcome: Outcome, out: Console
) -> None:
    outcome.killed_pid = victim.pid or 0
    victim.kill()
    victim.join()
    with chronicle.Queue.open_subscriber(f"{folder}/venue-a", None, start="latest") as end:
        outcome.last_seq_before = end.next_seq - 1
    out.print(
        f"[bold red]kill -9[/]  writer-a (pid {outcome.killed_pid}) is dead; "
        f"its last message is {outcome.last_seq_before:,}"
    )
    process, outcome.after = crew.start_writer("a")
    outcome.new_pid = process.pid or 0
    out.print(
        f"[bold green]restart[/]  writer-a (pid {outcome.new_pid}) goes on at "
        f"{outcome.after['next']:,}; epoch {outcome.before['epoch']} -> {outcome.after['epoch']}"
    )


@contextmanager
def progress_bars(out: Console, count: int) -> Iterator[Any]:
    """Show what the readers have committed, on a terminal; gives the function that updates it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    if not sys.stdout.isatty():
        yield lambda _: None
        return
    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        tasks = {
            name: progress.add_task(name, total=count * (2 if name == "strategy" else 1))
            for name in READERS
        }

        def show(done: dict[str, int]) -> None:
            for name, task in tasks.items():
                progress.update(task, completed=done[name])

        yield show


# --- The report ---------------------------------------------------------------------------------


@dataclass
class Replay:
    """What a second reading from the beginning found."""

    messages: int
    sorted_by_time: bool
    around: list[tuple[str, chronicle.Message]]
    pause_ns: int


def replay(folder: str, boundary: int) -> Replay:
    """Merge both venues again from the first message, and keep those around the kill."""
    fanin = chronicle.FanInReader(
        [
            chronicle.Queue.open_subscriber(f"{folder}/venue-{venue}", None, start="earliest")
            for venue in VENUES
        ]
    )
    around: list[tuple[str, chronicle.Message]] = []
    newest: dict[int, int] = {}
    count, in_order, merged_ns, last_before_ns, pause_ns = 0, True, 0, 0, 0
    with fanin:
        for message in fanin:
            count += 1
            source = message.source or 0
            # A venue's clock may step back; it is then merged as if it had stood still.
            newest[source] = max(newest.get(source, 0), message.timestamp_ns)
            in_order &= newest[source] >= merged_ns
            merged_ns = newest[source]
            if source == 0 and message.seq == boundary:
                last_before_ns = message.timestamp_ns
            if source == 0 and message.seq == boundary + 1:
                pause_ns = message.timestamp_ns - last_before_ns
            if source == 0 and boundary - 1 <= message.seq <= boundary + 2:
                around.append((VENUES[source], message))
    return Replay(count, in_order, around, pause_ns)


def checksums_of_market(folder: str, count: int) -> list[int]:
    """Return one checksum over all payloads for each venue, of what should have arrived."""
    sums = []
    for venue in VENUES:
        checksum = 0
        path = f"{folder}/market-{venue}"
        with chronicle.Queue.open_subscriber(path, None, start="earliest") as market:
            for message in itertools.islice(market, count):
                checksum = zlib.crc32(message.payload, checksum)
        sums.append(checksum)
    return sums


def show_readers(out: Console, outcome: Outcome) -> None:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0), header_style="bold"
    )
    columns = ("messages", "lost", "repeated", "gaps", "p50", "p99", "p99.9", "max")
    table.add_column("reader", no_wrap=True, min_width=9)
    for column in columns:
        table.add_column(
            column, justify="right", no_wrap=True, min_width=7 if column[0] in "pm" else 4
        )
    for name in READERS:
        report = outcome.reports[name]
        counts = [f"{report[key]:,}" for key in ("messages", "lost", "repeated", "gaps")]
        table.add_row(name, *counts, *(duration(ns) for ns in report["latency_ns"].values()))
    out.print(table)
    out.print("[dim]latency: from the time of publishing in the message to its reception[/]")


def duration(ns: int) -> str:
    """Return a duration for people.

    >>> duration(850), duration(12_340), duration(4_200_000)
    ('850 ns', '12.3 us', '4.2 ms')
    """
    for limit, factor, unit in ((1_000, 1, "ns"), (1_000_000, 1e3, "us"), (10**9, 1e6, "ms")):
        if abs(ns) < limit:
            return f"{ns / factor:.3g} {unit}"
    return f"{ns / 1e9:.3g} s"


def show_boundary(out: Console, folder: str, found: Replay, outcome: Outcome) -> None:
    from rich.markup import escape

    types = chronicle.Queue(f"{folder}/venue-a").types
    out.print("\n[bold]venue-a around the kill[/], replayed from the file:")
    for venue, message in found.around:
        if message.seq == outcome.last_seq_before + 1:
            pause, epoch = duration(found.pause_ns), outcome.after["epoch"]
            out.print(f"  [red]--- kill -9, restart: {pause} later, epoch {epoch} ---[/]")
        cls = types.get(message.type_id)
        text = f"type {message.type_id}, {len(message)} bytes"
        if cls is not None:
            shown = list(cls.view(message.payload).as_dict(scaled=True).items())
            fields = (
                f"{key}={_plain(value)}" for key, value in shown if not key.endswith("time_ns")
            )
            text = f"{cls.__name__}  " + " ".join(fields)
        line = escape(f"  {venue} {message.seq:>9,}  {text}")
        out.print(line, overflow="ellipsis", no_wrap=True)


def _plain(value: Any) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def verdicts(
    outcome: Outcome, found: Replay, count: int, market: list[int]
) -> list[tuple[bool, str]]:
    """Say what was promised, and whether it came true."""
    reports = outcome.reports.values()
    deliveries = sum(report["messages"] for report in reports)
    expected = {"tape-a": market[:1], "tape-b": market[1:], "strategy": market}
    complete = deliveries == 4 * count
    unchanged = all(report["checksums"] == expected[report["name"]] for report in reports)
    lost, repeated, gaps = (sum(r[key] for r in reports) for key in ("lost", "repeated", "gaps"))
    before, after = outcome.before["epoch"], outcome.after.get("epoch", 0)
    goes_on = outcome.after.get("next", 0) == outcome.last_seq_before + 1
    return [
        (complete and lost == 0, f"nothing was lost: {deliveries:,} deliveries, {lost} lost"),
        (repeated == 0, f"nothing came twice, and all in order: {repeated} repeated"),
        (gaps == 0, f"no reader saw a gap: {gaps} gaps"),
        (unchanged, "every byte is the market's: checksums over all payloads are equal"),
        (
            0 < outcome.last_seq_before < count,
            f"the writer was killed in the middle, after message {outcome.last_seq_before:,}",
        ),
        (
            goes_on and after == before + 1,
            f"its successor goes on at {outcome.after.get('next', 0):,}: "
            f"epoch {before} before, {after} after",
        ),
        (
            found.sorted_by_time and found.messages == 2 * count,
            f"a replay merges both venues by time: {found.messages:,} messages, in order",
        ),
    ]


def choose_wait(cores: int) -> tuple[Wait, str]:
    """Choose how readers wait: spinning pays only where everybody has a core of its own.

    >>> choose_wait(2)[0], choose_wait(4)[0], choose_wait(32)[0]
    ('sleep', 'hybrid', 'spin')
    """
    if cores > len(READERS) + 2 * len(VENUES):
        return "spin", "readers spin: there is a core for each"
    if cores > 2:
        return "hybrid", "readers spin for 20 us, then sleep until they are rung"
    return "sleep", "readers sleep until they are rung, as cores are few"


def make_console() -> Console:
    from rich.console import Console

    plain = bool(os.environ.get("NO_COLOR"))
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100
    return Console(color_system=None if plain else "auto", highlight=False, width=width)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A market, two venues, a kill -9 in the middle.")
    parser.add_argument("--file", help="a capture: pcap (IEX, Nasdaq), ITCH or Binance; may be .gz")
    parser.add_argument(
        "--messages", type=int, help="of each venue (100000); with --file of both (1000000)"
    )
    parser.add_argument(
        "--seconds", type=float, help="how long to publish (2.5, or 50,000 messages/s)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    out = make_console()
    cores = len(os.sched_getaffinity(0))
    wait, why = choose_wait(cores)
    shm = Path("/dev/shm")
    base = shm if shm.is_dir() and os.access(shm, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="chronicle-demo-", dir=base) as folder:
        try:
            count = stage_market(folder, options)
        except (OSError, chronicle.ChronicleError) as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1
        origin = f"of {options.file}" if options.file else "generated"
        out.print("[bold]Chronicle[/]: two venues, two writers, three readers, one kill -9\n")
        out.print(f"market   {2 * count:,} messages on two venues, {origin}", markup=False)
        out.print(f"machine  {cores} cores; {why}")
        out.print(f"queues   {folder}, removed at the end\n", markup=False)
        crew = Crew(folder, count, options, wait)
        try:
            outcome = run(folder, count, crew, out)
            found = replay(folder, outcome.last_seq_before)
            market = checksums_of_market(folder, count)
        except KeyboardInterrupt:
            return 130
        finally:
            crew.stop()
        out.print()
        show_readers(out, outcome)
        show_boundary(out, folder, found, outcome)
    out.print()
    checks = verdicts(outcome, found, count, market)
    for holds, text in checks:
        out.print(f"[green]ok[/]      {text}" if holds else f"[bold red]FAILED[/]  {text}")
    return 0 if all(holds for holds, _ in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
