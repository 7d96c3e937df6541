"""Measures a mini DynamiCtrl folder on held-out marionettes: does the clip follow the pose, is it the same figure, and
do masked parts become what the prompt says?

    python -m dynamictrl.mini.evaluate --model mini/dynamictrl --clips 24 --prompts 24 --pose-model mini/dwpose \\
        --out DIR

For each clip: first frame, drawn pose and caption go through the pipeline; the result is compared with the truth, as
is the control, the first frame copied over the whole clip. The first frame itself, which was given, does not count.
Writes `measured.json` and a sheet of pictures for each clip.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dynamictrl import metrics
from dynamictrl.animation import DynamiCtrlPipeline
from dynamictrl.mini.marionettes import MarionetteClip, sample_clip
from dynamictrl.mini.prompt_quality import follows_prompt
from dynamictrl.mini.stream import FPS, HEIGHT, HELD_OUT_SEED, NUM_FRAMES, WIDTH
from dynamictrl.poses.pose_drawing import draw_pose

logger = logging.getLogger(__name__)
Frames = NDArray[np.uint8]
Generate = Callable[[Frames, Frames, str, int], Frames]
"""Reference picture, pose video, prompt and seed to a clip."""


def held_out_clip(index: int) -> MarionetteClip:
    """A marionette that no trainer draws."""
    return sample_clip(np.random.default_rng([HELD_OUT_SEED, index]), NUM_FRAMES, HEIGHT, WIDTH, FPS)


def generate(
    pipeline: DynamiCtrlPipeline,
    reference: Frames,
    pose_video: Frames,
    prompt: str,
    seed: int,
    *,
    steps: int,
    guidance: float,
) -> Frames:
    """The clip that the pipeline makes of a picture [H, W, 3], a pose and a prompt: uint8 [F, H, W, 3]."""
    result = pipeline(
        Image.fromarray(reference),
        pose_video,
        prompt,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    )
    frames = result.frames[0] if not isinstance(result, tuple) else result[0][0]
    return np.rint(np.clip(frames, 0, 1) * 255).astype(np.uint8)


def measure(
    make: Generate,
    clips: list[MarionetteClip],
    estimator: Any = None,  # noqa: ANN401
) -> tuple[dict[str, float], list[Image.Image]]:
    """Means over the clips, and one picture a clip: truth, pose and result, row by row.

    `estimator` is a `PoseEstimator`; without one no PCK is measured.
    """
    rows: list[dict[str, float]] = []
    sheets = []
    for index, clip in enumerate(clips):
        pose_video = draw_pose(clip.pose, HEIGHT, WIDTH)
        start = time.monotonic()
        made = make(clip.frames[0], pose_video, clip.caption, index)
        row = {"seconds": time.monotonic() - start, "psnr_db": metrics.psnr(made[1:], clip.frames[1:])}
        still = np.broadcast_to(clip.frames[:1], clip.frames.shape)
        row["psnr_copied_reference_db"] = metrics.psnr(still[1:], clip.frames[1:])
        row["ssim"] = metrics.ssim(made[1:], clip.frames[1:])
        if estimator is not None:
            aspect = WIDTH / HEIGHT
            row["pck_0.2"] = metrics.pck(estimator(made), clip.pose, 0.2, aspect_ratio=aspect)
            row["pck_0.2_of_truth"] = metrics.pck(estimator(clip.frames), clip.pose, 0.2, aspect_ratio=aspect)
        rows.append(row)
        sheets.append(sheet(clip.frames, pose_video, made))
        logger.info("clip %d: %s", index, {k: round(v, 3) for k, v in row.items()})
    return {key: round(float(np.nanmean([row[key] for row in rows])), 3) for key in rows[0]}, sheets


def sheet(truth: Frames, pose: Frames, made: Frames, shown: int = 7) -> Image.Image:
    """Some frames of each side by side."""
    picked = np.linspace(0, len(truth) - 1, shown).round().astype(int)
    return Image.fromarray(np.concatenate([np.concatenate(list(x[picked]), axis=1) for x in (truth, pose, made)]))


def main() -> None:
    """Measures one folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="mini/dynamictrl")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=0, help="how many colours to ask for under each kind of mask")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pose-model", default="", help="a DWPose folder, such as mini/dwpose; empty: no PCK")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    pipeline = DynamiCtrlPipeline.from_pretrained(options.model, torch_dtype=torch.float32).to(options.device)
    pipeline.set_progress_bar_config(disable=True)
    make = partial(generate, pipeline, steps=options.steps, guidance=options.guidance)
    estimator = None
    if options.pose_model:
        from dynamictrl.poses.dwpose import PoseEstimator

        estimator = PoseEstimator(options.pose_model)
    means, sheets = measure(make, [held_out_clip(index) for index in range(options.clips)], estimator)
    for kind in ("background", "clothes") if options.prompts else ():
        share, pictures = follows_prompt(make, kind, options.prompts)
        means[f"prompt_followed_{kind}"] = share
        sheets += pictures
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "measured.json").write_text(json.dumps(means, indent=1))
    for index, picture in enumerate(sheets):
        picture.save(options.out / f"clip-{index:02d}.png")
    logger.info("%s", means)


if __name__ == "__main__":
    main()
