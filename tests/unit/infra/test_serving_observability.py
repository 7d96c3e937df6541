"""The serving dashboard and alerts ask for numbers that a service gives, with labels that they have, and each alert
has its entry in the runbook."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.watching import metrics

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "infra" / "observability"
NAME = re.compile(rf"{metrics.PREFIX}(\w+)(?:{{([^}}]*)}})?")
GROUPED = re.compile(r"by \(([^)]*)\)")
LABEL = re.compile(r'(\w+)=~?"([^"]*)"')
OWN = {"job", "instance"}
"""Labels that Prometheus adds."""
ALERTS = [
    rule for group in yaml.safe_load((FOLDER / "serving-alerts.yaml").read_text())["groups"] for rule in group["rules"]
]


def dashboard() -> dict[str, Any]:
    return json.loads((FOLDER / "serving-dashboard.json").read_text())


def panels() -> list[str]:
    return [t["expr"] for panel in dashboard()["panels"] for t in panel.get("targets", ())]


def documented() -> dict[str, tuple[str, set[str]]]:
    """By metric, its kind and labels, as `metrics` describes them."""
    found = {}
    for line in (metrics.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            found[cells[0].strip("`")] = (cells[1], {label for label in cells[2].split(", ") if label})
    return found


def base(name: str) -> str:
    """A histogram's own name, for the names of its samples."""
    known = documented()
    stem = re.sub(r"_(bucket|sum|count)$", "", name)
    return stem if known.get(stem, ("",))[0] == "histogram" else name


@pytest.mark.parametrize("question", [*panels(), *(rule["expr"] for rule in ALERTS)])
def test_every_metric_and_label_that_is_asked_for_exists(question: str):
    asked = [(base(name), labels) for name, labels in NAME.findall(question)]
    known = documented()
    assert asked
    assert all(question.count(opening) == question.count(closing) for opening, closing in ("()", "{}", "[]"))
    assert {name for name, _ in asked} <= set(known)
    for name, labels in asked:
        assert {label for label, _ in LABEL.findall(labels)} <= known[name][1] | OWN
    grouped = {label for group in GROUPED.findall(question) for label in group.split(", ")}
    assert grouped <= set.union(OWN, {"le"}, *(known[name][1] for name, _ in asked))


def test_every_metric_of_a_service_is_on_the_dashboard():
    assert {base(name) for question in panels() for name, _ in NAME.findall(question)} == set(documented())


def test_counters_are_asked_for_their_rise_and_counted_once_over_scraped_replicas():
    counters = {name for name, (kind, _) in documented().items() if kind == "counter"}
    assert all(name.endswith("_total") for name in counters)
    for question in [*panels(), *(rule["expr"] for rule in ALERTS)]:
        for name in {name for name, _ in NAME.findall(question)}:
            if base(name) in counters or base(name) != name:
                assert re.search(rf"max without \(instance\) \(\s*(rate|increase)\(\s*{metrics.PREFIX}{name}", question)


def test_each_alert_says_what_to_do_here_and_in_the_runbook():
    runbook = (ROOT / "docs" / "serving" / "operations.md").read_text()
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS) >= 10
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["description"].strip()
        assert f"### {rule['alert']}\n" in runbook
    told = set(re.findall(r"^### (Serving\w+)$", runbook, re.MULTILINE))
    assert told == {rule["alert"] for rule in ALERTS}


def test_panels_do_not_overlap_and_have_their_own_ids():
    boxes = dashboard()["panels"]
    assert len({panel["id"] for panel in boxes}) == len(boxes)
    taken: set[tuple[int, int]] = set()
    for panel in boxes:
        box = panel["gridPos"]
        cells = {(x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])}
        assert not cells & taken
        assert box["x"] + box["w"] <= 24
        taken |= cells


def test_prometheus_reads_the_alerts_and_scrapes_a_service():
    content = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    assert "serving-alerts.yaml" in content["rule_files"]
    assert "serving" in {job["job_name"] for job in content["scrape_configs"]}
