"""What a service's models need of a device's memory, said before anything is loaded. Imports no torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dynamictrl.errors import ConfigError
from serving.rendering.model_source import ModelSource

GIB = 2**30
SHARED = ("text_encoder", "vae")
"""Parts that all models of a service have in common."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
WORKING_GIB = 6.0
"""GiB left free for a large clip's activations in the transformer (20,626 tokens of the 5B model take about 4)."""


@dataclass(frozen=True)
class MemoryPlan:
    """GiB by part, in the order in which they are loaded."""

    parts: dict[str, float]
    free_gib: float
    working_gib: float

    @property
    def total_gib(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total_gib + self.working_gib <= self.free_gib

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {size:.2f}" for name, size in self.parts.items())
        return (
            f"weights {self.total_gib:.2f} GiB ({listed}), {self.working_gib:.2f} GiB to work in, of "
            f"{self.free_gib:.2f} GiB that are free"
        )


def plan_memory(
    models: Sequence[ModelSource],
    loras: Sequence[Path],
    *,
    dtype: str,
    free_bytes: int,
    float8: bool,
    shared: bool = True,
) -> MemoryPlan:
    """What is loaded for these models; `shared` says whether text encoder and VAE are among it (a follower has none).

    `float8` adds the 8-bit copies of the blocks' weights.
    """
    width, base = _BYTES[dtype], models[0].folder
    parts = {name: _parameters(base / name) * width / GIB for name in SHARED} if shared else {}
    for model in models:
        count = _parameters(model.transformer or model.folder / "transformer")
        parts[f"transformer {model.name}"] = count * (width + float8) / GIB
    if loras:
        # A LoRA sits on each of the models.
        parts["loras"] = len(models) * sum(_parameters(path) for path in loras) * 4 / GIB
    # What is small, works in little.
    working = min(WORKING_GIB, 4 * sum(parts.values()))
    return MemoryPlan(parts, free_bytes / GIB, working)


def check_memory(plan: MemoryPlan, device: str) -> None:
    """ConfigError where the models do not fit."""
    if not plan.fits:
        raise ConfigError(
            f"the models do not fit on {device}: {plan}. Serve fewer models or LoRAs, use --dtype bfloat16, or a "
            "device with more memory",
            code="model_memory",
            param="models",
        )


def _parameters(path: Path) -> int:
    """Numbers in the .safetensors files of a folder (or in one file), by their headers."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return sum(_numbers(file) for file in files)


def _numbers(file: Path) -> int:
    with file.open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    count = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            size = 1
            for side in tensor["shape"]:
                size *= side
            count += size
    return count
