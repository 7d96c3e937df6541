"""What names a result: the same stage, settings, weights and inputs give the same key, on any machine.

A stage's key covers its name, version, settings and weights. A result's key covers that and the keys of what the stage
read: so a new caption prompt changes the captions' keys and leaves those of poses and masks as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.clip import Clip
from pipelines.stage import Stage

KEY_DIGITS = 24
"""Hex digits of a key: 96 bits."""
WHOLE = 64 * 2**20
"""Bytes up to which a weight file is hashed whole; of a larger one, its size and its first and last MiB."""


def settings_of(stage: Stage) -> dict[str, Any]:
    """A stage's name and those of its settings that shape the result."""
    shaping = [f.name for f in fields(stage) if not f.metadata.get("resource")]
    return {"stage": stage.name, **{name: getattr(stage, name) for name in shaping}}


def stage_key(stage: Stage) -> str:
    """Names a stage as it stands: settings, version and the content of its weights."""
    named: str | tuple[str, ...] = getattr(stage, "weights", ())
    weights = [weights_identity(name) for name in ((named,) if isinstance(named, str) else named) if name]
    return _hash([settings_of(stage), type(stage).version, weights])


def chain_key(keys: Iterable[str]) -> str:
    """Names what consecutive stages make together."""
    return _hash(list(keys))


def result_key(stage: Stage, key: str, producers: Mapping[str, str], clip: Clip) -> str:
    """Names what a stage (of key `key`) makes of a clip as it stands.

    `producers` are the keys of the results that made each member and field so far.
    """
    reads = type(stage).reads
    if reads is None:
        said = [clip.source, clip.licence, clip.consent, sorted(clip.rights.items())]
        return _hash([key, sorted(clip.lineage.items()), said])
    if "scores" in reads:
        return _hash([key, sorted(clip.lineage.items())])
    return _hash([key, [[name, producers.get(name, "")] for name in sorted(reads)]])


def digest_of(parts: Sequence[Any]) -> str:
    """Names anything that JSON can say."""
    return _hash(list(parts))


def _hash(content: Any) -> str:  # noqa: ANN401
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:KEY_DIGITS]


@cache
def weights_identity(name: str) -> str:
    """A local folder's or file's content, or a hub id as it is written: pin its revision there if it may move."""
    from dynamictrl.weights import MINI

    path = MINI / name.removeprefix("mini/") if name.startswith("mini/") else Path(name).expanduser()
    if not path.exists():
        return name
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return _hash([[p.name, _file_identity(p)] for p in files])


def _file_identity(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= WHOLE:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        first = stream.read(2**20)
        stream.seek(-(2**20), 2)
        return hashlib.sha256(first + stream.read()).hexdigest() + str(size)
