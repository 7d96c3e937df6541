"""How a service's transformers are made fast, and which shortcuts one call takes (`dynamictrl.acceleration`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from dynamictrl.acceleration import Acceleration, Shortcuts
from dynamictrl.acceleration.accelerate import accelerate, accelerate_vae

logger = logging.getLogger(__name__)

Size = tuple[int, int, int]
"""Width, height and frames of a clip."""


class Speed:
    """One process's way of computing; the same for all its models."""

    def __init__(self, wanted: Acceleration, device: str, *, size: Size | None = None, tokens: Any = None):  # noqa: ANN401
        """`size` is the clips' most usual one, at which attention kernels are timed; `tokens` the group of processes
        that share a clip's tokens, if any do."""
        if wanted.float8 and device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
            logger.warning("this GPU has no 8-bit units: the quicker qualities go without them")
            wanted = replace(wanted, float8=False)
        self.held, self.size, self._tokens = wanted, size, tokens

    def prepare(self, transformer: Any) -> None:  # noqa: ANN401 - the transformer
        """Applies everything that is chosen once; before LoRAs are put on and anything is computed."""
        if self._tokens is not None:
            transformer.share_tokens(self._tokens)
        accelerate(transformer, self.held, shape=self.size, ranks=self._tokens.size() if self._tokens else 1)

    def prepare_vae(self, vae: Any) -> None:  # noqa: ANN401 - diffusers' VAE
        """Applies what makes the VAE fast."""
        accelerate_vae(vae, self.held)

    def shortcuts(self, asked: Mapping[str, Any]) -> Shortcuts:
        """What a tier may take here: 8-bit products only where they were prepared."""
        return Shortcuts(**{**asked, "float8": asked["float8"] and self.held.float8})

    def said(self) -> dict[str, Any]:
        """As a clip's manifest has it."""
        return asdict(self.held)
