"""What the tests of `chronicle top` share: buses that are made up, and a screen as plain text."""

from __future__ import annotations

import html
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from chronicle.hot.meter import Histogram
from chronicle.top.model import (
    BusLook,
    KernelCounts,
    LogLine,
    ProcessLook,
    QueueLook,
    ReaderLook,
    ServiceLook,
    ThreadLook,
)
from textual.app import App
from textual.pilot import Pilot

SNAPSHOTS = Path(__file__).parent / "unit" / "top_snapshots"
AT_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
#: How long a screen may take to become what it should be. Nothing passes by being slow.
PATIENCE_S = 30.0
_CELL_WIDTH = 12.2
_TEXT = re.compile(
    r'<text class="[^"]*" x="([\d.]+)" y="[\d.]+" textLength="[\d.]+" '
    r'clip-path="url\(#[^)]*-line-(\d+)\)">([^<]*)</text>'
)


def screen_text(svg: str) -> str:
    """Return what stands on a screen, line by line, out of Textual's picture of it."""
    lines: dict[int, dict[int, str]] = {}
    for found in _TEXT.finditer(svg):
        line = lines.setdefault(int(found[2]), {})
        column = round(float(found[1]) / _CELL_WIDTH)
        for offset, character in enumerate(html.unescape(found[3])):
            line[column + offset] = character.replace("\xa0", " ")
    text = []
    for number in range(max(lines, default=-1) + 1):
        line = lines.get(number, {})
        text.append("".join(line.get(i, " ") for i in range(max(line, default=-1) + 1)).rstrip())
    # Textual counts lines as pixels do: the empty ones between are none of ours.
    return "\n".join(text).rstrip() + "\n"


async def expect_snapshot(app: App[None], pilot: Pilot[None], name: str) -> None:
    """Wait until the screen is what was seen to be right.

    CHRONICLE_SNAPSHOTS=write takes what there is, once it changes no more.
    """
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("CHRONICLE_SNAPSHOTS") == "write":
        path.parent.mkdir(exist_ok=True)
        before = ""
        while (text := screen_text(app.export_screenshot())) != before:
            before = text
            await pilot.pause(0.5)
        path.write_text(text)
        return
    wanted = path.read_text()
    end_s = time.monotonic() + PATIENCE_S
    while (text := screen_text(app.export_screenshot())) != wanted and time.monotonic() < end_s:
        await pilot.pause(0.01)
    assert text == wanted, f"'{path}' differs; look at it, then CHRONICLE_SNAPSHOTS=write"


def times(*buckets: tuple[int, int]) -> Histogram:
    return Histogram(buckets, buckets[-1][0] if buckets else 0)


def thread(name: str = "ewma", **changes: Any) -> ThreadLook:
    words = {
        "turns": 9_000_000,
        "messages": 50_000,
        "appends": 40_000,
        "sources": 2,
        "started_ns": 5,
        "thread_id": 4_242,
    }
    words |= changes.pop("words", {})
    outside = {"guard_seen": 0, "rolls_late": 0, "guard_lost": 0} | changes.pop("outside", {})
    made = ThreadLook(
        "orders/alpha",
        name,
        "running",
        core=3,
        guard="enforce",
        wait="spin",
        meter="loop",
        thread_id=words["thread_id"],
        words=words,
        outside=outside,
        counters={"fills": 12},
        loop_gap=times((40, 900_000), (90, 99_000), (1_500, 900), (40_000, 99), (200_000, 1)),
        handler_time=times((60, 700), (300, 80), (2_000, 1)),
        kernel=KernelCounts(100, 0, 2, 5),
        supervised=True,
    )
    return replace(made, **changes)


def queue(name: str = "orders/alpha/out", **changes: Any) -> QueueLook:
    made = QueueLook(
        name,
        f"/bus/{name}",
        queue_id="ab" * 16,
        epoch=3,
        writer_live=True,
        writer_pid=4_200,
        next_seq=100_001,
        position=9_000_000,
        newest_ns=AT_NS - 2 * SECOND_NS,
        durable_seq=90_000,
        segment_bytes=1 << 20,
        segments=10,
        tail_segment=8,
        rolls=8,
        readers=(
            ReaderLook("risk", live=True, pid=4_300, next_seq=100_001, position=9_000_000),
            ReaderLook(
                "slow", True, 4_301, 90_001, 8_000_000, lag_messages=10_000, lag_bytes=1_000_000
            ),
        ),
        held_by="slow",
    )
    return replace(made, **changes)


def process(name: str = "orders/alpha", **changes: Any) -> ProcessLook:
    made = ProcessLook(
        name,
        "alive",
        instance="cd" * 16,
        pid=4_200,
        ready=True,
        epoch=3,
        told_age_s=0.2,
        cpu_s=10.0,
        services=(
            ServiceLook("hot ewma", "running", 0, "", "", healthy=True),
            ServiceLook("mirror out", "running", 1, "", "copied 12", healthy=True),
        ),
        log=(
            LogLine(1, AT_NS - SECOND_NS, "INFO", "chronicle.hot.ewma", "mean 2.25 after 100"),
            LogLine(2, AT_NS, "WARNING", "chronicle.sidecar", "service 'x' failed"),
        ),
    )
    return replace(made, **changes)


def look(second: int = 0, **changes: Any) -> BusLook:
    made = BusLook(
        "/dev/shm/bus",
        AT_NS + second * SECOND_NS,
        second * SECOND_NS,
        processes=(
            process(cpu_s=10.0 + second / 4),
            process("streams/iex", instance="ef" * 16, pid=4_100, services=(), log=()),
        ),
        threads=(
            thread(
                words={"messages": 50_000 + 16_500 * second, "turns": 9_000_000 + 10**6 * second},
                loop_gap=times(
                    (40, 900_000 + 900_000 * second),
                    (90, 99_000 + 90_000 * second),
                    (1_500, 900 + 1_000 * second),
                    (40_000, 99 + 10 * second),
                    (200_000, 1),
                ),
                handler_time=times((60, 700 + 200 * second), (300, 80 + 60 * second), (2_000, 1)),
            ),
            thread("quoter", state="parked", core=None, guard="observe", thread_id=4_243),
        ),
        queues=(
            queue(next_seq=100_001 + 16_500 * second, position=9_000_000 + 1_200_000 * second),
            queue("streams/iex/quotes", readers=(), held_by="", queue_id="cd" * 16, rolls_inline=4),
        ),
    )
    return replace(made, **changes)


class Looks:
    """Gives looks that were made up, one after the other; the last one again and again."""

    def __init__(self, *looks: BusLook) -> None:
        self._left = list(looks)

    def look(self) -> BusLook:
        return self._left.pop(0) if len(self._left) > 1 else self._left[0]
