"""Takes the samples of a shard apart again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from dynamictrl.samples.shards import MEMBERS, Sample, iter_shard
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.stage import Stage


@dataclass(frozen=True)
class ReadSamples(Stage):
    """Unpacks a shard into one clip per sample, with its files and what is known of it; old latents aside."""

    per: ClassVar[Literal["source", "clip"]] = "source"

    def process(self, clip: Clip) -> Iterable[Clip]:
        for sample in iter_shard(Path(clip.path)):
            yield _unpacked(clip, sample)


def _unpacked(shard: Clip, sample: Sample) -> Clip:
    known = Clip.from_row({**shard.to_row(), **sample.info, "key": sample.key})
    clip = replace(known, caption=sample.caption, files=tuple(sorted(MEMBERS)))
    for extension in MEMBERS:
        storage.write_bytes(clip.file(extension), sample.members[extension])
    return clip
