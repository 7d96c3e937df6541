"""Takes a CogVideoX base, or another DynamiCtrl model, up into a model with the pose control asked for.

What has no weight in the source starts fresh: the pose control at torch's defaults (as the published training did) or
at zero, image and pose channels that the base's patch embedding does not know at zero. What is taken, left out and made
is settled from the files' headers (`blueprint`), before a weight is read; `base_conversion` writes folders by it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dynamictrl import weights
from dynamictrl.conversion.weight_files import DTYPES
from dynamictrl.errors import CheckpointError, ConfigError
from dynamictrl.pose_control import DirectAddition, input_channels, pose_control_class
from dynamictrl.transformer import DynamiCtrlTransformer3DModel

logger = logging.getLogger(__name__)

STOCK_CLASS = "CogVideoXTransformer3DModel"
PUBLISHED_CLASS = "DynamiCtrlTransformerModel"
"""What the released DynamiCtrl folders call their transformer."""
OUR_CLASS = DynamiCtrlTransformer3DModel.__name__
PATCHES = "patch_embed.proj.weight"

_CONTROL = ".control_norm1."
_TABLE = "patch_embed.pos_embedding"
"""5B-I2V's learned positions: a buffer, which parameter counts leave out."""
_WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Source:
    """A transformer's folder as its config and its files' headers describe it."""

    folder: Path
    config: dict[str, Any]
    """Fields of our class; `pose_control` only where the folder holds a DynamiCtrl."""
    files: tuple[Path, ...]
    homes: dict[str, Path]
    """Tensor to the file that holds it."""
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]

    @property
    def dtype(self) -> torch.dtype:
        """Of the last layer, and of what starts fresh."""
        return self.dtypes["proj_out.weight"]


@dataclass(frozen=True)
class Blueprint:
    """What becomes of a source's tensors in the model asked for."""

    config: dict[str, Any]
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    """The pose control's, in the order in which they are drawn."""
    left_out: tuple[str, ...]
    """Another pose control's."""
    shapes: dict[str, tuple[int, ...]]
    """Of all tensors of the model."""
    channels: tuple[int, int]
    """Input channels of the source and of the model."""
    parameters_before: int
    parameters_after: int


def from_base(
    base: str | Path,
    pose_control: str = "padaln",
    *,
    silent: bool = False,
    fresh_pose: bool = False,
    dtype: torch.dtype | None = None,
) -> DynamiCtrlTransformer3DModel:
    """A transformer on the CPU with the weights of `base`: a model folder, its `transformer` folder, or a hub id.

    Weights of the same pose control are taken over unless `fresh_pose` starts it anew; those of another are left out.
    `silent` starts fresh pose control so that step 0 is the base model (`unified_tokens` always does). `dtype` is by
    default the source's. Fresh weights are drawn from torch's global generator. Raises CheckpointError for what is no
    base: another class, a missing file, a tensor missing, unexpected or misshapen.
    """
    source = read_source(base)
    plan = blueprint(source, pose_control, silent=silent, fresh_pose=fresh_pose)
    state = {key: value.to(dtype) if dtype else value for key, value in taken_tensors(source, plan)}
    state |= {key: value.to(dtype or source.dtype) for key, value in fresh_tensors(plan, silent)}
    model = _without_memory(plan.config)
    model.load_state_dict(state, assign=True)
    patches = model.patch_embed
    if patches.use_positional_embeddings and not patches.use_learned_positional_embeddings:
        table = patches._get_positional_embeddings(patches.sample_height, patches.sample_width, patches.sample_frames)
        patches.register_buffer("pos_embedding", table, persistent=False)
    return model.eval()


def transformer_folder(base: str | Path) -> Path:
    """The folder with a transformer's files: `base` itself, or `transformer` in it; downloaded where it is a hub id."""
    folder = weights.resolve(base)
    folder = folder / "transformer" if (folder / "transformer").is_dir() else folder
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no transformer: it has no config.json", code="weights_missing")
    return folder


def read_source(base: str | Path) -> Source:
    """Reads a transformer's config and headers; CheckpointError for another class or a missing or damaged file."""
    folder = transformer_folder(base)
    config = _config(folder)
    files = _weight_files(folder)
    homes: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                names = opened.keys()
                for key in names:
                    part = opened.get_slice(key)
                    shapes[key], dtypes[key] = tuple(part.get_shape()), DTYPES[part.get_dtype()]
        except (SafetensorError, OSError, KeyError) as problem:
            raise CheckpointError(
                f"{file} cannot be read as weights ({problem}); copy it there again", code="weights_damaged"
            ) from problem
        homes |= dict.fromkeys(names, file)
    if "proj_out.weight" not in homes:
        raise CheckpointError(f"{folder} is no base: its files hold no proj_out.weight", code="weights_mismatch")
    return Source(folder, config, files, homes, shapes, dtypes)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read ({problem})", code="weights_damaged") from None
    kind = config.get("_class_name")
    if kind not in (STOCK_CLASS, PUBLISHED_CLASS, OUR_CLASS):
        raise CheckpointError(
            f"{folder} holds a {kind}, which is no base; name a folder with a {STOCK_CLASS} (CogVideoX-2B, -5B, "
            f"-5B-I2V or -1.5-5B-I2V), a {PUBLISHED_CLASS} or a {OUR_CLASS}",
            code="not_a_base",
        )
    if kind == STOCK_CLASS:
        config.pop("pose_control", None)
    elif kind == PUBLISHED_CLASS:
        config["pose_control"] = "padaln"  # the published models' class knows no other
    known = DynamiCtrlTransformer3DModel._get_init_keys(DynamiCtrlTransformer3DModel)
    return {key: value for key, value in config.items() if key in known}


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index = folder / f"{_WEIGHTS}.index.json"
    names = {_WEIGHTS}
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)}; copy the weights there (as .safetensors) or name another base",
            code="weights_missing",
        )
    return tuple(folder / name for name in sorted(names))


