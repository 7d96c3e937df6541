"""From a reference image, a pose video and a prompt to a clip: the diffusers pipeline."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DiffusionPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynamictrl import conditioning, long_videos, weights
from dynamictrl import latents as latent_space
from dynamictrl.acceleration import EXACT, Shortcuts
from dynamictrl.acceleration.float8_linear import multiplying_in_8_bits
from dynamictrl.acceleration.step_cache import StepCache
from dynamictrl.conventions import Compatibility, Conventions, advance, conventions_named
from dynamictrl.errors import InputError
from dynamictrl.geometry import check_num_frames, check_size
from dynamictrl.guidance import BothBranches
from dynamictrl.lora import LoraLoading
from dynamictrl.objective import ofs_for
from dynamictrl.positions import rotary_positions
from dynamictrl.transformer import DynamiCtrlTransformer3DModel

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
StepCallback = Callable[["DynamiCtrlPipeline", int, Tensor, dict[str, Tensor]], Mapping[str, Tensor]]


@dataclass
class DynamiCtrlPipelineOutput(BaseOutput):
    """The clips: one list of PIL images per clip ("pil"), or an array [clips, frames, height, width, 3] in [0, 1]
    ("np"), a tensor [clips, frames, 3, height, width] ("pt"), scaled latents BFCHW without padding ("latent")."""

    frames: Any


class DynamiCtrlPipeline(LoraLoading, DiffusionPipeline):
    """Animates the person of a reference image with the poses of a driving video.

    `pose_encoder`, where present, is a diffusers model that turns pose pixels BCFHW into the latents the transformer
    was trained with (the paper's expert-encoder ablation); without it the shared VAE does. `image_latent_rule` is saved
    with the folder, so that a model is run as it was trained (`latents.ImageLatentRule`). LoRA adapters are loaded and
    fused by diffusers' methods (`dynamictrl.lora`).
    """

    _optional_components = ["pose_encoder"]
    model_cpu_offload_seq = "text_encoder->pose_encoder->transformer->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds"]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: PreTrainedModel,
        vae: AutoencoderKLCogVideoX,
        transformer: DynamiCtrlTransformer3DModel,
        scheduler: CogVideoXDPMScheduler | CogVideoXDDIMScheduler,
        pose_encoder: torch.nn.Module | None = None,
        image_latent_rule: str = "base",
    ):
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            transformer=transformer,
            scheduler=scheduler,
            pose_encoder=pose_encoder,
        )
        self.register_to_config(image_latent_rule=image_latent_rule)
        self.video_processor = VideoProcessor(vae_scale_factor=8)
        self.guidance = BothBranches()
        """How both branches of guidance are computed; `guidance.SharedBranches` does it on two devices."""
        self._interrupt = False
        self.step_caches: list[StepCache] = []
        """Of the last call, one a window: which steps were computed; none where all were."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any):  # noqa: ANN401
        """Loads a model folder, a hub id, or one of the mini family (`mini/NAME`); CheckpointError if it cannot be had.

        A hub id is resolved to a local folder first: diffusers takes classes from outside its own package from local
        folders only. A transformer under its published class name is loaded as ours, strictly. `transformer` may name
        a folder or hub id too: a released masked model has its transformer alone, which goes with its base's folder.
        """
        folder = weights.resolve(os.fspath(pretrained_model_name_or_path))
        weights.check_index(folder)
        if isinstance(kwargs.get("transformer"), str | os.PathLike):
            types = {name: kwargs[name] for name in ("dtype", "torch_dtype") if name in kwargs}
            lent = weights.resolve(os.fspath(kwargs["transformer"]))
            kwargs["transformer"] = DynamiCtrlTransformer3DModel.from_pretrained(lent, **types)
        return super().from_pretrained(folder, **kwargs)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - diffusers' own shape
        """As diffusers', with the transformer's class named as ours whatever the folder calls it."""
        config = super().load_config(*args, **kwargs)
        index = config[0] if isinstance(config, tuple) else config
        if "transformer" in index:
            index["transformer"] = ["dynamictrl.transformer", "DynamiCtrlTransformer3DModel"]
        return config

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to stop denoising after that step."""
        return self._interrupt

    def check_inputs(
        self,
        image: Image.Image,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str],
        height: int,
        width: int,
        num_frames: int,
        num_inference_steps: int,
        num_videos_per_prompt: int,
        generator: torch.Generator | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Refuses what cannot be rendered before any weight is touched; InputError names the value and the way out."""
        check_size(height, width)
        check_num_frames(num_frames)
        if not isinstance(image, Image.Image):
            raise InputError(f"image is a {type(image).__name__}; it must be one PIL image", param="image")
        if not prompt and not isinstance(prompt, str):
            raise InputError("the list of prompts is empty; give one prompt at least, '' for none", param="prompt")
        if num_videos_per_prompt < 1:
            raise InputError(f"num_videos_per_prompt is {num_videos_per_prompt}; it must be 1 or more")
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type is {output_type!r}; it must be one of {', '.join(OUTPUT_TYPES)}")
        if isinstance(generator, (list, tuple)):
            raise InputError("one generator serves a call; for several seeds call once per seed", param="generator")
        if not isinstance(negative_prompt, str) and (isinstance(prompt, str) or len(negative_prompt) != len(prompt)):
            raise InputError("give one negative prompt for all, or a list with one for each prompt in a list")
        steps = self.scheduler.config["num_train_timesteps"]
        if not 1 <= num_inference_steps <= steps:
            raise InputError(
                f"num_inference_steps is {num_inference_steps}; it must lie in 1 to {steps}",
                param="num_inference_steps",
            )
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise InputError(f"callbacks can be given {self._callback_tensor_inputs}, not {sorted(unknown)}")

    def encode_prompt(
        self, prompt: Sequence[str], negative_prompt: Sequence[str], guided: bool, copies: int = 1
    ) -> Tensor:
        """Embeddings [B * copies, tokens, width]; when guided, the negative ones come first and double the batch."""
        texts = [*negative_prompt, *prompt] if guided else list(prompt)
        embeds = {text: self.embed_text(text) for text in dict.fromkeys(texts)}
        return torch.cat([embeds[text] for text in texts]).repeat_interleave(copies, dim=0)

    def embed_text(self, text: str) -> Tensor:
        """One text's embedding [1, tokens, width] in the transformer's type; alone, so that no neighbour rounds it."""
        length = self.transformer.config["max_text_seq_length"]
        # Under CPU offload the encoder is elsewhere until it runs: the device is the pipeline's to know.
        device = self._execution_device
        embeds = conditioning.encode_prompt(self.tokenizer, self.text_encoder, [text], length, device=device)
        return embeds.to(self.transformer.dtype)

    def prepare_latents(
        self,
        image: Image.Image,
        pose_frames: NDArray[np.uint8],
        clips: int,
        generator: torch.Generator | None,
        latents: Tensor | None,
        plan: long_videos.WindowPlan,
        way: Conventions,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Initial noise, one window's image latents and each one's pose latents, BFCHW, padded for the base.

        `pose_frames` is uint8 [F, H, W, 3] in the size to render. Draws in this order: image, poses, noise.
        """
        device = self._execution_device
        image_pixels = way.reference(image, *pose_frames.shape[1:3]).to(device)
        rule = way.image_latent_rule(self.config["image_latent_rule"])
        image_latents = conditioning.reference_latents(
            self.vae, image_pixels, plan.length, generator=generator, rule=rule, posterior=self.posterior
        )
        pose_latents = [
            self._encode_pose(conditioning.to_pixels(pose_frames[plan.frames(window)]).to(device), generator)
            for window in range(plan.count)
        ]
        patch_size_t = self.transformer.config["patch_size_t"]
        image_latents, *pose_latents = (
            latent_space.pad_front(x, patch_size_t).to(self.transformer.dtype).repeat(clips, 1, 1, 1, 1)
            for x in (image_latents, *pose_latents)
        )
        shape = (clips, plan.padding + plan.total, *image_latents.shape[2:])
        dtype = way.state_dtype(self.transformer.dtype)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif latents.shape != shape:
            raise InputError(
                f"latents has shape {tuple(latents.shape)}; this call needs {shape}",
                param="latents",
            )
        latents = latents[:, plan.noise_order()].to(device, dtype)
        return latents * self.scheduler.init_noise_sigma, image_latents, pose_latents

    def _encode_pose(self, pixels_BCFHW: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.pose_encoder is not None:
            return self.pose_encoder(pixels_BCFHW.to(self.transformer.dtype))
        return latent_space.encode(self.vae, pixels_BCFHW, generator=generator, posterior=self.posterior)

    def posterior(self, pixels_BCFHW: Tensor) -> DiagonalGaussianDistribution:
        """What the VAE makes of pixels, before anything is drawn from it: the same for every seed."""
        return latent_space.posterior(self.vae, pixels_BCFHW)

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image,
        pose_video: conditioning.Frames,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        window_frames: int | None = None,
        window_overlap: int | None = None,
        use_dynamic_cfg: bool = False,
        compatibility: Compatibility = "none",
        shortcuts: Shortcuts = EXACT,
    ) -> DynamiCtrlPipelineOutput | tuple[Any]:
        """One clip per prompt and copy, of exactly `num_frames` frames.

        `image` is fitted to height x width by a centred crop. `pose_video` is the drawn poses, uint8 [F, H, W, 3] or
        PIL images; its first `num_frames` are used, and it gives the size and the count where none is asked for.
        Guidance (classifier-free, above 1) is on the text alone: image and pose are in both halves. A clip longer than
        `window_frames` (the base's own length by default) is rendered in windows that share `window_overlap` frames
        (`long_videos.plan_windows`). `use_dynamic_cfg` lets guidance fall from step to step. `compatibility="released"`
        computes what the published inference does, its lag of three frames included (`conventions.Released`);
        `shortcuts` trade exactness for time (`acceleration`). Raises InputError for sizes that are no multiple of 16,
        counts other than 4k + 1, and too few poses.
        """
        way = conventions_named(compatibility)
        pose_frames = conditioning.as_frames(pose_video)
        height, width = height or int(pose_frames.shape[1]), width or int(pose_frames.shape[2])
        num_frames = num_frames or len(pose_frames)
        self.check_inputs(
            image, prompt, negative_prompt, height, width, num_frames, num_inference_steps, num_videos_per_prompt,
            generator, output_type, callback_on_step_end_tensor_inputs
        )  # fmt: skip
        plan = way.plan(num_frames, self.transformer.config, window_frames, window_overlap)
        pose_frames = way.poses(pose_frames, plan, height, width)
        prompts, negatives = _listed(prompt, negative_prompt)
        self._interrupt = False
        try:
            with way.applied(self), multiplying_in_8_bits(self.transformer, shortcuts.float8):
                self.step_caches = shortcuts.step_caches(plan.count, num_inference_steps, self.guidance.group)
                prompt_embeds = self.encode_prompt(prompts, negatives, guidance_scale > 1, num_videos_per_prompt)
                clips = len(prompts) * num_videos_per_prompt
                prepared = self.prepare_latents(image, pose_frames, clips, generator, latents, plan, way)
                latents = self._denoise(
                    plan,
                    way,
                    *prepared,
                    prompt_embeds,
                    num_inference_steps,
                    guidance_scale,
                    use_dynamic_cfg,
                    generator,
                    callback_on_step_end,
                    callback_on_step_end_tensor_inputs,
                    attention_kwargs,
                )
                frames = self._finish(way, plan, latents, num_frames, output_type)
        finally:
            self.maybe_free_model_hooks()
        return DynamiCtrlPipelineOutput(frames=frames) if return_dict else (frames,)

    def _finish(
        self, way: Conventions, plan: long_videos.WindowPlan, latents: Tensor, num_frames: int, output_type: str
    ) -> Any:  # noqa: ANN401 - what the caller asked for
        """Clean latents as `output_type`; a clip of several windows comes piece by piece and lies on the CPU."""
        if output_type == "latent":
            return way.latents(latents, num_frames)
        return long_videos.join_pieces(
            self.video_processor.postprocess_video(piece, output_type=output_type)
            for piece in way.pixels(self.vae, latents, plan, num_frames)
        )

    def _denoise(
        self,
        plan: long_videos.WindowPlan,
        way: Conventions,
        latents: Tensor,
        image_latents: Tensor,
        pose_latents: list[Tensor],
        prompt_embeds: Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        use_dynamic_cfg: bool,
        generator: torch.Generator | None,
        callback: StepCallback | None,
        callback_tensors: Sequence[str],
        attention_kwargs: dict[str, Any] | None,
    ) -> Tensor:
        """From noise to clean latents; the steps' arithmetic is float32, the transformer's its own."""
        self.scheduler.set_timesteps(num_inference_steps, device=latents.device)
        timesteps = way.timesteps(self.scheduler.timesteps, num_inference_steps)
        self._num_timesteps = len(timesteps)
        guided = guidance_scale > 1
        config = self.transformer.config
        window = image_latents.shape
        fixed = {
            "ofs": ofs_for(config, latents.device),
            "image_rotary_emb": rotary_positions(config, window[1], *window[3:], device=latents.device),
            "attention_kwargs": attention_kwargs,
            "return_dict": False,
        }
        previous_clean = None
        with self.progress_bar(total=len(timesteps)) as progress:  # pyright: ignore[reportCallIssue]
            for i, timestep in enumerate(timesteps):
                scale = guidance_scale if guided else None
                if guided and use_dynamic_cfg:
                    scale = way.dynamic_scale(guidance_scale, i, float(timestep), num_inference_steps)
                told = {"encoder_hidden_states": prompt_embeds, "timestep": timestep, **fixed}
                v = plan.blend(latents, partial(self._predict, image_latents, pose_latents, scale, told))
                stepped, previous_clean = advance(self.scheduler, v, i, timesteps, latents, previous_clean, generator)
                stepped = way.last_step(stepped, previous_clean) if i == len(timesteps) - 1 else stepped
                latents = stepped.to(latents.dtype)
                if callback is not None:
                    known = {"latents": latents, "prompt_embeds": prompt_embeds}
                    changed = callback(self, i, timestep, {name: known[name] for name in callback_tensors}) or {}
                    latents = changed.get("latents", latents)
                    prompt_embeds = changed.get("prompt_embeds", prompt_embeds)
                progress.update()
                if self._interrupt:
                    break
        return latents

    def _predict(
        self,
        image_latents: Tensor,
        controls: list[Tensor],
        guidance_scale: float | None,
        told: dict[str, Any],
        window: int,
        latents: Tensor,
    ) -> Tensor:
        """v of one window in float32; guided unless the scale is None. `told` fits the doubled batch."""
        joined = torch.cat([latents.to(image_latents.dtype), image_latents], dim=2)
        # What a transformer caches from step to step is one window's.
        if self.step_caches:
            told["step_cache"] = self.step_caches[window]
        with self.transformer.cache_context("cond_uncond" if len(controls) == 1 else f"window_{window}"):
            return self.guidance.predict(self.transformer, joined, controls[window], told, guidance_scale)


def _listed(prompt: str | Sequence[str], negative_prompt: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """As many prompts as negative ones."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if isinstance(negative_prompt, str):
        return prompts, [negative_prompt] * len(prompts)
    return prompts, list(negative_prompt)
