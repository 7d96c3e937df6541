"""What a run leaves on disk: checkpoints to go on from, and the exported model folder.

```
RUN/
  run.json                     the settings, written first; a rerun must agree with them
  checkpoints/step-00000100/   COMPLETE (written last: step, number of workers) and DeepSpeed's shards in state/
  model/                       the exported model folder, there only when it is whole
```
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamictrl.errors import CheckpointError, ConfigError
from dynamictrl.shards import write_json
from training.config import Run, differences

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from torch import Tensor

    from dynamictrl.animation import DynamiCtrlPipeline

logger = logging.getLogger(__name__)

COMPLETE = "COMPLETE"
STATE = "state"


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what."""

    root: Path

    @property
    def settings(self) -> Path:
        """The resolved run."""
        return self.root / "run.json"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The exported model folder."""
        return self.root / "model"

    @property
    def metrics(self) -> Path:
        """One JSON object a step, as they are reached."""
        return self.root / "metrics.jsonl"

    @property
    def encodings(self) -> Path:
        """Encoded clips that the workers share; gone when the run is done."""
        return self.root / "encodings"

    @property
    def failure(self) -> Path:
        """Why a worker gave up, where trying again would not help."""
        return self.root / "failure.json"

    def claim(self, run: Run, data_fingerprint: str) -> None:
        """Writes run.json, or raises ConfigError where the folder holds another run or the data has changed."""
        mine = run.to_dict() | {"data_fingerprint": data_fingerprint}
        if self.settings.is_file():
            self._compare(run, data_fingerprint)
        elif self.root.is_dir() and any(not entry.name.startswith(".") for entry in self.root.iterdir()):
            raise ConfigError(
                f"{self.root} is not empty and holds no run; choose another --out", code="out_taken", param="out"
            )
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(self.settings, mine)

    def _compare(self, run: Run, data_fingerprint: str) -> None:
        try:
            values = json.loads(self.settings.read_text())
            theirs, fingerprint = Run.from_dict(values), values["data_fingerprint"]
        except (ValueError, KeyError, TypeError) as problem:
            raise ConfigError(
                f"{self.settings} cannot be read ({problem}); choose another --out, or delete {self.root}",
                code="out_taken",
                param="out",
            ) from problem
        changed = differences(theirs.recipe, run.recipe)
        if fingerprint != data_fingerprint:
            changed.append(f"clips of the data set: {fingerprint} -> {data_fingerprint}")
        if changed:
            raise ConfigError(
                f"{self.root} holds a run with other settings ({'; '.join(changed)}); choose another --out, or use "
                "the settings it was started with",
                code="out_taken",
                param="out",
            )


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint on disk."""

    folder: Path
    step: int
    """Optimizer steps done."""
    workers: int
    """How many workers wrote it."""


def newest(run_folder: RunFolder) -> Checkpoint | None:
    """The last whole checkpoint, if there is one; half-written ones are passed by."""
    whole = sorted(path.parent for path in run_folder.checkpoints.glob(f"step-*/{COMPLETE}"))
    if not whole:
        return None
    try:
        marker = json.loads((whole[-1] / COMPLETE).read_text())
        return Checkpoint(whole[-1], int(marker["step"]), int(marker["workers"]))
    except (ValueError, KeyError) as problem:
        raise CheckpointError(
            f"{whole[-1] / COMPLETE} cannot be read ({problem}); delete {whole[-1]} to go on from the one before",
            code="checkpoint_damaged",
        ) from problem


def check_workers(checkpoint: Checkpoint | None, workers: int) -> None:
    """Refuses to go on with another number of workers than the checkpoint was written by."""
    if checkpoint is not None and checkpoint.workers != workers:
        raise ConfigError(
            f"{checkpoint.folder} was written by {checkpoint.workers} workers and this run has {workers}; go on with "
            f"--num-workers {checkpoint.workers}",
            code="setting_conflict",
            param="num_workers",
        )


