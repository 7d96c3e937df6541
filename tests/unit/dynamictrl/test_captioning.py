"""Captions come from a real model class, from beside the video, or with a reason why they are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dynamictrl.captions.captioning import DEFAULT_PROMPT, SidecarCaptioner, caption_problem
from dynamictrl.captions.qwen_captioning import Qwen2VLCaptioner
from dynamictrl.errors import CheckpointError, InputError

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Qwen2-VL of the real classes with random weights and a byte-level tokenizer, built offline."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        Qwen2TokenizerFast,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
    )
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    alphabet = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    plain = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    special = [f"<|{name}|>" for name in ("endoftext", "im_start", "im_end", "vision_start", "vision_end")]
    special += ["<|image_pad|>", "<|video_pad|>"]
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=special[1:]
    )
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in special}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 1},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("qwen")
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    Qwen2VLProcessor(
        Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=CHAT_TEMPLATE
    ).save_pretrained(folder)
    return folder


def clip(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 64, 48, 3), np.uint8)


def test_a_real_model_class_answers_the_same_words_each_time(tiny_qwen: Path):
    captioner = Qwen2VLCaptioner(tiny_qwen, "cpu", max_new_tokens=8)
    text = captioner(clip(9))
    assert isinstance(text, str)
    assert text == captioner(clip(9))
    assert captioner.model_id == str(tiny_qwen)


def test_the_model_sees_the_prompt_and_frames_spread_over_the_clip(tiny_qwen: Path):
    few = Qwen2VLCaptioner(tiny_qwen, "cpu", max_frames=4, max_new_tokens=1)
    inputs = few._inputs(clip(30))
    # Two frames a temporal patch, 28 pixels a token side.
    time, height, width = inputs["video_grid_thw"][0].tolist()
    assert time == 2
    video_tokens = int((inputs["input_ids"] == few.model.config.video_token_id).sum())
    assert video_tokens == time * height * width // 4
    assert DEFAULT_PROMPT in few.preparation.batch_decode(inputs["input_ids"])[0]
    # Other frames, other pixels.
    assert not np.array_equal(inputs["pixel_values_videos"], few._inputs(clip(30, seed=1))["pixel_values_videos"])


def test_a_single_frame_can_be_described_and_none_cannot(tiny_qwen: Path):
    captioner = Qwen2VLCaptioner(tiny_qwen, "cpu", max_new_tokens=2)
    assert isinstance(captioner(clip(1)), str)
    with pytest.raises(InputError):
        captioner(clip(0))


def test_bad_settings_and_missing_weights_are_named_before_anything_is_loaded(tmp_path: Path):
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        Qwen2VLCaptioner(tmp_path, "cpu", max_new_tokens=0)
    with pytest.raises(CheckpointError, match=r"config.json"):
        Qwen2VLCaptioner(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A woman in a red dress dances in a park.", None),
        ("A man waves. He smiles. The wall behind him is white, very very white.", None),
        ("The person says sorry to a friend; I can't tell more of the wall is blue.", None),
        ("", "empty_caption"),
        (" \n.", "empty_caption"),
        ("I'm sorry, but I can't identify people.", "caption_refusal"),
        ("As an AI language model, I cannot watch videos.", "caption_refusal"),
        ("I cannot describe this.", "caption_refusal"),
        ("A man stands there. " * 5, "caption_loop"),
        ("the the the the the the", "caption_loop"),
        ("一个人在跳舞。" * 6, "caption_loop"),
        (
            " ".join(["he", "goes", "up", "and", "down", "and", "up", "he"][i * i % 8] for i in range(60)),
            "caption_loop",
        ),
    ],
)
def test_a_caption_that_is_none_is_told_apart(text: str, problem: str | None):
    assert caption_problem(text) == problem


def sidecar(folder: Path, content: object) -> Path:
    (folder / "clip.json").write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder / "clip.mp4"


SHOTS = {
    "generator": "marionettes",
    "shots": [
        {"start": 0.0, "end": 2.0, "caption": "one", "attributes": {}},
        {"start": 2.0, "end": 6.0, "caption": "two", "attributes": {}},
    ],
}


@pytest.mark.parametrize(
    ("start", "end", "caption"), [(0, 2, "one"), (0, 3.9, "one"), (1.5, 4, "two"), (5, 9, "two"), (7, 9, None)]
)
def test_the_shot_that_covers_most_of_the_span_is_read(tmp_path: Path, start: float, end: float, caption: str | None):
    assert SidecarCaptioner().caption(sidecar(tmp_path, SHOTS), start, end) == caption


def test_a_caption_for_the_whole_video_is_enough(tmp_path: Path):
    video = sidecar(tmp_path, {"caption": "Ein Mann läuft."})
    assert SidecarCaptioner().caption(video, 3, 4) == "Ein Mann läuft."


@pytest.mark.parametrize("content", ["{broken", "[1, 2]", "{}", '{"shots": []}'])
def test_a_sidecar_that_cannot_be_used_gives_no_caption(tmp_path: Path, content: str):
    assert SidecarCaptioner().caption(sidecar(tmp_path, content), 0, 1) is None
    assert SidecarCaptioner().caption(tmp_path / "elsewhere.mp4", 0, 1) is None
