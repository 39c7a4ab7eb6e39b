"""Replay of a whole trading day's capture, and of runs whose process was killed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chronicle.feeds import import_capture, message_classes
from chronicle.feeds.iex import Trade
from chronicle.hot.acks import ReaderAdded, ReaderRemoved
from chronicle.hot.program import import_handler
from chronicle.hot.replay import replay
from chronicle.hot.thread import HotThread
from chronicle.message import MessageBase

from tests.feeds_support import IEX_FILE, sample
from tests.queue_support import PATIENCE_S, Child, publisher, subscriber
from tests.replay_support import contents, until

FULL = os.environ.get("CHRONICLE_FIRE") == "full"
KILLS = 20 if FULL else 4
# Of the capture's messages, between what the sidecar does.
CHUNK = 4_000
SMALL: dict[str, Any] = {"segment_bytes": 1 << 20}

HANDLER = '''
"""What trades tell, by symbol; written into a file of its own, to be changed by one line."""

from typing import Annotated, Any

from chronicle.feeds.iex import BuyLevel, SellLevel, Trade, TradingStatus
from chronicle.hot import (
    Cells, Counter, Handler, Info, Output, SourceAdded, SourceRemoved, Table, mix64, on, symbol_key,
)
from chronicle.message import Array, MessageBase, char8, f64, i64, message, u32


@message(701)
class Large(MessageBase):
    symbol: char8
    cause: i64
    size: u32
    source: u32
    average: f64
    now_ns: i64


@message(702)
class SetLarge(MessageBase):
    size: i64


@message(703)
class Average(MessageBase):
    key: i64
    value: f64
    volume: i64


class Tape(Handler):
    large: i64 = 400
    averages: Annotated[Any, Table(Average, 16_384)]
    sources: Annotated[Cells[int], Array(i64, 16)]
    quotes: i64
    idles: i64
    last_ns: i64
    alerts: Output
    told: Output
    trades: Counter
    full: Counter

    @on(Trade)
    def trade(self, trade: Trade, info: Info) -> None:
        self.trades.add(1)
        self.sources[info.source % 16] += 1
        key = symbol_key(trade.symbol)
        at = mix64(key) % 16_384
        probes = 0
        while self.averages[at].key != key and self.averages[at].key != 0 and probes < 16:
            at = (at + 1) % 16_384
            probes += 1
        if probes == 16:
            self.full.add(1)
            return
        row = self.averages[at]
        row.key = key
        row.volume += trade.size
        row.value += (trade.price - row.value) * trade.size / row.volume
        if trade.size >= self.large:
            self.alerts.publish(
                Large(
                    symbol=trade.symbol,
                    cause=info.seq,
                    size=trade.size,
                    source=info.source,
                    average=row.value,
                    now_ns=self.now_ns,
                )
            )

    @on(BuyLevel)
    def buy(self, level: BuyLevel, info: Info) -> None:
        self.quotes += 1
        self.last_ns = self.now_ns - info.timestamp_ns

    @on(SellLevel)
    def sell(self, level: SellLevel, info: Info) -> None:
        self.quotes += 1
        self.last_ns = self.now_ns - info.timestamp_ns

    @on.command(SetLarge)
    def set_large(self, command: SetLarge, info: Info) -> None:
        self.large = command.size
        self.last_ns = info.timestamp_ns

    @on(SourceAdded)
    def added(self, event: SourceAdded) -> None:
        self.told.publish(SetLarge(size=event.source))

    @on(SourceRemoved)
    def removed(self, event: SourceRemoved) -> None:
        self.told.publish(SetLarge(size=-1 - event.source))

    @on.idle
    def idle(self) -> None:
        self.idles += 1
        self.last_ns = self.now_ns
'''


def deep() -> Iterator[tuple[int, MessageBase]]:
    """Yield the capture's messages with their times."""
    classes = message_classes("iex")
    with import_capture(sample(IEX_FILE)) as capture:
        for batch in capture:
            for _, timestamp_ns, found in batch.messages(classes):
                assert isinstance(found, MessageBase)
                yield timestamp_ns, found


