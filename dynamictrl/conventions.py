"""How a clip is prepared, sampled and decoded: our way, and the released code's (`compatibility="released"`).

Ours keeps frame i at pose i and gives as many frames as are asked for. The released way repeats what the published
inference computes, draw for draw, with its lag and its surplus frames; `docs/method.md` has both side by side. The
pipeline picks one per call: weights, loaded models and saved folders are the same either way.

Shape suffixes: B batch, F frames (of pixels or latents), C channels, H W size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dynamictrl import conditioning, long_videos
from dynamictrl import latents as latent_space
from dynamictrl.errors import ConfigError, InputError
from dynamictrl.geometry import FRAMES_PER_LATENT, consecutive_indices, cover_crop, latent_frames

if TYPE_CHECKING:
    from dynamictrl.animation import DynamiCtrlPipeline

Compatibility = Literal["none", "released"]


class Conventions:
    """Our way."""

    def plan(
        self, num_frames: int, config: dict[str, Any], window_frames: int | None, window_overlap: int | None
    ) -> long_videos.WindowPlan:
        """The latent frames that are denoised; `config` is the transformer's."""
        return long_videos.plan_windows(num_frames, config, window_frames, window_overlap)

    def poses(
        self, frames_FHWC: NDArray[np.uint8], plan: long_videos.WindowPlan, height: int, width: int
    ) -> NDArray[np.uint8]:
        """As many pose frames as the plan sees, in the size to render."""
        needed = FRAMES_PER_LATENT * (plan.total - 1) + 1
        return cover_crop(frames_FHWC[consecutive_indices(len(frames_FHWC), needed)], height, width)

    def reference(self, image: Image.Image, height: int, width: int) -> Tensor:
        """The reference image as pixels [1, 3, H, W] in [-1, 1]: aspect kept, what stands over is cut."""
        fitted = np.asarray(cover_crop(image.convert("RGB"), height, width))
        return conditioning.to_pixels(fitted[None])[:, :, 0]

    def image_latent_rule(self, folders: str) -> Any:  # noqa: ANN401 - latents.ImageLatentRule, checked there
        """How the reference's latent is scaled; `folders` is the model folder's own rule."""
        return folders

    def state_dtype(self, models: torch.dtype) -> torch.dtype:
        """In which precision noise is drawn and kept between steps; `models` is the transformer's."""
        return torch.float32

    def timesteps(self, scheduled: Tensor, num_inference_steps: int) -> Tensor:
        """The steps that are taken of those the scheduler has set."""
        # At 61, 103, 121 ... steps rounding gives the scheduler one timestep too many, -1.
        return scheduled[:num_inference_steps]

    def dynamic_scale(self, guidance_scale: float, step: int, timestep: float, steps: int) -> float:
        """Guidance that falls from 1 + scale to about 1 (CogVideoX's dynamic guidance), by the step's index."""
        return 1 + guidance_scale * (1 - math.cos(math.pi * ((steps - step) / steps) ** 5)) / 2

    def last_step(self, stepped: Tensor, clean: Tensor) -> Tensor:
        """What the last step leaves; `clean` is its prediction of the clean latents."""
        # Where 1000 does not divide by the steps, the schedulers would stop at timestep 0 with its noise still in.
        return clean

    def latents(self, latents_BFCHW: Tensor, num_frames: int) -> Tensor:
        """What `output_type="latent"` gives."""
        return latents_BFCHW[:, -latent_frames(num_frames) :]

    def pixels(
        self, vae: AutoencoderKLCogVideoX, latents_BFCHW: Tensor, plan: long_videos.WindowPlan, num_frames: int
    ) -> Iterator[Tensor]:
        """Float32 pixels BCFHW, about [-1, 1], in one piece, or in many for a clip of several windows."""
        if plan.count > 1:
            return (piece.cpu() for piece in long_videos.decode_in_pieces(vae, latents_BFCHW, num_frames))
        return iter([latent_space.decode(vae, latents_BFCHW, num_frames)])

    @contextmanager
    def applied(self, pipeline: DynamiCtrlPipeline) -> Iterator[None]:
        """Sets what of the pipeline's parts must be otherwise during a call, and sets it back."""
        yield


