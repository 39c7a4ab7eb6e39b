"""The demo runs, and what it prints is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import net_support

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


THREADS = ("exchanges/sim", "gateways/main router", "orders/alpha", "orders/beta")
FEED_THREADS = ("streams/iex feed", "streams/iex snapshot")


def check_story(output: str, threads: tuple[str, ...], verdicts: int) -> None:
    """Check the numbers of the output against each other."""
    asked = row(output, "orders/alpha/out")[0] + row(output, "orders/beta/out")[0]
    assert row(output, "gateways/main/exchange")[0] <= asked
    for thread in threads:
        inputs, calls, allocations = row(output.partition("hot threads did")[2], thread)[:3]
        # Of alpha it is the second life, which may have come when all was over.
        assert inputs > 0 or thread == "orders/alpha", thread
        assert (calls, allocations) == (0, 0), thread
    assert "FAILED" not in output
    assert len(re.findall(r"^ok ", output, re.MULTILINE)) == verdicts


def test_the_demo_without_packets_tells_a_true_story() -> None:
    run = demo("--path", "queue", "--seconds", "2")
    assert run.stderr == ""
    check_story(run.stdout, THREADS, 4)
    assert run.returncode == 0


@pytest.mark.parametrize("path", ["veth", "loopback"])
def test_the_demo_with_packets_tells_a_true_story(path: str) -> None:
    if (reason := net_support.missing()) is not None:
        pytest.skip(reason)
    before = set(Path("/sys/class/net").iterdir())
    run = demo("--path", path, "--seconds", "2")
    assert run.stderr == ""
    check_story(run.stdout, THREADS + FEED_THREADS, 5)
    packets = re.search(r"^feed: ([\d,]+) packets", run.stdout, re.MULTILINE)
    messages = re.search(r"([\d,]+) sent, ([\d,]+) published, 0 lost", run.stdout)
    assert messages is not None
    assert messages[1] == messages[2] == "10,000"
    assert packets is not None
    # A ring that was full loses nothing either: recovery has it.
    assert int(packets[1].replace(",", "")) > 0
    assert run.returncode == 0
    # Other tests make and remove interfaces too; those of the demo begin with its own mark.
    left = {path.name for path in set(Path("/sys/class/net").iterdir()) - before}
    assert not [name for name in left if name.startswith("demo")]


def test_a_capture_without_packets_is_refused_with_what_to_do() -> None:
    run = demo("--path", "queue", "--file", "capture.pcap")
    assert run.returncode == 1
    assert run.stderr == "demo: a capture needs packets: --path veth or loopback, as root\n"


def test_a_process_that_does_not_come_up_is_named_and_nothing_stays_behind(tmp_path: Path) -> None:
    run = demo("--path", "queue", "--seconds", "1", "--bus", str(tmp_path / "bus"), "--rate", "0")
    assert run.returncode == 1
    assert "demo: market ended with status 1" in run.stderr
    assert "ZeroDivisionError" in run.stderr
