"""Held-out marionettes for the tracker: a quick look while it trains.

All clips at once, prompted on their first frame with their own poses, and tracked forward. `evaluate` is the true
measure: it goes through `Sam2MaskTracker`, which prompts on the clearest frame and runs both ways.

Shape suffixes: B persons, F frames, C channels, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynamictrl.masks.sam_tracking import prompt_of
from dynamictrl.mini.marionettes import MarionetteClip, sample_clip
from dynamictrl.mini.stream import FPS, HEIGHT, HELD_OUT_SEED, NUM_FRAMES, WIDTH
from dynamictrl.mini.tracker.clips import normalised
from dynamictrl.mini.tracker.unroll import unroll

if TYPE_CHECKING:
    from transformers import Sam2VideoModel


def held_out_clip(index: int) -> MarionetteClip:
    """A marionette that no trainer draws."""
    return sample_clip(np.random.default_rng([HELD_OUT_SEED, index]), NUM_FRAMES, HEIGHT, WIDTH, FPS)


class HeldOut:
    """Every person of `clips` held-out clips who is seen in the first frame, on the device."""

    def __init__(self, clips: int, image: int, device: str):
        self.image, self.device = image, device
        self.clips = clips
        videos, persons, points = [], [], []
        for clip in (held_out_clip(index) for index in range(clips)):
            for person in range(clip.pose.num_persons):
                if not clip.pose.present()[0, person]:
                    continue
                box, joints = prompt_of(clip.pose, 0, person, HEIGHT, WIDTH)
                videos.append(torch.from_numpy(clip.frames))
                persons.append(torch.from_numpy(clip.persons == person + 1))
                points.append([box[:2], box[2:], *joints])
        if clips:
            self.videos, self.persons = torch.stack(videos).to(device), torch.stack(persons).to(device)
            self.points = torch.tensor(points, device=device) * torch.tensor(
                [image / WIDTH, image / HEIGHT], device=device
            )

    @torch.no_grad()
    def overlap(self, model: Sam2VideoModel, at_once: int = 8) -> float:
        """Mean IoU over persons and frames; nan where no clip is held out."""
        if not self.clips:
            return float("nan")
        parts = [self._overlaps(model, slice(i, i + at_once)) for i in range(0, len(self.videos), at_once)]
        return float(torch.cat(parts).mean())

    def _overlaps(self, model: Sam2VideoModel, part: slice) -> Tensor:
        video_BFCHW = self.videos[part].permute(0, 1, 4, 2, 3).float() / 255
        batch, frames = video_BFCHW.shape[:2]
        square = F.interpolate(video_BFCHW.flatten(0, 1), size=(self.image, self.image), mode="bilinear")
        labels = torch.ones(batch, 6, dtype=torch.int32, device=self.device)
        labels[:, 0], labels[:, 1] = 2, 3
        times = torch.arange(frames, device=self.device).float().expand(batch, -1)
        said = unroll(model, normalised(square).unflatten(0, (batch, frames)), self.points[part].float(), labels, times)
        size = self.persons.shape[-2:]
        full = F.interpolate(said.logits_BFHW, size=(self.image, self.image), mode="bilinear")
        full = F.interpolate(full, size=size, mode="bilinear")
        found = (full > 0) & (said.presence_BF > 0)[..., None, None]
        true = self.persons[part]
        union = (found | true).sum(dim=(-2, -1))
        # A frame without the person that is said to be without the person is right.
        return torch.where(union > 0, (found & true).sum(dim=(-2, -1)) / union.clamp(min=1), 1.0).flatten()
