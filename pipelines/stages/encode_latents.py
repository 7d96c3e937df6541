"""Encodes a window of each clip once, so that training need not do it at every step.

With `buckets` each clip is encoded in the size that training would show it in (`dynamictrl.samples.buckets`). Refuses
nothing of its own; a clip whose members cannot be read is refused with the code of `dynamictrl.errors`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.stage import Stage, check_weights, resource

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX
    from torch import Tensor

    from dynamictrl.conditioning import PromptEncoder
    from dynamictrl.samples.buckets import Bucket
    from dynamictrl.samples.encodings import EncodedBy, Encodings
    from dynamictrl.samples.windows import WindowPixels

AHEAD = 2
"""Windows that are decoded and drawn while one is encoded."""
FILES = ("vae/*.safetensors", "text_encoder/*.safetensors", "tokenizer/*", "transformer/config.json")


@dataclass(frozen=True)
class EncodeLatents(Stage):
    """Adds `KEY.latents.safetensors`: the posteriors of a clip's first window, its poses and its reference, and the
    caption's embedding. Clips shorter or smaller than any size are kept without it; training leaves them out, too."""

    reads: ClassVar[tuple[str, ...] | None] = ("mp4", "blurred.mp4", "pose.npz", "mask.npz", "caption")
    seconds_per_frame: ClassVar[float] = 0.02

    model: str = "THUDM/CogVideoX-5b-I2V"
    """Hub id or local diffusers folder whose `vae`, `text_encoder` and `tokenizer` encode; empty = nothing is."""
    height: int = 1360
    """Pixels."""
    width: int = 768
    """Pixels."""
    num_frames: int = 37
    """Frames of the window, 4k + 1."""
    fps: float = 0.0
    """Frames per second of the window; 0 = the clip's own."""
    buckets: tuple[str, ...] = ()
    """Sizes as FRAMESxHEIGHTxWIDTH in place of height, width and num_frames: a clip takes the one that keeps most."""
    largest_upscale: float = 2.0
    """Most that a clip's pictures may be enlarged; clips that need more are kept without latents. 0 = no limit."""
    crop: Literal["persons", "centre"] = "persons"
    """What stays where a picture is cut to its size: the persons of the window, or the middle."""
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
        if self.buckets:
            _ = self._sizes

    @property
    def active(self) -> bool:
        return bool(self.model)

    @property
    def weights(self) -> tuple[str, ...]:
        return (self.model,)

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

    @property
    def _sizes(self) -> list[Bucket]:
        from dynamictrl.samples.buckets import Bucket, parse_bucket

        return [parse_bucket(text) for text in self.buckets] or [Bucket(self.num_frames, self.height, self.width)]

    def _bucket(self, clip: Clip) -> Bucket | None:
        """The size that a clip is shown in, where one suits."""
        from dynamictrl.samples.buckets import ClipShape, ranked

        shape = ClipShape(clip.frames, clip.fps, clip.height, clip.width)
        found, _ = ranked(self._sizes, shape, self.fps, self.largest_upscale)
        return found[0] if found else None

    @cached_property
    def _encoded_by(self) -> EncodedBy:
        """What all encodings share: their windows are of the first size and are put right clip by clip."""
        from dynamictrl.samples.encodings import EncodedBy, folder_hash
        from dynamictrl.samples.windows import Window

        first = self._sizes[0]
        return EncodedBy(
            window=Window(0, first.num_frames, first.height, first.width, self.fps, self.crop),
            vae_sha256=folder_hash(self._folder / "vae"),
            text_encoder_sha256=folder_hash(self._folder / "text_encoder"),
            masked_reference=self.masked_reference,
        )

    def process(self, clip: Clip) -> Iterable[Clip]:
        return self.process_many([clip])

    def process_many(self, clips: Sequence[Clip]) -> Iterable[Clip]:
        """Windows are decoded ahead in threads; captions are embedded together."""
        from dynamictrl.read_ahead import ahead

        shown = [(clip, self._by(bucket)) for clip in clips if (bucket := self._bucket(clip)) is not None]
        prompts = iter(self._prompts([clip.caption for clip, _ in shown]).cpu() if shown else ())
        with ThreadPoolExecutor(AHEAD) as readers:
            windows = ahead(shown, lambda item: readers.submit(self._window, *item), AHEAD)
            encoded = {
                clip.key: self._written(clip, by, pixels, prompt)
                for (clip, by), pixels, prompt in zip(shown, windows, prompts, strict=True)
            }
        for clip in clips:
            yield encoded.get(clip.key) or clip.with_scores(encoded=0)

    def _by(self, bucket: Bucket) -> EncodedBy:
        by = self._encoded_by
        return replace(
            by, window=replace(by.window, num_frames=bucket.num_frames, height=bucket.height, width=bucket.width)
        )

    def _window(self, clip: Clip, by: EncodedBy) -> WindowPixels:
        """The clip's first window as it will be published: with faces blurred where they are."""
        from dynamictrl.samples.shards import Sample
        from dynamictrl.samples.windows import read_window

        picture = "blurred.mp4" if "blurred.mp4" in clip.files else "mp4"
        members = {
            "mp4": clip.file(picture).read_bytes(),
            "pose.npz": clip.file("pose.npz").read_bytes(),
            "mask.npz": clip.file("mask.npz").read_bytes(),
            # Inside `curate` these two are written later.
            "txt": clip.caption.encode(),
            "json": json.dumps({"fps": clip.fps, "frames": clip.frames}).encode(),
        }
        return read_window(Sample(clip.key, members), by.window, self.masked_reference)

    def _written(self, clip: Clip, by: EncodedBy, pixels: WindowPixels, prompt: Tensor) -> Clip:
        from dynamictrl.samples.encodings import to_bytes
        from dynamictrl.samples.shards import LATENTS

        storage.write_bytes(clip.file(LATENTS), to_bytes(self._encode(pixels, prompt), by))
        models = {"vae sha256": by.vae_sha256, "text_encoder sha256": by.text_encoder_sha256}
        return clip.with_file(LATENTS).with_scores(encoded=1).with_models(encoder=self.model, **models)

    def _encode(self, pixels: WindowPixels, prompt: Tensor) -> Encodings:
        import torch

        from dynamictrl.conditioning import to_pixels
        from dynamictrl.samples.encodings import Encodings, posterior

        def moments(frames_FHWC: object) -> Tensor:
            return posterior(self._vae, to_pixels(frames_FHWC))[0].cpu()  # pyright: ignore[reportArgumentType]

        return Encodings(
            video=moments(pixels.video),
            pose=moments(pixels.pose),
            reference=moments(pixels.reference[None]),
            reference_pixels=torch.tensor(pixels.reference).permute(2, 0, 1).contiguous(),
            prompt=prompt.clone(),
        )
