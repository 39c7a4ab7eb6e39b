"""The project's own rules, as tests. What a linter already checks is not repeated here.

The Rust rules are textual: they read lines, not syntax, so each is a little stricter or looser
than its wording. They look at whatever files exist.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import pkgutil
import re
import subprocess
import sys
import tokenize
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE_SRC = "crates/chronicle-core/src/"
CODE_LINES_MAX = 800
# As `too-many-lines-threshold` in clippy.toml.
FUNCTION_LINES_MAX = 80
# How far above its line an explanation may begin.
COMMENT_LINES_ABOVE = 8
# Words that may not stand in any file are put together here, so that this file may be read too.
UNFINISHED = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"]) + r")\b")
REGISTRY_HOSTS = [
    "py" + "pi.org",
    "pythonhosted" + ".org",
    "crates" + ".io",
    "npm" + "js.org",
    "npm" + "js.com",
    "proxy." + "golang.org",
]
MACHINE_FOLDERS = ["wo" + "rk", "ro" + "ot", "ho" + r"me/\w+"]
MACHINE_PATHS = re.compile(r"(?<![\w.])/(" + "|".join(MACHINE_FOLDERS) + r")/")


class RustLine(NamedTuple):
    """One line of Rust, with its literals and comments told apart."""

    number: int
    text: str
    code: str


@cache
def project_files() -> tuple[Path, ...]:
    """Every file that is, or may become, part of the repository."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    paths = (ROOT / name for name in listing.stdout.split("\0") if name)
    return tuple(sorted(path for path in paths if path.is_file() and not path.is_symlink()))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def files_with(suffix: str, under: str = "") -> list[Path]:
    return [p for p in project_files() if p.suffix == suffix and relative(p).startswith(under)]


def is_test(path: Path) -> bool:
    return any(part in ("tests", "benches", "examples") for part in path.relative_to(ROOT).parts)


@cache
def rust_lines(path: Path) -> tuple[RustLine, ...]:
    lines = []
    in_block_comment = False
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        code = re.sub(r'"(\\.|[^"\\])*"', '""', text)
        if in_block_comment:
            _, end, code = code.partition("*/")
            in_block_comment = not end
        code = re.sub(r"/\*.*?\*/", "", code.partition("//")[0])
        code, start, _ = code.partition("/*")
        in_block_comment = in_block_comment or bool(start)
        lines.append(RustLine(number, text, code))
    return tuple(lines)


def rust_code_without_tests(path: Path) -> list[RustLine]:
    """Return the lines of code before the `mod tests` that closes a file."""
    lines = []
    for line in rust_lines(path):
        if re.match(r"\s*#\[cfg\((all\()?test\b", line.code):
            break
        if line.code.strip():
            lines.append(line)
    return lines


def python_code_line_count(path: Path) -> int:
    """Count the lines that hold code: neither blank, nor comment, nor docstring."""
    skipped = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
    count: set[int] = set()
    starts_statement = True
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type in skipped:
            starts_statement = starts_statement or token.type == tokenize.NEWLINE
            continue
        is_docstring = token.type == tokenize.STRING and starts_statement
        starts_statement = False
        if not is_docstring:
            count.update(range(token.start[0], token.end[0] + 1))
    return len(count)


def report(broken: list[str], rule: str) -> None:
    if broken:
        pytest.fail(f"{rule}:\n  " + "\n  ".join(broken), pytrace=False)


def has_comment_near(lines: tuple[RustLine, ...], index: int, wanted: str) -> bool:
    """Whether `wanted` is in a comment of the line, of its documentation, or of the lines above."""
    above = lines[max(0, index - COMMENT_LINES_ABOVE) : index + 1]
    if any(wanted in line.text[len(line.text.partition("//")[0]) :] for line in above):
        return True
    # Documentation and attributes may be longer than that.
    for line in reversed(lines[:index]):
        stripped = line.text.strip()
        if not stripped.startswith(("//", "#[", "#!")):
            return False
        if wanted in stripped:
            return True
    return False


def test_every_unsafe_says_what_makes_it_sound() -> None:
    broken = []
    for path in files_with(".rs", "crates/"):
        lines = rust_lines(path)
        for index, line in enumerate(lines):
            code = re.sub(r"#!?\[.*?\]", "", line.code)
            if not re.search(r"\bunsafe\b", code):
                continue
            # A function pointer's type, as in `handler: unsafe extern "C" fn(u32)`, does nothing.
            if re.search(r'[:<(=,&]\s*unsafe\s+(extern\s+""\s+)?fn\s*\(', code):
                continue
            if has_comment_near(lines, index, "SAFETY:"):
                continue
            is_declaration = re.search(r"\bunsafe\b.*\b(fn|trait)\b", code)
            if is_declaration and has_comment_near(lines, index, "# Safety"):
                continue
            broken.append(f"{relative(path)}:{line.number}: {line.text.strip()}")
    report(broken, "`unsafe` without a `// SAFETY:` (or `# Safety` in its documentation) above")


def test_atomics_have_one_home() -> None:
    pattern = re.compile(r"\b(std|core|loom)::sync::(atomic\b|\{[^}]*\batomic\b)")
    broken = []
    for path in files_with(".rs", "crates/"):
        if is_test(path) or relative(path) == CORE_SRC + "sync.rs":
            continue
        code = "\n".join(line.code for line in rust_lines(path))
        broken += [
            f"{relative(path)}:{code.count(chr(10), 0, match.start()) + 1}: {match[0]}"
            for match in pattern.finditer(code)
        ]
    report(broken, f"atomics are named in {CORE_SRC}sync.rs only; import them from `crate::sync`")


