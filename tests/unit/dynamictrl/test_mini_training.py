"""The mini family's trainers, at sizes where a step takes a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dynamictrl import objective
from dynamictrl.mini import models, prompt_quality, stream
from dynamictrl.mini.dit_training import Denoising, Settings, draw_batch, spread_timesteps, train
from dynamictrl.mini.fast_norm import fast_spatial_norm
from dynamictrl.mini.graphed import GraphedStep
from dynamictrl.mini.latent_pool import LatentPool, encode_pool
from dynamictrl.mini.latent_scale import channel_statistics, whiten, whiteness_loss
from dynamictrl.mini.stream import Example, Pool
from dynamictrl.mini.tiny import TEXT_WIDTH, cogvideox_scheduler, tiny_transformer, tiny_vae
from dynamictrl.mini.tokenizer import build_tokenizer
from dynamictrl.mini.train_text import word
from dynamictrl.mini.train_vae import Autoencoding, Clips, rate_at
from dynamictrl.positions import rotary_positions


def test_the_drawing_workers_know_the_family_s_size():
    assert (stream.HEIGHT, stream.WIDTH, stream.NUM_FRAMES, stream.FPS) == (
        models.HEIGHT,
        models.WIDTH,
        models.NUM_FRAMES,
        models.FPS,
    )


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    pool = Pool(tmp_path / "pool", 3)
    rng = np.random.default_rng(0)
    for index in (0, 1):
        video = np.broadcast_to(rng.integers(0, 255, 3).astype(np.uint8), pool.video.shape[1:])
        pool.write(index, Example(video, video // 2, video[..., 0] // 128, f"a clip number {index}", {"count": index}))
    return pool


def test_a_pool_holds_what_was_written_and_offers_nothing_else(pool: Pool):
    again = Pool(pool.folder)
    assert list(again.ready()) == [0, 1]
    assert again.caption(1) == "a clip number 1"
    assert (again.pose[1] == again.video[1] // 2).all()


def test_the_same_number_is_the_same_marionette():
    first, again, other = (stream.draw_example(5, index) for index in (2, 2, 3))
    assert (first.video == again.video).all()
    assert first.caption == again.caption
    assert not (first.video == other.video).all()
    assert first.video.shape == first.pose.shape == (models.NUM_FRAMES, models.HEIGHT, models.WIDTH, 3)


def test_crops_come_from_complete_clips_only(pool: Pool):
    clips = Clips(pool, "cpu")
    assert clips.grow() == 2
    pixels = clips.crops(8, 5, 16, 24, pose_share=0.5)
    assert pixels.shape == (8, 3, 5, 16, 24)
    shades = {tuple(np.round((p[:, 0, 0, 0].numpy() + 1) * 127.5).astype(int)) for p in pixels}
    known = {tuple(int(v) for v in source[i, 0, 0, 0]) for source in (pool.video, pool.pose) for i in (0, 1)}
    assert shades <= known


@pytest.mark.parametrize("frames", [1, 9, 17])
def test_the_cheaper_norm_computes_what_the_published_one_does(frames: int):
    module = Autoencoding(tiny_vae().eval())
    for name, value in module.named_parameters():
        if "conv_y" in name or "conv_b" in name:
            torch.nn.init.normal_(value)
    pixels = torch.rand(1, 3, frames, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.manual_seed(0)
        published, _, _ = module(pixels)
        with fast_spatial_norm():
            torch.manual_seed(0)
            cheaper, _, _ = module(pixels)
    assert torch.allclose(published, cheaper, atol=1e-5)
    assert not torch.allclose(published, torch.zeros_like(published))


def test_a_step_descends_and_keeps_an_average():
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    step = GraphedStep([weight], lambda: weight.square().sum(), device="cpu", ema=0.9)
    losses = [float(step(0.1)) for _ in range(20)]
    assert losses[-1] < losses[0] / 2
    step.apply_average()
    assert 1.0 < float(weight.detach()) < 3.0


def test_the_learning_rate_rises_and_falls():
    rates = [rate_at(progress, 1.0) for progress in (0.0, 0.02, 0.5, 1.0)]
    assert rates[0] < rates[1]
    assert rates[1] > rates[2] > rates[3]


def test_timesteps_cover_the_schedule_evenly():
    parts = spread_timesteps(1000, 10, torch.device("cpu")) // 100
    assert sorted(parts.tolist()) in (list(range(10)), sorted({*range(10)}))
    assert spread_timesteps(1000, 7, torch.device("cpu")).max() < 1000


@pytest.fixture
def latent_pool(pool: Pool) -> LatentPool:
    tokenizer = build_tokenizer(["a clip number 0", "a clip number 1"], max_length=models.TEXT_LENGTH)
    return encode_pool(tiny_vae().eval(), tokenizer, pool, batch=2)


def test_an_encoded_pool_survives_a_file(latent_pool: LatentPool, tmp_path: Path):
    assert len(latent_pool) == 2
    assert latent_pool.video_NFCHW.shape == (2, 7, 16, 24, 16)
    assert latent_pool.reference_NVCHW.shape == (2, 6, 16, 24, 16)
    latent_pool.save(tmp_path / "latents.pt")
    again = LatentPool.load(tmp_path / "latents.pt")
    assert all(torch.equal(a, b) for a, b in zip(vars(latent_pool).values(), vars(again).values(), strict=True))


def test_the_loss_is_the_objective_s(latent_pool: LatentPool):
    torch.manual_seed(0)
    transformer = tiny_transformer(sample_height=24, sample_width=16, max_text_seq_length=models.TEXT_LENGTH)
    text_encoder = models.text_encoder(100, d_model=TEXT_WIDTH)
    denoising = Denoising(transformer, text_encoder, latent_pool)
    settings = Settings(batch=3, device="cpu")
    video, image, pose, tokens = draw_batch(latent_pool, settings)
    timesteps = torch.tensor([10, 500, 999])
    torch.manual_seed(1)
    ours = denoising.loss(video, image, pose, tokens, timesteps)
    torch.manual_seed(1)
    noise = torch.randn(3, 8, 16, 24, 16)
    schedule = objective.Schedule.from_scheduler(cogvideox_scheduler())
    theirs = objective.training_loss(
        transformer, schedule, video, image, pose, text_encoder(tokens)[0], timesteps, noise
    )
    assert torch.allclose(ours, theirs, rtol=1e-4)
    assert (ours > 0).all()


def test_training_moves_what_may_move_and_leaves_the_rest(latent_pool: LatentPool):
    transformer = tiny_transformer(sample_height=24, sample_width=16, max_text_seq_length=models.TEXT_LENGTH)
    text_encoder = models.text_encoder(100, d_model=TEXT_WIDTH).requires_grad_(False)
    transformer.silence_pose()
    frozen = [p.clone() for p in text_encoder.parameters()]
    norm = transformer.transformer_blocks[0].control_norm1.norm
    assert float(norm.weight.abs().sum()) == 0.0
    spent = train(transformer, text_encoder, latent_pool, Settings(batch=2, max_steps=3, device="cpu", compiled=False))
    assert spent["steps"] == 3
    assert float(norm.weight.abs().sum()) > 0.0
    assert all(torch.equal(a, b) for a, b in zip(frozen, text_encoder.parameters(), strict=True))


def test_each_rank_encodes_its_share_of_the_pool(pool: Pool):
    tokenizer = build_tokenizer(["a clip number 0", "a clip number 1"], max_length=models.TEXT_LENGTH)
    shares = [encode_pool(tiny_vae().eval(), tokenizer, pool, batch=2, share=(rank, 2)) for rank in (0, 1)]
    assert [len(share) for share in shares] == [1, 1]
    assert not torch.equal(shares[0].tokens_NL, shares[1].tokens_NL)


def test_masked_references_are_drawn_as_often_as_asked(latent_pool: LatentPool):
    numbered = torch.arange(6.0).view(1, 6, 1, 1, 1).expand_as(latent_pool.reference_NVCHW).half() + 1
    pool = LatentPool(**{**vars(latent_pool), "reference_NVCHW": numbered})
    torch.manual_seed(0)
    settings = Settings(batch=2000, device="cpu", masked_reference=0.4, other_reference=0.0, image_dropout=0.0)
    _, image, _, _ = draw_batch(pool, settings)
    shares = torch.bincount(image[:, 0, 0, 0, 0].long(), minlength=7)[1:] / 2000
    assert torch.allclose(shares, torch.tensor([0.3, 0.3, 0, 0, 0.2, 0.2]), atol=0.05)


def test_whitened_latents_decode_to_the_same_picture():
    torch.manual_seed(0)
    vae = tiny_vae().eval()
    for name, value in vae.named_parameters():
        if "conv_y" in name or "conv_b" in name:
            torch.nn.init.normal_(value, std=0.3)
    pixels = torch.rand(4, 3, 5, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        whiten(vae, pixels)
        mean = vae.encode(pixels).latent_dist.mean
        after = vae.decode(mean).sample
    # Not quite the same: at the border the decoder's padding means another value now.
    assert float((before - after).square().mean() / before.var()) < 0.01
    assert float(whiteness_loss(mean)) < 0.5
    _, covariance = channel_statistics(mean)
    assert covariance.diagonal().max() < 1.2


def test_the_base_is_saved_as_diffusers_own_class_and_computes_the_same():
    torch.manual_seed(0)
    ours = models.transformer(num_layers=2).eval()
    ours.silence_pose()
    plain = models.base_transformer(ours).eval()
    assert not any("control" in key for key in plain.state_dict())
    video, pose, text = torch.randn(1, 8, 32, 24, 16), torch.randn(1, 8, 16, 24, 16), torch.randn(1, 40, 96)
    rotary = rotary_positions(ours.config, 8, 24, 16, video.device)
    given = {"encoder_hidden_states": text, "timestep": torch.tensor([500]), "image_rotary_emb": rotary}
    given |= {"ofs": objective.ofs_for(ours.config, video.device), "return_dict": False}
    with torch.no_grad():
        with_pose = ours(video, control_hidden_states=pose, **given)[0]
        assert torch.allclose(with_pose, plain(video, **given)[0], atol=1e-5)


def test_captions_are_worded_without_drawing_and_say_their_attributes():
    caption, facts = word(3, 5)
    assert facts["top of 1"] in caption
    assert word(3, 5) == (caption, facts)
    assert len({word(3, index)[0] for index in range(20)}) == 20


def test_a_prompt_counts_as_followed_only_where_its_colour_came():
    def true_to(colour: str):
        def make(reference: np.ndarray, pose: np.ndarray, prompt: str, seed: int) -> np.ndarray:
            scene, asked = prompt_quality._task("background", seed)
            return prompt_quality.drawn(scene, "background", colour or asked).frames

        return make

    assert prompt_quality.follows_prompt(true_to(""), "background", 2)[0] == 1.0
    asked = {prompt_quality._task("background", index)[1] for index in range(2)}
    other = next(colour for colour in prompt_quality.WALL_COLOURS if colour not in asked)
    assert prompt_quality.follows_prompt(true_to(other), "background", 2)[0] == 0.0
