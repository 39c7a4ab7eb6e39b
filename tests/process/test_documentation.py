"""Every block of code in every page does what the page says, and every link leads somewhere.

How blocks are told apart, and what runs them: `tests.docs_support`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs_runner import Page, Wrong, commands
from tests.docs_support import ROOT, Block, blocks_of, pages

PAGES = [page.relative_to(ROOT).as_posix() for page in pages()]
TUTORIAL = ROOT / "docs" / "tutorial.md"


def run_page(page: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.docs_runner", page],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def has_code(page: str) -> bool:
    return any(not block.reason and block.kind != "text" for block in blocks_of(ROOT / page))


@pytest.mark.parametrize("page", [page for page in PAGES if has_code(page)])
def test_the_code_of_a_page_does_what_the_page_says(page: str, folder: Path):
    run = run_page(page, folder)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_to_a_file_leads_to_one(page: str):
    from tools.site import GENERATED

    written = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", written, flags=re.MULTILINE | re.DOTALL)
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^):\s]+)\)", text)} - {""}
    folder = (ROOT / page).parent
    missing = [
        link
        for link in sorted(links)
        if not (folder / link).exists() and Path(link).name not in GENERATED
    ]
    assert missing == []


def test_the_code_of_the_tutorial_is_found():
    kinds = [block.kind for block in blocks_of(TUTORIAL)]
    assert kinds.count("python") >= 3
    assert kinds.count("console") >= 1


def test_a_guarded_hot_thread_takes_less_than_forty_lines():
    files = {block.name: block.text for block in blocks_of(TUTORIAL)}
    lines = [
        line
        for name in ("ewma.py", "run.py")
        for line in files[name].splitlines()
        if line.strip() and not line.startswith("#")
    ]
    assert len(lines) < 40


# --- the mechanism itself: what is wrong is found ---


def block(kind: str, text: str, *, reason: str = "", is_output: bool = False) -> Block:
    return Block("page.md", 1, kind, text, reason, is_output, "block_1.py")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return Page()


def test_an_output_that_differs_is_found(page: Page):
    page.run(block("python", "print(1 + 1)\n"))
    page.run(block("text", "2\n", is_output=True))
    with pytest.raises(Wrong, match="the output differs"):
        page.run(block("text", "3\n", is_output=True))


def test_a_block_starts_with_the_names_of_those_before_it(page: Page):
    page.run(block("set-up", "base = 20\n"))
    page.run(block("pycon", ">>> base + 1\n21\n"))
    with pytest.raises(Wrong, match="Expected"):
        page.run(block("pycon", ">>> base + 1\n22\n"))
    with pytest.raises(NameError):
        page.run(block("python", "other\n"))


@pytest.mark.parametrize(
    ("kind", "text", "match"),
    [
        ("", "anything", "no language"),
        ("rust", "fn main() {}", "neither runs"),
        ("console", "$ rm -rf everything", "does not run here"),
        ("console", "$ make nothing-that-exists", "no target"),
        ("console", "$ pip install 'chronicle-python[hot,cold]'", "no extra cold"),
        ("console", "$ chronicle inspect nowhere", "ended with 1"),
        ("console", "no prompt", "begins with"),
    ],
)
def test_a_block_that_cannot_run_must_say_why(page: Page, kind: str, text: str, match: str):
    with pytest.raises(Wrong, match=match):
        page.run(block(kind, text + "\n"))
    page.run(block(kind, text + "\n", reason="it is a test"))


def test_data_must_parse(page: Page):
    page.run(block("toml", "a = 1\n"))
    with pytest.raises(ValueError, match="Invalid"):
        page.run(block("toml", "a = = 1\n"))


def test_commands_are_told_from_their_output():
    assert commands("$ a \\\n  b\nx\ny\n$ c\n") == [("a b", "x\ny\n"), ("c", "")]


def test_reasons_and_hidden_code_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tests.docs_support.ROOT", tmp_path)
    text = (
        "<!-- set-up\nx = 1\n-->\n\nNot run by the tests: it needs root.\n\n```console\n$ a\n```\n"
        "\n```python\n# b.py\nprint(x)\n```\n\nprints\n\n```text\n1\n```\n"
    )
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    found = blocks_of(tmp_path / "page.md")
    assert [(b.kind, b.reason, b.is_output) for b in found] == [
        ("set-up", "", False),
        ("console", "it needs root", False),
        ("python", "", False),
        ("text", "", True),
    ]
    assert found[2].name == "b.py"
