"""Which clips of each filter a person should look at: the worst, and those on either side of the line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.datasets.stage_list import Limit, listed

Row = Mapping[str, Any]
EACH = 3
"""Clips of each kind per filter."""


@dataclass(frozen=True)
class Case:
    """One clip as an example for one filter."""

    row: Row
    value: str
    """The score that decided, or what the stage said."""


@dataclass(frozen=True)
class Cases:
    """The examples of one filter: of one of its scores, or of one of its reason codes where no score is known."""

    stage: str
    title: str
    refused: int
    groups: Sequence[tuple[str, Sequence[Case]]]
    """("just refused", cases), ("just kept", cases), ("worst", cases)."""


@dataclass(frozen=True)
class Idle:
    """A limit that refused nothing, and how near to it a kept clip came."""

    limit: Limit
    nearest: Case | None
    room: float
    """What lay between, as a share of the limit."""


def cases(description: Mapping[str, Any], rows: Sequence[Row], limits: Sequence[Limit]) -> list[Cases]:
    """Examples of every filter that refused something, in order of work."""
    order = [entry["stage"] for entry in listed(description)]
    refused: dict[str, list[Row]] = {}
    for row in rows:
        if row["reason"]:
            refused.setdefault(row["stage"], []).append(row)
    kept = [row for row in rows if not row["reason"]]
    found = []
    for stage in sorted(refused.keys() | {limit.stage for limit in limits}, key=_rank(order)):
        mine = [limit for limit in limits if limit.stage == stage]
        found += [case for limit in mine if (case := _by_score(limit, refused.get(stage, []), kept))]
        unexplained = [row for row in refused.get(stage, []) if not any(limit.refused(row) for limit in mine)]
        found += _by_reason(stage, unexplained)
    return found


def _rank(order: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    places = {stage: place for place, stage in enumerate(order)}
    return lambda stage: (places.get(stage, -1), stage)


def idle(rows: Sequence[Row], limits: Sequence[Limit]) -> list[Idle]:
    """The limits that no clip failed at, in order of work."""
    refused = [row for row in rows if row["reason"]]
    kept = [row for row in rows if not row["reason"]]
    found = []
    for limit in limits:
        if any(row["stage"] == limit.stage and limit.refused(row) for row in refused):
            continue
        measured = [
            (limit.distance(row["scores"][limit.score]), row["key"], row)
            for row in kept
            if limit.score in row["scores"]
        ]
        room, _, row = min(measured, default=(0.0, "", None), key=lambda entry: entry[:2])
        found.append(Idle(limit, _scored(limit, row) if row else None, room))
    return found


def _by_score(limit: Limit, refused: Sequence[Row], kept: Sequence[Row]) -> Cases | None:
    """The clips nearest to one limit. Where a stage has several scores, those that this one refused."""
    out = sorted(
        (row for row in refused if limit.refused(row)),
        key=lambda row: (limit.distance(row["scores"][limit.score]), row["key"]),
    )
    if not out:
        return None
    inside = sorted(
        (row for row in kept if limit.score in row["scores"]),
        key=lambda row: (limit.distance(row["scores"][limit.score]), row["key"]),
    )
    near = [_scored(limit, row) for row in out[::-1][:EACH]]
    worst = [_scored(limit, row) for row in out[: max(0, min(EACH, len(out) - len(near)))]]
    groups = [("just refused", near), ("worst", worst), ("just kept", [_scored(limit, r) for r in inside[:EACH]])]
    groups = [(name, found) for name, found in groups if found]
    return Cases(limit.stage, f"{limit.score}, {limit}", len(out), groups)


def _scored(limit: Limit, row: Row) -> Case:
    return Case(row, f"{row['scores'][limit.score]:.4g}")


def _by_reason(stage: str, refused: Sequence[Row]) -> list[Cases]:
    """Examples of refusals that no score with a limit explains: the first by key, from as many sources as there are."""
    by_reason: dict[str, list[Row]] = {}
    for row in refused:
        by_reason.setdefault(row["reason"], []).append(row)
    return [
        Cases(stage, reason, len(found), [("examples", [Case(r, r["message"]) for r in spread(found, EACH)])])
        for reason, found in sorted(by_reason.items())
    ]


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows from as many sources as there are: one of each, then a second of each, and so on."""
    turns: dict[str, int] = {}
    ranked = []
    for place, row in enumerate(rows):
        turn = turns[row["source"]] = turns.get(row["source"], 0) + 1
        ranked.append((turn, place, row))
    return [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])[:count]]
