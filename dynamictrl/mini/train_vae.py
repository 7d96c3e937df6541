"""Trains the mini family's video VAE on marionettes and on drawings of their poses.

    torchrun --nproc-per-node 4 -m dynamictrl.mini.train_vae --pool POOL --out FOLDER --seconds 300

Three quarters of the batch is crops of clips, a quarter crops of pose drawings: the same VAE encodes both (paper,
section 3.1). The last part of the time sees whole pictures, because group normalisation looks at a whole chunk.
Stops by the clock, so that a lent GPU's minutes are known beforehand.

The channels of the latents, of clips and of drawings each, are held at mean 0 and covariance 1 (`whiteness_loss`). A
diffusion model learns from what stands out of unit noise: in the first VAE of this family, without that term, a pose
was a hundredth of its latents' variance and motion a fiftieth, and the DiTs learnt backgrounds.

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
from dynamictrl.mini.latent_pool import to_pixels
from dynamictrl.mini.latent_scale import whiten, whiteness_loss
from dynamictrl.mini.ranks import Ranks, join
from dynamictrl.mini.stream import HELD_OUT_SEED, Pool, draw_example

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One training of the VAE."""

    seconds: float = 300.0
    batch: int = 8
    """On each GPU."""
    learning_rate: float = 1.5e-3
    crop: int = 96
    """Pixels, until whole pictures come."""
    frames: int = 9
    whole_share: float = 0.2
    """The last part of the time, with whole pictures (a quarter of the batch, twice the frames less one)."""
    pose_share: float = 0.25
    kl_weight: float = 5e-4
    """On the mean over latents, against a reconstruction loss that is a mean over pixels in [-1, 1]."""
    white_weight: float = 0.02
    square_weight: float = 4.0
    edge_weight: float = 0.5
    ema: float = 0.998
    seed: int = 0
    max_steps: int = 1_000_000
    device: str = "cuda"
    captured: bool = True
    most_clips: int = 2500
    """So many of the pool's clips are taken onto the device; each rank takes others."""


class Autoencoding(nn.Module):
    """Encode, sample, decode, as one call, so that it can run under cast weights."""

    def __init__(self, vae: AutoencoderKLCogVideoX):
        super().__init__()
        self.vae = vae

    def forward(self, pixels_BCFHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The reconstruction, the posterior's means and its mean KL divergence from a unit Gaussian."""
        posterior = self.vae.encode(pixels_BCFHW).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return self.vae.decode(posterior.sample()).sample, mean, kl


class Clips:
    """The pool's complete clips on the training device; `grow` takes up those that workers finished since."""

    def __init__(self, pool: Pool, device: str, *, most: int | None = None, share: tuple[int, int] = (0, 1)):
        """`most` clips at the most, of several ranks' the share (rank, ranks)."""
        self.pool, self.share = pool, share
        self.available = 0
        self.most = min(most or pool.count, pool.count // share[1])
        shape = (self.most, *pool.video.shape[1:])
        self.video = torch.empty(shape, dtype=torch.uint8, device=device)
        self.pose = torch.empty(shape, dtype=torch.uint8, device=device)
        self.count = torch.zeros((), device=device)
        """As `available`, where a CUDA graph sees it change."""

    def grow(self) -> int:
        """How many clips can be drawn from; waits for the first."""
        while (prefix := self._complete()) == 0:
            time.sleep(1.0)
        for start in range(self.available, prefix, 64):
            end = min(start + 64, prefix)
            taken = slice(self.share[0] + start * self.share[1], self.share[0] + end * self.share[1], self.share[1])
            self.video[start:end] = torch.from_numpy(self.pool.video[taken].copy()).to(self.video.device)
            self.pose[start:end] = torch.from_numpy(self.pool.pose[taken].copy()).to(self.video.device)
        self.available = prefix
        self.count.fill_(prefix)
        return prefix

    def _complete(self) -> int:
        return min(max(0, self.pool.complete() - self.share[0] + self.share[1] - 1) // self.share[1], self.most)

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


def reconstruction_loss(
    output_BCFHW: Tensor, target_BCFHW: Tensor, *, square_weight: float = 1.0, edge_weight: float = 0.5
) -> Tensor:
    """Absolute and squared error, and the absolute error of differences between neighbours (thin limbs, hands)."""
    error = output_BCFHW.float() - target_BCFHW
    edges = sum((error.diff(dim=axis).abs().mean() for axis in (-1, -2)), start=error.new_zeros(()))
    return error.abs().mean() + square_weight * error.square().mean() + edge_weight * edges


def progress_of(start: float, step: int, settings: Settings) -> float:
    """0 to 1, by the clock or by the steps, whichever is further."""
    return max((time.monotonic() - start) / settings.seconds, step / settings.max_steps)


def rate_at(progress: float, peak: float) -> float:
    """A short warm-up, then a cosine to a hundredth."""
    return (
        peak * min(1.0, progress / 0.02 + 0.05) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0))))
    )


