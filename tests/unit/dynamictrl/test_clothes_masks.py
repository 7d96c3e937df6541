"""Clothes come from a parser's labels or from SAM 3's words: real classes, tiny and untrained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynamictrl.errors import CheckpointError, ConfigError
from dynamictrl.masks.clothes_masks import ParsedClothes, Sam3Clothes, Sam3VideoClothes, clothes_model


@pytest.fixture(scope="module")
def tiny_parser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved SegFormer of three labels with random weights."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    labels = {0: "Background", 1: "Dress", 2: "Pants"}
    config = SegformerConfig(
        num_encoder_blocks=4,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
        id2label=labels,
        label2id={name: index for index, name in labels.items()},
    )
    folder = tmp_path_factory.mktemp("parser")
    model = SegformerForSemanticSegmentation(config)
    # Untrained logits may never be largest for a label: noise of a size makes all three come.
    torch.nn.init.normal_(model.decode_head.classifier.weight, std=5.0)
    model.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


SIZE, MASK_SIZE = {"height": 112, "width": 112}, {"height": 32, "width": 32}


def frames(count: int) -> np.ndarray:
    blocks = np.random.default_rng(0).integers(0, 255, (count, 6, 8, 3), np.uint8)
    return np.kron(blocks, np.ones((1, 8, 8, 1), np.uint8))


def test_a_parsers_labels_are_clothes_together_what_they_are_alone(tiny_parser: Path):
    pictures = frames(10)
    found = {
        labels: clothes_model(tiny_parser, "cpu", labels=labels, prompt="")(pictures)
        for labels in (("Dress",), ("Pants",), ("Dress", "Pants"), ("Background",))
    }
    both = found["Dress", "Pants"]
    assert (both.shape, both.dtype) == ((10, 48, 64), bool)
    np.testing.assert_array_equal(both, found["Dress",] | found["Pants",])
    np.testing.assert_array_equal(both, ~found["Background",])
    # Ten frames are two passes: the parts are those of each frame alone.
    np.testing.assert_array_equal(both[9:], ParsedClothes(tiny_parser, "cpu", ("Dress", "Pants"))(pictures[9:]))


def test_a_label_that_the_parser_does_not_know_is_named_with_the_nearest(tiny_parser: Path):
    with pytest.raises(ConfigError, match="no label 'Dresses'; did you mean 'Dress'"):
        clothes_model(tiny_parser, "cpu", labels=("Dresses",), prompt="")


def test_missing_weights_are_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match="config.json"):
        clothes_model(tmp_path, "cpu", labels=(), prompt="")


def sam3_parts(size: int) -> dict[str, Any]:
    small = {"hidden_size": 128, "intermediate_size": 32, "num_attention_heads": 2}
    layered = {**small, "num_layers": 1, "dropout": 0.0}
    backbone = {**small, "model_type": "sam3_vit_model", "num_hidden_layers": 2, "image_size": size}
    backbone |= {"pretrain_image_size": size, "patch_size": 14, "window_size": 4, "global_attn_indexes": [1]}
    text = {"vocab_size": 20, "num_hidden_layers": 1, "max_position_embeddings": 32, "projection_dim": 128}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    sizes = [[32, 32], [16, 16], [8, 8]]
    return {
        "vision_config": {"backbone_config": backbone, "fpn_hidden_size": 128, "backbone_feature_sizes": sizes},
        "text_config": {**small, **text},
        "geometry_encoder_config": layered,
        "detr_encoder_config": layered,
        "detr_decoder_config": {**layered, "num_queries": 5},
        "mask_decoder_config": {"hidden_size": 128, "num_attention_heads": 2},
    }


@pytest.fixture(scope="module")
def tiny_sam3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Sam3Model of the real class with random weights and a tokenizer of five words."""
    import torch
    from transformers import Sam3Config, Sam3Model, Sam3Processor
    from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam3")
    Sam3Model(Sam3Config(**sam3_parts(112))).save_pretrained(folder)
    Sam3Processor(Sam3ImageProcessor(size=SIZE, mask_size=MASK_SIZE), five_words()).save_pretrained(folder)
    return folder


def five_words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(("<unk>", "<s>", "</s>", "clothes", "dress"))}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def test_sam3_is_asked_in_words_for_every_frame(tiny_sam3: Path):
    segment = clothes_model(tiny_sam3, "cpu", labels=(), prompt="clothes")
    assert isinstance(segment, Sam3Clothes)
    found = segment(frames(2))
    assert (found.shape, found.dtype) == ((2, 48, 64), bool)


def test_sam3_video_finds_what_the_words_name_and_follows_it(tmp_path: Path):
    import torch
    from transformers import Sam3VideoConfig, Sam3VideoModel, Sam3VideoProcessor
    from transformers.models.sam2_video.video_processing_sam2_video import Sam2VideoVideoProcessor
    from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

    parts = sam3_parts(112)
    names = ("memory_attention_hidden_size", "memory_encoder_hidden_size", "mask_downsampler_embed_dim")
    tracker: dict[str, Any] = {
        "model_type": "sam3_tracker_video",
        "image_size": 112,
        "vision_config": parts["vision_config"],
        "prompt_encoder_config": {"hidden_size": 128, "image_size": 112, "patch_size": 14},
        "mask_decoder_config": {"hidden_size": 128, "iou_head_hidden_dim": 32, "mlp_dim": 64, "num_attention_heads": 2},
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 32,
        "memory_attention_rope_feat_sizes": [8, 8],
        "memory_encoder_output_channels": 64,
        "memory_fuser_embed_dim": 128,
        "memory_fuser_intermediate_dim": 32,
        **dict.fromkeys(names, 128),
    }
    # Untrained, it must not be asked to be sure.
    lenient = {"score_threshold_detection": 0.0, "new_det_thresh": 0.0, "det_nms_thresh": 0.9}
    at_once = {"hotstart_delay": 0, "hotstart_unmatch_thresh": 0, "hotstart_dup_thresh": 0, "low_res_mask_size": 32}
    known: dict[str, Any] = {**lenient, **at_once}
    torch.manual_seed(0)
    config = Sam3VideoConfig(detector_config=parts, tracker_config=tracker, **known)
    Sam3VideoModel(config).save_pretrained(tmp_path)
    pictures, video = Sam3ImageProcessor(size=SIZE, mask_size=MASK_SIZE), Sam2VideoVideoProcessor(size=SIZE)
    Sam3VideoProcessor(pictures, video, five_words()).save_pretrained(tmp_path)
    segment = clothes_model(tmp_path, "cpu", labels=(), prompt="clothes")
    assert isinstance(segment, Sam3VideoClothes)
    found = segment(frames(3))
    assert (found.shape, found.dtype) == ((3, 48, 64), bool)
    assert found.any(axis=(1, 2)).all()
