"""From the data set's order to what a step sees: reads ahead in threads, encodes once, keeps encodings in memory.

Shape suffixes: B batch, F latent frames, C latent channels, H W latent size, L text tokens, D text width.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from numpy.typing import NDArray
from torch import Tensor

from dynamictrl import conditioning, encodings, latents, objective
from dynamictrl.encodings import EncodedBy, Encodings
from dynamictrl.shards import LATENTS, read_sample
from dynamictrl.windows import WindowPixels, read_window
from training.data import Draw, Order
from training.settings.clips import Clips

CacheKey = tuple[str, int]


@dataclass(frozen=True)
class Batch:
    """What `objective.training_loss` takes, on the device."""

    video: Tensor
    """[B, F, C, H, W], scaled."""
    image: Tensor
    """[B, F, C, H, W], the reference in the first frame; zeros where it is dropped."""
    pose: Tensor
    """[B, F, C, H, W], scaled; pixels [B, 3, frames, height, width] in [-1, 1] for an expert pose encoder."""
    prompt: Tensor
    """[B, L, D]."""
    noise: Tensor
    """[B, F + padding, C, H, W]."""
    timesteps: Tensor
    """int64 [B]."""


class EncodingCache:
    """Encodings by clip and window, in memory and, where a folder is named, on disk for all workers.

    The least recently used leave the memory when its limit is passed. Threads may share it.
    """

    def __init__(self, limit_bytes: int, folder: Path | None = None):
        self._limit = limit_bytes
        self._folder = folder
        self._bytes = 0
        self._kept: OrderedDict[CacheKey, Encodings] = OrderedDict()
        self._lock = Lock()

    def get(self, key: CacheKey) -> Encodings | None:
        """What is kept under a key, if anything is."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = self._read(key)
        if value is not None:
            self._keep(key, value)
        return value

    def put(self, key: CacheKey, value: Encodings, encoded_by: EncodedBy) -> None:
        """Keeps a value where it fits."""
        if self._folder is not None:
            self._folder.mkdir(exist_ok=True)
            path = self._path(self._folder, key)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary.write_bytes(encodings.to_bytes(value, encoded_by))
            temporary.replace(path)
        self._keep(key, value)

    def _keep(self, key: CacheKey, value: Encodings) -> None:
        with self._lock:
            if value.nbytes > self._limit or key in self._kept:
                return
            self._kept[key] = value
            self._bytes += value.nbytes
            while self._bytes > self._limit:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes

    def _read(self, key: CacheKey) -> Encodings | None:
        if self._folder is None:
            return None
        try:
            return encodings.from_bytes(self._path(self._folder, key).read_bytes())
        except FileNotFoundError:
            return None

    @staticmethod
    def _path(folder: Path, key: CacheKey) -> Path:
        return folder / f"{key[0]}-{key[1]}.safetensors"


class FrozenModels:
    """The VAE and the text encoder, which training uses and never changes."""

    def __init__(
        self,
        vae: AutoencoderKLCogVideoX,
        prompts: conditioning.PromptEncoder,
        image_scale: float,
        *,
        encodes_pose: bool = True,
    ):
        """`image_scale` is `latents.image_latent_scale`'s; `encodes_pose` off leaves poses to an expert encoder."""
        self.vae = vae
        self.prompts = prompts
        self.scale = float(vae.config["scaling_factor"])
        self.image_scale = image_scale
        self.encodes_pose = encodes_pose

    def encode(self, pixels: WindowPixels) -> Encodings:
        """Encodings of one window, in host memory."""
        pose = torch.tensor(pixels.pose).permute(3, 0, 1, 2).contiguous()
        return Encodings(
            video=self._posterior(pixels.video),
            pose=self._posterior(pixels.pose) if self.encodes_pose else pose,
            reference=self._posterior(pixels.reference[None]),
            reference_pixels=torch.tensor(pixels.reference).permute(2, 0, 1).contiguous(),
            prompt=self.prompts([pixels.caption])[0].cpu(),
        )

    def _posterior(self, frames_FHWC: NDArray[np.uint8]) -> Tensor:
        return encodings.posterior(self.vae, conditioning.to_pixels(frames_FHWC))[0].cpu()


