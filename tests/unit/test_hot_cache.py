"""The cache of compiled handlers: what is kept, what is asked for again, what is not believed."""

from __future__ import annotations

import gc
import linecache
import logging
import os
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle.hot import Handler, Info, cache
from chronicle.hot import compile as compiler
from chronicle.hot.compile import build, program_for

from tests.hot_support import SYMBOLS, Harness, Published, Step, run_compiled

ROOT = Path(__file__).resolve().parents[2]

SOURCE = """
from chronicle.hot import Counter, Handler, Info, Output, on
from chronicle.message import MessageBase, array, char8, i64, message

{before}

@message(1)
class Tick(MessageBase):
    price: i64


def helper(x):
    return x * {factor}


LIMIT = {limit}


class Kept(Handler):
    {field}: i64
    out: Output

    @on(Tick)
    def tick(self, tick: Tick, info: Info) -> None:
        self.{field} = helper(tick.price) % LIMIT
"""
PLAIN = {"before": "", "factor": "3", "limit": "100", "field": "last"}


def make(file: str = "kept.py", **changes: str) -> Any:
    """Define the module anew, as a notebook does when a cell is run again."""
    text = SOURCE.format(**(PLAIN | changes))
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    space: dict[str, Any] = {"__name__": "kept"}
    exec(compile(text, file, "exec"), space)
    return space["Kept"]


@pytest.fixture(autouse=True)
def own_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHRONICLE_CACHE_DIR", str(folder))
    return folder / "hot"


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.hot"))


def result(cls: Any, price: int, field: str = "last") -> int:
    program = program_for(cls(), symbols=SYMBOLS)
    tick = cls.SPEC.entries[0].message(price=price)
    harness = Harness(cls(), program)
    assert harness.send(tick) == 0
    after = cls()
    after.load_state(harness.state)
    value: int = getattr(after, field)
    return value


def test_the_second_build_comes_from_the_cache(own_cache: Path):
    first = build(make().SPEC)
    second = build(make().SPEC)
    assert (first.cached, second.cached) == (False, True)
    assert first.key == second.key
    assert first._replace(cached=True, found=second.found) == second
    assert [path.stem for path in entries(own_cache)] == [first.key]
    assert own_cache.stat().st_mode & 0o777 == 0o700
    assert entries(own_cache)[0].stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "changes",
    [
        {"factor": "4"},
        {"limit": "101"},
        {"field": "price"},
        {"before": "\n"},
    ],
)
def test_whatever_goes_into_the_code_changes_the_key(changes: dict[str, str]):
    assert build(make().SPEC).key != build(make(**changes).SPEC).key


RAW_SOURCE = """
from typing import Annotated
from chronicle.hot import Buffer, Bytes, Handler, Info, Output, Outputs, Size, Slots, on
from chronicle.hot.wire import Wire, WireTable
from chronicle.message import MessageBase, i64, message

@message(2)
class Typed(MessageBase):
    number: i64

WIRES = WireTable(
    3, [Wire(Typed, {code}, 10, is_big_endian={big}, fields={{"number": ({offset}, "i8")}})]
)


class Raw(Handler):
    held: Annotated[Buffer, Size({size})]
    out: Output
    table: Annotated[Outputs, Slots({slots})]

    @on.{mark}
    def raw(self, data: Bytes, info: Info) -> None:
        self.table[info.tag].publish_bytes(5, data)
        WIRES.publish(self.out, data, 0, len(data))
"""
RAW = {"size": "8", "slots": "2", "mark": "bytes(9)", "code": "65", "big": "True", "offset": "1"}


def make_raw(**changes: str) -> Any:
    text = RAW_SOURCE.format(**(RAW | changes))
    linecache.cache["raw.py"] = (len(text), None, text.splitlines(keepends=True), "raw.py")
    space: dict[str, Any] = {"__name__": "raw"}
    exec(compile(text, "raw.py", "exec"), space)
    return space["Raw"]


@pytest.mark.parametrize(
    "changes",
    [
        {"size": "9"},
        {"slots": "3"},
        {"mark": "bytes(10)"},
        {"mark": "datagram"},
        {"code": "66"},
        {"big": "False"},
        {"offset": "2"},
    ],
)
def test_bytes_buffers_and_tables_are_part_of_the_key(changes: dict[str, str]):
    assert build(make_raw().SPEC).key != build(make_raw(**changes).SPEC).key


