"""The documentation site: pages that are made from the code, and checks of what was built.

``python -m tools.site pages`` writes the pages in `GENERATED`, ``build`` builds, and ``check
FOLDER`` looks at every link, picture and anchor of what was built. `make docs` does all three.
"""

from __future__ import annotations

import argparse
import html.parser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

ROOT: Final = Path(__file__).resolve().parents[1]
REFERENCE: Final = ROOT / "docs" / "reference"
#: Begins the paragraph of an error's documentation that tells what to do about it.
REMEDY: Final = "What to do:"


# --- pages from the code ---


def command_page() -> str:
    """Return the page of the command line, from its parsers."""
    parser = command_parser()
    parts = [
        "# The command `chronicle`",
        "Made from the program's own parsers when this site is built.",
        _usage(parser),
    ]
    for name, command in subcommands(parser):
        parts += [f"## chronicle {name}", _usage(command)]
    return "\n\n".join(parts) + "\n"


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command `chronicle`."""
    from chronicle.cli.program import build_parser

    return build_parser()


def subcommands(
    parser: argparse.ArgumentParser, name: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield each command below a parser with its full name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                full = f"{name} {word}".strip()
                yield full, command
                yield from subcommands(command, full)


def _usage(parser: argparse.ArgumentParser) -> str:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    text = argparse.ArgumentParser.format_help(parser)
    return f"```text\n{text.rstrip()}\n```"


def error_page() -> str:
    """Return the tree of errors, from the classes, with what to do about each."""
    import inspect

    from chronicle import errors

    def rows(cls: type[errors.ChronicleError], depth: int) -> Iterator[str]:
        paragraphs = (inspect.getdoc(cls) or "").split("\n\n")
        told = next((" ".join(p.split()) for p in paragraphs if p.startswith(REMEDY)), "")
        remedy = told.removeprefix(REMEDY).strip()
        link = f"[`{cls.__name__}`][chronicle.errors.{cls.__name__}]"
        yield f"| {'└ ' * depth}{link} | {cls.category} | {paragraphs[0]} | {remedy} |"
        for child in sorted(cls.__subclasses__(), key=lambda c: c.__name__):
            if child.__module__ == errors.__name__:
                yield from rows(child, depth + 1)

    table = ["| error | category | what has happened | what to do |", "|---|---|---|---|"]
    table += rows(errors.ChronicleError, 0)
    return _page(
        "# Errors",
        "Every error of the package is under `ChronicleError`, and every message says what failed, "
        "with `name=value`, and what to do next. Errors of the operating system without a special "
        "meaning for a queue stay `OSError`.",
        "| category | meaning | what to do |\n|---|---|---|\n"
        "| `warn` | expected in operation | handle it and go on |\n"
        "| `error` | the call or the set-up is wrong, or the moment is | mend it, or try again "
        "later, as the message says |\n"
        "| `fatal` | this file cannot be trusted any more | stop using it; look at it with "
        "`chronicle doctor` |",
        "\n".join(table),
        "::: chronicle.errors\n    options:\n      show_root_heading: false\n"
        "      show_root_toc_entry: false\n      members_order: alphabetical\n"
        "      inherited_members: false\n      heading_level: 2",
    )


def _page(*paragraphs: str) -> str:
    return "\n\n".join(paragraphs) + "\n"


def metric_page() -> str:
    """Return the table of metrics, from a scrape of a sidecar that has everything."""
    from tools.scrape import families

    table = ["| metric | kind | labels | what it counts |", "|---|---|---|---|"]
    for family in families():
        labels = ", ".join(f"`{label}`" for label in family.labels) or "–"
        table.append(f"| `{family.name}` | {family.kind} | {labels} | {family.text} |")
    return _page(
        "# Metrics",
        "`sidecar.metrics(port=9464)` serves these to Prometheus, on the loopback interface unless "
        "told otherwise. They are read when they are asked for: a scrape loads words that the hot "
        "thread stores anyway, and costs it nothing. This table was made from a scrape when the "
        "site was built.",
        "\n".join(table),
    )


#: Pages that are made, by file name: not in the repository.
GENERATED: Final = {
    "command.md": command_page,
    "errors.md": error_page,
    "metrics.md": metric_page,
}


def write_pages() -> None:
    """Write the pages that are made from the code."""
    for name, make in GENERATED.items():
        (REFERENCE / name).write_text(make(), encoding="utf-8")


# --- checks of what was built ---


class _Document(html.parser.HTMLParser):
    """The links and anchors of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = {"", "__top"}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what the element points at, and what points at it."""
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif name in ("href", "src"):
                self.links.add(value)


def broken_links(site: Path) -> list[str]:
    """Return every link, picture and anchor within the site that leads nowhere."""
    documents: dict[Path, _Document] = {}
    for page in sorted(site.rglob("*.html")):
        documents[page] = document = _Document()
        document.feed(page.read_text(encoding="utf-8"))
    broken = []
    for page, document in documents.items():
        for link in sorted(document.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = unquote(parts.path)
            base = site if path.startswith("/") else page.parent
            target = (base / path.lstrip("/")).resolve() if path else page
            if target.is_dir():
                target /= "index.html"
            shown = page.relative_to(site).as_posix()
            if not target.exists():
                broken.append(f"{shown}: {link} leads to no file")
            elif target in documents and unquote(parts.fragment) not in documents[target].anchors:
                broken.append(f"{shown}: {link} leads to no heading")
    return broken


def foreign_requests(site: Path) -> list[str]:
    """Return what pages would load from other hosts: the site works without a network."""
    found = []
    for page in sorted(site.rglob("*.html")):
        loader = _Loads()
        loader.feed(page.read_text(encoding="utf-8"))
        found += [f"{page.relative_to(site)}: loads {address}" for address in loader.addresses]
    return found


class _Loads(html.parser.HTMLParser):
    """What a browser would load at once."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note addresses of other hosts."""
        wanted = {"script": "src", "link": "href", "img": "src", "iframe": "src"}.get(tag)
        values = dict(attrs)
        is_link = tag == "link" and values.get("rel") in ("canonical", "alternate", "next", "prev")
        address = values.get(wanted or "") or ""
        if wanted and not is_link and urlsplit(address).netloc:
            self.addresses.append(address)


def build() -> int:
    """Build the site in strict mode; a docstring that cannot be read is a failure too."""
    run = subprocess.run(
        [str(Path(sys.executable).with_name("zensical")), "build", "--clean", "--strict"],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    print(run.stdout, end="")
    return run.returncode or int("griffe:" in run.stdout)


def main(arguments: list[str]) -> int:
    """Make pages, or check a site."""
    match arguments:
        case ["pages"]:
            write_pages()
        case ["build"]:
            return build()
        case ["check", folder]:
            site = Path(folder).resolve()
            broken = broken_links(site) + foreign_requests(site)
            print(*broken, sep="\n", end="\n" if broken else "", file=sys.stderr)
            return 1 if broken else 0
        case _:
            print("usage: python -m tools.site pages | build | check FOLDER", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
