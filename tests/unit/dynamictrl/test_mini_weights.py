"""The shipped mini models: they load strictly, are as small as promised, and do what their cards say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline
from PIL import Image
from transformers import T5EncoderModel

from dynamictrl import conditioning, latents, metrics, weights
from dynamictrl.animation import DynamiCtrlPipeline
from dynamictrl.conversion.base_weights import from_base
from dynamictrl.mini import models
from dynamictrl.mini.dit_training import Denoising
from dynamictrl.mini.latent_pool import LatentPool, encode_clips, tokenize
from dynamictrl.mini.stream import HELD_OUT_SEED, Example, draw_example
from dynamictrl.mini.train_text import Captions, decodability, word
from dynamictrl.transformer import DynamiCtrlTransformer3DModel

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
def base() -> CogVideoXImageToVideoPipeline:
    return CogVideoXImageToVideoPipeline.from_pretrained(weights.resolve("mini/base"), torch_dtype=torch.float32)


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
    for frames, floor_db in ((held_out[1].video, 28.0), (held_out[1].pose, 27.0)):
        part = frames[:9]
        encoded = latents.encode(mini.vae, conditioning.to_pixels(part), sample=False)
        pixels = latents.decode(mini.vae, encoded, len(part))[0].permute(1, 2, 3, 0)
        back = ((pixels.clamp(-1, 1) + 1) * 127.5).numpy()
        assert metrics.psnr(back, part) >= floor_db


@torch.no_grad()
def test_latents_have_about_unit_spread(mini: DynamiCtrlPipeline, held_out: list[Example]):
    for frames in (held_out[0].video, held_out[0].pose):
        encoded = latents.encode(mini.vae, conditioning.to_pixels(frames[:9]))
        assert 0.6 < float(encoded.std()) < 1.6
        mean_C = encoded.mean(dim=(0, 1, 3, 4))
        assert float(mean_C.square().mean().sqrt()) < 0.8  # a constant would drown what stands out of it


@pytest.fixture(scope="module")
def encoded(mini: DynamiCtrlPipeline, held_out: list[Example]) -> LatentPool:
    torch.manual_seed(0)
    video, pose = (torch.from_numpy(np.stack([getattr(e, name) for e in held_out])) for name in ("video", "pose"))
    masks = torch.from_numpy(np.stack([e.masks[0] for e in held_out]))
    tokens = tokenize(mini.tokenizer, [e.caption for e in held_out])
    return LatentPool(*encode_clips(mini.vae, video, pose, masks), tokens, tokenize(mini.tokenizer, [""])[0])


@torch.no_grad()
def _loss(transformer: DynamiCtrlTransformer3DModel, text: T5EncoderModel, pool: LatentPool, order: list[int]) -> float:
    denoising, total = Denoising(transformer, text, pool), 0.0
    image = torch.zeros_like(pool.video_NFCHW)
    image[:, 0] = pool.reference_NVCHW[:, 0]
    for timestep in (750, 950):
        torch.manual_seed(1)
        timesteps = torch.full((len(pool),), timestep)
        total += float(
            denoising.loss(pool.video_NFCHW, image, pool.pose_NFCHW[order], pool.tokens_NL, timesteps).mean()
        )
    return total


def test_the_own_pose_helps_to_denoise_a_held_out_clip_and_another_s_harms(
    mini: DynamiCtrlPipeline, base: CogVideoXImageToVideoPipeline, encoded: LatentPool
):
    text = mini.text_encoder
    assert isinstance(text, T5EncoderModel)
    own, other = (_loss(mini.transformer, text, encoded, order) for order in ([0, 1, 2], [1, 2, 0]))
    assert own < 0.7 * other
    without = from_base("mini/base", silent=True, dtype=torch.float32)
    assert own < 0.9 * _loss(without, text, encoded, [0, 1, 2])


def test_what_a_caption_says_is_linearly_readable_from_its_embedding(mini: DynamiCtrlPipeline):
    assert isinstance(mini.text_encoder, T5EncoderModel)
    worded = [word(HELD_OUT_SEED, index) for index in range(1500)]
    names = {key: sorted({said[key] for _, said in worded}) for key in worded[0][1]}
    captions = Captions.of(mini.tokenizer, worded, names)
    parts = [
        Captions(captions.tokens_NL[part], {key: value[part] for key, value in captions.classes.items()})
        for part in (slice(0, 1100), slice(1100, None))
    ]
    shares = decodability(mini.text_encoder, *parts, names)
    assert float(np.mean(list(shares.values()))) >= 0.99, shares


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
