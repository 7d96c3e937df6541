"""Puts finished clips into WebDataset shards, each shard whole and in its planned order."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dynamictrl.errors import ConfigError, DatasetError
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.stage import Stage

BLURRED = "blurred.mp4"
"""The clip with its faces blurred: where it is made, it is what is published."""
TICK = 2e-3
"""Seconds: mp4 clocks are finer than this, and no frame rate is so fast."""


@dataclass(frozen=True)
class WriteShards(Stage):
    """Refuses clips whose frames, poses and masks do not match one to one, and packs the others into shards."""

    size: float = 256.0
    """Mebibytes after which a shard is closed; the last may be smaller."""

    def __post_init__(self):
        if self.size <= 0:
            raise ConfigError(f"a shard's size is {self.size} MiB; it must be positive", param="shards.size")

    def process(self, clip: Clip) -> Iterable[Clip]:
        """Checks that all members are there and of one length; writes `KEY.txt` and `KEY.json` beside the others."""
        problem = _misfit(clip)
        if problem:
            yield clip.reject("misaligned", problem)
            return
        storage.write_bytes(clip.file("txt"), clip.caption.encode())
        storage.write_bytes(clip.file("json"), json.dumps(_info(clip), sort_keys=True, ensure_ascii=False).encode())
        yield clip.with_file("txt").with_file("json")


def _misfit(clip: Clip) -> str:
    """Why the members do not belong together; "" where they do (n(frames) = n(pose) = n(mask), equal timestamps)."""
    import numpy as np

    from dynamictrl.media.video_index import frame_times
    from dynamictrl.poses.pose import PoseSequence

    missing = {"mp4", "pose.npz", "mask.npz"} - set(clip.files)
    if missing:
        return f"{', '.join(sorted(missing))} missing"
    try:
        pose = PoseSequence.from_npz(clip.file("pose.npz").read_bytes())
    except DatasetError as problem:
        return str(problem)
    with np.load(io.BytesIO(clip.file("mask.npz").read_bytes()), allow_pickle=False) as arrays:
        masks = {name: arrays[name].shape for name in arrays.files}
    for picture in sorted({"mp4", BLURRED} & set(clip.files)):
        times = frame_times(clip.file(picture))
        if len(times) != clip.frames or pose.num_frames != clip.frames:
            return f"{len(times)} frames in {picture} and {pose.num_frames} poses, where {clip.frames} were cut"
        off = float(np.abs(times - np.arange(len(times)) / clip.fps).max(initial=0))
        if off > TICK:
            return f"a frame of {picture} is shown {off:.4f} s off a constant {clip.fps:g} frames per second"
    expected = (clip.frames, clip.height, clip.width)
    wrong = [f"{name} mask is {shape}, the clip {expected}" for name, shape in masks.items() if shape != expected]
    return "; ".join(wrong)


def _info(clip: Clip) -> dict[str, Any]:
    """The content of `KEY.json` (contract section 2)."""
    from dynamictrl.samples.shards import SCHEMA_VERSION

    return {
        "schema_version": SCHEMA_VERSION,
        "key": clip.key,
        "source": clip.source,
        "source_sha256": clip.source_sha256,
        "start": clip.start,
        "end": clip.end,
        "fps": clip.fps,
        "frames": clip.frames,
        "width": clip.width,
        "height": clip.height,
        "scores": dict(clip.scores),
        "models": dict(clip.models),
        "licence": clip.licence,
        "consent": clip.consent,
        "rights": dict(clip.rights),
        "lineage": {name: key for name, key in clip.lineage.items() if name != "write_shards"},
    }
