"""The shipped captioner says what held-out marionettes show, quickly, through the class that users call."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dynamictrl import weights
from dynamictrl.captions.captioning import caption_problem
from dynamictrl.captions.qwen_captioning import Qwen2VLCaptioner
from dynamictrl.mini.captioner.evaluate import measure
from dynamictrl.mini.captioner.tokenizer import build_tokenizer

pytestmark = pytest.mark.skipif(
    not (weights.MINI / "captioner").is_dir(), reason="mini/captioner has not been trained here"
)


@pytest.fixture(scope="module")
def captioner() -> Qwen2VLCaptioner:
    return Qwen2VLCaptioner("mini/captioner", device="cpu")


def folder() -> Path:
    return weights.resolve("mini/captioner", ["config.json", "model.safetensors", "README.md", "measured.json"])


def test_the_folder_is_small_and_says_that_it_is_no_qwen2_vl():
    assert sum(path.stat().st_size for path in folder().rglob("*")) <= 2_200_000
    assert "**not** Qwen2-VL" in (folder() / "README.md").read_text()
    assert json.loads((folder() / "measured.json").read_text())["held_out"]["clips"] >= 200


def test_it_was_trained_with_the_words_that_the_code_makes(captioner: Qwen2VLCaptioner):
    assert captioner.preparation.tokenizer.get_vocab() == build_tokenizer().get_vocab()


def test_held_out_clips_are_described_rightly(captioner: Qwen2VLCaptioner):
    measured = measure(captioner, clips=6)
    # 256 clips are measured by `python -m dynamictrl.mini.captioner.evaluate`; six only tell broken from whole.
    assert measured["mean"] >= 0.85, measured["faulty"]
    assert measured["problems"] == 0
    promised = json.loads((folder() / "measured.json").read_text())["held_out"]["mean"]
    assert measured["mean"] >= promised - 0.15


def test_noise_and_darkness_give_words_or_a_reason_and_no_crash(captioner: Qwen2VLCaptioner):
    noise = np.random.default_rng(0).integers(0, 256, (9, 120, 160, 3), np.uint8)
    for frames in (noise, np.zeros((1, 192, 128, 3), np.uint8)):
        text = captioner(frames)
        assert text == captioner(frames)
        # Nobody is in these frames. What it makes of them may go round and round, and is then known for that.
        assert caption_problem(text) in (None, "empty_caption", "caption_loop")
