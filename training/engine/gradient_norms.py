"""DeepSpeed's two looks at every gradient, in one pass.

Before each step ZeRO-1 and 2 (0.19) look through all gradients for values that are not finite, six kernels a parameter,
and then take each one's norm in float64, two more: some 10,000 launches for a 5B model, during which a GPU waits (0.2 s
of a step of 2.9 on an H200). A norm that is not finite says the same, and one call takes the norms of a whole group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def take_at_once(engine: DeepSpeedEngine) -> bool:
    """Gives a ZeRO-1 or 2 engine's optimizer the quick way; False where it is of another kind and left alone.

    What becomes of a step stays DeepSpeed's: one with a norm that is not finite is left out on all workers.
    """
    optimizer: Any = engine.optimizer
    mine = ("has_overflow", "get_grad_norm_direct", "averaged_gradients", "dp_process_group", "cpu_offload")
    if not all(hasattr(optimizer, name) for name in mine) or optimizer.cpu_offload or not optimizer.compute_grad_norm:
        return False
    if not optimizer.check_grad_overflow and optimizer.dtype == torch.bfloat16:
        return False  # without that check a norm that is not finite would be passed over

    def norm(gradients: Sequence[Tensor], params: object, norm_type: float = 2) -> Tensor:
        """The norm of a group's gradients over all workers; -1 where it is not finite, as DeepSpeed marks it."""
        assert norm_type == 2
        return _marked(_norm_over_workers(gradients, optimizer))

    optimizer.has_overflow = lambda partition_gradients=True: False
    optimizer.get_grad_norm_direct = norm
    return True


def _norm_over_workers(gradients: Sequence[Tensor], optimizer: Any) -> Tensor:  # noqa: ANN401 - a ZeRO optimizer
    own = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
    squares = torch.zeros((), dtype=torch.float64, device=optimizer.device)
    if own:
        squares = torch.stack(torch._foreach_norm(own, 2, torch.float32)).double().square().sum()  # pyright: ignore
    dist.all_reduce(squares, group=optimizer.dp_process_group)
    return squares.sqrt().float()


def _marked(norm: Tensor) -> Tensor:
    return torch.where(norm.isfinite(), norm, torch.full_like(norm, -1.0))
