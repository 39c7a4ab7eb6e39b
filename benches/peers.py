"""One-way latency from Python to Python, between two processes, of this library and of others.

The transports, and what makes the comparison fair, are in `chronicle.cli.transports`, which
``chronicle bench --report`` uses as well.
"""

from __future__ import annotations

from pathlib import Path

from chronicle.cli.transports import RATE_PER_S, TRANSPORTS, Transport, record

from benches.common import Run, median, quantile

__all__ = ["TRANSPORTS", "Transport", "latencies_ns", "measure"]


def latencies_ns(name: str, folder: Path, count: int) -> list[int]:
    """Send `count` messages through one transport; their latencies, sorted."""
    return sorted(record(name, folder, count).late_ns)


def measure(run: Run) -> dict[str, float]:
    """Measure all transports in turns."""
    count = run.size(20_000, 200)
    medians: dict[str, list[float]] = {}
    everything: dict[str, list[int]] = {}
    for turn in range(run.size(3, 1)):
        for transport in TRANSPORTS:
            if not transport.is_available:
                continue
            with run.scratch(f"peer-{transport.name}-{turn}") as folder:
                folder.mkdir(parents=True)
                late_ns = latencies_ns(transport.name, folder, count)
            assert len(late_ns) == count
            medians.setdefault(transport.name, []).append(quantile(late_ns, 0.5))
            everything.setdefault(transport.name, []).extend(late_ns)
    figures: dict[str, float] = {"one_way_python_rate_per_s": RATE_PER_S}
    for name, late_ns in everything.items():
        late_ns.sort()
        for word, q in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("p9999", 0.9999)):
            figures[f"one_way_python_{name}_{word}_ns"] = quantile(late_ns, q)
        figures[f"one_way_python_{name}_max_ns"] = late_ns[-1]
        figures[f"one_way_python_{name}_p50_median_ns"] = median(medians[name])
        figures[f"one_way_python_{name}_count"] = len(late_ns)
    ours = figures["one_way_python_chronicle_p50_median_ns"]
    others = {name: median(p50) for name, p50 in medians.items() if name != "chronicle"}
    best = min(others, key=lambda name: others[name])
    figures["one_way_python_best_peer_p50_median_ns"] = others[best]
    figures["one_way_python_best_peer_over_chronicle_ratio"] = others[best] / ours
    return figures
