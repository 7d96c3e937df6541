"""Samples and measures the clips of one validation, from a checkpoint; run beside the training, never in it.

`python -m training.validating.validation_sampling RUN STEP` is the child process of a run without Ray; `ray_validation`
calls `sample` in a Ray task.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamictrl.samples.shards import write_json
from training.checkpoints.on_disk import Checkpoint, name_of
from training.config import Recipe, Run
from training.run_folder import RunFolder
from training.samples.data import Entry, build_index
from training.settings.clips import Clips
from training.settings.evaluation import Evaluation
from training.validating.validation_results import METRICS, folder_of

if TYPE_CHECKING:
    from dynamictrl.animation import DynamiCtrlPipeline

logger = logging.getLogger(__name__)


def sampled_clips(recipe: Recipe) -> tuple[Clips, tuple[Entry, ...]]:
    """The size that clips are sampled at (of several, the first), and which they are.

    Raises DatasetError where the folder is no data set or holds no clip that is long enough.
    """
    data, size = recipe.validation.validation_data, recipe.clips.sizes[0]
    assert data is not None
    clips = dataclasses.replace(
        recipe.clips,
        height=size.height,
        width=size.width,
        num_frames=size.num_frames,
        buckets=(),
        bucket_samples=0,
        windows_per_clip=1,
        masked_reference="none",
    )
    return clips, tuple(build_index(data, clips).entries[: recipe.validation.validation_clips])


def sample(run: Run, step: int) -> Path:
    """Samples the validation clips with a checkpoint's weights (their average, where one is kept) and measures them.

    Returns the folder, which is there only when it is whole; one that is there already is left as it is.
    """
    folder = folder_of(run.out, step)
    if folder.is_dir():
        return folder
    from training import evaluate

    started = time.time()
    clips, entries = sampled_clips(run.recipe)
    pipelines = {"model": _pipeline(run, step)}
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    settings = _settings(run, temporary)
    try:
        records = {
            entry.key: evaluate.score_clip(entry, clips, pipelines, settings, temporary / f"{entry.key}.mp4")
            for entry in entries
        }
        scores: evaluate.Scored = {key: record["scores"] for key, record in records.items()}
        told = {
            "step": step,
            "weights": "ema" if run.recipe.optimization.ema_decay else "raw",
            "identity": identity(run.recipe, clips, entries),
            "mean": evaluate.mean_scores(scores.values()),
            "per_clip": scores,
            "captions": {key: record["caption"] for key, record in records.items()},
            "seconds": time.time() - started,
            "finished": time.time(),
        }
        write_json(temporary / METRICS, told)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def identity(recipe: Recipe, clips: Clips, entries: tuple[Entry, ...]) -> str:
    """Names what is compared: the clips, their size, the sampler and its noise."""
    told = recipe.validation
    shown = [clips.height, clips.width, clips.num_frames, clips.fps, clips.crop]
    sampler = [told.validation_steps, told.validation_guidance, told.validation_seed]
    text = json.dumps([[entry.key for entry in entries], shown, sampler])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _pipeline(run: Run, step: int) -> DynamiCtrlPipeline:
    """The run's pipeline as it stood after so many steps, where it shall sample."""
    import torch

    from training.checkpoints import consolidation
    from training.engine import starting_weights

    found = Checkpoint.read(RunFolder(run.out).checkpoints / name_of(step))
    averaged = run.recipe.optimization.ema_decay > 0
    pipeline, weights = consolidation.load(run.recipe, found, averaged=averaged)
    learner = starting_weights.learner(pipeline, torch.device("cpu"))
    learner.load_state_dict(weights)
    learner.requires_grad_(False).eval()
    on_gpu = run.recipe.validation.validation_gpus > 0
    pipeline.to("cuda" if on_gpu else "cpu", torch.bfloat16 if on_gpu else torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _settings(run: Run, out: Path) -> Evaluation:
    told = run.recipe.validation
    assert told.validation_data is not None
    return Evaluation(
        model=str(out),
        data=told.validation_data,
        out=out,
        num_inference_steps=told.validation_steps,
        guidance_scale=told.validation_guidance,
        seed=told.validation_seed,
    )


def main(arguments: list[str]) -> int:
    """The child process: one validation, for as long as its parent lives (which holds our standard input)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    out, step = Path(arguments[0]), int(arguments[1])
    values: dict[str, Any] = json.loads((out / "run.json").read_text())
    sample(Run.from_dict(values | {"out": str(out)}), step)
    return 0


def _leave_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
