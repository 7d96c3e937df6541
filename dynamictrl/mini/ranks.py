"""Several GPUs as one for the mini trainers: `torchrun --nproc-per-node 4 -m dynamictrl.mini.train_vae ...`.

Every rank draws its own batches and all take the same steps on the mean gradient. Without `torchrun` there is one
rank, and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is, and its device."""

    rank: int
    count: int
    device: str

    @property
    def first(self) -> bool:
        """Whether this one measures, logs and writes."""
        return self.rank == 0

    def agree(self, value: float) -> float:
        """The first rank's value, on every rank: a clock, say, that all must stop by together."""
        if self.count == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(told, 0)
        return float(told)

    def same_start(self, modules: Sequence[nn.Module]) -> None:
        """Gives every rank the first one's weights."""
        if self.count > 1:
            for module in modules:
                for value in (*module.parameters(), *module.buffers()):
                    dist.broadcast(value.data, 0)

    def leave(self) -> None:
        """Waits for the others and parts from them."""
        if self.count > 1:
            dist.barrier()
            dist.destroy_process_group()


def join(device: str) -> Ranks:
    """Takes this process's place among those that `torchrun` started; alone where it did not."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks(0, 1, device)
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    on_gpu = device.startswith("cuda")
    if on_gpu:
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=torch.device(device) if on_gpu else None)
    return Ranks(rank, count, device)


@torch.no_grad()
def mean_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the ranks, in one message; may be part of a CUDA graph."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    message = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(message)
    message /= dist.get_world_size()
    parts: list[Tensor] = [
        part.view_as(g) for part, g in zip(message.split([g.numel() for g in gradients]), gradients, strict=True)
    ]
    torch._foreach_copy_(gradients, parts)  # pyright: ignore[reportPrivateUsage]
