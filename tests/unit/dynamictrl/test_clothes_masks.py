"""Clothes come from a parser's labels or from SAM 3's words: real classes, tiny and untrained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dynamictrl.clothes_masks import ParsedClothes, Sam3Clothes, clothes_model
from dynamictrl.errors import CheckpointError, ConfigError


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


def sam3_parts(size: int) -> dict[str, object]:
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    layered = {**small, "num_layers": 1, "dropout": 0.0}
    backbone = {**small, "model_type": "sam3_vit_model", "num_hidden_layers": 2, "image_size": size}
    backbone |= {"pretrain_image_size": size, "patch_size": 14, "window_size": 4, "global_attn_indexes": [1]}
    text = {"vocab_size": 20, "num_hidden_layers": 1, "max_position_embeddings": 32, "projection_dim": 32}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    sizes = [[32, 32], [16, 16], [8, 8]]
    return {
        "vision_config": {"backbone_config": backbone, "fpn_hidden_size": 32, "backbone_feature_sizes": sizes},
        "text_config": {**small, **text},
        "geometry_encoder_config": layered,
        "detr_encoder_config": layered,
        "detr_decoder_config": {**layered, "num_queries": 5},
        "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2},
    }


@pytest.fixture(scope="module")
def tiny_sam3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Sam3Model of the real class with random weights and a tokenizer of five words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Sam3Config, Sam3Model, Sam3Processor
    from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam3")
    Sam3Model(Sam3Config(**sam3_parts(112))).save_pretrained(folder)  # type: ignore[arg-type]
    words = {word: index for index, word in enumerate(("<unk>", "<s>", "</s>", "clothes", "dress"))}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    size, mask_size = {"height": 112, "width": 112}, {"height": 32, "width": 32}
    Sam3Processor(Sam3ImageProcessor(size=size, mask_size=mask_size), tokenizer).save_pretrained(folder)
    return folder


def test_sam3_is_asked_in_words_for_every_frame(tiny_sam3: Path):
    segment = clothes_model(tiny_sam3, "cpu", labels=(), prompt="clothes")
    assert isinstance(segment, Sam3Clothes)
    found = segment(frames(2))
    assert (found.shape, found.dtype) == ((2, 48, 64), bool)
