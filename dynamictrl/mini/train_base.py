"""Pretrains the mini family's base: text and first image to video, WITHOUT pose, its text encoder learnt jointly.

    python -m dynamictrl.mini.train_base --pool POOL --vae VAE --latents POOL/latents.pt --out FOLDER --seconds 400

What comes out is a model folder whose PadaLN weights are zero, so that it computes what a CogVideoX base without them
would; poses given to it change nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX
from transformers import T5EncoderModel

from dynamictrl.mini import models
from dynamictrl.mini.dit_training import Settings, train
from dynamictrl.mini.flags import add_settings
from dynamictrl.mini.latent_pool import LatentPool, encode_pool
from dynamictrl.mini.stream import Pool
from dynamictrl.mini.tokenizer import build_tokenizer
from dynamictrl.transformer import DynamiCtrlTransformer3DModel

logger = logging.getLogger(__name__)

CARD = """---
license: apache-2.0
library_name: diffusers
tags: [mini, dynamictrl, synthetic]
---
# mini/base

A **mini** model: the architecture of CogVideoX 1.5 image-to-video at {parameters:.1f} M parameters, pretrained from
scratch **without pose** on synthetic marionettes (drawn figures). It is what the recipe `mini` fine-tunes. It is no
CogVideoX checkpoint and knows nothing but marionettes. Its PadaLN weights are zero: poses change nothing.

How it was trained and what was measured: `docs/mini.md`. Training took {steps} steps in {seconds:.0f} s.
"""


def pretrain(
    pool: LatentPool, vocabulary: int, settings: Settings
) -> tuple[DynamiCtrlTransformer3DModel, T5EncoderModel, dict[str, float]]:
    """A base transformer and text encoder trained on a pool without its poses, and what was spent."""
    torch.manual_seed(settings.seed)
    transformer, text_encoder = models.transformer(), models.text_encoder(vocabulary)
    transformer.silence_pose()
    for block in transformer.transformer_blocks:
        block.control_norm1.requires_grad_(False)
    spent = train(transformer, text_encoder, pool, settings)
    return transformer, text_encoder, spent


def main() -> None:
    """Encodes the pool (or reads what an earlier call encoded), trains, writes the model folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--latents", type=Path, required=True, help="file for the encoded pool; written if absent")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encode-batch", type=int, default=32)
    parser.add_argument("--mirrored", action=argparse.BooleanOptionalAction, default=False)
    add_settings(parser, Settings())
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = Settings(**{name: options[name] for name in vars(Settings())})

    pool = Pool(options["pool"])
    tokenizer = build_tokenizer([pool.caption(int(i)) for i in pool.ready()], max_length=models.TEXT_LENGTH)
    vae = AutoencoderKLCogVideoX.from_pretrained(options["vae"], torch_dtype=torch.float32).eval()
    torch.nn.Module.to(vae, settings.device)
    if not options["latents"].exists():
        encode_pool(vae, tokenizer, pool, batch=options["encode_batch"], mirrored=options["mirrored"]).save(
            options["latents"]
        )
    encoded = LatentPool.load(options["latents"]).to(settings.device)
    transformer, text_encoder, spent = pretrain(encoded, len(tokenizer), settings)
    millions = sum(p.numel() for p in transformer.parameters()) / 1e6
    card = CARD.format(parameters=millions, **spent)
    models.save(
        options["out"], vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer, card=card
    )
    (options["out"] / "measured.json").write_text(json.dumps(spent, indent=1))


if __name__ == "__main__":
    main()