def test_what_takes_bytes_comes_from_the_cache_and_does_the_same():
    data = b"A" + (7).to_bytes(8, "big") + b"!"
    published = []
    for cached in (False, True):
        cls = make_raw()
        assert build(cls.SPEC).cached is cached
        harness = Harness(cls(), program_for(cls(), symbols=SYMBOLS))
        for tag in (1, 2):
            harness.send(data, Info(type_id=9, tag=tag))
        assert "IndexError: index out of range: outputs 'table'" in harness.explain()
        published.append(harness.published)
    assert published[0] == published[1]
    assert published[0] == [
        Published("table[1]", 5, data),
        Published("out", 2, (7).to_bytes(8, "little")),
    ]


def test_what_does_not_go_into_the_code_does_not_change_the_key():
    assert build(make().SPEC).key == build(make(before="unused = 5").SPEC).key


def test_settings_and_versions_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch):
    from chronicle.hot import compile as compiler

    before = build(make().SPEC).key
    monkeypatch.setenv("NUMBA_OPT", "1")
    compiler._compiler.cache_clear()
    try:
        assert build(make().SPEC).key != before
    finally:
        monkeypatch.undo()
        compiler._compiler.cache_clear()


def test_the_key_is_the_same_in_another_process(folder: Path):
    module = folder / "kept_elsewhere.py"
    module.write_text(SOURCE.format(**PLAIN))
    program = (
        "import kept_elsewhere; from chronicle.hot.compile import build\n"
        "print(build(kept_elsewhere.Kept.SPEC).key)"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    keys = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            check=True,
            env={**environment, "PYTHONHASHSEED": seed},
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(keys) == 1


def test_a_class_that_is_defined_again_is_compiled_again():
    assert result(make(), 7) == 21
    assert result(make(factor="5"), 7) == 35
    assert result(make(), 7) == 21


def test_two_classes_of_one_name_and_other_layouts_do_not_mix():
    first, second = make(), make("other.py", field="other")
    assert result(first, 7) == 21
    assert result(second, 7, "other") == 21
    assert result(first, 8) == 24


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other", "header", "key", "long"])
def test_a_damaged_entry_is_compiled_anew_and_said(
    own_cache: Path, damage: str, caplog: pytest.LogCaptureFixture
):
    made = build(make().SPEC)
    (path,) = entries(own_cache)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-100:]
    elif damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "empty":
        data.clear()
    elif damage == "other":
        data = bytearray(b"#!/bin/sh\n" * 100)
    elif damage == "header":
        data[41] ^= 0x80
    elif damage == "key":
        other = build(make(factor="9").SPEC).key
        data = bytearray((own_cache / f"{other}.hot").read_bytes())
    elif damage == "long":
        data += b"\0"
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING, logger="chronicle.hot.cache"):
        again = build(make().SPEC)
    assert not again.cached
    assert again.image == made.image
    assert "is damaged; compiling" in caplog.text
    assert build(make().SPEC).cached


def test_an_entry_that_others_could_write_is_not_believed(
    own_cache: Path, caplog: pytest.LogCaptureFixture
):
    build(make().SPEC)
    (path,) = entries(own_cache)
    path.chmod(0o666)
    assert not build(make().SPEC).cached
    assert "can be written by others" in caplog.text
    # The new one took its place.
    assert path.stat().st_mode & 0o777 == 0o600
    assert build(make().SPEC).cached


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_an_entry_of_another_user_is_not_believed(
    own_cache: Path, caplog: pytest.LogCaptureFixture
):
    build(make().SPEC)
    (path,) = entries(own_cache)
    os.chown(path, 65_534, 65_534)
    assert not build(make().SPEC).cached
    assert "is not a file of this user's" in caplog.text


@pytest.mark.parametrize("kind", ["symlink", "folder", "fifo"])
def test_what_is_no_file_is_not_believed(own_cache: Path, kind: str, folder: Path):
    build(make().SPEC)
    (path,) = entries(own_cache)
    kept = folder / "aside"
    path.rename(kept)
    if kind == "symlink":
        path.symlink_to(kept)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert not build(make().SPEC).cached


def test_a_cache_that_cannot_be_written_is_said_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    file = folder / "file"
    file.write_text("")
    monkeypatch.setenv("CHRONICLE_CACHE_DIR", str(file))
    assert not build(make().SPEC).cached
    assert "cannot be written" in caplog.text


def test_the_least_recently_used_entries_go(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "ENTRIES_MAX", 2)
    keys = []
    for number, factor in enumerate("345"):
        keys.append(build(make(factor=factor).SPEC).key)
        os.utime(own_cache / f"{keys[-1]}.hot", (number, number))
    build(make(factor="6").SPEC)
    left = {path.stem for path in entries(own_cache)}
    assert keys[2] in left
    assert len(left) == 2


