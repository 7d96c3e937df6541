"""Pretrains the mini family's base: text and first image to video, WITHOUT pose.

    torchrun --nproc-per-node 4 -m dynamictrl.mini.train_base --pool POOL --vae VAE --text TEXT --latents FOLDER \\
        --out BASE --seconds 400

What comes out is a folder of diffusers' own `CogVideoXImageToVideoPipeline`, as a CogVideoX base is published. The
encoded pool stays in `--latents`, a file for each rank, for `train_dynamictrl`.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXImageToVideoPipeline
from transformers import PreTrainedTokenizerBase, T5EncoderModel, T5Tokenizer

from dynamictrl.mini import models
from dynamictrl.mini.dit_training import Settings, train
from dynamictrl.mini.flags import add_settings
from dynamictrl.mini.latent_pool import LatentPool, encode_pool
from dynamictrl.mini.ranks import Ranks, join
from dynamictrl.mini.stream import Pool
from dynamictrl.mini.tiny import cogvideox_scheduler

logger = logging.getLogger(__name__)

CARD = """---
license: apache-2.0
library_name: diffusers
tags: [mini, dynamictrl, synthetic]
---
# mini/base

A **mini** model: the architecture of CogVideoX 1.5 image-to-video at {parameters:.1f} M parameters, pretrained from
scratch **without pose** on synthetic marionettes (drawn figures). It is what the recipe `mini` fine-tunes. It is no
CogVideoX checkpoint and knows nothing but marionettes.

How it was trained and what was measured: `docs/mini.md`. Training took {steps} steps in {seconds:.0f} s on {gpus} GPUs.
"""


def encoded_share(folder: Path, ranks: Ranks, encode: Callable[[], LatentPool]) -> LatentPool:
    """This rank's part of the encoded pool: from its file, or encoded now and filed."""
    file = LatentPool.file(folder, ranks)
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        encode().save(file)
    return LatentPool.load(file).to(ranks.device)


def _encode(options: dict[str, Any], tokenizer: PreTrainedTokenizerBase, ranks: Ranks) -> LatentPool:
    # As the VAE was trained: in bf16, where there is a GPU.
    dtype = torch.bfloat16 if ranks.device.startswith("cuda") else torch.float32
    vae = AutoencoderKLCogVideoX.from_pretrained(options["vae"], torch_dtype=dtype).eval()
    torch.nn.Module.to(vae, ranks.device)
    share = (ranks.rank, ranks.count)
    return encode_pool(vae, tokenizer, Pool(options["pool"]), batch=options["encode_batch"], share=share)


def main() -> None:
    """Encodes the pool (or reads what an earlier call encoded), trains, writes the model folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="what train_text wrote")
    parser.add_argument("--latents", type=Path, required=True, help="folder for the encoded pool; filled if empty")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encode-batch", type=int, default=32)
    for name, default in models.SHAPE.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    add_settings(parser, Settings())
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = Settings(**{name: options[name] for name in vars(Settings())})
    ranks = join(settings.device)

    tokenizer = T5Tokenizer.from_pretrained(options["text"] / "tokenizer")
    text_encoder = T5EncoderModel.from_pretrained(options["text"] / "text_encoder", dtype=torch.float32)
    pool = encoded_share(options["latents"], ranks, lambda: _encode(options, tokenizer, ranks))
    torch.manual_seed(settings.seed)
    transformer = models.transformer(**{name: options[name] for name in models.SHAPE})
    transformer.silence_pose()
    for block in transformer.transformer_blocks:
        block.control_norm1.requires_grad_(False)
    text_encoder.requires_grad_(False)
    spent = train(transformer, text_encoder, pool, settings, ranks)
    ranks.leave()
    if not ranks.first:
        return
    millions = sum(p.numel() for p in transformer.parameters() if p.requires_grad) / 1e6
    vae = AutoencoderKLCogVideoX.from_pretrained(options["vae"], torch_dtype=torch.float32)
    pipeline = CogVideoXImageToVideoPipeline(
        tokenizer, text_encoder, vae, models.base_transformer(transformer), cogvideox_scheduler()
    )
    models.save(options["out"], pipeline, CARD.format(parameters=millions, **spent))
    (options["out"] / "measured.json").write_text(json.dumps(spent, indent=1))


if __name__ == "__main__":
    main()
