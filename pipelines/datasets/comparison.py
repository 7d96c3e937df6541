"""What differs between two data sets, clip by clip, and what in their making explains it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.datasets.dataset_view import DatasetView
from pipelines.datasets.text_table import length, table
from pipelines.files import run_folder

Row = Mapping[str, Any]
SHOWN = 10
"""Clips that are listed per kind of change."""
READ, ABSENT = "read", "not there"
CALM = {READ, ABSENT}
"""Outcomes of a source that are no quarantine; clips tell the difference between them."""
SAME = 1e-6
"""Scores that differ by less are equal: rows hold six digits."""


def compare(a: DatasetView, b: DatasetView) -> dict[str, Any]:
    """All differences as JSON holds them: `only_a`, `only_b`, `verdicts`, `captions`, `scores`, and why."""
    rows_a, rows_b = ({row["key"]: row for row in view.rows} for view in (a, b))
    both = [(rows_a[key], rows_b[key]) for key in sorted(rows_a.keys() & rows_b.keys())]
    uris_a, uris_b = ({row["source"] for row in rows} for rows in (rows_a.values(), rows_b.values()))
    return {
        "a": _totals(a),
        "b": _totals(b),
        "settings": run_folder.changes(a.description, b.description.get("settings") or {}),
        "recipes": [view.description["recipe"] for view in (a, b)],
        "models": _models(a, b),
        "packages": _packages(a, b),
        "only_a": [_only(row, uris_b) for key, row in sorted(rows_a.items()) if key not in rows_b],
        "only_b": [_only(row, uris_a) for key, row in sorted(rows_b.items()) if key not in rows_a],
        "quarantine": _quarantine(a, b),
        "verdicts": [_verdict(old, new) for old, new in both if old["reason"] != new["reason"]],
        "captions": [_caption(old, new) for old, new in both if _is_told_otherwise(old, new)],
        "scores": _scores(both),
        "rights": [
            {"key": old["key"], "a": [old["licence"], old["consent"]], "b": [new["licence"], new["consent"]]}
            for old, new in both
            if (old["licence"], old["consent"]) != (new["licence"], new["consent"])
        ],
        "stages_redone": _lineage(both),
    }


def is_equal(found: Mapping[str, Any]) -> bool:
    """Whether the same clips were decided in the same way, whatever made them."""
    names = ("only_a", "only_b", "quarantine", "verdicts", "captions", "scores", "rights")
    return not any(found[name] for name in names)


def _totals(view: DatasetView) -> dict[str, Any]:
    counts, seconds = view.description["counts"], view.description["seconds"]
    return {
        "root": view.root,
        "sources": counts["sources"],
        "clips": counts["clips"],
        "kept": counts["kept"],
        "refused": sum(counts["rejected"].values()),
        "quarantined": sum(counts["quarantined"].values()),
        "hours": round(seconds["kept"] / 3600, 4),
        "bytes": sum(shard["bytes"] for shard in view.description["shards"]),
    }


def _only(row: Row, others: set[str]) -> dict[str, Any]:
    """A clip that the other data set has not: its source is not there, or was cut in other places."""
    why = "its source was cut otherwise" if row["source"] in others else "its source is not there"
    return {"key": row["key"], "source": row["source"], "reason": row["reason"], "seconds": _seconds(row), "why": why}


def _verdict(old: Row, new: Row) -> dict[str, Any]:
    """A clip refused in one and kept in the other, or refused for another reason."""
    decider = new if new["reason"] else old
    why = f"{decider['stage']}: {decider['message']}" if decider["message"] else decider["stage"]
    changed = _changed_stages(old, new)
    return {
        "key": old["key"],
        "a": old["reason"] or "kept",
        "b": new["reason"] or "kept",
        "seconds": _seconds(old),
        "why": why,
        "other_results_of": changed,
    }


def _caption(old: Row, new: Row) -> dict[str, Any]:
    changed = _changed_stages(old, new)
    return {"key": old["key"], "a": old["caption"], "b": new["caption"], "other_results_of": changed}


def _is_told_otherwise(old: Row, new: Row) -> bool:
    """A clip refused before its caption has none, which says nothing about captions."""
    return old["caption"] != new["caption"] and not old["reason"] and not new["reason"]


def _changed_stages(old: Row, new: Row) -> list[str]:
    """Stages whose results have another key; a data set of an older release names none."""
    stages = [*old["lineage"], *(s for s in new["lineage"] if s not in old["lineage"])]
    return [stage for stage in stages if old["lineage"].get(stage) != new["lineage"].get(stage)]


def _scores(both: Sequence[tuple[Row, Row]]) -> list[dict[str, Any]]:
    """By score, how many clips have another value, and how far apart they are."""
    gaps: dict[str, list[tuple[float, str]]] = {}
    missing: Counter[str] = Counter()
    for old, new in both:
        for name in old["scores"].keys() | new["scores"].keys():
            if name in old["scores"] and name in new["scores"]:
                gap = abs(new["scores"][name] - old["scores"][name])
                if gap > SAME:
                    gaps.setdefault(name, []).append((gap, old["key"]))
            else:
                missing[name] += 1
    return [
        {
            "score": name,
            "changed": len(gaps.get(name, ())),
            "in_one_only": missing[name],
            "mean_change": round(sum(g for g, _ in gaps.get(name, ())) / max(1, len(gaps.get(name, ()))), 6),
            "largest": max(gaps.get(name, ((0.0, ""),)))[1],
        }
        for name in sorted(gaps.keys() | missing.keys())
    ]


def _lineage(both: Sequence[tuple[Row, Row]]) -> dict[str, int]:
    """Clips by stage whose result was made in another way: other settings, weights, version or input."""
    counts: Counter[str] = Counter(stage for old, new in both for stage in _changed_stages(old, new))
    return dict(counts.most_common())


def _models(a: DatasetView, b: DatasetView) -> dict[str, list[list[str]]]:
    old, new = a.description["models"], b.description["models"]
    return {
        role: [old.get(role, []), new.get(role, [])] for role in sorted(old | new) if old.get(role) != new.get(role)
    }


def _packages(a: DatasetView, b: DatasetView) -> dict[str, list[str]]:
    old, new = a.description.get("packages", {}), b.description.get("packages", {})
    return {
        name: [old.get(name, ""), new.get(name, "")] for name in sorted(old | new) if old.get(name) != new.get(name)
    }


def _quarantine(a: DatasetView, b: DatasetView) -> list[dict[str, str]]:
    """Sources put aside in one of them: the reason code, "read" or "not there"."""
    old, new = _outcomes(a), _outcomes(b)
    return [
        {"uri": uri, "a": old.get(uri, ABSENT), "b": new.get(uri, ABSENT)}
        for uri in sorted(old.keys() | new.keys())
        if old.get(uri, ABSENT) != new.get(uri, ABSENT) and not {old.get(uri, ABSENT), new.get(uri, ABSENT)} <= CALM
    ]


def _outcomes(view: DatasetView) -> dict[str, str]:
    return {row["source"]: READ for row in view.rows} | {line["uri"]: line["reason"] for line in view.quarantine}


def _seconds(row: Row) -> float:
    return round(row["end"] - row["start"], 3)


def text(found: Mapping[str, Any]) -> Iterator[str]:
    """The differences as people read them."""
    a, b = found["a"], found["b"]
    yield from _total_lines(a, b)
    if is_equal(found):
        yield "the same clips, decided in the same way"
    for name in ("a", "b"):
        yield from _only_lines(found[f"only_{name}"], found[name]["root"])
    yield from _listed(
        "sources whose quarantine differs",
        [[q["uri"], q["a"], q["b"]] for q in found["quarantine"]],
        ("source", "in A", "in B"),
    )
    verdicts = [[v["key"], v["a"], v["b"], v["why"]] for v in found["verdicts"]]
    yield from _listed("clips decided otherwise", verdicts, ("key", "in A", "in B", "why"))
    captions = [[c["key"], c["a"], c["b"]] for c in found["captions"]]
    yield from _listed("captions that differ", captions, ("key", "in A", "in B"))
    yield from _score_lines(found["scores"])
    rights = [[r["key"], " / ".join(r["a"]), " / ".join(r["b"])] for r in found["rights"]]
    yield from _listed("licences or consents that differ", rights, ("key", "in A", "in B"))
    yield from _why(found)


def _total_lines(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        [name, f"{a[name]:,}", f"{b[name]:,}", f"{round(b[name] - a[name], 4):+,}"]
        for name in ("sources", "quarantined", "clips", "refused", "kept", "hours", "bytes")
    ]
    yield f"A {a['root']}"
    yield f"B {b['root']}"
    yield from table(("", "A", "B", "difference"), rows)


def _score_lines(scores: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    changed = [s for s in scores if s["changed"]]
    if changed:
        yield "scores that differ"
        rows = [[s["score"], f"{s['changed']:,}", f"{s['mean_change']:.4g}", s["largest"]] for s in changed]
        yield from table(("score", "clips", "mean change", "most in"), rows)
    alone = [f"{s['score']} ({s['in_one_only']:,})" for s in scores if s["in_one_only"]]
    if alone:
        yield f"scores that only one of them has, with their clips: {', '.join(alone)}"


def _only_lines(clips: Sequence[Mapping[str, Any]], root: str) -> Iterator[str]:
    if not clips:
        return
    kept = [clip for clip in clips if not clip["reason"]]
    yield f"{len(clips):,} clips only in {root}, {len(kept):,} of them kept ({length(sum(c['seconds'] for c in kept))})"
    yield from table(("key", "outcome", "why"), [[c["key"], c["reason"] or "kept", c["why"]] for c in clips[:SHOWN]])
    yield from _more(len(clips))


def _listed(what: str, rows: Sequence[Sequence[str]], head: Sequence[str]) -> Iterator[str]:
    if rows:
        yield f"{len(rows):,} {what}"
        yield from table(head, rows[:SHOWN])
        yield from _more(len(rows))


def _more(count: int) -> Iterator[str]:
    if count > SHOWN:
        yield f"  and {count - SHOWN:,} more; --json has them all"


def _why(found: Mapping[str, Any]) -> Iterator[str]:
    """What was different in the making."""
    lines = [f"recipe {found['recipes'][0]}, now {found['recipes'][1]}"] if len(set(found["recipes"])) > 1 else []
    lines += found["settings"]
    lines += [
        f"{role} by {', '.join(o) or 'nothing'}, now {', '.join(n) or 'nothing'}"
        for role, (o, n) in found["models"].items()
    ]
    lines += [
        f"{stage} gave {count:,} clips a result with another key" for stage, count in found["stages_redone"].items()
    ]
    lines += [f"{name} {old or 'absent'}, now {new or 'absent'}" for name, (old, new) in found["packages"].items()]
    if lines:
        yield "made otherwise"
        yield from (f"  {line}" for line in lines)
