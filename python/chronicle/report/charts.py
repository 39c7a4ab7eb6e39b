"""The charts of a report, as SVG without scripts, fonts or colours of its own.

Colours come from the page's style sheet by class (``s0`` to ``s7`` for series), so that one drawing
serves light, dark and paper. Series differ by dashes as well as by colour. Each chart is drawn for
two widths, of which the style sheet shows one: text that shrinks with its chart cannot be read on a
phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from chronicle.markup import Node, node
from chronicle.report.scales import LogScale, percent_text, seconds_ticks, time_text

if TYPE_CHECKING:
    from chronicle.hot.meter import Histogram
    from chronicle.report.document import Timeline, Window

__all__ = ["QUANTILES", "SERIES_MAX", "percentiles", "ranges", "timeline"]

SERIES_MAX: Final = 8
"""More in one chart cannot be told apart."""

QUANTILES: Final = (0.5, 0.9, 0.99, 0.999, 0.9999, 1.0)

_DASHES: Final = ("none", "7 3", "2 3", "9 3 2 3", "14 4", "4 2 1 2", "10 3 2 3 2 3", "5 6")


#: Quantiles closer to 1 than this have no label: a float does not tell them from 1.
_NINES_MAX: Final = 12

#: Of the text of ticks; an upper bound, so that labels never run into each other.
_DIGIT_WIDTH: Final = 7.6


class _Frame(NamedTuple):
    """Where a chart's plot stands in its drawing."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    label_ticks: int

    @property
    def x_end(self) -> float:
        return self.width - self.right

    @property
    def y_end(self) -> float:
        return self.height - self.bottom


_WIDE: Final = _Frame(760, 380, 66, 18, 14, 46, 8)
_NARROW: Final = _Frame(350, 320, 56, 12, 12, 46, 4)


def _both(label: str, draw: Callable[[_Frame], list[Node]], **heights: float) -> list[Node]:
    """Draw for wide and for narrow pages."""
    made = []
    for class_, frame in (("wide", _WIDE), ("narrow", _NARROW)):
        if class_ in heights:
            frame = frame._replace(height=heights[class_])
        made.append(
            node(
                "svg",
                *draw(frame),
                class_=f"chart {class_}",
                viewBox=f"0 0 {frame.width:g} {frame.height:g}",
                role="img",
                aria_label=label,
            )
        )
    return made


def _text(text: str, x: float, y: float, class_: str = "tick", anchor: str = "middle") -> Node:
    return node("text", text, x=round(x, 1), y=round(y, 1), class_=class_, text_anchor=anchor)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Node:
    places = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return node("line", class_=class_, **{name: round(v, 1) for name, v in places.items()})


def _time_axis(frame: _Frame, scale: LogScale) -> Iterator[Node]:
    """Draw the vertical axis of times, with its grid."""
    for tick in scale.ticks:
        y = scale(tick)
        yield _line(frame.left, y, frame.x_end, y, "grid")
        yield _text(time_text(tick), frame.left - 7, y + 4, anchor="end")


# --- Percentiles ---


def _nines(above: float) -> float:
    """Return the place of a quantile on the axis, from the share that lies above it."""
    return -math.log10(above)


def percentiles(series: Sequence[tuple[str, Histogram]]) -> list[Node]:
    """Draw values over quantiles, with room for the tail: as HdrHistogram's plots do.

    The horizontal axis is the logarithm of 1 / (1 - quantile), the vertical one that of the time.
    """
    shown = [(name, times) for name, times in series if times.count]
    label = "Percentile curves, both axes logarithmic. " + "; ".join(
        f"{name}: " + ", ".join(_quantile_texts(times, (0.5, 0.99, 0.999, 1.0)))
        for name, times in shown
    )

    def draw(frame: _Frame) -> list[Node]:
        values = [v for _, times in shown for v in (times.buckets[0][0], times.max_ns)]
        y = LogScale(values, frame.y_end, frame.top)
        ends = [_nines(times.buckets[-1][1] / times.count) for _, times in shown]
        x_last = max([2.0, *ends]) + 0.25

        def x(nines: float) -> float:
            return frame.left + (frame.x_end - frame.left) * min(1.0, nines / x_last)

        made = list(_time_axis(frame, y))
        taken = 0.0
        for nines in (0.0, _nines(0.5), *range(1, min(int(x_last), _NINES_MAX) + 1)):
            at, text = x(nines), percent_text(round(1 - 10.0**-nines, 12))
            made.append(_line(at, frame.top, at, frame.y_end, "grid"))
            half = len(text) * _DIGIT_WIDTH / 2
            place = min(at, frame.width - half)
            if place - half > taken:
                made.append(_text(text, place, frame.y_end + 18))
                taken = place + half + _DIGIT_WIDTH
        middle = (frame.left + frame.x_end) / 2
        made.append(_text("percentile", middle, frame.height - 6, "axis"))
        for index, (name, times) in enumerate(shown):
            path = _curve(times, x, y, x_last)
            title = node("title", f"{name}: " + ", ".join(_quantile_texts(times, QUANTILES)))
            dash = _DASHES[index % SERIES_MAX]
            class_ = f"line s{index % SERIES_MAX}"
            made.append(node("path", title, d=path, class_=class_, stroke_dasharray=dash))
        return made

    return _both(label, draw)


