"""Starts a run: checks what can be checked before anything heavy, then trains here or on Ray."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

from dynamictrl import weights
from dynamictrl.errors import ConfigError
from training.checkpoints import on_disk
from training.config import Run
from training.engine.sequence_groups import check_heads
from training.lora import check_base
from training.planning import admission
from training.planning.plan import base_config
from training.release import model_card, provenance, registering, tracking
from training.run_folder import RunFolder
from training.samples.buckets import check_sizes
from training.samples.data import index_of
from training.summary.page import write_after
from training.validating import validation, validation_checks

logger = logging.getLogger(__name__)


def launch(run: Run) -> Path:
    """Trains a run to its end and returns the model folder; a finished run is only looked at.

    Raises ConfigError, DatasetError, CheckpointError or InputError before a cluster or GPU is touched, and
    DynamiCtrlError with code run_failed for a failure on the way.
    """
    run = _with_group(run)
    check(run)
    run = _with_absolute_paths(run)
    folder = RunFolder(run.out)
    index = index_of(run, encodings=False)
    encoded = index.has_encodings and run.recipe.clips.encodings != "online"
    run = admission.settled(run, precomputed=encoded)
    if _in_group() and os.environ["RANK"] != "0":
        return _follow(run)
    if not is_finished(run):
        admission.admit(run, precomputed=encoded)
    validation_checks.check(run, [entry.key for entry in index.entries])
    folder.claim(run, index.fingerprint)
    index.keep(run.out)
    logger.info("%d clips of %s; run folder %s", len(index.entries), run.data, run.out)
    tracked = tracking.open_run(run)
    if not is_finished(run):
        folder.failure.unlink(missing_ok=True)
        try:
            _train(run, tracked)
        except BaseException as problem:
            if tracked is not None:
                tracking.close_early(tracked, problem)
            raise
        finally:
            write_after(run.out)
    else:
        logger.info("the run is finished already")
        if validation.is_behind(run):
            _validate(run, tracked)
    model_card.renew(run)
    if tracked is not None:
        _finish(run, tracked, folder.model)
    return folder.model


def _in_group() -> bool:
    """Whether torchrun has started this process, as one of the workers."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _with_group(run: Run) -> Run:
    """Under torchrun there are as many workers as it has started, whatever the recipe says."""
    if not _in_group():
        return run
    workers = replace(run.recipe.workers, num_workers=int(os.environ["WORLD_SIZE"]), min_workers=0)
    return replace(run, recipe=replace(run.recipe, workers=workers))


def _follow(run: Run) -> Path:
    """What torchrun's other processes do: they train, and leave records and registration to the first."""
    if is_finished(run):
        return RunFolder(run.out).model
    from training.trainer import train

    return train(run)


def _finish(run: Run, tracked: tracking.TrackedRun, model: Path) -> None:
    version = registering.finish(tracked, run, model)
    if version is not None:
        logger.info("registered as %s version %s", run.recipe.records.registered_model, version)


def check(run: Run) -> None:
    """Refuses a run that cannot work: its base, its sizes, its folder, its number of workers."""
    if not run.data.is_dir():
        raise ConfigError(f"the data set folder {run.data} does not exist; give an existing --data", param="data")
    if run.out.exists() and not run.out.is_dir():
        raise ConfigError(f"--out {run.out} is a file; give a folder", param="out")
    if run.recipe.model.base.startswith("mini/") or Path(run.recipe.model.base).is_dir():
        weights.resolve(run.recipe.model.base, ("model_index.json",))
    config = base_config(run.recipe.model.base)
    check_base(run.recipe.lora, run.recipe.model, config)
    check_sizes(run.recipe, config)
    check_heads(run.recipe, config)
    if run.recipe.workers.zero_stage:
        on_disk.check_layout(on_disk.newest(RunFolder(run.out).checkpoints), run.recipe.workers.zero_stage)


def _with_absolute_paths(run: Run) -> Run:
    """Workers do not share this process's working directory, and neither does a rerun."""
    told = run.recipe.validation
    if told.validation_data is not None:
        told = replace(told, validation_data=told.validation_data.expanduser().resolve())
        run = replace(run, recipe=replace(run.recipe, validation=told))
    base = Path(run.recipe.model.base).expanduser()
    if not base.is_dir():
        return run
    return replace(run, recipe=replace(run.recipe, model=replace(run.recipe.model, base=str(base.resolve()))))


def is_finished(run: Run) -> bool:
    """Whether the model of this very run is exported."""
    try:
        exported = json.loads((RunFolder(run.out).model / "training.json").read_text())
    except (OSError, ValueError):
        return False
    return exported["recipe"]["optimization"]["steps"] == run.recipe.optimization.steps


def _train(run: Run, tracked: tracking.TrackedRun | None) -> None:
    if run.recipe.workers.num_workers > 0 and not _in_group():
        from training.cluster.ray_launcher import train_on_ray

        train_on_ray(run, tracked)
        return
    from training.callbacks.progress import Progress
    from training.callbacks.recording import record
    from training.trainer import train

    provenance.write_environment(run.out)
    shown = Progress(run.recipe.optimization.steps, run.recipe.records.log_every)
    with validation.alongside(run, tracked, validation.ChildProcess()):
        train(run, [*record(run, tracked), shown])


def _validate(run: Run, tracked: tracking.TrackedRun | None) -> None:
    """What a session that was stopped after the training has left to validate."""
    if run.recipe.workers.num_workers > 0 and not _in_group():
        from training.cluster.ray_launcher import validate_on_ray

        validate_on_ray(run, tracked)
        return
    with validation.alongside(run, tracked, validation.ChildProcess()):
        pass
