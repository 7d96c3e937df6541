"""The mini captioner's architecture and preparation: the published Qwen2-VL classes at a size for two CPU cores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from dynamictrl.mini.captioner.tokenizer import (
    CHAT_TEMPLATE,
    END,
    IMAGE,
    PADDING,
    VIDEO,
    VISION_END,
    VISION_START,
    token_id,
)
from dynamictrl.mini.stream import HEIGHT, WIDTH

PATCH, PATCH_FRAMES, MERGE = 8, 2, 2
"""Pixels and frames of a patch; MERGE x MERGE patches are one token. The mini size is whole tokens: no resampling."""
FRAMES = 12
"""Shown of a clip, spread evenly."""
_VISION_WIDTH, _TEXT_WIDTH = 96, 128


def captioner(tokenizer: PreTrainedTokenizerFast, **text_overrides: Any) -> Qwen2VLForConditionalGeneration:  # noqa: ANN401
    """An untrained captioner of a million parameters for `tokenizer`'s words."""
    ids = {name: token_id(tokenizer, name) for name in (PADDING, END, IMAGE, VIDEO)}
    text_config: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": _TEXT_WIDTH,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.04,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1000.0},
        "bos_token_id": ids[PADDING],
        "eos_token_id": ids[END],
        "pad_token_id": ids[PADDING],
        "tie_word_embeddings": True,
    } | text_overrides
    vision_config = {
        "depth": 4,
        "embed_dim": _VISION_WIDTH,
        "hidden_size": text_config["hidden_size"],
        "num_heads": 3,
        "mlp_ratio": 2,
        "patch_size": PATCH,
        "temporal_patch_size": PATCH_FRAMES,
        "spatial_merge_size": MERGE,
        "initializer_range": 0.04,
    }
    config = Qwen2VLConfig(
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=token_id(tokenizer, VISION_START),
        vision_end_token_id=token_id(tokenizer, VISION_END),
        tie_word_embeddings=True,
    )
    return Qwen2VLForConditionalGeneration(config)


def preparation(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLProcessor:
    """What turns frames and words into the model's inputs; it also says how many frames of which size are shown."""
    size = {"shortest_edge": HEIGHT * WIDTH, "longest_edge": HEIGHT * WIDTH}
    sizes: dict[str, Any] = {"patch_size": PATCH, "temporal_patch_size": PATCH_FRAMES, "merge_size": MERGE}
    return Qwen2VLProcessor(
        Qwen2VLImageProcessor(size=dict(size), **sizes),
        tokenizer,
        Qwen2VLVideoProcessor(size=dict(size), max_frames=FRAMES, cap_pixels_per_frame=True, **sizes),
        chat_template=CHAT_TEMPLATE,
    )


def save(
    folder: Path, model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, card: str | None = None
) -> None:
    """Writes the folder that `Qwen2VLCaptioner` loads: weights in fp16, preparation, model card."""
    model.half().save_pretrained(folder)
    preparation(tokenizer).save_pretrained(folder)
    config = folder / "config.json"
    values = json.loads(config.read_text())
    values.pop("_name_or_path", None)
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
