"""A table on the screen: shows a `Table`, and keeps cursor, order and place while it changes."""

from __future__ import annotations

from typing import Final

from rich.text import Text
from textual.widgets import DataTable
from textual.widgets.data_table import RowDoesNotExist

from chronicle.top.tables import Cell, Column, Table, Tone, widths

__all__ = ["STYLES", "Board"]

STYLES: Final[dict[Tone, str]] = {
    "": "",
    "good": "green",
    "warn": "yellow",
    "bad": "bold red",
    "dim": "dim",
}


class Board(DataTable[Text]):
    """Rows of a `Table`, sorted and filtered as the user likes.

    Attributes
    ----------
    by, descending
        The column that it is sorted by; empty: as the table comes.
    """

    DEFAULT_CSS = """
    Board { height: 1fr; }
    Board > .datatable--header { text-style: bold; }
    Board > .datatable--cursor { background: $primary 20%; text-style: none; }
    Board:focus > .datatable--cursor { background: $primary 50%; text-style: none; }
    """

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's word
        super().__init__(
            id=id,
            cursor_type="row",
            cell_padding=0,
            # How bad something is must be seen under the cursor too.
            cursor_foreground_priority="renderable",
        )
        self.by = ""
        self.descending = False
        self._shown: Table | None = None
        self._titles: tuple[str, ...] = ()
        # Ours: Textual would look at all rows again for each cell that changes.
        self._widths: list[int] = []

    def show(self, table: Table, text: str = "") -> None:
        """Show a table: only the rows in which `text` stands."""
        chosen = table.chosen(text=text, by=self.by, descending=self.descending)
        titles = tuple(self._title(column) for column in chosen.columns)
        keys = [row.key for row in chosen.rows]
        needed = [max(w, len(t)) for w, t in zip(widths(chosen), titles, strict=True)]
        shown = self._shown
        is_same = titles == self._titles and needed == self._widths
        if shown is not None and is_same and keys == [row.key for row in shown.rows]:
            self._change_cells(shown, chosen)
        else:
            self._rebuild(chosen, titles, needed)

    def _title(self, column: Column) -> str:
        mark = ("▼" if self.descending else "▲") if column.title == self.by else ""
        return column.title + mark

    def _change_cells(self, old: Table, new: Table) -> None:
        for before, row in zip(old.rows, new.rows, strict=True):
            for column, was, cell in zip(new.columns, before.cells, row.cells, strict=True):
                if was.text != cell.text or was.tone != cell.tone:
                    first = column is new.columns[0]
                    self.update_cell(row.key, column.title, _shown(cell, column, first=first))
        self._shown = new

    def _rebuild(self, table: Table, titles: tuple[str, ...], needed: list[int]) -> None:
        key = self.key_at_cursor
        row_before, x, y = self.cursor_row, self.scroll_x, self.scroll_y
        is_new = titles != self._titles or needed != self._widths
        self.clear(columns=is_new)
        if is_new:
            for column, title, width in zip(table.columns, titles, needed, strict=True):
                first = column is table.columns[0]
                label = Text(
                    title if first else f" {title}",
                    justify="right" if column.is_number else "left",
                )
                self.add_column(label, key=column.title, width=width + (not first))
        for row in table.rows:
            cells = [
                _shown(cell, column, first=column is table.columns[0])
                for column, cell in zip(table.columns, row.cells, strict=True)
            ]
            self.add_row(*cells, key=row.key)
        self._titles, self._widths, self._shown = titles, needed, table
        try:
            place = self.get_row_index(key) if key is not None else 0
        except RowDoesNotExist:
            place = row_before
        if table.rows:
            self.move_cursor(row=min(place, len(table.rows) - 1), scroll=False)
            self.scroll_to(x, y, animate=False)

    @property
    def key_at_cursor(self) -> str | None:
        """The key of the row that the cursor is on."""
        rows = () if self._shown is None else self._shown.rows
        return rows[self.cursor_row].key if 0 <= self.cursor_row < len(rows) else None

    def sort_by(self, title: str) -> None:
        """Sort by a column; again: the other way round; a third time: as the table comes."""
        if self.by != title:
            # What is high matters, in numbers; in names the beginning of the alphabet.
            self.by, self.descending = title, self._is_number(title)
        elif self.descending == self._is_number(title):
            self.descending = not self.descending
        else:
            self.by, self.descending = "", False

    def sort_by_next(self) -> None:
        """Sort by the next column; after the last one as the table comes."""
        titles = [""] + [column.title for column in (self._shown.columns if self._shown else ())]
        at = titles.index(self.by) + 1 if self.by in titles else 1
        self.by = titles[at % len(titles)]
        self.descending = self._is_number(self.by)

    def _is_number(self, title: str) -> bool:
        columns = self._shown.columns if self._shown else ()
        return any(column.title == title and column.is_number for column in columns)

    def title_at(self, index: int) -> str:
        """Return the title of a column."""
        return "" if self._shown is None else self._shown.columns[index].title


def _shown(cell: Cell, column: Column, *, first: bool) -> Text:
    # A blank before each column but the first: Rich would take one behind it away.
    text = cell.text if first else f" {cell.text}"
    return Text(text, STYLES[cell.tone], justify="right" if column.is_number else "left")
