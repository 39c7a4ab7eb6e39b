"""``chronicle doctor``: why is each segment held, who lags, is anything damaged, and the cure."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from chronicle.cli.arguments import add_command, add_json, add_queue

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from chronicle.cli.arguments import Commands
    from chronicle.cli.findings import Finding, Hold

EXAMPLES = """\
  chronicle doctor /dev/shm/iex
  chronicle doctor /dev/shm/iex --verify
  chronicle doctor /dev/shm/iex --json | jq -r '.findings[] | select(.severity != "note") | .cure'
"""

DESCRIPTION = """\
Say why each segment is there, who lags, what is damaged, and what to do about it. Changes nothing.

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
    add_queue(parser)
    parser.add_argument(
        "--verify", action="store_true", help="read every message; takes as long as reading does"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Examine a queue."""
    from chronicle.bus.liveness import find_ends
    from chronicle.cli.findings import Finding, examine, holds
    from chronicle.cli.output import console, look_at, print_json
    from chronicle.errors import FormatError

    facts: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    held: list[Hold] = []
    try:
        facts = look_at(options.queue)
        report = _verify(options.queue) if options.verify else None
        ends = find_ends(options.queue, facts)
        findings = examine(options.queue, facts, ends, report["damage"] if report else None)
        held = holds(facts)
    except FormatError as error:
        # Nothing else can be said: without the control block it is not known what is what.
        findings = [Finding("error", "unreadable", str(error), "restore the file from a copy")]
    wrong = any(finding.severity != "note" for finding in findings)
    if options.json:
        print_json(_document(options.queue, findings, held, report, healthy=not wrong))
    else:
        out = console()
        if facts is not None:
            _show_holds(out, held, facts)
        if report is not None:
            _show_report(out, report)
        _show_findings(out, options.queue, findings, verified=options.verify)
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
