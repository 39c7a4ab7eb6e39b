"""What a report is made of, and how it is kept: plain data, as JSON.

A page carries its own run in an element of type ``application/json``; `read_run` takes it out of
there again, or reads a file that has nothing else. What is read is checked against the types and
bounds below and is trusted no further: the page escapes all of it.
"""

from __future__ import annotations

import html.parser
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from chronicle.errors import DecodeError
from chronicle.hot.meter import Histogram
from chronicle.markup import clean

__all__ = [
    "Figure",
    "Mark",
    "Run",
    "Series",
    "Table",
    "Timeline",
    "Window",
    "bucket_counts",
    "read_run",
    "timeline_of",
    "within_bounds",
]

_T = TypeVar("_T")

DATA_ID: Final = "chronicle-run"
"""The id of the element of a page that holds its run."""

_FILE_BYTES_MAX: Final = 64 << 20
_LINEAR_BITS: Final = 5
_COUNT_MAX: Final = (1 << 63) - 1
_TEXT_MAX: Final = 4_096
#: Of anything that a run has a list of; what is longer is no page for people.
_PARTS_MAX: Final = 1_000
_WINDOWS_MAX: Final = 10_000
_MARKS_MAX: Final = 100_000
_ROWS_MAX: Final = 10_000

Count = Annotated[int, msgspec.Meta(ge=0, le=_COUNT_MAX)]
Number = Annotated[float, msgspec.Meta(ge=0, le=1e18)]
Text = Annotated[str, msgspec.Meta(max_length=_TEXT_MAX)]


class Series(msgspec.Struct, forbid_unknown_fields=True):
    """Times of one thing, counted.

    Attributes
    ----------
    group
        Series of one group share their charts: ``"one way"``.
    name
        Within the group.
    buckets
        ``(highest value of the bucket in ns, count)``, lowest first.
    max_ns
        The highest value.

    Examples
    --------
    >>> times = Series("one way", "ours", bucket_counts([100, 200, 5_000]), 5_000)
    >>> times.histogram.quantile(0.5)
    203
    """

    group: Text
    name: Text
    buckets: Annotated[list[tuple[Count, Count]], msgspec.Meta(max_length=4_096)]
    max_ns: Count

    @property
    def histogram(self) -> Histogram:
        """The same as a histogram, for its quantiles."""
        # Somebody else may have written it: sorted, and without empty buckets, as ours are.
        return Histogram(sorted(one for one in self.buckets if one[1]), self.max_ns)


