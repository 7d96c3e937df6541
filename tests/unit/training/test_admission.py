"""What is refused before a cluster or GPU is touched, and what a launch decides that was left open."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dynamictrl.errors import ConfigError
from training.__main__ import main
from training.config import Recipe, Run
from training.engine import parallel
from training.planning import admission
from training.planning.shapes import base_config
from training.recipes import dynamictrl_5b, mini, tiny_on_cpu

FIVE_B = base_config("zai-org/CogVideoX-5b-I2V")
CHECKPOINT, MODEL = 80.8e9, 21.5e9


def _run(recipe: Recipe, out: Path, **workers: object) -> Run:
    return Run(name="a", data=out, out=out, recipe=replace(recipe, workers=replace(recipe.workers, **workers)))


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_run_that_no_gpu_of_that_size_holds_is_refused_with_the_flags_that_would_do(tmp_path: Path):
    with pytest.raises(ConfigError, match="--offload-optimizer True") as refused:
        admission.check_device(_run(dynamictrl_5b(), tmp_path, num_workers=1).recipe, 80, precomputed=True)

    assert refused.value.code == "does_not_fit"
    admission.check_device(_run(dynamictrl_5b(), tmp_path, num_workers=8).recipe, 80, precomputed=True)


def test_the_command_refuses_it_before_it_writes_anything(
    small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    small = ["--buckets", "5x32x32", "--fps", "0", "--num-workers", "1", "--keep-checkpoints", "1"]
    command = ["dynamictrl-5b", "--data", str(small_dataset), "--out", str(out), *small, "--gpu-memory-gib", "16"]

    assert main(command) == 2
    told = capsys.readouterr().err
    assert "GiB" in told or "GB free" in told  # a disk of a few GB is told of first
    assert not out.exists()


def test_a_run_on_cpus_is_not_held_against_a_gpu(tmp_path: Path):
    admission.admit(_run(mini(), tmp_path, gpu_memory_gib=0.001), precomputed=False)


def test_where_the_gpus_are_a_clusters_only_a_given_size_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    recipe = dynamictrl_5b()

    assert admission.gpu_memory_gib(recipe) is None
    assert admission.gpu_memory_gib(_run(recipe, tmp_path, gpu_memory_gib=80).recipe) == 80
    with pytest.raises(ConfigError, match="--gpu-memory-gib"):
        admission.settled(_run(recipe, tmp_path, zero_stage=0), precomputed=True)


@pytest.mark.parametrize(("memory_gib", "stage"), [(139, 2), (40, 3)])
def test_a_stage_that_was_left_open_is_settled_by_the_gpus_memory(tmp_path: Path, memory_gib: float, stage: int):
    run = _run(dynamictrl_5b(), tmp_path, zero_stage=0, gpu_memory_gib=memory_gib)

    settled = admission.settled(run, precomputed=True)

    assert settled.recipe.workers.zero_stage == stage
    assert settled == admission.settled(run, precomputed=True)
    assert Run.from_dict(settled.to_dict()).recipe.workers.zero_stage == stage  # as run.json holds it


def test_a_run_that_goes_on_keeps_the_stage_of_its_checkpoints(tmp_path: Path):
    folder = tmp_path / "checkpoints" / "step-00000002"
    folder.mkdir(parents=True)
    marker = {"step": 2, "workers": 8, "zero_stage": 3, "files": {}}
    (folder / "COMPLETE").write_text(json.dumps(marker))
    run = _run(dynamictrl_5b(), tmp_path, zero_stage=0, gpu_memory_gib=139)

    assert admission.settled(run, precomputed=True).recipe.workers.zero_stage == 3


def test_a_cpu_run_that_leaves_its_stage_open_shards_gradients_too(tmp_path: Path):
    assert admission.settled(_run(mini(), tmp_path, zero_stage=0), precomputed=False).recipe.workers.zero_stage == 2


def test_a_disk_that_cannot_hold_two_checkpoints_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"has 100\.0 GB free, and this run needs 161\.\d GB") as refused:
        admission.check_disk(dynamictrl_5b(), FIVE_B, tmp_path, free=int(100e9))

    assert refused.value.code == "disk_full"


def test_a_disk_that_cannot_hold_all_that_is_kept_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        admission.check_disk(dynamictrl_5b(), FIVE_B, tmp_path, free=int(2 * CHECKPOINT + MODEL))
    assert "--keep-checkpoints" in caplog.text

    caplog.clear()
    admission.check_disk(dynamictrl_5b(), FIVE_B, tmp_path, free=int(3.1 * CHECKPOINT + MODEL))
    assert not caplog.text


def test_what_checkpoints_take_already_is_room_for_those_to_come(tmp_path: Path):
    state = tmp_path / "checkpoints" / "step-00000001" / "state"
    state.mkdir(parents=True)
    with (state / "shard.pt").open("wb") as sparse:
        sparse.truncate(int(CHECKPOINT))  # takes no room on the test's own disk

    admission.check_disk(dynamictrl_5b(), FIVE_B, tmp_path, free=int(1.1 * CHECKPOINT))


def test_offloaded_states_need_host_memory():
    recipe = dynamictrl_5b()
    offloaded = replace(recipe, workers=replace(recipe.workers, offload_optimizer=True))

    with pytest.raises(ConfigError, match="64 GB") as refused:
        admission.check_host(offloaded, FIVE_B, int(64e9))
    assert refused.value.param == "offload_optimizer"
    admission.check_host(offloaded, FIVE_B, int(512e9))


def test_this_machines_memory_is_known():
    assert admission.host_bytes() > 1e9
    assert all(gib > 1 for gib in admission.local_gpus_gib())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloaded_states_train_the_same_model_without_a_compiler(stage: int):
    assert _losses(stage, offload=True) == _losses(stage, offload=False)


def _losses(stage: int, *, offload: bool) -> list[float]:
    recipe = tiny_on_cpu()
    workers = replace(recipe.workers, zero_stage=stage, precision="bf16", offload_optimizer=offload)
    recipe = replace(
        recipe,
        workers=workers,
        optimization=replace(recipe.optimization, batch_size=2, micro_batch_size=2, learning_rate=1e-2),
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4)).bfloat16()
    engine = parallel.make_engine(model, recipe, parallel.join(recipe))
    losses = []
    for step in range(3):
        inputs = torch.randn(2, 8, generator=torch.Generator().manual_seed(step)).bfloat16()
        loss = engine(inputs).float().square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    assert losses[0] != losses[2]
    return losses
