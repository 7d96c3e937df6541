"""Trains the mini family's text encoder: what a caption says must be linearly readable from its embeddings.

    python -m dynamictrl.mini.train_text --out FOLDER --max-steps 3000

Captions are worded without drawing anything, so a CPU trains it in minutes. The heads that read the attributes from
the mean embedding are thrown away; `evaluate_text` fits new ones on other captions.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from dynamictrl.mini import models
from dynamictrl.mini.flags import add_settings
from dynamictrl.mini.latent_pool import tokenize
from dynamictrl.mini.marionettes.caption import attributes_of, caption_of
from dynamictrl.mini.marionettes.clip import MarionetteScene
from dynamictrl.mini.marionettes.scene import choose_place
from dynamictrl.mini.stream import HELD_OUT_SEED
from dynamictrl.mini.tokenizer import build_tokenizer
from dynamictrl.mini.train_vae import rate_at

logger = logging.getLogger(__name__)

NOTHING = "-"
"""The class of what a caption does not say: a second person, a place's wall."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One training of the text encoder."""

    captions: int = 60_000
    batch: int = 256
    learning_rate: float = 3e-3
    max_steps: int = 3000
    seed: int = 0
    device: str = "cpu"


def word(seed: int, index: int) -> tuple[str, dict[str, str]]:
    """Caption number `index` of a seed, and what it says by name."""
    rng = np.random.default_rng([seed, index])
    character, motion, background = (int(s) for s in rng.integers(2**31, size=3))
    scene = MarionetteScene(character, motion, background)
    people = scene.people()
    actions, place = scene.actions(len(people)), choose_place(rng)
    return caption_of(rng, people, actions, place), said(attributes_of(people, actions, place))


def said(attributes: dict[str, Any]) -> dict[str, str]:
    """The attributes that a caption always says, one value each."""
    result = {"count": str(attributes["count"]), "place": attributes["background"]}
    result["wall"] = attributes["background_colour"] or NOTHING
    for index in range(2):
        who = attributes["persons"][index] if index < attributes["count"] else {}
        for name in ("top", "top_kind", "trousers", "trousers_kind", "action"):
            result[f"{name} of {index + 1}"] = who.get(name, NOTHING)
    return result


@dataclass
class Captions:
    """Tokenized captions and the classes of what they say."""

    tokens_NL: Tensor
    classes: dict[str, Tensor]
    """By attribute: [N]."""

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, worded: list[tuple[str, dict[str, str]]], names: dict[str, list[str]]
    ) -> Captions:
        tokens = tokenize(tokenizer, [caption for caption, _ in worded])
        classes = {key: torch.tensor([known.index(s[key]) for _, s in worded]) for key, known in names.items()}
        return cls(tokens, classes)


def mean_embedding(encoder: T5EncoderModel, tokens_BL: Tensor) -> Tensor:
    """The mean embedding [B, D] of a caption's own tokens; padding is attended, as the pipeline runs it."""
    embeds_BLD = encoder(tokens_BL)[0]
    own_BL1 = (tokens_BL != 0).unsqueeze(-1).to(embeds_BLD.dtype)
    return (embeds_BLD * own_BL1).sum(dim=1) / own_BL1.sum(dim=1)


def train(encoder: T5EncoderModel, captions: Captions, names: dict[str, list[str]], settings: Settings) -> None:
    """Trains the encoder in place, with one linear head for each attribute."""
    torch.manual_seed(settings.seed)
    heads = nn.ModuleDict({key: nn.Linear(models.TEXT_WIDTH, len(known)) for key, known in names.items()})
    heads.to(settings.device)
    nn.Module.to(encoder, settings.device).train()
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    start = time.monotonic()
    for step in range(settings.max_steps):
        index = torch.randint(len(captions.tokens_NL), (settings.batch,))
        pooled = mean_embedding(encoder, captions.tokens_NL[index].to(settings.device))
        losses = [
            F.cross_entropy(heads[key](pooled), captions.classes[key][index].to(settings.device)) for key in names
        ]
        loss = torch.stack(losses).sum()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step / settings.max_steps, settings.learning_rate)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 200 == 0:
            logger.info("step %d, %.0f s: loss %.4f", step, time.monotonic() - start, float(loss.detach()))
    encoder.eval()


@torch.no_grad()
def embed(encoder: T5EncoderModel, tokens_NL: Tensor, batch: int = 512) -> Tensor:
    """Mean embeddings [N, D] of many captions."""
    return torch.cat([mean_embedding(encoder, part) for part in tokens_NL.split(batch)])


def decodability(
    encoder: T5EncoderModel, fit: Captions, held_out: Captions, names: dict[str, list[str]]
) -> dict[str, float]:
    """By attribute: the share of held-out captions of which a linear classifier, fitted on others, reads it right."""
    from sklearn.linear_model import LogisticRegression

    inside, outside = (embed(encoder, c.tokens_NL).numpy() for c in (fit, held_out))
    result = {}
    for key in names:
        reader = LogisticRegression(C=100.0, max_iter=300).fit(inside, fit.classes[key].numpy())
        result[key] = float(reader.score(outside, held_out.classes[key].numpy()))
    return result


def main() -> None:
    """Trains, measures on held-out captions, writes the text encoder, its tokenizer and `measured.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--held-out", type=int, default=2000, help="captions to measure on")
    add_settings(parser, Settings())
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = Settings(**{name: options[name] for name in vars(Settings())})

    start = time.monotonic()
    worded = [word(settings.seed, index) for index in range(settings.captions)]
    names = {key: sorted({s[key] for _, s in worded}) for key in worded[0][1]}
    tokenizer = build_tokenizer([caption for caption, _ in worded], max_length=models.TEXT_LENGTH)
    encoder = models.text_encoder(len(tokenizer))
    captions = Captions.of(tokenizer, worded, names)
    train(encoder, captions, names, settings)
    seconds = time.monotonic() - start
    nn.Module.to(encoder.half().float(), "cpu")  # measured as shipped: fp16 weights, computed in fp32
    fit = Captions(captions.tokens_NL[:8000], {key: value[:8000] for key, value in captions.classes.items()})
    held_out = Captions.of(tokenizer, [word(HELD_OUT_SEED, index) for index in range(options["held_out"])], names)
    measured = decodability(encoder, fit, held_out, names)
    encoder.half().save_pretrained(options["out"] / "text_encoder")
    tokenizer.save_pretrained(options["out"] / "tokenizer")
    record = {"steps": settings.max_steps, "seconds": round(seconds), "decodable": measured}
    record["mean"] = float(np.mean(list(measured.values())))
    (options["out"] / "measured.json").write_text(json.dumps(record, indent=1))
    logger.info("%s", record)


if __name__ == "__main__":
    main()
