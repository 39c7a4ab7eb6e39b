r"""The whole system for a few seconds: packets on a wire, a feed handler, strategies, a router.

    make demo                       a generated market
    make demo FILE=capture.pcap.gz  an IEX capture

Six processes over one bus, each started as its own command, as they would be in production:

    market ==A,B==> feed_handler --> strategy alpha, beta <--> router <--> exchange

The market sends each packet on two multicast lines from a network namespace of its own, loses one
in a hundred of each, and repairs what was lost on both over TCP. In the middle a strategy is killed
with SIGKILL and started again. At the end the queues are read: what came through, how long it took,
what the hot threads did besides (nothing), and whether every order is accounted for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import chronicle
import numpy as np
from accounts import Accounts, account, read_bus
from chronicle.feeds.capture import import_capture
from chronicle.feeds.generate import SYMBOLS
from chronicle.feeds.iex import BuyLevel, QuoteUpdate, SellLevel
from chronicle.hot import choose_wait, read_counters
from orders import Action, Forward, Order, session_of
from persistence import duration
from wire import Wire, choose_wire

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HERE: Final = Path(__file__).resolve().parent
STRATEGIES: Final = ("alpha", "beta")
START_S: Final = 120.0
#: How long the feed may stand still.
STALLED_S: Final = 60.0
MESSAGES_PER_PACKET: Final = 2.5
#: How long the processes get to finish what is on its way, and to end.
DRAIN_S: Final = 20.0


class DemoFailed(Exception):
    """Something did not come up, or ended by itself; the message says what it said last."""


@dataclass
class Crew:
    """The processes: started as commands, watched, stopped in order, none left behind."""

    bus: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def log(self, name: str) -> Path:
        return self.bus / f".{name}.log"

    def start(self, name: str, program: str, *arguments: object) -> None:
        command = [sys.executable, str(HERE / program), *map(str, arguments)]
        with self.log(name).open("ab") as log:
            # A group of its own: Ctrl-C is for the demo, which then stops them in order.
            self.running[name] = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, process_group=0
            )

    def start_talking(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Start one that is told and tells by pipes."""
        with self.log(name).open("ab") as log:
            process = self.running[name] = subprocess.Popen(
                command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, stderr=log, process_group=0
            )
        return process

    def check(self) -> None:
        """Raise `DemoFailed` if one has ended by itself."""
        for name, process in self.running.items():
            if process.poll() is not None:
                said = self.log(name).read_text(errors="replace").strip().splitlines()[-12:]
                raise DemoFailed(
                    "\n  ".join([f"{name} ended with status {process.returncode}:", *said])
                )

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        _reap(process)

    def stop(self, name: str) -> None:
        """Stop one in order; kill it if it does not."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            _reap(process, DRAIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            _reap(process)
            raise DemoFailed(f"{name} did not stop within {DRAIN_S:.0f} s") from None

    def stop_all(self) -> None:
        for process in self.running.values():
            process.kill()
        for process in self.running.values():
            _reap(process)
        self.running.clear()


def _reap(process: subprocess.Popen[bytes], timeout_s: float | None = None) -> None:
    process.wait(timeout_s)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def wait_until(condition: Callable[[], object], crew: Crew, what: str) -> None:
    end_s = time.monotonic() + START_S
    while not condition():
        crew.check()
        if time.monotonic() > end_s:
            raise DemoFailed(f"waited {START_S:.0f} s in vain for {what}")
        time.sleep(0.02)


# --- What is read while it runs, and at the end ---------------------------------------------------


def last_seq(queue: Path) -> int:
    """Return the number of the last message, or 0."""
    with contextlib.suppress(chronicle.ChronicleError, OSError):
        with chronicle.Queue.open_subscriber(queue, None, start="latest") as reader:
            return reader.next_seq - 1
    return 0


def counts_of(bus: Path) -> dict[str, int]:
    """Return how far each stage is: messages published."""
    orders = [last_seq(path) for path in bus.glob("orders/*/out")]
    # Between the messages of the venue stand the feed handler's own: so its counter tells.
    published = [t.counters["messages"] for _, t in find_threads(bus) if t.name == "feed"]
    return {
        "messages": published[0] if published else last_seq(bus / "streams" / "iex" / "live"),
        "orders": sum(orders),
        "executions": last_seq(bus / "exchanges" / "sim" / "main"),
    }


def times_of(queue: Path) -> dict[int, int]:
    """Return the time of each message, by number."""
    with chronicle.Queue.open_subscriber(queue, None, start="earliest") as reader:
        return {message.seq: message.timestamp_ns for message in reader}


def messages_of(queue: Path, cls: Any) -> Iterator[tuple[int, int, Any]]:
    """Give number, time and message of all messages of one class."""
    with chronicle.Queue.open_subscriber(queue, None, start="earliest") as reader:
        for message in reader:
            if message.type_id == cls.type_id:
                yield message.seq, message.timestamp_ns, cls.view(bytes(message.payload))


def quantiles(values: list[int]) -> dict[str, int]:
    """Return p50, p90, p99 and the highest.

    >>> quantiles(list(range(1, 101)))
    {'p50': 50, 'p90': 90, 'p99': 99, 'max': 100}
    """
    ordered = sorted(values)
    places = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {
        name: ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
        for name, share in places.items()
    }


@dataclass
class Findings:
    """What the queues and the counters files say at the end."""

    seconds: float
    latencies: dict[str, list[int]]
    accounts: Accounts
    threads: list[tuple[str, Any]]
    queues: dict[str, dict[str, Any]]
    #: Messages that the venue has sent; ``None`` without packets.
    sent: int | None

    @property
    def feed(self) -> dict[str, int]:
        """What the feed's hot thread has counted."""
        return next((t.counters for _, t in self.threads if t.name == "feed"), {})