def train(vae: AutoencoderKLCogVideoX, pool: Pool, settings: Settings, ranks: Ranks | None = None) -> dict[str, float]:
    """Trains in place; the weights left are the moving average's. Returns what was spent."""
    ranks = ranks or Ranks(0, 1, settings.device)
    torch.manual_seed(settings.seed + ranks.rank)
    torch.backends.cudnn.benchmark = True
    module = Autoencoding(vae).to(ranks.device).train()
    ranks.same_start([module])
    clips = Clips(pool, ranks.device, most=settings.most_clips, share=(ranks.rank, ranks.count))
    clips.grow()
    start, steps, progress = time.monotonic(), 0, 0.0
    height, width = clips.video.shape[2:4]
    parts = (settings.batch, settings.frames, min(settings.crop, height), min(settings.crop, width))
    whole = (max(1, settings.batch // 4), 2 * settings.frames - 1, height, width)
    with fast_spatial_norm():
        for shape, end in ((parts, 1 - settings.whole_share), (whole, 1.0)):
            if progress >= end:
                continue
            step = _step(module, clips, shape, settings, ranks)
            while progress < end:
                loss = step(rate_at(progress, settings.learning_rate))
                steps += 1
                if steps % 20 == 0 or steps >= settings.max_steps:
                    torch.cuda.synchronize() if clips.video.is_cuda else None
                    progress = ranks.agree(progress_of(start, steps, settings))
                if steps % 100 == 0:
                    seconds = time.monotonic() - start
                    logger.info("step %d, %.0f s: loss %.4f, %d clips", steps, seconds, float(loss), clips.grow())
            step.apply_average()  # each part ends on its average; the next goes on from there
            del step  # its memory is the next one's
    vae.eval()
    return {"steps": steps, "seconds": round(time.monotonic() - start, 1), "gpus": ranks.count}


def _step(
    module: Autoencoding, clips: Clips, shape: tuple[int, int, int, int], settings: Settings, ranks: Ranks
) -> GraphedStep:
    dtype = torch.bfloat16 if ranks.device.startswith("cuda") else torch.float32
    poses = round(shape[0] * settings.pose_share)

    def loss() -> Tensor:
        pixels_BCFHW = clips.crops(*shape, settings.pose_share)
        # Weights stay fp32 in the optimiser and are cast for the pass: half the memory traffic of autocast, whose
        # normalisations return fp32.
        cast = {name: value.to(dtype) for name, value in module.named_parameters()}
        output_BCFHW, mean_BCFHW, kl = torch.func.functional_call(module, cast, (pixels_BCFHW.to(dtype),))
        white = whiteness_loss(mean_BCFHW[poses:]) + (whiteness_loss(mean_BCFHW[:poses]) if poses else 0)
        closeness = reconstruction_loss(
            output_BCFHW, pixels_BCFHW, square_weight=settings.square_weight, edge_weight=settings.edge_weight
        )
        return closeness + settings.kl_weight * kl + settings.white_weight * white

    return GraphedStep(
        list(module.parameters()),
        loss,
        device=ranks.device,
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


def _samples(pool: Pool, device: str, clips: int = 24) -> tuple[Tensor, Tensor]:
    """Some clips, and as many of their drawings as the loss sees: [N, C, F, H, W] in [-1, 1]."""
    while len(pool.ready()) < min(clips, pool.count):
        time.sleep(1.0)
    video, pose = (
        torch.from_numpy(np.stack([source[i] for i in pool.ready()[:count]])).to(device)
        for source, count in ((pool.video, clips), (pool.pose, clips // 3))
    )
    return to_pixels(video), to_pixels(pose)


@torch.no_grad()
def latent_figures(vae: AutoencoderKLCogVideoX, pool: Pool, device: str) -> dict[str, float]:
    """Standard deviations of the latents of clips and of drawings, and of the motion in them (against frame 0)."""
    video, pose = (
        torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(4)]) for pixels in _samples(pool, device)
    )
    return {
        "std_clips": float(video.std()),
        "std_poses": float(pose.std()),
        "motion_share": float((video[:, :, 1:] - video[:, :, :1]).square().mean() / video.var()),
        "mean_clips": float(video.mean(dim=(0, 2, 3, 4)).square().mean().sqrt()),
        "mean_poses": float(pose.mean(dim=(0, 2, 3, 4)).square().mean().sqrt()),
    }


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
    ranks = join(settings.device)

    vae = models.vae()
    if start_from is not None:
        vae = AutoencoderKLCogVideoX.from_pretrained(start_from, torch_dtype=torch.float32)
        nn.Module.to(vae, ranks.device)
        whiten(vae, torch.cat(_samples(pool, ranks.device)))
    measured = train(vae, pool, settings, ranks)
    ranks.leave()
    if not ranks.first:
        return
    figures = latent_figures(vae, pool, ranks.device)
    vae.register_to_config(scaling_factor=round(1 / figures["std_clips"], 4))
    measured |= figures
    vae.half().save_pretrained(folder)
    measured["scaling_factor"] = vae.config["scaling_factor"]
    if measured_on:
        videos, poses = held_out(measured_on)
        vae.float()  # measured as shipped: fp16 weights, computed in fp32
        measured["psnr_clips_db"] = psnr(vae, videos, ranks.device)
        measured["psnr_poses_db"] = psnr(vae, poses, ranks.device)
    (folder / "measured.json").write_text(json.dumps(measured, indent=1))
    logger.info("%s", measured)


if __name__ == "__main__":
    main()
