"""Trains the mini family's video VAE on marionettes and on drawings of their poses.

    python -m dynamictrl.mini.train_vae --pool POOL --out FOLDER --seconds 300

Three quarters of the batch is crops of clips, a quarter crops of pose drawings: the same VAE encodes both (paper,
section 3.1). The last fifth of the time sees whole pictures, because group normalisation looks at a whole chunk.
Stops by the clock, so that a lent GPU's minutes are known beforehand.

Shape suffixes: B batch, C channels, F frames, H W pixels.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn

from dynamictrl.mini import models
from dynamictrl.mini.fast_norm import fast_spatial_norm
from dynamictrl.mini.flags import add_settings
from dynamictrl.mini.graphed import GraphedStep
from dynamictrl.mini.stream import HELD_OUT_SEED, Pool, draw_example

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One training of the VAE."""

    seconds: float = 300.0
    batch: int = 64
    learning_rate: float = 2e-3
    crop: int = 96
    """Pixels, until whole pictures come."""
    frames: int = 9
    whole_share: float = 0.2
    """The last part of the time, with whole pictures (a sixth of the batch, twice the frames less one)."""
    pose_share: float = 0.25
    kl_weight: float = 2e-4
    """On the mean over latents, against a reconstruction loss that is a mean over pixels in [-1, 1]."""
    edge_weight: float = 0.5
    ema: float = 0.998
    seed: int = 0
    max_steps: int = 1_000_000
    device: str = "cuda"
    captured: bool = True


class Autoencoding(nn.Module):
    """Encode, sample, decode, as one call, so that it can run under cast weights."""

    def __init__(self, vae: AutoencoderKLCogVideoX):
        super().__init__()
        self.vae = vae

    def forward(self, pixels_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction, and the mean KL divergence from a unit Gaussian."""
        posterior = self.vae.encode(pixels_BCFHW).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return self.vae.decode(posterior.sample()).sample, kl


class Clips:
    """The pool's complete clips on the training device; `grow` takes up those that workers finished since."""

    def __init__(self, pool: Pool, device: str):
        self.pool = pool
        self.available = 0
        shape = (pool.count, *pool.video.shape[1:])
        self.video = torch.empty(shape, dtype=torch.uint8, device=device)
        self.pose = torch.empty(shape, dtype=torch.uint8, device=device)
        self.count = torch.zeros((), device=device)
        """As `available`, where a CUDA graph sees it change."""

    def grow(self) -> int:
        """How many clips can be drawn from; waits for the first."""
        while not len(ready := self.pool.ready()) or ready[0]:
            time.sleep(1.0)
        # Workers fill from the front in step, so the complete prefix is nearly all there is.
        gaps = np.flatnonzero(ready != np.arange(len(ready)))
        prefix = int(gaps[0]) if len(gaps) else len(ready)
        for start in range(self.available, prefix, 64):
            part = slice(start, min(start + 64, prefix))
            self.video[part] = torch.from_numpy(self.pool.video[part].copy()).to(self.video.device)
            self.pose[part] = torch.from_numpy(self.pool.pose[part].copy()).to(self.video.device)
        self.available = prefix
        self.count.fill_(prefix)
        return prefix

    def crops(self, batch: int, frames: int, height: int, width: int, pose_share: float) -> Tensor:
        """Random parts of random clips, [B, C, F, H, W] in [-1, 1], mirrored and reversed in time at random."""
        poses = round(batch * pose_share)
        parts = [self._parts(self.pose, poses, (frames, height, width))] if poses else []
        parts.append(self._parts(self.video, batch - poses, (frames, height, width)))
        return torch.cat(parts).permute(0, 4, 1, 2, 3).float() / 127.5 - 1

    def _parts(self, source: Tensor, count: int, size: tuple[int, int, int]) -> Tensor:
        device = source.device
        clip = (torch.rand(count, device=device) * self.count).long()
        index = [clip.view(-1, 1, 1, 1)]
        for axis, (length, total) in enumerate(zip(size, source.shape[1:4], strict=True)):
            start = (torch.rand(count, 1, device=device) * (total - length + 1)).long()
            along = torch.arange(length, device=device)[None]
            if axis != 1:  # upside down is no picture
                along = torch.where(torch.rand(count, 1, device=device) < 0.5, along, length - 1 - along)
            shape = [count, 1, 1, 1]
            shape[axis + 1] = length
            index.append((start + along).view(shape))
        return source[tuple(index)]


def reconstruction_loss(output_BCFHW: Tensor, target_BCFHW: Tensor, edge_weight: float) -> Tensor:
    """Absolute and squared error, and the absolute error of differences between neighbours (thin limbs, hands)."""
    error = output_BCFHW.float() - target_BCFHW
    edges = sum((error.diff(dim=axis).abs().mean() for axis in (-1, -2)), start=error.new_zeros(()))
    return error.abs().mean() + error.square().mean() + edge_weight * edges


def progress_of(start: float, step: int, settings: Settings) -> float:
    """0 to 1, by the clock or by the steps, whichever is further."""
    return max((time.monotonic() - start) / settings.seconds, step / settings.max_steps)


def rate_at(progress: float, peak: float) -> float:
    """A short warm-up, then a cosine to a hundredth."""
    return (
        peak * min(1.0, progress / 0.02 + 0.05) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0))))
    )


