"""The released inference, written out step by step beside the pipeline's; and our own frame rule, derived."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from dynamictrl import DynamiCtrlPipeline
from dynamictrl.errors import ConfigError, InputError
from dynamictrl.mini.tiny import write_tiny_model
from dynamictrl.positions import rotary_positions

HEIGHT, WIDTH = 32, 16
IMAGE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipelines(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, DynamiCtrlPipeline]:
    """One of each family. The 1.0 folder names DDIM, as the published CogVideoX folders do."""
    older = write_tiny_model(tmp_path_factory.mktemp("older"), "1.0")
    made = {"1.5": DynamiCtrlPipeline.from_pretrained(tiny_model), "1.0": DynamiCtrlPipeline.from_pretrained(older)}
    made["1.0"].scheduler = CogVideoXDDIMScheduler.from_config(made["1.0"].scheduler.config)
    for pipeline in made.values():
        pipeline.set_progress_bar_config(disable=True)
    return made


def poses(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


@torch.no_grad()
def released_by_hand(pipeline, count, given, *, steps=4, scale=3.0, dynamic=False, dtype=torch.float32):
    """model.md section 2, line by line: (latents, clip [1, 3, F, H, W] in [0, 1], the generator afterwards)."""
    vae, model, generator = pipeline.vae, pipeline.transformer, torch.Generator().manual_seed(6)
    on_15 = model.config["patch_size_t"] is not None
    latent_count = (count - 1) // 4 + 1
    extra = latent_count % 2 if on_15 else 0
    latent_count += extra
    text = pipeline.tokenizer(["", "a person"], padding="max_length", max_length=16, truncation=True)
    embeds = pipeline.text_encoder(torch.tensor(text.input_ids))[0].to(dtype)
    picture = VaeImageProcessor(vae_scale_factor=8).preprocess(IMAGE, height=HEIGHT, width=WIDTH).to(dtype)
    image = vae.encode(picture[:, :, None]).latent_dist.sample(generator).transpose(1, 2) * (1.0 if on_15 else 0.7)
    image = torch.cat([image, image.new_zeros(1, latent_count - 1, *image.shape[2:])], dim=1)
    pixels = torch.from_numpy(given[: 4 * latent_count - 3]).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    pose = vae.encode(pixels.to(dtype)).latent_dist.sample(generator).transpose(1, 2) * 0.7
    z = torch.randn(image.shape, generator=generator, dtype=dtype)

    scheduler = CogVideoXDPMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    clean = None
    for i, t in enumerate(scheduler.timesteps):
        v = model(
            hidden_states=torch.cat([torch.cat([z, image], dim=2)] * 2),
            encoder_hidden_states=embeds,
            timestep=t.expand(2),
            control_hidden_states=torch.cat([pose] * 2),
            ofs=torch.full((1,), 2.0) if on_15 else None,
            image_rotary_emb=rotary_positions(model.config, latent_count, HEIGHT // 8, WIDTH // 8, "cpu"),
            return_dict=False,
        )[0].float()
        g = 1 + scale * (1 - math.cos(math.pi * ((steps - t.item()) / steps) ** 5)) / 2 if dynamic else scale
        v = v[:1] + g * (v[1:] - v[:1])
        before = scheduler.timesteps[i - 1] if i else None
        z, clean = scheduler.step(v, clean, t, before, z, generator=generator)
        z = z.to(dtype)
    decoded = vae.decode(1 / 0.7 * z[:, extra:].transpose(1, 2)).sample.float()
    return z, (decoded / 2 + 0.5).clamp(0, 1)[:, :, :count], generator


def released(pipeline, count, given, *, output_type="pt", steps=4, dynamic=False):
    generator = torch.Generator().manual_seed(6)
    made = pipeline(
        IMAGE,
        given,
        "a person",
        num_frames=count,
        num_inference_steps=steps,
        use_dynamic_cfg=dynamic,
        generator=generator,
        output_type=output_type,
        compatibility="released",
    ).frames
    return made, generator


@pytest.mark.parametrize(
    ("base", "count", "pose_count"),
    [("1.5", 13, 13), ("1.5", 9, 13), ("1.5", 5, 5), ("1.0", 13, 13), ("1.0", 9, 9)],
    ids=["even: 13 of 16 frames", "padded route", "5 of 8", "1.0: 13 of 16", "1.0: odd"],
)
def test_the_released_way_is_the_published_inference(pipelines, base, count, pose_count):
    given = poses(pose_count)
    wanted_latents, wanted, theirs = released_by_hand(pipelines[base], count, given)
    latents, ours = released(pipelines[base], count, given, output_type="latent")
    torch.testing.assert_close(latents, wanted_latents, rtol=0, atol=1e-5)
    assert torch.equal(ours.get_state(), theirs.get_state())  # as many numbers were drawn
    clip, _ = released(pipelines[base], count, given)
    assert clip.shape == (1, count, 3, HEIGHT, WIDTH)
    torch.testing.assert_close(clip.transpose(1, 2), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [6, 61])
def test_steps_that_do_not_divide_a_thousand_end_as_the_scheduler_ends(pipelines, steps):
    """Its last step keeps some noise; at 61 it takes a 62nd step, at timestep -1."""
    wanted, _, theirs = released_by_hand(pipelines["1.5"], 5, poses(5), steps=steps)
    latents, ours = released(pipelines["1.5"], 5, poses(5), steps=steps, output_type="latent")
    torch.testing.assert_close(latents, wanted, rtol=0, atol=1e-4)
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_dynamic_guidance_takes_the_raw_timestep_only_in_the_released_way(pipelines):
    wanted, _, _ = released_by_hand(pipelines["1.5"], 5, poses(5), dynamic=True)
    plain, _, _ = released_by_hand(pipelines["1.5"], 5, poses(5))
    latents, _ = released(pipelines["1.5"], 5, poses(5), dynamic=True, output_type="latent")
    torch.testing.assert_close(latents, wanted, rtol=0, atol=1e-4)
    assert not torch.allclose(wanted, plain, atol=1e-3)

    from dynamictrl.conventions import conventions_named

    ours = [conventions_named("none").dynamic_scale(6.0, step, 999.0 - 40 * step, 25) for step in range(25)]
    assert ours[0] == pytest.approx(7.0)  # 1 + 6 at the first step, falling to 1
    assert all(first >= second for first, second in zip(ours, ours[1:], strict=False))
    assert ours[-1] == pytest.approx(1.0, abs=1e-3)


def test_the_released_way_draws_and_keeps_latents_in_the_weights_type(tiny_model):
    pipeline = DynamiCtrlPipeline.from_pretrained(tiny_model, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    wanted, _, theirs = released_by_hand(pipeline, 5, poses(5), dtype=torch.bfloat16)
    latents, ours = released(pipeline, 5, poses(5), output_type="latent")
    assert latents.dtype == torch.bfloat16
    assert torch.equal(ours.get_state(), theirs.get_state())
    assert torch.equal(latents, wanted)


def test_nothing_of_the_pipeline_is_changed_by_a_released_call(pipelines):
    pipeline = pipelines["1.0"]
    scheduler, config = pipeline.scheduler, dict(pipeline.config)
    released(pipeline, 5, poses(5))
    assert pipeline.scheduler is scheduler
    assert dict(pipeline.config) == config
    assert not pipeline.vae.use_tiling
    assert not pipeline.vae.use_slicing


def test_tiles_are_used_where_they_join_and_left_off_where_they_would_not(pipelines):
    """The published VAE's tiles are 30 x 45 latents. Others, such as 12 x 8, come back a column too wide."""
    vae = pipelines["1.5"].vae
    large = np.random.default_rng(0).integers(0, 256, (5, 96, 80, 3), dtype=np.uint8)
    tiles = (vae.tile_latent_min_height, vae.tile_latent_min_width)
    seen = []
    decode = vae.tiled_decode
    vae.tiled_decode = lambda z, **options: seen.append(z.shape) or decode(z, **options)
    try:
        for rows, columns in (tiles, (tiles[0], 4)):
            vae.tile_latent_min_height, vae.tile_latent_min_width = rows, columns
            clip, _ = released(pipelines["1.5"], 5, large, steps=1)
            assert clip.shape == (1, 5, 3, 96, 80)
    finally:
        del vae.tiled_decode
        vae.tile_latent_min_height, vae.tile_latent_min_width = tiles
    assert seen == [(1, 16, 2, 12, 10)]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"num_frames": 9}, InputError, "needs 13 pose frames here and 9 are given.*8k . 5.*ask for 5 frames"),
        ({"num_frames": 5, "window_frames": 5}, InputError, "in one piece"),
        ({"num_frames": 7}, InputError, "nearest are 5 and 9"),
        ({"compatibility": "relesed"}, ConfigError, "'relesed'.*none, released"),
    ],
)
def test_what_the_released_way_cannot_render_is_refused_with_the_way_out(pipelines, options, error, said):
    with pytest.raises(error, match=said):
        pipelines["1.5"](IMAGE, poses(9), "", **{"compatibility": "released", **options})


