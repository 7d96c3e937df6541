"""Low-rank adapters (LoRA, arXiv 2106.09685) on the transformer: made, loaded, fused and saved through PEFT.

Names and files are diffusers': `pipeline.load_lora_weights`, `set_adapters`, `fuse_lora`, `unfuse_lora`,
`unload_lora_weights`; one `pytorch_lora_weights.safetensors` with keys such as
`transformer.transformer_blocks.0.attn1.to_q.lora_A.weight`. Blocks are named as in CogVideoX, so an adapter trained on
a base loads where its shapes are this model's; one of another size is refused as a whole.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from diffusers.loaders import CogVideoXLoraLoaderMixin
from torch import Tensor, nn

from dynamictrl.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from dynamictrl.transformer import DynamiCtrlTransformer3DModel

Part = Literal["attention", "feed_forward", "pose_control"]
"""Linear layers that an adapter may sit on; `pose_control` is PadaLN's modulation or the pose cross-attention's own."""

_LAYERS: dict[str, str] = {
    "attention": r"attn1\.(to_q|to_k|to_v|to_out\.0)",
    "feed_forward": r"ff\.net\.(0\.proj|2)",
    "pose_control": r"control_norm1\.(linear|attention\.(to_q|to_k|to_v|to_out\.0))",
}
WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
_OLD_NAMES = {".lora.down.": ".lora_A.", ".lora.up.": ".lora_B.", ".lora_down.": ".lora_A.", ".lora_up.": ".lora_B."}
_PREFIX = "transformer."


def require_peft() -> None:
    """ConfigError with the way out where PEFT is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError as problem:
        raise ConfigError(
            "LoRA adapters need the package peft, which is not installed; install dynamictrl[lora] (the extras "
            "training and serving bring it too)",
            code="peft_missing",
        ) from problem


def add_lora(
    transformer: DynamiCtrlTransformer3DModel,
    *,
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.0,
    parts: Sequence[Part] = ("attention", "feed_forward"),
    adapter_name: str = "default",
) -> None:
    """Puts a new adapter on the transformer; it starts at zero, so the output stays as it was until it learns.

    The update is scaled by `alpha` / `rank` (None: 1). Only the adapter's weights, in float32, are left to learn: all
    others lose `requires_grad`. Raises ConfigError for settings out of range and parts this model has not.
    """
    require_peft()
    from peft import LoraConfig

    _check_settings(rank, dropout, parts)
    pattern = rf"transformer_blocks\.\d+\.({'|'.join(_LAYERS[part] for part in parts)})"
    transformer.requires_grad_(False)
    for part in parts:
        if not any(_is_layer(name, part) for name, _ in transformer.named_modules()):
            control = transformer.config["pose_control"]
            raise ConfigError(f"the pose control {control!r} has no linear layers of its own; leave out {part!r}")
    transformer.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank if alpha is None else alpha,  # pyright: ignore[reportArgumentType] - PEFT takes floats
            lora_dropout=dropout,
            target_modules=pattern,
            init_lora_weights=True,
        ),
        adapter_name=adapter_name,
    )
    for name, parameter in transformer.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def _check_settings(rank: int, dropout: float, parts: Sequence[str]) -> None:
    if rank < 1:
        raise ConfigError(f"the rank of a LoRA is {rank}; it must be 1 or more", param="rank")
    if not 0 <= dropout < 1:
        raise ConfigError(f"the dropout of a LoRA is {dropout}; it must lie in [0, 1)", param="dropout")
    unknown = [part for part in parts if part not in _LAYERS]
    if unknown or not parts:
        raise ConfigError(f"a LoRA sits on {list(parts)}; choose of {', '.join(get_args(Part))}", param="parts")


def _is_layer(name: str, part: str) -> bool:
    return re.fullmatch(rf"transformer_blocks\.\d+\.{_LAYERS[part]}", name) is not None


def adapter_weights(weights: Mapping[str, Tensor], adapter_name: str = "default") -> dict[str, Tensor]:
    """Of a state dict with an adapter in it the adapter's own, as a LoRA file names them (without `transformer.`)."""
    middle = f".{adapter_name}.weight"
    return {
        name.removesuffix(middle) + ".weight": value
        for name, value in weights.items()
        if ".lora_" in name and name.endswith(middle)
    }


def fused_weights(weights: Mapping[str, Tensor], scale: float, adapter_name: str = "default") -> dict[str, Tensor]:
    """The plain model's state dict, with the adapter's update times `scale` (alpha / rank) added in float32."""
    fused: dict[str, Tensor] = {}
    for name, value in weights.items():
        if ".lora_" in name:
            continue
        module, _, last = name.rpartition(".base_layer.")
        plain = f"{module}.{last}" if module else name
        down = weights.get(f"{module}.lora_A.{adapter_name}.weight")
        if module and last == "weight" and down is not None:
            update = weights[f"{module}.lora_B.{adapter_name}.weight"].float() @ down.float()
            value = (value.float() + scale * update).to(value.dtype)
        fused[plain] = value
    return fused


