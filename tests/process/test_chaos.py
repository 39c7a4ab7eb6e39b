"""Twenty seconds of chaos over real processes, and then every order is accounted for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)
def test_every_order_is_accounted_for_after_kills_and_stops(folder: Path):
    keep = folder / "chaos"
    # Without root there is no network namespace for the feed handler: a plain market instead.
    source, more = ("feed", []) if os.geteuid() == 0 else ("market", ["--market"])
    ran = subprocess.run(
        [
            *(sys.executable, "-W", "error", str(ROOT / "examples" / "chaos.py")),
            *("--seconds", "20", "--seed", "7", "--keep", str(keep), *more),
        ],
        capture_output=True,
        text=True,
        timeout=580,
    )
    logs = "\n".join(path.read_text()[-2_000:] for path in sorted((keep / "logs").glob("*.log")))
    assert ran.returncode == 0, ran.stdout + ran.stderr + logs
    assert "every order is accounted for" in ran.stdout
    assert f"\n{source} " in ran.stdout
    # The seed says who is chosen, so that this is not a run in which nothing happened.
    assert "kills    8  stops   12" in ran.stdout
    again = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "accounts.py"), str(keep / "bus"), "--closed"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert again.returncode == 0, again.stdout
