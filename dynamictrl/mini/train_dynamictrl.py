"""Fine-tunes the mini base with poses: its PadaLN layers are initialised and everything but text and VAE trains.

    torchrun --nproc-per-node 4 -m dynamictrl.mini.train_dynamictrl --base BASE --latents FOLDER --out OUT --seconds 400

`--latents` is what `train_base` encoded with the same VAE, on as many ranks.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXImageToVideoPipeline

from dynamictrl.animation import DynamiCtrlPipeline
from dynamictrl.conversion.base_weights import from_base
from dynamictrl.mini import models
from dynamictrl.mini.dit_training import Settings, train
from dynamictrl.mini.flags import add_settings
from dynamictrl.mini.latent_pool import LatentPool
from dynamictrl.mini.ranks import join
from dynamictrl.mini.tiny import cogvideox_scheduler

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

How it was trained and what was measured: `docs/mini.md`. Training took {steps} steps in {seconds:.0f} s on
{gpus} GPUs.
"""


def main() -> None:
    """Loads the base folder, trains, writes the model folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--silent", action=argparse.BooleanOptionalAction, default=False)
    add_settings(parser, Settings())
    parser.set_defaults(other_reference=0.3)
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = Settings(**{name: options[name] for name in vars(Settings())})
    ranks = join(settings.device)

    base = CogVideoXImageToVideoPipeline.from_pretrained(options["base"], torch_dtype=torch.float32)
    pool = LatentPool.load(LatentPool.file(options["latents"], ranks)).to(ranks.device)
    torch.manual_seed(settings.seed)
    transformer = from_base(options["base"], silent=options["silent"], dtype=torch.float32)
    base.text_encoder.requires_grad_(False)
    spent = train(transformer, base.text_encoder, pool, settings, ranks)
    ranks.leave()
    if not ranks.first:
        return
    millions = sum(p.numel() for p in transformer.parameters()) / 1e6
    parts = {name: part for name, part in base.components.items() if name != "transformer"}
    # Of a pose and a first frame little is left to chance: without the other sampler's fresh noise clips are sharper.
    parts["scheduler"] = CogVideoXDDIMScheduler.from_config(cogvideox_scheduler().config)
    pipeline = DynamiCtrlPipeline(transformer=transformer, **parts)
    models.save(options["out"], pipeline, CARD.format(parameters=millions, **spent))
    (options["out"] / "measured.json").write_text(json.dumps(spent, indent=1))


if __name__ == "__main__":
    main()
