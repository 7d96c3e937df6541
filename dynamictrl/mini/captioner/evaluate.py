"""Measures a captioner folder on held-out marionettes through `Qwen2VLCaptioner`, as users call it.

python -m dynamictrl.mini.captioner.evaluate --model mini/captioner --clips 256 --out measured.json
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from dynamictrl.captions.captioning import caption_problem
from dynamictrl.captions.qwen_captioning import Qwen2VLCaptioner
from dynamictrl.mini.captioner.wording import accuracy, canonical_caption, right_attributes
from dynamictrl.mini.marionettes import sample_clip
from dynamictrl.mini.stream import FPS, HEIGHT, HELD_OUT_SEED, NUM_FRAMES, WIDTH

logger = logging.getLogger(__name__)


def measure(captioner: Qwen2VLCaptioner, clips: int, num_frames: int = NUM_FRAMES) -> dict[str, Any]:
    """Accuracy by attribute, seconds per clip, captions with a problem, and the first faulty ones beside the truth.

    With `num_frames` as the trainers' clips are long, clip i is the pool's clip i of the held-out seed.
    """
    said: list[str] = []
    truths: list[dict[str, Any]] = []
    seconds = 0.0
    for index in range(clips):
        clip = sample_clip(np.random.default_rng([HELD_OUT_SEED, index]), num_frames, HEIGHT, WIDTH, FPS)
        start = time.perf_counter()
        said.append(captioner(clip.frames))
        seconds += time.perf_counter() - start
        truths.append(clip.attributes)
        if (index + 1) % 32 == 0:
            logger.info("%d of %d clips", index + 1, clips)
    faulty = [
        {"said": text, "true": canonical_caption(truth)}
        for text, truth in zip(said, truths, strict=True)
        if not all(correct for _, correct in right_attributes(text, truth))
    ]
    return {
        "clips": clips,
        "num_frames": num_frames,
        "seconds_per_clip": round(seconds / max(1, clips), 3),
        "problems": sum(caption_problem(text) is not None for text in said),
        **{name: round(share, 4) for name, share in accuracy(said, truths).items()},
        "faulty": faulty[:20],
    }


def main() -> None:
    """Reads the command line, measures, writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="mini/captioner")
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--num-frames", type=int, default=NUM_FRAMES, help=f"of each clip, at {FPS} per second")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a JSON file; else the numbers are logged")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    measured = measure(Qwen2VLCaptioner(options.model, options.device), options.clips, options.num_frames)
    text = json.dumps(measured, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    else:
        logger.info("%s", text)


if __name__ == "__main__":
    main()
