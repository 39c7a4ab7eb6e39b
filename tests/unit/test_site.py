"""The checks of the documentation site find what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import site


@pytest.fixture
def built(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top">T</h1><a href="sub/page.html#part">a</a><a href="https://example.org/">b</a>'
        '<img src="picture.svg"><a href="#top">c</a><link rel="canonical" href="https://e.org/">'
    )
    (tmp_path / "picture.svg").touch()
    (tmp_path / "sub" / "page.html").write_text('<h2 id="part">P</h2><a href="../index.html">u</a>')
    return tmp_path


def test_a_site_that_is_right_is_found_right(built: Path):
    assert site.broken_links(built) == []
    assert site.foreign_requests(built) == []
    assert site.main(["check", str(built)]) == 0


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ('<a href="nowhere.html">x</a>', "nowhere.html leads to no file"),
        ('<img src="lost.svg">', "lost.svg leads to no file"),
        ('<a href="index.html#nope">x</a>', "index.html#nope leads to no heading"),
        ('<a href="#nope">x</a>', "#nope leads to no heading"),
        ('<a href="sub/page.html#nope">x</a>', "sub/page.html#nope leads to no heading"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(
    built: Path, capsys: pytest.CaptureFixture[str], code: str, told: str
):
    (built / "more.html").write_text(code)
    assert site.main(["check", str(built)]) == 1
    assert f"more.html: {told}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "code",
    [
        '<script src="https://cdn.example.org/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example.org/x.css">',
        '<img src="https://example.org/x.png">',
    ],
)
def test_what_a_page_would_load_from_elsewhere_is_found(built: Path, code: str):
    (built / "more.html").write_text(code)
    assert len(site.foreign_requests(built)) == 1


def test_the_page_of_commands_has_every_command_with_its_examples():
    page = site.command_page()
    for name, _ in site.subcommands(site.command_parser()):
        assert f"## chronicle {name}\n" in page
    assert page.count("Examples:") >= 10


def test_the_page_of_errors_tells_what_to_do_about_each():
    rows = [line for line in site.error_page().splitlines() if "chronicle.errors." in line]
    assert len([row for row in rows if row.startswith("|")]) > 30
    assert [row for row in rows if row.startswith("|") and row.endswith("|  |")] == []


def test_the_page_of_metrics_has_what_a_hot_thread_tells():
    page = site.metric_page()
    assert "| `chronicle_hot_guard_seen_total` | counter | `thread` |" in page
    assert "| `chronicle_queue_next_seq` | gauge | `queue` |" in page


def test_an_unknown_argument_is_refused(capsys: pytest.CaptureFixture[str]):
    assert site.main(["nonsense"]) == 2
    assert "usage:" in capsys.readouterr().err
