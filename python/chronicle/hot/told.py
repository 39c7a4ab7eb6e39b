"""What comes back from a hot thread: answers to commands, log records, reports of its guard.

`Told` takes all of it from the native rings, gives it names and classes, logs what is to be logged,
and keeps the book on what the thread has. It has no lock: the `HotThread` whose it is holds its own
while it drains.
"""

from __future__ import annotations

import logging
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from chronicle.hot.acks import (
    Ack,
    CommandDone,
    FirstMessage,
    GapSeen,
    ReaderAdded,
    ReaderRemoved,
    Refused,
    SourceFailed,
    WriterAdded,
    WriterRemoved,
)
from chronicle.hot.guard import GuardReport
from chronicle.hot.logs import TAG_BOOL, TAG_F64, TAG_I64, TAG_TEXT

if TYPE_CHECKING:
    from chronicle._core import HotCore
    from chronicle.hot.outputs import OutputNames
    from chronicle.hot.program import Program
    from chronicle.queue import QueueReader, QueueWriter

__all__ = ["Event", "Told"]

#: What comes back from a hot thread.
Event: TypeAlias = Ack | GuardReport

#: Answers that are still known.
_ANSWERS_MAX: Final = 4096
_LOG_BATCH: Final = 1024
#: A log record: ns, site, count, level, spare, tags, five arguments.
_LOG_RECORD: Final = struct.Struct("<QIBBHQ5Q")


