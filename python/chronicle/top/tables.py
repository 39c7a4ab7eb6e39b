"""What is shown, as rows of text: the same for the dashboard and for `--once`.

Each cell knows by what it is sorted and how bad it is. Widths are chosen so that the columns that
matter most fit into 80; the others follow to the right.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from chronicle.hot.meter import Histogram
from chronicle.top.changes import NO_RATES, thread_name
from chronicle.top.model import ProcessLook, QueueLook, ThreadLook
from chronicle.top.watch import View

__all__ = [
    "KINDS",
    "Cell",
    "Column",
    "Kind",
    "Row",
    "Table",
    "Tone",
    "bytes_short",
    "clock_text",
    "number_short",
    "summary",
    "table_of",
    "time_short",
    "widths",
]

Tone: TypeAlias = Literal["", "good", "warn", "bad", "dim"]
Kind: TypeAlias = Literal["processes", "threads", "queues", "events", "log"]
KINDS: Final[tuple[Kind, ...]] = ("processes", "threads", "queues", "events", "log")

_TONES: Final[dict[str, Tone]] = {"note": "", "warning": "warn", "error": "bad"}
_PROCESS_TONES: Final[dict[str, Tone]] = {
    "alive": "good",
    "stalled": "warn",
    "dead": "bad",
    "absent": "dim",
    "refused": "bad",
}
_THREAD_TONES: Final[dict[str, Tone]] = {
    "running": "good",
    "parked": "good",
    "failed": "bad",
    "stopped": "dim",
}
_LEVEL_TONES: Final[dict[str, Tone]] = {
    "WARNING": "warn",
    "ERROR": "bad",
    "CRITICAL": "bad",
    "DEBUG": "dim",
}
_GUARDS: Final = {"enforce": "enf", "observe": "obs", "off": "off"}
_NAME_MAX: Final = 24


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a row: text, what it is sorted by, and how bad it is."""

    text: str
    value: float | str
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, whether numbers stand in it, and what it means."""

    title: str
    is_number: bool
    meaning: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row, and what finds it again."""

    key: str
    cells: tuple[Cell, ...]

    def matches(self, text: str) -> bool:
        """Whether the text stands in one of its cells, or in its key; case does not matter."""
        wanted = text.casefold()
        return any(
            wanted in found.casefold() for found in (self.key, *(c.text for c in self.cells))
        )


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows."""

    kind: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def chosen(self, *, text: str = "", by: str = "", descending: bool = False) -> Table:
        """Return the rows in which a text stands, sorted by a column; equal ones stay in order."""
        rows = [row for row in self.rows if not text or row.matches(text)]
        titles = [column.title for column in self.columns]
        if by in titles:
            index = titles.index(by)
            rows.sort(key=lambda row: _order(row.cells[index].value), reverse=descending)
        return Table(self.kind, self.columns, tuple(rows))


def _order(value: float | str) -> tuple[int, float, str]:
    return (1, 0.0, value) if isinstance(value, str) else (0, value, "")


def table_of(kind: Kind, view: View) -> Table:
    """Make a table out of a view."""
    return _MAKERS[kind](view)


# --- Numbers in little room ---


def number_short(value: float) -> str:
    """Return a number in at most five characters.

    >>> number_short(0), number_short(999), number_short(16_544), number_short(1_200_000)
    ('0', '999', '16.5k', '1.2M')
    """
    if value < 999.5:
        return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
    unit = "k"
    for unit in ("k", "M", "G", "T"):
        value /= 1000
        if value < 999.5 or unit == "T":
            break
    return (f"{value:.1f}" if value < 99.95 else f"{value:.0f}") + unit


def time_short(ns: float) -> str:
    """Return a time in at most five characters.

    >>> time_short(40), time_short(1_234), time_short(56_700_000), time_short(9e9)
    ('40ns', '1.2us', '57ms', '9.0s')
    """
    value, unit = float(ns), "ns"
    for unit in ("ns", "us", "ms", "s"):
        if value < 999.5 or unit == "s":
            break
        value /= 1000
    if unit == "ns" or value >= 9.95:
        return f"{value:.0f}{unit}"
    return f"{value:.1f}{unit}"


def bytes_short(count: float) -> str:
    """Return a number of bytes in at most six characters.

    >>> bytes_short(0), bytes_short(65_536), bytes_short(1.5 * 2**30)
    ('0B', '64.0K', '1.5G')
    """
    value, unit = float(count), "B"
    for unit in ("B", "K", "M", "G", "T"):
        if value < 999.5 or unit == "T":
            break
        value /= 1024
    return f"{value:.0f}B" if unit == "B" else f"{value:.1f}{unit}"


def _age(seconds: float | None) -> Cell:
    if seconds is None:
        return Cell("-", -1.0, "dim")
    for limit, divisor, unit in ((120, 1, "s"), (7_200, 60, "m"), (172_800, 3_600, "h")):
        if seconds < limit:
            short = f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds / divisor:.0f}{unit}"
            return Cell(short, seconds)
    return Cell(f"{seconds / 86_400:.0f}d", seconds)


def clock_text(at_ns: int) -> str:
    """Return the time of day, UTC, to the millisecond.

    >>> clock_text(1_700_000_000_123_456_789)
    '22:13:20.123'
    """
    second, rest = divmod(at_ns, 1_000_000_000)
    try:
        day = dt.datetime.fromtimestamp(second, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return "?"
    return f"{day:%H:%M:%S}.{rest // 1_000_000:03}"


def _count(value: int | None, tone: Tone = "bad") -> Cell:
    """Show a count that should be nothing."""
    if value is None:
        return Cell("-", -1.0, "dim")
    return Cell(number_short(value), value, tone if value else "")


def _number(value: float) -> Cell:
    return Cell(number_short(value), value)


def _text(text: str, tone: Tone = "", *, most: int | None = None) -> Cell:
    short = text if most is None or len(text) <= most else text[: most - 1] + "…"
    return Cell(short, text, tone)


# --- Processes ---

_PROCESSES: Final = (
    Column("process", False, "directory of the endpoint below the bus"),
    Column("state", False, "alive, stalled, dead, absent (closed in order), refused"),
    Column("ready", False, "its queues can be opened"),
    Column("pid", True, "of the owner, or of the last one"),
    Column("epoch", True, "how often the endpoint was opened"),
    Column("cpu%", True, "of one core, all threads of the process"),
    Column("svc", False, "services of the sidecar: well/all"),
    Column("told", True, "since the sidecar has last told of itself"),
    Column("note", False, "why the state is thought, or which service complains"),
)


def _processes(view: View) -> Table:
    rows = [Row(p.name, _process_cells(p, view)) for p in view.look.processes]
    return Table("processes", _PROCESSES, tuple(rows))


def _process_cells(process: ProcessLook, view: View) -> tuple[Cell, ...]:
    well = sum(service.healthy for service in process.services)
    all_well = well == len(process.services)
    sick = [s for s in process.services if not s.healthy]
    note = process.reason
    if not note and sick:
        note = f"{sick[0].name}: {sick[0].last_error or sick[0].detail or sick[0].state}"
    cpu = view.changes.cpu.get(process.name)
    return (
        _text(process.name, most=_NAME_MAX),
        _text(process.state, _PROCESS_TONES[process.state]),
        _text("yes" if process.ready else "no", "" if process.ready else "dim"),
        Cell(str(process.pid or "-"), process.pid),
        Cell("-", -1.0, "dim") if process.epoch is None else _number(process.epoch),
        Cell("-", -1.0, "dim") if cpu is None else Cell(f"{100 * cpu:.0f}", cpu),
        _text(f"{well}/{len(process.services)}", "" if all_well else "warn"),
        _age(process.told_age_s),
        _text(note, "" if process.state == "absent" else _PROCESS_TONES[process.state])
        if process.reason
        else _text(note, "warn"),
    )


# --- Hot threads ---

_THREADS: Final = (
    Column("thread", False, "role name"),
    Column("state", False, "start, run, park (asleep until something is there), stop, FAIL"),
    Column("cpu", True, "the core that it is pinned to"),
    Column("msg/s", True, "messages given to its handler"),
    Column(
        "gap99", True, "loop gap, p99 of the last interval: start of a turn to start of the next"
    ),
    Column("g99.9", True, "loop gap, p99.9"),
    Column("gmax", True, "loop gap, highest"),
    Column("h99.9", True, "handler time, p99.9 of the last interval"),
    Column("sys", True, "system calls since its start, by the guard's count"),
    Column("flt", True, "page faults since top looks"),
    Column("csw", True, "involuntary context switches since top looks"),
    Column("guard", False, "enf(orce), obs(erve), off, or LOST: another library took its signal"),
    Column("process", False, "whose thread it is"),
    Column("turn/s", True, "rounds of the loop"),
    Column("out/s", True, "messages published"),
    Column("park", True, "times it went to sleep"),
    Column("gaps", True, "stretches of messages that were gone"),
    Column("src", True, "readers"),
    Column("late", True, "rolls that waited for the provisioner"),
    Column("note", False, "failure, or what the kernel refused at its start"),
)
_STATES: Final = {
    "starting": "start",
    "running": "run",
    "parked": "park",
    "stopped": "stop",
    "failed": "FAIL",
}


def _threads(view: View) -> Table:
    rows = [Row(thread_name(t), _thread_cells(t, view)) for t in view.look.threads]
    return Table("threads", _THREADS, tuple(rows))


def _thread_cells(thread: ThreadLook, view: View) -> tuple[Cell, ...]:
    rates = view.changes.threads.get(thread.key, NO_RATES)
    since = view.since.get(thread.key, NO_RATES)
    note = thread.failure or "; ".join(thread.warnings)
    return (
        _text(thread.name, most=_NAME_MAX),
        Cell(
            _STATES.get(thread.state, thread.state),
            thread.state,
            _THREAD_TONES.get(thread.state, ""),
        ),
        Cell("-", -1.0, "dim") if thread.core is None else _number(thread.core),
        _number(rates.messages_per_s),
        *(_quantile(rates.loop_gap, q) for q in (0.99, 0.999, 1.0)),
        _quantile(rates.handler_time, 0.999),
        _calls(thread),
        _count(since.faults, "warn"),
        _count(since.switches_involuntary, "warn"),
        _guard(thread),
        _text(thread.process, most=_NAME_MAX),
        _number(rates.turns_per_s),
        _number(rates.appends_per_s),
        _number(thread.count("parks")),
        _count(thread.count("gaps"), "warn"),
        _number(thread.count("sources")),
        _count(thread.count("rolls_late"), "warn"),
        _text(note, "bad" if thread.failure else "warn"),
    )


def _quantile(times: Histogram, q: float) -> Cell:
    if not times.buckets:
        return Cell("-", -1.0, "dim")
    value = times.quantile(q)
    return Cell(time_short(value), value)


def _calls(thread: ThreadLook) -> Cell:
    if thread.guard in ("off", ""):
        return Cell("-", -1.0, "dim")
    return _count(thread.count("guard_seen"))


def _guard(thread: ThreadLook) -> Cell:
    if thread.count("guard_lost"):
        return Cell("LOST", "lost", "bad")
    return _text(_GUARDS.get(thread.guard, "-"), "dim" if thread.guard in ("off", "") else "good")


# --- Queues ---

_QUEUES: Final = (
    Column("queue", False, "its directory below the bus"),
    Column("writer", True, "pid of the live writer"),
    Column("msg/s", True, "messages written"),
    Column("B/s", True, "bytes written, headers included"),
    Column("lag", True, "messages that the last of the live readers has before it"),
    Column("rdrs", False, "registered readers: live/all"),
    Column("size", True, "of all segment files"),
    Column("segs", True, "segment files"),
    Column("rolls", True, "rolls that the provisioner had prepared"),
    Column("inl", True, "rolls that the writer had to make itself"),
    Column("newest", True, "age of the newest message"),
    Column("next", True, "number of the next message"),
    Column("durable", True, "the last message that is on disk for certain"),
    Column("del", True, "segments deleted by retention"),
    Column("held by", False, "the live reader that keeps the oldest segment"),
    Column("note", False, "what is wrong"),
)


def _queues(view: View) -> Table:
    rows = [Row(q.name, _queue_cells(q, view)) for q in view.look.queues]
    return Table("queues", _QUEUES, tuple(rows))


def _queue_cells(queue: QueueLook, view: View) -> tuple[Cell, ...]:
    rates = view.changes.queues.get(queue.name)
    live = sum(reader.live for reader in queue.readers)
    writer = Cell("none", 0, "dim")
    if queue.writer_live:
        writer = Cell(
            str(queue.writer_pid), queue.writer_pid, "warn" if queue.beat_late else "good"
        )
    age_s = None if not queue.newest_ns else max(0.0, (view.look.at_ns - queue.newest_ns) / 1e9)
    broken = next((reader for reader in queue.readers if reader.problem), None)
    note = queue.problem or (broken.problem if broken else "")
    if not note and queue.beat_late:
        note = "heartbeat late"
    return (
        _text(queue.name, "bad" if note else "", most=_NAME_MAX),
        writer,
        _number(0 if rates is None else rates.messages_per_s),
        Cell("0B", 0) if rates is None else Cell(bytes_short(rates.bytes_per_s), rates.bytes_per_s),
        Cell(number_short(queue.lag_messages), queue.lag_messages)
        if live
        else Cell("-", -1, "dim"),
        _text(f"{live}/{len(queue.readers)}"),
        Cell(bytes_short(queue.size_bytes), queue.size_bytes),
        _number(queue.segments),
        _number(queue.rolls),
        _count(queue.rolls_inline, "warn"),
        _age(age_s),
        Cell(f"{queue.next_seq:,}", queue.next_seq),
        Cell(f"{queue.durable_seq:,}" if queue.durable_seq else "-", queue.durable_seq),
        _number(queue.segments_deleted),
        _text(queue.held_by),
        _text(note, "bad"),
    )


# --- Events and log ---

_EVENTS: Final = (
    Column("time", False, "of the look that has shown it, UTC"),
    Column("level", False, "note, warning or error"),
    Column("what", False, "process, thread, queue or bus"),
    Column("name", False, "which"),
    Column("event", False, "what has changed"),
)
_LOG: Final = (
    Column("time", False, "UTC"),
    Column("level", False, "as in logging"),
    Column("process", False, "whose log it is"),
    Column("logger", False, "the name in it"),
    Column("text", False, "the message"),
)


def _events(view: View) -> Table:
    """Newest first."""
    rows = []
    for number, event in reversed(list(enumerate(view.events))):
        tone = _TONES[event.severity]
        cells = (
            Cell(clock_text(event.at_ns), event.at_ns),
            _text(event.severity, tone),
            _text(event.kind),
            _text(event.subject, most=_NAME_MAX),
            _text(event.text, tone),
        )
        rows.append(Row(str(number), cells))
    return Table("events", _EVENTS, tuple(rows))


def _log(view: View) -> Table:
    """Newest first."""
    rows = []
    for number, (process, line) in reversed(list(enumerate(view.log))):
        tone = _LEVEL_TONES.get(line.level, "")
        cells = (
            Cell(clock_text(line.at_ns), line.at_ns),
            _text(line.level.lower(), tone),
            _text(process, most=_NAME_MAX),
            _text(line.logger.removeprefix("chronicle."), most=_NAME_MAX),
            _text(line.text, tone),
        )
        rows.append(Row(f"{process} {line.number} {number}", cells))
    return Table("log", _LOG, tuple(rows))


_MAKERS: Final[dict[Kind, Callable[[View], Table]]] = {
    "processes": _processes,
    "threads": _threads,
    "queues": _queues,
    "events": _events,
    "log": _log,
}


# --- All of it in a line ---


def summary(view: View) -> tuple[str, Tone]:
    """Say in a line how the bus does.

    The worst comes first: what is wrong now, then what was wrong since top looks.
    """
    wrong = [*_wrong(view)]
    look = view.look
    rate = sum(queue.messages_per_s for queue in view.changes.queues.values())
    counted = (
        f"{sum(p.state == 'alive' for p in look.processes)}/{len(look.processes)} alive, "
        f"{len(look.threads)} hot, {len(look.queues)} queues, {number_short(rate)} msg/s"
    )
    if not wrong:
        # Of a thread without a guard nobody knows what it calls.
        guarded = [thread for thread in look.threads if thread.guard in ("enforce", "observe")]
        is_proved = guarded and len(guarded) == len(look.threads)
        return f"{'clean' if is_proved else 'nothing wrong'}: {counted}", "good"
    tone: Tone = "bad" if any(tone == "bad" for _, tone in wrong) else "warn"
    first = [text for text, found in wrong if found == tone]
    more = f" (+{len(wrong) - 1})" if len(wrong) > 1 else ""
    return f"{first[0]}{more}; {counted}", tone


def _wrong(view: View) -> Iterable[tuple[str, Tone]]:
    for process in view.look.processes:
        if process.state in ("dead", "refused"):
            yield f"{process.name} is {process.state}", "bad"
        elif process.state == "stalled":
            yield f"{process.name} is stalled", "warn"
    for thread in view.look.threads:
        yield from _wrong_thread(thread, view)
    for queue in view.look.queues:
        if queue.problem:
            yield f"{queue.name} cannot be read", "bad"
    for path, _ in view.look.problems:
        yield f"{path} cannot be read", "bad"


def _wrong_thread(thread: ThreadLook, view: View) -> Iterable[tuple[str, Tone]]:
    name = thread.name
    if thread.state == "failed":
        yield f"{name} has failed", "bad"
    if thread.count("guard_lost"):
        yield f"{name}: guard lost", "bad"
    if calls := thread.count("guard_seen"):
        yield f"{name}: {number_short(calls)} system calls", "bad"
    since = view.since.get(thread.key, NO_RATES)
    if since.faults:
        yield f"{name}: {number_short(since.faults)} page faults", "warn"
    if since.switches_involuntary:
        yield f"{name}: {number_short(since.switches_involuntary)} context switches", "warn"
    if thread.supervised is False and thread.state in ("running", "parked"):
        yield f"{name}: nobody polls it", "warn"


def widths(table: Table) -> list[int]:
    """Return how wide each column must be."""
    return [
        max([len(column.title), *(len(row.cells[index].text) for row in table.rows)])
        for index, column in enumerate(table.columns)
    ]
