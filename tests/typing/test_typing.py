"""The types of the public names, as a user's strict mypy sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MARK = "  # type: ignore[arg-type]"
CONFIG = """
[mypy]
strict = true
mypy_path = python
explicit_package_bases = true
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a user's strict mypy, without this project's settings, says about the uses.

    And about a copy in which some of the wrong ones are not marked: without that, the test would
    pass if mypy looked at nothing.
    """
    folder = tmp_path_factory.mktemp("typing")
    (folder / "mypy.ini").write_text(CONFIG)
    (folder / "unmarked.py").write_text((HERE / "uses.py").read_text().replace(MARK, ""))
    options: list[str | Path] = ["--config-file", folder / "mypy.ini", "--no-error-summary"]
    options += ["--cache-dir", ROOT / ".mypy_cache" / "uses"]
    run: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-m", "mypy", *options, HERE / "uses.py", folder / "unmarked.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.stderr == ""
    return run.stdout.splitlines()


def test_right_uses_pass_and_wrong_uses_are_errors(said: list[str]):
    assert [line for line in said if "unmarked.py:" not in line] == []


def test_the_marks_of_wrong_uses_are_needed(said: list[str]):
    marks = (HERE / "uses.py").read_text().count(MARK)
    assert marks > 10
    assert sum("error:" in line for line in said) >= marks


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "python" / "chronicle" / "py.typed").exists()
