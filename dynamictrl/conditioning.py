"""What the model is told beside the noise: the prompt, the reference image, and what of it is kept.

Shape suffixes: B batch, F frames, C channels, H W size, L text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynamictrl import latents
from dynamictrl.errors import InputError

Frames = NDArray[np.uint8] | Tensor | Sequence[Image.Image]
"""uint8 [F, H, W, 3] as an array or a tensor, or PIL images."""

MASK_THRESHOLD = 200
"""A mask picture keeps what is brighter than this, of 255: the published masked models were trained so."""


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: PreTrainedModel,
    prompts: Sequence[str],
    max_length: int,
    *,
    device: torch.device | None = None,
) -> Tensor:
    """Embeddings [B, max_length, D] on `device` (the encoder's by default): padded, cut off at max_length.

    Padding is attended, without a mask: so CogVideoX was trained.
    """
    tokens = tokenizer(
        list(prompts), padding="max_length", max_length=max_length, truncation=True, return_tensors="pt"
    ).input_ids
    return text_encoder(tokens.to(device or text_encoder.device))[0].to(text_encoder.dtype)


class PromptEncoder:
    """A tokenizer and its text encoder, with the empty prompt (caption dropout, the non-text ablation) kept at hand."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text_encoder: PreTrainedModel, max_length: int):
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.max_length = max_length

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, max_length, D]; the encoder runs only on the prompts that are not empty."""
        result = self.empty.repeat(len(prompts), 1, 1)
        spoken = [i for i, prompt in enumerate(prompts) if prompt]
        if spoken:
            texts = [prompts[i] for i in spoken]
            result[spoken] = encode_prompt(self.tokenizer, self.text_encoder, texts, self.max_length)
        return result

    @cached_property
    def empty(self) -> Tensor:
        """The embedding [1, max_length, D] of the empty prompt."""
        with torch.no_grad():
            return encode_prompt(self.tokenizer, self.text_encoder, [""], self.max_length)


def as_frames(video: Frames) -> NDArray[np.uint8]:
    """A clip in any of its forms as uint8 [F, H, W, 3]; InputError (code "bad_pose_video") for others."""
    if isinstance(video, Tensor):
        frames = video.detach().cpu().numpy()
    elif isinstance(video, np.ndarray):
        frames = video
    else:
        frames = np.array([np.asarray(picture.convert("RGB")) for picture in video])
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise InputError(
            f"pose_video is {frames.dtype} {list(frames.shape)}; it must be uint8 [frames, height, width, 3], or a "
            f"list of PIL images of one size",
            code="bad_pose_video",
            param="pose_video",
        )
    return frames


def to_pixels(frames_FHWC: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 frames [F, H, W, 3] to float32 pixels [1, 3, F, H, W] in [-1, 1]."""
    # A copy: arrays that came from pictures are read-only, which torch does not know.
    frames = torch.tensor(frames_FHWC) if isinstance(frames_FHWC, np.ndarray) else frames_FHWC
    return frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def perturb_reference(image_BCHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Adds pixel noise of a strength exp(N(-3, 0.5)) drawn per sample, as CogVideoX's image-to-video training does.

    `image_BCHW` is in [-1, 1]; the noise goes on before the VAE. Training only.
    """
    draw = {"generator": generator, "device": image_BCHW.device, "dtype": torch.float32}
    strength = torch.exp(randn_tensor((image_BCHW.shape[0], 1, 1, 1), **draw) * 0.5 - 3)
    return image_BCHW + (randn_tensor(image_BCHW.shape, **draw) * strength).to(image_BCHW.dtype)


def reference_latents(
    vae: AutoencoderKLCogVideoX,
    image_BCHW: Tensor,
    num_latent_frames: int,
    *,
    generator: torch.Generator | None = None,
    sample: bool = True,
    rule: latents.ImageLatentRule = "base",
    posterior: latents.Posterior | None = None,
) -> Tensor:
    """Latents [B, num_latent_frames, C, h, w]: the image's (pixels in [-1, 1]) first, zeros after it."""
    scale = latents.image_latent_scale(vae.config, rule)
    draw = {"generator": generator, "sample": sample, "posterior": posterior}
    first = latents.encode(vae, image_BCHW[:, :, None], scale=scale, **draw)
    rest = first.new_zeros(first.shape[0], num_latent_frames - 1, *first.shape[2:])
    return torch.cat([first, rest], dim=1)


def mask_reference(
    image_HWC: NDArray[np.uint8], mask_HW: NDArray[np.bool_], *, keep: Literal["inside", "outside"] = "inside"
) -> NDArray[np.uint8]:
    """The reference image black outside (or inside) a mask: the text then says what comes there.

    A person's mask with `keep="inside"` frees the background, a clothes mask with `keep="outside"` the clothes
    (multi-level control, section 3.3). InputError where the sizes differ.
    """
    if image_HWC.shape[:2] != mask_HW.shape:
        raise InputError(
            f"the mask is {mask_HW.shape[1]}x{mask_HW.shape[0]} and the image {image_HWC.shape[1]}x"
            f"{image_HWC.shape[0]} pixels (width x height); give a mask of the image's size.",
            code="mask_size",
            param="mask",
        )
    kept = mask_HW.astype(bool) if keep == "inside" else ~mask_HW.astype(bool)
    return image_HWC * kept[..., None].astype(np.uint8)


def mask_from_picture(picture: Image.Image) -> NDArray[np.bool_]:
    """A user's mask picture as [H, W] booleans: bright is kept."""
    return np.asarray(picture.convert("RGB"))[..., 0] > MASK_THRESHOLD
