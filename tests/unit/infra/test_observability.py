"""The dashboard and the alerts ask for numbers that a run really gives, with labels that these really have."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.watching import metrics

FOLDER = Path(__file__).parents[3] / "infra" / "observability"
NAME = re.compile(rf"{metrics.PREFIX}(\w+)(?:{{([^}}]*)}})?")
GROUPED = re.compile(r"by \(([^)]*)\)")
LABEL = re.compile(r'(\w+)=~?"([^"]*)"')
OWN = {"job", "instance"}
"""Labels that Prometheus adds."""


def dashboard() -> dict[str, Any]:
    return json.loads((FOLDER / "curation-dashboard.json").read_text())


def questions() -> list[str]:
    """Every expression of the dashboard and of the alerts."""
    alerts = yaml.safe_load((FOLDER / "curation-alerts.yaml").read_text())
    rules = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    return [t["expr"] for panel in dashboard()["panels"] for t in panel.get("targets", ())] + rules


def documented() -> dict[str, dict[str, set[str]]]:
    """By metric, its labels and the values that each may have (none listed: any), as `metrics` describes them."""
    found: dict[str, dict[str, set[str]]] = {}
    for line in (metrics.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            labels: dict[str, set[str]] = {}
            last = ""
            for word in cells[2].split(", "):
                name, _, value = word.partition(" = ")
                if value:
                    last, labels[name] = name, {value}
                elif last and name not in ("stage", "reason", "operator", "phase"):
                    labels[last].add(name)
                elif name:
                    labels[name] = set()
            found[cells[0].strip("`")] = labels
    return found


def test_what_the_metrics_say_of_themselves_is_complete():
    assert set(documented()) == set(metrics.METRICS)


@pytest.mark.parametrize("question", questions())
def test_every_metric_and_label_that_is_asked_for_exists(question: str):
    asked = NAME.findall(question)
    assert asked
    known = documented()
    assert {name for name, _ in asked} <= set(metrics.METRICS)
    for name, labels in asked:
        for label, value in LABEL.findall(labels):
            assert label in known[name].keys() | OWN
            values = known[name].get(label)
            assert not values or value in values
    grouped = {label for group in GROUPED.findall(question) for label in group.split(", ")}
    assert grouped <= set.union(OWN, *(set(known[name]) for name, _ in asked))


def test_every_metric_of_a_run_is_on_the_dashboard():
    text = " ".join(t["expr"] for panel in dashboard()["panels"] for t in panel.get("targets", ()))
    assert {name for name, _ in NAME.findall(text)} == set(metrics.METRICS)


def test_counters_are_asked_for_their_rise_or_their_sum_and_never_averaged():
    counters = {name for name, (kind, _) in metrics.METRICS.items() if kind == "counter"}
    assert all(name.endswith("_total") for name in counters)
    for question in questions():
        assert not re.search(r"\bavg\b", question)


def test_panels_do_not_overlap_and_have_their_own_ids():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        box = panel["gridPos"]
        cells = {(x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])}
        assert not cells & taken
        assert box["x"] + box["w"] <= 24
        taken |= cells


def test_prometheus_reads_the_alerts_and_no_machine_is_named():
    content = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    assert all((FOLDER / name).is_file() for name in content["rule_files"])
    targets = [t for job in content["scrape_configs"] for c in job.get("static_configs", ()) for t in c["targets"]]
    assert all(target.startswith("127.0.0.1:") for target in targets)
