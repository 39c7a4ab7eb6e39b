"""``chronicle replay``: the inputs of a journalled hot thread once more, and what was different."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from chronicle.cli.arguments import add_command, add_json, positive

if TYPE_CHECKING:
    from collections.abc import Callable

    from chronicle.cli.arguments import Commands
    from chronicle.hot.replay_report import Difference, InputShown, MessageShown, ReplayReport

EXAMPLES = """\
  chronicle replay /dev/shm/ewma.journal
  chronicle replay /dev/shm/ewma.journal --handler strategies:Ewma
  chronicle replay /backup/ewma.journal --source 0=/backup/ticks
  chronicle replay /dev/shm/ewma.journal --json | jq .difference.input.seq
"""

DESCRIPTION = """\
Give a handler everything again that a hot thread with a journal was given: the same messages,
commands and clock in the same order. What it publishes, its state and its counters are compared
with those of then, byte for byte, and the first difference is shown. No queue is written to.

Exit code: 0 identical, 1 different (or it failed), 3 if not everything could be proved.
"""

EXIT_DIFFERENT = 1
EXIT_UNPROVED = 3
_FIELDS_SHOWN = 40
_INPUT_WORDS = {
    "idle": "idle call",
    "batch begin": "begin of a batch",
    "batch end": "end of a batch",
}


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "replay",
        run,
        summary="run a hot thread's journal again, and compare",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("journal", metavar="JOURNAL", help="directory of the journal's queue")
    parser.add_argument(
        "--handler",
        metavar="MODULE:CLASS",
        help="what to run, by default the class that the journal names; found from here",
    )
    parser.add_argument(
        "--source",
        dest="sources",
        action="append",
        default=[],
        type=source_of,
        metavar="N=PATH",
        help="where the messages of a source are now: by its number or by the path that the "
        "journal has; may be repeated",
    )
    parser.add_argument(
        "--run", dest="number", type=positive, metavar="N", help="which run (default: the last)"
    )
    parser.add_argument("--until", type=positive, metavar="N", help="stop after so many inputs")
    add_json(parser)


def source_of(text: str) -> tuple[int | str, str]:
    """Read where a source is.

    >>> source_of("0=/backup/ticks"), source_of("/dev/shm/ticks=/backup/ticks")
    ((0, '/backup/ticks'), ('/dev/shm/ticks', '/backup/ticks'))
    """
    key, equals, path = text.partition("=")
    if not (key and equals and path):
        raise argparse.ArgumentTypeError(f"not a source: {text!r}; write 0=/path/of/its/queue")
    return (int(key) if key.isdecimal() else key), path


def run(options: argparse.Namespace) -> int:
    """Replay, and show what was found."""
    from chronicle.cli.output import look_at
    from chronicle.hot.program import import_handler
    from chronicle.hot.replay import replay

    look_at(options.journal)
    # Handlers are found where the command is given, as with `python -m`.
    if os.getcwd() not in sys.path:  # noqa: PTH109
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    report = replay(
        options.journal,
        None if options.handler is None else import_handler(options.handler),
        sources=dict(options.sources),
        run=options.number,
        until=options.until,
    )
    if options.json:
        from chronicle.cli.output import print_json

        print_json(_document(report))
    else:
        _print(report)
    return {"identical": 0, "different": EXIT_DIFFERENT, "unproved": EXIT_UNPROVED}[report.verdict]


# --- Text ---


def _print(report: ReplayReport) -> None:
    from chronicle.cli.output import plural, safe_text, time_text

    which = f", run {report.run} of {report.runs}" if report.runs > 1 else ""
    print(f"journal of hot thread '{safe_text(report.thread)}'{which}: {report.handler}")
    fed = ", ".join(
        plural(count, _INPUT_WORDS.get(kind, kind))
        for kind, count in report.inputs.items()
        if count
    )
    print(f"inputs: {fed or 'none'}")
    if report.clock_ns:
        print(f"clock at the last one: {time_text(report.clock_ns)}")
    for output in report.outputs:
        skipped = f", {output.skipped:,} not compared" if output.skipped else ""
        print(f"output '{output.name}': {plural(output.equal, 'message')} identical{skipped}")
    print(f"state at the end: {report.state}")
    for note in report.notes:
        print(f"note: {safe_text(note)}")
    for why in report.unproved:
        print(f"not proved: {safe_text(why)}")
    if report.difference is not None:
        _print_difference(report.difference)
    print(
        {
            "identical": "IDENTICAL",
            "different": "DIFFERENT",
            "unproved": "NOT PROVED: what could be compared is identical",
        }[report.verdict]
    )


def _print_difference(found: Difference) -> None:
    print(f"first difference: {_what(found)}")
    if found.input is not None:
        _print_input(found.input)
    if found.kind == "output" and found.expected_message is None:
        print("  expected   no message")
    elif found.kind != "output" or found.field:
        print(f"  expected   {_text(found.expected)}")
        print(f"  found      {_text(found.found)}")
    for title, message in (("expected", found.expected_message), ("found", found.found_message)):
        if message is not None:
            _print_message(f"{title} message", message, found.field)


def _what(found: Difference) -> str:
    match found.kind:
        case "output":
            field = f", field '{found.field}'" if found.field else ""
            return f"output '{found.name}', message seq={found.seq}{field}"
        case "count":
            return f"output '{found.name}', number of messages"
        case "state":
            return f"state at the end, field '{found.name}'"
        case "counter":
            return f"counter '{found.name}' at the end"
        case _:
            return "how the handler ended"


def _print_input(given: InputShown) -> None:
    from chronicle.cli.output import safe_text, time_text

    text = f"  input      #{given.number:,} {given.kind}"
    if given.source is not None:
        text += f" of source {given.source} ('{safe_text(given.path)}')"
    if given.seq:
        text += f" seq={given.seq}" if given.kind == "message" else f" ticket={given.seq}"
    print(f"{text}, clock {time_text(given.now_ns)}, journal seq={given.journal_seq}")
    if given.message is not None:
        _print_message("it was", given.message, "")


def _print_message(title: str, message: MessageShown, field: str) -> None:
    from chronicle.cli.output import time_text

    print(f"  {title}: {message.type}, timestamp {time_text(message.timestamp_ns)}")
    if message.fields is None:
        print(
            f"    {message.payload[:64].hex(' ')}" + (" ..." if len(message.payload) > 64 else "")
        )
        return
    for index, (name, value) in enumerate(message.fields.items()):
        if index == _FIELDS_SHOWN:
            print(f"    ... {len(message.fields) - index} more")
            break
        mark = "*" if name == field else " "
        print(f"  {mark} {name} = {_text(value)}")


def _text(value: Any) -> str:
    from chronicle.cli.output import safe_text

    if isinstance(value, bytes):
        return safe_text(value)
    return safe_text(value) if isinstance(value, str) else repr(value)


# --- JSON ---


def _document(report: ReplayReport) -> dict[str, Any]:
    return {
        "verdict": report.verdict,
        "journal": report.journal,
        "run": report.run,
        "runs": report.runs,
        "thread": report.thread,
        "handler": report.handler,
        "same_code": report.same_code,
        "inputs": dict(report.inputs),
        "clock_ns": report.clock_ns,
        "outputs": [
            {"name": o.name, "identical": o.equal, "not_compared": o.skipped}
            for o in report.outputs
        ],
        "state": report.state,
        "unproved": list(report.unproved),
        "notes": list(report.notes),
        "difference": _maybe(_difference, report.difference),
    }


def _maybe(show: Callable[[Any], dict[str, Any]], value: Any) -> dict[str, Any] | None:
    return None if value is None else show(value)


def _difference(found: Difference) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "name": found.name,
        "field": found.field,
        "seq": found.seq,
        "expected": _plain(found.expected),
        "found": _plain(found.found),
        "expected_message": _maybe(_message, found.expected_message),
        "found_message": _maybe(_message, found.found_message),
        "input": _maybe(_input, found.input),
    }


def _input(given: InputShown) -> dict[str, Any]:
    return {
        "number": given.number,
        "journal_seq": given.journal_seq,
        "kind": given.kind,
        "source": given.source,
        "path": given.path,
        "seq": given.seq,
        "clock_ns": given.now_ns,
        "message": _maybe(_message, given.message),
    }


def _message(message: MessageShown) -> dict[str, Any]:
    document: dict[str, Any] = {
        "type": message.type,
        "type_id": message.type_id,
        "timestamp_ns": message.timestamp_ns,
        "hex": message.payload.hex(),
    }
    if message.fields is not None:
        document["fields"] = {name: _plain(value) for name, value in message.fields.items()}
    return document


def _plain(value: Any) -> Any:
    """Return a value as JSON can have it."""
    import math

    if isinstance(value, bytes):
        return value.decode("ascii", "backslashreplace")
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
