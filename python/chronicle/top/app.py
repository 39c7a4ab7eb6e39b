"""The dashboard. It shows views (`watch`) as tables (`tables`); it looks at nothing itself."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import ClassVar, Final

from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import DataTable, Footer, Input, Static, TabbedContent, TabPane

from chronicle.top.board import STYLES, Board
from chronicle.top.screens import Detail, Help, ProcessDetail, QueueDetail, ThreadDetail
from chronicle.top.tables import KINDS, Kind, clock_text, summary, table_of
from chronicle.top.watch import Looks, View, Watch

__all__ = ["TopApp"]

_FACTOR: Final = 1.5
_INTERVAL_S_MIN: Final = 0.05
_INTERVAL_S_MAX: Final = 3_600.0
_PAGES: Final[tuple[Kind, ...]] = ("threads", "queues", "processes", "events", "log")
_AT_A_GLANCE: Final[tuple[Kind, ...]] = ("processes", "threads", "queues", "events")
_DETAILS: Final[dict[str, type[Detail]]] = {
    "process": ProcessDetail,
    "thread": ThreadDetail,
    "queue": QueueDetail,
}


class TopApp(App[None]):
    """Shows a bus.

    Parameters
    ----------
    looks
        Where looks come from.
    interval_s
        Time between two; ``None``: only `show` brings new ones, as in tests.
    """

    TITLE = "chronicle top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #summary { height: 1; background: $panel; padding: 0 1; }
    #filter { dock: bottom; height: 1; border: none; display: none; }
    #filter.open { display: block; }
    TabbedContent { height: 1fr; }
    TabPane { padding: 0; }
    #all Board { scrollbar-size-horizontal: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("s", "sort", "sort"),
        Binding("S", "reverse", "reverse", show=False),
        Binding("p", "pause", "pause"),
        Binding("r", "restart", "recount"),
        Binding("plus,equals_sign", "interval(-1)", "faster", show=False),
        Binding("minus", "interval(1)", "slower", show=False),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("escape", "end_filter", show=False),
        *(
            Binding(str(number + 1), f"page('{name}')", show=False)
            for number, name in enumerate(("all", *_PAGES))
        ),
    ]

    def __init__(self, looks: Looks, *, interval_s: float | None) -> None:
        super().__init__()
        # What moves is what has changed, and nothing else; that is also less to send.
        self.animation_level = "none"
        self._looks = looks
        self.interval_s = interval_s
        self._watch = Watch()
        self._filter = ""
        self._paused = False
        self._signals: tuple[signal.Signals, ...] = ()
        self.view: View | None = None

    def compose(self) -> ComposeResult:
        """Make a line, pages of tables, the keys."""
        yield Static(id="summary")
        with TabbedContent(initial="all"):
            with TabPane("1 all", id="all"):
                with Vertical():
                    for kind in _AT_A_GLANCE:
                        yield Board(id=f"all-{kind}")
            for number, kind in enumerate(_PAGES):
                with TabPane(f"{number + 2} {kind}", id=kind):
                    yield Board(id=f"page-{kind}")
        yield Input(id="filter", placeholder="filter: a text that stands in a row", compact=True)
        yield Footer()

    def end_on_signals(self) -> None:
        """Let SIGTERM and SIGINT end it in order: the terminal is given back as it was."""
        self._signals = (signal.SIGTERM, signal.SIGINT)

    def on_mount(self) -> None:
        """Begin to look."""
        for number in self._signals:
            leave = partial(self.exit, return_code=128 + number)
            asyncio.get_running_loop().add_signal_handler(number, leave)
        self.query_one("#all-threads", Board).focus()
        if self.interval_s is not None:
            self.run_worker(self._look_on(), exclusive=True, name="looks")

    async def _look_on(self) -> None:
        assert self.interval_s is not None
        while True:
            if not self._paused:
                # In a thread: what is looked at may be slow, and keys should not wait for it.
                view = await asyncio.to_thread(self._look)
                if not self._paused:
                    self._show(view)
            await asyncio.sleep(self.interval_s)

    def _look(self) -> View:
        return self._watch.add(self._looks.look())

    def look_now(self) -> None:
        """Look once more, and show it. For tests and pictures."""
        self._show(self._look())

    def _show(self, view: View) -> None:
        self.view = view
        self._refresh()
        if isinstance(self.screen, Detail):
            self.screen.show(view)

    def _refresh(self) -> None:
        view = self.view
        if view is None:
            return
        tables = {kind: table_of(kind, view) for kind in KINDS}
        base = self.screen_stack[0]
        for board in base.query(Board):
            kind = (board.id or "").partition("-")[2]
            board.show(tables[kind], self._filter)  # type: ignore[index]
        text, tone = summary(view)
        line = Text(f"{clock_text(view.look.at_ns)[:8]} ", "dim")
        line.append(text, STYLES[tone])
        marks = [f"filter '{self._filter}'"] if self._filter else []
        marks += ["paused"] if self._paused else []
        if marks:
            line.append(f"  [{', '.join(marks)}]", "reverse")
        # None of them, once the app ends while a look is on its way.
        for static in base.query("#summary").results(Static):
            static.update(line)

    # --- Keys and mouse ---

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what concerns the tables only where they are seen."""
        if action in ("filter", "page", "end_filter"):
            return len(self.screen_stack) == 1
        return super().check_action(action, parameters)

    def _board(self) -> Board | None:
        """Return the table that has the focus, or the first one of the page."""
        if isinstance(self.focused, Board):
            return self.focused
        if len(self.screen_stack) > 1:
            return next(iter(self.screen.query(Board)), None)
        page = self.query_one(TabbedContent).active_pane
        return None if page is None else next(iter(page.query(Board)), None)

    @on(DataTable.HeaderSelected)
    def _sort_by_head(self, event: DataTable.HeaderSelected) -> None:
        board = event.data_table
        if isinstance(board, Board):
            board.sort_by(board.title_at(event.column_index))
            self._show_again()

    def action_sort(self) -> None:
        """Sort by the next column."""
        if (board := self._board()) is not None:
            board.sort_by_next()
            self._show_again()

    def action_reverse(self) -> None:
        """Sort the other way round."""
        board = self._board()
        if board is not None and board.by:
            board.descending = not board.descending
            self._show_again()

    def _show_again(self) -> None:
        if self.view is not None:
            self._show(self.view)

    def action_page(self, name: str) -> None:
        """Show a page."""
        if len(self.screen_stack) == 1:
            self.query_one(TabbedContent).active = name
            board = next(iter(self.query_one(f"#{name}", TabPane).query(Board)))
            board.focus()

    def action_filter(self) -> None:
        """Ask for the filter."""
        if len(self.screen_stack) == 1:
            field = self.query_one("#filter", Input)
            field.add_class("open")
            field.focus()

    @on(Input.Changed, "#filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        self._filter = event.value
        self._refresh()

    @on(Input.Submitted, "#filter")
    def _filter_set(self) -> None:
        self._close_filter()

    def action_end_filter(self) -> None:
        """Show all rows again."""
        self.query_one("#filter", Input).value = ""
        self._close_filter()

    def _close_filter(self) -> None:
        self.query_one("#filter", Input).remove_class("open")
        if (board := self._board()) is not None:
            board.focus()

    def action_pause(self) -> None:
        """Look no more, or look again."""
        self._paused = not self._paused
        self._refresh()

    def action_restart(self) -> None:
        """Count anew from now."""
        self._watch.restart()
        if self.view is not None and self.interval_s is not None:
            self._paused = False

    def action_interval(self, direction: int) -> None:
        """Look more or less often."""
        if self.interval_s is not None:
            longer = self.interval_s * _FACTOR**direction
            self.interval_s = min(_INTERVAL_S_MAX, max(_INTERVAL_S_MIN, longer))
            self.notify(f"looks every {self.interval_s:.2g} s", timeout=2)

    def action_help(self) -> None:
        """Show all keys and columns."""
        if self.view is not None and not isinstance(self.screen, Help):
            self.push_screen(Help(self.view))

    @on(DataTable.RowSelected)
    def _open(self, event: DataTable.RowSelected) -> None:
        """Open what the row is about."""
        view, board = self.view, event.data_table
        key = event.row_key.value
        if view is None or key is None or len(self.screen_stack) > 1 or board.id is None:
            return
        kind = board.id.partition("-")[2]
        if kind == "events":
            found = view.events[int(key)] if int(key) < len(view.events) else None
            what, name = ("", "") if found is None else (found.kind, found.subject)
        elif kind == "log":
            what, name = "process", key.rsplit(" ", 2)[0]
        else:
            what, name = {"threads": "thread", "queues": "queue"}.get(kind, "process"), key
        if what in _DETAILS:
            self.push_screen(_DETAILS[what](name, view))
