"""Run the blocks of one page, in a process and a folder of their own: see `docs_support`.

``python -W error -m tests.docs_runner README.md`` in an empty folder; the first block that does
something else than its page says ends it, with the place.
"""

from __future__ import annotations

import contextlib
import difflib
import doctest
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.docs_support import DATA, ROOT, Block, blocks_of

BINARIES = Path(sys.executable).parent


class Wrong(Exception):
    """A block does not do what its page says."""


class Page:
    """The state that blocks of one page share."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.printed = ""

    def run(self, block: Block) -> None:
        """Run one block, or check what can be checked of it."""
        if block.reason or (block.kind == "text" and not block.is_output):
            return
        match block.kind:
            case "python" | "set-up":
                self._python(block)
            case "pycon":
                self._doctest(block)
            case "text":
                self._same(block.text, self.printed)
            case "console":
                self._console(block)
            case kind if kind in DATA:
                parse(kind, block.text)
            case kind:
                raise Wrong(
                    f"a block of {kind or 'no language'!r} neither runs nor says why not; "
                    "write the language, or `Not run by the tests: ...` above it"
                )

    def _python(self, block: Block) -> None:
        is_hidden = block.kind == "set-up"
        name = f"set_up_{block.line}.py" if is_hidden else block.name
        file = Path(name)
        file.write_text(block.text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(file.stem, file.resolve())
        assert spec is not None
        module = ModuleType(file.stem)
        module.__dict__.update(self.names)
        module.__dict__.update(__name__=file.stem, __file__=str(file.resolve()), __spec__=spec)
        sys.modules[file.stem] = module
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(block.text, str(file.resolve()), "exec"), module.__dict__)
        self.printed = output.getvalue()
        self._keep(module.__dict__)

    def _doctest(self, block: Block) -> None:
        test = doctest.DocTestParser().get_doctest(
            block.text, dict(self.names), block.page, block.page, block.line
        )
        report = io.StringIO()
        runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
        runner.run(test, out=report.write, clear_globs=False)
        if runner.failures:
            raise Wrong(report.getvalue())
        self._keep(test.globs)

    def _keep(self, names: dict[str, Any]) -> None:
        self.names |= {n: v for n, v in names.items() if not n.startswith("__")}

    def _same(self, expected: str, got: str) -> None:
        checker = doctest.OutputChecker()
        if not checker.check_output(expected, got, doctest.ELLIPSIS):
            lines = difflib.ndiff(expected.splitlines(), got.splitlines())
            raise Wrong("the output differs from the page (-):\n" + "\n".join(lines))

    def _console(self, block: Block) -> None:
        for command, expected in commands(block.text):
            words = shlex.split(command, comments=True)
            match words:
                case ["make", *targets]:
                    check_targets([t for t in targets if "=" not in t])
                case ["pip", "install", *what]:
                    check_extras(" ".join(what))
                case ["python3", "-m", "venv", *_]:
                    pass  # The tests run in one already.
                case ["chronicle" | "python", *_]:
                    self._same(expected, run_command(command)) if expected else run_command(command)
                case _:
                    raise Wrong(
                        f"the command {command!r} does not run here; "
                        "write `Not run by the tests: ...` above the block"
                    )


def parse(kind: str, text: str) -> None:
    """Raise if a block of data is not what it says it is."""
    match kind:
        case "toml":
            tomllib.loads(text)
        case "json":
            import json

            json.loads(text)
        case "ini":
            import configparser

            configparser.ConfigParser(strict=False, interpolation=None).read_string(text)
        case _:
            if re.search(r"^\t", text, re.MULTILINE):
                raise Wrong("YAML is not indented with tabs")


def commands(text: str) -> list[tuple[str, str]]:
    r"""Return the commands of a console block, each with the output below it.

    >>> commands("$ echo a\na\n$ true\n")
    [('echo a', 'a\n'), ('true', '')]
    """
    found: list[tuple[str, str]] = []
    text = re.sub(r" *\\\n *", " ", text)
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found:
            found[-1] = (found[-1][0], found[-1][1] + line + "\n")
        else:
            raise Wrong("a console block begins with `$ ` and a command")
    return found


def check_targets(targets: list[str]) -> None:
    """Raise if the Makefile lacks one of the targets."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    missing = [t for t in targets if not re.search(rf"^{re.escape(t)}:", makefile, re.MULTILINE)]
    if missing:
        raise Wrong(f"the Makefile has no target {', '.join(missing)}")


def check_extras(what: str) -> None:
    """Raise if the package lacks one of the extras that are to be installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for names in re.findall(r"\[([\w, -]+)\]", what):
        missing = {n.strip() for n in names.split(",")} - set(project["optional-dependencies"])
        if missing:
            raise Wrong(f"there is no extra {', '.join(sorted(missing))}")


def run_command(command: str) -> str:
    """Run a command as a reader would, in the folder of the page; return its output."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": f"{BINARIES}:{os.environ['PATH']}", "NO_COLOR": "1"},
        timeout=120,
    )
    if done.returncode != 0:
        raise Wrong(f"{command!r} ended with {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout


def main(page: str) -> int:
    """Run a page; return 0 if all its blocks do what it says."""
    sys.path.insert(0, str(Path.cwd()))
    state = Page()
    for block in blocks_of(ROOT / page):
        try:
            state.run(block)
        except Exception as error:
            if not isinstance(error, Wrong):
                import traceback

                traceback.print_exc()
            print(f"{block.where}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
