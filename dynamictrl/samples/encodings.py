"""A window as the frozen models see it: what `KEY.latents.safetensors` holds, and what training keeps in memory.

Posteriors are kept, not draws from them: each visit of a sample draws anew. Imports no torch until tensors are there.

Shape suffixes: B batch, F latent frames, C latent channels, M mean and log variance (2 C), H W latent size,
L text tokens, D text width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dynamictrl.errors import DatasetError
from dynamictrl.samples.windows import Window
from dynamictrl.weights import file_hash

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX
    from torch import Tensor


@dataclass(frozen=True)
class Encodings:
    """One window, encoded."""

    video: Tensor
    """[M, F, H, W], the VAE's posterior, not scaled."""
    pose: Tensor
    """[M, F, H, W], of the drawn poses; uint8 [3, frames, height, width], the drawing itself, where an expert encoder
    learns (`dynamictrl.pose_encoder`)."""
    reference: Tensor
    """[M, 1, H, W], of the reference image, without noise."""
    reference_pixels: Tensor
    """uint8 [3, height, width], the reference image: noise goes on before the VAE, anew at each visit."""
    prompt: Tensor
    """[L, D], the caption's embedding."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(getattr(self, name).nbytes for name in TENSORS)


TENSORS = tuple(field.name for field in dataclasses.fields(Encodings))


@dataclass(frozen=True)
class EncodedBy:
    """What shaped encodings: those of another window or of other weights are not used."""

    window: Window
    vae_sha256: str
    text_encoder_sha256: str
    masked_reference: str = "none"

    def differs_from(self, other: EncodedBy) -> list[str]:
        """Names of the fields in which two differ, the window's start aside."""
        mine, theirs = self._flat(), other._flat()
        return [name for name in mine if name != "start" and mine[name] != theirs[name]]

    def _flat(self) -> dict[str, object]:
        values = dataclasses.asdict(self)
        return values.pop("window") | values


def to_bytes(encodings: Encodings, encoded_by: EncodedBy) -> bytes:
    """The content of `KEY.latents.safetensors`."""
    from safetensors.torch import save

    tensors = {name: getattr(encodings, name).contiguous().cpu() for name in TENSORS}
    return save(tensors, metadata={"encoded_by": json.dumps(dataclasses.asdict(encoded_by), sort_keys=True)})


def from_bytes(data: bytes) -> Encodings:
    """Reads `KEY.latents.safetensors`; raises DatasetError where a tensor is missing."""
    from safetensors.torch import load

    tensors = load(data)
    missing = set(TENSORS) - set(tensors)
    if missing:
        raise DatasetError(f"latents.safetensors lacks {sorted(missing)}; run the recipe encode again", code="latents")
    return Encodings(**{name: tensors[name] for name in TENSORS})


def read_encoded_by(head: bytes) -> EncodedBy:
    """What shaped a `KEY.latents.safetensors`, from its first bytes (length and JSON header)."""
    try:
        length = int.from_bytes(head[:8], "little")
        text = json.loads(head[8 : 8 + length])["__metadata__"]["encoded_by"]
    except (KeyError, TypeError, ValueError) as problem:
        raise DatasetError(f"latents.safetensors has no readable description ({problem})", code="latents") from problem
    return read_encoded_by_text(text)


def read_encoded_by_text(text: str) -> EncodedBy:
    """What shaped encodings, from their description alone."""
    try:
        values = json.loads(text)
        # Windows were cut around the middle before descriptions said what they are cut around.
        return EncodedBy(**(values | {"window": Window(**({"crop": "centre"} | values["window"]))}))
    except (KeyError, TypeError, ValueError) as problem:
        raise DatasetError(f"latents.safetensors has no readable description ({problem})", code="latents") from problem


def folder_hash(folder: Path) -> str:
    """One hash for all weight files of a component's folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name}:{file_hash(path)}\n".encode())
    return digest.hexdigest()


def posterior(vae: AutoencoderKLCogVideoX, pixels_BCFHW: Tensor) -> Tensor:
    """Mean and log variance BMFHW of pixels in [-1, 1], in the VAE's precision; 1 or 4k + 1 frames of pixels."""
    import torch

    with torch.no_grad():
        encoded = vae.encode(pixels_BCFHW.to(vae.device, vae.dtype)).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        return torch.cat([encoded.mean, encoded.logvar], dim=1)


def draw(moments_BMFHW: Tensor, noise_BFCHW: Tensor) -> Tensor:
    """Latents BFCHW, not scaled: mean plus standard deviation times the given noise, in float32."""
    mean, log_variance = moments_BMFHW.float().transpose(1, 2).chunk(2, dim=2)
    return mean + (0.5 * log_variance).exp() * noise_BFCHW
