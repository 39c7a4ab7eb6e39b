"""The example dashboard for Grafana: what it shows, and the file that Grafana imports.

    python -m tools.dashboard

writes docs/guides/grafana-dashboard.json. A test holds that the file is what this makes, and that
every metric and label in it is in a scrape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

FILE: Final = Path(__file__).resolve().parents[1] / "docs" / "guides" / "grafana-dashboard.json"
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_THREAD: Final = 'instance=~"$instance",thread=~"$thread"'
_INSTANCE: Final = 'instance=~"$instance"'
_WIDTH: Final = 24


class Panel(NamedTuple):
    """One chart: what it is called, what it says, its queries with their legends, its unit."""

    title: str
    text: str
    queries: tuple[tuple[str, str], ...]
    unit: str
    is_log: bool = False
    width: int = 12


def _rate(metric: str, labels: str = _THREAD) -> str:
    return f"rate({metric}{{{labels}}}[$__rate_interval])"


def _quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (f'{metric}{{{_THREAD},quantile="{quantile}"}}', f"{{{{thread}}}} {name}")
        for quantile, name in (("0.5", "p50"), ("0.99", "p99"), ("0.999", "p99.9"), ("1", "max"))
    )


def _by_thread(*metrics: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((_rate(metric), f"{{{{thread}}}} {name}") for metric, name in metrics)


ROWS: Final[tuple[tuple[str, tuple[Panel, ...]], ...]] = (
    (
        "Hot threads",
        (
            Panel(
                "Loop gap",
                "From turn to turn, from the start on. What takes the core shows here first.",
                _quantiles("chronicle_hot_loop_gap_seconds"),
                "s",
                is_log=True,
            ),
            Panel(
                "Handler time",
                "Of the handler's calls, from the start on.",
                _quantiles("chronicle_hot_handler_time_seconds"),
                "s",
                is_log=True,
            ),
            Panel(
                "System calls",
                "Should be none. Which, and where: chronicle_hot_guard_calls_total.",
                _by_thread(
                    ("chronicle_hot_guard_seen_total", "seen"),
                    ("chronicle_hot_guard_refused_total", "refused"),
                ),
                "ops",
            ),
            Panel(
                "Page faults, context switches, interrupts",
                "By the kernel's count. On an isolated core all are near zero.",
                (
                    (_rate("chronicle_hot_page_faults_total"), "{{thread}} {{kind}} faults"),
                    (
                        _rate("chronicle_hot_context_switches_total"),
                        "{{thread}} {{kind}} switches",
                    ),
                    (_rate("chronicle_hot_core_interrupts_total"), "{{thread}} interrupts"),
                ),
                "ops",
            ),
            Panel(
                "Messages",
                "Handled and published.",
                _by_thread(
                    ("chronicle_hot_messages_total", "in"), ("chronicle_hot_appends_total", "out")
                ),
                "ops",
            ),
            Panel(
                "What should not be",
                "Gaps, drops, late rolls, allocations.",
                _by_thread(
                    ("chronicle_hot_gaps_total", "gaps"),
                    ("chronicle_hot_log_drops_total", "log drops"),
                    ("chronicle_hot_appends_dropped_total", "dropped messages"),
                    ("chronicle_hot_rolls_late_total", "late rolls"),
                    ("chronicle_hot_allocations_total", "allocations"),
                ),
                "ops",
            ),
            Panel(
                "State",
                "1 for the state that a thread is in.",
                ((f"chronicle_hot_state{{{_THREAD}}}", "{{thread}} {{state}}"),),
                "short",
            ),
            Panel(
                "Handlers' own counters",
                "What the handlers count.",
                ((_rate("chronicle_hot_counter_total"), "{{thread}} {{counter}}"),),
                "ops",
            ),
        ),
    ),
    (
        "Queues",
        (
            Panel(
                "Rate",
                "Messages published.",
                ((f"deriv(chronicle_queue_next_seq{{{_INSTANCE}}}[1m])", "{{queue}}"),),
                "ops",
            ),
            Panel(
                "Lag",
                "Messages that a registered reader has not committed.",
                ((f"chronicle_reader_lag_messages{{{_INSTANCE}}}", "{{queue}} {{reader}}"),),
                "short",
            ),
            Panel(
                "Size",
                "Of all segments of a queue.",
                ((f"chronicle_queue_bytes{{{_INSTANCE}}}", "{{queue}}"),),
                "bytes",
            ),
            Panel(
                "Mirrors: age of what is on disk",
                "What a power failure would cost.",
                ((f"chronicle_mirror_behind_seconds{{{_INSTANCE}}}", "{{mirror}}"),),
                "s",
            ),
        ),
    ),
    (
        "Sidecar",
        (
            Panel(
                "Services",
                "1 for those that run and do not complain.",
                ((f"chronicle_service_up{{{_INSTANCE}}}", "{{service}}"),),
                "short",
            ),
            Panel(
                "Restarts of services",
                "After errors.",
                (
                    (
                        f"increase(chronicle_service_restarts_total{{{_INSTANCE}}}[5m])",
                        "{{service}}",
                    ),
                ),
                "short",
            ),
        ),
    ),
)


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    scale = {"type": "log", "log": 10} if panel.is_log else {"type": "linear"}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": 8},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": {"scaleDistribution": scale}},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": _SOURCE, "expr": query, "legendFormat": name}
            for i, (query, name) in enumerate(panel.queries)
        ],
    }


def _panels() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    x = y = 0
    for title, panels in ROWS:
        place = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
        row = {"id": len(made) + 1, "type": "row", "title": title, "gridPos": place, "panels": []}
        made.append({**row, "collapsed": False})
        y += 1
        for panel in panels:
            if x + panel.width > _WIDTH:
                x, y = 0, y + 8
            made.append(_panel(panel, len(made) + 1, x, y))
            x += panel.width
        x, y = 0, y + 8
    return made


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> dict[str, Any]:
    """Return the dashboard, as Grafana imports it."""
    return {
        "uid": "chronicle-python",
        "title": "Chronicle",
        "description": "Hot threads, queues and sidecars, by the metrics of Sidecar.metrics().",
        "tags": ["chronicle"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                _variable("instance", "label_values(chronicle_sidecar_up, instance)"),
                _variable("thread", "label_values(chronicle_hot_state, thread)"),
            ]
        },
        "panels": _panels(),
    }


def text() -> str:
    """Return the file."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