class Released(Conventions):
    """The published inference's way."""

    def plan(
        self, num_frames: int, config: dict[str, Any], window_frames: int | None, window_overlap: int | None
    ) -> long_videos.WindowPlan:
        if window_frames or window_overlap:
            raise InputError(
                "the released code renders a clip in one piece: leave window_frames and window_overlap out",
                param="window_frames",
            )
        count = latent_frames(num_frames)
        # On 1.5 an odd count is raised by asking for four more frames, whose latent is dropped again in front.
        count += latent_space.padding(count, config["patch_size_t"])
        return long_videos.WindowPlan((0,), count, count, 0)

    def poses(
        self, frames_FHWC: NDArray[np.uint8], plan: long_videos.WindowPlan, height: int, width: int
    ) -> NDArray[np.uint8]:
        given, needed = len(frames_FHWC), FRAMES_PER_LATENT * (plan.total - 1) + 1
        if given < needed:
            raise InputError(
                f"the released frame rule needs {needed} pose frames here and {given} are given: on a 1.5 base it "
                f"renders 8k + 5 frames (5, 13, ... 37) of as many poses, or 8k + 1 of four poses more; ask for "
                f"{max(5, given - (given - 5) % 8)} frames",
                code="bad_num_frames",
                param="num_frames",
            )
        frames = [Image.fromarray(frame) for frame in frames_FHWC[:needed]]
        return np.stack([np.asarray(frame.resize((width, height), Image.Resampling.LANCZOS)) for frame in frames])

    def reference(self, image: Image.Image, height: int, width: int) -> Tensor:
        stretched = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))
        # diffusers' own arithmetic, to its last bit.
        return 2 * torch.from_numpy(stretched.astype(np.float32) / 255).permute(2, 0, 1)[None] - 1

    def image_latent_rule(self, folders: str) -> str:
        return "unscaled"

    def state_dtype(self, models: torch.dtype) -> torch.dtype:
        return models

    def timesteps(self, scheduled: Tensor, num_inference_steps: int) -> Tensor:
        return scheduled

    def dynamic_scale(self, guidance_scale: float, step: int, timestep: float, steps: int) -> float:
        # The raw timestep stands where the step's index belongs (diffusers issue 9641): a wild wave.
        return super().dynamic_scale(guidance_scale, int(timestep), timestep, steps)

    def last_step(self, stepped: Tensor, clean: Tensor) -> Tensor:
        return stepped

    def latents(self, latents_BFCHW: Tensor, num_frames: int) -> Tensor:
        return latents_BFCHW

    def pixels(
        self, vae: AutoencoderKLCogVideoX, latents_BFCHW: Tensor, plan: long_videos.WindowPlan, num_frames: int
    ) -> Iterator[Tensor]:
        latents_BFCHW = latents_BFCHW[:, plan.total - latent_frames(num_frames) :]
        scaled_BCFHW = 1 / float(vae.config["scaling_factor"]) * latents_BFCHW.transpose(1, 2).to(vae.dtype)
        # An even count decodes to 4L frames, the first latent to four of them: the clip lags its poses by three.
        decoded_BCFHW = vae.decode(scaled_BCFHW).sample  # pyright: ignore[reportAttributeAccessIssue]
        return iter([decoded_BCFHW[:, :, :num_frames].float()])

    @contextmanager
    def applied(self, pipeline: DynamiCtrlPipeline) -> Iterator[None]:
        vae, scheduler = pipeline.vae, pipeline.scheduler
        before = (vae.use_tiling, vae.use_slicing)
        vae.use_slicing = True
        vae.use_tiling = before[0] or _tiles_add_up(vae)
        pipeline.scheduler = CogVideoXDPMScheduler.from_config(scheduler.config, timestep_spacing="trailing")
        try:
            yield
        finally:
            vae.use_tiling, vae.use_slicing = before
            pipeline.scheduler = scheduler


def _tiles_add_up(vae: AutoencoderKLCogVideoX) -> bool:
    """Whether diffusers' tiles, which overlap by a sixth and a fifth, join to the picture's size (CogVideoX's: yes)."""
    return vae.tile_latent_min_height % 6 == 0 and vae.tile_latent_min_width % 5 == 0


CONVENTIONS: dict[str, type[Conventions]] = {"none": Conventions, "released": Released}


def conventions_named(compatibility: str) -> Conventions:
    """The way that a call's `compatibility` names; ConfigError for another name."""
    if compatibility not in CONVENTIONS:
        raise ConfigError(
            f"compatibility is {compatibility!r}; it must be one of {', '.join(CONVENTIONS)}", param="compatibility"
        )
    return CONVENTIONS[compatibility]()


def advance(
    scheduler: CogVideoXDPMScheduler | CogVideoXDDIMScheduler,
    v: Tensor,
    i: int,
    timesteps: Tensor,
    latents: Tensor,
    previous_clean: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """One scheduler step: the next latents, and the clean prediction that DPM's next step looks back to."""
    if not isinstance(scheduler, CogVideoXDPMScheduler):
        stepped, clean = scheduler.step(v, timesteps[i], latents, return_dict=False)  # pyright: ignore[reportArgumentType]
        return stepped, clean
    stepped, clean = scheduler.step(
        v,
        previous_clean,  # pyright: ignore[reportArgumentType] - None on the first step
        timesteps[i],  # pyright: ignore[reportArgumentType]
        timesteps[i - 1] if i > 0 else None,  # pyright: ignore[reportArgumentType]
        latents,
        generator=generator,
        return_dict=False,
    )
    return stepped, clean
