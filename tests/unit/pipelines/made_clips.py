"""Clips whose members are arbitrary bytes, for tests of what happens to them after the stages."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from dynamictrl.samples.shards import MEMBERS
from pipelines.clip import Clip
from pipelines.publishing import dataset_files
from pipelines.publishing.publication import Outcome, Publication

SIZE = 0.125
"""MiB of a shard; clips take about a fifteenth of it."""


def made_clip(work: Path, number: int, caption: str = "someone waves", *, portrait: bool = False) -> Clip:
    """A finished clip with its files in the work folder; the same number and caption give the same bytes."""
    noise = random.Random(f"{number}{caption}")
    size = {"width": 576, "height": 1024} if portrait else {"width": 1024, "height": 576}
    clip = Clip(
        source=f"/videos/{number // 2:03d}.mp4", source_sha256=f"{number // 2:064x}"[::-1], work=str(work), frames=24,
        fps=12.0, caption=caption, scores={"sharpness": 3.5}, models={"pose": "made"}, lineage={"cut": "a" * 16},
        **size,
    ).at(number % 2 * 2.0, number % 2 * 2.0 + 2.0)  # fmt: skip
    for extension in MEMBERS:
        content = noise.randbytes(noise.randint(200, 3000))
        if extension == "json":
            content = json.dumps({"key": clip.key, "source": clip.source}).encode()
        clip.folder.mkdir(parents=True, exist_ok=True)
        clip.file(extension).write_bytes(caption.encode() if extension == "txt" else content)
        clip = clip.with_file(extension)
    return clip


def published(publication: Publication, clips: Sequence[Clip], size: float = SIZE) -> Outcome:
    """What a run does once its clips are decided."""
    kept = [clip for clip in clips if not clip.rejected]
    for shard in publication.plan(kept, size):
        publication.commit(shard)
    sources = len({clip.source for clip in clips})
    content = dataset_files.description("made", {}, sources, clips, publication.records())
    return publication.finish({**content, "packages": {}}, clips, {"README.md": b"a card"})


def files(publication: Publication) -> dict[str, bytes]:
    """Every file of a data set, with its content."""
    return {name: publication.store.read(name) for name, _ in publication.store.list()}
