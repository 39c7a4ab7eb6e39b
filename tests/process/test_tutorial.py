"""The tutorial, followed word for word: its files are written as it says, run, and compared."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
FILE = re.compile(r"^```python\n(# (\w+\.py)\n.*?)^```", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(r"^prints\n\n```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = {name: code for code, name in FILE.findall(TUTORIAL)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, code in FILES.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    return tmp_path


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *command], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_programs_of_the_tutorial_print_what_it_says(folder: Path):
    printed = [run(folder, "try_ewma.py"), run(folder, "run.py")]
    assert printed == PRINTS.findall(TUTORIAL)


def test_the_audit_of_the_tutorial_accepts_its_handler(folder: Path):
    assert "Ewma" in run(folder, "-m", "chronicle.cli", "audit", "ewma:Ewma")


def test_a_guarded_hot_thread_takes_less_than_forty_lines():
    lines = [
        line
        for name in ("ewma.py", "run.py")
        for line in FILES[name].splitlines()
        if line.strip() and not line.startswith("#")
    ]
    assert len(lines) < 40


def test_every_link_of_the_tutorial_leads_to_a_file():
    links = re.findall(r"\]\(([^):]+)\)", TUTORIAL)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_the_command_of_the_tutorial_is_a_block_that_compiles():
    for code in re.findall(r"^```python\n(.*?)^```", TUTORIAL, re.MULTILINE | re.DOTALL):
        compile(code, "tutorial", "exec")
