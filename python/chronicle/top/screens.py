"""What opens over the dashboard: one thread, one queue, one process, and the help."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Static

from chronicle.errors import ChronicleError
from chronicle.hot.meter import Histogram
from chronicle.top import details
from chronicle.top.board import Board
from chronicle.top.changes import NO_RATES, thread_name
from chronicle.top.messages import last_lines, printable
from chronicle.top.model import ProcessLook, QueueLook, ThreadLook
from chronicle.top.tables import KINDS, clock_text, table_of
from chronicle.top.watch import View

__all__ = ["Detail", "Help", "ProcessDetail", "QueueDetail", "ThreadDetail"]

T = TypeVar("T")

_BACK: Final[list[BindingType]] = [
    Binding("escape,backspace", "app.pop_screen", "back"),
    Binding("q", "app.quit", "quit"),
]
_MESSAGES: Final = 50


class Detail(Screen[None]):
    """One thing of a bus, shown anew at every look."""

    BINDINGS: ClassVar[list[BindingType]] = _BACK

    def __init__(self, key: str, view: View) -> None:
        super().__init__()
        self.key = key
        self._view = view

    def on_mount(self) -> None:
        """Show what is known already."""
        self.show(self._view)

    def on_resize(self) -> None:
        """Draw anew: lines have the width of the screen."""
        self.show(self._view)

    def show(self, view: View) -> None:
        """Show a view."""
        self._view = view

    def _gone(self, kind: str) -> Text:
        return Text(f"{kind} '{self.key}' is gone", "bold red")


class ThreadDetail(Detail):
    """A hot thread: its counts, and its times as histograms."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "toggle_times", "times: all/interval"),
        *_BACK,
    ]

    is_interval = False

    def compose(self) -> ComposeResult:
        """Text that scrolls."""
        with VerticalScroll():
            yield Static(id="facts")
            yield Static(id="times")
        yield Footer()

    def action_toggle_times(self) -> None:
        """Show the times of the last interval instead of all, or the other way round."""
        self.is_interval = not self.is_interval
        self.show(self._view)

    def show(self, view: View) -> None:
        """Show a view."""
        super().show(view)
        facts, times = self.query_one("#facts", Static), self.query_one("#times", Static)
        thread = _find(view.look.threads, thread_name, self.key)
        if thread is None:
            facts.update(self._gone("thread"))
            return
        facts.update(Text("\n".join(details.thread_lines(thread, view))))
        times.update(Text("\n".join(self._times(thread, view))))

    def _times(self, thread: ThreadLook, view: View) -> list[str]:
        rates = view.changes.threads.get(thread.key, NO_RATES)
        pairs: list[tuple[str, Histogram]] = [
            ("loop gap", rates.loop_gap if self.is_interval else thread.loop_gap),
            ("handler time", rates.handler_time if self.is_interval else thread.handler_time),
        ]
        span = "last interval" if self.is_interval else "since its start"
        width = max(40, self.size.width - 2)
        # Both fit beside the facts on a small screen, and have more bins on a large one.
        rows = max(5, (self.size.height - 16) // 2)
        lines = ["", f"times: {span}"]
        for name, times in pairs:
            lines += ["", *details.times_lines(name, times, width=width, rows=rows)]
        return lines


class QueueDetail(Detail):
    """A queue: facts, readers, last messages."""

    def compose(self) -> ComposeResult:
        """Facts above readers above messages."""
        yield Static(id="facts")
        yield Board(id="readers")
        with VerticalScroll():
            yield Static(id="messages")
        yield Footer()

    def show(self, view: View) -> None:
        """Show a view; the messages follow when they have been read."""
        super().show(view)
        facts = self.query_one("#facts", Static)
        queue = _find(view.look.queues, _queue_name, self.key)
        if queue is None:
            facts.update(self._gone("queue"))
            return
        facts.update(Text("\n".join(details.queue_lines(queue, view)) + "\n"))
        self.query_one("#readers", Board).show(details.readers_table(queue))
        self._read_messages(Path(queue.path))

    # So that it begins when its turn comes: the next look may be there before, and take its place.
    @work(exclusive=True)
    async def _read_messages(self, path: Path) -> None:
        text = await asyncio.to_thread(messages_text, path)
        self.query_one("#messages", Static).update(text)


def messages_text(path: Path) -> Text:
    """Return the last messages of a queue, newest first."""
    try:
        lines = last_lines(path, _MESSAGES)
    except (OSError, ChronicleError, ValueError) as error:
        return Text(f"messages cannot be read: {printable(str(error))}", "bold red")
    if not lines:
        return Text("no messages", "dim")
    text = Text("last messages, newest first", "bold", no_wrap=True, overflow="ellipsis")
    for seq, at_ns, name, body in reversed(lines):
        text.append(f"\n{seq:>10,}  {clock_text(at_ns)}  ", "not bold")
        text.append(f"{name:<12} ", "not bold cyan")
        text.append(body, "not bold")
    return text


class ProcessDetail(Detail):
    """A process: facts, services, last lines of its log."""

    def compose(self) -> ComposeResult:
        """Facts above services above the log."""
        yield Static(id="facts")
        yield Board(id="services")
        with VerticalScroll():
            yield Static(id="log")
        yield Footer()

    def show(self, view: View) -> None:
        """Show a view."""
        super().show(view)
        facts = self.query_one("#facts", Static)
        process = _find(view.look.processes, _process_name, self.key)
        if process is None:
            facts.update(self._gone("process"))
            return
        facts.update(Text("\n".join(details.process_lines(process, view)) + "\n"))
        self.query_one("#services", Board).show(details.services_table(process))
        lines = [
            f"{clock_text(line.at_ns)} {line.level.lower():<8} {line.logger}: {line.text}"
            for line in reversed(process.log)
        ]
        log = Text("\n".join(lines) or "it tells no log", no_wrap=True, overflow="ellipsis")
        self.query_one("#log", Static).update(log)


class Help(ModalScreen[None]):
    """All keys and all columns."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "app.pop_screen", "back"),
    ]
    DEFAULT_CSS = """
    Help { align: center middle; }
    Help VerticalScroll {
        width: 76; height: 90%; border: round $accent; background: $surface; padding: 0 1;
    }
    """

    KEYS: Final = (
        ("arrows, click", "choose a row; click a head to sort by it"),
        ("Enter, click", "open the chosen thread, queue or process; Escape closes"),
        ("Tab, 1 to 6", "the next table; a page"),
        ("/", "filter all tables by a text; Escape ends that"),
        ("s, S", "sort by the next column; the other way round"),
        ("p", "pause"),
        ("+, -", "look more often, less often"),
        ("r", "count anew from now, and forget the events"),
        ("t", "in a thread: times since its start, or of the last interval"),
        ("q", "quit"),
    )

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view

    def compose(self) -> ComposeResult:
        """One long text."""
        text = Text()
        for keys, meaning in self.KEYS:
            text.append(f"{keys:<14}", "bold").append(f" {meaning}\n")
        for kind in KINDS:
            text.append(f"\n{kind}\n", "bold underline")
            for column in table_of(kind, self._view).columns:
                text.append(f"{column.title:<14}", "bold").append(f" {column.meaning}\n")
        with VerticalScroll():
            yield Static(text)


def _queue_name(queue: QueueLook) -> str:
    return queue.name


def _process_name(process: ProcessLook) -> str:
    return process.name


def _find(items: Iterable[T], name: Callable[[T], str], wanted: str) -> T | None:
    return next((item for item in items if name(item) == wanted), None)
