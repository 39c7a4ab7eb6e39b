"""The example dashboard: its file is up to date, and what it asks for is in a scrape."""

from __future__ import annotations

import json
import re
import urllib.request
from itertools import combinations
from pathlib import Path

import chronicle
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.queue_support import publisher, subscriber
from tools import dashboard, scrape

DASHBOARD = json.loads(dashboard.FILE.read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]
NAME = re.compile(r"\bchronicle_\w+")


@pytest.fixture(scope="module")
def scraped() -> str:
    """What Prometheus gets over HTTP from a sidecar with a hot thread, a queue and a mirror."""
    import tempfile

    with (
        tempfile.TemporaryDirectory() as name,
        publisher(Path(name) / "q") as writer,
        chronicle.Sidecar() as sidecar,
        subscriber(Path(name) / "q", "hot") as reader,
    ):
        writer.append(1, b"")
        hot = chronicle.HotThread(
            lambda message: None, readers=[reader], name="h", wait="sleep", meter="full"
        )
        sidecar.attach(hot)
        sidecar.mirror(Path(name) / "q", Path(name) / "m")
        url = f"http://127.0.0.1:{sidecar.metrics().port}/metrics"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return str(answer.read().decode())


def asked() -> set[str]:
    queries = [target["expr"] for target in TARGETS]
    queries += [v["query"]["query"] for v in DASHBOARD["templating"]["list"] if "refresh" in v]
    return {name for query in queries for name in NAME.findall(query)}


def test_the_file_is_what_the_script_makes() -> None:
    assert dashboard.FILE.read_text(encoding="utf-8") == dashboard.text(), (
        "run: python -m tools.dashboard"
    )


def test_every_metric_of_the_dashboard_is_in_a_scrape(scraped: str) -> None:
    told = set()
    for family in text_string_to_metric_families(scraped):
        told.add(family.name + ("_total" if family.type == "counter" else ""))
        told |= {sample.name for sample in family.samples}
    assert len(asked()) > 20
    assert asked() - told == set()


def test_every_label_of_the_dashboard_is_one_of_its_metric() -> None:
    # `instance` is given by Prometheus to whatever it scrapes.
    known = {family.name: {*family.labels, "instance"} for family in scrape.families()}
    for target in TARGETS:
        (name,) = set(NAME.findall(target["expr"]))
        wanted = set(re.findall(r"[{,](\w+)=", target["expr"]))
        wanted |= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert wanted <= known[name], target


def test_quantiles_of_the_dashboard_are_told(scraped: str) -> None:
    found = set(re.findall(r'quantile="([\d.]+)"', scraped))
    wanted = {q for t in TARGETS for q in re.findall(r'quantile="([\d.]+)"', t["expr"])}
    assert wanted
    assert wanted <= found


def test_every_variable_that_is_used_is_declared() -> None:
    declared = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval", "__all"}
    assert used == declared


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    def cells(panel):
        at = panel["gridPos"]
        return {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }

    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    for one, other in combinations(everything, 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])
    assert all(x < 24 for panel in everything for x, _ in cells(panel))
    assert all(panel["description"] and panel["targets"] for panel in PANELS)
