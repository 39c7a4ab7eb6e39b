"""How a queue shows itself in a notebook: schema, rates, last messages.

Only looks: readers opened here are unregistered, so nothing is written and nothing is held. All
that comes from files is escaped. No colours, so it fits light and dark notebooks.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

from chronicle.errors import ChronicleError, Gap, NotAQueue
from chronicle.markup import Node, fragment, node

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chronicle.message import Field, MessageBase
    from chronicle.queue import Message, Queue, QueueReader

__all__ = ["queue_html"]

_LAST: Final = 5
_RATE_OVER: Final = 1_000
_BYTES_SHOWN: Final = 32
_FIELDS_SHOWN: Final = 40
_CELL_MAX: Final = 200
_NUMBERS: Final = frozenset({"seq", "type id", "bytes"})


def queue_html(queue: Queue, open_at: Callable[[Any], QueueReader]) -> str:
    """Return a queue as HTML. Reads a few messages at its end."""
    parts: list[Node | None] = [node("p", node("strong", str(queue.path)))]
    try:
        facts = queue.inspect()
        types = queue.types
        parts += [_facts(facts, open_at), _schema(list(types.values()))]
        parts.append(_messages(types, open_at))
    except (NotAQueue, FileNotFoundError, NotADirectoryError):
        parts.append(node("p", "there is no queue at this path (yet)"))
    except (ChronicleError, OSError) as error:
        parts.append(node("p", f"cannot be read: {error}"))
    return fragment(node("div", *parts, class_="chronicle-queue"))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Node:
    head = node("tr", *(_cell(column, column, "th") for column in columns))
    body = [
        node("tr", *(_cell(text, column) for text, column in zip(row, columns, strict=True)))
        for row in rows
    ]
    return node("table", node("thead", head), node("tbody", *body))


def _cell(text: str, column: str, name: str = "td") -> Node:
    # Notebooks put everything to the right, which only numbers look well at.
    side = "right" if column in _NUMBERS else "left"
    return node(name, _short(text), style=f"text-align: {side}")


def _short(text: str) -> str:
    return text if len(text) <= _CELL_MAX else text[: _CELL_MAX - 1] + "…"


def _facts(facts: dict[str, Any], open_at: Callable[[Any], QueueReader]) -> Node:
    with open_at("latest") as reader:
        next_seq = reader.next_seq
    entered = [segment["first_seq"] for segment in facts["segments"] if segment["first_seq"]]
    first_seq = min(entered[0], next_seq) if entered else next_seq
    rate = _rate(first_seq, next_seq, open_at)
    writer = f"pid {facts['writer_pid']}" if facts["writer_live"] else "none now"
    readers = [
        f"{reader['name']}{'' if reader['live'] else ' (not running)'}"
        for reader in facts["readers"]
        if reader["error"] is None
    ]
    count = len(facts["segments"])
    size = count * facts["segment_bytes"] / (1 << 20)
    rows = [
        ("messages", f"{next_seq - first_seq:,} (next: {next_seq:,})"),
        ("rate", "not known" if rate is None else f"{rate:,.0f} messages/s, by the last ones"),
        ("writer", writer),
        ("readers", ", ".join(readers) or "none registered"),
        ("size", f"{size:,.4g} MiB in {count} segment{'s' * (count != 1)}"),
    ]
    body = (node("tr", _cell(name, ""), _cell(text, "")) for name, text in rows)
    return node("table", node("tbody", *body))


def _rate(first_seq: int, next_seq: int, open_at: Callable[[Any], QueueReader]) -> float | None:
    """Return messages per second, by the timestamps of the last thousand."""
    start = max(first_seq, next_seq - _RATE_OVER)
    if next_seq - start < 2:
        return None
    times = []
    for seq in (start, next_seq - 1):
        with open_at(seq) as reader:
            message = _next(reader)
            if message is None:
                return None
            times.append(message.timestamp_ns)
    span_ns = times[1] - times[0]
    return (next_seq - 1 - start) * 1e9 / span_ns if span_ns > 0 else None


def _next(reader: QueueReader) -> Message | None:
    try:
        return reader.next()
    except Gap:
        # Retention was faster.
        return reader.next()


def _schema(classes: Sequence[type[MessageBase]]) -> Node:
    if not classes:
        return node("p", "no schema: messages are bytes")
    rows = [
        (cls.__name__, f"{cls.type_id:#06x}", str(cls.size_bytes), _fields_text(cls.FIELDS))
        for cls in classes
    ]
    return _table(("message", "type id", "bytes", "fields"), rows)


def _fields_text(fields: Sequence[Field]) -> str:
    def text(field: Field) -> str:
        count = "" if field.count is None else f"[{field.count}]"
        scale = f"/10^{field.scale}" if field.scale else ""
        return f"{field.name} {field.type}{count}{scale}"

    more = [] if len(fields) <= _FIELDS_SHOWN else [f"and {len(fields) - _FIELDS_SHOWN} more"]
    return ", ".join([*map(text, fields[:_FIELDS_SHOWN]), *more])


def _messages(types: Any, open_at: Callable[[Any], QueueReader]) -> Node:
    with open_at("latest") as reader:
        next_seq = reader.next_seq
    rows: list[tuple[str, ...]] = []
    if next_seq > 1:
        with open_at(max(1, next_seq - _LAST)) as reader:
            while len(rows) < _LAST and (message := _next(reader)) is not None:
                rows.append(_row(message, types))
    if not rows:
        return node("p", "no messages")
    return _table(("seq", "time", "message", "values"), rows)


def _row(message: Message, types: Any) -> tuple[str, ...]:
    cls = types.get(message.type_id)
    if cls is None or len(message.payload) < cls.size_bytes:
        data = bytes(message.payload[:_BYTES_SHOWN])
        more = " …" if len(message.payload) > _BYTES_SHOWN else ""
        name, values = f"type {message.type_id}", f"{len(message.payload)} bytes: {data!r}{more}"
    else:
        name = cls.__name__
        shown = list(cls.view(message.payload).as_dict(scaled=True).items())[:_FIELDS_SHOWN]
        values = ", ".join(f"{field}={_value(value)}" for field, value in shown)
    return f"{message.seq:,}", _time(message.timestamp_ns), name, values


def _value(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("ascii", "backslashreplace")
    if isinstance(value, tuple):
        return "(" + ", ".join(str(item) for item in value[:8]) + ", …" * (len(value) > 8) + ")"
    return str(value)


def _time(timestamp_ns: int) -> str:
    second, rest = divmod(timestamp_ns, 1_000_000_000)
    try:
        text = dt.datetime.fromtimestamp(second, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return str(timestamp_ns)
    return f"{text}.{rest:09d}"
