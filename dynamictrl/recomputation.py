"""What of a transformer block the backward pass finds, and what it computes a second time.

`none` keeps all that the backward pass asks for, `cheap` the results of matrix products and of the attention (norms,
activations and rotations are computed again, which costs little: half the memory), `attention` a block's inputs and the
attention's own output, `all` computes everything but the inputs again. The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "cheap", "attention", "all"]

_KERNELS = (
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
)
"""What scaled_dot_product_attention becomes, by device; each gives its answer and the sums its backward pass needs."""


def recomputed(compute: Callable[..., Any], recompute: Recompute, *inputs: object) -> Any:  # noqa: ANN401 - compute's
    """`compute(*inputs)`, keeping no more of it than `recompute` says."""
    if recompute == "none" or not torch.is_grad_enabled():
        return compute(*inputs)
    if recompute in _KEEPS:
        return checkpoint(compute, *inputs, use_reentrant=False, context_fn=_KEEPS[recompute])
    return checkpoint(compute, *inputs, use_reentrant=False)


def keep_attention() -> tuple[Any, Any]:
    """The contexts of a checkpoint that keeps what the attention kernels gave."""
    return create_selective_checkpoint_contexts(list(attention_operators()))


def keep_products() -> tuple[Any, Any]:
    """The contexts of a checkpoint that keeps what matrix products and attention kernels gave."""
    return create_selective_checkpoint_contexts([*_PRODUCTS, *attention_operators()])


_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)
_KEEPS = {"cheap": keep_products, "attention": keep_attention}


@cache
def attention_operators() -> tuple[Any, ...]:
    """The attention kernels that this torch has."""
    return tuple(getattr(torch.ops.aten, name).default for name in _KERNELS if hasattr(torch.ops.aten, name))
