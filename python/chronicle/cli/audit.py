"""``chronicle audit``: whether a handler may run on a hot thread, and what it can reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chronicle.cli.arguments import add_command, add_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from rich.console import Console

    from chronicle.cli.arguments import Commands
    from chronicle.hot.audit import Reach, Verdict

EXAMPLES = """\
  chronicle audit strategy:Ewma
  chronicle audit strategies/market_maker.py:Maker
  chronicle audit strategy:Ewma --json | jq .reach.libm
"""

EXIT_REFUSED = 1


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "audit",
        run,
        summary="tell whether a handler may run on a hot thread, and what it can reach",
        description=(
            "Compile a handler and look at the result: its source, its types, its machine code.\n"
            "Imports the module that it stands in, and runs nothing of the handler.\n"
            "Exit code 1 if it is refused."
        ),
        examples=EXAMPLES,
    )
    parser.add_argument(
        "handler", metavar="MODULE:HANDLER", help="the class, in a module or in a file.py"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="compile it anew, and keep nothing in the cache"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Audit a handler."""
    from chronicle.cli.handlers import find_handler
    from chronicle.cli.output import console, print_json
    from chronicle.hot.audit import audit

    cls = find_handler(options.handler)
    verdict = audit(cls, use_cache=not options.fresh)
    if options.json:
        document = verdict._asdict()
        document["findings"] = [finding._asdict() for finding in verdict.findings]
        document["reach"] = None if verdict.reach is None else verdict.reach._asdict()
        print_json(document)
    else:
        _show(console(), options.handler, verdict)
    return 0 if verdict.accepted else EXIT_REFUSED


def _show(out: Console, handler: str, verdict: Verdict) -> None:
    from rich.text import Text

    from chronicle.cli.output import bytes_text, duration_text, facts_table, plural, safe_text

    if not verdict.accepted:
        for finding in verdict.findings:
            line = Text(safe_text(f"{finding.file}:{finding.line}: "), style="dim")
            line.append(safe_text(finding.construct), style="red")
            out.print(line, soft_wrap=True)
            out.print(Text(f"    -> {safe_text(finding.remedy)}", style="dim"), soft_wrap=True)
        reasons = plural(len(verdict.findings), "reason")
        out.print(f"\n'{handler}' is refused, for {reasons}", soft_wrap=True)
        return
    table = facts_table()
    if verdict.reach is not None:
        _add_reach(table.add_row, verdict.reach)
    table.add_row("code", f"{verdict.code_bytes:,} bytes")
    table.add_row("state", bytes_text(verdict.state_bytes))
    table.add_row("stack", f"{verdict.stack_bytes:,} bytes, besides what the core and libm take")
    compiled = f"{duration_text(verdict.compile_ns / 1e9)} to compile"
    if verdict.cached:
        compiled += f"; from the cache in {duration_text(verdict.load_ns / 1e9)}"
    table.add_row("time", compiled)
    out.print(table)
    out.print(f"\n'{handler}' may run on a hot thread", soft_wrap=True)


def _add_reach(add_row: Callable[..., None], reach: Reach) -> None:
    """Show what a handler can reach."""
    add_row("takes", ", ".join(reach.takes) or "no messages: mark methods with @chronicle.on(...)")
    if reach.hooks:
        add_row("hooks", ", ".join(reach.hooks))
    add_row(
        "functions", "\n".join(f"{name}  {file}:{line}" for name, file, line in reach.functions)
    )
    add_row("publishes", ", ".join(reach.publishes) or "nothing")
    called = [*reach.core, *reach.libm, *reach.memory]
    add_row("calls", ", ".join(called) or "nothing outside of itself")
