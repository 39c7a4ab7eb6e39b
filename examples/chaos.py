"""Chaos: a whole system whose processes are killed and stopped at random, and then its accounts.

    make chaos                                 five minutes
    python examples/chaos.py --seconds 20 --seed 7
    python examples/chaos.py --market          without a network, for who is not root

A feed handler, an exchange, a router and two strategies run as processes. Every second one of them
is killed (SIGKILL) or stopped (SIGSTOP, and some time later SIGCONT). Whoever has ended is started
again, as a service manager would do it; nobody is told anything. At the end all run undisturbed for
a moment, to show that they have recovered; then the strategies are asked to leave, everything
drains, and every order must be accounted for.

Meanwhile `timeline.py` looks on. It prints for each five seconds who was up for how much of them,
what was traded, and what kept a strategy from it; and if one does not trade again though everybody
that it needs is up, that is wrong, too.

The venue that the feed handler listens to is outside of that system: it sends on two lines that
lose packets, over a cable (a veth pair) in a network namespace that ends with this program. That
needs root. With `--market`, `market.py` takes the feed handler's place.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from accounts import Accounts, account, read_bus
from timeline import Look, Timeline, Witness

HERE: Final = Path(__file__).parent
PATIENCE_S: Final = 180.0
#: Between two looks at everybody.
LOOK_S: Final = 0.1
#: The venue's end of the cable and ours; the two lines; where recovery listens.
CABLE: Final = ("chr-venue", "chr-feed")
VENUE: Final = "10.77.0.1"
LINES: Final = ("239.77.1.1:10378", "239.77.1.2:10378")
RECOVERY_PORT: Final = 19_777
RISK: Final = """\
trading = true
ratio = 2.5
quantity = 10
position_max = 10000
open_orders_max = 32
pause_ms = 5
life_ms = 200
stale_ms = 500
"""


@dataclass
class Child:
    """A process that is started again whenever it has ended."""

    name: str
    endpoint: str
    command: Sequence[str]
    log: IO[bytes]
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    kills: int = 0
    stops: int = 0
    continue_at_s: float | None = None
    is_leaving: bool = False
    #: When it was started, as long as it is not up and was left alone; and how long lives took.
    started_s: float | None = None
    took_s: list[float] = field(default_factory=list)
    #: Ends that nobody asked for: exit statuses.
    ends: list[int] = field(default_factory=list)

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        self.starts += 1
        self.continue_at_s = None
        self.started_s = time.monotonic()

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    @property
    def running(self) -> int | None:
        """Its process id, if it runs and is not stopped."""
        if self.process is None or self.continue_at_s is not None:
            return None
        return self.process.pid if self.process.poll() is None else None

    def kill(self) -> None:
        self.kills += 1
        self.send(signal.SIGKILL)

    def stop(self, stop_s: float) -> None:
        self.stops += 1
        self.send(signal.SIGSTOP)
        self.continue_at_s = time.monotonic() + stop_s
        self.started_s = None

    def supervise(self, now_s: float) -> None:
        """Continue it if it is time; start it if it has ended."""
        if self.continue_at_s is not None and now_s >= self.continue_at_s:
            self.send(signal.SIGCONT)
            self.continue_at_s = None
        if self.process is None or self.is_leaving:
            return
        status = self.process.poll()
        if status is not None:
            if status != -signal.SIGKILL:
                self.ends.append(status)
            self.start()


class Chaos:
    """The processes, and what is done to them."""

    def __init__(self, folder: Path, seed: int, rate: float, seconds: int, *, market: bool) -> None:
        self.bus = folder / "bus"
        self.bus.mkdir(mode=0o700)
        risk = folder / "risk.toml"
        risk.write_text(RISK)
        self.chance = random.Random(seed)
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.venue: subprocess.Popen[bytes] | None = None
        bus = str(self.bus)
        feed = "streams/iex"
        if market:
            more = ("--venue", "iex", "--rate", str(rate))
            source = self._child("market", feed, "market", bus, *more)
            symbol = "ZXIET"
        else:
            self.venue = self._start_venue(rate, seconds + PATIENCE_S)
            source = self._child(
                *("feed", feed, "feed_handler", bus, "--interface", CABLE[1], "--lines", *LINES),
                *("--recovery", f"{VENUE}:{RECOVERY_PORT}", "--live-mib", "8"),
            )
            symbol = "AAPL"
        others = [
            source,
            self._child("exchange", "exchanges/sim", "exchange", bus),
            self._child("router", "gateways/main", "router", bus),
        ]
        more = ("--symbol", symbol, "--risk", str(risk))
        self.strategies = [
            self._child(name, f"orders/{name}", "strategy", bus, name, *more)
            for name in ("alpha", "beta")
        ]
        self.others, self.children = others, others + self.strategies
        names = [child.name for child in self.strategies]
        endpoints = {child.name: child.endpoint for child in self.children}
        self.witness = Witness(self.bus, endpoints, names, "main", self.bus / feed / "live")
        self.look_at_s = 0.0
        self.begin()

    def _child(self, name: str, endpoint: str, script: str, *arguments: str) -> Child:
        command = [sys.executable, str(HERE / f"{script}.py"), *arguments]
        return Child(name, endpoint, command, (self.logs / f"{name}.log").open("ab"))

    def _start_venue(self, rate: float, seconds: float) -> subprocess.Popen[bytes]:
        """Start what sends the market. It ends when its input does."""
        command = [
            *(sys.executable, str(HERE / "feed_sender.py"), "--address", VENUE),
            *("--lines", *LINES, "--loss", "0.01", "--double", "0.01", "--late", "0.02"),
            *("--recovery-port", str(RECOVERY_PORT), "--rate", str(rate), "--runs", "1"),
            # Some two and a half messages are in a packet.
            *("--count", str(int(rate * seconds * 2.5))),
        ]
        with (self.logs / "venue.log").open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)

    def supervise_until(self, is_done: Callable[[], bool], end_s: float) -> bool:
        """Look after everybody until something is so; whether it was in time."""
        while not is_done():
            now_s = time.monotonic()
            if now_s >= end_s:
                return False
            for child in self.children:
                child.supervise(now_s)
            if now_s >= self.look_at_s:
                self.look()
            time.sleep(0.02)
        return True

    def begin(self) -> None:
        """Begin to count seconds, and the table of them."""
        self.timeline = Timeline(
            [child.name for child in self.others], [child.name for child in self.strategies]
        )
        self.begin_s = time.monotonic()
        print(self.timeline.heading, flush=True)

    def look(self) -> Look:
        """Look who is up and what has become of them; print the row of the table that is full."""
        now_s = time.monotonic()
        self.look_at_s = now_s + LOOK_S
        running = {child.name: child.running for child in self.children}
        alive = {name: pid for name, pid in running.items() if pid is not None}
        self.last = look = self.witness.look(now_s - self.begin_s, alive)
        for child in self.children:
            if child.name in look.up and child.started_s is not None:
                child.took_s.append(now_s - child.started_s)
                child.started_s = None
        if (row := self.timeline.note(look)) is not None:
            print(row, flush=True)
        return look

    def plan(self, seconds: int) -> list[tuple[Child, float | None]]:
        """Choose whom to disturb in each second: to kill, or to stop for so long.

        All is chosen before it begins, so that a seed says it all, whatever the machine does.
        """
        plan: list[tuple[Child, float | None]] = []
        stopped_until = dict.fromkeys((child.name for child in self.children), 0.0)
        for second in range(seconds):
            child = self.chance.choice(self.children)
            stop_s: float | None = self.chance.uniform(0.1, 3.0)
            if self.chance.random() < 0.5 or second < stopped_until[child.name]:
                stop_s = None
            stopped_until[child.name] = 0.0 if stop_s is None else second + stop_s
            plan.append((child, stop_s))
        return plan

    def run(self, seconds: int) -> None:
        """Disturb somebody, once a second."""
        self.begin()
        for second, (child, stop_s) in enumerate(self.plan(seconds), 1):
            if stop_s is None:
                child.kill()
            else:
                child.stop(stop_s)
            self.supervise_until(lambda: False, self.begin_s + second)
            if second % 10 == 0:
                self.say(f"{second} s")

    def say(self, when: str) -> None:
        accounts = account(read_bus(self.bus), running=True)
        kills = sum(child.kills for child in self.children)
        stops = sum(child.stops for child in self.children)
        print(
            f"{when:>6}  kills {kills:4}  stops {stops:4}  orders {accounts.orders:7,}  "
            f"acked {accounts.acked:7,}  refused {accounts.rejected:6,}  "
            f"fills {accounts.fills:7,}  faults {len(accounts.faults)}",
            flush=True,
        )

    def trade(self) -> list[str]:
        """Wait until each strategy has had one more order acknowledged; return what is wrong."""
        then = self.look().sights

        def waiting() -> list[str]:
            return [name for name, now in self.last.sights.items() if now.acked == then[name].acked]

        in_time = self.supervise_until(
            lambda: bool(self.timeline.wrong) or not waiting(), time.monotonic() + PATIENCE_S
        )
        late = [] if in_time else [f"{name}: no order in {PATIENCE_S:.0f} s" for name in waiting()]
        return self.timeline.wrong + late

    def calm(self) -> None:
        """Continue whoever is stopped."""
        for child in self.children:
            if child.continue_at_s is not None:
                child.continue_at_s = time.monotonic()

    def leave(self, children: Sequence[Child]) -> list[str]:
        """Ask processes to end; return who did not do so in order."""
        for child in children:
            child.is_leaving = True
            child.send(signal.SIGTERM)
        wrong = []
        for child in children:
            assert child.process is not None
            try:
                status = child.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                status = None
            if status != 0:
                wrong.append(f"{child.name} did not end in order: status={status}")
        return wrong

    def drain(self) -> tuple[Accounts, list[str]]:
        """Have the strategies cancel and go, then the others; return the accounts."""
        wrong = self.leave(self.strategies)
        end_s = time.monotonic() + PATIENCE_S
        self.supervise_until(lambda: account(read_bus(self.bus), closed=True).perfect, end_s)
        self.end_venue()
        wrong += self.leave([child for child in self.children if child not in self.strategies])
        return account(read_bus(self.bus), closed=True), wrong

    def end(self) -> None:
        """Let nobody outlive this."""
        for child in self.children:
            child.is_leaving = True
            child.send(signal.SIGKILL)
            if child.process is not None:
                child.process.wait()
            child.log.close()
        self.end_venue()
        self.witness.close()

    def show(self) -> list[str]:
        """Print what became of the processes; return what nobody has asked for."""
        print(f"\n{'process':10} {'starts':>7} {'kills':>7} {'stops':>7}  up after a start")
        for child in self.children:
            # The median, and the longest.
            took_s = sorted(child.took_s) or [0.0]
            print(
                f"{child.name:10} {child.starts:7} {child.kills:7} {child.stops:7}  "
                f"in {took_s[len(took_s) // 2]:.1f} s, at most {took_s[-1]:.1f} s"
            )
        print()
        for name, messages in self.timeline.longest.items():
            print(f"{name}: at most {messages:,} market messages with everybody up and no order")
        return [
            f"{child.name} ended by itself: status={status}"
            for child in self.children
            for status in child.ends
        ]

    def end_venue(self) -> None:
        """Close the market."""
        if self.venue is not None:
            self.venue.kill()
            self.venue.communicate()


def run(folder: Path, seconds: int, seed: int, rate: float, *, market: bool) -> list[str]:
    """Run it all; return what is wrong."""
    chaos = Chaos(folder, seed, rate, seconds, market=market)
    try:
        for child in chaos.children:
            child.start()
        if wrong := chaos.trade():
            return [f"at the beginning: {line}" for line in wrong]
        chaos.run(seconds)
        chaos.calm()
        wrong = chaos.trade()
        if (row := chaos.timeline.end()) is not None:
            print(row, flush=True)
        accounts, more = chaos.drain()
        wrong += more
    finally:
        chaos.end()
    wrong += chaos.show()
    print(f"\n{accounts.orders:,} orders, {accounts.cancels:,} cancels")
    print(f"{accounts.acked:,} acknowledged once, {accounts.rejected:,} refused with a reason:")
    for reason, count in sorted(accounts.reasons.items()):
        print(f"    {reason:16} {count:9,}")
    print(f"{accounts.fills:,} fills of {accounts.filled_quantity:,} in all, none of them twice")
    return wrong + accounts.faults


def enter_namespace(arguments: Sequence[str]) -> int:
    """Become this program again, in a network namespace of its own."""
    if os.geteuid() != 0:
        print("chaos: a network of its own needs root; pass --market to do without", flush=True)
        return 2
    script = str(Path(__file__).resolve())
    os.execvp("unshare", ["unshare", "--net", sys.executable, script, *arguments])
    raise AssertionError  # What came before does not return.


def lay_cable() -> None:
    """Connect the venue with the feed handler."""
    theirs, ours = CABLE
    for command in (
        "link set lo up",
        f"link add {theirs} type veth peer name {ours}",
        f"addr add {VENUE}/24 dev {theirs}",
        f"link set {theirs} up",
        f"link set {ours} up",
    ):
        subprocess.run(["ip", *command.split()], check=True)


def main() -> int:
    """Run for so many seconds; exit status 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description="Kill and stop a system's processes at random.")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--rate", type=float, default=200.0, help="quotes per second")
    parser.add_argument("--market", action="store_true", help="no feed handler, and no network")
    parser.add_argument("--in-namespace", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help="a new folder for the bus and the logs")
    options = parser.parse_args()
    if not options.market and not options.in_namespace:
        again = ["--seed", str(options.seed), "--in-namespace"]
        return enter_namespace([*sys.argv[1:], *again])
    market: bool = options.market
    if not market:
        lay_cable()
    print(f"chaos: seed={options.seed} seconds={options.seconds}", flush=True)
    if options.keep is not None:
        options.keep.mkdir(mode=0o700)
        wrong = run(options.keep, options.seconds, options.seed, options.rate, market=market)
    else:
        shm = Path("/dev/shm")
        with tempfile.TemporaryDirectory(
            prefix="chronicle-chaos-", dir=shm if shm.is_dir() else None
        ) as folder:
            wrong = run(Path(folder), options.seconds, options.seed, options.rate, market=market)
    for line in wrong[:50]:
        print(f"WRONG {line}")
    print("every order is accounted for" if not wrong else f"{len(wrong)} things are wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
