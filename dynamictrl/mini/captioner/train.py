"""Trains the mini captioner on marionettes.

    python -m dynamictrl.mini.captioner.train --pool POOL --out FOLDER --seconds 330

A clip shows few frames at first and all of them in the second half of the time, which is cheaper and teaches the model
not to count on their number. Beside the words the vision tower learns, through a head that is thrown away, which
person each patch shows. Stops by the clock. What is held out is drawn while the training runs.

Shape suffixes: B clips, F frames, T pairs of frames, P patches, X values of a patch, A answer tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from dynamictrl.mini.captioner import frames, models
from dynamictrl.mini.captioner.batched import BatchedCaptioner
from dynamictrl.mini.captioner.card import model_card
from dynamictrl.mini.captioner.clips import LONGEST_ANSWER, REGIONS, CaptionedClips
from dynamictrl.mini.captioner.tokenizer import END, build_tokenizer, question, token_id
from dynamictrl.mini.captioner.wording import accuracy
from dynamictrl.mini.flags import add_settings
from dynamictrl.mini.graphed import GraphedStep
from dynamictrl.mini.stream import HEIGHT, HELD_OUT_SEED, WIDTH, Example, Pool, draw_example

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One training of the captioner; it ends by the clock or by the steps, whichever comes first."""

    seconds: float = 330.0
    """All told but for starting, compiling and measuring."""
    max_steps: int = 1_000_000
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    few_frames: int = 4
    """Shown at first."""
    few_share: float = 0.45
    """Of the time."""
    region_weight: float = 0.3
    """Of the loss on what patches show."""
    ema: float = 0.998
    seed: int = 0
    most_clips: int = 30_000
    """Held on the device, 1.04 MB each."""
    check_seconds: float = 60.0
    """Between measurements on held-out clips."""
    device: str = "cuda"
    compiled: bool = True
    captured: bool = True


class Trainee:
    """The model with what training and measuring it share."""

    def __init__(self, settings: Settings):
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.tokenizer: PreTrainedTokenizerFast = build_tokenizer()
        self.end = token_id(self.tokenizer, END)
        self.model: Any = models.captioner(self.tokenizer)
        self.model.to(settings.device)
        self.weights = dict(self.model.named_parameters())
        width = self.weights["model.visual.patch_embed.proj.weight"].shape[0]
        self.region_head = nn.Linear(width, REGIONS).to(settings.device)
        on_gpu = settings.device.startswith("cuda")
        self.dtype = torch.bfloat16 if on_gpu else torch.float32
        self.compiled = settings.compiled and on_gpu

    def batched(self, shown: int, *, compiled: bool) -> BatchedCaptioner:
        """The forward for `shown` frames of the mini size."""
        grid = (shown // models.PATCH_FRAMES, HEIGHT // models.PATCH, WIDTH // models.PATCH)
        video_tokens = grid[0] * grid[1] * grid[2] // models.MERGE**2
        asked = question(self.tokenizer, video_tokens)
        return BatchedCaptioner(self.model, asked, grid, longest_answer=LONGEST_ANSWER, compiled=compiled)

    def cast(self) -> dict[str, Tensor]:
        """The weights as a pass uses them; they stay fp32 in the optimiser."""
        return {name: value.to(self.dtype) for name, value in self.weights.items()}

    def step(self, clips: CaptionedClips, shown: int) -> GraphedStep:
        """One training step on a random batch with `shown` frames a clip."""
        batched, settings = self.batched(shown, compiled=self.compiled), self.settings
        device = clips.video.device

        def loss() -> Tensor:
            clip_B = (torch.rand(settings.batch, device=device) * clips.count).long()
            with torch.no_grad():
                views = frames.random_views(clips.video, clip_B, shown)
                patches_BTPX = frames.patches(views.of(clips.video)).to(self.dtype)
                regions_NP = views.regions(clips.regions, clips.people_N).flatten(0, 1)
            answer_BA = clips.answers_N2A[clip_B, views.mirrored_B.long()]
            weights = self.cast()
            seen_NPD = batched.look(weights, patches_BTPX)
            logits_BAV = batched.say(weights, batched.merge(weights, seen_NPD), answer_BA[:, :-1])
            where_NPR = self.region_head(seen_NPD.float())
            where = F.cross_entropy(where_NPR.flatten(0, 1), regions_NP.flatten())
            return answer_loss(logits_BAV, answer_BA, self.end) + settings.region_weight * where

        return GraphedStep(
            [*self.weights.values(), *self.region_head.parameters()],
            loss,
            device=settings.device,
            weight_decay=settings.weight_decay,
            ema=settings.ema,
            captured=settings.captured,
        )

    @torch.no_grad()
    def measure(self, examples: list[Example], batch: int = 32) -> dict[str, float]:
        """Accuracy on clips as `Qwen2VLCaptioner` would show them, by greedy answers."""
        batched, said = self.batched(models.FRAMES, compiled=False), []
        for start in range(0, len(examples), batch):
            videos = torch.stack([torch.from_numpy(e.video) for e in examples[start : start + batch]])
            shown = videos[:, frames.chosen_frames(videos.shape[1], models.FRAMES)].to(self.settings.device)
            patches_BTPX = frames.patches(shown.float()).to(self.dtype)
            ids_BA = batched.answer(self.cast(), patches_BTPX, LONGEST_ANSWER, self.end)
            said += self.tokenizer.batch_decode(ids_BA, skip_special_tokens=True)
        logger.info("such as: %s", said[0])
        return accuracy(said, [example.attributes for example in examples])


def answer_loss(logits_BAV: Tensor, answer_BA: Tensor, end: int) -> Tensor:
    """Mean cross-entropy over the tokens of the answers and one end each; what pads them counts for nothing."""
    ended_BA = (answer_BA == end).cumsum(dim=1) > 1
    loss = F.cross_entropy(logits_BAV.float().flatten(0, 1), answer_BA.flatten(), reduction="none")
    return (loss * ~ended_BA.flatten()).sum() / (~ended_BA).sum()


def rate_at(progress: float, step: int, peak: float) -> float:
    """A cosine to a hundredth, under two hundred steps of warm-up for each new optimiser."""
    return peak * min(1.0, (step + 1) / 200) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0))))


