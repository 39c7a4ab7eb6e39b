"""The hot thread: handlers, their audit, the thread itself, its guard and its meter.

Importing this package costs neither NumPy nor Numba.
"""

# The layout, lowest first:
#
#   system_calls, symbols, kernel   names of calls and of code, the kernel's counts
#   guard                           reports of system calls that a hot thread made
#   program, acks, meter            what a thread runs, what it answers, what it shows
#   thread                          `HotThread`, the sidecar's side of a hot thread

from __future__ import annotations
