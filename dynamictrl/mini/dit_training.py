"""One loop for the mini family's DiTs, with and without the pose; noise, target and loss are `objective`'s.

Shape suffixes: B batch, F latent frames, C channels, H W size, L text tokens.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import T5EncoderModel

from dynamictrl import objective
from dynamictrl.latents import pad_front
from dynamictrl.mini.graphed import GraphedStep
from dynamictrl.mini.latent_pool import BACKGROUND, CLOTHES_ONLY, LatentPool
from dynamictrl.mini.ranks import Ranks
from dynamictrl.mini.tiny import cogvideox_scheduler
from dynamictrl.positions import rotary_positions
from dynamictrl.transformer import DynamiCtrlTransformer3DModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One training of a DiT; it ends by the clock or by the steps, whichever comes first."""

    seconds: float = 240.0
    """Of training proper; compiling comes before."""
    max_steps: int = 1_000_000
    batch: int = 128
    """On each GPU."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    caption_dropout: float = 0.1
    image_dropout: float = 0.05
    other_reference: float = 0.3
    """Share of samples whose reference image is some other frame of the clip than the first."""
    masked_reference: float = 0.25
    """Share of samples whose reference image lacks its background, or its clothes, half and half."""
    ema: float = 0.999
    report: int = 500
    """Steps between two lines of the log, each the mean loss since the last."""
    seed: int = 0
    device: str = "cuda"
    compiled: bool = True
    captured: bool = True


def draw_batch(pool: LatentPool, settings: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Video, reference (zeros but for the first latent frame) and pose latents, and token ids of random clips."""
    batch, device = settings.batch, pool.video_NFCHW.device
    index_B = torch.randint(len(pool), (batch,), device=device)
    video_BFCHW = pool.video_NFCHW[index_B].float()
    other_B = torch.rand(batch, device=device) < settings.other_reference
    variant_B = torch.randint(2, (batch,), device=device) + 2 * other_B
    masked_B = torch.rand(batch, device=device)
    variant_B = torch.where(masked_B < settings.masked_reference, CLOTHES_ONLY, variant_B)
    variant_B = torch.where(masked_B < settings.masked_reference / 2, BACKGROUND, variant_B)
    kept_B = (torch.rand(batch, device=device) >= settings.image_dropout).float()
    first_BFCHW = (pool.reference_NVCHW[index_B, variant_B].float() * kept_B[:, None, None, None])[:, None]
    image_BFCHW = torch.cat([first_BFCHW, torch.zeros_like(video_BFCHW[:, 1:])], dim=1)
    unsaid_B = torch.rand(batch, device=device) < settings.caption_dropout
    tokens_BL = torch.where(unsaid_B[:, None], pool.nothing_L, pool.tokens_NL[index_B])
    return video_BFCHW, image_BFCHW, pool.pose_NFCHW[index_B].float(), tokens_BL


def spread_timesteps(count: int, batch: int, device: torch.device) -> Tensor:
    """Uniform timesteps, one from each of `batch` equal parts: the same mean loss with less noise in it."""
    u_B = (torch.rand((), device=device) + torch.arange(batch, device=device) / batch) % 1.0
    return (u_B * count).long().clamp(max=count - 1)


class Denoising:
    """The loss of a batch, with all that is constant kept on the device: a CUDA graph must not wait for the host."""

    def __init__(self, transformer: DynamiCtrlTransformer3DModel, text_encoder: T5EncoderModel, pool: LatentPool):
        self.transformer, self.text_encoder = transformer, text_encoder
        self.device = pool.video_NFCHW.device
        config, (frames, _, height, width) = transformer.config, pool.video_NFCHW.shape[1:]
        self.patch_size_t = config["patch_size_t"]
        frames += -frames % (self.patch_size_t or 1)
        self.rotary = rotary_positions(config, frames, height, width, self.device)
        self.ofs = objective.ofs_for(config, self.device)
        schedule = objective.Schedule.from_scheduler(cogvideox_scheduler())
        self.schedule = objective.Schedule(schedule.signal.to(self.device), schedule.noise.to(self.device))

    def loss(
        self, video_BFCHW: Tensor, image_BFCHW: Tensor, pose_BFCHW: Tensor, tokens_BL: Tensor, timesteps_B: Tensor
    ) -> Tensor:
        """The loss of each sample [B], as `objective.training_loss` computes it."""
        video, image, pose = (pad_front(x, self.patch_size_t) for x in (video_BFCHW, image_BFCHW, pose_BFCHW))
        noise = torch.randn_like(video)
        noisy = objective.add_noise(self.schedule, video, noise, timesteps_B)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda", cache_enabled=False):
            predicted = self.transformer(
                hidden_states=torch.cat([noisy, image], dim=2),
                encoder_hidden_states=self.text_encoder(tokens_BL)[0],
                timestep=timesteps_B,
                control_hidden_states=pose,
                ofs=self.ofs,
                image_rotary_emb=self.rotary,
                return_dict=False,
            )[0]
        return objective.velocity_loss(predicted, objective.velocity(self.schedule, video, noise, timesteps_B))


def train(
    transformer: DynamiCtrlTransformer3DModel,
    text_encoder: T5EncoderModel,
    pool: LatentPool,
    settings: Settings,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Trains in place whatever requires a gradient; the weights left are the moving average's.

    Each rank has a pool of its own.
    """
    ranks = ranks or Ranks(0, 1, settings.device)
    torch.manual_seed(settings.seed + ranks.rank)
    modules: list[nn.Module] = [transformer, text_encoder]
    for module in modules:
        module.to(ranks.device).eval()
    ranks.same_start(modules)
    if settings.compiled:
        for block in transformer.transformer_blocks:
            block.compile()
    denoising = Denoising(transformer, text_encoder, pool)

    def random_loss() -> Tensor:
        timesteps_B = spread_timesteps(denoising.schedule.num_timesteps, settings.batch, denoising.device)
        return denoising.loss(*draw_batch(pool, settings), timesteps_B).mean()

    step = GraphedStep(
        [p for module in modules for p in module.parameters() if p.requires_grad],
        random_loss,
        device=ranks.device,
        weight_decay=settings.weight_decay,
        ema=settings.ema,
        captured=settings.captured,
    )
    spent = _run(step, settings, ranks)
    step.apply_average()
    return spent


def _run(step: GraphedStep, settings: Settings, ranks: Ranks) -> dict[str, float]:
    start, count, progress, averaging = time.monotonic(), 0, 0.0, False
    recent: list[Tensor] = []
    while progress < 1:
        recent.append(step(rate_at(progress, count, settings.learning_rate)).clone())
        count += 1
        if count % 20 == 0 or count >= settings.max_steps:
            recent[-1].item()  # waits for the GPU, so that the clock tells the truth
            progress = ranks.agree(max((time.monotonic() - start) / settings.seconds, count / settings.max_steps))
        if count % settings.report == 0:
            mean, recent = float(torch.stack(recent).mean()), []
            logger.info("step %d, %.0f s: loss %.4f", count, time.monotonic() - start, mean)
        if not averaging and progress > 0.5:
            averaging = True
            step.restart_average()
    return {"steps": count, "seconds": round(time.monotonic() - start, 1), "gpus": ranks.count}


def rate_at(progress: float, step: int, peak: float) -> float:
    """A hundred steps of warm-up, then a cosine to a fiftieth."""
    return peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0))))