class HeldOut:
    """Clips of the held-out seed, drawn by worker processes meanwhile."""

    def __init__(self, count: int, workers: int):
        self._workers = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        self._drawn: list[Future[Example]] = [
            self._workers.submit(draw_example, HELD_OUT_SEED, index) for index in range(count)
        ]

    def ready(self, most: int) -> list[Example]:
        """Those of the first `most` that are drawn."""
        return [future.result() for future in self._drawn[:most] if future.done()]

    def all(self) -> list[Example]:
        """Waits for the rest."""
        examples = [future.result() for future in self._drawn]
        self._workers.shutdown()
        return examples


def train(trainee: Trainee, pool: Pool, held_out: HeldOut) -> dict[str, Any]:
    """Trains in place; the weights left are the moving average's. Returns what was spent."""
    settings = trainee.settings
    # What cannot be compiled runs as it stands: slower, but a lent GPU's time is not lost.
    torch._dynamo.config.suppress_errors = True
    clips = CaptionedClips(pool, trainee.tokenizer, settings.device, settings.most_clips)
    clips.grow(least=settings.batch)
    spent, steps, seconds = time.monotonic(), 0, 0.0
    next_check = settings.check_seconds
    for shown, until in ((settings.few_frames, settings.few_share), (models.FRAMES, 1.0)):
        step = trainee.step(clips, shown)
        logger.info("%d frames, from %.0f s on, ready after %.0f s", shown, seconds, time.monotonic() - spent)
        clips.keep_growing()
        before, start, recent, first = seconds, time.monotonic(), [], steps
        while (progress := max(seconds / settings.seconds, steps / settings.max_steps)) < until:
            recent.append(step(rate_at(progress, steps - first, settings.learning_rate)).clone())
            steps += 1
            if steps % 50 == 0 or settings.device == "cpu":
                # Reading the loss waits for the GPU, so that the clock tells the truth.
                loss, recent = float(torch.stack(recent).mean()), []
                if steps % 200 == 0 or settings.device == "cpu":
                    logger.info("step %d, %.0f s: loss %.4f, %d clips", steps, seconds, loss, clips.available)
                if seconds > next_check:
                    next_check += settings.check_seconds
                    _report(trainee, held_out)
            seconds = before + time.monotonic() - start
        clips.stop()
        if until == 1.0:
            step.apply_average()
        del step  # its memory is the next one's
    return {"steps": steps, "seconds": round(seconds, 1), "clips": clips.available}


def _report(trainee: Trainee, held_out: HeldOut) -> None:
    if examples := held_out.ready(64):
        shares = trainee.measure(examples)
        logger.info("held out: %s", {name: round(share, 3) for name, share in shares.items()})


def main() -> None:
    """Trains, measures on held-out clips with the weights as shipped, writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--held-out", type=int, default=256, help="clips to measure on")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw the held-out clips")
    add_settings(parser, Settings())
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder, pool = options.pop("out"), Pool(options.pop("pool"))
    held_out = HeldOut(options.pop("held_out"), options.pop("workers"))
    settings = Settings(**options)

    trainee = Trainee(settings)
    record: dict[str, Any] = {"settings": asdict(settings), **train(trainee, pool, held_out)}
    with torch.no_grad():
        for value in trainee.weights.values():
            value.copy_(value.half().float())
    trainee.dtype = torch.float32  # measured as shipped: fp16 weights, computed in fp32
    examples = held_out.all()
    record["held_out"] = {"clips": len(examples), **trainee.measure(examples)} if examples else {}
    models.save(folder, trainee.model, trainee.tokenizer, model_card(record, len(trainee.tokenizer)))
    (folder / "measured.json").write_text(json.dumps(record, indent=1) + "\n")
    logger.info("%s", record)


if __name__ == "__main__":
    main()
