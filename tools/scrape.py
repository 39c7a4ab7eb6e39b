"""What a sidecar with everything tells Prometheus: names, kinds and labels of its metrics."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import NamedTuple


class Family(NamedTuple):
    """One metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


def families() -> list[Family]:
    """Start a sidecar with a hot thread, a queue, a mirror and a counters file, and look."""
    import chronicle

    with (
        tempfile.TemporaryDirectory() as folder,
        chronicle.Sidecar() as sidecar,
        chronicle.Queue.open_publisher(f"{folder}/ticks", segment_bytes=1 << 16) as writer,
        chronicle.Queue.open_subscriber(f"{folder}/ticks", "hot") as reader,
    ):
        writer.append(1, b"")
        hot = chronicle.HotThread(_ignore, readers=[reader], name="example", wait="hybrid")
        sidecar.attach(hot)
        sidecar.mirror(f"{folder}/ticks", f"{folder}/mirror")
        metrics = sidecar.metrics()
        return sorted(_described(metrics.collect()))


def _ignore(message: object) -> None:
    del message


def _described(found: Iterator[object]) -> Iterator[Family]:
    from prometheus_client.core import Metric

    for metric in found:
        assert isinstance(metric, Metric)
        declared = getattr(metric, "_labelnames", ())
        # A summary is made sample by sample; which there are depends on what was measured.
        labels = ("thread", "quantile") if metric.type == "summary" else tuple(declared)
        suffix = "_total" if metric.type == "counter" else ""
        yield Family(metric.name + suffix, metric.type, labels, metric.documentation)
