"""``chronicle import``: a capture of market data into a queue."""

from __future__ import annotations

import argparse
import datetime as dt
import sys
import time
from typing import TYPE_CHECKING, Any

from chronicle.cli.arguments import add_command, add_json, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from chronicle.cli.arguments import Commands
    from chronicle.feeds.batch import Batch
    from chronicle.feeds.capture import Capture
    from chronicle.queue import QueueWriter

EXAMPLES = """\
  chronicle import deep.pcap.gz /dev/shm/iex
  chronicle import 20200130.itch /dev/shm/itch --feed itch --date 2020-01-30
  chronicle import btcusdt.txt.zst btc --checksum --segment-bytes 16MiB --json
"""

DESCRIPTION = """\
Decode a capture into typed messages and append them to a queue, with their own timestamps.

CAPTURE is a pcap file with IEX-TP (DEEP 1.0, TOPS 1.6) or MoldUDP64 (TotalView-ITCH 5.0), a
daily ITCH file, or Binance WebSocket lines; plain, gzip, or zstd (which needs the extra `archive`).
Gaps and restarts of the feed become messages of their own. The queue is created if it is not there;
a queue that exists is appended to, if its schema does not contradict. The messages are flushed when
the command returns.
"""

WIRE_FEEDS = {"iex": 0x8100, "mold": 0x8200, "itch": 0x8200}


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "import",
        run,
        summary="put a capture of market data into a queue",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("capture", metavar="CAPTURE", help="capture file; its content says what")
    parser.add_argument("queue", metavar="QUEUE", help="directory of the queue")
    parser.add_argument(
        "--feed",
        choices=("iex", "mold", "itch", "binance"),
        help="what the capture holds, if it cannot be told from its beginning",
    )
    parser.add_argument(
        "--date",
        type=_date,
        metavar="YYYY-MM-DD",
        help="trading day of an ITCH feed, whose times count from midnight",
    )
    parser.add_argument(
        "--checksum", action="store_true", help="new queue: give every message a CRC-32C"
    )
    parser.add_argument(
        "--segment-bytes",
        type=size,
        metavar="SIZE",
        help="new queue: a power of two, 64KiB to 1GiB (default: 64MiB)",
    )
    add_json(parser)


def _date(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a date: {text!r}; write YYYY-MM-DD") from None


def run(options: argparse.Namespace) -> int:
    """Import; print what was found."""
    from chronicle.cli.output import note, print_json
    from chronicle.errors import BadArgument
    from chronicle.feeds import import_capture
    from chronicle.queue import Provisioner, Queue

    segment_bytes = options.segment_bytes or 64 << 20
    if segment_bytes & (segment_bytes - 1) or not 1 << 16 <= segment_bytes <= 1 << 30:
        raise BadArgument(
            f"bad --segment-bytes: found={segment_bytes} expected=a power of two, 64KiB to 1GiB"
        )
    with import_capture(options.capture, feed=options.feed, date=options.date) as capture:
        with (
            Provisioner() as provisioner,
            Queue.open_publisher(
                options.queue,
                schema=list(capture.classes.values()),
                segment_bytes=segment_bytes,
                checksum=options.checksum,
                provisioner=provisioner,
            ) as writer,
        ):
            _warn_of_ignored(options)
            first_seq = writer.next_seq
            started = time.perf_counter()
            try:
                _copy(capture, writer)
            except BaseException:
                note(f"stopped; messages {first_seq:,} to {writer.next_seq - 1:,} are in the queue")
                raise
            seconds = time.perf_counter() - started
            writer.flush()
            report = _report(
                capture, options.capture, options.queue, first_seq, writer.next_seq, seconds
            )
    if capture.counts.truncated:
        note("the capture ends in the middle of a record; what was complete is in the queue")
    if capture.feed in ("itch", "mold") and options.date is None:
        note("no --date: the timestamps count from midnight, as if that were 1970-01-01")
    if options.json:
        print_json(report)
    else:
        _show(report)
    return 0


def _warn_of_ignored(options: argparse.Namespace) -> None:
    from chronicle.cli.output import bytes_text, note
    from chronicle.queue import inspect

    facts = inspect(options.queue)
    if options.segment_bytes not in (None, facts["segment_bytes"]):
        found = bytes_text(facts["segment_bytes"])
        note(f"--segment-bytes has no effect: the queue exists, with {found}")
    if options.checksum and not facts["checksum"]:
        note("--checksum has no effect: the queue exists, without checksums")


def _copy(capture: Capture, writer: QueueWriter) -> None:
    from chronicle.cli.output import console

    if not sys.stderr.isatty():
        for batch in capture:
            _append(writer, batch)
        return
    progress = _progress_bar(console(stderr=True))
    with progress:
        task = progress.add_task("importing", total=capture.bytes_total, messages=0)
        first_seq = writer.next_seq
        for batch in capture:
            _append(writer, batch)
            _advance(progress, task, capture, writer.next_seq - first_seq)
        _advance(progress, task, capture, writer.next_seq - first_seq)


def _append(writer: QueueWriter, batch: Batch) -> None:
    writer.append_mixed(
        batch.buffer.data,
        batch.offsets.data,
        batch.lengths.data,
        batch.type_ids.data,
        batch.timestamps_ns.data,
    )


def _progress_bar(terminal: Any) -> Progress:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[messages]:,} messages"),
        TimeRemainingColumn(),
        console=terminal,
        transient=True,
    )


