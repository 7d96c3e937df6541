"""Fine-tunes the mini base with poses: its PadaLN layers are initialised and everything but text and VAE trains.

    python -m dynamictrl.mini.train_dynamictrl --base BASE --latents POOL/latents.pt --out FOLDER --seconds 400

`--latents` is what `train_base` encoded with the same VAE.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch

from dynamictrl.animation import DynamiCtrlPipeline
from dynamictrl.mini import models
from dynamictrl.mini.dit_training import Settings, train
from dynamictrl.mini.flags import add_settings
from dynamictrl.mini.latent_pool import LatentPool
from dynamictrl.transformer import DynamiCtrlTransformer3DModel

logger = logging.getLogger(__name__)

CARD = """---
license: apache-2.0
library_name: diffusers
tags: [mini, dynamictrl, synthetic]
---
# mini/dynamictrl

A **mini** model: DynamiCtrl (PadaLN) at {parameters:.1f} M parameters, fine-tuned from `mini/base` on synthetic
marionettes (drawn figures) with their poses. It shows the method at a size that two CPU cores can run. It is not the
published DynamiCtrl, and knows nothing but marionettes.

How it was trained and what was measured: `docs/mini.md`. Training took {steps} steps in {seconds:.0f} s.
"""


def give_pose(transformer: DynamiCtrlTransformer3DModel, *, silent: bool) -> None:
    """Initialises PadaLN: silent (the first step equals the base) or by torch's defaults, as the published code."""
    for block in transformer.transformer_blocks:
        block.control_norm1.requires_grad_(True)
        for part in (block.control_norm1.linear, block.control_norm1.norm):
            part.reset_parameters()  # pyright: ignore[reportCallIssue]
    if silent:
        transformer.silence_pose()


def main() -> None:
    """Loads the base folder, trains, writes the model folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--silent", action=argparse.BooleanOptionalAction, default=False)
    add_settings(parser, Settings())
    parser.set_defaults(other_reference=0.5, learning_rate=1e-3)
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = Settings(**{name: options[name] for name in vars(Settings())})

    pipeline = DynamiCtrlPipeline.from_pretrained(options["base"], torch_dtype=torch.float32)
    pool = LatentPool.load(options["latents"]).to(settings.device)
    pipeline.text_encoder.requires_grad_(False)
    give_pose(pipeline.transformer, silent=options["silent"])
    spent = train(pipeline.transformer, pipeline.text_encoder, pool, settings)
    millions = sum(p.numel() for p in pipeline.transformer.parameters()) / 1e6
    models.save(
        options["out"],
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        transformer=pipeline.transformer,
        card=CARD.format(parameters=millions, **spent),
    )
    (options["out"] / "measured.json").write_text(json.dumps(spent, indent=1))


if __name__ == "__main__":
    main()
