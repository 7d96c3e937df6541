"""Writes the model folder of a run: the diffusers folder with its card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamictrl.errors import CheckpointError
from dynamictrl.shards import write_json
from training.checkpoint import RunFolder
from training.config import Run

if TYPE_CHECKING:
    from torch import Tensor

    from dynamictrl.animation import DynamiCtrlPipeline


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
