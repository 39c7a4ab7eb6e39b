"""``chronicle tail``: messages, decoded by the schema that is stored with the queue.

The reader has no name: it holds nothing back and leaves no trace. The text is written plainly,
without rich, because there may be millions of lines.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import deque
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from chronicle.cli.arguments import add_command, add_json, add_queue, positive

if TYPE_CHECKING:
    from chronicle._core import Message
    from chronicle.cli.arguments import Commands
    from chronicle.errors import Gap
    from chronicle.message import MessageBase
    from chronicle.queue import Queue, QueueReader

EXAMPLES = """\
  chronicle tail /dev/shm/iex                   the last ten messages
  chronicle tail -f /dev/shm/iex                and whatever comes
  chronicle tail /dev/shm/iex --from earliest --type Trade --json | jq .fields.price
  chronicle tail /dev/shm/iex --from 120001 -n 5
  chronicle tail /dev/shm/iex --from 2017-04-25T14:30:00Z
"""

DESCRIPTION = """\
Print messages: number, time (UTC), type, fields. Prices and other numbers with implied decimals
are shown as decimals; in JSON they are strings, so that no digit is lost. Messages without a
schema are shown as hex. Missing messages are shown where they are missing.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "tail",
        run,
        summary="print messages, decoded; -f to follow",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    add_queue(parser)
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on with new messages, until Ctrl-C"
    )
    parser.add_argument(
        "-n",
        "--lines",
        type=positive,
        metavar="N",
        help="the last N messages (default: 10); with --from the first N from there",
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=start_of,
        metavar="WHERE",
        help="a sequence number, a time (ISO 8601, UTC if it names no zone), earliest or latest",
    )
    parser.add_argument(
        "--type",
        dest="types",
        action="append",
        metavar="NAME",
        help="only messages of this type (a name of the schema, or a number); may be repeated",
    )
    add_json(parser)


_TIME = re.compile(r"(\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?)(?:\.(\d{1,9}))?(.*)")


def start_of(text: str) -> tuple[str, int]:
    """Read a place in a queue: a kind and a number, as the core takes it.

    >>> start_of("latest"), start_of("12,000")
    (('latest', 0), ('sequence', 12000))
    >>> start_of("1970-01-01T00:00:01.000000002Z")
    ('time', 1000000002)
    """
    import datetime as dt

    if text in ("earliest", "latest"):
        return text, 0
    digits = text.replace(",", "").replace("_", "")
    if digits.isdigit():
        return "sequence", int(digits)
    found = _TIME.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        moment = dt.datetime.fromisoformat(found[1] + found[3])
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"not a place: {text!r}; write a sequence number, a time like 2017-04-25T14:30:00Z, "
            "earliest or latest"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    since = moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    # Not a float: it has no room for nanoseconds.
    seconds = since.days * 86_400 + since.seconds
    return "time", max(0, seconds * 1_000_000_000 + int((found[2] or "").ljust(9, "0")))


def run(options: argparse.Namespace) -> int:
    """Print messages."""
    from chronicle.cli.output import look_at
    from chronicle.queue import Queue

    facts = look_at(options.queue)
    queue = Queue(options.queue)
    printer = _Printer(queue, as_json=options.json)
    wanted = _wanted_types(queue, options.types)
    # Not at the end at once: damage there must not hide what is before it.
    with Queue.open_subscriber(options.queue, None, start="earliest", wait="sleep") as reader:
        left = None
        if options.start is not None:
            reader._seek(*options.start)
            left = options.lines
        else:
            count = options.lines or 10
            reader.seek("latest")
            _seek_back(reader, facts, wanted, count)
            if not options.follow:
                left = count
        try:
            for item in _items(reader, follow=options.follow):
                if isinstance(item, Exception):
                    printer.gap(item)
                elif wanted is None or item.type_id in wanted:
                    printer.message(item)
                    if left is not None:
                        left -= 1
                        if left == 0:
                            break
        except KeyboardInterrupt:
            if not options.follow:
                raise
            # Ctrl-C is how following ends.
    return 0


def _items(reader: QueueReader, *, follow: bool) -> Iterator[Message | Gap]:
    """Yield messages and gaps; without `follow` those that are there at the beginning."""
    from chronicle.errors import Gap

    end = None if follow else _end_of(reader)
    while True:
        if end is not None and reader.next_seq >= end:
            return
        try:
            message = reader.next()
        except Gap as gap:
            yield gap
            continue
        if message is not None:
            yield message
            continue
        if not follow:
            return
        sys.stdout.flush()
        while not reader.wait(0.5):
            _stop_if_nobody_reads()


