"""Quarantined sources: which there are, and having some of them taken again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynamictrl.errors import DatasetError, InputError
from pipelines.datasets.dataset_view import DatasetView
from pipelines.datasets.text_table import table
from pipelines.files import run_folder
from pipelines.files.storage import file_name
from pipelines.records.ledger import Ledger
from pipelines.report.advice import advice
from pipelines.report.settings import command

Line = Mapping[str, Any]
FAULTS = ("stage_error", "out_of_memory", "crashed", "time_limit")
"""Why a single clip may have been refused by an accident and not by a judgement."""


@dataclass(frozen=True)
class Forgotten:
    """What the next run takes again."""

    sources: Sequence[str]
    """URIs."""
    clips: Sequence[str]
    """Keys of clips that an accident had refused."""


def chosen(view: DatasetView, reason: str = "", source: str = "") -> list[Line]:
    """Lines of the quarantine list with this reason code and this source (URI or file name); "" = any."""
    fits = [q for q in view.quarantine if source in ("", q["uri"], file_name(q["uri"]))]
    if source and not fits and not any(row["source"] == source for row in view.rows):
        raise InputError(f"no source {source} is in quarantine in {view.root}", code="unknown_source", param="source")
    known = {q["reason"] for q in view.quarantine} | {row["reason"] for row in view.rows if row["reason"] in FAULTS}
    if reason and reason not in known:
        codes = ", ".join(sorted(known)) or "none at all"
        raise InputError(
            f"nothing in {view.root} is put aside as {reason!r}; the reasons there are: {codes}",
            code="unknown_reason",
            param="reason",
        )
    return [line for line in fits if reason in ("", line["reason"])]


def text(lines: Sequence[Line], accidents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The list as people read it."""
    if lines:
        yield f"{len(lines)} sources in quarantine"
        rows = [[q["reason"], q["stage"], file_name(q["uri"]), q["message"]] for q in lines]
        yield from table(("reason", "stage", "source", "message"), rows)
        for reason in sorted({q["reason"] for q in lines}):
            yield f"{reason}: {advice(reason)}"
    else:
        yield "no source is in quarantine"
    if accidents:
        yield f"{len(accidents)} clips refused by an accident, which `retry` has taken again too"
        yield from table(("reason", "stage", "clip", "message"), [_accident(row) for row in accidents])


def accidents(view: DatasetView, reason: str = "", source: str = "") -> list[dict[str, Any]]:
    """Rows of clips that a fault refused, chosen as by `chosen`."""
    return [
        row
        for row in view.rows
        if row["reason"] in FAULTS
        and reason in ("", row["reason"])
        and source in ("", row["source"], file_name(row["source"]))
    ]


def _accident(row: Mapping[str, Any]) -> list[str]:
    return [row["reason"], row["stage"], row["key"], row["message"]]


def retry(view: DatasetView, lines: Sequence[Line], clips: Sequence[Mapping[str, Any]]) -> Forgotten:
    """Forgets what became of these sources and clips; the next run of the same command takes them again.

    Raises DatasetError where the work folder is not at hand, BusyError where a run is under way.
    """
    if view.work is None:
        raise DatasetError(
            f"the work folder of {view.root} is not on this machine; name it by --work, or curate anew",
            code="work_missing",
        )
    with run_folder.claimed(view.root, view.work):
        uris = {line["uri"] for line in lines}
        sources = [uri for unit, uri in _units(Ledger(view.work, "sources"), uris) if _forget(view, unit)]
        ledger = Ledger(view.work, "clips")
        keys = [row["key"] for row in clips if ledger.forget(row["key"])]
    return Forgotten(sorted(set(sources)), keys)


def _forget(view: DatasetView, unit: str) -> bool:
    assert view.work is not None
    return Ledger(view.work, "sources").forget(unit)


def _units(ledger: Ledger, uris: set[str]) -> Iterator[tuple[str, str]]:
    """(unit, URI) of the sources on record whose URI is asked for."""
    for unit in ledger.units():
        found = {row.get("source", "") for result in ledger.load(unit).results.values() for row in result.rows}
        for uri in found & uris:
            yield unit, uri


def next_command(view: DatasetView) -> str:
    """The command that takes them again; `SRC` stands for the sources where no run has noted them."""
    videos = ["SRC"]
    if view.work is not None and (view.work / "run.json").is_file():
        noted = json.loads((view.work / "run.json").read_text()).get("videos") or []
        videos = [shlex.quote(str(name)) for name in noted] or videos
    return command(view.description).replace(
        "--videos SRC --out DATASET", f"--videos {' '.join(videos)} --out {view.root}"
    )
