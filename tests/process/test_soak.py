"""A short soak: what `make soak` shows in ten minutes, in some seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel_trace import missing

ROOT = Path(__file__).resolve().parents[2]
IS_FULL = os.environ.get("CHRONICLE_FIRE") == "full"


@pytest.mark.needs_root
@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_a_hot_thread_under_load_makes_no_system_call_no_allocation_and_no_page_fault():
    if (reason := missing()) is not None:
        pytest.skip(f"the kernel's tracing cannot be used: {reason}")
    seconds, readers = (600, 2_000) if IS_FULL else (5, 40)
    soak = [sys.executable, str(ROOT / "benches" / "soak.py")]
    run = subprocess.run(
        [*soak, f"--seconds={seconds}", f"--readers={readers}", "--warm-up=2"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("clean\n")
