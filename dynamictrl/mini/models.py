"""The mini family's architectures: the published classes at a size that two CPU cores can train and run.

Untrained models come from here; trained ones ship in `mini/weights` (`docs/mini.md` says how they were made).
Every builder takes overrides of its config, so that tests can ask for something smaller still.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel, DiffusionPipeline
from transformers import T5Config, T5EncoderModel

from dynamictrl.transformer import DynamiCtrlTransformer3DModel

HEIGHT = 192
"""Pixels: the mini family is portrait, as most of the paper's clips are."""
WIDTH = 128
NUM_FRAMES = 25
"""Two seconds at FPS; 7 latent frames."""
FPS = 12
TEXT_LENGTH = 40
"""Tokens that a caption is padded or cut to."""
LATENT_CHANNELS = 16
TEXT_WIDTH = 96
SHAPE = {"patch_size": 2, "num_attention_heads": 3, "num_layers": 7}
"""What of the transformer's size the base's trainer can be told otherwise."""


def vae(**overrides: Any) -> AutoencoderKLCogVideoX:  # noqa: ANN401
    """An untrained video VAE: 8 x 8 pixels and 4 frames become one latent pixel of 16 channels, as CogVideoX's."""
    config: dict[str, Any] = {
        "block_out_channels": (16, 32, 48, 56),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "latent_channels": LATENT_CHANNELS,
        "sample_height": HEIGHT,
        "sample_width": WIDTH,
        "scaling_factor": 1.0,
        "invert_scale_latents": False,
    } | overrides
    blocks = len(config["block_out_channels"])
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * blocks,  # pyright: ignore[reportArgumentType]
        up_block_types=("CogVideoXUpBlock3D",) * blocks,  # pyright: ignore[reportArgumentType]
        **config,
    )


def text_encoder(vocab_size: int, **overrides: Any) -> T5EncoderModel:  # noqa: ANN401
    """An untrained T5 encoder for `mini/tokenizer.py`'s words; token 0 pads."""
    config: dict[str, Any] = {
        "d_model": TEXT_WIDTH,
        "d_kv": 24,
        "num_heads": 4,
        "d_ff": 192,
        "num_layers": 2,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 16,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    } | overrides
    return T5EncoderModel(T5Config(vocab_size=vocab_size, **config))


def transformer(**overrides: Any) -> DynamiCtrlTransformer3DModel:  # noqa: ANN401
    """An untrained video DiT shaped as CogVideoX 1.5's: latent frames in twos, integer rotary positions, ofs."""
    config: dict[str, Any] = {
        "attention_head_dim": 64,
        "in_channels": 2 * LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "time_embed_dim": 64,
        "ofs_embed_dim": 64,
        "text_embed_dim": TEXT_WIDTH,
        "sample_height": HEIGHT // 8,
        "sample_width": WIDTH // 8,
        "sample_frames": NUM_FRAMES,
        "patch_size_t": 2,
        "max_text_seq_length": TEXT_LENGTH,
        "use_rotary_positional_embeddings": True,
        "patch_bias": False,
        "pose_control": "padaln",
    }
    config |= SHAPE | overrides
    return DynamiCtrlTransformer3DModel(**config)


def base_transformer(transformer: DynamiCtrlTransformer3DModel) -> CogVideoXTransformer3DModel:
    """A transformer whose pose control does nothing, as diffusers' own class without it."""
    known = CogVideoXTransformer3DModel._get_init_keys(CogVideoXTransformer3DModel)
    plain = CogVideoXTransformer3DModel(**{k: v for k, v in transformer.config.items() if k in known})
    plain.load_state_dict({k: v for k, v in transformer.state_dict().items() if ".control_norm1." not in k})
    return plain


def save(folder: Path, pipeline: DiffusionPipeline, card: str) -> None:
    """Writes a model folder (contract, section 3) in fp16, with its model card."""
    pipeline.to(torch.float16).save_pretrained(folder)
    for config in folder.glob("*/config.json"):
        # diffusers writes down which folder of the trainer's machine a part came from.
        values = json.loads(config.read_text())
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").write_text(card, encoding="utf-8")
