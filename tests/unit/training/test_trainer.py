"""The trainer on one process: what it learns, what it leaves, and that a stop changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from dynamictrl.errors import ConfigError, DynamiCtrlError
from training.callbacks import Callback
from training.callbacks.metrics_file import MetricsFile, read_lines
from training.checkpoints import on_disk
from training.config import Recipe, Run
from training.engine.step import learning_rate
from training.recipes import tiny_on_cpu
from training.run_folder import RunFolder
from training.samples.data import build_index
from training.settings.model import PoseControl
from training.trainer import train

METRICS = {
    "loss", "grad_norm", "learning_rate", "step_seconds", "tokens_per_second", "data_stall_fraction", "skipped_steps",
    "peak_memory_gib", "spikes", "clipped", "samples_seen", "epoch",
    "data_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds",
}  # fmt: skip


class StopAfter(Callback):
    """Ends a session as a kill would: in the middle of the loop."""

    def __init__(self, step: int):
        self._step = step

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self._step:
            raise KeyboardInterrupt


@pytest.fixture
def recipe(tiny_model: Path) -> Recipe:
    small = tiny_on_cpu()
    return replace(small, model=replace(small.model, base=str(tiny_model)))


def run_of(recipe: Recipe, data: Path, out: Path) -> Run:
    out.mkdir()
    return Run(name="tiny-on-cpu", data=data, out=out, recipe=recipe)


def transformer_weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")


def test_two_steps_and_a_resume_to_four_are_four_steps_bit_for_bit(recipe: Recipe, small_dataset: Path, tmp_path: Path):
    noisy = replace(recipe, clips=replace(recipe.clips, image_noise=True))
    straight = run_of(noisy, small_dataset, tmp_path / "straight")
    stopped = run_of(noisy, small_dataset, tmp_path / "stopped")

    train(straight, [MetricsFile(RunFolder(straight.out).metrics)])
    with pytest.raises(KeyboardInterrupt):
        train(stopped, [MetricsFile(RunFolder(stopped.out).metrics), StopAfter(3)])
    assert not RunFolder(stopped.out).model.exists()
    train(stopped, [MetricsFile(RunFolder(stopped.out).metrics)])

    one, other = (transformer_weights(RunFolder(run.out).model) for run in (straight, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)
    lines = [read_lines(RunFolder(run.out).metrics) for run in (straight, stopped)]
    for name in ("step", "loss", "grad_norm", "learning_rate"):
        assert [line[name] for line in lines[0]] == [line[name] for line in lines[1]]
    assert {name for name in lines[0][0] if not name.startswith("loss/")} == METRICS | {"step", "time"}


def test_the_export_loads_and_every_transformer_weight_has_moved(recipe: Recipe, small_dataset: Path, tmp_path: Path):
    from dynamictrl.animation import DynamiCtrlPipeline

    model = train(run_of(recipe, small_dataset, tmp_path / "run"))

    pipeline = DynamiCtrlPipeline.from_pretrained(model)
    before = transformer_weights(Path(recipe.model.base))
    after = pipeline.transformer.state_dict()
    # The first optimizer step of AdamW moves every weight that has a gradient; the last block's pose gate has none.
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert still == []
    vaes = [
        load_file(folder / "vae" / "diffusion_pytorch_model.safetensors") for folder in (Path(recipe.model.base), model)
    ]
    assert all(torch.equal(vaes[0][name], vaes[1][name]) for name in vaes[0])
    assert "| base |" in (model / "README.md").read_text()


def test_a_learning_rate_of_zero_exports_the_base_unchanged(recipe: Recipe, small_dataset: Path, tmp_path: Path):
    frozen = replace(recipe, optimization=replace(recipe.optimization, learning_rate=0.0, steps=1))
    model = train(run_of(frozen, small_dataset, tmp_path / "run"))

    before, after = transformer_weights(Path(recipe.model.base)), transformer_weights(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_every_zero_stage_exports_the_same_weights(
    recipe: Recipe, small_dataset: Path, tmp_path: Path, zero_stage: Literal[1, 3]
):
    once = replace(recipe, optimization=replace(recipe.optimization, steps=2))
    other = replace(once, workers=replace(once.workers, zero_stage=zero_stage))
    one = transformer_weights(train(run_of(once, small_dataset, tmp_path / "two")))
    two = transformer_weights(train(run_of(other, small_dataset, tmp_path / "other")))

    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


@pytest.mark.parametrize("pose_control", ["padaln_residual", "cross_attention", "direct_addition", "unified_tokens"])
def test_every_pose_control_trains_from_the_same_base(
    recipe: Recipe, small_dataset: Path, tmp_path: Path, pose_control: PoseControl
):
    varied = replace(
        recipe,
        model=replace(recipe.model, pose_control=pose_control),
        optimization=replace(recipe.optimization, steps=1),
    )
    model = train(run_of(varied, small_dataset, tmp_path / "run"))

    assert json.loads((model / "transformer" / "config.json").read_text())["pose_control"] == pose_control


def test_the_first_stage_of_the_non_text_baseline_leaves_the_pose_silent(
    recipe: Recipe, small_dataset: Path, tmp_path: Path
):
    first = replace(
        recipe,
        model=replace(recipe.model, learn_pose=False),
        clips=replace(recipe.clips, caption_dropout=1.0),
        optimization=replace(recipe.optimization, steps=1),
    )
    stage_1 = train(run_of(first, small_dataset, tmp_path / "first"))
    assert all(not w.any() for name, w in transformer_weights(stage_1).items() if "control_norm1" in name)

    second = replace(first, model=replace(recipe.model, base=str(stage_1), fresh_pose=True))
    stage_2 = train(run_of(second, small_dataset, tmp_path / "second"))
    assert all(w.any() for name, w in transformer_weights(stage_2).items() if "control_norm1" in name)


def test_accumulating_micro_batches_is_one_batch(recipe: Recipe, small_dataset: Path, tmp_path: Path):
    once = replace(recipe, optimization=replace(recipe.optimization, steps=2, batch_size=2, micro_batch_size=2))
    parts = replace(once, optimization=replace(once.optimization, micro_batch_size=1))
    one = transformer_weights(train(run_of(once, small_dataset, tmp_path / "one")))
    two = transformer_weights(train(run_of(parts, small_dataset, tmp_path / "two")))

    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_reading_ahead_and_caching_change_nothing(recipe: Recipe, small_dataset: Path, tmp_path: Path):
    ahead = replace(recipe, clips=replace(recipe.clips, loader_threads=3, cache_gib=0.0, share_encodings=False))
    shared = replace(recipe, clips=replace(recipe.clips, cache_gib=0.0, share_encodings=True))
    models = [
        train(run_of(varied, small_dataset, tmp_path / name))
        for name, varied in (("one", recipe), ("ahead", ahead), ("shared", shared))
    ]
    one, *others = map(transformer_weights, models)

    assert all(torch.equal(one[name], other[name]) for other in others for name in one)
    assert not (tmp_path / "shared" / "encodings").exists()


def test_a_loss_that_is_not_a_number_stops_the_run(recipe: Recipe, small_dataset: Path, tmp_path: Path):
    wild = replace(
        recipe,
        optimization=replace(recipe.optimization, learning_rate=1e30, steps=20, max_grad_norm=0.0),
        watch=replace(recipe.watch, max_skipped_steps=3),
    )
    run = run_of(wild, small_dataset, tmp_path / "run")

    with pytest.raises(DynamiCtrlError, match="lower --learning-rate") as caught:
        train(run)
    assert caught.value.code == "run_failed"
    assert not RunFolder(run.out).model.exists()


def test_half_written_checkpoints_are_passed_by_and_only_the_newest_are_kept(
    recipe: Recipe, small_dataset: Path, tmp_path: Path
):
    short = replace(recipe, checkpoints=replace(recipe.checkpoints, checkpoint_every=1, keep_checkpoints=2))
    run = run_of(short, small_dataset, tmp_path / "run")
    left_over = RunFolder(run.out).checkpoints / ".step-00000009.tmp"
    left_over.mkdir(parents=True)
    train(run)

    assert sorted(path.name for path in RunFolder(run.out).checkpoints.iterdir()) == ["step-00000003", "step-00000004"]
    found = on_disk.newest(RunFolder(run.out).checkpoints)
    assert found is not None
    assert (found.step, found.workers) == (4, 1)
    with pytest.raises(ConfigError, match="--zero-stage 2"):
        on_disk.check_layout(found, 3)


def test_a_run_folder_refuses_other_settings_other_data_and_other_content(
    recipe: Recipe, small_dataset: Path, tmp_path: Path
):
    run = run_of(recipe, small_dataset, tmp_path / "run")
    folder = RunFolder(run.out)
    fingerprint = build_index(small_dataset, recipe.clips).fingerprint
    folder.claim(run, fingerprint)
    folder.claim(run, fingerprint)

    with pytest.raises(ConfigError, match="seed: 42 -> 1"):
        folder.claim(replace(run, recipe=replace(recipe, seed=1)), fingerprint)
    with pytest.raises(ConfigError, match="clips of the data set"):
        folder.claim(run, "0123")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "novel.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        RunFolder(tmp_path / "full").claim(run, fingerprint)


def test_the_learning_rate_rises_and_ends_at_nothing():
    optimization = replace(tiny_on_cpu().optimization, steps=100, warmup_steps=10, learning_rate=1.0)

    assert learning_rate(optimization, 0) == pytest.approx(0.1)
    assert learning_rate(optimization, 9) == learning_rate(optimization, 10) == 1.0
    assert learning_rate(optimization, 55) == pytest.approx(0.5)
    assert learning_rate(optimization, 99) < 0.001
    assert learning_rate(replace(optimization, schedule="constant"), 99) == 1.0


def test_precomputed_encodings_are_used_where_they_fit_and_give_the_same_model(
    recipe: Recipe, small_dataset: Path, tmp_path: Path
):
    single = replace(recipe, clips=replace(recipe.clips, windows_per_clip=1))
    data = write_encoded(single, small_dataset, tmp_path / "encoded")
    used = build_index(data, single.clips)
    assert used.has_encodings
    one = transformer_weights(train(run_of(single, small_dataset, tmp_path / "one")))
    two = transformer_weights(train(run_of(single, data, tmp_path / "two")))

    assert all(torch.equal(one[name], two[name]) for name in one)


def write_encoded(recipe: Recipe, data: Path, out: Path) -> Path:
    """The data set with encodings of each clip's first window, as `pipelines encode` writes it."""
    import shutil

    from dynamictrl.conditioning import PromptEncoder
    from dynamictrl.samples import encodings, shards
    from dynamictrl.samples.windows import Window, read_window
    from training.engine import starting_weights
    from training.samples.frozen_models import FrozenModels

    pipeline = starting_weights.load(recipe)
    prompts = PromptEncoder(
        pipeline.tokenizer, pipeline.text_encoder, pipeline.transformer.config["max_text_seq_length"]
    )
    frozen = FrozenModels(pipeline.vae, prompts, 1.0)
    clips, base = recipe.clips, Path(recipe.model.base)
    window = Window(0, clips.num_frames, clips.height, clips.width, clips.fps)
    by = encodings.EncodedBy(
        window, encodings.folder_hash(base / "vae"), encodings.folder_hash(base / "text_encoder"), "none"
    )
    shutil.copytree(data, out)
    for shard in sorted((out / "shards").glob("*.tar")):
        samples = [
            shards.Sample(
                sample.key,
                {**sample.members, shards.LATENTS: encodings.to_bytes(frozen.encode(read_window(sample, window)), by)},
            )
            if sample.info["frames"] >= clips.num_frames
            else sample
            for sample in shards.iter_shard(shard)
        ]
        shards.write_shard(shard, samples)
    return out