def save(engine: DeepSpeedEngine, run_folder: RunFolder, step: int, keep: int) -> Path:
    """Writes a checkpoint whole or not at all, then drops the oldest ones; every worker must call it."""
    import torch.distributed as dist

    folder = run_folder.checkpoints / f"step-{step:08d}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    if dist.get_rank() == 0:
        for left_over in run_folder.checkpoints.glob(".step-*.tmp"):
            shutil.rmtree(left_over)
        temporary.mkdir(parents=True)
    dist.barrier()
    # What a LoRA run leaves alone is in its base.
    engine.save_checkpoint(
        str(temporary),
        tag=STATE,
        client_state={"step": step},
        save_latest=False,
        exclude_frozen_parameters=_has_adapter(engine),
    )
    dist.barrier()
    if dist.get_rank() == 0:
        write_json(temporary / COMPLETE, {"step": step, "workers": dist.get_world_size()})
        _sync_folder(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        for old in sorted(run_folder.checkpoints.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    dist.barrier()
    return folder


def _sync_folder(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def load(engine: DeepSpeedEngine, checkpoint: Checkpoint) -> int:
    """Puts a checkpoint's weights and optimizer states into the engine; returns the steps done."""
    strict = not _has_adapter(engine)
    found, client_state = engine.load_checkpoint(str(checkpoint.folder), tag=STATE, load_module_strict=strict)
    if found is None or client_state is None or client_state.get("step") != checkpoint.step:
        raise CheckpointError(
            f"{checkpoint.folder} is damaged; delete it to go on from the one before", code="checkpoint_damaged"
        )
    return checkpoint.step


def _has_adapter(engine: DeepSpeedEngine) -> bool:
    return bool(getattr(engine.module, "peft_config", None))


def export(pipeline: DynamiCtrlPipeline, weights: Mapping[str, Tensor], run: Run, facts: Mapping[str, Any]) -> Path:
    """Writes `RUN/model` whole or not at all, with its card; `weights` are `parallel.gather_weights`'s.

    A LoRA is fused into the model, and lies beside it as `RUN/model/lora` where it holds all that was learnt.
    """
    folder = RunFolder(run.out).model
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    if run.recipe.lora.lora_rank:
        weights = _take_adapter(pipeline, weights, run, temporary)
    if pipeline.pose_encoder is not None:
        pipeline.pose_encoder.load_state_dict(_under("pose_encoder.", weights))
        weights = _under("transformer.", weights)
    pipeline.transformer = _whole_transformer(pipeline, weights)
    pipeline.save_pretrained(temporary)
    (temporary / "README.md").write_text(model_card(run, facts), encoding="utf-8")
    write_json(temporary / "training.json", run.to_dict() | {"facts": dict(facts)})
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


def model_card(run: Run, facts: Mapping[str, Any]) -> str:
    """The exported folder's README.md: what it is, from what, and how to use it."""
    recipe, clips = run.recipe, run.recipe.clips
    mini = "\nA **mini** model: made for demonstration and tests, not a real one.\n" if facts.get("mini") else ""
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in facts.items())
    return f"""---
library_name: diffusers
pipeline_tag: image-to-video
---
# DynamiCtrl, recipe `{run.name}`
{mini}
Animates the person of a reference image with the poses of a driving video, under a prompt.

| fact | value |
|---|---|
| base | {recipe.model.base} |
| pose control | {recipe.model.pose_control} |
| pose encoding | {recipe.model.pose_encoding} |
| clips | {clips.num_frames} frames of {clips.width}x{clips.height} at {clips.fps:g} frames per second |
| steps x batch | {recipe.optimization.steps} x {recipe.optimization.batch_size} |
| learning rate | {recipe.optimization.learning_rate:g} |
| caption dropout | {recipe.clips.caption_dropout:g} |
| masked reference | {recipe.clips.masked_reference} |
| seed | {recipe.seed} |
{_lora_row(run)}{rows}

```python
from dynamictrl import DynamiCtrlPipeline

pipeline = DynamiCtrlPipeline.from_pretrained(FOLDER)
frames = pipeline(image=IMAGE, pose_video=POSES, prompt=PROMPT).frames[0]
```

All settings are in `training.json`. The base's licence holds for these weights too.
"""


def _lora_row(run: Run) -> str:
    lora = run.recipe.lora
    if not lora.lora_rank:
        return ""
    alone = "" if lora.lora_whole_pose else "; alone in `lora/`, for `pipeline.load_lora_weights` on the base"
    parts = ", ".join(part.replace("_", " ") for part in lora.lora_parts)
    return f"| LoRA | rank {lora.lora_rank}, scale {lora.lora_scale:g}, on {parts}; fused here{alone} |\n"
