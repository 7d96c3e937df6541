"""Encodes a window of each clip once, so that training need not do it at every step."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dynamictrl.errors import ConfigError
from dynamictrl.shards import LATENTS, MEMBERS
from pipelines import storage
from pipelines.clip import Clip
from pipelines.stage import Stage, check_weights, resource

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX
    from torch import Tensor

    from dynamictrl.conditioning import PromptEncoder
    from dynamictrl.encodings import EncodedBy, Encodings
    from dynamictrl.windows import WindowPixels


FILES = ("vae/*.safetensors", "text_encoder/*.safetensors", "tokenizer/*", "transformer/config.json")


@dataclass(frozen=True)
class EncodeLatents(Stage):
    """Adds `KEY.latents.safetensors`: the posteriors of a clip's first window, its poses and its reference, and the
    caption's embedding. Clips shorter than the window are kept without it; training then leaves them out, too."""

    model: str = "THUDM/CogVideoX-5b-I2V"
    """Hub id or local diffusers folder whose `vae`, `text_encoder` and `tokenizer` encode."""
    height: int = 1360
    """Pixels."""
    width: int = 768
    """Pixels."""
    num_frames: int = 37
    """Frames of the window, 4k + 1."""
    fps: float = 0.0
    """Frames per second of the window; 0 = the clip's own."""
    masked_reference: Literal["none", "background", "clothes"] = "none"
    """What of the reference image is blacked out."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where the model runs."""
    gpu_share: float = resource(1.0)
    """Share of one GPU that a worker takes, where `device` is cuda."""

    def __post_init__(self):
        if self.num_frames < 5 or self.num_frames % 4 != 1:
            raise ConfigError(f"num_frames is {self.num_frames}; it must be 4k + 1 (5, 9, 13, ...)", param="num_frames")
        if self.height % 16 or self.width % 16 or min(self.height, self.width) <= 0:
            raise ConfigError(
                f"the size {self.width}x{self.height} cannot be encoded; both must be multiples of 16", param="height"
            )

    @property
    def num_gpus(self) -> float:
        return self.gpu_share if self.device == "cuda" else 0.0

    def check(self) -> None:
        check_weights(self.model, FILES)

    def setup(self) -> None:
        _ = self._vae, self._prompts, self._encoded_by

    @cached_property
    def _folder(self) -> Path:
        from dynamictrl.weights import resolve

        return resolve(self.model, FILES)

    @cached_property
    def _vae(self) -> AutoencoderKLCogVideoX:
        import torch
        from diffusers import AutoencoderKLCogVideoX

        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        vae = AutoencoderKLCogVideoX.from_pretrained(self._folder / "vae", torch_dtype=dtype)
        return vae.to(torch.device(self.device))  # pyright: ignore[reportArgumentType]

    @cached_property
    def _prompts(self) -> PromptEncoder:
        import torch
        from transformers import AutoTokenizer, T5EncoderModel

        from dynamictrl.conditioning import PromptEncoder

        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        tokenizer = AutoTokenizer.from_pretrained(self._folder / "tokenizer")
        encoder = T5EncoderModel.from_pretrained(self._folder / "text_encoder", dtype=dtype)
        encoder.to(torch.device(self.device))  # pyright: ignore[reportArgumentType]
        config = json.loads((self._folder / "transformer" / "config.json").read_text())
        return PromptEncoder(tokenizer, encoder, config["max_text_seq_length"])

    @cached_property
    def _encoded_by(self) -> EncodedBy:
        from dynamictrl.encodings import EncodedBy, folder_hash
        from dynamictrl.windows import Window

        return EncodedBy(
            window=Window(0, self.num_frames, self.height, self.width, self.fps),
            vae_sha256=folder_hash(self._folder / "vae"),
            text_encoder_sha256=folder_hash(self._folder / "text_encoder"),
            masked_reference=self.masked_reference,
        )

    def process(self, clip: Clip) -> Iterable[Clip]:
        from dynamictrl.encodings import to_bytes
        from dynamictrl.shards import Sample
        from dynamictrl.windows import frames_needed, read_window

        by = self._encoded_by
        if frames_needed(self.num_frames, self.fps, clip.fps) > clip.frames:
            yield clip.with_scores(encoded=0)
            return
        sample = Sample(clip.key, {extension: clip.file(extension).read_bytes() for extension in MEMBERS})
        encodings = self._encode(read_window(sample, by.window, self.masked_reference))
        storage.write_bytes(clip.file(LATENTS), to_bytes(encodings, by))
        models = {"vae sha256": by.vae_sha256, "text_encoder sha256": by.text_encoder_sha256}
        yield clip.with_file(LATENTS).with_scores(encoded=1).with_models(encoder=self.model, **models)

    def _encode(self, pixels: WindowPixels) -> Encodings:
        import torch

        from dynamictrl.conditioning import to_pixels
        from dynamictrl.encodings import Encodings, posterior

        def moments(frames_FHWC: object) -> Tensor:
            return posterior(self._vae, to_pixels(frames_FHWC))[0].cpu()  # pyright: ignore[reportArgumentType]

        return Encodings(
            video=moments(pixels.video),
            pose=moments(pixels.pose),
            reference=moments(pixels.reference[None]),
            reference_pixels=torch.tensor(pixels.reference).permute(2, 0, 1).contiguous(),
            prompt=self._prompts([pixels.caption])[0].cpu(),
        )
