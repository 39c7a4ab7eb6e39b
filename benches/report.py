"""Results as a table, as JSON and as a page of the docs."""

from __future__ import annotations

import os
import platform
import tomllib
from collections.abc import Mapping
from pathlib import Path

from benches.common import ROOT
from benches.figures import FIGURES, Figure, Results

NOTES = ROOT / "benches" / "notes.toml"
PAGE = ROOT / "docs" / "benchmarks.md"


def machine(folder: str) -> dict[str, str]:
    """Return what the figures were taken on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file_system": folder,
    }


def in_order(results: Results) -> list[Figure]:
    """Return the figures: missed first, then met, then those that were not measured."""
    rank = {False: 0, True: 1, None: 2}
    return sorted(FIGURES, key=lambda figure: rank[figure.is_met(results)])


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "/s":
        return f"{value / 1e6:,.1f} M/s"
    if unit == "ns" and value >= 10_000:
        return f"{value / 1e3:,.1f} µs"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:,.1f} {unit}"


def _row(figure: Figure, results: Results) -> tuple[str, ...]:
    met = figure.is_met(results)
    value = figure.value(results)
    verdict = {True: "met", False: "MISSED", None: "not measured"}[met]
    # What is no ratio by itself is shown as one to its target.
    is_ratio = figure.judged.endswith("_ratio")
    ratio = None if value is None else value if is_ratio else value / figure.target
    return (
        verdict,
        figure.text,
        figure.target_text,
        _amount(results.get(figure.measured), figure.unit),
        _amount(results.get(figure.floor), figure.unit) if figure.floor else "–",
        "–" if ratio is None else f"{ratio:.2f} ×" if is_ratio else f"{ratio:.2f} of target",
    )


HEADINGS = ("", "figure", "target", "measured", "floor or peer", "ratio")


def table(results: Results) -> str:
    """Return the table for a terminal."""
    rows = [HEADINGS, *(_row(figure, results) for figure in in_order(results))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def load_notes() -> dict[str, str]:
    """Return the hand-kept notes: why a figure is missed, by its name."""
    return {k: str(v) for k, v in tomllib.loads(NOTES.read_text(encoding="utf-8")).items()}


def page(results: Results, facts: Mapping[str, str], taken: str) -> str:
    """Return the page for the docs."""
    notes = load_notes()
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench ARGS=--markdown`; do not edit. Every figure is a ratio to a floor",
        "or a peer that was measured in the same run; what each measures, and how, stands in",
        "`benches/` and `crates/chronicle-core/benches/`. 64-byte payloads unless said.",
        "",
        f"- CPU: {facts['cpu']}, {facts['cores']} cores",
        f"- Kernel: Linux {facts['kernel']}; Python {facts['python']}",
        f"- File system: {facts['file_system']}",
        "- Command: `make bench ARGS=--markdown`",
        f"- Taken: {taken}",
        "",
        "|" + "|".join(f" {heading} " for heading in HEADINGS) + "|",
        "|" + "---|" * len(HEADINGS),
    ]
    missed = [figure for figure in FIGURES if figure.is_met(results) is False]
    for figure in in_order(results):
        row = _row(figure, results)
        lines.append("| " + " | ".join((f"**{row[0]}**" if figure in missed else row[0], *row[1:])))
        lines[-1] += " |"
    if missed:
        lines += ["", "## What is missed, what was tried, and why", ""]
        for figure in missed:
            why = notes.get(figure.name, "No note yet: add one to `benches/notes.toml`.")
            lines.append(f"- **{figure.text}**: {why}")
    lines += ["", "## Latencies", "", *_latencies(results)]
    lines += ["", "## Everything measured", "", "| name | value |", "|---|---|"]
    lines += [f"| `{name}` | {value:,.6g} |" for name, value in results.items()]
    return "\n".join(lines) + "\n"


def _latencies(results: Results) -> list[str]:
    quantiles = ("p50", "p99", "p999", "p9999", "max")
    lines = [
        "One way, between two processes on two cores, at a fixed rate, corrected for coordinated",
        "omission. Rust: 100,000 messages/s, rolls apart. Python: 10,000 messages/s.",
        "",
        "| | p50 | p99 | p99.9 | p99.99 | max |",
        "|---|---|---|---|---|---|",
    ]
    suffix = "_p50_ns"
    for key in results:
        if not (key.startswith("one_way_") and key.endswith(suffix)):
            continue
        prefix = key.removesuffix(suffix)
        cells = [_amount(results.get(f"{prefix}_{q}_ns"), "ns") for q in quantiles]
        name = prefix.removeprefix("one_way_").replace("_", " ")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines
