"""The JSON of `chronicle top --once --json`. Its shape is documented in docs/guides/top.md.

`FORMAT` changes when a key changes its meaning or goes; new keys may come at any time.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from chronicle.hot.meter import Histogram
from chronicle.top.changes import NO_RATES
from chronicle.top.model import ProcessLook, QueueLook, ThreadLook
from chronicle.top.watch import View

__all__ = ["FORMAT", "document"]

FORMAT: Final = 1
"""Version of the shape."""

_QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "p9999": 0.9999}


def document(view: View) -> dict[str, Any]:
    """Make the document of a view.

    >>> from chronicle.top.model import BusLook
    >>> from chronicle.top.watch import Watch
    >>> found = document(Watch().add(BusLook("/bus", 5, 0)))
    >>> found["format"], found["bus"], found["at_ns"], found["threads"]
    (1, '/bus', 5, [])
    """
    look = view.look
    return {
        "format": FORMAT,
        "bus": look.path,
        "at_ns": look.at_ns,
        "interval_s": view.changes.seconds,
        "processes": [_process(process, view) for process in look.processes],
        "threads": [_thread(thread, view) for thread in look.threads],
        "queues": [_queue(queue, view) for queue in look.queues],
        "events": [asdict(event) for event in view.events],
        "problems": [{"path": path, "reason": reason} for path, reason in look.problems],
    }


def _process(process: ProcessLook, view: View) -> dict[str, Any]:
    return {**asdict(process), "cpu": view.changes.cpu.get(process.name)}


def _thread(thread: ThreadLook, view: View) -> dict[str, Any]:
    rates = view.changes.threads.get(thread.key)
    since = view.since.get(thread.key, NO_RATES)
    return {
        "process": thread.process,
        "name": thread.name,
        "state": thread.state,
        "core": thread.core,
        "guard": thread.guard,
        "wait": thread.wait,
        "meter": thread.meter,
        "thread_id": thread.thread_id,
        "supervised": thread.supervised,
        "failure": thread.failure,
        "warnings": list(thread.warnings),
        "counts": {**thread.outside, **thread.words},
        "counters": dict(thread.counters),
        "kernel": None if thread.kernel is None else asdict(thread.kernel),
        "loop_gap_ns": _times(thread.loop_gap),
        "handler_time_ns": _times(thread.handler_time),
        "interval": None
        if rates is None
        else {
            "messages_per_s": rates.messages_per_s,
            "turns_per_s": rates.turns_per_s,
            "appends_per_s": rates.appends_per_s,
            "system_calls": rates.system_calls,
            "faults": rates.faults,
            "switches_voluntary": rates.switches_voluntary,
            "switches_involuntary": rates.switches_involuntary,
            "loop_gap_ns": _times(rates.loop_gap),
            "handler_time_ns": _times(rates.handler_time),
        },
        "since_first_look": {
            "system_calls": since.system_calls,
            "faults": since.faults,
            "switches_involuntary": since.switches_involuntary,
        },
    }


def _times(times: Histogram) -> dict[str, int]:
    quantiles = {name: times.quantile(q) for name, q in _QUANTILES.items()}
    return {"count": times.count, **quantiles, "max": times.max_ns}


def _queue(queue: QueueLook, view: View) -> dict[str, Any]:
    rates = view.changes.queues.get(queue.name)
    return {
        **asdict(queue),
        "size_bytes": queue.size_bytes,
        "lag_messages": queue.lag_messages,
        "messages_per_s": None if rates is None else rates.messages_per_s,
        "bytes_per_s": None if rates is None else rates.bytes_per_s,
    }
