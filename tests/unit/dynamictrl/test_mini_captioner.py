"""The mini captioner: its words, its preparation, its batched forward, and a training that learns.

Real classes; the model is untrained or has seen a few clips for seconds. The shipped weights are held to their figures
in test_mini_captioner_weights.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dynamictrl.captions.captioning import DEFAULT_PROMPT
from dynamictrl.captions.qwen_captioning import Qwen2VLCaptioner
from dynamictrl.mini.captioner import frames, models
from dynamictrl.mini.captioner.batched import BatchedCaptioner
from dynamictrl.mini.captioner.clips import LONGEST_ANSWER, CaptionedClips, answer_ids, regions_of
from dynamictrl.mini.captioner.tokenizer import SPECIAL, build_tokenizer, question
from dynamictrl.mini.captioner.train import Settings, Trainee, answer_loss
from dynamictrl.mini.marionettes import sample_clip
from dynamictrl.mini.stream import FPS, HEIGHT, WIDTH, Example, Pool, draw_example

MEGABYTE = 1_000_000
SEED = 31


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small products on a busy machine are slower on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [draw_example(SEED, index) for index in range(2)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, examples: list[Example]) -> Pool:
    pool = Pool(tmp_path_factory.mktemp("pool"), count=len(examples))
    for index, example in enumerate(examples):
        pool.write(index, example)
    return pool


def test_each_word_is_a_token_and_any_text_comes_back():
    tokenizer = build_tokenizer()
    caption = "A person in a beige long-sleeved shirt and white trousers is doing jumping jacks before a city at night."
    assert len(tokenizer(caption)["input_ids"]) == len(caption.split()) + 1
    for text in (caption, DEFAULT_PROMPT, "Zürich 7\n\n  <|x|> 人", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.decode(tokenizer("".join(SPECIAL))["input_ids"], skip_special_tokens=True) == ""
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_every_caption_that_can_be_drawn_is_in_the_vocabulary():
    tokenizer = build_tokenizer()
    letters = set(range(256))
    for seed in range(40):
        caption = sample_clip(np.random.default_rng(seed), 1, 32, 32, FPS, supersampling=1).caption
        spelled = [token for token in tokenizer(caption)["input_ids"] if token in letters]
        # Of the bytes only punctuation and the capital A are whole words.
        assert set(tokenizer.decode(spelled)) <= set("A.,:")


def test_the_longest_answer_fits():
    from dynamictrl.mini.captioner.wording import canonical_caption

    person = {"top": "red", "top_kind": "long-sleeved shirt", "trousers": "blue", "trousers_kind": "skirt"}
    persons = [{**person, "action": action} for action in ("talking with both hands", "marching on the spot")]
    for background, colour in (("night city", None), ("studio", "orange")):
        attributes = {"count": 2, "persons": persons, "background": background, "background_colour": colour}
        ids = answer_ids(build_tokenizer(), attributes)
        assert len(ids) == LONGEST_ANSWER
        assert build_tokenizer().decode(ids, skip_special_tokens=True) == canonical_caption(attributes)


def test_the_whole_folder_is_small_and_loads_as_any_qwen2_vl(tmp_path: Path):
    tokenizer = build_tokenizer()
    models.save(tmp_path, models.captioner(tokenizer), tokenizer, "# card")
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 2.2 * MEGABYTE
    assert "_name_or_path" not in json.loads((tmp_path / "config.json").read_text())
    captioner = Qwen2VLCaptioner(tmp_path, "cpu", max_new_tokens=3)
    assert type(captioner.preparation).__name__ == "Qwen2VLProcessor"
    assert type(captioner.model).__name__ == "Qwen2VLForConditionalGeneration"
    assert (captioner.max_frames, captioner.max_pixels) == (models.FRAMES, HEIGHT * WIDTH)
    assert isinstance(captioner(np.zeros((5, HEIGHT, WIDTH, 3), np.uint8)), str)


def test_training_sees_the_very_pixels_that_the_saved_preparation_makes(tiny_captioner: Path, examples: list[Example]):
    captioner = Qwen2VLCaptioner(tiny_captioner, "cpu")
    video = examples[0].video
    inputs = captioner._inputs(video)
    shown = torch.from_numpy(video)[frames.chosen_frames(len(video), models.FRAMES)]
    ours_BTPX = frames.patches(shown[None].float())
    torch.testing.assert_close(ours_BTPX.flatten(0, 2), inputs["pixel_values_videos"], atol=1e-5, rtol=0)
    # bf16, as on a GPU, is right to a hundredth of the range of values.
    coarse = frames.patches(shown[None].to(torch.bfloat16)).float()
    assert (coarse.flatten(0, 2) - inputs["pixel_values_videos"]).abs().max() < 0.04
    grid = inputs["video_grid_thw"][0].tolist()
    assert grid == [6, 24, 16]
    assert inputs["input_ids"][0].tolist() == question(build_tokenizer(), 6 * 24 * 16 // 4)


@pytest.mark.parametrize("shown", [4, 12])
def test_the_batched_forward_is_the_classs_own(tiny_captioner: Path, examples: list[Example], shown: int):
    captioner = Qwen2VLCaptioner(tiny_captioner, "cpu", max_frames=shown)
    model, tokenizer = captioner.model, build_tokenizer()
    answers_BA = torch.tensor([tokenizer(e.caption)["input_ids"][:12] for e in examples])
    expected = []
    for example, answer_A in zip(examples, answers_BA, strict=True):
        inputs = captioner._inputs(example.video)
        extra = {
            "input_ids": torch.cat([inputs["input_ids"], answer_A[None]], dim=1),
            "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + len(answer_A), dtype=torch.long),
            "mm_token_type_ids": torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(answer_A))),
        }
        with torch.no_grad():
            expected.append(model(**{**inputs, **extra}).logits[0, inputs["input_ids"].shape[1] - 1 :])
    grid = (shown // 2, HEIGHT // models.PATCH, WIDTH // models.PATCH)
    asked = question(tokenizer, grid[0] * grid[1] * grid[2] // 4)
    batched = BatchedCaptioner(model, asked, grid, longest_answer=LONGEST_ANSWER)
    weights = dict(model.named_parameters())
    videos = torch.stack([torch.from_numpy(e.video)[frames.chosen_frames(25, shown)] for e in examples])
    with torch.no_grad():
        ours_BAV = batched.say(weights, batched.see(weights, frames.patches(videos.float())), answers_BA)
    torch.testing.assert_close(ours_BAV, torch.stack(expected), atol=2e-4, rtol=1e-3)


def test_greedy_answers_in_a_batch_are_those_of_the_class(tiny_captioner: Path, examples: list[Example]):
    captioner = Qwen2VLCaptioner(tiny_captioner, "cpu", max_new_tokens=6, max_frames=4)
    model, tokenizer = captioner.model, build_tokenizer()
    batched = BatchedCaptioner(model, question(tokenizer, 192), (2, 24, 16), longest_answer=6)
    videos = torch.stack([torch.from_numpy(e.video)[frames.chosen_frames(25, 4)] for e in examples])
    ids_BA = batched.answer(dict(model.named_parameters()), frames.patches(videos.float()), 6, tokenizer.eos_token_id)
    ours = [text.strip() for text in tokenizer.batch_decode(ids_BA, skip_special_tokens=True)]
    assert ours == [captioner(e.video) for e in examples]


def test_padding_after_the_end_costs_nothing():
    end, answer_BA = 9, torch.tensor([[1, 2, 9, 9], [3, 9, 9, 9]])
    logits_BAV = torch.randn(2, 4, 10, generator=torch.Generator().manual_seed(0))
    told = torch.tensor([[True, True, True, False], [True, True, False, False]])
    expected = torch.nn.functional.cross_entropy(logits_BAV[told], answer_BA[told])
    torch.testing.assert_close(answer_loss(logits_BAV, answer_BA, end), expected)


def test_a_mirrored_clip_keeps_its_regions_on_its_people_counted_from_the_left(examples: list[Example]):
    masks = np.zeros((1, 3, HEIGHT, WIDTH), np.uint8)
    masks[..., 40:160, 16:48], masks[..., 80:120, 16:48] = 1, 1 | 0x80
    masks[..., 40:160, 80:112] = 2
    regions = torch.from_numpy(regions_of(masks)[:, :, ::2, ::2].copy())
    assert set(np.unique(regions)) == {0, 1, 2, 3}
    every = (torch.arange(HEIGHT)[None], torch.zeros(1, 2, dtype=torch.long))
    plain, mirrored = (
        frames.Views(torch.zeros(1, dtype=torch.long), every[1], every[0], column[None], torch.tensor([flag]))
        for column, flag in ((torch.arange(WIDTH), False), (torch.arange(WIDTH).flip(0), True))
    )
    seen, turned = (view.regions(regions, torch.tensor([2]))[0, 0] for view in (plain, mirrored))
    # Blocks of 2 x 2 patches, row by row.
    picture, turned = (x.reshape(12, 8, 2, 2).transpose(1, 2).reshape(24, 16) for x in (seen, turned))
    swap = torch.tensor([0, 3, 4, 1, 2])
    assert torch.equal(turned, swap[picture.flip(1)])
    assert (picture[10, 3], picture[12, 3], picture[10, 12], picture[0, 0]) == (2, 2, 3, 0)


def test_frames_shown_in_training_stay_in_the_clip_and_include_inferences_own_spread():
    places = frames.random_places(400, 12, 13, torch.device("cpu"))
    assert (int(places.min()), int(places.max())) == (0, 12)
    even = torch.linspace(0, 12, 12).round().long()
    assert (places == even).all(dim=1).float().mean() > 0.3
    # Never back and forth within the clips that are shown closer.
    steps = places.diff(dim=1)
    assert (steps >= 0).all(dim=1).float().mean() > 0.6
    assert (steps < 0).any()


def test_a_view_is_the_chosen_frames_shifted_and_little_changed(pool: Pool):
    clips = CaptionedClips(pool, build_tokenizer(), "cpu")
    assert clips.grow(least=2) == 2
    views = frames.random_views(clips.video, torch.tensor([0, 1, 1]), 4, reach=0)
    shown = views.of(clips.video)
    assert shown.shape == (3, 4, HEIGHT, WIDTH, 3)
    for index, clip in enumerate((0, 1, 1)):
        true = clips.video[clip, views.place_BF[index]].float()
        true = true.flip(2) if views.mirrored_B[index] else true
        assert (shown[index] - true).abs().mean() < 14


def test_a_pools_clips_bring_both_answers(pool: Pool, examples: list[Example]):
    tokenizer = build_tokenizer()
    clips = CaptionedClips(pool, tokenizer, "cpu")
    clips.grow()
    clips.keep_growing()
    clips.stop()
    for index, example in enumerate(examples):
        plain, mirrored = (tokenizer.decode(ids, skip_special_tokens=True) for ids in clips.answers_N2A[index])
        assert sorted(plain.split()) == sorted(mirrored.split()) or example.attributes["count"] == 2
        assert clips.people_N[index] == example.attributes["count"]


def test_a_minute_less_of_training_teaches_two_clips_by_heart(pool: Pool):
    trainee = _small_trainee()
    clips = CaptionedClips(pool, trainee.tokenizer, "cpu")
    clips.grow(least=2)
    step = trainee.step(clips, 2)
    losses = [float(step(3e-3)) for _ in range(30)]
    assert losses[-1] < 0.35 * losses[0]
    step.apply_average()


def _small_trainee() -> Trainee:
    trainee: Any = Trainee(Settings(device="cpu", batch=2, ema=0.0, seed=1))
    return trainee
