"""The whole story of one clip or source: what every stage said, by which score, at which cost, and where it lies."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dynamictrl.errors import InputError
from pipelines.datasets.dataset_view import DatasetView
from pipelines.datasets.stage_list import Limit, limits, listed
from pipelines.datasets.text_table import amount, length, table
from pipelines.files.storage import file_name
from pipelines.publishing import tombstones
from pipelines.records.ledger import Ledger, Record
from pipelines.report.advice import advice

Row = Mapping[str, Any]
SHOWN = 20
"""Clips or suggestions that are listed."""


def explain(view: DatasetView, name: str) -> list[str]:
    """What is known about a clip, by key or the beginning of one, or about a source, by URI or file name.

    Raises InputError with near names where there is none of this name, or several.
    """
    rows = [row for row in view.rows if row["key"] == name] or [r for r in view.rows if r["key"].startswith(name)]
    if name and len(rows) == 1:
        return list(_clip(view, rows[0]))
    found = _sources(view, name)
    if len(found) == 1:
        return list(_source(view, found[0]))
    if name and (rows or found):
        several = [row["key"] for row in rows] or found
        more = f" and {len(several) - SHOWN} more" if len(several) > SHOWN else ""
        raise InputError(
            f"{name} could be {len(several)}: {', '.join(several[:SHOWN])}{more}; give more of the name",
            code="ambiguous",
        )
    raise InputError(_unknown(view, name), code="unknown_key")


def _sources(view: DatasetView, name: str) -> list[str]:
    """URIs that are `name`, else those whose file is called so, else those that begin so."""
    uris = sorted({row["source"] for row in view.rows} | {line["uri"] for line in view.quarantine})
    for fits in (
        lambda uri: uri == name,
        lambda uri: file_name(uri) == name,
        lambda uri: file_name(uri).rpartition(".")[0] == name,
    ):
        if found := [uri for uri in uris if fits(uri)]:
            return found
    return []


def _unknown(view: DatasetView, name: str) -> str:
    removed = [t for t in tombstones.read(view.store) if tombstones.uri_hash(name) in t.hashes or name in t.hashes]
    if removed:
        return (
            f"{name} was taken down on {removed[0].time} ({removed[0].reason}); {removed[0].clips} clips went with it"
        )
    known = {row["key"]: row["key"] for row in view.rows}
    known |= {file_name(row["source"]): row["source"] for row in view.rows}
    known |= {file_name(line["uri"]): line["uri"] for line in view.quarantine}
    near = difflib.get_close_matches(file_name(name) if name else "", known, n=3, cutoff=0.5)
    hint = f"near names: {', '.join(near)}" if near else "`python -m pipelines size` counts what there is"
    return f"{view.root} has no clip and no source {name!r}; {hint}"


def _clip(view: DatasetView, row: Row) -> Iterator[str]:
    yield f"clip {row['key']}"
    if row["reason"]:
        yield f"  refused by {row['stage']}: {row['reason']}" + (f", {row['message']}" if row["message"] else "")
    else:
        size = f", {amount(row['bytes'])}" if row.get("bytes", -1) > 0 else ""
        yield f"  kept, in {view.store.uri('shards/' + row['shard'])} at byte {row['offset']}{size}"
    yield f"source {row['source']}"
    yield f"  sha256 {row['source_sha256'] or 'not known'}"
    yield f"  licence {row['licence'] or 'not stated'}, consent {row['consent'] or 'not stated'}"
    yield from (f"  {name} {value}" for name, value in sorted(row["rights"].items()))
    yield (
        f"picture {row['width']}x{row['height']}, {row['frames']} frames at {row['fps']:g} per second, "
        f"{row['start']:.3f} to {row['end']:.3f} s of the source"
    )
    if row["caption"]:
        yield f"caption {row['caption']}"
    yield "stages"
    yield from table(("stage", "verdict", "scores", "seconds", "CPU", "lineage key"), _stage_rows(view, row))
    yield from _other_scores(view, row)
    yield from _models(row)
    yield from _nearest(limits(view.description), row)


def _stage_rows(view: DatasetView, row: Row) -> list[list[str]]:
    """One line per stage in order of work; seconds are those of this clip, or of its whole source."""
    own, source = _records(view, row)
    by_stage: dict[str, list[Limit]] = {}
    for limit in limits(view.description):
        by_stage.setdefault(limit.stage, []).append(limit)
    lines, over = [], row["reason"] != "" and row["stage"] == "find"
    for entry in listed(view.description):
        stage = entry["stage"]
        if stage == "find_videos":
            continue
        verdict = "not reached" if over else "passed"
        if row["reason"] and stage == row["stage"]:
            verdict, over = f"refused: {row['reason']}", True
        result = own.results.get(stage)
        measured = ["", ""]
        if result is not None and verdict != "not reached":
            measured = [f"{result.seconds:.2f}", f"{result.cpu_seconds:.2f}"]
        elif stage in source:
            measured = [f"{seconds:.2f} (source)" for seconds in source[stage][1:]]
        key = row["lineage"].get(stage) or (row["lineage"].get("source", "") if entry.get("per") == "source" else "")
        scores = "" if verdict == "not reached" else ", ".join(_scores(by_stage.get(stage, ()), result, row))
        lines.append([stage, verdict, scores, *measured, key])
    return lines


def _records(view: DatasetView, row: Row) -> tuple[Record, Mapping[str, Any]]:
    """What the ledger has on a clip, and on its source as {stage: [units, seconds, CPU-seconds]}."""
    if view.work is None:
        return Record(), {}
    own = Ledger(view.work, "clips").load(row["key"])
    ledger = Ledger(view.work, "sources")
    for unit in ledger.units():
        for result in ledger.load(unit).results.values():
            if result.costs and any(r.get("source_sha256") == row["source_sha256"] for r in result.rows):
                return own, result.costs
    return own, {}


def _scores(found: Sequence[Limit], result: Any, row: Row) -> Iterator[str]:  # noqa: ANN401
    limited = {limit.score: limit for limit in found}
    made = set(result.change.get("scores", ())) if result is not None else set()
    for score in [*limited, *sorted(made - limited.keys())]:
        if score in row["scores"]:
            limit = f" ({limited[score]})" if score in limited else ""
            yield f"{score} {row['scores'][score]:.4g}{limit}"


def _other_scores(view: DatasetView, row: Row) -> Iterator[str]:
    if row["scores"]:
        yield "scores"
        yield "  " + ", ".join(f"{name} {value:.4g}" for name, value in sorted(row["scores"].items()))


def _models(row: Row) -> Iterator[str]:
    if row["models"]:
        yield "models"
        yield from (f"  {role}: {model}" for role, model in sorted(row["models"].items()))


def _nearest(found: Sequence[Limit], row: Row) -> Iterator[str]:
    """The limits that this clip comes nearest to, or lies outside of."""
    measured = [(limit.distance(row["scores"][limit.score]), limit) for limit in found if limit.score in row["scores"]]
    if measured:
        yield "nearest limits"
    for distance, limit in sorted(measured, key=lambda pair: pair[0])[:3]:
        side = "inside" if distance >= 0 else "outside"
        value = row["scores"][limit.score]
        yield f"  {limit.score} {value:.4g}, {limit.stage} keeps {limit}: {abs(distance):.0%} of the limit {side}"


def _source(view: DatasetView, uri: str) -> Iterator[str]:
    rows = [row for row in view.rows if row["source"] == uri]
    lines = [line for line in view.quarantine if line["uri"] == uri]
    yield f"source {uri}"
    if rows:
        first = rows[0]
        yield f"  sha256 {first['source_sha256'] or 'not known'}"
        yield f"  licence {first['licence'] or 'not stated'}, consent {first['consent'] or 'not stated'}"
    for line in lines:
        yield f"quarantined by {line['stage']}: {line['reason']}, {line['message']}"
        yield f"  {advice(line['reason'])}"
        log = line.get("log") or ()
        yield from (f"  | {text}" for text in ([log] if isinstance(log, str) else log))
    if not rows:
        return
    kept = sum(not row["reason"] for row in rows)
    seconds = sum(row["end"] - row["start"] for row in rows if not row["reason"])
    reasons = Counter(row["reason"] for row in rows if row["reason"])
    told = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    yield f"{len(rows)} clips found: {kept} kept ({length(seconds)}), {len(rows) - kept} refused" + (
        f" ({told})" if told else ""
    )
    yield from table(("key", "from", "to", "outcome", "where or why"), [_outcome(row) for row in rows])


def _outcome(row: Row) -> list[str]:
    where = row["message"] if row["reason"] else f"{row['shard']} at byte {row['offset']}"
    return [row["key"], f"{row['start']:.2f}", f"{row['end']:.2f}", row["reason"] or "kept", where]
