"""The README's code does what the README says, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.compile(
    r"^```python\n(.*?)^```\n\nprints\n\n```text\n(.*?)^```", re.MULTILINE | re.DOTALL
)


def test_the_code_of_the_readme_prints_what_the_readme_says(tmp_path: Path):
    blocks = CODE.findall(README)
    assert blocks
    for code, output in blocks:
        # A file, because a handler is compiled from its source.
        (tmp_path / "readme.py").write_text(code, encoding="utf-8")
        run = subprocess.run(
            [sys.executable, "-W", "error", "readme.py"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert run.stderr == ""
        assert run.stdout == output


def test_every_python_block_of_the_readme_is_followed_by_its_output():
    assert README.count("```python\n") == len(CODE.findall(README))


def test_every_link_of_the_readme_to_a_file_leads_to_one():
    # The table of figures is written by `make bench`, and may not be there yet.
    made_later = {"docs/benchmarks.md"}
    links = set(re.findall(r"\]\(([^):]+)\)", README)) - made_later
    assert links
    assert [link for link in sorted(links) if not (ROOT / link).exists()] == []


def test_the_place_for_the_latency_table_is_marked():
    begin = README.index("<!-- latency table: begin -->")
    assert README.index("<!-- latency table: end -->") > begin


def test_the_changelog_names_the_version_of_the_package():
    import chronicle

    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {chronicle.__version__}" in changes