def find_latencies(bus: Path) -> dict[str, list[int]]:
    """Return what each hop took, in ns, from the times of the messages that name each other."""
    ticks = times_of(bus / "streams" / "iex" / "live")
    hops: dict[str, list[int]] = {
        "tick to order": [],
        "order to forward": [],
        "tick to forward": [],
    }
    sent: dict[tuple[int, int], tuple[int, int]] = {}
    for queue in bus.glob("orders/*/out"):
        session = session_of(chronicle.inspect(queue)["queue_id"])
        for seq, at_ns, order in messages_of(queue, Order):
            tick_ns = ticks.get(order.cause)
            if tick_ns is not None:
                hops["tick to order"].append(at_ns - tick_ns)
                sent[session, seq] = (tick_ns, at_ns)
    for _, at_ns, forward in messages_of(bus / "gateways" / "main" / "exchange", Forward):
        found = sent.get((forward.session, forward.cause))
        if found is not None and forward.action == Action.NEW:
            hops["tick to forward"].append(at_ns - found[0])
            hops["order to forward"].append(at_ns - found[1])
    return {name: values for name, values in hops.items() if values}


def find_threads(bus: Path) -> list[tuple[str, Any]]:
    """Return each process's hot threads, from the counters files."""
    found = []
    for path in sorted(bus.glob("*/*/COUNTERS")):
        name = "/".join(path.parts[-3:-1])
        found += [(name, thread) for thread in read_counters(path).threads]
    return found


