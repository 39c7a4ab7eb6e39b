"""Metrics for Prometheus: everything that is known, read when it is asked for.

Needs the extra `metrics` (``prometheus-client``). A scrape reads status pages, control blocks and
cursors; it does nothing on a hot thread and keeps nothing itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chronicle.errors import BadArgument, ChronicleError
from chronicle.queue import Queue
from chronicle.sidecar import affinity, files
from chronicle.sidecar.scan import Pattern, queue_identity
from chronicle.sidecar.supervise import Service, Stage, State
from chronicle.sidecar.workers import in_worker

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from chronicle.hot.meter import Histogram
    from chronicle.sidecar.runtime import Sidecar

__all__ = ["Metrics"]

_QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999)

#: Fields of `HotStatus` that only grow, and what they count.
_HOT_COUNTERS = {
    "turns": "Rounds of the loop",
    "messages": "Messages given to the handler",
    "datagrams": "Datagrams given to the handler",
    "commands": "Commands given to the handler",
    "events": "Events given to the handler",
    "unhandled": "Messages and commands that the handler had no method for",
    "gaps": "Stretches of messages that were gone",
    "sources_failed": "Sources that failed and were taken out",
    "parks": "Times the loop went to sleep",
    "appends": "Messages published",
    "appends_dropped": "Messages for outputs without a writer",
    "log_records": "Log records",
    "log_drops": "Log records that were dropped because the ring was full",
    "allocations": "Heap allocations by native code",
    "rolls_late": "Rolls that waited for the provisioner",
    "wakes_inline": "Wake-ups that the thread made itself",
    "guard_seen": "System calls",
    "guard_refused": "System calls that were refused",
    "guard_made": "System calls that were made although they stop the thread",
    "guard_dropped": "System calls that were reported to nobody",
    "journal_records": "Inputs written to the journal",
}
_HOT_GAUGES = {
    "sources": "Readers",
    "segments_kept": "Mappings kept until the end",
    "guard_lost": "Whether another library has taken over the guard's signal",
}
#: Fields of `PacketStatistics` that only grow, and what they count.
_PACKET_COUNTERS = {
    "datagrams": "Datagrams of a packet ring",
    "bytes": "Bytes of their payloads",
    "not_ours": "Frames that were for somebody else",
    "malformed": "Frames whose lengths contradict each other",
    "fragments": "Fragments, which are dropped",
    "truncated": "Frames that are longer than those of the ring",
    "bad_checksums": "Damaged datagrams",
    "drops": "Frames for which the ring had no room",
    "rebinds": "Times the ring was bound anew to its interface",
}
_SWITCHES = {"voluntary": "switches_voluntary", "involuntary": "switches_involuntary"}
_FAULTS = {"minor": "faults_minor", "major": "faults_major"}


class Metrics:
    """The endpoint, and what it tells.

    Parameters
    ----------
    sidecar
        Whose hot threads, mirrors and services are told.
    port
        To listen on; 0 for any that is free.
    address
        To listen on; the loopback interface by default.
    queues
        Patterns of queues to tell besides those that hot threads read and mirrors copy.

    Raises
    ------
    BadArgument
        If ``prometheus-client`` is not installed.
    OSError
        If the port is taken.

    Attributes
    ----------
    port
        That it listens on.
    """

    def __init__(
        self, sidecar: Sidecar, *, port: int, address: str, queues: Iterable[str] = ()
    ) -> None:
        try:
            import prometheus_client
        except ImportError:
            raise BadArgument(
                "metrics need prometheus-client, which is not installed; "
                "install the extra: pip install 'chronicle-python[metrics]'"
            ) from None
        self.scrapes = 0
        self._sidecar = sidecar
        self._patterns = [Pattern(queue) for queue in queues]
        self._readiness = queue_identity()
        registry = prometheus_client.CollectorRegistry(auto_describe=False)
        registry.register(self)
        self._server, self._thread = _named(
            lambda: prometheus_client.start_http_server(port, address, registry=registry)
        )
        self.port: int = self._server.server_port

    def service(self, name: str) -> Service:
        """Make the service that ends the endpoint."""
        service = Service(name, asyncio.Event().wait, Stage.WATCH, self._finish)
        service.detail = f"port {self.port}"
        return service

    async def _finish(self) -> None:
        await in_worker(None, self.close)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # --- What is told ---

    def collect(self) -> Iterator[Metric]:
        """Yield everything. Called at each scrape, on the endpoint's threads."""
        self.scrapes += 1
        yield from self._about_sidecar()
        yield from self._about_hot_threads()
        yield from self._about_queues()
        yield from self._about_mirrors()

    def _about_sidecar(self) -> Iterator[Metric]:
        yield _gauge("sidecar_up", "Whether the sidecar's thread runs", int(self._sidecar.alive))
        up = _family(
            "gauge", "service_up", "Whether a service runs and does not complain", "service"
        )
        restarts = _family("counter", "service_restarts", "Restarts after an error", "service")
        for name, health in self._sidecar.health().items():
            works = health.healthy and health.state is not State.STOPPED
            up.add_metric([_label(name)], int(works))
            restarts.add_metric([_label(name)], health.restarts)
        yield up
        yield restarts

    def _about_hot_threads(self) -> Iterator[Metric]:
        found = [(care.thread.name, care.thread, care.thread.status) for care in self._cares()]
        if not found:
            return
        for field, text in _HOT_COUNTERS.items():
            family = _family("counter", f"hot_{field}", text, "thread")
            for name, _, status in found:
                family.add_metric([name], getattr(status, field))
            yield family
        for field, text in _HOT_GAUGES.items():
            family = _family("gauge", f"hot_{field}", text, "thread")
            for name, _, status in found:
                family.add_metric([name], getattr(status, field))
            yield family
        yield from _about_kernel([(name, status) for name, _, status in found])
        yield from _about_packets(found)
        state = _family(
            "gauge", "hot_state", "1 for the state that a thread is in", "thread", "state"
        )
        supervised = _family("gauge", "hot_supervised", "Whether somebody polls it", "thread")
        for name, _, status in found:
            state.add_metric([name, status.state], 1)
            supervised.add_metric([name], int(status.supervised))
        yield state
        yield supervised
        counters = _family("counter", "hot_counter", "The handler's own", "thread", "counter")
        sites = _family(
            "counter", "hot_guard_calls", "System calls by place", "thread", "call", "site"
        )
        for name, thread, _ in found:
            for counter, value in thread.counters.items():
                counters.add_metric([name, counter], value)
            for (call, site), count in thread.guard_counts.items():
                sites.add_metric([name, call, site], count)
        yield counters
        yield sites
        times = {name: thread for name, thread, _ in found}
        yield _times("hot_loop_gap", "Turn to turn", {n: t.loop_gap for n, t in times.items()})
        yield _times(
            "hot_handler_time",
            "Calls of the handler, sampled",
            {n: t.handler_time for n, t in times.items()},
        )

    def _cares(self) -> list[Any]:
        return list(self._sidecar.cares)

    def _about_queues(self) -> Iterator[Metric]:
        next_seq = _family("gauge", "queue_next_seq", "Number of the next message", "queue")
        segments = _family("gauge", "queue_segments", "Segments", "queue")
        size = _family("gauge", "queue_bytes", "Size of all segments", "queue")
        lag = _family("gauge", "reader_lag_messages", "Not committed yet", "queue", "reader")
        for queue in sorted(self._queues()):
            # It may vanish at any moment, and then it is not told.
            label = _label(queue)
            with contextlib.suppress(OSError, ChronicleError):
                control = files.Control.read(queue)
                with Queue.open_subscriber(queue, None, start="latest") as reader:
                    tail = reader.next_seq
                count = control.tail_segment - control.floor_segment + 1
                next_seq.add_metric([label], tail)
                segments.add_metric([label], count)
                size.add_metric([label], count * control.geometry.segment_bytes)
                for name, seq in _cursors(queue):
                    lag.add_metric([label, name], max(0, tail - seq))
        yield from (next_seq, segments, size, lag)

    def _queues(self) -> set[Path]:
        """Return all queues that somebody here has to do with."""
        found = {mirror.source.absolute() for mirror in list(self._sidecar.mirrors)}
        for care in self._cares():
            found |= {Path(r.path).absolute() for r in care.thread.sources.values()}
        for pattern in self._patterns:
            look = pattern.look(self._readiness).found
            found |= {Path(path) for path, seen in look.items() if seen.identity is not None}
        return found

    def _about_mirrors(self) -> Iterator[Metric]:
        about: dict[str, tuple[str, str, Callable[[Any], float]]] = {
            "mirror_durable_seq": ("gauge", "Last message on disk", lambda s: s.durable_seq),
            "mirror_behind_seconds": ("gauge", "Age of what is on disk", lambda s: s.behind_s),
            "mirror_lag_messages": ("gauge", "Being copied", lambda s: s.lag_messages),
            "mirror_lag_bytes": ("gauge", "Being copied", lambda s: s.lag_bytes),
            "mirror_bytes_copied": ("counter", "Copied", lambda s: s.bytes_copied),
            "mirror_gaps": ("counter", "Stretches deleted before", lambda s: s.gaps),
        }
        mirrors = list(self._sidecar.mirrors)
        if not mirrors:
            return
        for name, (kind, text, value) in about.items():
            family = _family(kind, name, text, "queue", "mirror")
            for mirror in mirrors:
                labels = [_label(mirror.source), _label(mirror.target)]
                family.add_metric(labels, value(mirror.status))
            yield family


