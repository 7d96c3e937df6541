"""A checkpoint taken up by another number of workers, through DeepSpeed's universal checkpoints.

Its files are cut for the workers that wrote them. They are joined by parameter once, beside the checkpoint, and each
worker of the new number takes its own cut. Samples need no such care: their order is one for all numbers (`data`).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from dynamictrl.errors import CheckpointError
from training.checkpoints import on_disk
from training.checkpoints.on_disk import COMPLETE, STATE, Checkpoint

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

logger = logging.getLogger(__name__)

UNIVERSAL = "universal"
CHILD_BYTES = 2**30
"""Checkpoints at least this large are joined by child processes side by side; for others their start costs more."""
POLL_SECONDS = 0.1


def load(engine: DeepSpeedEngine, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Puts a checkpoint of another number of workers into the engine; all workers call it.

    Returns the client state. Raises CheckpointError where the states could not be joined.
    """
    _join_once(checkpoint)
    with _reads_universal(engine):
        found, client_state = engine.load_checkpoint(str(checkpoint.folder), tag=UNIVERSAL)
    _mend_steps(engine)
    return client_state if found is not None else None


def _join_once(checkpoint: Checkpoint) -> None:
    """The first worker joins the states; the others look for its word in the folder, as it may take minutes."""
    universal, failed = checkpoint.folder / UNIVERSAL, checkpoint.folder / ".universal.failed"
    first = dist.get_rank() == 0
    if first:
        failed.unlink(missing_ok=True)
    dist.barrier()
    if first and not (universal / COMPLETE).is_file():
        _join(checkpoint, universal, failed)
    while not (universal / COMPLETE).is_file():
        if failed.is_file():
            raise CheckpointError(json.loads(failed.read_text())["message"], code="checkpoint_not_joined")
        time.sleep(POLL_SECONDS)
    dist.barrier()


def _join(checkpoint: Checkpoint, universal: Path, failed: Path) -> None:
    started = time.perf_counter()
    temporary = universal.with_name(".universal.tmp")
    logger.info("joining the states of %d workers in %s", checkpoint.workers, checkpoint.folder)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(universal, ignore_errors=True)
        size = sum(written.size for written in checkpoint.files.values())
        convert = _convert_in_child if size >= CHILD_BYTES else _convert_here
        convert(checkpoint.folder / STATE, temporary)
        on_disk.sync_files(temporary)
        on_disk.write_safely(temporary / COMPLETE, {"step": checkpoint.step, "workers": checkpoint.workers})
        temporary.rename(universal)
        (checkpoint.folder / "latest_universal").unlink(missing_ok=True)
    except Exception as problem:
        shutil.rmtree(temporary, ignore_errors=True)
        message = (
            f"the states of {checkpoint.folder} could not be joined for another number of workers ({problem}); that "
            f"takes as much space again beside it. Go on with --num-workers {checkpoint.workers}, or free some space"
        )
        on_disk.write_safely(failed, {"message": message})
        raise CheckpointError(message, code="checkpoint_not_joined") from problem
    logger.info("joined in %.1f s", time.perf_counter() - started)


def _convert_here(source: Path, target: Path) -> None:
    from deepspeed.checkpoint.ds_to_universal import main

    target.mkdir(parents=True)
    options = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        main(options)


def _convert_in_child(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    side_by_side = str(max(1, min(8, (os.cpu_count() or 2) // 2)))
    command = [
        sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state",
        "--input_folder", str(source), "--output_folder", str(target),
        "--num_extract_workers", side_by_side, "--num_merge_workers", side_by_side,
    ]  # fmt: skip
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckpointError(done.stderr.strip()[-500:], code="checkpoint_not_joined")


@contextmanager
def _reads_universal(engine: DeepSpeedEngine) -> Iterator[None]:
    settings: Any = engine._config  # pyright: ignore[reportPrivateUsage] - read anew at every load
    settings.load_universal_checkpoint = True
    try:
        yield
    finally:
        settings.load_universal_checkpoint = False


def _mend_steps(engine: DeepSpeedEngine) -> None:
    """Gives every parameter group's state its own step counter, where AdamW looks for it.

    DeepSpeed puts one tensor from the CPU into all groups of ZeRO-3, which AdamW would then count up once a group, and
    which its fused kernel cannot read.
    """
    inner: Any = getattr(engine.optimizer, "optimizer", engine.optimizer)
    fused = any(group.get("fused") for group in inner.param_groups)
    for parameter, state in inner.state.items():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone().to(parameter.device if fused else "cpu", torch.float32)
