"""The shipped mini models: they load strictly, are as small as promised, and do what their cards say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynamictrl import conditioning, latents, metrics, weights
from dynamictrl.animation import DynamiCtrlPipeline
from dynamictrl.mini import models
from dynamictrl.mini.dit_training import Denoising
from dynamictrl.mini.latent_pool import LatentPool, encode_clips, tokenize
from dynamictrl.mini.stream import HELD_OUT_SEED, Example, draw_example

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def held_out() -> list[Example]:
    return [draw_example(HELD_OUT_SEED, index) for index in (0, 2, 3)]


@pytest.fixture(scope="module")
def mini() -> DynamiCtrlPipeline:
    pipeline = DynamiCtrlPipeline.from_pretrained("mini/dynamictrl", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def base() -> DynamiCtrlPipeline:
    return DynamiCtrlPipeline.from_pretrained("mini/base", torch_dtype=torch.float32)


def test_the_whole_family_takes_at_most_30_megabytes():
    sizes = {weights.file_hash(path): path.stat().st_size for path in weights.MINI.rglob("*") if path.is_file()}
    assert 20 * MEGABYTE < sum(sizes.values()) <= 30 * MEGABYTE


@pytest.mark.parametrize("name", ["base", "dynamictrl"])
def test_each_folder_says_that_it_is_mini_and_names_no_machine(name: str):
    folder = weights.resolve(f"mini/{name}", ["README.md", "model_index.json"])
    assert "**mini**" in (folder / "README.md").read_text()
    for config in folder.rglob("*.json"):
        values = json.loads(config.read_text())
        assert "_name_or_path" not in values or not Path(values["_name_or_path"]).is_absolute()


def test_both_folders_share_vae_and_text_encoder():
    for part in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        hashes = {weights.file_hash(weights.resolve(f"mini/{name}") / part) for name in ("base", "dynamictrl")}
        assert len(hashes) == 1, part


@torch.no_grad()
def test_the_vae_returns_pictures_and_pose_drawings(mini: DynamiCtrlPipeline, held_out: list[Example]):
    for frames, floor_db in ((held_out[1].video, 26.0), (held_out[1].pose, 27.0)):
        part = frames[:9]
        encoded = latents.encode(mini.vae, conditioning.to_pixels(part), sample=False)
        pixels = latents.decode(mini.vae, encoded, len(part))[0].permute(1, 2, 3, 0)
        back = ((pixels.clamp(-1, 1) + 1) * 127.5).numpy()
        assert metrics.psnr(back, part) >= floor_db


@torch.no_grad()
def test_latents_have_about_unit_spread(mini: DynamiCtrlPipeline, held_out: list[Example]):
    encoded = latents.encode(mini.vae, conditioning.to_pixels(held_out[0].video[:9]))
    assert 0.6 < float(encoded.std()) < 1.6


@pytest.fixture(scope="module")
def encoded(mini: DynamiCtrlPipeline, held_out: list[Example]) -> LatentPool:
    torch.manual_seed(0)
    clips = (torch.from_numpy(np.stack([getattr(e, name) for e in held_out])) for name in ("video", "pose"))
    tokens = tokenize(mini.tokenizer, [e.caption for e in held_out])
    return LatentPool(*encode_clips(mini.vae, *clips), tokens, tokenize(mini.tokenizer, [""])[0])


@torch.no_grad()
def _loss(pipeline: DynamiCtrlPipeline, pool: LatentPool, order: list[int]) -> float:
    denoising, total = Denoising(pipeline.transformer, pipeline.text_encoder, pool), 0.0
    image = torch.zeros_like(pool.video_NFCHW)
    image[:, 0] = pool.reference_NVCHW[:, 0]
    for timestep in (500, 750, 950):
        torch.manual_seed(1)
        timesteps = torch.full((len(pool),), timestep)
        total += float(
            denoising.loss(pool.video_NFCHW, image, pool.pose_NFCHW[order], pool.tokens_NL, timesteps).mean()
        )
    return total


def test_poses_change_nothing_in_the_base(base: DynamiCtrlPipeline, encoded: LatentPool):
    assert _loss(base, encoded, [0, 1, 2]) == _loss(base, encoded, [1, 2, 0])


def test_the_own_pose_helps_to_denoise_a_held_out_clip_and_another_s_harms(
    mini: DynamiCtrlPipeline, base: DynamiCtrlPipeline, encoded: LatentPool
):
    own, other = _loss(mini, encoded, [0, 1, 2]), _loss(mini, encoded, [1, 2, 0])
    assert own < other
    assert own < _loss(base, encoded, [0, 1, 2])


def test_a_clip_comes_out_as_asked(mini: DynamiCtrlPipeline, held_out: list[Example]):
    result = mini(
        Image.fromarray(held_out[0].video[0]),
        held_out[0].pose,
        held_out[0].caption,
        num_frames=9,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )
    assert result.frames.shape == (1, 9, models.HEIGHT, models.WIDTH, 3)
    # The first frame is the reference's moment: even two steps return its colours.
    assert metrics.psnr(result.frames[0][:1] * 255, held_out[0].video[:1]) > 15
