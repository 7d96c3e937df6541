"""What flows through a pipeline: one row for a source video, then one for each clip found in it.

A row carries names and numbers; pixels stay in files under the run's work folder and are opened by who needs them. No
field is ever None: Ray Data would turn it into nan, which is truthy (ray #50255), so "" and 0 say "not known".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    import pyarrow as pa

SHA_IN_KEY = 16
"""Hex digits of the source's sha256 in a key: 64 bits, so a million sources collide with a chance of 3e-8."""


PLACES = ("work", "path", "fingerprint")
"""Fields that say where something lies and not what it is."""
UNPUBLISHED = ("video_hash",)
"""Fields that no sample holds; a hash may differ in its last bit between kinds of processor."""
MAPS = ("scores", "models", "lineage", "rights")


@dataclass(frozen=True)
class Clip:
    """One source video (before it is cut) or one clip of it, with all that is known and decided about it."""

    key: str = ""
    """Stable name: the source's content hash and the clip's place in it. No dot, as WebDataset wants it."""
    source: str = ""
    """URI of the source video."""
    fingerprint: str = ""
    """Hash of the source's URI, size and change time: tells an unchanged source without reading it."""
    source_sha256: str = ""
    path: str = ""
    """Where the source's bytes are on this machine."""
    work: str = ""
    """The run's work folder; this clip's files lie in `work/clips/KEY`."""
    files: tuple[str, ...] = ()
    """Extensions of this clip's files written so far: "mp4", "pose.npz", ..."""
    start: float = 0.0
    """Seconds from the source's first frame, to the millisecond."""
    end: float = 0.0
    """Seconds from the source's first frame, to the millisecond."""
    fps: float = 0.0
    """Of the source (nominal) until the clip is cut, then the clip's constant rate."""
    frames: int = 0
    width: int = 0
    """Pixels, upright."""
    height: int = 0
    """Pixels, upright."""
    caption: str = ""
    rejected: str = ""
    """Reason code; "" = kept."""
    quarantined: bool = False
    """The source could not be read: it goes to quarantine.jsonl instead of the manifest."""
    stage: str = ""
    """The stage that decided against it."""
    message: str = ""
    """The decision in a sentence."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """What the stages measured, by name."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Id and weight hash of each model that shaped the clip, by role."""
    lineage: Mapping[str, str] = field(default_factory=dict)
    """By stage, the key of its result: settings, version, weights and what it read (`keys`)."""
    licence: str = ""
    consent: str = ""
    rights: Mapping[str, str] = field(default_factory=dict)
    """What else the list of sources says about them: "basis" (the legal ground), "attribution", "origin"."""
    video_hash: str = ""
    """How the clip looks and moves, as the text of a `dynamictrl.media.video_hash`; "" = not taken."""

    def __post_init__(self):
        # Arrow gives floats back: 12 and 12.0 would make a row's text depend on where it has been.
        for name in ("start", "end", "fps"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def duration(self) -> float:
        """Seconds."""
        return round(self.end - self.start, 3)

    @property
    def folder(self) -> Path:
        """Where this clip's files lie while the run is under way."""
        return Path(self.work) / "clips" / self.key

    @property
    def digest(self) -> str:
        """Hash of all that is known about the clip, where it lies aside: equal digests make equal samples."""
        row = {name: value for name, value in self.to_row().items() if name not in (*PLACES, *UNPUBLISHED)}
        return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:32]

    def file(self, extension: str) -> Path:
        """This clip's file of one kind, for example `file("pose.npz")`."""
        return self.folder / f"clip.{extension}"

    def with_file(self, extension: str) -> Clip:
        """The clip, now known to have a file of this kind."""
        return replace(self, files=tuple(sorted({*self.files, extension})))

    def with_scores(self, **scores: float) -> Clip:
        """The clip with more measured; values are rounded so that rows read well and compare equal."""
        return replace(self, scores={**self.scores, **{name: round(float(v), 6) for name, v in scores.items()}})

    def with_models(self, **models: str) -> Clip:
        return replace(self, models={**self.models, **models})

    def reject(self, reason: str, message: str = "") -> Clip:
        """A refusal is data: the clip stays on record with a reason code, and later stages pass it by."""
        return replace(self, rejected=reason, message=message)

    def quarantine(self, reason: str, message: str) -> Clip:
        """The source cannot be read; `reason` is a stable code."""
        return replace(self, rejected=reason, message=message, quarantined=True)

    def at(self, start: float, end: float) -> Clip:
        """One stretch of the source, in seconds, rounded to the millisecond, under its key."""
        start, end = round(start, 3), round(end, 3)
        key = f"{self.source_sha256[:SHA_IN_KEY]}-{round(start * 1000):08d}-{round(end * 1000):08d}"
        return replace(self, key=key, start=start, end=end)

    def to_row(self) -> dict[str, Any]:
        """A plain dict that JSON and Arrow hold; the inverse of `from_row`."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**row, "files": list(self.files), **{name: dict(getattr(self, name)) for name in MAPS}}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Clip:
        """Reads `to_row`'s dict, also as it comes back from Arrow (maps as lists of pairs)."""
        known = {f.name: row[f.name] for f in fields(cls) if f.name in row}
        known["files"] = tuple(known.get("files") or ())
        for name in MAPS:
            known[name] = dict(known.get(name) or {})
        return cls(**known)


@cache
def arrow_schema() -> pa.Schema:
    """The rows' Arrow schema, derived from the fields so that it cannot drift from them."""
    import pyarrow as pa

    types = {
        str: pa.string(),
        float: pa.float64(),
        int: pa.int64(),
        bool: pa.bool_(),
        tuple[str, ...]: pa.list_(pa.string()),
        Mapping[str, float]: pa.map_(pa.string(), pa.float64()),
        Mapping[str, str]: pa.map_(pa.string(), pa.string()),
    }
    hints = get_type_hints(Clip)
    return pa.schema([(f.name, types[hints[f.name]]) for f in fields(Clip)])


def to_table(clips: list[Clip]) -> pa.Table:
    """The clips as an Arrow table of `arrow_schema`."""
    import pyarrow as pa

    return pa.Table.from_pylist([clip.to_row() for clip in clips], schema=arrow_schema())


def from_table(table: pa.Table) -> list[Clip]:
    """The inverse of `to_table`."""
    return [Clip.from_row(row) for row in table.to_pylist()]
