"""`chronicle top` over a bus whose names, numbers and terminals are as bad as they can be."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle.bus import Bus
from chronicle.cli import main
from chronicle.heartbeat import Heartbeat
from chronicle.hot import CountersFile
from chronicle.report import page
from chronicle.report.bus import collect
from chronicle.top import Collector
from chronicle.top import collect as collect_module
from chronicle.top.app import TopApp
from chronicle.top.document import document
from chronicle.top.tables import table_of
from chronicle.top.watch import View, Watch

from tests.queue_support import Trade, fill, publisher, subscriber
from tests.top_support import Looks, look, queue, screen_text, thread

#: Clears a screen, sets its title, turns text round, ends a line, opens a link.
EVIL = "a\x1b[2J\x1b]0;owned\x07\u202eb\nc\x9b31m"
#: What a file system has for a name that is no text.
NO_TEXT = os.fsdecode(b"\xff\xfe")
HUGE = 10**400


@pytest.fixture
def bus(folder: Path) -> Path:
    """Make a bus with `EVIL` in every place where somebody else chooses the text."""
    for name in (EVIL, NO_TEXT, "a\\x1b[2J"):
        with publisher(folder / f"q{name}", schema=[Trade]) as writer:
            writer.publish(Trade(price=1, symbol=b"\x1b[2J", qty=1))
            writer.append(9, EVIL.encode())
        with subscriber(folder / f"q{name}", "risk") as reader:
            reader.next()
            reader.commit()
        readers = folder / f"q{name}" / "readers"
        (readers / f"{EVIL}.cursor").write_bytes(b"no cursor")
    process = folder / f"p{EVIL}"
    process.mkdir()
    counters = CountersFile.create(process / "COUNTERS")
    thread_told = {
        "block": 4,
        "name": EVIL,
        "core": True,
        "settings": dict.fromkeys(SETTINGS, EVIL),
        "counters": [EVIL],
        "warnings": [EVIL],
        "failure": EVIL,
        EVIL: 1,
        "guard_seen": HUGE,
        "segments_kept": -HUGE,
        "rolls_late": HUGE,
        "guard_lost": HUGE,
        "kernel": {"faults_minor": HUGE, "switches_involuntary": -HUGE},
    }
    told = dict.fromkeys(("state", "last_error", "detail"), EVIL)
    line = {"number": 1, "at_ns": 10**30, "level": EVIL, "logger": EVIL, "text": EVIL}
    counters.publish(
        {
            "threads": [thread_told, {**thread_told, "block": 5}],
            "cpu_s": 1e308,
            "services": {EVIL: told, "a\\x1b": told, "a\x1b": told},
            "log": [line],
            "words": ["turns", EVIL],
        }
    )
    counters.close()
    (folder / f"r{EVIL}").mkdir()
    (folder / f"r{EVIL}" / "COUNTERS").write_bytes(b"none")
    (folder / f"e{EVIL}").mkdir()
    (folder / f"e{EVIL}" / "LEASE").write_bytes(EVIL.encode())
    return folder


SETTINGS = ("guard", "wait", "meter")


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from (*texts(key), *texts(one))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts(one)


def view_of(path: Path) -> View:
    watch, collector = Watch(), Collector(path)
    watch.add(collector.look())
    return watch.add(collector.look())


def test_nothing_on_a_bus_can_steer_a_terminal(bus: Path) -> None:
    found = document(view_of(bus))
    for one in found["queues"]:
        # For programs: as the file system has it.
        assert Path(one.pop("path")).is_dir()
    assert {text for text in texts(found) if not text.isprintable()} == set()
    assert len({one["name"] for one in found["queues"]}) == 3
    assert len(found["threads"]) == 2
    assert [one["name"] for one in found["threads"]][1].endswith(" (2)")


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_what_is_printed_is_text(
    bus: Path, capsys: pytest.CaptureFixture[str], as_json: list[str]
) -> None:
    assert main(["top", str(bus), "--once", "--interval", "0.05", *as_json]) == 0
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.splitlines())
    printed.encode()


def test_no_screen_passes_on_what_could_steer_it(bus: Path) -> None:
    async def run() -> None:
        app = TopApp(Collector(bus), interval_s=None)
        async with app.run_test(size=(300, 80)) as pilot:
            for keys in ("2", "enter", "escape 3", "enter", "escape 4", "enter", "escape 5", "6"):
                await pilot.press(*keys.split())
                app.look_now()
                await pilot.pause(0.1)
                drawn = app.screen._compositor.render_strips()
                for strip in drawn:
                    assert "".join(segment.text for segment in strip).isprintable(), keys

    asyncio.run(run())


PLACES = (
    *("COUNTERS", "LEASE", "LOCK", "READY", "out", "out/control", "out/heartbeat", "out/readers"),
    *("out/queue.json", "out/segments", "out/segments.table", "out/writer.lock"),
    *("out/readers/r.cursor", "out/segments/00000000000000000000.seg"),
)


def put(kind: str, path: Path) -> None:
    """Put something into the place of a file or a directory."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "empty":
            path.touch()
        case "loop":
            path.symlink_to(path)
        case "link":
            path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["pipe", "directory", "empty", "loop", "link", "nothing"])
