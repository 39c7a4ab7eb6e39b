"""``chronicle audit``, and `chronicle.hot.audit.audit` behind it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from chronicle.cli import main
from chronicle.errors import BadArgument
from chronicle.hot import Handler
from chronicle.hot.audit import audit

from tests.hot_books import OrderBook
from tests.hot_handlers import GapTracker, Summary, TokenBucket, Volatility

FLOAT = "from chronicle.hot import Handler\nclass Good(Handler):\n    mean: float\n"
GOOD = """
from chronicle.hot import Handler, Output, on
from chronicle.message import MessageBase, f64, message
import math

@message(1)
class Tick(MessageBase):
    price: f64

class Good(Handler):
    last: f64
    out: Output
    @on(Tick)
    def tick(self, tick: Tick) -> None:
        self.last = math.log(tick.price)
        self.out.publish(tick)
"""
BAD = GOOD.replace("self.out.publish(tick)", "print(tick.price)\n        x = [1]")


@pytest.fixture
def module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return folder / "strategy.py"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    sys.modules.pop("strategy", None)
    code = main(["audit", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_good_handler_is_told_with_all_that_it_can_reach(
    module: Path, capsys: pytest.CaptureFixture[str]
):
    module.write_text(GOOD)
    code, out, err = run(capsys, "strategy:Good")
    assert (code, err) == (0, "")
    for expected in ("Tick", "Good.tick", "strategy.py:14", "out", "chr_hot_append, log", "stack"):
        assert expected in out
    assert "'strategy:Good' may run on a hot thread" in out
    _, again, _ = run(capsys, "strategy.py:Good")
    assert "from the cache in" in again or "to compile" in again


def test_a_bad_one_is_refused_with_places_and_remedies(
    module: Path, capsys: pytest.CaptureFixture[str]
):
    module.write_text(BAD)
    code, out, _ = run(capsys, "strategy:Good")
    assert code == 1
    assert "strategy.py:16: a call of print()" in out
    assert "    -> use self.log.info('price {}', price)" in out
    assert "strategy.py:17: building a list" in out
    assert "is refused, for 2 reasons" in out


def test_json_has_the_same_facts(module: Path, capsys: pytest.CaptureFixture[str]):
    module.write_text(GOOD)
    code, out, _ = run(capsys, "strategy:Good", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["accepted"] is True
    assert facts["findings"] == []
    assert facts["reach"]["takes"] == ["Tick"]
    assert facts["reach"]["core"] == ["chr_hot_append"]
    assert facts["reach"]["libm"] == ["log"]
    assert facts["state_bytes"] == 8
    assert facts["code_bytes"] > 0
    assert facts["compile_ns"] > 0

    module.write_text(BAD)
    code, out, _ = run(capsys, "strategy.py:Good", "--json")
    facts = json.loads(out)
    assert code == 1
    assert facts["accepted"] is False
    assert facts["reach"] is None
    assert [finding["line"] for finding in facts["findings"]] == [16, 17]
    assert {finding["net"] for finding in facts["findings"]} == {"source"}


@pytest.mark.parametrize(
    ("text", "source", "told"),
    [
        ("nosuch:Good", GOOD, "there is no module 'nosuch' here"),
        ("strategy:Nope", GOOD, "is nothing; handlers there: strategy:Good"),
        ("strategy:Tick", GOOD, "which is no handler; handlers there: strategy:Good"),
        ("strategy:math", GOOD, "is a module, which is no handler"),
        ("nosuch.py:Good", GOOD, "there is no file 'nosuch.py'"),
        ("strategy:Good", "import nosuch_package\n", "it needs 'nosuch_package'; install it"),
        ("strategy:Good", "x = 1 +\n", "SyntaxError at"),
        ("strategy:Good", "raise RuntimeError('no feed')\n", "RuntimeError at"),
        ("strategy:Good", FLOAT, "strategy.py:2: field 'mean' of handler 'Good'"),
        ("strategy:Good", FLOAT, "write f64, or another of"),
        ("strategy", "x = 1\n", "names no handler; it has: none"),
        ("strategy.py:Good", "open('/nosuch/file')\n", "cannot be imported"),
    ],
)
def test_what_cannot_be_imported_is_told_with_a_cure(
    module: Path, capsys: pytest.CaptureFixture[str], text: str, source: str, told: str
):
    module.write_text(source)
    code, out, err = run(capsys, text)
    assert code == 1
    assert out == ""
    assert told in err
    assert err.count("\n") == 1


def test_a_handler_that_takes_nothing_is_told_how_to(
    module: Path, capsys: pytest.CaptureFixture[str]
):
    module.write_text("from chronicle.hot import Handler\nclass Deaf(Handler):\n    pass\n")
    code, out, _ = run(capsys, "strategy:Deaf")
    assert code == 0
    assert "no messages: mark methods with @chronicle.on" in out


def test_the_one_handler_of_a_module_needs_no_name(
    module: Path, capsys: pytest.CaptureFixture[str]
):
    module.write_text(GOOD)
    assert run(capsys, "strategy")[0] == 0
    module.write_text(GOOD + "\nclass Other(Good):\n    pass\n")
    code, _, err = run(capsys, "strategy.py")
    assert code == 1
    assert "strategy.py:Good, strategy.py:Other" in err


def test_it_runs_as_a_command(folder: Path):
    (folder / "strategy.py").write_text(BAD)
    done = subprocess.run(
        [sys.executable, "-m", "chronicle.cli", "audit", "strategy:Good"],
        capture_output=True,
        cwd=folder,
        text=True,
    )
    assert done.returncode == 1
    assert "is refused" in done.stdout
    assert done.stderr == ""


def test_a_verdict_names_commands_events_hooks_and_outputs():
    verdict = audit(TokenBucket)
    assert verdict.accepted
    assert verdict.reach is not None
    assert verdict.reach.takes == ("Trade", "command SetLimit")
    assert verdict.reach.publishes == ("out",)
    assert set(verdict.reach.core) == {"chr_hot_append", "chr_hot_log"}
    gaps = audit(GapTracker()).reach
    assert gaps is not None
    assert "event SourceGap" in gaps.takes
    summary = audit(Summary).reach
    assert summary is not None
    assert summary.hooks == ("start", "stop")


def test_a_verdict_names_helpers_and_mathematics():
    book = audit(OrderBook).reach
    assert book is not None
    assert [name for name, _, _ in book.functions] == [
        "OrderBook.buy",
        "OrderBook.sell",
        "OrderBook.update",
        "OrderBook.tell",
    ]
    volatility = audit(Volatility, use_cache=False)
    assert not volatility.cached
    assert volatility.reach is not None
    assert volatility.reach.libm == ("log",)


@pytest.mark.parametrize("thing", [int, Handler, object(), "strategy:Good"])
def test_what_is_no_handler_is_told_so(thing: object):
    with pytest.raises(BadArgument, match="expected=a class derived from Handler"):
        audit(thing)  # type: ignore[arg-type]
