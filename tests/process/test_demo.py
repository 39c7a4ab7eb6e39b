"""The demo runs, and what it prints is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / "demo.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
    )


def row(output: str, name: str) -> list[int]:
    """Return the whole numbers behind the name of a row."""
    found = re.search(rf"^ *{re.escape(name)} +(.*)$", output, re.MULTILINE)
    assert found is not None, f"{name} is not in:\n{output}"
    return [int(text.replace(",", "")) for text in re.findall(r"[\d,]+(?= |$)", found[1])]


def check_story(output: str) -> None:
    """Check the numbers of the output against each other."""
    asked = row(output, "orders/alpha/out")[0] + row(output, "orders/beta/out")[0]
    assert row(output, "gateways/main/exchange")[0] <= asked
    for thread in ("exchanges/sim", "gateways/main router", "orders/alpha", "orders/beta"):
        inputs, calls, allocations = row(output.partition("hot threads did")[2], thread)[:3]
        assert inputs > 0, thread
        assert (calls, allocations) == (0, 0), thread
    assert "FAILED" not in output
    assert len(re.findall(r"^ok ", output, re.MULTILINE)) == 4


def test_the_demo_without_packets_tells_a_true_story():
    run = demo("--path", "queue", "--seconds", "2")
    assert run.stderr == ""
    check_story(run.stdout)
    assert run.returncode == 0


def test_a_process_that_does_not_come_up_is_named_and_nothing_stays_behind(tmp_path: Path):
    run = demo("--path", "queue", "--seconds", "1", "--bus", str(tmp_path / "bus"), "--rate", "0")
    assert run.returncode == 1
    assert "demo: market ended with status 1" in run.stderr
    assert "ZeroDivisionError" in run.stderr
