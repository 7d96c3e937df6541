"""Turns a CogVideoX folder into a DynamiCtrl folder on disk: tensor by tensor, whole or not at all.

Files whose every tensor is taken as it is are linked, not copied; the others are written one tensor at a time: beside
the pages of the one file that is mapped, which the system may drop, memory holds a tensor, whatever the model's size.
VAE, text encoder and tokenizer are the base's.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynamictrl import weights
from dynamictrl.conversion import base_weights
from dynamictrl.conversion.base_weights import Blueprint, Source
from dynamictrl.conversion.weight_files import fingerprint, place, write_tensors
from dynamictrl.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

SHARED = ("vae", "text_encoder", "tokenizer")
RECORD = "conversion.json"

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_POSE_WEIGHTS = "diffusion_pytorch_model-pose.safetensors"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be made of which base."""

    base: str
    """CogVideoX or DynamiCtrl folder, or its hub id: transformer, VAE, text encoder, tokenizer, scheduler."""
    transformer: str = ""
    """Folder or hub id whose transformer is taken instead of the base's, such as a released masked model's."""
    pose_control: str = "padaln"
    silent_pose: bool = False
    """Fresh pose control starts at zero, so that the model is the base; off: at torch's defaults, as released."""
    fresh_pose: bool = False
    """The pose control starts anew although the source has one."""
    expert_pose_encoder: bool = False
    """An expert pose encoder of random weights is added (an ablation of the paper); off: the VAE encodes poses."""
    dtype: torch.dtype | None = None
    """Of the transformer; None keeps the source's."""
    seed: int = 42
    """Of the fresh weights."""


@dataclass(frozen=True)
class Conversion:
    """What was done."""

    folder: Path
    pose_control: str
    channels: tuple[int, int]
    """Input channels before and after."""
    parameters_before: int
    parameters_after: int
    taken: int
    """Tensors taken over."""
    fresh: tuple[str, ...]
    """Tensors made."""
    left_out: tuple[str, ...]
    """Tensors of another pose control."""

    def text(self) -> str:
        """The conversion for people."""
        new = self.parameters_after - self.parameters_before
        share = 100 * new / self.parameters_before
        lines = [
            f"model folder      {self.folder}",
            f"pose control      {self.pose_control}",
            f"input channels    {self.channels[0]} -> {self.channels[1]}",
            f"parameters        {self.parameters_before:,} -> {self.parameters_after:,} ({new:+,}, {share:+.2f} %)",
            f"tensors           {self.taken} taken, {len(self.fresh)} new, {len(self.left_out)} left out",
            *(f"  new             {name} (each block)" for name in _patterns(self.fresh)),
            *(f"  left out        {name} (each block)" for name in _patterns(self.left_out)),
        ]
        return "\n".join(lines)


