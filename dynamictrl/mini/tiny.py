"""A whole model folder of tiny random weights, written in seconds: real classes for tests, no use as a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler
from transformers import T5Config, T5EncoderModel

from dynamictrl.animation import DynamiCtrlPipeline
from dynamictrl.mini.tokenizer import build_tokenizer
from dynamictrl.pose_control import input_channels
from dynamictrl.transformer import DynamiCtrlTransformer3DModel

TEXT_TOKENS = 16
TEXT_WIDTH = 32

Base = Literal["1.0", "1.5"]

_BASES: dict[str, dict[str, Any]] = {
    "1.0": {"sample_height": 12, "sample_width": 8, "sample_frames": 13},
    "1.5": {
        "sample_height": 12,
        "sample_width": 8,
        "sample_frames": 13,
        "patch_size_t": 2,
        "ofs_embed_dim": 32,
        "patch_bias": False,
    },
}


def tiny_transformer(base: Base = "1.5", pose_control: str = "padaln", **changes: Any) -> DynamiCtrlTransformer3DModel:  # noqa: ANN401
    """2 layers of 2 heads x 16, with rotary positions, shaped like a 1.0 or a 1.5 base."""
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "in_channels": input_channels(pose_control),
        "time_embed_dim": 32,
        "text_embed_dim": TEXT_WIDTH,
        "max_text_seq_length": TEXT_TOKENS,
        "use_rotary_positional_embeddings": True,
        "pose_control": pose_control,
    }
    return DynamiCtrlTransformer3DModel(**{**config, **_BASES[base], **changes})


def tiny_vae(base: Base = "1.5") -> AutoencoderKLCogVideoX:
    """CogVideoX's VAE with its true compression (8x8 pixels, 4 frames, 16 latent channels) and 8 channels inside."""
    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        norm_num_groups=4,
        # Half of them is a tile; diffusers' tiling adds up only for tiles of 6k latent rows and 5k columns.
        sample_height=96,
        sample_width=80,
        scaling_factor=0.7,
        invert_scale_latents=base == "1.5",
    )


def cogvideox_scheduler(snr_shift_scale: float = 1.0) -> CogVideoXDPMScheduler:
    """The scheduler of the CogVideoX 5B and 1.5 folders (2B shifts the signal-to-noise ratio by 3)."""
    return CogVideoXDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        snr_shift_scale=snr_shift_scale,
        timestep_spacing="trailing",
    )


def write_tiny_model(folder: Path, base: Base = "1.5", pose_control: str = "padaln") -> Path:
    """Writes a complete DynamiCtrl folder and returns it; the same arguments give the same weights.

    Renders legal sizes from 16x16 pixels up; its own default is 96 high and 64 wide.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = build_tokenizer(["a person in a red shirt dances in front of a blue wall"], max_length=TEXT_TOKENS)
        text_config = T5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
        pipeline = DynamiCtrlPipeline(
            tokenizer=tokenizer,
            text_encoder=T5EncoderModel(text_config),
            vae=tiny_vae(base),
            transformer=tiny_transformer(base, pose_control),
            scheduler=cogvideox_scheduler(),
        )
    pipeline.save_pretrained(folder)
    return folder
