"""The commands that write reports, used as people use them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chronicle.cli import main, measure
from chronicle.report import read_run

from tests.queue_support import fill, publisher
from tests.unit.test_report import assert_loads_nothing

FIGURE = {
    "name": "append(bytes)",
    "value": 40.0,
    "unit": "ns",
    "floor": 20.0,
    "floor_name": "empty call",
    "ratio": 2.0,
}


@pytest.fixture
def _figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the seconds that the other half of `bench` takes; tests/unit/test_cli.py runs it."""
    monkeypatch.setattr(measure, "measure_all", lambda folder: [dict(FIGURE)])


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.usefixtures("_figures")
def test_bench_writes_a_report_and_compares_it_with_an_earlier_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.html", tmp_path / "new.html"
    fast = ("bench", "--path", folder, "--peers", "none", "--seconds", "0.02", "--report")
    assert run(*fast, old, "--json") == 0
    assert json.loads(capsys.readouterr().out)["figures"] == [FIGURE]
    assert run(*fast, new, "--compare", old) == 0
    assert "append(bytes)" in capsys.readouterr().out
    made = read_run(new)
    assert [(figure.name, figure.ratio) for figure in made.figures] == [("append(bytes)", 2.0)]
    assert [(one.name, one.histogram.count) for one in made.series] == [("chronicle", 200)]
    assert made.machine.keys() >= {"cpu", "kernel", "isolated cores", "preemption"}
    text = new.read_text(encoding="utf-8")
    found = assert_loads_nothing(text)
    shown = "".join(found.text)
    assert "against earlier runs" in shown
    assert "ratio: old" in shown
    assert read_run(old).taken in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.html", "old.html"]


@pytest.mark.usefixtures("_figures")
def test_what_cannot_work_fails_before_anything_is_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    def never(folder: str) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(measure, "measure_all", never)
    page = tmp_path / "x.html"
    assert run("bench", "--path", folder, "--report", page, "--peers", "pipe,carrier") == 1
    assert "unknown peers: found='carrier'" in capsys.readouterr().err
    assert run("bench", "--path", folder, "--report", page, "--compare", tmp_path / "no") == 1
    assert "check the path" in capsys.readouterr().err
    assert run("bench", "--path", folder, "--report", tmp_path / "no" / "x.html") == 1
    assert "no such directory" in capsys.readouterr().err
    assert run("bench", "--path", folder, "--compare", page) == 1
    assert "--report" in capsys.readouterr().err


def test_a_bus_is_reported_to_a_file_or_to_stdout(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with publisher(folder / "bus" / "ticks") as writer:
        fill(writer, 10)
    page = folder / "page.html"
    assert run("report", folder / "bus", "-o", page) == 0
    assert capsys.readouterr().out == ""
    first = read_run(page)
    assert [table.title for table in first.tables] == ["Queues"]
    assert run("report", folder / "bus", "--seconds", "0.2", "--compare", page) == 0
    text = capsys.readouterr().out
    assert_loads_nothing(text)
    page.write_text(text, encoding="utf-8")
    assert "messages/s" in read_run(page).tables[0].columns


def test_report_says_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", folder / "nowhere", "-o", folder / "x.html") == 1
    assert "no such directory: bus=" in capsys.readouterr().err
    assert run("report", folder, "-o", folder / "x.html") == 1
    assert "nothing to report: bus=" in capsys.readouterr().err
    assert run("report", folder) == 1
    assert "nothing to report" in capsys.readouterr().err
    assert list(folder.iterdir()) == []
