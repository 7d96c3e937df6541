"""The filters whose models the user names, with tiny random models of the same classes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynamictrl.errors import CheckpointError, ConfigError
from dynamictrl.quality.picture_models import AestheticScorer, PictureClassifier, spread_frames
from pipelines.clip import Clip
from pipelines.stage import run_local
from pipelines.stages.keep_beautiful import KeepBeautiful
from pipelines.stages.keep_safe import KeepSafe
from tests.unit.pipelines.conftest import shot

Make = Callable[..., Clip]
WIDTH = 16
"""Of the tiny CLIP's embedding."""


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 64},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=WIDTH,
    )
    folder = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    size = {"shortest_edge": 32}
    CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two linear layers, named as LAION's are; the number 10 comes after 2, not before it."""
    import torch
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    generator = torch.Generator().manual_seed(1)
    layers = {
        "layers.2.weight": torch.randn(8, WIDTH, generator=generator),
        "layers.2.bias": torch.randn(8, generator=generator),
        "layers.10.weight": torch.randn(1, 8, generator=generator),
        "layers.10.bias": torch.tensor([5.0]),
    }
    save_file(layers, path)
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        id2label={0: "normal", 1: "NSFW", 2: "suggestive"},
        label2id={"normal": 0, "NSFW": 1, "suggestive": 2},
    )
    folder = tmp_path_factory.mktemp("classifier")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_frames_are_taken_from_the_middle_of_equal_stretches():
    frames = np.arange(40)
    assert spread_frames(frames, 4).tolist() == [5, 15, 25, 35]
    assert spread_frames(frames[:2], 4).tolist() == [0, 1]


def test_a_head_on_a_clip_embedding_scores_every_picture(clip_model: Path, head: Path):
    from safetensors.numpy import load_file

    frames = np.concatenate([shot(1, 1), shot(2, 1)])
    scorer = AestheticScorer(clip_model, head)
    scores = scorer(frames)
    assert scores.shape == (2,)
    assert scores[0] != scores[1]
    # The layers follow one another without activation, on an embedding of length 1: that bounds what they can say.
    layers = load_file(head)
    longest = np.linalg.norm(layers["layers.10.weight"] @ layers["layers.2.weight"])
    offset = (layers["layers.10.weight"] @ layers["layers.2.bias"]).item() + 5
    assert (np.abs(scores - offset) <= longest).all()


def test_a_clip_is_kept_or_refused_by_its_aesthetic_score(clip_model: Path, head: Path, cut_clip: Make):
    stage = KeepBeautiful(model=str(clip_model), head=str(head), ugliest=-100, device="cpu")
    (kept,) = run_local([stage], [cut_clip()])
    assert kept.rejected == ""
    higher = KeepBeautiful(model=str(clip_model), head=str(head), ugliest=100, device="cpu")
    (refused,) = run_local([higher], [kept])
    assert refused.rejected == "low_aesthetics"
    assert refused.scores["aesthetics"] == kept.scores["aesthetics"]
    assert stage.weights == (str(clip_model), str(head))


def test_a_head_for_another_model_is_refused(clip_model: Path, tmp_path: Path):
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1, 768)}, tmp_path / "head.safetensors")
    with pytest.raises(CheckpointError, match="takes 768 numbers, but gets 16"):
        AestheticScorer(clip_model, tmp_path)


def test_the_labels_named_are_added_up_over_the_worst_frame(classifier: Path, cut_clip: Make):
    clip = cut_clip()
    (one,) = run_local([KeepSafe(model=str(classifier), most_unsafe=1.0, device="cpu")], [clip])
    labels = ("nsfw", "suggestive")
    (two,) = run_local([KeepSafe(model=str(classifier), labels=labels, most_unsafe=0.0, device="cpu")], [clip])
    assert 0 < one.scores["unsafe"] < two.scores["unsafe"] < 1
    assert (one.rejected, two.rejected) == ("", "unsafe")
    likely = PictureClassifier(classifier, ["normal", *labels])(shot(1, 2))
    assert likely == pytest.approx([1, 1], abs=1e-6)


def test_a_label_that_the_model_does_not_have_is_refused_with_those_it_has(classifier: Path):
    with pytest.raises(ConfigError, match="normal, nsfw, suggestive"):
        KeepSafe(model=str(classifier), labels=("porn",), device="cpu").setup()


def test_both_are_off_until_a_model_is_named_and_a_model_needs_its_head():
    assert not KeepSafe().active
    assert not KeepBeautiful().active
    assert (KeepSafe().weights, KeepBeautiful().weights) == ((), ())
    with pytest.raises(ConfigError, match="no head is named"):
        KeepBeautiful(model="owner/clip")
    with pytest.raises(CheckpointError):
        KeepSafe(model="/nowhere/classifier").check()
