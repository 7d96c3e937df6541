"""Shards to samples, in an order that depends on nothing but the seed.

The global sample index counts the samples a run has seen over all workers. It alone says which clip comes, which
window of it, what is dropped and which noise is drawn (`draw`), so a run is the same whatever the number of workers
and threads, and its whole state is that one number.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynamictrl.encodings import EncodedBy, read_encoded_by
from dynamictrl.errors import DatasetError
from dynamictrl.shards import LATENTS, DatasetFolder, open_dataset
from dynamictrl.windows import Window, window_starts
from training.settings.clips import Clips

logger = logging.getLogger(__name__)

HEADER_BYTES = 65536
"""Bytes of a latents file in which its description is looked for."""


@dataclass(frozen=True)
class Entry:
    """One clip that can be trained on."""

    key: str
    shard: Path
    offset: int
    """Byte offset in the shard."""
    fps: float
    starts: tuple[int, ...]
    """Frames that a window may begin at."""
    encoded: bool = False
    """Whether encodings lie in the shard."""
    encoded_start: int = -1
    """Start of the window whose encodings lie in the shard and may be used; -1 where none do."""


@dataclass(frozen=True)
class Index:
    """The clips of a data set that a run can use, in the data set's order."""

    dataset: DatasetFolder
    entries: tuple[Entry, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Reason to number of clips left out."""

    @property
    def has_encodings(self) -> bool:
        """Whether any clip was encoded beforehand."""
        return any(entry.encoded for entry in self.entries)

    @property
    def fingerprint(self) -> str:
        """Changes when clips are added, removed, or reordered."""
        return hashlib.sha256("\n".join(entry.key for entry in self.entries).encode()).hexdigest()[:16]


def build_index(root: Path, clips: Clips, encoded_by: EncodedBy | None = None) -> Index:
    """Reads every shard's headers and descriptions; no video is touched.

    `encoded_by` says which precomputed encodings may be used; None uses none. Raises DatasetError where the folder is
    no data set, is empty, or holds no clip that is long enough.
    """
    dataset = open_dataset(root)
    entries: list[Entry] = []
    skipped: Counter[str] = Counter()
    for shard in dataset.shards:
        for found in _scan(shard):
            entry = _entry(shard, found, clips, encoded_by, skipped)
            if entry is not None:
                entries.append(entry)
    if not entries:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "it holds no clips"
        raise DatasetError(
            f"no clip of {root} can be trained on ({reasons}); a window is {clips.num_frames} frames at "
            f"{clips.fps or 'the clip own'} frames per second: curate longer clips, or lower --num-frames",
            code="dataset_empty",
        )
    if skipped:
        logger.info("left out: %s", ", ".join(f"{count} clips %s" % reason for reason, count in skipped.items()))
    return Index(dataset, tuple(entries), dict(skipped))


@dataclass(frozen=True)
class _Found:
    key: str
    offset: int
    info: Mapping[str, object]
    latents_head: bytes


def _scan(shard: Path) -> list[_Found]:
    samples: dict[str, _Found] = {}
    try:
        with tarfile.open(shard) as tar:
            for header in tar:
                key, _, extension = header.name.partition(".")
                known = samples.get(key) or _Found(key, header.offset, {}, b"")
                content = tar.extractfile(header) if extension in ("json", LATENTS) else None
                if content and extension == "json":
                    known = _Found(key, known.offset, json.loads(content.read()), known.latents_head)
                elif content:
                    known = _Found(key, known.offset, known.info, content.read(HEADER_BYTES))
                samples[key] = known
    except (tarfile.TarError, ValueError) as problem:
        raise DatasetError(
            f"shard {shard} is damaged ({problem}); find what is wrong with `python -m pipelines verify --dataset "
            f"{shard.parent.parent}`",
            code="shard_damaged",
        ) from problem
    return list(samples.values())


def _entry(
    shard: Path, found: _Found, clips: Clips, encoded_by: EncodedBy | None, skipped: Counter[str]
) -> Entry | None:
    try:
        fps, frames = float(str(found.info["fps"])), int(str(found.info["frames"]))
    except (KeyError, ValueError):
        skipped["without fps and frames"] += 1
        return None
    starts = window_starts(frames, fps, clips.num_frames, clips.fps, clips.windows_per_clip)
    if not starts:
        skipped["too short"] += 1
        return None
    start = -1
    if encoded_by is not None and found.latents_head:
        theirs = read_encoded_by(found.latents_head)
        start = theirs.window.start if not encoded_by.differs_from(theirs) else -1
    return Entry(found.key, shard, found.offset, fps, tuple(starts), bool(found.latents_head), start)


@dataclass(frozen=True)
class Draw:
    """What is random about one sample."""

    position: int
    """Global sample index."""
    entry: Entry
    window: Window
    drops_caption: bool
    drops_image: bool
    noise_seed: int
    """Of everything that is drawn as tensors."""


@dataclass(frozen=True)
class Order:
    """Which sample stands at which global index."""

    seed: int
    clips: Clips
    entries: tuple[Entry, ...]

    def draw(self, position: int) -> Draw:
        """Everything random about the sample at a global index but its tensors."""
        epoch, place = divmod(position, len(self.entries))
        entry = self.entries[int(_permutation(self.seed, epoch, len(self.entries))[place])]
        keyed = _keyed(self.seed, 1, position)
        start = entry.starts[int(keyed.integers(len(entry.starts)))]
        caption, image = keyed.random(2)
        return Draw(
            position=position,
            entry=entry,
            window=self.window(entry.encoded_start if entry.encoded_start >= 0 else start),
            drops_caption=bool(caption < self.clips.caption_dropout),
            drops_image=bool(image < self.clips.image_dropout),
            noise_seed=int(keyed.integers(2**63)),
        )

    def window(self, start: int) -> Window:
        """A window of this run's size."""
        return Window(start, self.clips.num_frames, self.clips.height, self.clips.width, self.clips.fps)


def timesteps(seed: int, step: int, batch_size: int, stratified: bool, num_timesteps: int) -> NDArray[np.int64]:
    """The timesteps of one step's whole batch, uniform over the schedule; stratified ones fall in equal parts of it."""
    keyed = _keyed(seed, 2, step)
    uniform = keyed.random(batch_size)
    if stratified:
        uniform = (keyed.permutation(batch_size) + uniform) / batch_size
    return np.minimum((uniform * num_timesteps).astype(np.int64), num_timesteps - 1)


def positions(step: int, batch_size: int, rank: int, workers: int) -> range:
    """Global sample indices that one worker takes in one optimizer step."""
    return range(step * batch_size + rank, (step + 1) * batch_size, workers)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return _keyed(seed, 0, epoch).permutation(count)


def _keyed(seed: int, purpose: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, purpose, number]))
