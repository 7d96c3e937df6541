"""The mini captioner's model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CARD = """# mini/captioner

A `Qwen2VLForConditionalGeneration` of about a million parameters with its preparation and a tokenizer of {words}
tokens, trained by this project on its own marionettes (`dynamictrl/mini/marionettes/`). It is **not** Qwen2-VL: it
knows drawn figures, one question ("Describe the person and the background.") and one way to answer it, and says nothing
that can be trusted of photographs. Licence: Apache-2.0, as the project.

`Qwen2VLCaptioner("mini/captioner", device="cpu")` loads it; the preparation says how many frames of which size it sees:
12 frames of 192 x 128 pixels, patches of 8 x 8 x 2, 576 tokens.

## Measured

On {clips} held-out marionettes (seed 900001, never in training), greedy answers, fp16 weights computed in fp32; the
numbers are in `measured.json`, the parser that reads the captions is `dynamictrl/mini/captioner/wording.py`.

| attribute | right |
|---|---|
{table}

`mean` is over the attributes, `all` the share of captions without any fault. A jumper is drawn as a long-sleeved shirt
with a hem some three pixels lower, so these two are hard to tell apart.

## Retrain

    python -m dynamictrl.mini.stream --out POOL --count 30000 --workers 14 --seed 7     # beside the next
    python -m dynamictrl.mini.captioner.train --pool POOL --out FOLDER --seconds {seconds:.0f}
    python -m dynamictrl.mini.captioner.evaluate --model FOLDER --clips 256              # the class itself, on a CPU

{steps} steps of {batch} clips from a pool of {pool} in {spent:.0f} seconds. Training stops by the clock, so another
machine makes another number of steps.
"""


def model_card(record: Mapping[str, Any], words: int) -> str:
    """The README.md of a trained folder; `record` is what the trainer writes to measured.json."""
    measured = dict(record.get("held_out", {}))
    clips = measured.pop("clips", 0)
    table = "\n".join(f"| {name} | {100 * share:.1f} % |" for name, share in measured.items()) or "| - | not measured |"
    settings = record["settings"]
    return _CARD.format(
        words=words,
        clips=clips,
        table=table,
        seconds=settings["seconds"],
        steps=record["steps"],
        batch=settings["batch"],
        pool=record["clips"],
        spent=record["seconds"],
    )
