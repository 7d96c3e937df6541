"""An extension's clip behind the one that it goes on from: the last frame of one is the first of the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dynamictrl.geometry import cover_crop
from serving.jobs.job import AnimationJob
from serving.media.decoding import Decoder
from serving.rendering.engine import Clip


def after_clip_before(job: AnimationJob, clip: Clip, decoder: Decoder) -> Clip:
    """The clip with what it goes on from before it; as it is where the job extends nothing."""
    if job.clip_before is None:
        return clip
    height, width = clip.frames.shape[1:3]
    # A clip of a stranger's making may have a size that cannot be rendered.
    before = cover_crop(decoder.frames(job.clip_before, "video").frames, height, width)
    return replace(clip, frames=np.concatenate([before, clip.frames[1:]]))
