"""What starting costs: `import chronicle` and `chronicle --help`, against the bare interpreter."""

from __future__ import annotations

import subprocess
import sys
import time

from benches.common import Run, median

COMMANDS = {
    "bare": ["-c", "pass"],
    "import": ["-c", "import chronicle"],
    "help": ["-m", "chronicle.cli", "--help"],
}


def measure(run: Run) -> dict[str, float]:
    """Start each in turn; wall-clock time."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(run.size(41, 1)):
        for name, arguments in COMMANDS.items():
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, *arguments], stdout=subprocess.PIPE, check=True, text=True
            )
            found[name].append((time.perf_counter() - started) * 1e3)
            assert (name == "help") == ("import" in done.stdout)
    over = [i - b for i, b in zip(found["import"], found["bare"], strict=True)]
    return {
        "start_bare_median_ms": median(found["bare"]),
        "start_import_median_ms": median(found["import"]),
        "start_import_over_bare_median_ms": median(over),
        "start_help_median_ms": median(found["help"]),
    }
