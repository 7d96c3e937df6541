"""Takes a CogVideoX base, or another DynamiCtrl model, up into a model with the pose control asked for.

What has no weight in the source starts fresh: the pose control at torch's defaults (as the published training did),
image and pose channels that the base's patch embedding does not know at zero.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dynamictrl import weights
from dynamictrl.errors import CheckpointError, ConfigError
from dynamictrl.pose_control import input_channels
from dynamictrl.transformer import DynamiCtrlBlock, DynamiCtrlTransformer3DModel

_CONTROL = ".control_norm1."
_PATCHES = "patch_embed.proj.weight"


def from_base(
    base: str | Path, pose_control: str = "padaln", *, silent: bool = False, dtype: torch.dtype | None = None
) -> DynamiCtrlTransformer3DModel:
    """A transformer on the CPU with the weights of `base`: a model folder, its `transformer` folder, or a hub id.

    Weights of the same pose control are taken over, those of another are left out. `silent` starts fresh pose control
    so that step 0 is the base model (`unified_tokens` always does). `dtype` is by default the source's. Fresh weights
    are drawn from torch's global generator. Every weight of the base must find its place: else CheckpointError.
    """
    folder = _transformer_folder(base)
    source = _config(folder)
    channels = input_channels(pose_control, source["out_channels"])
    if source["in_channels"] > channels:
        raise ConfigError(
            f"the base takes {source['in_channels']} channels and {pose_control} has {channels}: start from a base "
            f"without {source.get('pose_control', 'them')}",
            param="pose_control",
        )
    state = _read(folder, dtype)
    if source.get("pose_control") != pose_control:
        state = {key: value for key, value in state.items() if _CONTROL not in key}
    state[_PATCHES] = _widen(state[_PATCHES], source["in_channels"], channels)
    with torch.device("meta"):
        model = DynamiCtrlTransformer3DModel(**{**source, "pose_control": pose_control, "in_channels": channels})
    return _fill(model, state, folder, silent)


def _transformer_folder(base: str | Path) -> Path:
    folder = weights.resolve(base)
    folder = folder / "transformer" if (folder / "transformer").is_dir() else folder
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no transformer: it has no config.json", code="weights_missing")
    return folder


def _config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    if config.get("_class_name") == "DynamiCtrlTransformerModel":
        config.setdefault("pose_control", "padaln")  # the published models' class knows no other
    known = DynamiCtrlTransformer3DModel._get_init_keys(DynamiCtrlTransformer3DModel)
    return {key: value for key, value in config.items() if key in known}


def _read(folder: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no diffusion_pytorch_model*.safetensors", code="weights_missing")
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(load_file(file))
    return {key: value.to(dtype) if dtype else value for key, value in state.items()}


def _widen(weight: Tensor, channels: int, wanted: int) -> Tensor:
    """The patch embedding for more input channels; the new ones, last in order, start at zero."""
    # A convolution's [width, channels, 2, 2], or a 1.5 base's [width, channels * 8] with channels outermost.
    by_channel = weight.reshape(weight.shape[0], channels, -1)
    new = by_channel.new_zeros(weight.shape[0], wanted - channels, by_channel.shape[2])
    widened = torch.cat([by_channel, new], dim=1)
    return widened.reshape(weight.shape[0], wanted, *weight.shape[2:]) if weight.ndim == 4 else widened.flatten(1)


def _fill(
    model: DynamiCtrlTransformer3DModel, state: dict[str, Tensor], folder: Path, silent: bool
) -> DynamiCtrlTransformer3DModel:
    """Puts the weights into a model built without memory, and makes what they leave open."""
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    lost = [key for key in missing if _CONTROL not in key]
    if lost or unexpected:
        raise CheckpointError(
            f"{folder} is no base of this model: it lacks {lost[:3]} and has {list(unexpected)[:3]} too many",
            code="weights_mismatch",
        )
    if any(_CONTROL in key for key in missing):
        _start_control(model, silent)
    if model.patch_embed.use_positional_embeddings and not model.patch_embed.use_learned_positional_embeddings:
        patches = model.patch_embed
        table = patches._get_positional_embeddings(patches.sample_height, patches.sample_width, patches.sample_frames)
        patches.register_buffer("pos_embedding", table, persistent=False)
    return model.eval()


def _start_control(model: DynamiCtrlTransformer3DModel, silent: bool) -> None:
    config, like = model.config, model.proj_out.weight
    heads = config["num_attention_heads"]
    width = heads * config["attention_head_dim"]
    for block in model.transformer_blocks:
        assert isinstance(block, DynamiCtrlBlock)
        fresh = model.control(width, heads, config["time_embed_dim"], config["norm_eps"])
        block.control_norm1 = fresh.to(like.dtype)
    if silent:
        model.silence_pose()