def save_lora(
    transformer: DynamiCtrlTransformer3DModel,
    folder: str | os.PathLike[str],
    adapter_name: str = "default",
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes an adapter as diffusers does, with its settings in the file's header; returns the file.

    `weights` are the adapter's own where they are not the transformer's (gathered from several workers). ConfigError
    for an adapter that is not there.
    """
    require_peft()
    from peft.utils import get_peft_model_state_dict

    known = getattr(transformer, "peft_config", {})
    if adapter_name not in known:
        raise ConfigError(f"there is no adapter {adapter_name!r}; the transformer has {sorted(known) or 'none'}")
    if weights is None:
        weights = get_peft_model_state_dict(transformer, adapter_name=adapter_name)
    settings = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in known[adapter_name].to_dict().items()
    }
    CogVideoXLoraLoaderMixin.save_lora_weights(
        os.fspath(folder),
        transformer_lora_layers={name: value.contiguous() for name, value in weights.items()},
        transformer_lora_adapter_metadata=settings,
        weight_name=WEIGHTS_NAME,
    )
    return Path(folder) / WEIGHTS_NAME


class LoraLoading(CogVideoXLoraLoaderMixin):
    """The pipeline's share: diffusers' methods, with wrong files refused before anything is changed."""

    def load_lora_weights(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | dict[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,  # noqa: ANN401 - as diffusers'
    ) -> None:
        """Loads an adapter from a folder, a file, a hub id or a state dict, and switches it on.

        Raises CheckpointError for a file that cannot be had, is no LoRA, or is one of a model of other shapes.
        """
        require_peft()
        low_memory = kwargs.pop("low_cpu_mem_usage", False)
        state, metadata = self._read_lora(pretrained_model_name_or_path_or_dict, kwargs)
        transformer: Any = self.transformer  # pyright: ignore[reportAttributeAccessIssue] - the pipeline's
        state = usual_names(state)
        check_shapes(state, transformer)
        self.load_lora_into_transformer(
            state,
            transformer=transformer,
            adapter_name=adapter_name,
            metadata=metadata,
            _pipeline=self,
            low_cpu_mem_usage=low_memory,
            hotswap=hotswap,
        )

    def _read_lora(self, source: Any, options: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any] | None]:  # noqa: ANN401
        if not isinstance(source, dict):
            source = os.fspath(source)
            if source.startswith((".", "/", "~")) and not Path(source).expanduser().exists():
                raise CheckpointError(
                    f"the LoRA {source} does not exist; give an existing file or folder, or a hub id OWNER/NAME",
                    code="weights_missing",
                )
        try:
            found: Any = self.lora_state_dict(source, return_lora_metadata=True, **options)
        except (OSError, ValueError, json.JSONDecodeError) as problem:
            raise CheckpointError(
                f"the LoRA {source if isinstance(source, str) else 'given'} cannot be read: {problem}",
                code="weights_missing",
            ) from problem
        return found

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as diffusers'
        """As diffusers'; ConfigError while adapters are loaded, because such a folder could not be loaded again."""
        transformer: Any = self.transformer  # pyright: ignore[reportAttributeAccessIssue] - the pipeline's
        if getattr(transformer, "peft_config", None):
            raise ConfigError(
                f"the transformer carries the adapters {sorted(transformer.peft_config)}; call fuse_lora() and "
                "unload_lora_weights() to save them in the model, or unload_lora_weights() alone to save it without",
                code="adapters_loaded",
            )
        parent: Any = super()
        return parent.save_pretrained(*args, **kwargs)


def usual_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA's state dict as diffusers writes it today: older names and PEFT's own put right, alphas multiplied in.

    CheckpointError where there is no LoRA for a transformer in it.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new)
        name = name.removeprefix("base_model.model.")
        renamed[name if name.startswith(_PREFIX) else _PREFIX + name] = value
    alphas = {
        name.removesuffix(".alpha"): float(renamed.pop(name)) for name in list(renamed) if name.endswith(".alpha")
    }
    for module, alpha in alphas.items():
        up = f"{module}.lora_B.weight"
        if up in renamed:
            renamed[up] = renamed[up] * (alpha / renamed[up].shape[1])
    if not any(".lora_A." in name for name in renamed):
        shown = ", ".join(list(state)[:2])
        raise CheckpointError(f"this is no LoRA for a video transformer: it holds {shown}", code="weights_mismatch")
    return renamed


def check_shapes(state: Mapping[str, Tensor], transformer: nn.Module) -> None:
    """CheckpointError unless every update of the LoRA sits on a layer of this model and has its shape."""
    layers = dict(transformer.named_modules())
    for name, down in state.items():
        if ".lora_A." not in name:
            continue
        module, up = name.partition(".lora_A.")[0], state.get(name.replace(".lora_A.", ".lora_B."))
        layer: Any = layers.get(module.removeprefix(_PREFIX))
        layer = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
        if layer is None or up is None or not isinstance(getattr(layer, "weight", None), Tensor):
            raise CheckpointError(
                f"the LoRA has {name}, for which this model has no layer: it belongs to another kind of model",
                code="weights_mismatch",
            )
        theirs = torch.Size([up.shape[0], *down.shape[1:]])
        if theirs != layer.weight.shape or up.shape[1] != down.shape[0]:
            raise CheckpointError(
                f"the LoRA was made for another size of model: its update of {module.removeprefix(_PREFIX)} is "
                f"{list(theirs)} and this layer is {list(layer.weight.shape)}; use the base it was trained on",
                code="weights_mismatch",
            )
