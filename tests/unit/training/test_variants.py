"""Every variant of the paper: built from a plain base, learns, and is driven by poses when run.

Structure x pose encoding x text x mask. What a recipe says is built by the recipe's own road (`starting_weights`, the
loader, the collator); only the optimizer is plain, so that thirty steps take a second.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dynamictrl import DynamiCtrlPipeline, objective
from dynamictrl.conditioning import PromptEncoder
from dynamictrl.errors import ConfigError
from dynamictrl.pose_encoder import PoseEncodedTransformer, PoseEncoder
from training.config import Recipe, Run
from training.engine import starting_weights
from training.lora import Lora
from training.recipes import RECIPES, tiny_on_cpu
from training.samples.batches import Batch, Collator
from training.samples.data import build_index
from training.samples.frozen_models import FrozenModels, image_scale
from training.samples.loader import Loader
from training.samples.order import Order

CPU = torch.device("cpu")
CONTROLS = ("padaln", "padaln_residual", "cross_attention", "unified_tokens", "direct_addition")
VARIANTS = [
    pytest.param(control, encoding, text, mask, id=f"{control}-{encoding}-{text}-{mask}")
    for row, control in enumerate(CONTROLS)
    for column, encoding in enumerate(("shared_vae", "expert"))
    for text, mask in (
        [("joint", "none"), ("non", "background")] if (row + column) % 2 else [("joint", "clothes"), ("non", "none")]
    )
]


@pytest.fixture(scope="module")
def plain_base(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel

    loaded = DynamiCtrlPipeline.from_pretrained(tiny_model)
    config = {key: value for key, value in loaded.transformer.config.items() if key != "pose_control"}
    torch.manual_seed(1)
    stock = CogVideoXTransformer3DModel.from_config(config)
    parts = {name: getattr(loaded, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")}
    folder = tmp_path_factory.mktemp("plain") / "base"
    CogVideoXImageToVideoPipeline(**parts, transformer=stock).save_pretrained(folder)
    return folder


def recipe_for(base: Path, control: str, encoding: str, text: str, mask: str) -> Recipe:
    tiny = tiny_on_cpu()
    model = replace(tiny.model, base=str(base), pose_control=control, pose_encoding=encoding)  # pyright: ignore[reportArgumentType]
    dropout = 0.0 if text == "joint" else 1.0
    clips = replace(tiny.clips, caption_dropout=dropout, image_dropout=0.0, masked_reference=mask)  # pyright: ignore[reportArgumentType]
    return replace(tiny, model=model, clips=clips)


def one_batch(pipeline: DynamiCtrlPipeline, recipe: Recipe, data: Path) -> Batch:
    prompts = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder, 16)
    scale = image_scale(pipeline.vae, "base")
    frozen = FrozenModels(pipeline.vae, prompts, scale, encodes_pose=pipeline.pose_encoder is None)
    order = Order(recipe.seed, recipe.clips, build_index(data, recipe.clips).entries)
    samples = list(Loader(order, frozen, recipe.clips).load([0, 1]))
    return Collator(frozen, recipe.clips, 2, CPU)(samples, [300, 700])


@pytest.mark.parametrize(("control", "encoding", "text", "mask"), VARIANTS)
def test_a_variant_learns_from_a_plain_base_and_is_driven_by_poses(
    plain_base: Path, small_dataset: Path, control: str, encoding: str, text: str, mask: str
):
    recipe = recipe_for(plain_base, control, encoding, text, mask)
    pipeline = starting_weights.load(recipe)
    batch = one_batch(pipeline, recipe, small_dataset)
    learner = starting_weights.learner(pipeline, CPU)
    schedule = objective.Schedule.from_scheduler(pipeline.scheduler)
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=3e-3)
    before = {name: value.clone() for name, value in learner.named_parameters()}

    losses = []
    for _ in range(30):
        loss = objective.training_loss(
            learner, schedule, batch.video, batch.image, batch.pose, batch.prompt, batch.timesteps, batch.noise
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    if encoding == "expert":
        assert isinstance(learner, PoseEncodedTransformer)
        moved = [name for name, value in learner.named_parameters() if not torch.equal(value, before[name])]
        assert {name for name in before if name.startswith("pose_encoder.")} <= set(moved)

    pipeline.transformer.eval()
    pipeline.set_progress_bar_config(disable=True)
    given = np.random.default_rng(0).integers(0, 256, (2, 5, 32, 32, 3), dtype=np.uint8)
    clips = [
        pipeline(
            Image.fromarray(given[0, 0]),
            poses,
            "a person" if text == "joint" else "",
            num_inference_steps=1,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).frames
        for poses in given
    ]
    assert (clips[0] - clips[1]).abs().max() > 1e-3


def test_a_mask_and_a_dropped_caption_reach_the_batch(plain_base: Path, small_dataset: Path):
    batches = {
        name: one_batch(starting_weights.load(recipe), recipe, small_dataset)
        for name, recipe in (
            ("plain", recipe_for(plain_base, "padaln", "shared_vae", "joint", "none")),
            ("masked", recipe_for(plain_base, "padaln", "shared_vae", "non", "background")),
        )
    }
    assert not torch.equal(batches["plain"].image, batches["masked"].image)
    assert torch.equal(batches["plain"].video, batches["masked"].video)
    assert not torch.equal(batches["plain"].prompt[0], batches["plain"].prompt[1])
    assert torch.equal(batches["masked"].prompt[0], batches["masked"].prompt[1])


def test_a_run_with_an_expert_encoder_exports_it_goes_on_with_it_and_leaves_it(
    plain_base: Path, small_dataset: Path, tmp_path: Path
):
    from training.trainer import train

    def model_of(recipe: Recipe, name: str) -> Path:
        (tmp_path / name).mkdir()
        short = replace(recipe, optimization=replace(recipe.optimization, steps=2))
        return train(Run(name=name, data=small_dataset, out=tmp_path / name, recipe=short))

    recipe = recipe_for(plain_base, "padaln", "expert", "joint", "none")
    first = model_of(recipe, "first")
    index = json.loads((first / "model_index.json").read_text())
    assert index["pose_encoder"] == ["dynamictrl.pose_encoder", "PoseEncoder"]
    learnt = load_file(first / "pose_encoder" / "diffusion_pytorch_model.safetensors")
    torch.manual_seed(recipe.seed)
    assert isinstance(DynamiCtrlPipeline.from_pretrained(first).pose_encoder, PoseEncoder)

    frozen = replace(recipe.optimization, learning_rate=0.0)
    again = replace(recipe, model=replace(recipe.model, base=str(first)), optimization=frozen)
    kept = load_file(model_of(again, "again") / "pose_encoder" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(learnt[name], kept[name]) for name in learnt)

    without = replace(again, model=replace(again.model, pose_encoding="shared_vae"))
    assert not (model_of(without, "without") / "pose_encoder").exists()


def test_the_papers_tables_are_recipes():
    baseline = RECIPES["baseline-5b"]()
    assert baseline.model.pose_control == "direct_addition"
    assert baseline.model.pose_encoding == "expert"
    assert baseline.clips.caption_dropout == 1.0
    stage_2 = RECIPES["dynamictrl-5b-non-text-expert-stage-2"]()
    assert (stage_2.model.pose_encoding, stage_2.model.fresh_pose, stage_2.clips.caption_dropout) == ("expert", True, 1)
    assert RECIPES["dynamictrl-5b-expert-encoder"]().clips.caption_dropout < 1
    assert RECIPES["dynamictrl-5b-padaln-residual"]().model.pose_control == "padaln_residual"
    with pytest.raises(ConfigError, match="direct_addition has no weights"):
        replace(baseline.model, silent_pose=True)
    with pytest.raises(ConfigError, match="leave lora_rank 0"):
        replace(baseline, lora=Lora(lora_rank=4))
