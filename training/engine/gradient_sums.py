"""Gradients go into their float32 sums by one copy where a step has one micro-batch, and a step left out leaves none.

DeepSpeed's ZeRO-2 (0.19) turns each bfloat16 gradient into a float32 one and adds that to a sum of zeros: three passes
over 23 GB for a 5B model on one GPU. With a single micro-batch each sum gets one gradient, so a copy says the same.

Where the optimizer's states are offloaded it keeps the sums of a step that it leaves out, and adds the next step's to
them: after one gradient that is not finite no step would ever be applied again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_ADDS = "_add_to_grad_partition_buffer"
"""A private method of DeepSpeed's; where it is gone nothing changes."""
_ENDS_OFFLOADED = "reset_cpu_buffers"
"""What it calls at the end of every offloaded step, applied or not."""


def write_once(engine: DeepSpeedEngine) -> bool:
    """Lets a ZeRO-2 engine's optimizer copy; False where a step has several micro-batches or it is of another kind."""
    optimizer: Any = engine.optimizer
    if engine.gradient_accumulation_steps() != 1 or not hasattr(optimizer, _ADDS):
        return False
    setattr(optimizer, _ADDS, _copy)
    return True


def forget_left_out(engine: DeepSpeedEngine) -> bool:
    """Lets a ZeRO-1 or 2 engine's offloading optimizer begin anew after a step left out; False for another kind."""
    optimizer: Any = engine.optimizer
    if not getattr(optimizer, "cpu_offload", False) or not hasattr(optimizer, _ENDS_OFFLOADED):
        return False
    ends = getattr(optimizer, _ENDS_OFFLOADED)

    def end() -> None:
        ends()  # waits for the copies that still read the sums
        for group in optimizer.averaged_gradients:
            optimizer.averaged_gradients[group] = None

    setattr(optimizer, _ENDS_OFFLOADED, end)
    return True


def _copy(output: Tensor | None, source: Tensor) -> None:
    if output is not None:
        output.copy_(source)
