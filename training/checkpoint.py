"""What a run leaves on disk, and its checkpoints; `export` writes the model folder.

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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dynamictrl.errors import CheckpointError, ConfigError
from dynamictrl.shards import write_json
from training.config import Run, differences

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

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
