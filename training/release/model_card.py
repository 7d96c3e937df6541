"""The exported folder's README.md: what the model is, from what it was made, what it reached, and what it is not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.callbacks.metrics_file import read_lines
from training.config import Run
from training.run_folder import RunFolder
from training.validating.validation_results import HIGHER_IS_BETTER, Result, result_at

LAST_LOSSES = 100
UNITS = {
    "psnr": "PSNR* (dB)",
    "ssim": "SSIM",
    "mean_absolute_error": "mean absolute error (0 to 255)",
    "l1_disco": "L1 (DisCo)",
}


def write(folder: Path, run: Run) -> None:
    """Writes a model folder's card from its training.json and from what the run folder and the data set say."""
    told = json.loads((folder / "training.json").read_text())
    text = model_card(run, told["facts"], int(told["step"]))
    temporary = folder / ".README.md.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / "README.md")


def renew(run: Run) -> None:
    """Brings what was validated after the export into the card."""
    folder = RunFolder(run.out).model
    if (folder / "training.json").is_file():
        write(folder, run)


def facts_at(run: Run, step: int) -> dict[str, Any]:
    """What the run's own files say of a step, for the card of a checkpoint."""
    losses = [line["loss"] for line in read_lines(RunFolder(run.out).metrics) if line["step"] <= step]
    last = losses[-LAST_LOSSES:]
    facts: dict[str, Any] = {"last_loss": round(losses[-1], 5) if losses else "not on record"}
    if last:
        facts[f"mean_loss_of_the_last_{len(last)}_steps"] = round(sum(last) / len(last), 5)
    return facts | {"mini": run.recipe.model.base.startswith("mini/")}


def model_card(run: Run, facts: Mapping[str, Any], step: int) -> str:
    """The text, with the front matter that the Hugging Face hub reads."""
    mini = "\nA **mini** model: made for demonstration and tests, not a real one.\n" if facts.get("mini") else ""
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in _rows(run, facts, step))
    validated = result_at(run.out, step)
    return f"""---
{_front_matter(run)}---
# DynamiCtrl, recipe `{run.name}`
{mini}
Animates the person of a reference image with the poses of a driving video, under a prompt.

| fact | value |
|---|---|
{rows}
{_validation(validated) if validated else ""}
```python
from dynamictrl import DynamiCtrlPipeline

pipeline = DynamiCtrlPipeline.from_pretrained(FOLDER)
frames = pipeline(image=IMAGE, pose_video=POSES, prompt=PROMPT).frames[0]
```

All settings are in `training.json`.

## Limits

Trained on one person a clip, at the size and length above; other sizes, several persons, hands and faces in detail, and
poses far from those trained on come out worse. It makes videos of people: use it only for persons who have agreed, and
say that a video was made. The base's licence holds for these weights too, and so do the terms of the data.
"""


def _front_matter(run: Run) -> str:
    base = run.recipe.model.base
    on_hub = base.count("/") == 1 and not base.startswith(("mini/", ".", "/", "~"))
    lines = ["library_name: diffusers", "pipeline_tag: image-to-video", "tags:", "- dynamictrl", "- pose-control"]
    if run.recipe.lora.lora_rank:
        lines.append("- lora")
    if on_hub:
        lines.append(f"base_model: {base}")
    # The base's terms hold, which the hub has no short name for.
    lines += ["license: other", "license_name: as-the-base-model"]
    return "".join(f"{line}\n" for line in lines)


def _rows(run: Run, facts: Mapping[str, Any], step: int) -> Iterator[tuple[str, object]]:
    recipe, optimization = run.recipe, run.recipe.optimization
    sizes = ", ".join(str(size) for size in recipe.clips.sizes)
    yield "base", recipe.model.base
    yield "pose control", recipe.model.pose_control
    yield "pose encoding", recipe.model.pose_encoding
    yield from _data_rows(run)
    yield "shown (frames x height x width)", f"{sizes} at {recipe.clips.fps:g} frames per second"
    yield "steps x batch", f"{step} of {optimization.steps} x {optimization.batch_size}"
    yield "learning rate", f"{optimization.learning_rate:g}"
    if optimization.ema_decay:
        yield "moving average", f"decay {optimization.ema_decay:g}"
    yield "caption dropout", f"{recipe.clips.caption_dropout:g}"
    yield "masked reference", recipe.clips.masked_reference
    yield "precision", recipe.workers.precision
    yield "seed", recipe.seed
    if recipe.lora.lora_rank:
        yield "LoRA", _lora(run)
    yield from _hardware_rows(run)
    for name, value in facts.items():
        yield name.replace("_", " "), value


def _data_rows(run: Run) -> Iterator[tuple[str, object]]:
    yield "data set", run.data.name
    try:
        told = json.loads((run.data / "dataset.json").read_text())
    except (OSError, ValueError):
        return
    kept = (told.get("counts") or {}).get("kept")
    if kept is not None:
        yield "clips of the data set", kept
    seconds = (told.get("seconds") or {}).get("kept")
    if seconds is not None:
        yield "hours of the data set", round(float(seconds) / 3600, 2)
    licences = _licences(run.data)
    if licences:
        yield "licences of the data", ", ".join(f"{name or 'not stated'} ({n} clips)" for name, n in licences)


def _licences(data: Path) -> list[tuple[str, int]]:
    path = data / "manifest.parquet"
    if not path.is_file():
        return []
    import pyarrow.parquet as parquet

    columns = set(parquet.read_schema(path).names)
    if not {"licence", "reason"} <= columns:
        return []
    table = parquet.read_table(path, columns=["licence", "reason"]).to_pydict()
    kept = Counter(licence for licence, why in zip(table["licence"], table["reason"], strict=True) if not why)
    return kept.most_common()


def _hardware_rows(run: Run) -> Iterator[tuple[str, object]]:
    workers = run.recipe.workers
    try:
        told = json.loads((run.out / "environment.json").read_text())
    except (OSError, ValueError):
        told = {}
    gpus = told.get("gpus") or []
    device = gpus[0] if isinstance(gpus, list) and gpus else workers.device
    yield "hardware", f"{max(1, workers.num_workers)} x {device if isinstance(device, str) else workers.device}"


def _lora(run: Run) -> str:
    lora = run.recipe.lora
    alone = "" if lora.lora_whole_pose else "; alone in `lora/`, for `pipeline.load_lora_weights` on the base"
    parts = ", ".join(part.replace("_", " ") for part in lora.lora_parts)
    return f"rank {lora.lora_rank}, scale {lora.lora_scale:g}, on {parts}; fused here{alone}"


def _validation(result: Result) -> str:
    rows = "\n".join(
        f"| {UNITS[name]} | {value:.4g} | {'higher' if HIGHER_IS_BETTER[name] else 'lower'} |"
        for name, value in result.values.items()
        if name in UNITS
    )
    return f"""
## Validation

Sampled on {len(result.keys)} clips that were not trained on; the first frame is given and not scored.

| measure | mean | better |
|---|---|---|
{rows}

Clips: {", ".join(f"`{key}`" for key in result.keys)}
"""


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