def _about_kernel(found: list[tuple[str, Any]]) -> Iterator[Metric]:
    faults = _family("counter", "hot_page_faults", "By the kernel's count", "thread", "kind")
    switches = _family("counter", "hot_context_switches", "By the kernel's count", "thread", "kind")
    interrupts = _family("counter", "hot_core_interrupts", "Of the thread's core", "thread")
    for name, status in found:
        if status.kernel is not None:
            for kind, field in _FAULTS.items():
                faults.add_metric([name, kind], getattr(status.kernel, field))
            for kind, field in _SWITCHES.items():
                switches.add_metric([name, kind], getattr(status.kernel, field))
        if status.interrupts is not None:
            interrupts.add_metric([name], status.interrupts)
    yield from (faults, switches, interrupts)


def _about_packets(found: list[tuple[str, Any, Any]]) -> Iterator[Metric]:
    """Yield what the packet rings of hot threads have counted."""
    rings = [
        ([name, ring.name], counts)
        for name, thread, status in found
        for ring, counts in zip(thread.packets, status.packets, strict=True)
    ]
    for field, text in _PACKET_COUNTERS.items():
        family = _family("counter", f"packets_{field}", text, "thread", "ring")
        for labels, counts in rings:
            family.add_metric(labels, getattr(counts, field))
        yield family
    up = _family("gauge", "packets_up", "Whether the ring's interface is up", "thread", "ring")
    for labels, counts in rings:
        up.add_metric(labels, int(counts.state == "up"))
    yield up