def find_queues(bus: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(path.parent for path in bus.glob("**/control"))
    return {
        str(path.relative_to(bus)): {**chronicle.inspect(path), "last_seq": last_seq(path)}
        for path in paths
    }


# --- What is printed ------------------------------------------------------------------------------


def make_table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(columns[0], no_wrap=True, min_width=20)
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def show_stages(out: Console, found: Findings) -> None:
    table = make_table("queue", "messages", "per second", "rolls", "late")
    for name, facts in found.queues.items():
        count = facts["last_seq"]
        table.add_row(
            name, f"{count:,}", f"{count / found.seconds:,.0f}", f"{facts['rolls']}",
            f"{facts['rolls_inline']}",
        )  # fmt: skip
    out.print("[bold]what came through[/]")
    out.print(table)


def show_latencies(out: Console, found: Findings) -> None:
    table = make_table("hop", "measured", "p50", "p90", "p99", "max")
    for name, values in found.latencies.items():
        table.add_row(name, f"{len(values):,}", *map(duration, quantiles(values).values()))
    out.print("[bold]how long it took[/]")
    out.print(table)


def show_threads(out: Console, found: Findings) -> None:
    table = make_table(
        "hot thread", "inputs", "system\ncalls", "allo-\ncations", "page\nfaults",
        "swit-\nches", "gaps", "loop\np99.9",
    )  # fmt: skip
    for name, thread in found.threads:
        words, about = thread.words, thread.about
        kernel = about.get("kernel_since_start") or {}
        inputs = words["messages"] + words.get("datagrams", 0)
        table.add_row(
            f"{name} {thread.name}" if thread.name not in name else name,
            f"{inputs:,}",
            f"{about['guard_seen']}",
            f"{words['allocations']}",
            _sum(kernel, "faults_minor", "faults_major"),
            _sum(kernel, "switches_voluntary", "switches_involuntary"),
            f"{words['gaps']}",
            duration(thread.loop_gap.quantile(0.999)),
        )
    out.print("[bold]what the hot threads did besides[/]: under guard='enforce'")
    out.print(table)
    if choose_wait() != "spin":
        out.print("Switches: they sleep while nothing is there, as cores are few.\n")


def _sum(kernel: dict[str, Any], *names: str) -> str:
    return f"{sum(kernel[name] for name in names):,}" if kernel else "-"


def show_feed(out: Console, found: Findings) -> None:
    feed = found.feed
    if not feed:
        return
    out.print(
        f"[bold]feed[/]: {feed['packets']:,} packets, {feed['duplicates']:,} of them copies, "
        f"{feed['held_ever']:,} came too early; {feed['asks']:,} questions to the recovery "
        f"session, {feed['recovered']:,} packets from it\n"
    )


def verdicts(found: Findings) -> list[tuple[bool, str]]:
    """Say what was promised, and whether it came true."""
    accounts = found.accounts
    quiet = [(t.about["guard_seen"], t.words["allocations"]) for _, t in found.threads]
    killed = found.queues[f"orders/{STRATEGIES[0]}/out"]["epoch"]
    got = found.feed.get("messages")
    feed = []
    if found.sent is not None:
        lost = found.feed["lost"]
        feed = [
            (
                got == found.sent and lost == 0,
                f"every message of the venue, once and in order: {found.sent:,} sent, {got:,} "
                f"published, {lost} lost",
            )
        ]
    faults = len(accounts.faults)
    return [
        *feed,
        (
            accounts.perfect,
            f"every order is accounted for: {accounts.orders:,} orders, {accounts.acked:,} taken, "
            f"{accounts.rejected:,} refused with a reason, {faults} faults",
        ),
        (accounts.unanswered == 0, f"no order without an answer: {accounts.unanswered}"),
        (
            bool(quiet) and all(pair == (0, 0) for pair in quiet),
            f"no system call and no allocation on {len(quiet)} hot threads",
        ),
        (killed == 2, f"{STRATEGIES[0]} was killed with SIGKILL and went on: epoch {killed}"),
    ]


# --- The run --------------------------------------------------------------------------------------

RISK: Final = """\
trading = true
ratio = 2.0
quantity = 10
position_max = 100000
open_orders_max = 32
pause_ms = 2
life_ms = 500
stale_ms = 5000
"""
IMPAIRED: Final = ("--loss", "0.01", "--double", "0.005", "--late", "0.01", "--cuts", "1")


class Venue:
    """The sender of packets: what it has said, and when it may begin."""

    def __init__(self, crew: Crew, wire: Wire, options: argparse.Namespace) -> None:
        self._crew = crew
        command = [
            sys.executable, str(HERE / "feed_sender.py"), "--address", wire.address,
            "--lines", *wire.lines, "--rate", str(options.rate), *IMPAIRED, "--wait",
        ]  # fmt: skip
        if wire.name.endswith("loopback"):
            command.append("--loopback")
        if options.file:
            command += ["--file", options.file]
        else:
            count = round(options.rate * options.seconds * MESSAGES_PER_PACKET)
            command += ["--count", str(count), "--runs", "1"]
        if wire.peer is not None:
            command = [sys.executable, str(HERE / "wire.py"), wire.peer, wire.address, *command]
        self._process = crew.start_talking("venue", command)
        if wire.peer is not None:
            self._said()
            wire.connect(self._process.pid)
            self.tell()
        ready = json.loads(self._said())
        self.recovery: str = ready["recovery"]
        self.packets: int = ready["packets"]
        self.messages: int = ready["messages"]

    def _said(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        if not line:
            self._process.wait()
            self._crew.check()
        return line

    def tell(self) -> None:
        """Let it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()


def run(crew: Crew, options: argparse.Namespace, wire: Wire | None, out: Console) -> Findings:
    """Start everything, watch it, kill a strategy in the middle, stop everything, read it all."""
    bus = crew.bus
    risk = bus / ".risk.toml"
    risk.write_text(RISK)
    symbols = dict(zip(STRATEGIES, choose_symbols(options, wire), strict=True))

    def start_strategy(name: str) -> None:
        arguments = (bus, name, "--symbol", symbols[name], "--venue", "iex", "--risk", risk)
        crew.start(name, "strategy.py", *arguments)

    with (
        out.status("starting; the first time, handlers are compiled")
        if out.is_terminal
        else (contextlib.nullcontext())
    ):
        crew.start("exchange", "exchange.py", bus)
        crew.start("router", "router.py", bus)
        venue = None if wire is None else Venue(crew, wire, options)
        if wire is None or venue is None:
            crew.start("market", "market.py", bus, "--venue", "iex", "--rate", options.rate)
        else:
            lines = ("--lines", *wire.lines, "--recovery", venue.recovery, "--live-mib", 4)
            unsummed = ("--no-checksums",) if options.file else ()
            crew.start(
                "feed", "feed_handler.py", bus, "--interface", wire.interface, *lines, *unsummed
            )
        for name in STRATEGIES:
            start_strategy(name)
        # The feed and its snapshots, if there are any, and the reports of the gateway.
        wanted = dict.fromkeys(STRATEGIES, 2 if venue is None else 3)
        wanted |= {"router": 1 + len(STRATEGIES), "exchange": 1}
        wait_until(lambda: are_attached(bus, wanted), crew, f"everybody to find everybody {wanted}")
    started_s = time.monotonic()
    if venue is not None:
        venue.tell()
    total = options.seconds * options.rate if venue is None else venue.messages
    victim = STRATEGIES[0]
    with progress(out, total) as show:
        while True:
            crew.check()
            counts = counts_of(bus)
            show(counts)
            if victim and counts["messages"] > total / 2:
                crew.kill(victim)
                start_strategy(victim)
                victim = ""
            if counts["messages"] >= total:
                break
            if time.monotonic() > started_s + STALLED_S + 3 * total / options.rate:
                raise DemoFailed(f"the feed stands still at {counts['live']:,} of {total:,}")
            time.sleep(0.1)
    seconds = time.monotonic() - started_s
    wait_until(lambda: is_back(bus / "orders" / STRATEGIES[0]), crew, f"{STRATEGIES[0]} again")
    # From the feed on, so that everybody finishes what is there.
    for name in ("feed", "venue", "market", *STRATEGIES):
        if name in crew.running:
            crew.stop(name)
    wait_until(lambda: not account(read_bus(bus)).unanswered, crew, "the last answers")
    crew.stop("router")
    crew.stop("exchange")
    return Findings(
        seconds,
        find_latencies(bus),
        account(read_bus(bus)),
        find_threads(bus),
        find_queues(bus),
        None if venue is None else venue.messages,
    )


def are_attached(bus: Path, wanted: dict[str, int]) -> bool:
    """Return whether each hot thread has so many sources."""
    sources = {thread.name: thread.words["sources"] for _, thread in find_threads(bus)}
    return all(sources.get(name, 0) >= count for name, count in wanted.items())


def is_back(strategy: Path) -> bool:
    """Return whether its second life is there."""
    return chronicle.inspect(strategy / "out")["epoch"] == 2 and (strategy / "READY").exists()


def choose_symbols(options: argparse.Namespace, wire: Wire | None) -> list[str]:
    """Return a symbol for each strategy: of a capture those whose books change most."""
    if wire is None:
        return ["ZXIET"] * len(STRATEGIES)
    if not options.file:
        return [symbol.decode() for symbol in SYMBOLS[: len(STRATEGIES)]]
    changes: Counter[bytes] = Counter()
    with import_capture(options.file) as capture:
        for batch in capture:
            for cls in (QuoteUpdate, BuyLevel, SellLevel):
                for index in np.flatnonzero(batch.type_ids == cls.type_id).tolist():
                    changes[cls.view(batch.payload(index)).symbol] += 1
    if len(changes) < len(STRATEGIES):
        raise DemoFailed(f"{options.file}: no quotes or price levels of two symbols in it")
    return [symbol.decode() for symbol, _ in changes.most_common(len(STRATEGIES))]


@contextlib.contextmanager
def progress(out: Console, total: float) -> Iterator[Callable[[dict[str, int]], None]]:
    """Show how far it is: a bar on a terminal, a line each second elsewhere."""
    if out.is_terminal:
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (BarColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=out, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda counts: bar.update(
                task, completed=counts["messages"], description="  ".join(_told(counts))
            )
        return
    started_s = time.monotonic()
    told_s = 0.0

    def show(counts: dict[str, int]) -> None:
        nonlocal told_s
        done_s = time.monotonic() - started_s
        if done_s >= told_s:
            out.print(f"{done_s:4.1f} s  {'  '.join(_told(counts))}", markup=False)
            told_s = done_s + 1.0

    yield show


def _told(counts: dict[str, int]) -> list[str]:
    return [f"{count:,} {name}" for name, count in counts.items()]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The whole system over one bus, for some seconds.")
    parser.add_argument("--file", help="an IEX capture (pcap, may be .gz)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of a made-up market (6)")
    parser.add_argument(
        "--rate", type=float, help="packets per second (2000; 10000 of a file), or quotes (500)"
    )
    parser.add_argument(
        "--path", choices=("auto", "veth", "loopback", "queue"), default="auto",
        help="how packets come: veth pair, loopback, or no packets at all",
    )  # fmt: skip
    parser.add_argument("--bus", type=Path, help="keep the bus here, for a look at it afterwards")
    return parser.parse_args(argv)


def make_console() -> Console:
    from rich.console import Console

    plain = bool(os.environ.get("NO_COLOR"))
    # In a file nothing need be cut.
    width = None if sys.stdout.isatty() else 100
    return Console(color_system=None if plain else "auto", highlight=False, width=width)


@contextlib.contextmanager
def bus_directory(options: argparse.Namespace) -> Iterator[Path]:
    if options.bus is not None:
        options.bus.mkdir(mode=0o700, parents=True, exist_ok=False)
        yield options.bus
        return
    shm = Path("/dev/shm")
    base = shm if shm.is_dir() and os.access(shm, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="chronicle-demo-", dir=base) as folder:
        yield Path(folder)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    out = make_console()
    cores = len(os.sched_getaffinity(0))
    try:
        wire = choose_wire(options.path)
    except OSError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    if wire is None and options.file:
        print("demo: a capture needs packets: --path veth or loopback, as root", file=sys.stderr)
        return 1
    if options.rate is None:
        options.rate = 500.0 if wire is None else 10_000.0 if options.file else 2_000.0
    came = "no packets: a market that writes into a queue" if wire is None else wire.name
    out.print("[bold]Chronicle[/]: venue, feed handler, two strategies, router, exchange\n")
    out.print(f"machine  {cores} cores, so hot threads wait by '{choose_wait()}'")
    out.print(f"wire     {came}{'' if wire is None else wire.why}", markup=False)
    with bus_directory(options) as bus:
        out.print(f"bus      {bus}", markup=False)
        out.print("start    some seconds; the first time longer, for handlers are compiled\n")
        crew = Crew(bus)
        try:
            found = run(crew, options, wire, out)
        except (DemoFailed, OSError, chronicle.ChronicleError) as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        finally:
            crew.stop_all()
    out.print()
    show_stages(out, found)
    show_feed(out, found)
    show_latencies(out, found)
    show_threads(out, found)
    checks = verdicts(found)
    for holds, text in checks:
        out.print(f"[green]ok[/]      {text}" if holds else f"[bold red]FAILED[/]  {text}")
    return 0 if all(holds for holds, _ in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
