"""The README's shape. That its code runs and its links lead somewhere: test_documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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


BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
#: Rows of the README and of the comparison, and the line of the last full run that each is from.
LATENCIES = {
    "README.md": {
        "Rust to Rust, one way, 100,000/s": "rust",
        "Python to Python, one way, 10,000/s": "python chronicle",
        "Python, iceoryx2": "python iceoryx2",
        "Python, pyzmq, polling": "python pyzmq polling",
        "Python, multiprocessing pipe, polling": "python pipe polling",
        "Python, faster-fifo, polling": "python faster fifo polling",
    },
    "docs/comparison.md": {
        "this library": "python chronicle",
        "iceoryx2 0.10": "python iceoryx2",
        "faster-fifo, polling": "python faster fifo polling",
        "`multiprocessing` pipe, polling": "python pipe polling",
        "pyzmq, polling": "python pyzmq polling",
    },
}


def row_of(page: str, name: str) -> list[str]:
    """Return the cells behind the name of a row, the first three of them."""
    found = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", page, re.MULTILINE)
    assert found is not None, f"no row '{name}'"
    return found[1].split(" | ")[:3]


def nanoseconds(text: str) -> float:
    value, unit = text.replace(",", "").split()
    return float(value) * {"ns": 1.0, "µs": 1e3}[unit]


@pytest.mark.parametrize("file", LATENCIES)
def test_latencies_are_those_of_the_last_full_run(file):
    page = (ROOT / file).read_text(encoding="utf-8")
    for name, measured in LATENCIES[file].items():
        for shown, value in zip(row_of(page, name), row_of(BENCHMARKS, measured), strict=True):
            # Rounded, to a tenth of a microsecond where it is one.
            step = 100 if "µs" in shown else 1
            assert abs(nanoseconds(shown) - nanoseconds(value)) <= step / 2, (file, name, value)


def test_the_changelog_names_the_version_of_the_package():
    import chronicle

    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {chronicle.__version__}" in changes
