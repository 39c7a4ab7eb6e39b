"""Every figure of the project in one run: ``make bench``.

Prints the table (missed figures first) and writes all values to ``bench-results/<time>.json``.
``--markdown`` also writes docs/benchmarks.md. ``--quick`` takes small sizes, to see that all works;
its figures mean nothing. ``--only NAME`` takes one subject.

The queues stand on a tmpfs that is mounted with large pages (``huge=advise``) in a mount namespace
of this program's own, where that is allowed; otherwise on /dev/shm. Both are removed at the end.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "examples"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from benches import (  # noqa: E402
    calls,
    feed,
    frames,
    handoff,
    hot,
    hot_compile,
    independence,
    native,
    packets,
    peers,
    report,
    sources,
    startup,
    tick,
    wire,
)
from benches.common import Run  # noqa: E402

IN_NAMESPACE = "CHRONICLE_BENCH_NAMESPACE"
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]

Measure = Callable[[Run], dict[str, float]]


def subjects() -> dict[str, Measure]:
    """Return what is measured, in order: name and function."""
    found: dict[str, Measure] = {}
    for subject in native.SUBJECTS:
        found[subject] = lambda run, subject=subject: native.measure(run, subject)  # type: ignore[misc]
    found["hops"] = hot.measure_hops
    found["compiled"] = hot.measure_compiled
    found["handoff"] = handoff.measure
    found["sources"] = sources.measure
    found["compile"] = hot_compile.measure
    found["independence"] = independence.measure
    found["calls"] = calls.measure
    found["column"] = calls.measure_column
    found["frames"] = frames.measure
    found["startup"] = startup.measure
    found["peers"] = peers.measure
    found["packets"] = packets.measure
    found["wire"] = wire.measure
    found["tick"] = tick.measure
    found["feed"] = feed.measure
    found["decode"] = feed.measure_decode
    return found


def enter_namespace() -> None:
    """Start this program again in a mount namespace of its own, if that is allowed."""
    if os.environ.get(IN_NAMESPACE) or shutil.which("unshare") is None:
        return
    command = ["unshare", "--mount"] if os.geteuid() == 0 else UNSHARE
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        return
    os.environ[IN_NAMESPACE] = "1"
    os.execvp(command[0], [*command, sys.executable, *sys.argv])


def mount_large_pages(folder: Path) -> bool:
    """Mount a tmpfs with large pages on the folder; whether that worked."""
    if not os.environ.get(IN_NAMESPACE):
        return False
    command = ["mount", "-t", "tmpfs", "-o", "huge=advise,size=80%", "none", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def measure_all(run: Run, only: list[str], small_pages: Path | None) -> dict[str, float]:
    """Run all subjects, or some."""
    results: dict[str, float] = {}
    for name, measure in subjects().items():
        if only and name not in only:
            continue
        if name in ("feed", "decode") and not feed.is_available():
            print(f"{name}: skipped, there is no {feed.SAMPLE.name}", file=sys.stderr)
            continue
        if name in ("packets", "wire") and not packets.is_available():
            print(f"{name}: skipped, no network namespaces can be made here", file=sys.stderr)
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        results |= measure(run)
        if name == "throughput" and small_pages is not None:
            print("throughput on small pages ...", file=sys.stderr, flush=True)
            other = measure(Run(small_pages, run.quick))
            results |= {f"small_pages_{key}": value for key, value in other.items()}
    if (trip := results.get("cache_line_round_trip_median_ns")) is not None:
        results["cache_line_half_round_trip_median_ns"] = trip / 2
    if {"compiled_message_median_ns", "hot_bare_median_ns"} <= results.keys():
        over = results["compiled_message_median_ns"] - results["hot_bare_median_ns"]
        results["compiled_dispatch_over_bare_ns"] = over
    return results


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="small sizes; the figures mean nothing"
    )
    parser.add_argument("--markdown", action="store_true", help="also write docs/benchmarks.md")
    parser.add_argument(
        "--only", action="append", default=[], choices=list(subjects()), help="one subject"
    )
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where to put queues")
    return parser.parse_args()


def main() -> int:
    """Measure, print, write."""
    options = parse()
    enter_namespace()
    # Before anything is measured: compilers disturb.
    native.program(optimized=not options.quick)
    started = dt.datetime.now(dt.UTC)
    with (
        tempfile.TemporaryDirectory(prefix="chronicle-bench-", dir=options.folder) as plain,
        tempfile.TemporaryDirectory(prefix="chronicle-bench-huge-") as mounted,
    ):
        is_large = mount_large_pages(Path(mounted))
        try:
            run = Run(Path(mounted if is_large else plain), options.quick)
            small_pages = Path(plain) if is_large else None
            results = measure_all(run, options.only, small_pages)
        finally:
            if is_large:
                subprocess.run(["umount", "--lazy", mounted], check=False)
    file_system = "tmpfs with large pages (huge=advise)" if is_large else f"{options.folder}"
    facts = report.machine(file_system)
    taken = started.strftime("%Y-%m-%d %H:%M UTC")
    folder = ROOT / "bench-results"
    folder.mkdir(exist_ok=True)
    file = folder / f"{started:%Y%m%dT%H%M%SZ}{'-quick' if options.quick else ''}.json"
    document = {"taken": taken, "quick": options.quick, "machine": facts, "results": results}
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(report.table(results))
    print(f"\nall values: {file.relative_to(ROOT)}", file=sys.stderr)
    if options.markdown and not options.quick:
        report.PAGE.write_text(report.page(results, facts, taken), encoding="utf-8")
        print(f"written: {report.PAGE.relative_to(ROOT)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
