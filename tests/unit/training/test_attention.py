"""The attention command on a tiny model: what it writes, and what it refuses before a model is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynamictrl.errors import ConfigError, DynamiCtrlError, InputError
from dynamictrl.mini.tiny import write_tiny_model
from dynamictrl.mini.tokenizer import build_tokenizer
from training.attention import AttentionStudy, spread, study, words_of


@pytest.fixture
def settings(tiny_model: Path, person_and_pose: tuple[Path, Path], tmp_path: Path) -> AttentionStudy:
    image, pose = person_and_pose
    return AttentionStudy(
        model=str(tiny_model), image=image, pose_video=pose, prompt="a person in a red shirt", out=tmp_path / "maps",
        height=96, width=64, num_frames=9, num_inference_steps=3, points=("4,10,20",), words=("red",)
    )  # fmt: skip


def test_two_variants_are_drawn_side_by_side(settings: AttentionStudy, tmp_path: Path):
    other = write_tiny_model(tmp_path / "unified", pose_control="unified_tokens")
    out = study(replace(settings, against=str(other)))

    assert {path.name for path in out.iterdir()} == {
        "attention.json", "figure3.png", "figure3-colour.png", "clip.mp4", "maps.npz", "mass.png", "received.png",
        "points.png", "words.png", "against-clip.mp4", "against-maps.npz", "against-mass.png", "against-received.png",
        "against-points.png", "against-words.png"
    }  # fmt: skip
    summary = json.loads((out / "attention.json").read_text())
    assert [run["title"].split(" ")[-1] for run in summary["runs"]] == ["(padaln)", "(unified_tokens)"]
    assert [row["block"] for row in summary["runs"][0]["blocks"]] == [0, 1]
    with np.load(out / "maps.npz") as maps:
        assert maps["steps"].tolist() == [0, 1, 2]
        np.testing.assert_allclose(maps["mass"].sum(-1), 1, rtol=1e-5)
        assert maps["sent"].shape[2] == maps["words"].shape[2] == 1
    with Image.open(out / "figure3.png") as picture:
        assert np.unique(np.asarray(picture)).size > 1


def test_mistakes_are_refused_before_a_model_is_loaded(settings: AttentionStudy):
    with pytest.raises(ConfigError, match="one of --driving-video"):
        replace(settings, driving_video=settings.pose_video)
    with pytest.raises(ConfigError, match="steps 0 to 2"):
        replace(settings, steps=(3,))
    with pytest.raises(InputError, match="no such file"):
        study(replace(settings, image=Path("nobody.png")))
    with pytest.raises(DynamiCtrlError, match="nearest|multiple"):
        study(replace(settings, height=100))


def test_a_point_or_word_that_is_not_in_the_clip_is_refused(settings: AttentionStudy):
    with pytest.raises(InputError, match="no word 'blue'; it has a, person, in, red, shirt"):
        study(replace(settings, words=("blue",)))
    with pytest.raises(InputError, match="frame below 9"):
        study(replace(settings, points=("9,0,0",)))
    with pytest.raises(InputError, match="FRAME,X,Y"):
        study(replace(settings, points=("in the middle",)))


def test_words_are_found_with_all_their_tokens():
    tokenizer = build_tokenizer(["a person in a red shirt"])
    assert words_of(tokenizer, "a person in a cap, red", 16) == {
        "a": [0, 3], "person": [1], "in": [2], "cap": [4, 5, 6, 7, 8], "red": [9]
    }  # fmt: skip


def test_four_are_shown_from_the_first_to_the_last():
    assert spread(42) == (0, 14, 27, 41)
    assert spread(2) == (0, 1)
    assert spread(1) == (0,)
