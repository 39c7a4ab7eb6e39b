"""The command `chronicle`, for people and scripts. One file per command.

A command's file has `add(commands)`, which declares its arguments and costs nothing, and
`run(options)`, which does the work and returns the exit code. What is slow to import (rich, NumPy,
the feeds) is imported inside `run`, so that ``chronicle --help`` stays quick.

- `program`: the parser, errors as one line, exit codes.
- `output`, `arguments`: what the commands share.
- `import_capture`, `inspect`, `tail`, `doctor` (with `findings`), `bench` (with `machine`),
  `reader`, `retain`, `completion`: the commands.

Data goes to stdout, progress and messages to stderr.
"""

from chronicle.cli.program import main

__all__ = ["main"]