def _advance(progress: Progress, task: TaskID, capture: Capture, messages: int) -> None:
    progress.update(task, completed=capture.bytes_done, messages=messages)


def _report(
    capture: Capture, path: str, queue: str, first_seq: int, next_seq: int, seconds: float
) -> dict[str, Any]:
    counts = capture.counts
    published = next_seq - first_seq
    types = []
    for type_id, count in sorted(counts.messages.items(), key=lambda item: (-item[1], item[0])):
        base = WIRE_FEEDS.get(capture.feed)
        wire = None if base is None or type_id == base else chr(type_id - base)
        known = capture.classes.get(type_id)
        name = "raw" if known is None else known.__name__
        types.append({"type_id": type_id, "name": name, "wire": wire, "count": count})
    return {
        "capture": path,
        "feed": capture.feed,
        "queue": queue,
        "packets": counts.packets,
        "heartbeats": counts.heartbeats,
        "messages": counts.messages_count,
        "types": types,
        "lines": counts.lines,
        "restarts": counts.restarts,
        "gaps": counts.gaps,
        "missing": counts.missing,
        "duplicates": counts.duplicates,
        "late_joins": counts.late_joins,
        "ends": counts.ends,
        "extended": counts.extended,
        "skipped": counts.skipped,
        "truncated": bool(counts.truncated),
        "published": published,
        "first_seq": first_seq if published else None,
        "last_seq": next_seq - 1 if published else None,
        "seconds": round(seconds, 6),
        "messages_per_s": round(published / seconds) if seconds > 0 else None,
    }


def _show(report: dict[str, Any]) -> None:
    from chronicle.cli.output import console, data_table, duration_text, facts_table

    out = console()
    facts = facts_table()
    facts.add_row("feed", report["feed"])
    if report["packets"]:
        facts.add_row("packets", f"{report['packets']:,}")
        facts.add_row("heartbeats", f"{report['heartbeats']:,}")
    if report["lines"]:
        facts.add_row("lines", f"{sum(report['lines'].values()):,}")
        for kind, count in report["lines"].items():
            facts.add_row(f"  {kind}", f"{count:,}")
    facts.add_row("messages", f"{report['messages']:,}")
    for name in ("restarts", "gaps"):
        facts.add_row(name, f"{report[name]:,}")
    for name in ("missing", "duplicates", "late_joins", "ends", "extended"):
        if report[name]:
            facts.add_row(name.replace("_", " "), f"{report[name]:,}")
    for reason, count in report["skipped"].items():
        facts.add_row(f"skipped: {reason}", f"{count:,}")
    facts.add_row("truncated", "yes, the last record is cut short" if report["truncated"] else "no")
    out.print(facts)
    if report["types"]:
        # Text feeds have no codes on the wire.
        has_wire = any(entry["wire"] for entry in report["types"])
        wire = ("wire",) if has_wire else ()
        table = data_table("type", *wire, "type id", "messages", left=("type", *wire))
        for entry in report["types"]:
            code = (entry["wire"] or "",) if has_wire else ()
            number = f"{entry['type_id']:#06x}"
            table.add_row(entry["name"], *code, number, f"{entry['count']:,}")
        out.print()
        out.print(table)
        out.print()
    if report["published"]:
        rate = f"{report['messages_per_s']:,} messages/s"
        events = report["published"] - report["messages"]
        beside = f", {events:,} of them stream events" if events else ""
        out.print(
            f"published {report['published']:,} messages{beside}: "
            f"sequence {report['first_seq']:,} to {report['last_seq']:,} "
            f"in {duration_text(report['seconds'])} ({rate})",
            soft_wrap=True,
        )
    else:
        out.print("published nothing")
