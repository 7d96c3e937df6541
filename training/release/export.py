"""Writes the model folder of a run: at its end, or from one of its checkpoints without an engine."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamictrl.errors import CheckpointError, ConfigError
from dynamictrl.samples.shards import write_json
from training.checkpoints import on_disk
from training.checkpoints.on_disk import Checkpoint
from training.config import Run
from training.release import model_card
from training.run_folder import RunFolder
from training.settings.export import Export

if TYPE_CHECKING:
    from torch import Tensor

    from dynamictrl.animation import DynamiCtrlPipeline

logger = logging.getLogger(__name__)


def export_checkpoint(out: Path, settings: Export) -> Path:
    """The model folder of a checkpoint of the run folder `out`.

    Raises ConfigError where there is no such run or checkpoint, or `settings.out` is taken.
    """
    folder = RunFolder(out)
    if settings.out.exists():
        raise ConfigError(f"{settings.out} exists already; choose another --out", code="out_taken", param="out")
    run = Run.from_dict(_read_settings(folder))
    found = _checkpoint(folder, settings.step)
    averaged = settings.weights == "ema" or (settings.weights == "auto" and run.recipe.optimization.ema_decay > 0)
    logger.info("reading %s", found.folder)
    from training.checkpoints import consolidation

    pipeline, weights = consolidation.load(run.recipe, found, averaged=averaged)
    facts = {"weights": "moving average" if averaged else "as trained", **model_card.facts_at(run, found.step)}
    return export(pipeline, weights, run, facts, settings.out, found.step)


def _read_settings(folder: RunFolder) -> dict[str, Any]:
    try:
        values = json.loads(folder.settings.read_text())
        return {name: values[name] for name in ("name", "data", "out", "recipe")} | {"out": str(folder.root)}
    except (OSError, ValueError, KeyError) as problem:
        raise ConfigError(
            f"{folder.root} holds no run ({problem}); give a run folder, which has a run.json", code="run_missing"
        ) from problem


def _checkpoint(folder: RunFolder, step: int) -> Checkpoint:
    there = on_disk.whole(folder.checkpoints)
    for found in there:
        if step in (0, found.step):
            return found
    steps = ", ".join(str(found.step) for found in there) or "none"
    raise ConfigError(
        f"{folder.root} has no whole checkpoint of step {step or 'any'}; it has {steps}",
        code="run_missing",
        param="step",
    )


def export(
    pipeline: DynamiCtrlPipeline,
    weights: Mapping[str, Tensor],
    run: Run,
    facts: Mapping[str, Any],
    folder: Path | None = None,
    step: int | None = None,
) -> Path:
    """Writes `RUN/model`, or another folder, whole or not at all, with its card.

    `weights` are `parallel.gather_weights`'s, after `step` steps (by default all of the run's). A LoRA is fused into
    the model, and lies beside it as `lora` where it holds all that was learnt. Raises CheckpointError where a weight
    is missing or of another shape.
    """
    folder = folder or RunFolder(run.out).model
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    if run.recipe.lora.lora_rank:
        weights = _take_adapter(pipeline, weights, run, temporary)
    if pipeline.pose_encoder is not None:
        pipeline.pose_encoder.load_state_dict(_under("pose_encoder.", weights))
        weights = _under("transformer.", weights)
    pipeline.transformer = _whole_transformer(pipeline, weights)
    pipeline.save_pretrained(temporary)
    record = run.to_dict() | {"facts": dict(facts), "step": run.recipe.optimization.steps if step is None else step}
    write_json(temporary / "training.json", record)
    model_card.write(temporary, run)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return folder


def _take_adapter(
    pipeline: DynamiCtrlPipeline, weights: Mapping[str, Tensor], run: Run, folder: Path
) -> dict[str, Tensor]:
    from dynamictrl.lora import adapter_weights, fused_weights, save_lora

    if not run.recipe.lora.lora_whole_pose:
        save_lora(pipeline.transformer, folder / "lora", weights=adapter_weights(weights))
    return fused_weights(weights, run.recipe.lora.lora_scale)


def _under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of one part of `pose_encoder.PoseEncodedTransformer`."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _whole_transformer(pipeline: DynamiCtrlPipeline, weights: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
    import torch

    from dynamictrl.transformer import DynamiCtrlTransformer3DModel

    with torch.device("meta"):
        whole = DynamiCtrlTransformer3DModel.from_config(pipeline.transformer.config)
    expected = {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise CheckpointError(f"the gathered weights are not whole: {wrong[:3]} of {len(wrong)} differ", code="export")
    whole.load_state_dict(dict(weights), assign=True)
    return whole