def perfect_model(pipeline, monkeypatch) -> None:
    """Lets the transformer predict, at every timestep, that the clean video is the pose video."""
    abar = pipeline.scheduler.alphas_cumprod

    def forward(hidden_states, timestep, control_hidden_states, **_):
        signal, noise = abar[timestep[0]].sqrt(), (1 - abar[timestep[0]]).sqrt()
        return ((signal * hidden_states[:, :, :16] - control_hidden_states) / noise,)

    monkeypatch.setattr(pipeline.transformer, "forward", forward)


def first_change(pipeline, count: int, moved: int, **options) -> int:
    """The first frame of a perfect model's clip that is another when poses from frame `moved` on are others."""
    still = poses(count)
    moving = still.copy()
    moving[moved:] = 255 - moving[moved:]
    clips = [
        pipeline(
            IMAGE,
            given,
            "",
            num_inference_steps=2,
            guidance_scale=1.0,
            output_type="np",
            generator=torch.Generator().manual_seed(0),
            **options,
        ).frames[0]
        for given in (still, moving)
    ]
    assert [len(clip) for clip in clips] == [count, count]
    changed = np.abs(clips[0] - clips[1]).max(axis=(1, 2, 3)) > 1e-6
    assert changed.any()
    return int(changed.argmax())