@pytest.mark.parametrize("place", PLACES)
def test_whatever_stands_in_the_place_of_a_file_stops_no_look(
    folder: Path, place: str, kind: str
) -> None:
    made, bus = folder / "made", folder / "bus"
    with Bus(made).open_endpoint("alpha") as endpoint:
        with publisher(made / "alpha" / "out", schema=[Trade]) as writer:
            fill(writer, 10)
            subscriber(made / "alpha" / "out", "r").close()
        (made / "alpha" / "out" / "heartbeat").write_bytes(Heartbeat(1, 2, 3, 4).pack())
        endpoint.ready(["out"])
        CountersFile.create(made / "alpha" / "COUNTERS").close()
        shutil.copytree(made, bus)
    put(kind, bus / "alpha" / place)
    # None of these waits or raises, and none loses the endpoint beside what is broken.
    assert [one["name"] for one in document(view_of(bus))["processes"]] == ["alpha"]
    assert "alpha" in page(collect(bus, taken="now"))
    assert "out" in chronicle.Queue(bus / "alpha" / "out")._repr_html_()


def test_numbers_that_cannot_be_are_left_out(bus: Path) -> None:
    for found in view_of(bus).look.threads:
        assert found.core is None
        assert found.outside.keys().isdisjoint(("guard_seen", "segments_kept", "rolls_late"))
        assert found.kernel is not None
        assert found.kernel.faults_minor == 0


def test_two_names_that_look_like_one_are_two_rows(folder: Path) -> None:
    for process, name in (("a", "b:c"), ("a:b", "c")):
        (folder / process).mkdir()
        counters = CountersFile.create(folder / process / "COUNTERS")
        counters.publish({"threads": [{"block": 4, "name": name}]})
        counters.close()
    table = table_of("threads", view_of(folder))
    assert [row.key for row in table.rows] == ["a:b:c", "a:b:c (2)"]


def test_a_wall_clock_that_steps_back_hides_no_process_that_stands(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = CountersFile.create(folder / "COUNTERS")
    counters.publish({})
    later_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 60 * 10**9
    monkeypatch.setattr(collect_module, "clock_ns", lambda: 0)
    monkeypatch.setattr(time, "clock_gettime_ns", lambda clock: later_ns)
    (found,) = Collector(folder).look().processes
    assert (found.state, found.reason) == ("stalled", "counters not told")
    assert found.told_age_s is not None
    assert 59 < found.told_age_s < 3_600
    counters.close()


def test_one_endpoint_can_be_looked_at_by_itself(folder: Path) -> None:
    with Bus(folder).open_endpoint("orders/alpha") as endpoint:
        endpoint.ready([])
        (found,) = Collector(folder / "orders" / "alpha").look().processes
        assert (found.name, found.state, found.reason) == (".", "alive", "")


#: What is pressed, and what the terminal becomes while the answer is drawn.
RESIZED = (
    ("2", (40, 10)),
    ("enter", (300, 80)),
    ("escape", (1, 1)),
    ("3", (10, 3)),
    ("enter", (40, 10)),
    ("escape", (80, 1)),
    ("1", (80, 24)),
)


def test_a_terminal_of_any_size_may_become_another_while_it_is_drawn_on() -> None:
    many = look(
        threads=tuple(thread(f"t{n}") for n in range(20)),
        queues=tuple(queue(f"q{n}") for n in range(50)),
    )

    async def run() -> str:
        app = TopApp(Looks(look(0), many, look(2)), interval_s=None)
        async with app.run_test(size=(80, 24)) as pilot:
            for key, size in RESIZED:
                await pilot.press(key)
                app.look_now()
                await pilot.resize_terminal(*size)
            app.look_now()
            await pilot.pause()
            return screen_text(app.export_screenshot())

    assert "clean: 2/2 alive, 2 hot, 2 queues" in asyncio.run(run())