def _end_of(reader: QueueReader) -> int | None:
    """Return where the queue ends now, so that a fast writer cannot keep us for ever."""
    from chronicle.errors import ChronicleError
    from chronicle.queue import Queue

    try:
        with Queue.open_subscriber(reader.path, None, start="latest") as other:
            return other.next_seq
    except ChronicleError:
        return None  # Damage before the end: we will meet it.


def _stop_if_nobody_reads() -> None:
    """Notice that the other end of a pipe was closed, without writing to it."""
    import select

    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if any(events & select.POLLERR for _, events in poll.poll(0)):
            raise BrokenPipeError
    except (OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):
            raise


def _wanted_types(queue: Queue, names: list[str] | None) -> set[int] | None:
    from chronicle.errors import BadArgument

    if names is None:
        return None
    wanted: set[int] = set()
    for name in names:
        # Two feeds in one queue may both have a Trade.
        known = {i for i, cls in queue.types.items() if cls.__name__.lower() == name.lower()}
        try:
            wanted |= known or {int(name, 0)}
        except ValueError:
            listed = ", ".join(sorted({cls.__name__ for cls in queue.types.values()}))
            raise BadArgument(
                f"unknown --type: found={name!r} "
                f"expected=one of the schema ({listed or 'which is empty'}), or a number"
            ) from None
    return wanted


def _seek_back(
    reader: QueueReader, facts: dict[str, Any], wanted: set[int] | None, count: int
) -> None:
    """Move back to where the last `count` wanted messages begin."""
    from chronicle.errors import Gap

    first = next((s["first_seq"] for s in facts["segments"] if s["first_seq"]), 1)
    end = reader.next_seq
    window = count
    while True:
        start = max(first, end - window)
        reader.seek(start)
        if wanted is None or start >= end:
            return
        found: deque[int] = deque(maxlen=count)
        while reader.next_seq < end:
            try:
                message = reader.next()
            except Gap:
                continue
            if message is None:
                break
            if message.type_id in wanted:
                found.append(message.seq)
        if len(found) == count or start == first:
            reader.seek(found[0] if found else end)
            return
        window *= 8


class _Printer:
    """Writes messages and gaps as lines."""

    def __init__(self, queue: Queue, *, as_json: bool) -> None:
        self._queue = queue
        self._missing: set[int] = set()
        self._write = sys.stdout.write
        self._as_json = as_json

    def message(self, message: Message) -> None:
        cls = self._class_of(message.type_id)
        if cls is not None and len(message) < cls.size_bytes:
            cls = None  # Not what the schema says: the bytes are the truth.
        line = self._json(message, cls) if self._as_json else self._text(message, cls)
        self._write(line + "\n")

    def gap(self, gap: Gap) -> None:
        first, after, reason = gap.first_missing, gap.next, gap.reason
        if self._as_json:
            import json

            facts = {"first_missing": first, "next": after, "reason": reason}
            self._write(json.dumps({"gap": facts}) + "\n")
        else:
            self._write(f"--- messages {first:,} to {after - 1:,} are missing: {reason} ---\n")

    def _class_of(self, type_id: int) -> type[MessageBase] | None:
        found = self._queue.types.get(type_id)
        if found is None and type_id not in self._missing:
            from chronicle.errors import SchemaMismatch

            try:
                # Looks again at the file: the writer may have gained a class.
                return self._queue.class_of(type_id)
            except SchemaMismatch:
                self._missing.add(type_id)
        return found

    def _text(self, message: Message, cls: type[MessageBase] | None) -> str:
        from chronicle.cli.output import time_text
        from chronicle.top.messages import fields_text, raw_text

        if cls is None:
            name, body = f"type {message.type_id}", raw_text(bytes(message.payload))
        else:
            name, body = cls.__name__, fields_text(cls, message.payload)
        return f"{message.seq:>9}  {time_text(message.timestamp_ns)}  {name:<16} {body}".rstrip()

    def _json(self, message: Message, cls: type[MessageBase] | None) -> str:
        import json

        from chronicle.cli.output import time_text

        line: dict[str, Any] = {
            "seq": message.seq,
            "time": time_text(message.timestamp_ns),
            "timestamp_ns": message.timestamp_ns,
            "type_id": message.type_id,
        }
        if cls is None:
            line["hex"] = bytes(message.payload).hex()
        else:
            line["type"] = cls.__name__
            fields = cls.view(message.payload).as_dict(scaled=True)
            line["fields"] = {key: _json_value(value) for key, value in fields.items()}
        return json.dumps(line)


def _json_value(value: Any) -> Any:
    import math

    if isinstance(value, bytes):
        return value.decode("ascii", "backslashreplace")
    if isinstance(value, tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Decimal):
        return f"{value:f}"  # As text, which keeps all digits.
    return str(value)  # JSON has no word for nan and infinity.
