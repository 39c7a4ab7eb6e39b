"""The benchmarks written in Rust: built by cargo, run one process each."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path

from benches.common import ROOT, Run

SUBJECTS = ("append", "latency", "throughput", "fan", "open", "seek", "roll", "guard", "hot")
TIMEOUT_S = 900


def is_available() -> bool:
    """Whether there is a cargo to build them with."""
    return shutil.which("cargo") is not None


@cache
def program(*, optimized: bool) -> Path:
    """Build the program; return its path.

    Optimized is the profile that the wheel is built with. Tests take the other one.
    """
    command = ["cargo", "bench", "--no-run"] if optimized else ["cargo", "build"]
    command += ["--package", "chronicle-core", "--bench", "figures", "--message-format=json"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    for line in built.stdout.splitlines():
        artifact = json.loads(line)
        if artifact.get("executable") and artifact["target"]["name"] == "figures":
            return Path(artifact["executable"])
    raise RuntimeError("cargo has built no program 'figures'")


def measure(run: Run, subject: str) -> dict[str, float]:
    """Run one subject; its figures."""
    command = [str(program(optimized=not run.quick)), subject, "--dir", str(run.folder)]
    if run.quick:
        command.append("--quick")
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=TIMEOUT_S)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures
