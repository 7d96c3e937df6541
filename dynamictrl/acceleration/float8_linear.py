"""Linear layers that can multiply in 8 bits when asked: twice the matrix rate on Hopper, with a scale for every row.

The layer stays what it was: its 16-bit weight, its keys, its result while `float8` is off. Beside the weight lies a
copy in e4m3 with a scale for each output; inputs are scaled and rounded row by row as they come, in the compiled graph
where blocks are compiled. Modulations, embeddings and the head are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamictrl.errors import ConfigError

LARGEST = 448.0
"""What e4m3 can hold."""
PARTS = (".attn1.", ".ff.")
"""Whose linear layers are converted."""

Eight = tuple[Tensor, Tensor]
"""Rows in e4m3 and each row's scale [..., 1], float32."""


class Float8Linear(nn.Linear):
    """A linear layer with an 8-bit copy of its weight; which of them multiplies is `float8`."""

    float8 = False

    @classmethod
    def of(cls, linear: nn.Linear) -> Float8Linear:
        """A layer in the place of another, with its very parameters."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.train(linear.training)
        for name, tensor in zip(("weight_8", "weight_scale"), in_8_bits(linear.weight.detach()), strict=True):
            layer.register_buffer(name, tensor, persistent=False)
        return layer

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        return self.product(in_8_bits(input), input.dtype) if self.float8 else F.linear(input, self.weight, self.bias)

    def product(self, rows: Eight, dtype: torch.dtype) -> Tensor:
        """The layer's result for inputs that are in 8 bits already."""
        eight, scale = rows
        flat, scales = eight.flatten(0, -2), scale.flatten(0, -2)
        weight_8: Any = self.weight_8
        weight_scale: Any = self.weight_scale
        if flat.device.type == "cuda":
            made = torch._scaled_mm(
                flat, weight_8.t(), scales, weight_scale.t(), bias=self.bias, out_dtype=dtype, use_fast_accum=True
            )
        else:
            made = F.linear(flat.float() * scales, weight_8.float() * weight_scale).to(dtype)
            made = made if self.bias is None else made + self.bias
        return made.unflatten(0, eight.shape[:-1])

    @torch.no_grad()
    def renew(self) -> None:
        """Makes the 8-bit copy of the weight as it is now."""
        weight_8, weight_scale = in_8_bits(self.weight)
        if self.weight_8.shape == weight_8.shape and self.weight_8.dtype == weight_8.dtype:  # pyright: ignore[reportAttributeAccessIssue]
            self.weight_8.copy_(weight_8)  # pyright: ignore[reportCallIssue]
            self.weight_scale.copy_(weight_scale)  # pyright: ignore[reportCallIssue]
        else:  # cast with the model
            self.weight_8, self.weight_scale = weight_8, weight_scale


def in_8_bits(x: Tensor) -> Eight:
    """Rows rounded to e4m3, each scaled by its largest value."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def together(x: Tensor, *layers: Any) -> list[Tensor]:  # noqa: ANN401 - linear layers, or an adapter around one
    """What several layers make of one input, which is brought to 8 bits once for all."""
    if all(type(layer) is Float8Linear and layer.float8 for layer in layers):
        rows = in_8_bits(x)
        return [layer.product(rows, x.dtype) for layer in layers]
    return [layer(x) for layer in layers]


def prepare(transformer: nn.Module) -> None:
    """Gives the blocks' linear layers their 8-bit copies; ConfigError on a GPU without 8-bit units."""
    device = next(transformer.parameters()).device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigError(
            "float8 needs a GPU with 8-bit units (Ada, Hopper or later); leave float8 off",
            code="float8_unsupported",
            param="float8",
        )
    for name, module in list(transformer.named_modules()):
        if type(module) is nn.Linear and takes_part(module, name):
            transformer.set_submodule(name, Float8Linear.of(module))
    _remember(transformer)


def takes_part(module: nn.Linear, name: str) -> bool:
    """Whether a layer is a block's own, with sides that 8-bit kernels take."""
    return any(part in f".{name}." for part in PARTS) and module.in_features % 16 == module.out_features % 16 == 0


@contextmanager
def multiplying_in_8_bits(transformer: nn.Module, wanted: bool) -> Iterator[None]:
    """Switches a transformer's 8-bit products on for a while.

    A weight that changed since (an adapter was fused) is rounded anew. Raises ConfigError where `prepare` was not
    called.
    """
    layers = _layers(transformer) if wanted else []
    if wanted and not layers:
        raise ConfigError(
            "8-bit products are asked of a model that was loaded without Acceleration.float8",
            code="float8_unprepared",
            param="float8",
        )
    if layers and not torch.equal(_marks(layers), _remembered(transformer)):
        for layer in layers:
            layer.renew()
        _remember(transformer)
    for layer in layers:
        layer.float8 = True
    try:
        yield
    finally:
        for layer in layers:
            layer.float8 = False


def _layers(transformer: nn.Module) -> list[Float8Linear]:
    return [module for module in transformer.modules() if isinstance(module, Float8Linear)]


def _marks(layers: list[Float8Linear]) -> Tensor:
    """A sum over the bits of each weight and its copy: adapters change weights behind torch's own count of changes."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

    def mark(tensor: Tensor) -> Tensor:
        return tensor.detach().view(kinds[tensor.element_size()]).sum(dtype=torch.int64)

    return torch.stack([mark(tensor) for layer in layers for tensor in (layer.weight, layer.weight_8)])  # pyright: ignore[reportArgumentType]


def _remember(transformer: nn.Module) -> None:
    layers = _layers(transformer)
    if layers:
        transformer._float8_marks = _marks(layers)  # pyright: ignore[reportArgumentType]


def _remembered(transformer: nn.Module) -> Tensor:
    marks: Any = transformer._float8_marks
    return marks.to(next(transformer.parameters()).device)
