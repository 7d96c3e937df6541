"""Puts the page together. The same data set gives the same page, its costs aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.datasets.dataset_view import DatasetView, open_view, view_of
from pipelines.datasets.stage_list import limits, listed
from pipelines.files import storage
from pipelines.report.advice import advice
from pipelines.report.cases import cases, idle
from pipelines.report.funnel import equations, funnel
from pipelines.report.histograms import histograms
from pipelines.report.pictures import sample_cards, strips
from pipelines.report.settings import all_settings, command

if TYPE_CHECKING:
    from pipelines.stage import Cost

PAGE = "report/index.html"
TEMPLATES = Path(__file__).parent
QUARANTINED_ROWS = 300
"""Lines of the quarantine table; the rest is counted."""
DETAILS = 2
"""Values of a detail that are shown; some, as the frames that were captioned, differ from clip to clip."""
UNKNOWN = "not stated"


@dataclass(frozen=True)
class CostRow:
    """What one stage took."""

    stage: str
    units: int
    seconds: float
    cpu_seconds: float
    share: float
    """Of all stages' CPU-seconds, 0 to 1."""


def write_report(
    dataset: Path | str,
    description: Mapping[str, Any] | None = None,
    costs: Mapping[str, Cost] | None = None,
    work: Path | str | None = None,
) -> str:
    """Writes `DATASET/report/index.html`, on a disk or in a store, and returns where it lies.

    `description` is the content of `dataset.json` where that is not written yet; `costs` are by stage; `work` is the
    run's work folder where it is not `DATASET/.work`.
    """
    view = open_view(dataset, work) if description is None else view_of(dataset, description, work)
    view.store.put(PAGE, render(view, costs))
    return view.store.uri(PAGE)


def render(view: DatasetView, costs: Mapping[str, Cost] | None = None) -> bytes:
    """The page. Reads at most a few dozen clips out of the shards, however many there are."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    view = replace(view, description=_normal(view.description))
    description, rows = view.description, view.rows
    kept = [row for row in rows if not row["reason"]]
    all_limits = limits(description)
    examples = cases(description, rows, all_limits)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(tail=_tail, hours=_hours_text, whole=_whole)
    page = environment.get_template("page.html").render(
        name=view.name,
        description=description,
        equations=equations(description, rows, view.quarantine),
        funnel=funnel(description, rows),
        histograms=histograms(rows, all_limits),
        samples=sample_cards(view, kept),
        examples=examples,
        idle=idle(rows, all_limits),
        strips=strips(view, examples),
        quarantine=list(_quarantine(view.quarantine[:QUARANTINED_ROWS])),
        quarantine_more=max(0, len(view.quarantine) - QUARANTINED_ROWS),
        costs=_costs(description, costs or {}),
        models=_models(description),
        rights={name: _rights(kept, name) for name in ("licence", "consent")},
        settings=all_settings(description),
        command=command(description),
    )
    return page.encode()


def _normal(description: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from `dataset.json`, so that a page made before and after are the same."""
    import json

    return json.loads(json.dumps(description, default=str, sort_keys=True))


def _quarantine(lines: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for line in lines:
        log = line.get("log") or ""
        log = "\n".join(log) if isinstance(log, list) else str(log)
        yield {**line, "log": log[-1500:], "advice": advice(line["reason"]), "attempts": line.get("attempts", 1)}


def _costs(description: Mapping[str, Any], costs: Mapping[str, Cost]) -> list[CostRow]:
    order = [entry["stage"] for entry in listed(description)]
    whole = sum(cost.cpu_seconds for cost in costs.values()) or 1.0
    names = sorted(costs, key=lambda name: (order.index(name) if name in order else len(order), name))
    return [
        CostRow(name, cost.units, cost.seconds, cost.cpu_seconds, cost.cpu_seconds / whole)
        for name in names
        for cost in (costs[name],)
    ]


def _models(description: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each role's models with what is known of their licences, hashes below the role or file they belong to."""
    from pipelines.cards.facts import details, model_fact, model_roles

    models = description["models"]
    hashes = {role.removesuffix(" sha256"): sums for role, sums in models.items() if role.endswith(" sha256")}
    found = []
    for role in model_roles(models):
        facts = [fact for name in models[role] if (fact := model_fact(name))]
        more = {name: _some(values) for name, values in details(models, role).items()}
        sums = hashes.pop(role, [])
        found.append({"role": role, "names": models[role], "facts": facts, "details": more, "sha256": sums})
    rest = [{"role": file, "names": [], "facts": [], "details": {}, "sha256": sums} for file, sums in hashes.items()]
    return found + rest


def _some(values: Sequence[str]) -> str:
    more = len(values) - DETAILS
    return ", ".join(values[:DETAILS]) + (f" and {more} more" if more > 0 else "")


def _rights(kept: Sequence[Mapping[str, Any]], name: str) -> list[tuple[str, int, float]]:
    """(licence or consent, clips, hours), the most frequent first."""
    clips: Counter[str] = Counter()
    hours: Counter[str] = Counter()
    for row in kept:
        value = row.get(name) or UNKNOWN
        clips[value] += 1
        hours[value] += row["end"] - row["start"]  # type: ignore[assignment]
    return [(value, count, hours[value] / 3600) for value, count in sorted(clips.items(), key=lambda e: (-e[1], e[0]))]


def _tail(uri: str) -> str:
    """The last part of a URI."""
    return storage.file_name(uri)


def _whole(number: float) -> str:
    return f"{number:,.0f}"


def _hours_text(hours: float) -> str:
    """Hours where there are some, else minutes or seconds."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"