def train(vae: AutoencoderKLCogVideoX, pool: Pool, settings: Settings) -> dict[str, float]:
    """Trains in place; the weights left are the moving average's. Returns what was spent."""
    torch.manual_seed(settings.seed)
    torch.backends.cudnn.benchmark = True
    module = Autoencoding(vae).to(settings.device).train()
    clips, start, steps = Clips(pool, settings.device), time.monotonic(), 0
    clips.grow()
    height, width = clips.video.shape[2:4]
    parts = (settings.batch, settings.frames, min(settings.crop, height), min(settings.crop, width))
    whole = (max(1, settings.batch // 6), 2 * settings.frames - 1, height, width)
    with fast_spatial_norm():
        for shape, end in ((parts, 1 - settings.whole_share), (whole, 1.0)):
            step = _step(module, clips, shape, settings)
            while (progress := progress_of(start, steps, settings)) < end:
                loss = step(rate_at(progress, settings.learning_rate))
                steps += 1
                if steps % 50 == 0:
                    seconds = time.monotonic() - start
                    logger.info("step %d, %.0f s: loss %.4f, %d clips", steps, seconds, float(loss), clips.grow())
            if end == 1.0:
                step.apply_average()
            del step  # its memory is the next one's
    vae.eval()
    return {"steps": steps, "seconds": round(time.monotonic() - start, 1)}


def _step(module: Autoencoding, clips: Clips, shape: tuple[int, int, int, int], settings: Settings) -> GraphedStep:
    dtype = torch.bfloat16 if settings.device.startswith("cuda") else torch.float32

    def loss() -> Tensor:
        pixels_BCFHW = clips.crops(*shape, settings.pose_share)
        # Weights stay fp32 in the optimiser and are cast for the pass: half the memory traffic of autocast, whose
        # normalisations return fp32.
        cast = {name: value.to(dtype) for name, value in module.named_parameters()}
        output_BCFHW, kl = torch.func.functional_call(module, cast, (pixels_BCFHW.to(dtype),))
        return reconstruction_loss(output_BCFHW, pixels_BCFHW, settings.edge_weight) + settings.kl_weight * kl

    return GraphedStep(
        list(module.parameters()),
        loss,
        device=settings.device,
        weight_decay=1e-4,
        ema=settings.ema,
        captured=settings.captured,
    )


@torch.no_grad()
def psnr(vae: AutoencoderKLCogVideoX, clips_uint8: np.ndarray, device: str) -> float:
    """Mean PSNR in dB of whole clips [N, F, H, W, 3] through the VAE's mean latents, per clip and then averaged."""
    values = []
    for clip in clips_uint8:
        pixels_BCFHW = torch.from_numpy(clip).to(device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        output_BCFHW = vae.decode(vae.encode(pixels_BCFHW).latent_dist.mean).sample.clamp(-1, 1)
        error = F.mse_loss(output_BCFHW * 127.5, pixels_BCFHW * 127.5)
        values.append(10 * math.log10(255**2 / max(float(error), 1e-9)))
    return float(np.mean(values))


@torch.no_grad()
def scaling_factor(vae: AutoencoderKLCogVideoX, pool: Pool, device: str, clips: int = 48) -> float:
    """One over the standard deviation of the latents of clips, as diffusers defines it."""
    latents = []
    for index in pool.ready()[:clips]:
        pixels_BCFHW = torch.from_numpy(np.array(pool.video[index])).to(device).permute(3, 0, 1, 2)[None] / 127.5 - 1
        latents.append(vae.encode(pixels_BCFHW).latent_dist.sample())
    return float(1 / torch.cat(latents).std())


def held_out(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Videos and pose drawings [N, F, H, W, 3] that no trainer draws."""
    examples = [draw_example(HELD_OUT_SEED, index) for index in range(count)]
    return np.stack([e.video for e in examples]), np.stack([e.pose for e in examples])


def main() -> None:
    """Trains, measures on held-out clips, writes the VAE's folder and `measured.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--held-out", type=int, default=32, help="clips to measure on")
    add_settings(parser, Settings())
    parser.add_argument("--start-from", type=Path, help="a VAE folder to train further")
    options = vars(parser.parse_args())
    start_from: Path | None = options.pop("start_from")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder, pool, measured_on = options.pop("out"), Pool(options.pop("pool")), options.pop("held_out")
    settings = Settings(**options)

    vae = models.vae()
    if start_from is not None:
        vae = AutoencoderKLCogVideoX.from_pretrained(start_from, torch_dtype=torch.float32)
    measured = train(vae, pool, settings)
    vae.register_to_config(scaling_factor=round(scaling_factor(vae, pool, settings.device), 4))
    vae.half().save_pretrained(folder)
    measured["scaling_factor"] = vae.config["scaling_factor"]
    if measured_on:
        videos, poses = held_out(measured_on)
        vae.float()  # measured as shipped: fp16 weights, computed in fp32
        measured["psnr_clips_db"] = psnr(vae, videos, settings.device)
        measured["psnr_poses_db"] = psnr(vae, poses, settings.device)
    (folder / "measured.json").write_text(json.dumps(measured, indent=1))
    logger.info("%s", measured)


if __name__ == "__main__":
    main()