def _quantile_texts(times: Histogram, quantiles: Sequence[float]) -> list[str]:
    return [
        f"{'max' if q == 1.0 else 'p' + percent_text(q)[:-1]} {time_text(quantile_of(times, q))}"
        for q in quantiles
    ]


def quantile_of(times: Histogram, q: float) -> int:
    """Return a quantile; the highest value itself for 1.0."""
    return times.max_ns if q == 1.0 else times.quantile(q)


def _curve(times: Histogram, x: Callable[[float], float], y: LogScale, x_last: float) -> str:
    """Return the path of a curve: level from where a bucket begins to where it ends."""
    total, seen = times.count, 0
    parts: list[str] = []
    for high, count in times.buckets:
        start = x(_nines((total - seen) / total))
        seen += count
        end = x(_nines((total - seen) / total)) if seen < total else x(x_last)
        height = f"{y(high):.1f}"
        parts.append(f"{'L' if parts else 'M'}{start:.1f} {height}H{end:.1f}")
    return "".join(parts)


# --- Over time ---


def timeline(line: Timeline) -> list[Node]:
    """Draw p50, p99 and the highest value over time; rolls and faults stand below."""
    shown = [window for window in line.windows if window.count]
    counts = {kind: sum(mark.kind == kind for mark in line.marks) for kind in ("roll", "fault")}
    label = (
        f"Latency over {line.seconds:.3g} seconds, logarithmic. "
        f"Highest {time_text(max((w.max_ns for w in shown), default=0))}. "
        f"Rolls: {counts['roll']}; stretches with page faults: {counts['fault']}."
    )

    def draw(frame: _Frame) -> list[Node]:
        strips = 52
        frame = frame._replace(bottom=frame.bottom + strips)
        y = LogScale([v for w in shown for v in (w.p50_ns, w.max_ns)], frame.y_end, frame.top)
        length = max(line.seconds, 1e-9)

        def x(at_s: float) -> float:
            return frame.left + (frame.x_end - frame.left) * min(1.0, at_s / length)

        made = list(_time_axis(frame, y))
        for tick in seconds_ticks(line.seconds, frame.label_ticks):
            made.append(_line(x(tick), frame.top, x(tick), frame.y_end + strips, "grid"))
            made.append(_text(f"{tick:g}", x(tick), frame.y_end + strips + 16))
        middle = (frame.left + frame.x_end) / 2
        made.append(_text("seconds", middle, frame.height - 4, "axis"))
        for row, kind in enumerate(("roll", "fault")):
            base = frame.y_end + 15 + row * 18
            made.append(_text(kind + "s", frame.left - 7, base + 11, anchor="end"))
            made.append(_line(frame.left, base + 14, frame.x_end, base + 14, "grid"))
            made += _marks(line, kind, x, base)
        for name, value, index in _LINES:
            points = [(x(_middle_of(line, at)), y(value(line.windows[at]))) for at in _filled(line)]
            title = node("title", name)
            path = _runs_of(_filled(line), points)
            class_ = f"line s{index}"
            made.append(node("path", title, d=path, class_=class_, stroke_dasharray=_DASHES[index]))
        return made

    return _both(label, draw, wide=400, narrow=360)


#: Name, value, and which of the series' styles: those of the same quantiles in `ranges`.
_LINES: Final[tuple[tuple[str, Callable[[Window], int], int], ...]] = (
    ("p50", lambda window: window.p50_ns, 0),
    ("p99", lambda window: window.p99_ns, 1),
    ("max", lambda window: window.max_ns, 3),
)
LINES_SHOWN: Final = tuple((name, index) for name, _, index in _LINES)


def _filled(line: Timeline) -> list[int]:
    return [index for index, window in enumerate(line.windows) if window.count]


