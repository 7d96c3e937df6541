"""Trains the mini mask tracker, SAM 2's video class, on marionettes.

    python -m dynamictrl.mini.tracker.train --pool POOL --out FOLDER --seconds 330

First single frames with their prompts, then short runs of frames through the memory. Stops by the clock. Writes the
model's folder, its card and `measured.json`; `dynamictrl.mini.tracker.evaluate` measures it as curation uses it.

Shape suffixes: B batch, F frames, H W pixels.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamictrl.mini.flags import add_settings
from dynamictrl.mini.graphed import GraphedStep
from dynamictrl.mini.stream import Pool
from dynamictrl.mini.tracker.card import write_card
from dynamictrl.mini.tracker.clips import Batch, TrackClips
from dynamictrl.mini.tracker.held_out import HeldOut
from dynamictrl.mini.tracker.models import TrackerSize, new_tracker, picture_preparation, picture_side
from dynamictrl.mini.tracker.unroll import unroll

if TYPE_CHECKING:
    from transformers import Sam2VideoModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One training of the tracker."""

    seconds: float = 330.0
    batch: int = 32
    frames: int = 6
    """The prompted frame and those after it."""
    single_share: float = 0.3
    """The first part of the time, with single prompted frames."""
    single_batch: int = 160
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.01
    ema: float = 0.998
    seed: int = 0
    max_steps: int = 1_000_000
    log_seconds: float = 10.0
    held_out: int = 24
    """Clips to measure on while training; 0 for none."""
    held_out_seconds: float = 60.0
    device: str = "cuda"
    captured: bool = True


def mask_loss(model: Sam2VideoModel, batch: Batch) -> Tensor:
    """Cross entropy and Dice of the masks, and the two beliefs: in the mask's IoU and in the person's presence."""
    device = batch.pixels_BFCHW.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        said = unroll(model, batch.pixels_BFCHW, batch.points_BN2, batch.labels_BN, batch.time_BF)
    target = batch.target_BFHW
    logits = F.interpolate(said.logits_BFHW.float(), size=target.shape[-2:], mode="bilinear", align_corners=False)
    weight = (batch.weight_B / batch.weight_B.sum().clamp(min=1))[:, None] / target.shape[1]
    area = target.sum(dim=(-2, -1))
    there = (area > 8).float()
    wrong = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=(-2, -1))
    likely = logits.sigmoid()
    dice = 1 - (2 * (likely * target).sum(dim=(-2, -1)) + 1) / (likely.sum(dim=(-2, -1)) + area + 1)
    presence = F.binary_cross_entropy_with_logits(said.presence_BF, there, reduction="none")
    with torch.no_grad():
        found, true = logits > 0, target > 0.5
        overlap = (found & true).sum(dim=(-2, -1)) / (found | true).sum(dim=(-2, -1)).clamp(min=1)
    belief = (said.iou_BF - overlap).abs()
    return (weight * (5 * wrong + there * (dice + 0.05 * belief) + 0.1 * presence)).sum()


def rate_at(progress: float, peak: float) -> float:
    """A short warm-up, then a cosine to a hundredth."""
    fall = 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)))
    return peak * min(1.0, progress / 0.02 + 0.02) * fall


class Training:
    """The model, its clips and its clock."""

    def __init__(self, model: Sam2VideoModel, pool: Pool, settings: Settings):
        torch.manual_seed(settings.seed)
        torch.backends.cudnn.benchmark = True
        self.settings = settings
        # In evaluation mode a prompted frame's memory is made of the finished mask, as when tracking.
        nn.Module.to(model, settings.device)
        self.model, side = model.eval(), picture_side(model)
        self.clips = TrackClips(pool, settings.frames, side, settings.device, settings.seed)
        self.held_out = HeldOut(settings.held_out, side, settings.device)
        self.start, self.steps = time.monotonic(), 0
        self.logged = self.measured_at = self.start

    def progress(self) -> float:
        """0 to 1, by the clock or by the steps, whichever is further."""
        spent = (time.monotonic() - self.start) / self.settings.seconds
        return max(spent, self.steps / self.settings.max_steps)

    def run(self) -> dict[str, float]:
        """Trains in place; the weights left are the moving average's. Returns what was spent and reached."""
        settings, loss = self.settings, float("nan")
        logger.info("%d clips, %d of them held out for measuring", self.clips.grow(), settings.held_out)
        for batch, frames, end in (
            (settings.single_batch, 1, settings.single_share),
            (settings.batch, settings.frames, 1.0),
        ):
            if self.progress() >= end:
                continue
            step = self._step(batch, frames)
            while (progress := self.progress()) < end:
                value = step(rate_at(progress, settings.learning_rate))
                self.steps += 1
                loss = self._log(step, value, frames, loss)
            if end == 1.0:
                step.apply_average()
            del step  # its memory is the next one's
        overlap = self.held_out.overlap(self.model)
        seconds = round(time.monotonic() - self.start, 1)
        return {"steps": self.steps, "seconds": seconds, "last_loss": loss, "held_out_iou_forward": overlap}

    def _step(self, batch: int, frames: int) -> GraphedStep:
        return GraphedStep(
            list(self.model.parameters()),
            lambda: mask_loss(self.model, self.clips.batch(batch, frames)),
            device=self.settings.device,
            weight_decay=self.settings.weight_decay,
            ema=self.settings.ema,
            captured=self.settings.captured,
        )

    def _log(self, step: GraphedStep, value: Tensor, frames: int, loss: float) -> float:
        now = time.monotonic()
        if now - self.logged < self.settings.log_seconds and self.steps > 1:
            return loss
        self.logged, loss = now, float(value)
        said = (
            f"step {self.steps}, {now - self.start:.0f} s: {frames} frames, loss {loss:.4f}, {self.clips.grow()} clips"
        )
        if now - self.measured_at > self.settings.held_out_seconds:
            self.measured_at = now
            average = deepcopy(self.model)
            for own, mean in zip(average.parameters(), step.mean, strict=True):
                own.data.copy_(mean)
            said += f", held-out IoU {self.held_out.overlap(average):.3f} (average weights)"
        logger.info("%s", said)
        return loss


def main() -> None:
    """Trains, then writes the model's folder, card and `measured.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    add_settings(parser, Settings())
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder, pool = options.pop("out"), Pool(options.pop("pool"))
    settings = Settings(**options)

    torch.manual_seed(settings.seed)
    size = TrackerSize()
    model = new_tracker(size)
    measured = Training(model, pool, settings).run()
    model.half().save_pretrained(folder)
    picture_preparation(size.image).save_pretrained(folder)
    (folder / "measured.json").write_text(json.dumps(measured, indent=1))
    name = torch.cuda.get_device_name() if settings.device == "cuda" else settings.device
    write_card(folder, name, sum(p.numel() for p in model.parameters()), measured)
    logger.info("%s", measured)


if __name__ == "__main__":
    main()