def convert(order: Order, out: Path, *, link: bool = True) -> Conversion:
    """Writes the DynamiCtrl folder `out`; a folder that the same order has made already is only looked at.

    `link` makes hard links of files that stay as they are, where the file system allows. Raises CheckpointError for
    what is no base, ConfigError where `out` holds something else.
    """
    folder = weights.resolve(order.base)
    check_pipeline_folder(folder)
    source = base_weights.read_source(order.transformer or folder)
    plan = base_weights.blueprint(source, order.pose_control, silent=order.silent_pose, fresh_pose=order.fresh_pose)
    _check_fit(folder, plan)
    done = Conversion(
        out, order.pose_control, plan.channels, plan.parameters_before, plan.parameters_after, len(plan.taken),
        plan.fresh, plan.left_out,
    )  # fmt: skip
    record = _record(order, done, fingerprint(source.files))
    if _is_done(out, record):
        logger.info("%s is this very conversion already", out)
        return done
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "transformer").mkdir(parents=True)
    _write_transformer(source, plan, order, temporary / "transformer", link)
    _write_rest(folder, order, plan, temporary, link)
    (temporary / "README.md").write_text(_card(order, done), encoding="utf-8")
    (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    if out.is_dir():
        out.rmdir()  # empty, as _is_done has seen
    temporary.rename(out)
    return done


def check_pipeline_folder(folder: Path) -> None:
    """Refuses a folder that is no whole diffusers folder of CogVideoX's kind; CheckpointError says what is missing."""
    needed = {
        "model_index.json": "model_index.json",
        "vae": "config.json",
        "text_encoder": "config.json",
        "tokenizer": "tokenizer_config.json",
        "scheduler": "scheduler_config.json",
    }
    missing = [
        name if name == file else f"{name}/{file}"
        for name, file in needed.items()
        if not (folder / file if name == file else folder / name / file).is_file()
    ]
    missing += [f"{name}/*.safetensors" for name in SHARED[:2] if not any((folder / name).glob("*.safetensors"))]
    if missing:
        raise CheckpointError(
            f"{folder} is no whole base: it lacks {', '.join(missing)}. Name a diffusers folder with transformer, vae, "
            f"text_encoder, tokenizer and scheduler; a lone transformer goes with a base as --transformer",
            code="weights_missing",
        )
    kind = json.loads((folder / "vae" / "config.json").read_text()).get("_class_name")
    if kind != "AutoencoderKLCogVideoX":
        raise CheckpointError(f"{folder} is no CogVideoX base: its vae is a {kind}", code="not_a_base")


def _check_fit(folder: Path, plan: Blueprint) -> None:
    vae = json.loads((folder / "vae" / "config.json").read_text())
    text = json.loads((folder / "text_encoder" / "config.json").read_text())
    pairs = (
        ("latent channels", vae.get("latent_channels", 16), plan.config["out_channels"]),
        ("text width", text["d_model"], plan.config["text_embed_dim"]),
    )
    for name, given, wanted in pairs:
        if given != wanted:
            raise CheckpointError(
                f"the transformer does not fit {folder}: {name} {wanted}, and the folder's is {given}; take the base "
                f"that the transformer was trained from",
                code="weights_mismatch",
            )


def _record(order: Order, done: Conversion, weights_taken: str) -> dict[str, Any]:
    wanted = asdict(order) | {"dtype": str(order.dtype).removeprefix("torch.") if order.dtype else "the source's"}
    # A base that lies elsewhere today is the same base if its weights are: this machine's paths are not kept.
    wanted |= {name: _shown(wanted[name]) for name in ("base", "transformer")}
    return {
        "order": wanted,
        "source_weights": weights_taken,
        "parameters_before": done.parameters_before,
        "parameters_after": done.parameters_after,
        "input_channels": list(done.channels),
        "new": _patterns(done.fresh),
    }


def _shown(name: str) -> str:
    """A hub id as it is, a folder by its own name."""
    return Path(name).name if Path(name).expanduser().is_dir() else name


def _is_done(out: Path, record: dict[str, Any]) -> bool:
    if not out.exists():
        return False
    if out.is_dir() and not any(out.iterdir()):
        return False
    try:
        if json.loads((out / RECORD).read_text()) == record:
            return True
    except (OSError, ValueError):
        pass
    raise ConfigError(
        f"{out} exists and holds something else than this conversion; choose another --out, or delete it",
        code="out_taken",
        param="out",
    )


def _write_transformer(source: Source, plan: Blueprint, order: Order, out: Path, link: bool) -> None:
    config = {"_class_name": base_weights.OUR_CLASS, **plan.config}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    fresh = _fresh(plan, order)
    dtypes = source.dtypes if order.dtype is None else dict.fromkeys(plan.shapes, order.dtype)
    dtypes = dict.fromkeys(plan.fresh, order.dtype or source.dtype) | dtypes
    if len(source.files) == 1 and source.files[0].name == _WEIGHTS:
        if not plan.fresh and _stays(source, plan, source.files[0], dtypes):
            place(source.files[0], out / _WEIGHTS, link)
        else:
            tensors = chain(base_weights.taken_tensors(source, plan), fresh)
            keys = [*_keys_in(source, plan, source.files[0]), *plan.fresh]
            write_tensors(out / _WEIGHTS, keys, plan.shapes, dtypes, tensors)
        return
    homes: dict[str, str] = {}
    for number, file in enumerate(source.files, 1):
        logger.info("transformer file %d of %d: %s", number, len(source.files), file.name)
        keys = _keys_in(source, plan, file)
        if _stays(source, plan, file, dtypes):
            place(file, out / file.name, link)
        elif keys:
            tensors = base_weights.taken_tensors(replace(source, files=(file,)), plan)
            write_tensors(out / file.name, keys, plan.shapes, dtypes, tensors)
        homes |= dict.fromkeys(keys, file.name)
    if plan.fresh:
        write_tensors(out / _POSE_WEIGHTS, list(plan.fresh), plan.shapes, dtypes, fresh)
        homes |= dict.fromkeys(plan.fresh, _POSE_WEIGHTS)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(homes.items()))}
    (out / f"{_WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _keys_in(source: Source, plan: Blueprint, file: Path) -> list[str]:
    taken = set(plan.taken)
    return [key for key, home in source.homes.items() if home == file and key in taken]


def _stays(source: Source, plan: Blueprint, file: Path, dtypes: dict[str, torch.dtype]) -> bool:
    """Whether a file's every tensor is taken as it is."""
    held = [key for key, home in source.homes.items() if home == file]
    widened = plan.channels[0] != plan.channels[1] and base_weights.PATCHES in held
    cast = any(dtypes[key] != source.dtypes[key] for key in held if key not in plan.left_out)
    return not cast and not widened and not set(held) & set(plan.left_out)


def _fresh(plan: Blueprint, order: Order) -> Iterator[tuple[str, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(order.seed)
        yield from base_weights.fresh_tensors(plan, order.silent_pose)


def _write_rest(folder: Path, order: Order, plan: Blueprint, out: Path, link: bool) -> None:
    for name in SHARED:
        for path in sorted((folder / name).rglob("*")):
            if path.is_file():
                place(path, out / name / path.relative_to(folder / name), link)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    # The published inference swaps this scheduler in; what it is given besides is the base's (2B shifts its SNR).
    scheduler |= {"_class_name": "CogVideoXDPMScheduler", "timestep_spacing": "trailing"}
    (out / "scheduler").mkdir()
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2, sort_keys=True) + "\n")
    theirs = json.loads((folder / "model_index.json").read_text())
    index: dict[str, Any] = {
        "_class_name": "DynamiCtrlPipeline",
        "_diffusers_version": theirs.get("_diffusers_version", ""),
        "image_latent_rule": theirs.get("image_latent_rule", "base"),
        "pose_encoder": _write_pose_encoder(folder, theirs, order, plan, out, link),
        "scheduler": ["diffusers", "CogVideoXDPMScheduler"],
        "text_encoder": theirs["text_encoder"],
        "tokenizer": theirs["tokenizer"],
        "transformer": ["dynamictrl.transformer", base_weights.OUR_CLASS],
        "vae": theirs["vae"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for path in folder.iterdir():
        if path.is_file() and path.name.upper().startswith("LICENSE"):
            place(path, out / path.name, link)


def _write_pose_encoder(
    folder: Path, theirs: dict[str, Any], order: Order, plan: Blueprint, out: Path, link: bool
) -> list[Any]:
    """The expert encoder that the source has, or a fresh one where asked; what the folder's index says of it."""
    from dynamictrl.pose_encoder import PoseEncoder

    named = theirs.get("pose_encoder") or [None, None]
    if named[0] is not None and not order.fresh_pose:
        for path in sorted((folder / "pose_encoder").iterdir()):
            place(path, out / "pose_encoder" / path.name, link)
        return named
    if not order.expert_pose_encoder:
        return [None, None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(order.seed)
        made = PoseEncoder(latent_channels=plan.config["out_channels"])
    made.save_pretrained(out / "pose_encoder")
    return [PoseEncoder.__module__, PoseEncoder.__name__]


def _patterns(keys: tuple[str, ...]) -> list[str]:
    """Names with the block's number left open, each once."""
    parts = (key.split(".") for key in keys)
    return list(dict.fromkeys(".".join("N" if part.isdigit() else part for part in key) for key in parts))


def _card(order: Order, done: Conversion) -> str:
    base = _shown(order.base)
    start = "at zero: until it is trained the model is the base" if order.silent_pose else "at torch's defaults"
    state = f"Its pose control is new and starts {start}; **train it before use**." if done.fresh else ""
    lent = f" Its transformer is {_shown(order.transformer)}'s." if order.transformer else ""
    return f"""---
library_name: diffusers
pipeline_tag: image-to-video
---
# DynamiCtrl from {base}

Made of {base} by `python -m training convert`.{lent} {state}

| fact | value |
|---|---|
| pose control | {done.pose_control} |
| input channels | {done.channels[0]} -> {done.channels[1]} |
| parameters | {done.parameters_before:,} -> {done.parameters_after:,} |

The base's licence holds for these weights too.
"""
