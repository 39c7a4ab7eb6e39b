"""The hot thread: handlers, their audit, the thread itself, its guard and its meter.

Importing this package costs neither NumPy nor Numba; compiling does.
"""

# The layout, lowest first:
#
#   on, info, events, logs          what a handler is made of
#   buffers, outputs                bytes of any length, and where a handler publishes
#   spec, state, handler            what a class says, and the object that it is uncompiled
#   functions                       functions for handlers, in both worlds
#   rules, source, flow             the source net of the audit
#   rewrite_*, rewrite, frontend    from methods to functions that the compiler takes
#   lower_*, lower, diagnose, emit  from those to an object file: Numba, and the types net
#   machine                         the machine net
#   link, cache, compile            from an object file to a `Program`, and the cache on disk
#   system_calls, symbols, kernel   names of calls and of code, the kernel's counts
#   guard                           reports of system calls that a hot thread made
#   program, acks, meter            what a thread runs, what it answers, what it shows
#   counters                        the same for other processes, in a mapped file
#   told, ended                     what comes back from a hot thread, and how it has ended
#   thread                          `HotThread`, the sidecar's side of a hot thread
#   waits                           which wait strategy suits the machine
#   rebuild                         a state from what earlier lives have published

from __future__ import annotations

from chronicle.hot.buffers import Buffer, Bytes, Size
from chronicle.hot.counters import CountersFile, read_counters
from chronicle.hot.events import SourceAdded, SourceGap, SourceRemoved
from chronicle.hot.functions import mix64, symbol_key
from chronicle.hot.handler import Counter, Handler, HandlerLog
from chronicle.hot.info import SOURCE_NONE, Info
from chronicle.hot.on import on
from chronicle.hot.outputs import Output, Outputs, RawMessage, Slots
from chronicle.hot.spec import Table, table
from chronicle.hot.state import Cells, Rows
from chronicle.hot.waits import WAITS, choose_wait

__all__ = [
    "SOURCE_NONE",
    "WAITS",
    "Buffer",
    "Bytes",
    "Cells",
    "Counter",
    "CountersFile",
    "Handler",
    "HandlerLog",
    "Info",
    "Output",
    "Outputs",
    "RawMessage",
    "Rows",
    "Size",
    "Slots",
    "SourceAdded",
    "SourceGap",
    "SourceRemoved",
    "Table",
    "choose_wait",
    "mix64",
    "on",
    "read_counters",
    "symbol_key",
    "table",
]
