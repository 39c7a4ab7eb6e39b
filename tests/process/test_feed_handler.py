"""The feed handler as a process, on a real veth pair: what it publishes is what was sent.

Sender and recovery server are `examples/feed_sender.py` in a network namespace of their own; the
handler is `examples/feed_handler.py`, under the guard in `enforce`. What is expected comes from the
decoder of captures, which shares nothing with the handler but the table of layouts.
"""

from __future__ import annotations

import bisect
import contextlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle.bus import Bus
from chronicle.feeds import import_capture
from chronicle.feeds.books import Books, JoinLive
from chronicle.feeds.continuity import StreamRestart
from chronicle.feeds.generate import udp_frame
from chronicle.feeds.iex import BuyLevel, SellLevel
from chronicle.feeds.snapshot import SNAPSHOT_CLASSES
from chronicle.feeds.stream import RESTARTED, FeedGap, FeedMark
from chronicle.hot import Info
from chronicle.hot.compile import program_for
from chronicle.message import MessageBase

from tests.feeds_support import IEX_FILE, pcap, sample
from tests.net_support import Link, missing
from tests.property.test_books import Book, shown
from tests.queue_support import ROOT
from tests.sidecar_support import eventually

MISSING = missing()
pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.timeout(240),
]

FULL = os.environ.get("CHRONICLE_FIRE") == "full"
LINES = ("239.215.21.4:10378", "239.215.21.132:10378")
POOR = ("--loss", "0.01", "--double", "0.01", "--late", "0.05")
#: Type id and payload.
Record = tuple[int, bytes]


