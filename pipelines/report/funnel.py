"""What is left after each step, with hours; and whether the numbers add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.datasets.stage_list import listed

Row = Mapping[str, Any]
FINDING = "find"
"""The stage of rows that the job itself refuses: the same source under another name."""


@dataclass(frozen=True)
class Step:
    """One line of the funnel."""

    name: str
    count: int
    hours: float
    """Hours of what is left; 0 for sources, whose lengths are not kept."""
    share: float
    """Of what the same kind began with, 0 to 1."""
    lost: int = 0
    lost_hours: float = 0.0
    reasons: Mapping[str, int] = field(default_factory=dict)
    """What was lost, by reason code."""


@dataclass(frozen=True)
class Equation:
    """One line of the ledger: a whole and the parts that it must be the sum of."""

    whole: str
    total: float
    parts: tuple[tuple[str, float], ...]
    unit: str = ""

    @property
    def holds(self) -> bool:
        return abs(self.total - sum(value for _, value in self.parts)) < 0.01


def funnel(description: Mapping[str, Any], rows: Sequence[Row]) -> list[Step]:
    """Sources found, sources read, clips found, and what each stage left of them."""
    counts = description["counts"]
    read = counts["sources"] - sum(counts["quarantined"].values())
    share = read / counts["sources"] if counts["sources"] else 0.0
    steps = [
        Step("sources found", counts["sources"], 0.0, 1.0 if counts["sources"] else 0.0),
        Step("sources read", read, 0.0, share, counts["sources"] - read, 0.0, counts["quarantined"]),
        Step("clips found", len(rows), _hours(rows), 1.0 if rows else 0.0),
    ]
    refused: dict[str, list[Row]] = {}
    for row in rows:
        if row["reason"]:
            refused.setdefault(row["stage"], []).append(row)
    left, hours = len(rows), steps[-1].hours
    for stage in _in_order(description, refused):
        lost = refused[stage]
        left, hours = left - len(lost), hours - _hours(lost)
        reasons = dict(Counter(row["reason"] for row in lost).most_common())
        steps.append(
            Step(
                f"after {stage.replace('_', ' ')}",
                left,
                max(0.0, hours),
                left / len(rows),
                len(lost),
                _hours(lost),
                reasons,
            )
        )
    return steps


def equations(
    description: Mapping[str, Any], rows: Sequence[Row], quarantine: Sequence[Mapping[str, Any]]
) -> list[Equation]:
    """What must add up at each level, from the manifest, the quarantine list and the description."""
    counts, seconds = description["counts"], description["seconds"]
    kept_rows = [row for row in rows if not row["reason"]]
    kept, seen = {row["source"] for row in kept_rows}, {row["source"] for row in rows}
    unread = {line["uri"] for line in quarantine}
    result = [
        Equation(
            "sources",
            counts["sources"],
            (
                ("with clips kept", len(kept)),
                ("with clips refused only", len(seen - kept - unread)),
                ("quarantined", len(unread - kept)),
            ),
        ),
        Equation(
            "clips found",
            len(rows),
            (
                ("kept", counts["kept"]),
                *((f"refused as {reason}", number) for reason, number in counts["rejected"].items()),
            ),
        ),
        Equation(
            "of clips found",
            _hours(rows),
            (("kept", seconds["kept"] / 3600), ("refused", seconds["rejected"] / 3600)),
            unit="h",
        ),
        Equation("clips kept", len(kept_rows), tuple(_by_shards(description))),
    ]
    if unread & kept:
        result.append(
            Equation(
                "sources quarantined",
                sum(counts["quarantined"].values()),
                (("nothing kept of them", len(unread - kept)), ("with clips kept nevertheless", len(unread & kept))),
            )
        )
    return result


def _by_shards(description: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    shards = description["shards"]
    if len(shards) <= 6:
        yield from ((f"in {shard['name']}", shard["samples"]) for shard in shards)
    else:
        yield f"in {len(shards)} shards", sum(shard["samples"] for shard in shards)


def _in_order(description: Mapping[str, Any], refused: Mapping[str, Any]) -> list[str]:
    order = [entry["stage"] for entry in listed(description) if entry["stage"] in refused]
    # What the job refuses by itself comes before all stages; a stage that is listed nowhere comes last.
    rest = sorted(stage for stage in refused if stage not in order)
    return [*(s for s in rest if s == FINDING), *dict.fromkeys(order), *(s for s in rest if s != FINDING)]


def _hours(rows: Sequence[Row]) -> float:
    return sum(row["end"] - row["start"] for row in rows) / 3600
