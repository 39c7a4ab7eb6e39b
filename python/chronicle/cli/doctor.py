"""``chronicle doctor``: what is wrong with a queue, a bus, or this host, and the cure."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chronicle.cli.arguments import add_command, add_json

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from chronicle.cli.arguments import Commands
    from chronicle.cli.bus_findings import BusReport
    from chronicle.cli.findings import Finding, Hold

EXAMPLES = """\
  chronicle doctor /dev/shm/iex
  chronicle doctor /dev/shm/bus --verify
  chronicle doctor --host --cores 2-3
  chronicle doctor /dev/shm/iex --json | jq -r '.findings[] | select(.severity != "note") | .cure'
"""

DESCRIPTION = """\
Say what is wrong, and what to do about it. Changes nothing.

Of a queue: why each segment is there, who lags, what is damaged. Of a bus: who is dead or does not
work, stale markers, what does not belong there or to whom, and all of that of each queue. With
--host: what in this machine's set-up gets into the way of hot threads, and the command that mends
it.

The exit code is 1 if there is a warning or an error; notes alone leave it at 0. With --verify
every message is read and its checksum, if it has one, is checked.
"""

COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "doctor",
        run,
        summary="find out what is wrong, and how to cure it",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("path", metavar="PATH", nargs="?", help="directory of a queue, or of a bus")
    parser.add_argument("--host", action="store_true", help="look at the host, not at a queue")
    parser.add_argument(
        "--cores", metavar="LIST", help="with --host: cores for hot threads, for example 2-3,6"
    )
    parser.add_argument(
        "--verify", action="store_true", help="read every message; takes as long as reading does"
    )
    add_json(parser)
    parser.set_defaults(wrong_use=parser.error)


def run(options: argparse.Namespace) -> int:
    """Examine a queue, a bus, or the host."""
    if options.host == (options.path is not None):
        options.wrong_use("give a PATH, or --host")
    if options.cores is not None and not options.host:
        options.wrong_use("--cores is for --host")
    if options.host:
        return _run_host(options)
    if not os.path.lexists(f"{options.path}/control"):
        from chronicle.cli.bus_findings import is_bus

        if is_bus(options.path):
            return _run_bus(options)
    return _run_queue(options)


def _run_queue(options: argparse.Namespace) -> int:
    from chronicle.bus.liveness import find_ends
    from chronicle.cli.findings import Finding, examine, holds
    from chronicle.cli.output import console, look_at, print_json
    from chronicle.errors import FormatError

    facts: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    held: list[Hold] = []
    try:
        facts = look_at(options.path)
        report = _verify(options.path) if options.verify else None
        ends = find_ends(options.path, facts)
        findings = examine(options.path, facts, ends, report["damage"] if report else None)
        held = holds(facts)
    except FormatError as error:
        # Nothing else can be said: without the control block it is not known what is what.
        findings = [Finding("error", "unreadable", str(error), "restore the file from a copy")]
    wrong = any(finding.severity != "note" for finding in findings)
    if options.json:
        print_json(_document(options.path, findings, held, report, healthy=not wrong))
    else:
        out = console()
        if facts is not None:
            _show_holds(out, held, facts)
        if report is not None:
            _show_report(out, report)
        _show_findings(out, options.path, findings, verified=options.verify)
    return 1 if wrong else 0


def _run_bus(options: argparse.Namespace) -> int:
    from chronicle.cli.bus_findings import examine_bus, summary
    from chronicle.cli.output import console, print_json

    path = os.path.realpath(options.path)
    report = examine_bus(path, with_messages=options.verify)
    findings = [finding for _, finding in report.findings]
    wrong = any(finding.severity != "note" for finding in findings)
    if options.json:
        print_json({"bus": path, "healthy": not wrong, **report.as_dict()})
    else:
        out = console()
        _show_bus(out, report)
        out.print(summary(report))
        out.print()
        _show_findings(out, path, findings, verified=options.verify)
    return 1 if wrong else 0


def _show_bus(out: Console, report: BusReport) -> None:
    from chronicle.cli.output import data_table, safe_text

    table = data_table("endpoint", "state", "why", "pid", left=("endpoint", "state", "why"))
    for name, status in report.endpoints.items():
        if status is None:
            table.add_row(safe_text(name), "refused", "", "")
            continue
        ready = "ready" if status.ready else "not ready"
        pid = "" if status.lease is None else str(status.lease.pid)
        why = status.reason or ready
        table.add_row(safe_text(name), status.state, why, pid)
    out.print(table)
    out.print()


def _run_host(options: argparse.Namespace) -> int:
    from chronicle.cli.host import examine_host, parse_cores
    from chronicle.cli.output import console, facts_table, print_json, safe_text

    wanted = None if options.cores is None else parse_cores(options.cores)
    report = examine_host(Path("/"), wanted)
    wrong = any(finding.severity != "note" for finding in report.findings)
    if options.json:
        findings = [finding.as_dict() for finding in report.findings]
        print_json({"healthy": not wrong, "facts": report.facts, "findings": findings})
    else:
        out = console()
        table = facts_table()
        for name, value in report.facts.items():
            table.add_row(name, safe_text(value))
        out.print(table)
        out.print()
        _show_findings(out, "this host", report.findings, verified=True)
    return 1 if wrong else 0


def _document(
    path: str,
    findings: list[Finding],
    held: list[Hold],
    report: dict[str, Any] | None,
    *,
    healthy: bool,
) -> dict[str, Any]:
    return {
        "queue": path,
        "healthy": healthy,
        "findings": [finding.as_dict() for finding in findings],
        "segments": [
            {"first": h.first, "last": h.last, "reason": h.reason, "readers": list(h.readers)}
            for h in held
        ],
        "verify": report,
    }


def _verify(path: str) -> dict[str, Any]:
    from chronicle.cli.output import console
    from chronicle.queue import verify

    if not sys.stderr.isatty():
        return verify(path)
    from rich.progress import Progress

    with Progress(console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("verifying", total=None)
        return verify(path, lambda done, total: progress.update(task, completed=done, total=total))


def _show_holds(out: Console, held: list[Hold], facts: dict[str, Any]) -> None:
    from chronicle.cli.output import bytes_text, data_table

    table = data_table("segments", "size", "why it is there", left=("segments", "why it is there"))
    reasons = {
        "tail": "is being written" if facts["writer_live"] else "the next writer goes on here",
        "ready": "prepared for the next roll",
        "left over": "below the floor: a retention was killed while it deleted",
        "unreadable": "cannot be read",
        "no policy": "nobody needs it; no retention policy has let it go",
    }
    for hold in held:
        span = str(hold.first) if hold.count == 1 else f"{hold.first} to {hold.last}"
        names = ", ".join(f"'{name}'" for name in hold.readers)
        reason = reasons.get(hold.reason) or f"live reader {names} has not committed it"
        table.add_row(span, bytes_text(hold.count * facts["segment_bytes"]), reason)
    out.print(table)
    out.print()


def _show_report(out: Console, report: dict[str, Any]) -> None:
    from chronicle.cli.output import bytes_text, plural

    if report["records"]:
        span = (
            f": {report['first_seq']:,} to {report['next_seq'] - 1:,}"
            if not report["damage"]
            else ""
        )
        payload = bytes_text(report["payload_bytes"])
        out.print(f"verified {plural(report['records'], 'message')}{span}, {payload} of payload")
    else:
        out.print("verified: there is no message")
    out.print()


def _show_findings(out: Console, path: str, findings: list[Finding], *, verified: bool) -> None:
    from rich.text import Text

    from chronicle.cli.output import plural, safe_text

    for finding in findings:
        line = Text(f"{finding.severity:<8}", style=COLOURS[finding.severity])
        line.append(safe_text(finding.text), style="default")
        out.print(line, soft_wrap=True)
        if finding.cure is not None:
            out.print(Text(f"{'':<8}-> {safe_text(finding.cure)}", style="dim"), soft_wrap=True)
    wrong = sum(finding.severity != "note" for finding in findings)
    looked = "" if verified else "; --verify also reads every message"
    if wrong:
        out.print(f"\n'{path}': {plural(wrong, 'problem')} found{looked}", soft_wrap=True)
    else:
        out.print(f"\n'{path}': nothing is wrong{looked}", soft_wrap=True)