def _cursors(queue: Path) -> Iterator[tuple[str, int]]:
    """Yield name and next sequence number of the queue's registered readers."""
    for path in sorted((queue / files.READERS).glob(f"*{files.CURSOR_SUFFIX}")):
        with contextlib.suppress(OSError):
            page = files.read_whole(path, files.PAGE_BYTES)
            seq, placed = page[128:136], page[148:152]
            if any(placed):
                name = _label(path.name.removesuffix(files.CURSOR_SUFFIX))
                yield name, int.from_bytes(seq, "little")


def _family(kind: str, name: str, text: str, *labels: str) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    made = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
    return made(f"chronicle_{name}", text, labels=labels)


def _label(name: str | Path) -> str:
    """Return a name as a label: a file's need be no text, and one that is none fails a scrape."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _gauge(name: str, text: str, value: float) -> Any:
    family = _family("gauge", name, text)
    family.add_metric([], value)
    return family


def _times(name: str, text: str, histograms: dict[str, Histogram]) -> Metric:
    """Return quantiles, count and sum of times, in seconds."""
    from prometheus_client.core import Metric

    full = f"chronicle_{name}_seconds"
    metric = Metric(full, text, "summary")
    for thread, times in histograms.items():
        count = times.count
        for quantile in (*_QUANTILES, 1.0) if count else ():
            value = times.max_ns if quantile == 1.0 else times.quantile(quantile)
            labels = {"thread": thread, "quantile": f"{quantile:g}"}
            metric.add_sample(full, labels, value / 1e9)
        metric.add_sample(f"{full}_count", {"thread": thread}, count)
        metric.add_sample(f"{full}_sum", {"thread": thread}, times.mean_ns * count / 1e9)
    return metric


def _named(make: Callable[[], Any]) -> Any:
    """Call something that starts threads from one with our name, which those inherit."""
    result: list[Any] = []
    failure: list[BaseException] = []

    def work() -> None:
        affinity.name_this_thread("chr-metrics")
        try:
            result.append(make())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="chr-metrics")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