def test_the_kernel_is_reached_through_one_module() -> None:
    broken = [
        f"{relative(path)}:{line.number}: {line.text.strip()}"
        for path in files_with(".rs", "crates/")
        if not is_test(path) and not relative(path).startswith(CORE_SRC + "os/")
        for line in rust_lines(path)
        if re.search(r"\blibc(::|\s*;)", line.code)
    ]
    report(broken, f"`libc` is used in {CORE_SRC}os/ only")


def test_every_relaxed_says_why_it_is_enough() -> None:
    broken = []
    for path in files_with(".rs", CORE_SRC):
        lines = rust_lines(path)
        for index, line in enumerate(lines):
            if not re.search(r"\bRelaxed\b", line.code) or re.match(r"\s*(pub )?use\b", line.code):
                continue
            above = lines[max(0, index - COMMENT_LINES_ABOVE) : index + 1]
            if not any("//" in other.text for other in above):
                broken.append(f"{relative(path)}:{line.number}: {line.text.strip()}")
    report(broken, "`Relaxed` without a comment on its line or right above")


def test_every_rust_file_is_part_of_the_build() -> None:
    broken = []
    for path in files_with(".rs", "crates/"):
        source = next((p for p in path.parents if p.name == "src"), None)
        if source is None:
            continue
        if path.name in ("lib.rs", "main.rs") or path.parent.name == "bin":
            continue
        folder = path.parent.parent if path.name == "mod.rs" else path.parent
        name = path.parent.name if path.name == "mod.rs" else path.stem
        parents = [folder / "mod.rs", folder.with_suffix(".rs"), folder / "lib.rs"]
        declared = re.compile(rf"\bmod\s+{name}\s*[;{{]")
        if not any(
            declared.search(line.code)
            for parent in parents
            if parent.is_file()
            for line in rust_lines(parent)
        ):
            broken.append(relative(path))
    report(broken, "no `mod` names this file, so nothing compiles it")


def test_files_stay_short_enough_to_read() -> None:
    counts = {p: len([x for x in rust_lines(p) if x.code.strip()]) for p in files_with(".rs")}
    counts |= {p: python_code_line_count(p) for p in files_with(".py")}
    broken = [f"{relative(p)}: {n} lines of code" for p, n in counts.items() if n > CODE_LINES_MAX]
    report(broken, f"files hold at most {CODE_LINES_MAX} lines of code")


def test_functions_stay_short_enough_to_read() -> None:
    """Of Rust clippy says so (`too_many_lines`)."""
    broken = []
    for path in files_with(".py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
                assert node.end_lineno is not None
                count = node.end_lineno - first.lineno + 1
                if count > FUNCTION_LINES_MAX:
                    broken.append(f"{relative(path)}:{node.lineno}: {node.name}: {count} lines")
    report(broken, f"functions hold at most {FUNCTION_LINES_MAX} lines behind their signature")


def test_no_file_names_unfinished_work_a_machine_or_a_registry() -> None:
    broken = []
    for path in project_files():
        if path.name.startswith("LICENSE"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            where = f"{relative(path)}:{number}: "
            if match := UNFINISHED.search(line):
                broken.append(f"{where}{match[0]} (file an issue instead)")
            if match := MACHINE_PATHS.search(line):
                broken.append(f"{where}{match[0]} (a path of one machine)")
            broken += [f"{where}{host} (a registry)" for host in REGISTRY_HOSTS if host in line]
    report(broken, "words that do not belong in the project")


def test_every_public_name_has_one_home_and_a_docstring() -> None:
    chronicle = importlib.import_module("chronicle")
    names: list[str] = chronicle.__all__
    broken = [f"{name}: listed twice" for name, count in Counter(names).items() if count > 1]
    homes: dict[int, list[str]] = {}
    for info in pkgutil.walk_packages(chronicle.__path__, "chronicle."):
        if any(part.startswith("_") for part in info.name.split(".")[1:]):
            continue
        module = importlib.import_module(info.name)
        if hasattr(module, "__path__"):
            continue  # A package re-exports what its modules hold.
        for name in getattr(module, "__all__", ()):
            homes.setdefault(id(getattr(module, name)), []).append(info.name)
    for name in names:
        if not hasattr(chronicle, name):
            broken.append(f"{name}: in `__all__`, but does not exist")
            continue
        value = getattr(chronicle, name)
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        if not inspect.getdoc(value) or value.__doc__ is None:
            broken.append(f"{name}: has no docstring")
        if len(found := homes.get(id(value), [])) > 1:
            broken.append(f"{name}: at home in {' and '.join(found)}")
        if not (getattr(value, "__module__", None) or "chronicle").startswith("chronicle"):
            broken.append(f"{name}: comes from {value.__module__}")
    report(broken, "public names")


def test_importing_the_package_imports_nothing_heavy() -> None:
    # Each costs more than a tenth of what `import chronicle` may take as a whole.
    heavy = {
        *("argparse", "asyncio", "dataclasses", "inspect", "json", "logging"),
        *("msgspec", "numpy", "pathlib", "rich"),
    }
    program = "import sys; import chronicle; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, cwd=ROOT, text=True
    )
    report(sorted(heavy & set(run.stdout.split())), "`import chronicle` imports")


def test_report_the_share_of_rust(capsys: pytest.CaptureFixture[str]) -> None:
    """Print the lines of code that are not tests; the aim is a third of Rust at most."""
    rust = sum(
        len(rust_code_without_tests(path))
        for path in files_with(".rs", "crates/")
        if not is_test(path)
    )
    python = sum(python_code_line_count(path) for path in files_with(".py", "python/"))
    share = rust / max(1, rust + python)
    with capsys.disabled():
        print(f"\nlines of code without tests: Rust {rust}, Python {python}, share {share:.0%}")