def test_a_refused_handler_leaves_nothing(own_cache: Path):
    with pytest.raises(chronicle.AuditRefused):
        build(make(limit="[1]").SPEC)
    assert not own_cache.exists() or entries(own_cache) == []


def test_without_the_cache_nothing_is_kept(own_cache: Path):
    assert not build(make().SPEC, use_cache=False).cached
    assert not own_cache.exists()


def test_a_warm_start_imports_neither_numba_nor_numpy_nor_the_facts_of_packages(folder: Path):
    module = folder / "warm.py"
    module.write_text(SOURCE.format(**PLAIN))
    program = (
        "import sys, warm; from chronicle.hot.compile import program_for\n"
        "made = program_for(warm.Kept())\n"
        "slow = ('numba', 'numpy', 'importlib.metadata')\n"
        "print(sum(name in sys.modules for name in slow), made.key, made.on_message > 0)\n"
        "assert made.dtype_of_state().itemsize == len(made.state)"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder)}

    def start() -> list[str]:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, check=True, env=environment, text=True)
        return done.stdout.split()

    cold, warm = start(), start()
    # All but the facts of packages, which only Numba itself may ask for.
    assert cold[0] in ("2", "3")
    assert warm[0] == "0"
    assert cold[1:] == warm[1:]


def test_a_package_without_a_version_file_is_named_by_its_facts():
    assert compiler._version("elftools") == ""  # Installed under another name.
    assert compiler._version("no_such_package") == ""
    assert compiler._version("capstone") == metadata.version("capstone")
    assert metadata.version("numba") in compiler._version("numba")


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_collector_is_left_as_it_was(own_cache: Path, is_enabled: bool):
    assert gc.isenabled()
    if not is_enabled:
        gc.disable()
    try:
        assert not build(make().SPEC).cached
        assert gc.isenabled() == is_enabled
        with pytest.raises(chronicle.AuditRefused):
            build(make(limit="[1]").SPEC)
        assert gc.isenabled() == is_enabled
    finally:
        gc.enable()


@pytest.mark.parametrize("missing", ["numba", "llvmlite", "capstone", "elftools"])
def test_what_is_not_installed_is_named(folder: Path, missing: str):
    module = folder / "lacking.py"
    module.write_text(SOURCE.format(**PLAIN))
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import lacking, chronicle; from chronicle.hot.compile import program_for\n"
        "try:\n    program_for(lacking.Kept())\n"
        "except chronicle.CompileError as error:\n    print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, check=True, env=environment, text=True)
    assert missing in done.stdout
    assert "install chronicle-python[hot]" in done.stdout
    assert done.stderr == ""


def test_two_processes_that_compile_at_once_both_win(own_cache: Path, folder: Path):
    module = folder / "twice.py"
    module.write_text(SOURCE.format(**PLAIN))
    program = (
        "import twice; from chronicle.hot.compile import build\n"
        "made = build(twice.Kept.SPEC); print(made.key, hash(made.image))"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONHASHSEED": "0"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, text=True
        )
        for _ in range(3)
    ]
    found = {process.communicate()[0] for process in running}
    assert all(process.returncode == 0 for process in running)
    assert len(found) == 1
    assert len(entries(own_cache)) == 1
    assert not list(own_cache.glob(".new-*"))


def test_threads_that_compile_at_once_all_win():
    classes = [make(f"thread_{n}.py", factor=str(3 + n % 2)) for n in range(6)]
    results: list[int] = []

    def compile_one(cls: type[Handler]) -> None:
        results.append(len(build(cls.SPEC, use_cache=False).image))

    threads = [threading.Thread(target=compile_one, args=(cls,)) for cls in classes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    tick = classes[0].SPEC.entries[0].message(price=1)
    assert run_compiled(classes[0](), [Step(tick)]).statuses == [0]


def test_the_object_is_the_same_each_time():
    first = build(make().SPEC, use_cache=False)
    second = build(make("elsewhere.py").SPEC, use_cache=False)
    third = build(make().SPEC, use_cache=False)
    assert first.image == third.image
    assert first.key == third.key != second.key


def test_code_lives_as_long_as_its_program():
    cls = make()
    harness = Harness(cls(), program_for(cls(), symbols=SYMBOLS))
    tick = cls.SPEC.entries[0].message(price=5)
    for _ in range(20):
        program_for(make(factor="7")(), symbols=SYMBOLS)
    assert harness.send(tick) == 0
