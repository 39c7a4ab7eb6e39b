"""The parser, and what happens when a command fails.

A failure is one line on stderr that says what is wrong and what to do; ``-v`` adds the traceback. A
reader of our output that goes away, and Ctrl-C, end a command without a word.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from chronicle.cli import (
    audit,
    bench,
    completion,
    doctor,
    import_capture,
    inspect,
    reader,
    replay,
    report,
    restore,
    retain,
    tail,
    top,
)
from chronicle.cli.arguments import Parser
from chronicle.errors import ChronicleError

__all__ = ["main"]

EXIT_FAILED = 1
EXIT_WRONG_USE = 2
"""As argparse has it."""
EXIT_INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""
EXIT_BROKEN_PIPE = 141
"""128 and the number of SIGPIPE."""

DESCRIPTION = "Look at, fill and look after Chronicle queues."
EPILOG = """\
Examples:
  chronicle import capture.pcap.gz /dev/shm/iex
  chronicle tail -f /dev/shm/iex
  chronicle doctor /dev/shm/iex --verify
  chronicle doctor --host

Exit codes:
  0    it worked
  1    it failed, doctor has found something wrong, or replay a difference
  2    wrong arguments
  3    replay could not prove everything
  130  interrupted with Ctrl-C
  141  whoever read the output went away

Data goes to stdout, everything else to stderr. NO_COLOR turns colours off.
"""


def build_parser() -> Parser:
    """Return the parser with all commands."""
    parser = Parser(prog="chronicle", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show the traceback of an error"
    )
    # With `prog`, argparse does not make a formatter here only to ask it for the name.
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", prog="chronicle", required=True
    )
    first = (import_capture, inspect, tail, top, doctor, audit, bench, report)
    for module in (*first, reader, retain, restore, replay, completion):
        module.add(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from chronicle import __version__

        print(f"chronicle {__version__}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own); return the exit code."""
    verbose = False
    try:
        parser = build_parser()
        if not (sys.argv[1:] if argv is None else argv):
            # Whoever types the name alone wants to know what there is.
            parser.print_help(sys.stderr)
            return EXIT_WRONG_USE
        options = parser.parse_args(argv)
        verbose = options.verbose
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse: help, version or wrong usage.
        return _flush_after(stop.code if isinstance(stop.code, int) else 0)
    except BrokenPipeError:
        return _broken_pipe()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (ChronicleError, OSError) as error:
        if verbose:
            import traceback

            traceback.print_exc()
        print(f"chronicle: {explain(error)}", file=sys.stderr)
        return EXIT_FAILED


def _flush_after(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _broken_pipe()
    return code


def _broken_pipe() -> int:
    # The interpreter flushes stdout once more at its end, and would complain.
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass  # Not a real file, as in a test.
    return EXIT_BROKEN_PIPE


def explain(error: Exception) -> str:
    """Return an error as one line, with the cure."""
    if isinstance(error, ChronicleError) or not isinstance(error, OSError):
        return str(error)
    text = error.strerror or str(error)
    if error.filename is not None and str(error.filename) not in text:
        text = f"'{error.filename}': {text}"
    cures = {
        errno.ENOENT: "check the path",
        errno.EISDIR: "name a file, not a directory",
        errno.ENOTDIR: "check the path",
        errno.EACCES: "run it as the owner, or ask the owner for group_readable=True",
        errno.EPERM: "run it as the owner, or ask the owner for group_readable=True",
        errno.EROFS: "the file system is read-only: only looking is possible here",
        errno.ENOSPC: "free some space",
        errno.ELOOP: "symbolic links are not followed: name the real path",
    }
    cure = cures.get(error.errno or 0)
    return text if cure is None else f"{text}; {cure}"