@pytest.mark.parametrize("base", ["1.0", "1.5"])
@pytest.mark.parametrize("count", [17, 21, 25, 29, 37])
def test_frame_i_is_pose_i(pipelines, monkeypatch, base, count):
    """The VAE normalises over eight frames at a time, so the last eight poses are what must show in that very place."""
    perfect_model(pipelines[base], monkeypatch)
    assert first_change(pipelines[base], count, count - 8, window_frames=0) == count - 8


@pytest.mark.parametrize("base", ["1.0", "1.5"])
@pytest.mark.parametrize("count", [5, 9, 13, 33, 81])
def test_as_many_frames_come_back_as_are_asked_for(pipelines, monkeypatch, base, count):
    perfect_model(pipelines[base], monkeypatch)
    made = pipelines[base](IMAGE, poses(count), "", num_inference_steps=1, guidance_scale=1.0, output_type="np")
    assert made.frames.shape == (1, count, HEIGHT, WIDTH, 3)


def test_the_released_way_lags_the_poses_by_three_frames_where_latents_are_even(pipelines, monkeypatch):
    perfect_model(pipelines["1.5"], monkeypatch)
    assert first_change(pipelines["1.5"], 37, 29, compatibility="released") == 32
    assert first_change(pipelines["1.5"], 21, 13, compatibility="released") == 16
