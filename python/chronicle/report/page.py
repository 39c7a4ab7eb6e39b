"""The page: a run, and perhaps earlier ones to compare it with, as one HTML document."""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chronicle.markup import Node, document, node, raw
from chronicle.report import charts
from chronicle.report.document import DATA_ID, Run, Series, Timeline
from chronicle.report.scales import count_text, percent_text, time_text

if TYPE_CHECKING:
    from chronicle.hot.meter import Histogram

__all__ = ["page"]

_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
"""What a browser may load for this page, told to the browser: nothing."""


_ESCAPED: Final = re.compile("[<\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufffe\uffff]")


@functools.cache
def _style() -> str:
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def page(run: Run, earlier: Sequence[tuple[str, Run]] = ()) -> str:
    """Make the page.

    Parameters
    ----------
    run
        What it is about.
    earlier
        Runs to compare it with, each with a name to call it by.

    Returns
    -------
    str
        HTML that loads nothing: styles, charts and data are in it, scripts are not.

    Examples
    --------
    >>> from chronicle.report import Series, bucket_counts
    >>> times = [90, 95, 2_000]
    >>> series = Series("one way", "ours", bucket_counts(times), max(times))
    >>> html = page(Run(title="A run", taken="2026-01-02", series=[series]))
    >>> html.startswith("<!DOCTYPE html>"), "http://" in html
    (True, False)
    """
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="color-scheme", content="light dark"),
        node("meta", name="referrer", content="no-referrer"),
        node("title", run.title),
        raw("style", _style()),
    )
    body = node("main", *_head(run), *_machine(run, earlier), *_sections(run, earlier))
    # JSON can do without a `<`, so nothing in it can end the element.
    data = _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", run.to_json().decode())
    kept = raw("script", data, type="application/json", id=DATA_ID)
    return document(node("html", head, node("body", body, kept), lang="en"))


def _head(run: Run) -> Iterator[Node]:
    yield node("h1", run.title)
    yield node("p", f"Taken {run.taken}", class_="taken")
    for note in run.notes:
        yield node("p", note)


def _sections(run: Run, earlier: Sequence[tuple[str, Run]]) -> Iterator[Node]:
    groups = dict.fromkeys(series.group for series in run.series)
    for group in groups:
        mine = [series for series in run.series if series.group == group]
        for start in range(0, len(mine), charts.SERIES_MAX):
            part = mine[start : start + charts.SERIES_MAX]
            more = f" ({start + 1} to {start + len(part)})" if len(mine) > len(part) else ""
            yield _distribution(group + more, part)
    for line in run.timelines:
        yield _over_time(line)
    if earlier:
        yield from _compared(run, earlier)
    if run.figures:
        yield _figures(run, earlier)
    for table in run.tables:
        yield _section(table.title, _table(table.columns, table.rows), _paragraph(table.note))
    yield _attachments(run)


def _section(title: str, *content: Node | None) -> Node:
    return node("section", node("h2", title), *content)


def _paragraph(text: str) -> Node | None:
    return node("p", text, class_="note") if text else None


# --- Distributions ---


def _distribution(title: str, series: Sequence[Series]) -> Node:
    times = [(one.name, one.histogram) for one in series]
    filled = [(name, found) for name, found in times if found.count]
    content: list[Node | None] = []
    if filled:
        content += [_figure(charts.percentiles(filled), _series_legend(filled))]
    if len(filled) > 1:
        content += [node("h3", "Side by side")]
        content += [_figure(charts.ranges(filled), _shape_legend())]
    return _section(title, *content, _quantile_table(times))


def _figure(drawings: Sequence[Node], legend: Node) -> Node:
    return node("figure", *drawings, node("figcaption", legend))


def _series_legend(series: Sequence[tuple[str, object]]) -> Node:
    items = [
        node("li", charts.swatch(index), node("span", name))
        for index, (name, _) in enumerate(series)
    ]
    return node("ul", *items, class_="legend")


