"""The sidecar's half of a counters file: names, health, and what the kernel counts."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from chronicle.errors import BadArgument
from chronicle.hot.counters import CountersFile, describe
from chronicle.sidecar.hotcare import HotCare
from chronicle.sidecar.supervise import Health, Service, Stage
from chronicle.sidecar.workers import in_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chronicle.hot.kernel import ThreadCounters

__all__ = ["LogTail", "Telling"]

_INTERVAL_S_MIN = 0.05
#: A detail or an error of a service is cut to this, so that many services fit.
_TEXT_MAX = 300


_LINES_MAX = 200
_LINE_MAX = 400
#: All lines together, as JSON: the rest of the document needs room too.
_LINES_BYTES_MAX = 48 << 10


class LogTail(logging.Handler):
    """Keeps the last records of a logger, and formats them only when they are asked for.

    Where it is the only handler, it stands aside: warnings go to stderr as they do without it.

    Parameters
    ----------
    lines
        How many to keep.
    """

    def __init__(self, lines: int) -> None:
        super().__init__()
        self._records: deque[tuple[int, logging.LogRecord]] = deque(maxlen=lines)
        self._number = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; the oldest one is forgotten."""
        self._number += 1
        self._records.append((self._number, record))
        last_resort = logging.lastResort
        if (
            last_resort is not None
            and record.levelno >= last_resort.level
            and self._is_alone(record.name)
        ):
            last_resort.handle(record)

    def _is_alone(self, name: str) -> bool:
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return False
            logger = logger.parent if logger.propagate else None
        return True

    def lines(self) -> list[dict[str, Any]]:
        """Return what is kept, oldest first, as a counters file holds it; the newest that fit."""
        self.acquire()
        try:
            kept = list(self._records)
        finally:
            self.release()
        lines: deque[dict[str, Any]] = deque()
        left = _LINES_BYTES_MAX
        for number, record in reversed(kept):
            line = {
                "number": number,
                "at_ns": int(record.created * 1e9),
                "level": record.levelname[:_LINE_MAX],
                "logger": record.name[:_LINE_MAX],
                "text": _message(record)[:_LINE_MAX],
            }
            left -= len(json.dumps(line)) + 2
            if left < 0:
                break
            lines.appendleft(line)
        return list(lines)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:
        pass
    # What logging itself does with such a record: it tells, and goes on.
    try:
        return f"{record.msg} {record.args!r}"
    except Exception:
        return f"a log record that cannot be shown: {record.pathname}:{record.lineno}"


class _Told(Protocol):
    def health(self) -> Mapping[str, Health]: ...

    @property
    def cares(self) -> Sequence[HotCare]: ...


class Telling:
    """Publishes the document of a counters file again and again.

    Parameters
    ----------
    sidecar
        Whose services and hot threads.
    counters
        Where to.
    interval_s
        How often.
    log
        Name of the logger whose last lines are told, with those below it; ``None``: no lines.
    log_lines
        How many, at most 200.
    """

    def __init__(
        self,
        sidecar: _Told,
        counters: CountersFile,
        *,
        interval_s: float,
        log: str | None = None,
        log_lines: int = 50,
    ) -> None:
        if not 1 <= log_lines <= _LINES_MAX:
            raise BadArgument(f"bad log_lines: found={log_lines} expected=1 to {_LINES_MAX}")
        self._logger = None if log is None else logging.getLogger(log)
        self._tail = LogTail(log_lines)
        if not interval_s >= _INTERVAL_S_MIN:
            raise BadArgument(f"bad interval_s: found={interval_s} expected>={_INTERVAL_S_MIN}")
        self._sidecar = sidecar
        self._counters = counters
        self._interval_s = interval_s
        self._service: Service | None = None
        #: By thread id: the kernel's counts at the first look and at the last one.
        self._kernel: dict[int, tuple[ThreadCounters, ThreadCounters]] = {}

    def service(self, name: str) -> Service:
        """As a service; it tells until the very end, when the hot threads have stopped."""
        self._service = Service(name, self._run, Stage.WATCH, finish=self._finish)
        if self._logger is not None:
            # At once: what is logged before the first turn is told, too.
            self._logger.addHandler(self._tail)
        return self._service

    async def _run(self) -> None:
        assert self._service is not None
        while True:
            await in_worker(None, self.tell)
            self._service.beat()
            await asyncio.sleep(self._interval_s)

    async def _finish(self) -> None:
        if self._logger is not None:
            self._logger.removeHandler(self._tail)
        self.tell()

    def tell(self) -> None:
        """Publish what there is now."""
        attached: list[Any] = [care.thread for care in self._sidecar.cares]
        # Of one that has ended another may have got the block since.
        threads = {
            t.counters_block: t for t in attached if getattr(t, "counters_block", None) is not None
        }
        health = self._sidecar.health()
        document: dict[str, Any] = {
            "threads": [self._describe(thread) for thread in threads.values()],
            "services": {name: _health(one) for name, one in health.items()},
            "log": self._tail.lines(),
            "cpu_s": time.process_time(),
        }
        self._publish(document)

    def _publish(self, document: dict[str, Any]) -> None:
        """Publish; what is too long without what matters least, rather than not at all."""
        left_out: list[str] = []
        for what, leave_out in _LEFT_OUT.items():
            try:
                self._counters.publish(document)
            except BadArgument:
                leave_out(document)
                left_out.append(what)
                document["left_out"] = left_out
            else:
                break
        else:
            self._counters.publish(document)
        if self._service is not None:
            self._service.detail = f"too long, left out: {', '.join(left_out)}" if left_out else ""

    def _describe(self, thread: Any) -> dict[str, Any]:
        """Add what the kernel has counted since the first look; the last look outlives the thread.

        Before the first look lie the faults of its start: the loop, the handler and the rings are
        brought into memory there.
        """
        status = thread.status
        kernel = status.kernel
        if kernel is not None:
            first = self._kernel.get(status.thread_id, (kernel, kernel))[0]
            self._kernel[status.thread_id] = (first, kernel)
        told = describe(thread)
        if status.thread_id in self._kernel:
            first, last = self._kernel[status.thread_id]
            told["kernel"] = last._asdict()
            told["kernel_since_start"] = last.since(first)._asdict()
        return told


def _without_log(document: dict[str, Any]) -> None:
    document["log"] = []


def _without_words(document: dict[str, Any]) -> None:
    for service in document["services"].values():
        service.update(detail="", last_error=None)


def _without_well(document: dict[str, Any]) -> None:
    services = document["services"].items()
    document["services"] = {name: one for name, one in services if not one["healthy"]}


def _without_counters(document: dict[str, Any]) -> None:
    for thread in document["threads"]:
        thread["counters"] = []


#: What a document that is too long does without, one after the other.
_LEFT_OUT: Final[Mapping[str, Callable[[dict[str, Any]], None]]] = {
    "log": _without_log,
    "details of services": _without_words,
    "services that work": _without_well,
    "names of counters": _without_counters,
}


def _health(health: Health) -> dict[str, Any]:
    error = health.last_error
    return {
        "state": health.state.value,
        "restarts": health.restarts,
        "last_error": None if error is None else error[:_TEXT_MAX],
        "beat_age_s": health.beat_age_s,
        "detail": health.detail[:_TEXT_MAX],
        "healthy": health.healthy,
    }