class Window(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The times of a stretch of a run. Empty ones have count 0.

    Examples
    --------
    >>> Window(at_s=0.5, count=10, p50_ns=90, p99_ns=400, max_ns=2_000).max_ns
    2000
    """

    at_s: Number
    count: Count
    p50_ns: Count
    p99_ns: Count
    max_ns: Count


class Mark(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Something that happened during a run: a roll of a queue, or page faults.

    Examples
    --------
    >>> Mark(1.25, "roll", "ticks: segment 7").kind
    'roll'
    """

    at_s: Number
    kind: Literal["roll", "fault"]
    text: Text


class Timeline(msgspec.Struct, forbid_unknown_fields=True):
    """Times over time, with what happened meanwhile.

    Examples
    --------
    >>> line = timeline_of("ours", [90, 95, 2_000, 91], 10, [Mark(0.2, "roll", "ticks")], windows=2)
    >>> [window.max_ns for window in line.windows]
    [95, 2000]
    """

    name: Text
    seconds: Number
    windows: Annotated[list[Window], msgspec.Meta(max_length=_WINDOWS_MAX)]
    marks: Annotated[list[Mark], msgspec.Meta(max_length=_MARKS_MAX)] = []


class Figure(msgspec.Struct, forbid_unknown_fields=True):
    """Something measured beside its floor.

    Examples
    --------
    >>> Figure("append", 40.0, "ns", 20.0, "an empty call", 2.0).ratio
    2.0
    """

    name: Text
    value: Number
    unit: Literal["ns", "per_s"]
    floor: Number
    floor_name: Text
    ratio: Number


class Table(msgspec.Struct, forbid_unknown_fields=True):
    """Anything else, as rows of text and numbers; the first column names the row.

    Examples
    --------
    >>> Table("Queues", ["queue", "messages"], [["ticks", 1_000]]).title
    'Queues'
    """

    title: Text
    columns: Annotated[list[Text], msgspec.Meta(max_length=64)]
    rows: Annotated[list[list[Text | float | int | None]], msgspec.Meta(max_length=_ROWS_MAX)]
    note: Text = ""


class Run(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Everything that a report shows.

    Attributes
    ----------
    title
        The page's.
    taken
        When, in UTC.
    machine
        What it was measured on: CPU, kernel, file system and so on.
    notes
        How it was measured; a paragraph each.

    Examples
    --------
    >>> run = Run(title="A run", taken="2026-01-02", machine={"cpu": "EPYC"})
    >>> run.to_json()[:37]
    b'{"format":"chronicle-report-1","title'
    """

    format: Literal["chronicle-report-1"] = "chronicle-report-1"
    title: Text
    taken: Text
    machine: dict[Text, Text] = {}
    notes: list[Text] = []
    series: Annotated[list[Series], msgspec.Meta(max_length=_PARTS_MAX)] = []
    timelines: Annotated[list[Timeline], msgspec.Meta(max_length=_PARTS_MAX)] = []
    figures: Annotated[list[Figure], msgspec.Meta(max_length=_PARTS_MAX)] = []
    tables: Annotated[list[Table], msgspec.Meta(max_length=_PARTS_MAX)] = []

    def to_json(self) -> bytes:
        """Return the run as JSON."""
        return msgspec.json.encode(self)


def within_bounds(run: Run) -> Run:
    """Return the run with everything in it that came from elsewhere cut to what a run may hold.

    Text is shortened, and what it may not hold is shown escaped; numbers are cut to 63 bits. Lists
    are cut too, and a note says what is missing.
    """
    made: Run = msgspec.convert(_bounded(msgspec.to_builtins(_shortened(run))), type=Run)
    return made


def _shortened(run: Run) -> Run:
    left_out: list[str] = []

    def first(items: list[_T], count_max: int, what: str) -> list[_T]:
        if len(items) > count_max:
            left_out.append(f"{len(items) - count_max:,} of {len(items):,} {what}")
        return items[:count_max]

    series = first(run.series, _PARTS_MAX, "histograms")
    timelines = [
        msgspec.structs.replace(line, marks=first(line.marks, _MARKS_MAX, f"marks of {line.name}"))
        for line in first(run.timelines, _PARTS_MAX, "charts over time")
    ]
    tables = [
        msgspec.structs.replace(one, rows=first(one.rows, _ROWS_MAX, f"rows of '{one.title}'"))
        for one in run.tables
    ]
    notes = run.notes
    if left_out:
        notes = [*notes, f"More than a report holds, and left out: {', '.join(left_out)}."]
    return msgspec.structs.replace(
        run, series=series, timelines=timelines, tables=tables, notes=notes
    )


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        text = clean(value)
        return text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 1] + "…"
    if isinstance(value, dict):
        return {_bounded(key): _bounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_bounded(one) for one in value]
    if isinstance(value, int):
        return max(-_COUNT_MAX, min(int(value), _COUNT_MAX))
    return value


def bucket_counts(values_ns: Iterable[int]) -> list[tuple[int, int]]:
    """Count times in buckets that are 3 % wide, as hot threads do. The last ends at the maximum.

    Examples
    --------
    >>> bucket_counts([5, 5, 100, 101, 4_000])
    [(5, 2), (101, 2), (4000, 1)]
    """
    counts = Counter(map(_bucket_high, values := list(values_ns)))
    highest = max(values, default=0)
    return sorted((min(high, highest), count) for high, count in counts.items())


def _bucket_high(value: int) -> int:
    shift = max(0, value.bit_length() - _LINEAR_BITS - 1)
    return ((value >> shift) + 1 << shift) - 1


def timeline_of(
    name: str, values_ns: Sequence[int], rate_per_s: float, marks: Iterable[Mark], *, windows: int
) -> Timeline:
    """Cut a recording at a fixed rate into windows of equal length.

    Examples
    --------
    >>> line = timeline_of("x", [1, 2, 3, 40], 10, [], windows=2)
    >>> [(w.at_s, w.count, w.p50_ns, w.max_ns) for w in line.windows]
    [(0.0, 2, 1, 2), (0.2, 2, 3, 40)]
    """
    count = len(values_ns)
    windows = max(1, min(windows, count))
    edges = [index * count // windows for index in range(windows + 1)]
    made = []
    for start, end in itertools.pairwise(edges):
        part = sorted(values_ns[start:end])
        if part:
            p50, p99 = (part[max(0, -int(-q * len(part) // 1) - 1)] for q in (0.5, 0.99))
            made.append(Window(start / rate_per_s, len(part), p50, p99, part[-1]))
    return Timeline(name, count / rate_per_s, made, sorted(marks, key=lambda mark: mark.at_s))


class _DataFinder(html.parser.HTMLParser):
    """Collects the text of the element that holds the run."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.found: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script" and dict(attrs).get("id") == DATA_ID

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002  (the base's name)
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found.append(data)


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a run from an earlier report, or from the JSON file that one offers.

    Raises
    ------
    OSError
        If it cannot be read.
    DecodeError
        If there is no run in it, or not one of this version.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".json") as file:
    ...     _ = file.write(Run(title="A run", taken="2026-01-02").to_json())
    ...     file.flush()
    ...     read_run(file.name).title
    'A run'
    """
    with Path(path).open("rb") as file:
        data = file.read(_FILE_BYTES_MAX + 1)
    what = f"not a report: path='{path}'"
    if len(data) > _FILE_BYTES_MAX:
        raise DecodeError(f"{what} bytes>{_FILE_BYTES_MAX}; name a page or JSON of a report")
    if data.lstrip()[:1] == b"<":
        finder = _DataFinder()
        finder.feed(data.decode("utf-8", "replace"))
        data = "".join(finder.found).encode()
    try:
        return msgspec.json.decode(data, type=Run)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DecodeError(
            f"{what} why={str(error)!r}; name a page or JSON that this version has written"
        ) from None