class System:
    """A sender in the other namespace, and a feed handler here."""

    def __init__(self, link: Link, folder: Path, *arguments: str) -> None:
        self.link = link
        self.streams = folder / "bus" / "streams" / "iex"
        self._log = folder / "log"
        self._handler: subprocess.Popen[bytes] | None = None
        self._sender = link.popen(
            [
                *(sys.executable, "-W", "error", "examples/feed_sender.py", "--wait"),
                *("--address", link.peer_address, "--lines", *LINES, *arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._sender.stdout is not None
        line = self._sender.stdout.readline()
        assert line, "the sender has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def start(self) -> None:
        """Start the handler, and wait until it is ready."""
        with self._log.open("ab") as log:
            self._handler = subprocess.Popen(
                [
                    *(sys.executable, "-W", "error", "examples/feed_handler.py"),
                    *(str(self.streams.parents[1]), "--interface", self.link.interface),
                    *("--lines", *LINES, "--recovery", self.facts["recovery"]),
                    *("--live-mib", "16"),
                ],
                cwd=ROOT,
                stderr=log,
            )
        eventually(self._is_ready, "READY")

    def _is_ready(self) -> bool:
        assert self._handler is not None
        assert self._handler.poll() is None, self._log.read_text()[-3_000:]
        status = Bus(self.streams.parents[1]).status("streams/iex")
        return status.ready and status.lease is not None and status.lease.pid == self._handler.pid

    def send(self) -> None:
        """Let the sender begin."""
        assert self._sender.stdin is not None
        self._sender.stdin.write("\n")
        self._sender.stdin.flush()

    def sent(self) -> dict[str, Any]:
        """Wait until everything is sent."""
        return self._hear()

    def kill(self) -> None:
        assert self._handler is not None
        self._handler.kill()
        self._handler.wait()

    def stop(self) -> None:
        """Ctrl-C; the handler must end in order, and no hot thread may have failed."""
        assert self._handler is not None
        self._handler.send_signal(signal.SIGINT)
        assert self._handler.wait(60) == 0, self._log.read_text()[-3_000:]

    def counters(self) -> dict[str, int]:
        """What the last life of the handler has counted, as it said at its end."""
        line = [each for each in self._log.read_text().splitlines() if " ends: " in each][-1]
        text = line.partition(" ends: ")[2].partition("}")[0].replace("'", '"')
        found: dict[str, int] = json.loads(text + "}")
        return found

    def close(self) -> None:
        if self._handler is not None and self._handler.poll() is None:
            self.kill()
        assert self._sender.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._sender.stdin.close()
        try:
            self._sender.wait(30)
        finally:
            self._sender.kill()
            self._sender.wait()
            assert self._sender.stdout is not None
            self._sender.stdout.close()


@pytest.fixture
def system(link: Link, folder: Path) -> Iterator[Any]:
    made: list[System] = []

    def make(*arguments: str) -> System:
        made.append(System(link, folder, *arguments))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Live:
    """Reads the live queue, and holds it against what is expected, as it comes."""

    def __init__(self, system: System, runs: Sequence[Sequence[Record]]) -> None:
        self.reader = chronicle.Queue.open_subscriber(
            system.streams / "live", None, start="earliest"
        )
        self._runs = runs
        self.run = 0
        self.next = 1
        self.taken = 0

    def take(self) -> bool:
        """Check one message; return whether there was one."""
        message = self.reader.next()
        if message is None:
            return False
        type_id, payload = message.type_id, bytes(message.payload)
        if type_id == FeedMark.type_id:
            mark = FeedMark.view(payload)
            if mark.reason == RESTARTED:
                assert self.next == mark.previous_next == len(self._runs[self.run]) + 1
                self.run, self.next = self.run + 1, 1
            assert mark.next == self.next
        else:
            assert type_id != FeedGap.type_id
            expected_type, expected = self._runs[self.run][self.next - 1]
            assert type_id == expected_type, (self.run, self.next)
            assert payload == expected, (self.run, self.next)
            self.next += 1
            self.taken += 1
        return True

    def take_until(self, count: int) -> None:
        """Check messages until so many of the feed were seen."""
        while self.taken < count:
            eventually(self.take, f"message {self.taken} of the feed")

    def assert_complete(self) -> None:
        self.take_until(sum(map(len, self._runs)))
        while self.take():
            pass
        assert (self.run, self.next) == (len(self._runs) - 1, len(self._runs[-1]) + 1)
        self.reader.close()


def expected_runs(path: Path) -> list[list[Record]]:
    """Return the records of each run of a capture, by the decoder of captures."""
    runs: list[list[Record]] = [[]]
    with import_capture(path) as capture:
        for batch in capture:
            for type_id, _, found in batch.messages(capture.classes):
                if isinstance(found, StreamRestart):
                    runs.append([])
                else:
                    payload = bytes(found) if isinstance(found, memoryview) else found.pack()
                    runs[-1].append((type_id, payload))
        assert capture.counts.gaps == capture.counts.duplicates == 0
    return runs


@pytest.fixture(scope="module")
def real_runs() -> list[list[Record]]:
    return expected_runs(sample(IEX_FILE))


def made_up(folder: Path, *, count: int, runs: int) -> list[list[Record]]:
    """Return the records of the sender's made-up market."""
    spec = importlib.util.spec_from_file_location("feed_sender", ROOT / "examples/feed_sender.py")
    assert spec is not None
    assert spec.loader is not None
    sender = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sender)
    file = folder / "made-up.pcap"
    file.write_bytes(pcap(udp_frame(packet) for packet in sender.generated(1, count, runs)))
    return expected_runs(file)


@pytest.mark.needs_data
def test_a_real_capture_arrives_with_exact_counts_and_fields(
    system: Any, real_runs: list[list[Record]]
):
    assert (len(real_runs), sum(map(len, real_runs))) == (12, 391_999)
    made = system("--file", str(sample(IEX_FILE)), "--rate", "12000")
    assert (made.facts["packets"], made.facts["messages"]) == (121_314, 391_999)
    made.start()
    live = Live(made, real_runs)
    made.send()
    live.assert_complete()
    assert made.sent()["datagrams"] == 2 * 121_314
    made.stop()
    counters = made.counters()
    assert (counters["messages"], counters["restarts"]) == (391_999, 11)
    assert "lost" not in counters


@pytest.mark.needs_data
def test_a_real_capture_is_exact_over_poor_lines_and_a_session_that_is_cut_ten_times(
    system: Any, real_runs: list[list[Record]]
):
    made = system("--file", str(sample(IEX_FILE)), "--rate", "12000", *POOR, "--cuts", "10")
    made.start()
    live = Live(made, real_runs)
    made.send()
    live.assert_complete()
    assert made.sent()["cuts"] == 10
    made.stop()
    counters = made.counters()
    assert (counters["messages"], counters["restarts"]) == (391_999, 11)
    assert counters["recovered"] > 10
    assert "lost" not in counters


@pytest.mark.needs_data
def test_a_real_capture_is_exact_though_the_handler_is_killed(
    system: Any, real_runs: list[list[Record]]
):
    made = system("--file", str(sample(IEX_FILE)), "--rate", "12000", *POOR, "--cuts", "3")
    made.start()
    live = Live(made, real_runs)
    made.send()
    random_ = random.Random(4)
    for _ in range(10 if FULL else 4):
        live.take_until(min(live.taken + random_.randint(100, 60_000), 390_000))
        made.kill()
        made.start()
    live.assert_complete()
    made.stop()


def test_a_made_up_market_is_exact_over_poor_lines_cuts_and_kills(system: Any, folder: Path):
    count = 201_000 if FULL else 21_000
    runs = made_up(folder, count=count, runs=3)
    made = system("--count", str(count), "--runs", "3", "--rate", "5000", *POOR, "--cuts", "5")
    assert made.facts["messages"] == sum(map(len, runs)) == count
    made.start()
    live = Live(made, runs)
    made.send()
    for killed in range(1, 4 if FULL else 3):
        live.take_until(killed * count // 4)
        made.kill()
        made.start()
    live.assert_complete()
    made.stop()


# --- Late joiners ---

BOOK_CLASSES: dict[int, type[MessageBase]] = {
    cls.type_id: cls for cls in (BuyLevel, SellLevel, FeedMark, FeedGap, *SNAPSHOT_CLASSES)
}


class Joiner:
    """Joins late, with the books as an ordinary object, and notes every book that it shows."""

    def __init__(self, streams: Path) -> None:
        live = chronicle.Queue.open_subscriber(streams / "live", None, start="latest")
        snapshot = chronicle.Queue.open_subscriber(streams / "snapshot", None, start="latest")
        self.books = Books()
        self.first = live.next_seq
        self._fanin = chronicle.FanInReader([live, snapshot])
        self.read = self.first - 1
        self.books.receive(JoinLive(live_from=self.first), kind="command")
        self.shown: list[tuple[int, bytes, Book]] = []

    def take(self) -> bool:
        """Read one message, and note what has become of the book that it is about."""
        message = self._fanin.next()
        if message is None:
            return False
        if message.source == 0:
            self.read = message.seq
        cls = BOOK_CLASSES.get(message.type_id)
        if cls is None:
            return True
        found = cls.view(bytes(message.payload))
        self.books.receive(found, Info(seq=message.seq))
        symbol = getattr(found, "symbol", None)
        slot = -1 if symbol is None else self.books.find(symbol)
        if self.books.is_ready(slot):
            seq = max(self.read, self.books.symbols[slot].live_seq)
            assert symbol is not None
            self.shown.append((seq, symbol, shown(self.books, slot)))
        return True

    def close(self) -> None:
        for _, reader in self._fanin.sources:
            reader.close()
        self._fanin.close()


class Oracle:
    """What every book was after each message of a live queue: plain dictionaries, copied."""

    def __init__(self, path: Path) -> None:
        self.messages = 0
        self._states: dict[bytes, tuple[list[int], list[Book]]] = {}
        books: dict[bytes, Book] = {}
        with chronicle.Queue.open_subscriber(path, None, start="earliest") as reader:
            for message in reader:
                self.messages = message.seq
                cls = BOOK_CLASSES.get(message.type_id)
                if cls is None:
                    continue
                found = cls.view(bytes(message.payload))
                if isinstance(found, FeedMark):
                    if found.reason == RESTARTED:
                        for symbol in books:
                            self._note(message.seq, symbol, ({}, {}))
                        books.clear()
                elif isinstance(found, BuyLevel | SellLevel):
                    book = books.setdefault(found.symbol, ({}, {}))
                    side = book[isinstance(found, SellLevel)]
                    side.pop(found.price, None)
                    if found.size:
                        side[found.price] = found.size
                    self._note(message.seq, found.symbol, (dict(book[0]), dict(book[1])))
        self.books = books

    def _note(self, seq: int, symbol: bytes, book: Book) -> None:
        seqs, states = self._states.setdefault(symbol, ([], []))
        seqs.append(seq)
        states.append(book)

    def book(self, seq: int, symbol: bytes) -> Book:
        """Return the book of a symbol after live message `seq`."""
        seqs, states = self._states.get(symbol, ([], []))
        place = bisect.bisect_right(seqs, seq)
        return states[place - 1] if place else ({}, {})


def assert_late_joiners(made: System, messages: int, joins: int, seed: int) -> None:
    """Let joiners come at random while the sender sends, and hold them against the oracle."""
    random_ = random.Random(seed)
    # Compiled before it begins: the market does not wait.
    program_for(Books())
    made.start()
    live = chronicle.Queue.open_subscriber(made.streams / "live", None, start="earliest")
    compiled: list[tuple[chronicle.HotThread, list[chronicle.QueueReader]]] = []
    joiners: list[Joiner] = []
    moments = sorted(random_.sample(range(messages * 3 // 4), joins))
    made.send()
    read = feed = 0

    def follow() -> bool:
        nonlocal read, feed
        while (message := live.next()) is not None:
            read = message.seq
            feed += message.type_id not in (FeedMark.type_id, FeedGap.type_id)
        return feed >= moments[0] if moments else feed >= messages

    while moments:
        eventually(follow, f"message {moments[0]}")
        moments.pop(0)
        joiners.append(Joiner(made.streams))
        compiled.append(compiled_joiner(made.streams))
    # They read on while it goes on; so what comes live and what is in snapshots mingle.
    while not follow():
        for joiner in joiners:
            for _ in range(random_.randint(0, 200)):
                if not joiner.take():
                    break
    made.sent()
    ready: dict[bytes, bool] = {}
    oracle = Oracle(made.streams / "live")

    def all_ready(joiner: Joiner) -> bool:
        for _ in range(2_000):
            joiner.take()
        books = joiner.books
        ready.clear()
        for symbol, (bids, asks) in oracle.books.items():
            if bids or asks:
                ready[symbol] = books.is_ready(books.find(symbol))
        return joiner.read >= oracle.messages and all(ready.values())

    for joiner in joiners:
        eventually(partial(all_ready, joiner), "all books")
        assert joiner.shown
        for seq, symbol, book in joiner.shown:
            assert book == oracle.book(seq, symbol), (seq, symbol)
        assert any(seq < oracle.messages - 100 for seq, _, _ in joiner.shown)
        joiner.close()
    for hot, readers in compiled:
        eventually(partial(is_like, hot, oracle), "the compiled books")
        hot.stop()
        assert hot.failure is None
        for reader in readers:
            reader.close()
    live.close()
    made.stop()


def compiled_joiner(streams: Path) -> tuple[chronicle.HotThread, list[chronicle.QueueReader]]:
    """Start a hot thread that joins late."""
    readers = [
        chronicle.Queue.open_subscriber(streams / name, None, start="latest")
        for name in ("live", "snapshot")
    ]
    books = Books(live_from=readers[0].next_seq)
    hot = chronicle.HotThread(books, readers=readers, wait="sleep", guard="enforce")
    return hot.start(), readers


def is_like(hot: chronicle.HotThread, oracle: Oracle) -> bool:
    """Whether a hot thread has read everything, and has the oracle's books in its state."""
    hot.poll()
    assert hot.failure is None
    books = Books()
    books.load_state(hot.state.tobytes())
    present = {symbol for symbol, (bids, asks) in oracle.books.items() if bids or asks}
    ready = {symbol for symbol in present if books.is_ready(books.find(symbol))}
    if books.seen_seq < oracle.messages - 5_000 or ready != present:
        return False
    found = {symbol: shown(books, books.find(symbol)) for symbol in present}
    return found == {symbol: oracle.books[symbol] for symbol in present}


def test_late_joiners_of_a_made_up_market_have_the_oracles_books(system: Any):
    count = 100_000 if FULL else 12_000
    made = system("--count", str(count), "--runs", "2", "--rate", "3000", *POOR, "--cuts", "2")
    assert_late_joiners(made, count, 3, 11)


@pytest.mark.needs_data
def test_late_joiners_of_a_real_capture_have_the_oracles_books(system: Any):
    made = system("--file", str(sample(IEX_FILE)), "--rate", "12000", *POOR, "--cuts", "2")
    assert_late_joiners(made, 391_999, 4, 12)
