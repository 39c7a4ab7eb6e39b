"""The demo runs, and what it prints is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / "persistence.py"), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=240,
    )


def number(text: str) -> int:
    return int(text.replace(",", ""))


def table(output: str) -> dict[str, list[int]]:
    """Return messages, lost, repeated and gaps of each reader."""
    rows = re.findall(
        r"^(tape-a|tape-b|strategy) +([\d,]+) +(\d+) +(\d+) +(\d+) ", output, re.MULTILINE
    )
    return {name: [number(item) for item in counts] for name, *counts in rows}


def check_story(output: str, count: int) -> None:
    """Check every fact of the output against the others and against what was asked for."""
    assert table(output) == {
        "tape-a": [count, 0, 0, 0],
        "tape-b": [count, 0, 0, 0],
        "strategy": [2 * count, 0, 0, 0],
    }
    killed = re.search(r"^kill -9 .*its last message is ([\d,]+)$", output, re.MULTILINE)
    restarted = re.search(r"goes on at ([\d,]+); epoch 1 -> 2$", output, re.MULTILINE)
    assert killed is not None
    assert restarted is not None
    assert 0 < number(killed[1]) < count
    assert number(restarted[1]) == number(killed[1]) + 1
    around = [number(seq) for seq in re.findall(r"^  a +([\d,]+)  \S", output, re.MULTILINE)]
    assert around == [n for n in range(number(killed[1]) - 1, number(killed[1]) + 3) if n > 0]
    assert "FAILED" not in output
    assert len(re.findall(r"^ok ", output, re.MULTILINE)) == 7


def test_the_demo_tells_a_true_story_of_a_generated_market():
    run = demo("--messages", "4000", "--seconds", "2")
    assert run.stderr == ""
    check_story(run.stdout, 4_000)
    assert run.returncode == 0


def test_the_demo_takes_the_messages_of_a_capture(tmp_path: Path):
    from chronicle.feeds.generate import MarketGenerator, write_pcap

    capture = tmp_path / "two-venues.pcap"
    write_pcap(capture, [MarketGenerator(venue=0), MarketGenerator(venue=1)], count=3_000)
    run = demo("--file", str(capture), "--seconds", "2")
    assert run.stderr == ""
    check_story(run.stdout, 3_000)
    assert run.returncode == 0


def test_the_demo_removes_its_queues():
    run = demo("--messages", "2000", "--seconds", "1")
    folder = re.search(r"^queues +(\S+), removed", run.stdout, re.MULTILINE)
    assert folder is not None
    assert not Path(folder[1]).exists()


def test_the_demo_says_what_is_wrong_with_a_file_that_is_no_capture(tmp_path: Path):
    notes = tmp_path / "notes.txt"
    notes.write_text("buy milk\n")
    run = demo("--file", str(notes))
    assert run.returncode == 1
    assert run.stderr.startswith("demo: cannot tell the feed of this file")
    assert "Traceback" not in run.stderr


def test_the_demo_prints_no_escape_codes_with_no_color():
    run = demo("--messages", "2000", "--seconds", "1", NO_COLOR="1", FORCE_COLOR="1")
    assert "\x1b" not in run.stdout


def test_the_reference_loop_processes_the_same_interpreted_and_compiled():
    def run(name: str) -> list[str]:
        example = ROOT / "examples" / name
        done = subprocess.run(
            [sys.executable, "-W", "error", str(example)],
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.stderr == ""
        assert done.returncode == 0
        return done.stdout.splitlines()

    # The sum of price times sequence number: a message that is lost, doubled or moved changes it.
    total = sum(number * 7 % 1_000 * (number + 1) for number in range(1_000))
    expected = [f"venue-{venue}: 1000 messages, {total}" for venue in "abc"]
    assert run("reference_loop.py") == expected
    assert run("reference_hot.py") == expected
