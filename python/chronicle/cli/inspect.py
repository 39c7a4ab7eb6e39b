"""``chronicle inspect``: everything that can be said about a queue without reading its messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chronicle.cli.arguments import add_command, add_json, add_queue

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from chronicle.bus.liveness import Ends
    from chronicle.cli.arguments import Commands
    from chronicle.cli.machine import FileSystem
    from chronicle.message import Field, MessageBase

EXAMPLES = """\
  chronicle inspect /dev/shm/iex
  chronicle inspect /dev/shm/iex --all
  chronicle inspect /dev/shm/iex --json | jq '.readers[] | {name, live, lag_messages}'
"""

SEGMENTS_SHOWN = 12


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "inspect",
        run,
        summary="show a queue: options, writer, readers, segments, schema",
        description="Show a queue: options, writer, readers, segments, schema. Touches nothing.",
        examples=EXAMPLES,
    )
    add_queue(parser)
    parser.add_argument("--all", action="store_true", help="list every segment")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Show a queue."""
    from chronicle.bus.liveness import find_ends, lag
    from chronicle.cli.machine import file_system_of
    from chronicle.cli.output import console, look_at, print_json
    from chronicle.queue import Queue

    facts = look_at(options.queue)
    types = Queue(options.queue).types
    ends = find_ends(options.queue, facts)
    for reader in facts["readers"]:
        reader["lag_messages"], reader["lag_bytes"] = lag(reader, ends)
    if options.json:
        facts |= {"first_seq": ends.first_seq, "next_seq": ends.next_seq}
        facts |= {"newest_ns": ends.newest_ns, "tail_error": ends.error}
        facts["schema"] = [cls.schema for _, cls in sorted(types.items())]
        print_json(facts)
        return 0
    out = console()
    _show_queue(out, facts, ends, file_system_of(options.queue))
    _show_readers(out, facts)
    _show_segments(out, facts, ends, everything=options.all)
    _show_schema(out, [cls for _, cls in sorted(types.items())])
    return 0


def _show_queue(out: Console, facts: dict[str, Any], ends: Ends, place: FileSystem) -> None:
    from chronicle.cli.facts import age
    from chronicle.cli.output import (
        bytes_text,
        duration_text,
        facts_table,
        plural,
        safe_text,
        time_text,
    )

    table = facts_table()
    if ends.next_seq > ends.first_seq:
        count = plural(ends.next_seq - ends.first_seq, "message")
        table.add_row("messages", f"{ends.first_seq:,} to {ends.next_seq - 1:,} ({count})")
        newest = f"{time_text(ends.newest_ns)} ({duration_text(age(ends.newest_ns))} ago)"
        table.add_row("newest", newest)
    else:
        table.add_row("messages", f"none (the next one is {ends.next_seq:,})")
    if ends.error is not None:
        table.add_row("end", safe_text(f"cannot be read: {ends.error}"))
    opened = f"epoch {facts['epoch']}, opened {time_text(facts['writer_opened_ns'])}"
    if not facts["epoch"]:
        table.add_row("writer", "none yet")
    elif facts["writer_live"]:
        table.add_row("writer", f"pid {facts['writer_pid']}, {opened}")
    else:
        table.add_row("writer", f"none now; the last one: {opened}")
    durable = facts["durable_seq"]
    where = "on disk for certain"
    if place.is_memory:
        where = f"flushed, to a {place.kind}"
    table.add_row(where, f"up to {durable:,}" if durable else "nothing yet")
    size = bytes_text(len(facts["segments"]) * facts["segment_bytes"])
    table.add_row(
        "segments",
        f"{len(facts['segments'])} of {bytes_text(facts['segment_bytes'])}, {size} together, "
        f"at most {facts['segments_max']:,}; {facts['segments_deleted']:,} deleted by retention",
    )
    table.add_row("rolls", f"{facts['rolls']:,} prepared, {facts['rolls_inline']:,} inline")
    table.add_row("checksums", "yes" if facts["checksum"] else "no")
    cuts = f", {facts['cuts']} of them cut off {bytes_text(facts['cut_bytes'])}"
    table.add_row("recoveries", f"{facts['recoveries']}{cuts if facts['cuts'] else ''}")
    for name in facts["set_aside"]:
        table.add_row("set aside", f"segments/{safe_text(name)}")
    table.add_row("created", time_text(facts["created_ns"]))
    table.add_row("identity", f"{facts['queue_id']}, format {facts['version']}")
    out.print(table)


def _show_readers(out: Console, facts: dict[str, Any]) -> None:
    from chronicle.cli.output import bytes_text, data_table, safe_text

    if not facts["readers"]:
        out.print("\nno registered readers")
        return
    table = data_table(
        "reader", "state", "next", "messages behind", "behind", left=("reader", "state")
    )
    for reader in facts["readers"]:
        if reader["error"] is not None:
            table.add_row(safe_text(reader["name"]), safe_text(f"unreadable: {reader['error']}"))
            continue
        state = f"live, pid {reader['pid']}" if reader["live"] else "not running"
        if not reader["placed"]:
            table.add_row(safe_text(reader["name"]), f"{state}, not placed yet")
            continue
        table.add_row(
            safe_text(reader["name"]),
            state,
            f"{reader['next_seq']:,}",
            f"{reader['lag_messages']:,}",
            bytes_text(reader["lag_bytes"]),
        )
    out.print()
    out.print(table)


def _show_segments(out: Console, facts: dict[str, Any], ends: Ends, *, everything: bool) -> None:
    from chronicle.cli.facts import state_of
    from chronicle.cli.output import bytes_text, data_table, time_text

    segments = facts["segments"]
    table = data_table("segment", "state", "first", "data", "newest message", left=("state",))
    skipped = 0 if everything else max(0, len(segments) - SEGMENTS_SHOWN)
    for position, segment in enumerate(segments):
        if skipped and 3 <= position < 3 + skipped:
            if position == 3:
                table.add_row("...", f"{skipped} more (--all)")
            continue
        if segment["error"] is not None:
            table.add_row(str(segment["index"]), f"unreadable: {segment['error']}")
            continue
        newest = segment["timestamp_max_ns"]
        if segment["index"] == facts["tail_segment"]:
            newest = ends.newest_ns
        data = bytes_text(segment["data_bytes"]) if segment["sealed"] else ""
        table.add_row(
            str(segment["index"]),
            state_of(segment, facts),
            f"{segment['first_seq']:,}" if segment["first_seq"] else "",
            data,
            time_text(newest) if newest and segment["first_seq"] else "",
        )
    out.print()
    out.print(table)


def _show_schema(out: Console, classes: list[type[MessageBase]]) -> None:
    from chronicle.cli.output import data_table, safe_text

    if not classes:
        out.print("\nno schema: messages are bytes")
        return
    table = data_table("message", "type id", "bytes", "fields", left=("message", "fields"))
    for cls in classes:
        fields = ", ".join(f"{safe_text(f.name)} {_type_text(f)}" for f in cls.FIELDS)
        table.add_row(safe_text(cls.__name__), f"{cls.type_id:#06x}", str(cls.size_bytes), fields)
    out.print()
    out.print(table)


def _type_text(field: Field) -> str:
    count = "" if field.count is None else f"[{field.count}]"
    scale = "" if not field.scale else f"/10^{field.scale}"
    return f"{field.type}{count}{scale}"
