"""Many strategies come and go: each is seen once, all is answered, no system call is made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COUNT = 30


@pytest.mark.timeout(400)
def test_a_router_sees_each_strategy_come_once_and_go_once():
    ran = subprocess.run(
        [
            *(sys.executable, "-W", "error", str(ROOT / "examples" / "strategies.py"), "--json"),
            *("--count", str(COUNT), "--seconds", "3", "--messages", "6400"),
        ],
        capture_output=True,
        text=True,
        timeout=380,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["wrong"] == []
    assert (told["seen_come"], told["seen_go"]) == (COUNT, COUNT)
    assert told["orders"] == told["acked"] + told["rejected"] == 10 * COUNT
    assert told["system_calls"] == 0
