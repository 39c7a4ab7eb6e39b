"""The README's shape. That its code runs and its links lead somewhere: test_documentation."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.compile(
    r"^```python\n(.*?)^```\n\nprints\n\n```text\n(.*?)^```", re.MULTILINE | re.DOTALL
)


def test_every_python_block_of_the_readme_is_followed_by_its_output():
    assert README.count("```python\n") == len(CODE.findall(README))


def test_the_place_for_the_latency_table_is_marked():
    begin = README.index("<!-- latency table: begin -->")
    assert README.index("<!-- latency table: end -->") > begin


def test_the_changelog_names_the_version_of_the_package():
    import chronicle

    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {chronicle.__version__}" in changes
