"""Safetensors files written without holding them in memory, and files that are linked rather than copied."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
"""By their names in safetensors files."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


_SAMPLE = 2**20


def fingerprint(files: Iterable[Path]) -> str:
    """Tells weights apart by names, sizes, headers and ends: reading tens of GB would take minutes."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(_SAMPLE))
            stream.seek(max(0, size - _SAMPLE))
            digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()[:16]


def write_tensors(
    path: Path,
    keys: list[str],
    shapes: dict[str, tuple[int, ...]],
    dtypes: dict[str, torch.dtype],
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Writes a safetensors file whose `tensors` come in the order of `keys`, one in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for key in keys:
        size = torch.empty(shapes[key], dtype=dtypes[key], device="meta").nbytes
        header[key] = {"dtype": _NAMES[dtypes[key]], "shape": list(shapes[key]), "data_offsets": [start, start + size]}
        start += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for key, (name, tensor) in zip(keys, tensors, strict=True):
            assert key == name, f"{name} came where {key} was due"
            assert tuple(tensor.shape) == shapes[key], f"{key} has shape {list(tensor.shape)}"
            tensor.to(dtypes[key]).contiguous().flatten().view(torch.uint8).numpy().tofile(stream)
        stream.flush()
        os.fsync(stream.fileno())


def place(source: Path, target: Path, link: bool) -> None:
    """Links a file where that is wished and possible, else copies it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()  # a hub cache holds links to its files
    if link:
        try:
            os.link(source, target)
            return
        except OSError:
            logger.debug("%s cannot be linked and is copied", source)
    shutil.copyfile(source, target)