class Loader:
    """Gives the encodings of the samples one worker takes, in order; threads read ahead while the device works."""

    def __init__(self, order: Order, frozen: FrozenModels, clips: Clips, shared: Path | None = None):
        """`shared` is a folder that all workers see, for encodings that each of them may need."""
        self._order = order
        self._frozen = frozen
        self._clips = clips
        self._cache = EncodingCache(int(clips.cache_gib * 2**30), shared)
        self._pool = ThreadPoolExecutor(clips.loader_threads, "loader") if clips.loader_threads else None
        self._ahead: dict[int, Future[WindowPixels | Encodings | None]] = {}

    def prefetch(self, positions: Iterable[int]) -> None:
        """Starts reading samples that will be asked for."""
        if self._pool is not None:
            for position in positions:
                if position not in self._ahead:
                    self._ahead[position] = self._pool.submit(self._read, self._order.draw(position))

    def load(self, positions: Iterable[int]) -> Iterator[tuple[Draw, Encodings]]:
        """The samples at global indices."""
        for position in positions:
            draw = self._order.draw(position)
            future = self._ahead.pop(position, None)
            yield draw, self._encoded(draw, future.result() if future else self._read(draw))

    def close(self) -> None:
        """Stops the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, draw: Draw) -> WindowPixels | Encodings | None:
        """What must be read from the shard; None where the cache has it."""
        if self._cache.get((draw.entry.key, draw.window.start)) is not None:
            return None
        sample = read_sample(draw.entry.shard, draw.entry.offset)
        if draw.entry.encoded_start >= 0:
            return encodings.from_bytes(sample.members[LATENTS])
        return read_window(sample, draw.window, self._clips.masked_reference)

    def _encoded(self, draw: Draw, found: WindowPixels | Encodings | None) -> Encodings:
        key = (draw.entry.key, draw.window.start)
        kept = self._cache.get(key)
        if kept is not None:
            return kept
        # The cache may have let go of it since a thread looked.
        found = self._read(draw) if found is None else found
        assert found is not None
        value = found if isinstance(found, Encodings) else self._frozen.encode(found)
        by = EncodedBy(draw.window, "", "", self._clips.masked_reference)  # the run folder stands for the weights
        self._cache.put(key, value, by)
        return value


class Collator:
    """Turns encoded samples into a batch: draws latents and noise, drops captions and images."""

    def __init__(self, frozen: FrozenModels, clips: Clips, patch_size_t: int | None, device: torch.device):
        self._frozen = frozen
        self._clips = clips
        self._patch_size_t = patch_size_t
        self._device = device

    @torch.no_grad()
    def __call__(self, samples: list[tuple[Draw, Encodings]], timesteps: list[int]) -> Batch:
        """`timesteps` are the samples', in their order."""
        parts = [self._one(draw, encoded) for draw, encoded in samples]
        video, image, pose, prompt, noise = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return Batch(video, image, pose, prompt, noise, torch.tensor(timesteps, device=self._device))

    def _one(self, draw: Draw, encoded: Encodings) -> tuple[Tensor, ...]:
        # A CPU generator, drawn from in a fixed order: a seed means the same noise on every device.
        generator = torch.Generator().manual_seed(draw.noise_seed)
        video = self._posterior(encoded.video, generator) * self._frozen.scale
        pose = self._pose(encoded.pose, generator)
        reference = self._reference(draw, encoded, generator)
        image = torch.cat([reference, torch.zeros_like(video[:, 1:])], dim=1)
        prompt = self._frozen.prompts.empty if draw.drops_caption else encoded.prompt[None]
        noise = objective.noise_for(video.cpu(), self._patch_size_t, generator)
        return video, image, pose, prompt.to(self._device), noise.to(self._device)

    def _pose(self, encoded: Tensor, generator: torch.Generator) -> Tensor:
        if self._frozen.encodes_pose:
            return self._posterior(encoded, generator) * self._frozen.scale
        return encoded[None].to(self._device).float() / 127.5 - 1

    def _reference(self, draw: Draw, encoded: Encodings, generator: torch.Generator) -> Tensor:
        moments = encoded.reference
        if self._clips.image_noise:
            pixels = encoded.reference_pixels[None].float() / 127.5 - 1
            noisy = conditioning.perturb_reference(pixels, generator)
            moments = encodings.posterior(self._frozen.vae, noisy[:, :, None])[0]
        reference = self._posterior(moments, generator) * self._frozen.image_scale
        return torch.zeros_like(reference) if draw.drops_image else reference

    def _posterior(self, moments: Tensor, generator: torch.Generator) -> Tensor:
        channels, frames, *size = moments.shape
        noise = torch.randn((1, frames, channels // 2, *size), generator=generator)
        return encodings.draw(moments[None].to(self._device), noise.to(self._device))


def image_scale(vae: AutoencoderKLCogVideoX, rule: str) -> float:
    """The reference latent's factor by the model folder's rule."""
    return latents.image_latent_scale(vae.config, rule)  # pyright: ignore[reportArgumentType]