def blueprint(source: Source, pose_control: str, *, silent: bool = False, fresh_pose: bool = False) -> Blueprint:
    """Settles what is taken, left out and made; every tensor must find its place, else CheckpointError."""
    config = _target_config(source, pose_control)
    if silent and issubclass(pose_control_class(pose_control), DirectAddition):
        raise ConfigError(
            "direct_addition has no weights of its own that could start silent: the pose enters through the base's "
            "patch embedding; leave silent off",
            code="setting_conflict",
            param="silent",
        )
    model = _without_memory(config)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    goes_on = source.config.get("pose_control") == pose_control and not fresh_pose
    if silent and goes_on:
        logger.warning("%s has %s already, which is kept: it does not start silent", source.folder, pose_control)
    left_out = tuple(key for key in source.shapes if _CONTROL in key and not goes_on)
    taken = tuple(key for key in source.shapes if key not in set(left_out))
    fresh = () if goes_on else tuple(key for key in shapes if _CONTROL in key)
    channels = (source.config["in_channels"], config["in_channels"])
    _check_places(source, shapes, taken, fresh, channels)
    before = sum(math.prod(shape) for key, shape in source.shapes.items() if key != _TABLE)
    after = sum(parameter.numel() for parameter in model.parameters())
    return Blueprint(config, taken, fresh, left_out, shapes, channels, before, after)


def _target_config(source: Source, pose_control: str) -> dict[str, Any]:
    latent, has = source.config["out_channels"], source.config["in_channels"]
    wanted = input_channels(pose_control, latent)
    if has not in (latent, 2 * latent, 3 * latent):
        raise CheckpointError(
            f"{source.folder} takes {has} input channels; a base takes {latent} (text to video) or {2 * latent} "
            f"(image to video)",
            code="not_a_base",
        )
    if has > wanted:
        raise ConfigError(
            f"the base takes {has} channels and {pose_control} has {wanted}: start from a base without "
            f"{source.config.get('pose_control', 'them')}",
            param="pose_control",
        )
    return {**source.config, "pose_control": pose_control, "in_channels": wanted}


def _check_places(
    source: Source,
    shapes: dict[str, tuple[int, ...]],
    taken: tuple[str, ...],
    fresh: tuple[str, ...],
    channels: tuple[int, int],
) -> None:
    lacking = [key for key in shapes if key not in {*taken, *fresh}]
    unknown = [key for key in taken if key not in shapes]
    expected = {**shapes, PATCHES: _narrower(shapes[PATCHES], *channels)}
    misshapen = [
        f"{key} {list(source.shapes[key])} instead of {list(expected[key])}"
        for key in taken
        if key in shapes and source.shapes[key] != expected[key]
    ]
    if lacking or unknown or misshapen:
        raise CheckpointError(
            f"{source.folder} is no base of this model: {len(lacking)} tensors lacking {lacking[:2]}, {len(unknown)} "
            f"too many {unknown[:2]}, {len(misshapen)} misshapen {misshapen[:2]}",
            code="weights_mismatch",
        )


def _narrower(shape: tuple[int, ...], has: int, wanted: int) -> tuple[int, ...]:
    return (shape[0], shape[1] * has // wanted, *shape[2:])


def taken_tensors(source: Source, plan: Blueprint) -> Iterator[tuple[str, Tensor]]:
    """The source's tensors in the model's shapes, file by file; each is read when it is asked for."""
    wanted = set(plan.taken)
    for file in source.files:
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - no dictionary
                if key in wanted:
                    tensor = opened.get_tensor(key)
                    yield key, widen(tensor, *plan.channels) if key == PATCHES else tensor


def widen(weight: Tensor, channels: int, wanted: int) -> Tensor:
    """The patch embedding's weight for more input channels; the new ones, last in order, are zero."""
    if channels == wanted:
        return weight
    # A convolution's [width, channels, 2, 2], or a 1.5 base's [width, channels * 8] with channels outermost.
    by_channel = weight.reshape(weight.shape[0], channels, -1)
    new = by_channel.new_zeros(weight.shape[0], wanted - channels, by_channel.shape[2])
    widened = torch.cat([by_channel, new], dim=1)
    return widened.reshape(weight.shape[0], wanted, *weight.shape[2:]) if weight.ndim == 4 else widened.flatten(1)


def fresh_tensors(plan: Blueprint, silent: bool) -> Iterator[tuple[str, Tensor]]:
    """The pose control's first weights in float32, block by block, from torch's global generator."""
    if not plan.fresh:
        return
    config = plan.config
    heads, control = config["num_attention_heads"], pose_control_class(config["pose_control"])
    for number in range(config["num_layers"]):
        made = control(heads * config["attention_head_dim"], heads, config["time_embed_dim"], config["norm_eps"])
        if silent:
            made.silence()
        for name, value in made.state_dict().items():
            yield f"transformer_blocks.{number}{_CONTROL}{name}", value


def _without_memory(config: dict[str, Any]) -> DynamiCtrlTransformer3DModel:
    with torch.device("meta"):
        return DynamiCtrlTransformer3DModel(**config)
