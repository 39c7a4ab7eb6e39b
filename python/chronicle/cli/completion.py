"""``chronicle completion``: a script that completes commands, options and paths in a shell."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from chronicle.cli.arguments import add_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chronicle.cli.arguments import Commands

EXAMPLES = """\
  eval "$(chronicle completion bash)"
  chronicle completion bash > ~/.local/share/bash-completion/completions/chronicle
  chronicle completion zsh > ~/.zfunc/_chronicle
  chronicle completion fish > ~/.config/fish/completions/chronicle.fish
"""

SHELLS = ("bash", "zsh", "fish")
#: What arguments name, by their names in the help.
_DIRECTORIES: Final = frozenset({"BUS", "DIR", "JOURNAL", "MIRROR", "QUEUE"})
_FILES: Final = frozenset({"CAPTURE", "FILE"})


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "completion",
        run,
        summary="print a script that completes commands in bash, zsh or fish",
        description="Print a script for a shell. It completes commands, options, their choices, "
        "and paths where a path is meant. It is made from the commands that this version has: make "
        "it again after an upgrade.",
        examples=EXAMPLES,
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell")


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from chronicle.cli.program import build_parser

    parser = build_parser()
    for action in _actions(parser):
        if action.metavar in _DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield every argument of a parser and of the commands below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