def _middle_of(line: Timeline, index: int) -> float:
    windows = line.windows
    end = windows[index + 1].at_s if index + 1 < len(windows) else line.seconds
    return (windows[index].at_s + max(end, windows[index].at_s)) / 2


def _runs_of(indexes: Sequence[int], points: Sequence[tuple[float, float]]) -> str:
    """Return a path that is broken where windows were empty."""
    parts = []
    for place, (index, (x, y)) in enumerate(zip(indexes, points, strict=True)):
        joined = place > 0 and indexes[place - 1] == index - 1
        parts.append(f"{'L' if joined else 'M'}{x:.1f} {y:.1f}")
        is_alone = not joined and (place + 1 == len(indexes) or indexes[place + 1] != index + 1)
        if is_alone:
            parts.append("h1.5")
    return "".join(parts)


def _marks(line: Timeline, kind: str, x: Callable[[float], float], base: float) -> Iterator[Node]:
    """Draw the marks of one kind; those that fall on one pixel become one mark."""
    by_place: dict[int, list[str]] = {}
    for mark in line.marks:
        if mark.kind == kind:
            by_place.setdefault(round(x(mark.at_s)), []).append(f"{mark.at_s:.4g} s: {mark.text}")
    for place, texts in by_place.items():
        more = [f"and {len(texts) - 5} more"] if len(texts) > 6 else []
        title = node("title", "\n".join(texts[: 5 if more else 6] + more))
        shape = (
            f"M{place} {base + 2}l4.5 10h-9z"
            if kind == "roll"
            else f"M{place} {base + 1}l4.5 6l-4.5 6l-4.5 -6z"
        )
        yield node("path", title, d=shape, class_=f"mark {kind}")


# --- Comparison ---

_SHAPES: Final = (
    ("p50", 0.5, "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z"),
    ("p99", 0.99, "M0 -5.5L5.5 0L0 5.5L-5.5 0z"),
    ("p99.9", 0.999, "M-4.5 -4.5h9v9h-9z"),
    ("max", 1.0, "M0 -5.5L5.5 4.5h-11z"),
)
SHAPES: Final = tuple((name, path) for name, _, path in _SHAPES)


def ranges(series: Sequence[tuple[str, Histogram]]) -> list[Node]:
    """Draw p50, p99, p99.9 and the highest value of each series on one line each."""
    shown = [(name, times) for name, times in series if times.count]
    label = "Comparison on a logarithmic axis. " + "; ".join(
        f"{name}: " + ", ".join(_quantile_texts(times, [q for _, q, _ in _SHAPES]))
        for name, times in shown
    )
    row_height = 40

    def draw(frame: _Frame) -> list[Node]:
        left = 16.0
        x = LogScale(
            [v for _, times in shown for v in (times.quantile(0.5), times.max_ns)],
            left,
            frame.width - 24,
        )
        end = len(shown) * row_height + 8
        made = []
        for tick in x.ticks:
            anchor = "start" if tick == x.ticks[0] else "middle"
            made.append(_line(x(tick), 0, x(tick), end, "grid"))
            made.append(_text(time_text(tick), x(tick), end + 16, anchor=anchor))
        for row, (name, times) in enumerate(shown):
            y = row * row_height + 28
            made.append(_text(name, left, y - 12, "name", "start"))
            at = [(word, quantile_of(times, q), shape) for word, q, shape in _SHAPES]
            made.append(_line(x(at[0][1]), y, x(at[-1][1]), y, "range"))
            for index, (word, value, shape) in enumerate(at):
                title = node("title", f"{name}, {word}: {time_text(value)}")
                place = f"translate({x(value):.1f} {y})"
                class_ = f"shape s{index}"
                made.append(node("path", title, d=shape, transform=place, class_=class_))
        return made

    height = len(shown) * row_height + 34
    return _both(label, draw, wide=height, narrow=height)


def swatch(index: int) -> Node:
    """Draw what stands for a series in the legend."""
    dash = _DASHES[index % SERIES_MAX]
    stroke = node(
        "line", x1=1, y1=6, x2=31, y2=6, class_=f"line s{index % SERIES_MAX}", stroke_dasharray=dash
    )
    return node("svg", stroke, class_="swatch", viewBox="0 0 32 12", aria_hidden="true")


def symbol(path: str, class_: str) -> Node:
    """Draw what stands for a mark in the legend."""
    shape = node("path", d=path, transform="translate(8 7)", class_=class_)
    return node("svg", shape, class_="symbol", viewBox="0 0 16 14", aria_hidden="true")