def chronicle_replay(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run the command where the handler's module is."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "chronicle.cli", "replay", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.stderr == "", done.stderr
    return done.returncode, done.stdout


class DeepRun:
    """A journalled run over the capture: two feeds split by symbol, and readers that come and go.

    Late readers read the first feed again from its beginning, or from where it is now.
    """

    def __init__(self, folder: Path) -> None:
        (folder / "tape.py").write_text(HANDLER)
        sys.path.insert(0, str(folder))
        self.folder = folder
        self.handler = import_handler("tape:Tape")
        self.set_large = sys.modules["tape"].SetLarge
        classes = list(message_classes("iex").values())
        self.feeds = [publisher(folder / f"feed-{n}", schema=classes, **SMALL) for n in (0, 1)]
        output_classes = [sys.modules["tape"].Large, self.set_large]
        self.outputs = {
            name: publisher(folder / name, schema=output_classes, **SMALL)
            for name in ("alerts", "told")
        }
        self.journal = publisher(folder / "journal", **SMALL)
        self.rng = random.Random(17)
        self.expected = 0
        self.late: dict[int, int] = {}
        self.commands = self.handed_in = 0

    def run(self) -> None:
        readers = [subscriber(self.folder / f"feed-{n}", f"first-{n}") for n in (0, 1)]
        self.hot = HotThread(
            self.handler,
            readers=readers,
            outputs=self.outputs,
            journal=self.journal,
            wait="hybrid",
            name="tape",
        )
        with self.hot:
            for number, (timestamp_ns, found) in enumerate(deep()):
                feed = sum(getattr(found, "symbol", b"")) % 2
                self.feeds[feed].publish(found, timestamp_ns=timestamp_ns)
                self.expected += 1 + sum(1 for source in self.late.values() if source == feed)
                if number % CHUNK == CHUNK - 1:
                    self.act()
            self.settle()
        for reader in readers:
            reader.close()
        for writer in [*self.feeds, *self.outputs.values(), self.journal]:
            writer.close()

    def settle(self) -> None:
        until(lambda: self.hot.status.messages == self.expected)

    def act(self) -> None:
        """Do one of the things that a sidecar does."""
        match self.rng.randrange(4):
            case 0:
                size = self.rng.randrange(300, 500)
                self.hot.wait_for(self.hot.send(self.set_large(size=size)), PATIENCE_S)
                self.commands += 1
            case 1 | 2 if len(self.late) < 4:
                feed = self.rng.randrange(2)
                last = self.feeds[feed].next_seq
                start = max(1, last - self.rng.randrange(2_000))
                self.handed_in += 1
                name = f"late-{self.handed_in}"
                reader = subscriber(self.folder / f"feed-{feed}", name, start=start)
                ack = self.hot.wait_for(self.hot.add_reader(reader), PATIENCE_S)
                assert isinstance(ack, ReaderAdded)
                self.late[ack.source] = feed
                self.expected += last - start
            case _ if self.late:
                self.settle()
                source = self.rng.choice(list(self.late))
                ack = self.hot.wait_for(self.hot.remove_reader(source), PATIENCE_S)
                assert isinstance(ack, ReaderRemoved)
                ack.reader.close()
                del self.late[source]
            case _:
                self.settle()


@pytest.fixture
def deep_run(folder: Path) -> Iterator[DeepRun]:
    run = DeepRun(folder)
    try:
        run.run()
        yield run
    finally:
        sys.path.remove(str(folder))
        del sys.modules["tape"]


def test_a_run_over_the_deep_capture_replays_identically_and_one_changed_line_is_caught(
    deep_run: DeepRun,
) -> None:
    folder = deep_run.folder
    before = {name: contents(folder / name) for name in ("alerts", "told")}
    assert deep_run.commands > 5
    assert deep_run.handed_in > 5
    assert deep_run.expected > 392_000
    assert len(before["alerts"]) > 1_000

    code, text = chronicle_replay(folder, "journal", "--json")
    report = json.loads(text)
    assert (code, report["verdict"], report["state"]) == (0, "identical", "identical"), text
    assert report["same_code"] is True
    assert report["inputs"]["message"] == deep_run.expected
    assert report["inputs"]["command"] == deep_run.commands
    counts = {output["name"]: output["identical"] for output in report["outputs"]}
    assert counts == {name: len(found) for name, found in before.items()}

    path = folder / "tape.py"
    changed = path.read_text().replace("trade.size >= self.large", "trade.size > self.large")
    path.write_text(changed)
    code, text = chronicle_replay(folder, "journal", "--json")
    report = json.loads(text)
    assert (code, report["verdict"], report["same_code"]) == (1, "different", False), text
    # Which alert that is can be told from the alerts themselves, and the commands before them.
    found = report["difference"]
    missing, cause = first_alert_at_the_limit(folder)
    assert (found["kind"], found["name"], found["seq"]) == ("output", "alerts", missing)
    assert found["expected_message"]["fields"]["cause"] == cause
    assert found["expected_message"]["type"] == "Large"
    code, text = chronicle_replay(folder, "journal")
    assert code == 1
    assert f"first difference: output 'alerts', message seq={missing}" in text
    assert "it was: Trade" in text
    # Nothing was written to.
    assert {name: contents(folder / name) for name in before} == before


def first_alert_at_the_limit(folder: Path) -> tuple[int, int]:
    """Return the number of the first alert whose size is exactly the limit, and its cause.

    The naive way: the journal in Python, with the limit of each moment.
    """
    limit, alerts = 400, 0
    readers = [dict(by_seq(folder / f"feed-{n}")) for n in (0, 1)]
    feeds = {0: readers[0], 1: readers[1]}
    for _, type_id, _, data in contents(folder / "journal"):
        number = int.from_bytes(data[4:8], "little")
        seq = int.from_bytes(data[8:16], "little")
        if type_id == 65_105:
            feeds[number] = readers[int(json.loads(data[32:])["path"][-1])]
        elif type_id == 65_103:
            limit = int.from_bytes(data[32:40], "little", signed=True)
        elif type_id == 65_102 and data[0] == 0:
            size = feeds[number].get(seq, -1)
            if size >= limit:
                alerts += 1
                if size == limit:
                    return alerts, seq
    raise AssertionError("no alert is exactly at the limit")


def by_seq(path: Path) -> Iterator[tuple[int, int]]:
    """Yield number and size of each trade."""
    for seq, type_id, _, data in contents(path):
        if type_id == Trade.type_id:
            yield seq, Trade.view(data).size


# --- Killed ---

VICTIM = """
from tests.replay_support import Folds, Session, SetAlpha
session = Session(Path(args[0]), Folds())
session.hot.start()
say("running")
price = 0
source = None
while True:
    price += 1
    session.tick(price % 3, price)
    if price % 50 == 0:
        session.command(SetAlpha(alpha=0.1))
    if price % 100 == 25:
        source = session.add(2)
    if price % 100 == 75:
        session.remove(source)
    if price == 300:
        say("well under way")
"""


def test_a_run_whose_process_was_killed_is_compared_as_far_as_it_goes(folder: Path) -> None:
    rng = random.Random(23)
    journal = folder / "journal"
    first = {"seen": 1, "told": 1}
    for number in range(1, KILLS + 1):
        with Child(VICTIM, folder) as child:
            child.expect("running")
            child.expect("well under way")
            # Where it is killed differs, and does not decide what must hold.
            until(lambda: rng.random() < 0.2)
            child.kill()
        before = {name: contents(folder / name) for name in ("seen", "told")}
        report = replay(journal)
        assert report.difference is None, report
        assert (report.verdict, report.state) == ("unproved", "not compared")
        assert "ended before it stopped its hot thread" in report.unproved[0]
        assert len(report.unproved) == 1, report
        assert (report.run, report.runs) == (number, number)
        assert report.inputs["message"] > 200
        # Every message that the run has published was compared.
        for output in report.outputs:
            assert output.equal == before[output.name][-1][0] - first[output.name] + 1
        first = {name: records[-1][0] + 1 for name, records in before.items()}
        assert {name: contents(folder / name) for name in before} == before
    # Earlier runs are replayed as well, although others have written to the outputs since.
    for number in range(1, KILLS):
        report = replay(journal, run=number)
        assert report.difference is None, report
        assert report.verdict == "unproved"
