"""The screens of `chronicle top`, as text; driven as a user would."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chronicle.hot.meter import Histogram
from chronicle.top.app import TopApp
from chronicle.top.board import Board
from chronicle.top.details import histogram_lines
from chronicle.top.model import BusLook
from chronicle.top.screens import Help, QueueDetail, ThreadDetail
from textual.pilot import Pilot
from textual.widgets import Input, TabbedContent

from tests.queue_support import Trade, publisher
from tests.top_support import Looks, expect_snapshot, look, process, queue, screen_text, thread

SMALL, LARGE = (80, 24), (140, 44)

Play = Callable[[TopApp, Pilot[None]], Awaitable[None]]


def play(*looks: BusLook, size: tuple[int, int] = SMALL, does: Play | None = None) -> str:
    """Show looks, do something, return what is on the screen."""

    async def run() -> str:
        app = TopApp(Looks(*looks), interval_s=None)
        async with app.run_test(size=size) as pilot:
            for _ in looks:
                app.look_now()
                await pilot.pause()
            if does is not None:
                await does(app, pilot)
                await pilot.pause()
            return screen_text(app.export_screenshot())

    return asyncio.run(run())


def troubled() -> BusLook:
    """Make a look with everything that can be wrong."""
    made = look(1)
    return replace(
        made,
        processes=(
            process(state="stalled", reason="heartbeat stale"),
            process("streams/iex", state="dead", reason="lock free", ready=False, services=()),
        ),
        threads=(
            replace(made.threads[0], state="failed", failure="boom in handler.py:7"),
            replace(made.threads[1], outside={"guard_seen": 3, "guard_lost": 1}),
        ),
        queues=(
            queue(problem="damaged at offset=8"),
            queue("streams/iex/quotes", writer_live=False, readers=(), queue_id="cd" * 16),
        ),
        problems=(("x/COUNTERS", "no counters file"),),
    )


#: What is pressed, one after the other, and the name of the screen that follows.
CALM = [
    ("", "glance"),
    ("2", "threads"),
    ("enter", "thread"),
    ("escape 3", "queues"),
    ("4 enter", "process"),
    ("escape 6", "log"),
    ("question_mark", "help"),
]


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "140x44"])
@pytest.mark.parametrize(
    ("looks", "screens"),
    [
        ((look(0), look(1)), CALM),
        ((look(0), troubled()), [("", "troubled"), ("5", "events")]),
        ((BusLook("/dev/shm/bus", 0, 0),), [("", "empty")]),
    ],
    ids=["calm", "troubled", "empty"],
)
def test_the_screens_are_those_that_were_seen_to_be_right(
    looks: tuple[BusLook, ...], screens: list[tuple[str, str]], size: tuple[int, int]
) -> None:
    async def visit(app: TopApp, pilot: Pilot[None]) -> None:
        for pressed, name in screens:
            await pilot.press(*pressed.split())
            await expect_snapshot(app, pilot, f"{name}-{size[0]}x{size[1]}")

    play(*looks, size=size, does=visit)


def test_at_80_columns_the_columns_that_matter_are_all_there() -> None:
    shown = play(look(0), look(1))
    head = next(line for line in shown.splitlines() if line.startswith("thread"))
    assert len(head) <= 80
    for title in ("state", "msg/s", "gap99", "g99.9", "gmax", "h99.9", "sys", "flt", "csw"):
        assert title in head.split()
    assert "guard" in head.split()


def first_cells(app: TopApp, board: str) -> list[str]:
    table = app.query_one(f"#{board}", Board)
    return [str(table.get_row_at(index)[0]) for index in range(table.row_count)]


def many() -> BusLook:
    return look(threads=tuple(thread(name, words={"parks": n}) for n, name in enumerate("dbca")))


def test_keys_sort_by_each_column_and_back() -> None:
    async def sort(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("2")
        assert first_cells(app, "page-threads") == ["d", "b", "c", "a"]
        await pilot.press("s")
        assert first_cells(app, "page-threads") == ["a", "b", "c", "d"]
        await pilot.press("S")
        assert first_cells(app, "page-threads") == ["d", "c", "b", "a"]
        board = app.query_one("#page-threads", Board)
        for _ in board.columns:
            await pilot.press("s")
        assert board.by == ""
        assert first_cells(app, "page-threads") == ["d", "b", "c", "a"]

    play(many(), does=sort)


def test_a_click_on_a_head_sorts_and_the_order_stays_when_things_change() -> None:
    async def click(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("2")
        await pilot.click("#page-threads", offset=(2, 0))
        assert first_cells(app, "page-threads") == ["a", "b", "c", "d"]
        await pilot.click("#page-threads", offset=(2, 0))
        assert first_cells(app, "page-threads") == ["d", "c", "b", "a"]
        app.look_now()
        await pilot.pause()
        assert first_cells(app, "page-threads") == ["d", "c", "b", "a", "Z"]
        await pilot.click("#page-threads", offset=(2, 0))
        assert first_cells(app, "page-threads") == ["d", "b", "c", "a", "Z"]

    later = replace(many(), threads=(*many().threads, thread("Z")))
    looks = [many(), later]

    async def run() -> None:
        app = TopApp(Looks(*looks), interval_s=None)
        async with app.run_test(size=SMALL) as pilot:
            app.look_now()
            await pilot.pause()
            await click(app, pilot)

    asyncio.run(run())


def test_the_filter_leaves_rows_in_all_tables_and_escape_ends_it() -> None:
    async def narrow(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("slash", *"iex")
        assert app.query_one("#filter", Input).has_class("open")
        await pilot.press("enter")
        await pilot.pause()
        assert not app.query_one("#filter", Input).has_class("open")
        assert first_cells(app, "all-queues") == ["streams/iex/quotes"]
        assert first_cells(app, "all-processes") == ["streams/iex"]
        assert first_cells(app, "all-threads") == []
        app.look_now()
        assert first_cells(app, "page-queues") == ["streams/iex/quotes"], "also in the next look"
        assert "[filter 'iex']" in screen_text(app.export_screenshot())
        await pilot.press("escape")
        await pilot.pause()
        assert len(first_cells(app, "all-queues")) == 2

    play(look(0), look(1), does=narrow)


def test_the_cursor_stays_on_its_row_when_rows_come_and_go() -> None:
    def named(names: str) -> BusLook:
        return look(threads=tuple(thread(name) for name in names))

    async def move(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("2", "down", "down")
        board = app.query_one("#page-threads", Board)
        assert board.key_at_cursor == "orders/alpha:c"
        app.look_now()
        await pilot.pause()
        assert board.key_at_cursor == "orders/alpha:c"
        assert board.cursor_row == 1
        app.look_now()
        await pilot.pause()
        assert board.key_at_cursor == "orders/alpha:d", "it is gone: the one in its place"

    async def run() -> None:
        app = TopApp(Looks(named("abcd"), named("bcde"), named("bde")), interval_s=None)
        async with app.run_test(size=SMALL) as pilot:
            app.look_now()
            await pilot.pause()
            await move(app, pilot)

    asyncio.run(run())


def test_a_double_click_on_a_thread_opens_it_and_it_follows_the_looks() -> None:
    async def open_thread(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("2")
        await pilot.click("#page-threads", offset=(2, 2))
        await pilot.click("#page-threads", offset=(2, 2))
        await pilot.pause()
        screen = app.screen
        assert isinstance(screen, ThreadDetail)
        assert screen.key == "orders/alpha:quoter"
        app.look_now()
        await pilot.pause()
        assert "thread 'orders/alpha:quoter' is gone" in screen_text(app.export_screenshot())
        await pilot.press("escape")
        assert not isinstance(app.screen, ThreadDetail)

    async def run() -> None:
        app = TopApp(Looks(look(0), look(1, threads=())), interval_s=None)
        async with app.run_test(size=SMALL) as pilot:
            app.look_now()
            await pilot.pause()
            await open_thread(app, pilot)

    asyncio.run(run())


def test_times_of_a_thread_are_since_its_start_or_of_the_last_interval() -> None:
    async def toggle(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("2", "enter")
        await expect_snapshot(app, pilot, "thread-80x24")
        await pilot.press("t")
        await expect_snapshot(app, pilot, "thread-interval-80x24")

    shown = play(look(0), look(1), does=toggle)
    assert "times: last interval" in shown
    assert "max 40us" in shown, "the highest one was before"


def test_a_queue_shows_its_readers_and_its_last_messages(folder: Path) -> None:
    with publisher(folder / "q", schema=[Trade]) as writer:
        for number in range(60):
            writer.publish(Trade(price=number, symbol=b"AAPL", qty=1), timestamp_ns=number * 10**9)

    async def open_queue(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("3", "enter")
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert isinstance(app.screen, QueueDetail)
        await expect_snapshot(app, pilot, "queue-80x24")

    shown = play(look(queues=(queue("q", path=str(folder / "q")),)), does=open_queue)
    assert "60  00:00:59.000  Trade" in shown


def test_an_event_opens_what_it_is_about() -> None:
    async def open_event(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("5")
        board = app.query_one("#page-events", Board)
        subjects = [str(board.get_row_at(index)[3]).strip() for index in range(board.row_count)]
        board.move_cursor(row=subjects.index("orders/alpha:ewma"))
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(app.screen, ThreadDetail)
        assert app.screen.key == "orders/alpha:ewma"

    play(look(0), troubled(), does=open_event)


def test_all_pages_are_reached_by_keys_and_by_mouse() -> None:
    async def visit(app: TopApp, pilot: Pilot[None]) -> None:
        tabs = app.query_one(TabbedContent)
        pages = ("all", "threads", "queues", "processes", "events", "log")
        for number, name in enumerate(pages, start=1):
            await pilot.press(str(number))
            await pilot.pause()
            assert tabs.active == name
        await pilot.click("#--content-tab-queues")
        await pilot.pause()
        assert tabs.active == "queues"
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(app.screen, Help)
        await pilot.press("3", "slash", "escape")
        assert not isinstance(app.screen, Help)

    play(look(0), does=visit)


def test_while_it_is_paused_nothing_changes() -> None:
    class Counting(Looks):
        count = 0

        def look(self) -> BusLook:
            self.count += 1
            return super().look()

    async def run() -> None:
        looks = Counting(look(0))
        app = TopApp(looks, interval_s=0.001)
        async with app.run_test(size=SMALL) as pilot:
            while looks.count < 3:
                await pilot.pause(0.001)
            await pilot.press("p")
            # One may be on its way.
            await pilot.pause(0.02)
            seen = looks.count
            await pilot.pause(0.05)
            assert looks.count <= seen + 1
            assert "[paused]" in screen_text(app.export_screenshot())
            await pilot.press("p")
            while looks.count < seen + 3:
                await pilot.pause(0.001)
            await pilot.press("plus")
            assert app.interval_s == pytest.approx(0.05), "it is never less"
            await pilot.press("minus")
            assert app.interval_s == pytest.approx(0.05 * 1.5)
            await pilot.press("plus", "plus")
            assert app.interval_s == pytest.approx(0.05)

    asyncio.run(run())


def test_colours_follow_how_bad_things_are() -> None:
    async def look_at_styles(app: TopApp, pilot: Pilot[None]) -> None:
        board = app.query_one("#all-threads", Board)
        cells: list[Any] = board.get_row_at(0)
        assert cells[1].plain.strip() == "FAIL"
        assert cells[1].style == "bold red"
        other: list[Any] = board.get_row_at(1)
        assert [str(cell.style) for cell in (other[1], other[8], other[11])] == [
            *("green", "bold red", "bold red")
        ]

    play(look(0), troubled(), does=look_at_styles)


def test_a_histogram_keeps_every_count_whatever_room_it_has() -> None:
    times = Histogram([(10**n + 3, n + 1) for n in range(10)], 10**9 + 3)
    for rows in (3, 5, 9, 40):
        lines = histogram_lines(times, width=60, rows=rows)
        assert len(lines) <= max(rows, 3)
        assert sum(int(line.split()[-2]) for line in lines if line.endswith("%")) == times.count


def test_the_shares_of_a_histogram_stand_below_each_other() -> None:
    times = Histogram([(10, 9), (100, 16_544), (1_000, 999_400), (10_000, 1_200_000)], 10_000)
    lines = histogram_lines(times, width=60, rows=9)
    assert {len(line) for line in lines if line.endswith("%")} == {60}


def test_columns_become_as_wide_as_what_stands_in_them() -> None:
    async def grow(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("2")
        shown = screen_text(app.export_screenshot()).splitlines()
        assert any(line.startswith("a      run") for line in shown)
        app.look_now()
        await pilot.pause()
        shown = screen_text(app.export_screenshot()).splitlines()
        assert any(line.startswith("a               run") for line in shown)

    async def run() -> None:
        longer = look(threads=(thread("a"), thread("a-longer-thread")))
        app = TopApp(Looks(look(threads=(thread("a"),)), longer), interval_s=None)
        async with app.run_test(size=SMALL) as pilot:
            app.look_now()
            await pilot.pause()
            await grow(app, pilot)

    asyncio.run(run())