class Told:
    """What a hot thread has told, and what it therefore has.

    Parameters
    ----------
    core
        The native half of the thread.
    name
        Of the thread.
    program
        What it runs.
    output_names
        Of the program.
    outputs
        The writers to begin with, by number.
    log_records
        Room of the log ring.

    Attributes
    ----------
    log
        The logger ``chronicle.hot.<name>``.
    events
        What nobody has polled yet.
    answers
        The last ones, by ticket.
    handed
        Readers that were handed over, by ticket, until they are answered for.
    sources
        Readers that the thread has, by source.
    outputs
        Writers that were handed over last, by number.
    guard_counts
        System calls by what they were and who made them; the first of each is logged.
    """

    def __init__(
        self,
        core: HotCore,
        name: str,
        program: Program,
        output_names: OutputNames,
        outputs: dict[int, QueueWriter],
        log_records: int,
    ) -> None:
        self._core = core
        self._name = name
        self._sites = program.log_sites
        self._output_names = output_names
        self.log = logging.getLogger(f"chronicle.hot.{name}")
        self.events: deque[Event] = deque()
        self.answers: dict[int, Ack] = {}
        self.handed: dict[int, QueueReader] = {}
        self.sources: dict[int, QueueReader] = {}
        self.outputs = outputs
        self.guard_counts: dict[tuple[str, str], int] = {}
        self._guard_lost = False
        self._log_records = log_records
        self._log_drops = 0

    def drain(self) -> None:
        """Take everything that is there. Never waits."""
        for told in self._core.drain_acks():
            self._take(_as_ack(told, self._output_names))
        self._drain_log()
        for native in self._core.drain_guard():
            report = GuardReport.from_native(native)
            self.events.append(report)
            self._note_report(report)
        self._note_guard()

    # --- Answers ---

    def _take(self, ack: Ack) -> None:
        self.events.append(ack)
        ticket = getattr(ack, "ticket", None)
        if ticket is not None and not isinstance(ack, FirstMessage | SourceFailed):
            self.answers[ticket] = ack
            if len(self.answers) > _ANSWERS_MAX:
                del self.answers[next(iter(self.answers))]
        match ack:
            case ReaderAdded() if ack.ticket in self.handed:
                self.sources[ack.source] = self.handed.pop(ack.ticket)
            case ReaderRemoved() | SourceFailed():
                self.sources.pop(ack.source, None)
            case Refused():
                self.handed.pop(ack.ticket, None)
            case WriterRemoved():
                number = self._output_names.number(ack.output, ack.slot)
                # Another one may be on its way already.
                if self.outputs.get(number) is ack.writer:
                    del self.outputs[number]
        self._log_ack(ack)

    def _log_ack(self, ack: Ack) -> None:
        match ack:
            case SourceFailed():
                self.log.error("source %s failed and was taken out: %s", ack.source, ack.error)
            case GapSeen(handled=False):
                self.log.warning(
                    "source %s missed messages: first_missing=%s next=%s reason=%s",
                    ack.source,
                    ack.first_missing,
                    ack.next,
                    ack.reason,
                )
            case Refused():
                self.log.error("ticket %s was refused: %s", ack.ticket, ack.reason)

    # --- Guard ---

    def _note_report(self, report: GuardReport) -> None:
        """Log a system call if it is the first from its place; count it in any case."""
        key = (report.name, str(report.caller or report.call_site))
        count = self.guard_counts[key] = self.guard_counts.get(key, 0) + 1
        if count == 1:
            self.log.warning("system call on the hot thread: %s", report)

    def _note_guard(self) -> None:
        """Say once that the guard no longer sees anything."""
        if not self._guard_lost and self._core.guard_lost():
            self._guard_lost = True
            self.log.error(
                "guard lost: another library has installed its own handler of SIGSYS since "
                "thread='%s' was started; its system calls are not seen and may return wrong "
                "results; install that handler before chronicle's, or use guard='off'",
                self._name,
            )

    # --- Log ---

    def _drain_log(self) -> None:
        # No more than the ring holds, so that it ends however fast new ones come.
        left = self._log_records
        while left > 0 and (data := self._core.drain_log(min(left, _LOG_BATCH))):
            for record in _LOG_RECORD.iter_unpack(data):
                self._emit(*record)
            left -= _LOG_BATCH
        drops = self._core.status().get("log_drops", 0)
        if drops > self._log_drops:
            self.log.warning(
                "%s log records were dropped: the ring was full; poll more often, or raise "
                "log_records",
                drops - self._log_drops,
            )
            self._log_drops = drops

    def _emit(
        self, ns: int, site: int, count: int, level: int, _spare: int, tags: int, *args: int
    ) -> None:
        values = [_value(tags >> (4 * i) & 15, args[i]) for i in range(count)]
        if site < len(self._sites):
            where = self._sites[site]
            level, file, line = where.level, where.file, where.line
            try:
                text = where.format.format(*values)
            except (ValueError, IndexError, KeyError, TypeError) as error:
                text = f"{where.format!r} {values} (cannot be formatted: {error})"
        else:
            level, file, line = level or logging.INFO, "", 0
            text = " ".join([f"site {site}:", *map(str, values)])
        if not self.log.isEnabledFor(level):
            return
        record = self.log.makeRecord(self.log.name, level, file, line, text, (), None)
        # When the handler logged it, not when it was drained.
        record.created = ns / 1e9
        record.msecs = ns // 1_000_000 % 1000
        record.threadName = f"chr-hot:{self._name}"
        self.log.handle(record)


def _as_ack(told: tuple[Any, ...], outputs: OutputNames) -> Ack:
    """Give an answer of the core its class."""
    kind, *fields = told
    if kind in ("writer", "writer_removed"):
        ticket, sent_ns, taken_ns, number, writer = fields
        name, slot = outputs.split(number)
        made = WriterAdded if kind == "writer" else WriterRemoved
        return made(ticket, sent_ns, taken_ns, name, writer, slot)
    ack: Ack = _ACKS[kind](*fields)
    return ack


_ACKS: Final[dict[str, Any]] = {
    "done": CommandDone,
    "added": ReaderAdded,
    "first": FirstMessage,
    "removed": ReaderRemoved,
    "refused": Refused,
    "failed": SourceFailed,
    "gap": GapSeen,
}


def _value(tag: int, word: int) -> Any:
    """Return a log argument as the value that the handler had."""
    if tag == TAG_I64:
        return word - (1 << 64) if word >> 63 else word
    if tag == TAG_BOOL:
        return bool(word)
    data = word.to_bytes(8, "little")
    if tag == TAG_F64:
        return struct.unpack("<d", data)[0]
    return data.rstrip(b"\0").decode("utf-8", "replace") if tag == TAG_TEXT else word