def _shape_legend() -> Node:
    items = [
        node("li", charts.symbol(path, f"shape s{index}"), node("span", name))
        for index, (name, path) in enumerate(charts.SHAPES)
    ]
    return node("ul", *items, class_="legend")


def _quantile_table(series: Sequence[tuple[str, Histogram]]) -> Node:
    names = ["max" if q == 1.0 else f"p{percent_text(q)[:-1]}" for q in charts.QUANTILES]
    rows: list[list[str | float | None]] = []
    for name, times in series:
        found = [time_text(charts.quantile_of(times, q)) for q in charts.QUANTILES]
        rows.append([name, times.count, *(found if times.count else [None] * len(found))])
    return _table(["", "count", *names], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> Node:
    """Make a table: the first column names the row; columns of numbers stand to the right."""
    is_text = [
        any(
            i < len(row) and isinstance(row[i], str) and not _is_amount(str(row[i])) for row in rows
        )
        for i in range(len(columns))
    ]

    def cell(value: str | float | None, column: int) -> Node:
        text = "–" if value is None else value if isinstance(value, str) else count_text(value)
        if column == 0:
            return node("th", text, scope="row")
        return node("td", text, class_="text" if is_text[column : column + 1] == [True] else None)

    head = node(
        "tr",
        *(
            node("th", column, scope="col", class_="text" if is_text[i] else None)
            for i, column in enumerate(columns)
        ),
    )
    body = [node("tr", *(cell(value, i) for i, value in enumerate(row))) for row in rows]
    table = node("table", node("thead", head), node("tbody", *body))
    # Wider than a phone: it scrolls by itself, also by keyboard.
    return node("div", table, class_="scroll", tabindex="0", role="group", aria_label="table")


def _is_amount(text: str) -> bool:
    """Whether text is a number, perhaps with a unit."""
    return text[:1].isdigit() and text.count(".") <= 1


# --- Over time ---


def _over_time(line: Timeline) -> Node:
    items = [
        node("li", charts.swatch(index), node("span", name)) for name, index in charts.LINES_SHOWN
    ]
    legend = node("ul", *items, class_="legend")
    legend.append(node("li", charts.symbol("M0 -5l4.5 10h-9z", "mark roll"), node("span", "roll")))
    diamond = charts.symbol("M0 -6l4.5 6l-4.5 6l-4.5 -6z", "mark fault")
    legend.append(node("li", diamond, node("span", "page faults")))
    drawn = charts.timeline(line)
    return _section(f"{line.name}, over time", _figure(drawn, legend))


# --- Comparison of runs ---


def _compared(run: Run, earlier: Sequence[tuple[str, Run]]) -> Iterator[Node]:
    """Show what this run and an earlier one have both measured."""
    for series in run.series:
        key = (series.group, series.name)
        others = [
            (f"{name} ({other.taken})", theirs.histogram)
            for name, other in earlier
            for theirs in other.series
            if (theirs.group, theirs.name) == key
        ]
        if not others or not series.histogram.count:
            continue
        times = [(f"this run ({run.taken})", series.histogram), *others][: charts.SERIES_MAX]
        filled = [(name, found) for name, found in times if found.count]
        yield _section(
            f"{series.group}, {series.name}: against earlier runs",
            _figure(charts.percentiles(filled), _series_legend(filled)),
            _ratio_table(times),
        )


def _ratio_table(times: Sequence[tuple[str, Histogram]]) -> Node:
    mine = times[0][1]
    names = ["max" if q == 1.0 else f"p{percent_text(q)[:-1]}" for q in charts.QUANTILES]
    rows: list[list[str | float | None]] = []
    for name, found in times:
        cells: list[str | float | None] = [name]
        for q in charts.QUANTILES:
            value, base = charts.quantile_of(found, q), charts.quantile_of(mine, q)
            ratio = "" if found is mine or not value else f" ({base / value:.2f} ×)"
            cells.append(time_text(value) + ratio)
        rows.append(cells)
    table = _table(["", *names], rows)
    note = _paragraph("In parentheses: this run divided by that one; below 1 this run is faster.")
    return node("div", table, note)


# --- Figures, machine, data ---


def _figures(run: Run, earlier: Sequence[tuple[str, Run]]) -> Node:
    def amount(value: float, unit: str) -> str:
        return time_text(value) if unit == "ns" else f"{value / 1e6:,.1f} M/s"

    columns = ["figure", "measured", "floor", "ratio", "floor is"]
    columns += [f"ratio: {name}" for name, _ in earlier]
    rows: list[list[str | float | None]] = []
    for figure in run.figures:
        row: list[str | float | None] = [figure.name]
        row += [amount(figure.value, figure.unit), amount(figure.floor, figure.unit)]
        row += [f"{figure.ratio:.2f} ×", figure.floor_name]
        for _, other in earlier:
            found = next((f for f in other.figures if f.name == figure.name), None)
            row.append(None if found is None else f"{found.ratio:.2f} ×")
        rows.append(row)
    note = "Each figure is a ratio to a floor measured in turn with it; smaller is better."
    return _section("Calls, each beside its floor", _table(columns, rows), _paragraph(note))


def _machine(run: Run, earlier: Sequence[tuple[str, Run]]) -> Iterator[Node]:
    if not run.machine:
        return
    if not earlier:
        items = [
            node("div", node("dt", name), node("dd", value)) for name, value in run.machine.items()
        ]
        yield _section("Machine", node("dl", *items))
        return
    rows: list[list[str | float | None]] = []
    for name, value in run.machine.items():
        rows.append([name, value, *(other.machine.get(name, "–") for _, other in earlier)])
    columns = ["", "this run", *(name for name, _ in earlier)]
    yield _section("Machine", _table(columns, rows))


def _attachments(run: Run) -> Node:
    links = [_download("everything, as JSON", "run.json", "application/json", run.to_json())]
    for index, series in enumerate(run.series):
        data = json.dumps(
            {"group": series.group, "name": series.name, "buckets": series.buckets}
            | {"max_ns": series.max_ns, "unit": "ns"}
        ).encode()
        label = f"{series.group}, {series.name}"
        links.append(
            node(
                "li",
                node("span", label + ": "),
                _link("JSON", f"histogram-{index + 1}.json", "application/json", data),
                ", ",
                _link("hgrm", f"histogram-{index + 1}.hgrm", "text/plain", hgrm(series.histogram)),
            )
        )
    text = (
        "All histograms as they were counted: the highest value of each bucket in nanoseconds, and "
        "its count. The .hgrm files are percentile distributions as HdrHistogram's plotter reads "
        "them. A later report can be compared with this page: --compare takes it."
    )
    return _section("Data", _paragraph(text), node("ul", *links, class_="data"))


def _download(label: str, name: str, kind: str, data: bytes) -> Node:
    return node("li", _link(label, name, kind, data))


def _link(label: str, name: str, kind: str, data: bytes) -> Node:
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return node("a", label, href=url, download=name)


def hgrm(times: Histogram) -> bytes:
    """Return a percentile distribution, in the text format of HdrHistogram; values in ns."""
    lines = [f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}", ""]
    seen, total = 0, times.count
    for high, count in times.buckets:
        seen += count
        share = seen / total
        inverse = f"{total / (total - seen):14.2f}" if seen < total else ""
        lines.append(f"{high:12.3f} {share:2.12f} {seen:10d} {inverse}".rstrip())
    lines.append(f"#[Mean    = {times.mean_ns:12.3f}, StdDeviation   = {_deviation(times):12.3f}]")
    lines.append(f"#[Max     = {times.max_ns:12.3f}, Total count    = {total:12d}]")
    lines.append(f"#[Buckets = {len(times.buckets):12d}, SubBuckets     = {32:12d}]")
    return ("\n".join(lines) + "\n").encode()


def _deviation(times: Histogram) -> float:
    if not times.count:
        return 0.0
    mean = times.mean_ns
    spread = sum(count * (high - mean) ** 2 for high, count in times.buckets)
    return float((spread / times.count) ** 0.5)
