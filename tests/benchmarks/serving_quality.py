"""The gate of the quality tiers: the same clips rendered `exact`, `balanced` and `fast`, and how far apart they are.

    python -m tests.benchmarks.serving_quality --clips 32
    python -m tests.benchmarks.serving_quality --clips 32 --device cuda --dtype bfloat16 --float8   # as on a GPU

Held-out marionettes (`dynamictrl.mini.evaluate`): first frame as the person, drawn poses, caption, the clip's number as
its seed. SSIM and PSNR are to the exact tier's frames. The gate's pose error is the mean distance between the body
keypoints that the mini pose model reads in the frames and the true ones, where both are seen; beside it 1 - PCK at two
thresholds. Where a GPU multiplies in 8 bits, `--float8` takes part as in production; a CPU has the step cache alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dynamictrl import metrics
from dynamictrl.acceleration import Acceleration
from dynamictrl.media.video import Video
from dynamictrl.mini.evaluate import held_out_clip
from dynamictrl.mini.marionettes import MarionetteClip
from dynamictrl.mini.stream import FPS, NUM_FRAMES
from dynamictrl.poses.dwpose import PoseEstimator
from dynamictrl.poses.pose import BODY, VISIBLE, PoseSequence
from dynamictrl.poses.pose_drawing import draw_pose
from serving.jobs.job import AnimationJob, Settings
from serving.media.decoding import OwnFiles
from serving.rendering import tiers
from serving.rendering.engine import Engine
from serving.rendering.model_source import locate

GATE = {"balanced": (0.90, 0.02), "fast": (0.80, 0.05)}
"""SSIM at least, growth of the pose error at most."""


def main() -> None:
    options = arguments()
    if options.thresholds:
        tried = {f"{threshold:g}": tiers.Tier(float8=True, step_cache=threshold) for threshold in options.thresholds}
        tiers.TIERS.clear()
        tiers.TIERS.update({"exact": tiers.Tier(), **tried})
    engine = Engine(
        locate(options.model),
        "mini/dwpose",
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        acceleration=Acceleration(float8=options.float8),
        decoder=Drawn(),
    )
    machine = torch.cuda.get_device_name() if engine.device == "cuda" else f"{platform.machine()} CPU"
    print(f"{options.clips} clips of {options.model}, {options.steps} steps, {options.dtype}, {machine}", flush=True)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in tiers.TIERS}
    estimator = PoseEstimator("mini/dwpose", num_threads=options.threads or None)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(options.first, options.first + options.clips):
            clip = shortened(held_out_clip(index), options.frames)
            made = {name: render(engine, clip, index, name, options, Path(folder)) for name in tiers.TIERS}
            for name, (frames, seconds, left_out) in made.items():
                found = measure(frames, made["exact"][0], clip, estimator)
                rows[name].append({"seconds": seconds, "left_out": left_out, **found})
            print(index, json.dumps({name: rows[name][-1] for name in rows}), flush=True)
    report(rows, options)


class Drawn(OwnFiles):
    """Takes a motion as the array that it was drawn as."""

    def frames(self, path: Path, param: str, **_: Any) -> Video:  # noqa: ANN401
        frames = np.load(path)
        return Video(frames, FPS, np.arange(len(frames)) / FPS)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini/dynamictrl")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--frames", type=int, default=NUM_FRAMES, help="the clips' first ones")
    parser.add_argument("--float8", action="store_true")
    parser.add_argument("--first", type=int, default=0, help="number of the first clip")
    parser.add_argument(
        "--thresholds", type=float, nargs="*", default=[], help="step caches to try instead of the tiers"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    return parser.parse_args()


def render(
    engine: Engine, clip: MarionetteClip, index: int, quality: str, options: argparse.Namespace, folder: Path
) -> tuple[NDArray[np.uint8], float, float]:
    """Frames, seconds of denoising, and the share of steps that were left out."""
    person, motion = folder / f"{index}.png", folder / f"{index}.npy"
    count, height, width = clip.frames.shape[:3]
    if not motion.is_file():
        Image.fromarray(clip.frames[0]).save(person)
        np.save(motion, draw_pose(clip.pose, height, width))
    settings = Settings(
        prompt=clip.caption, width=width, height=height, num_frames=count, fps=FPS, resample=False, seed=index,
        num_inference_steps=options.steps, guidance_scale=options.guidance, quality=quality
    )  # fmt: skip
    made = engine.animate(AnimationJob(settings=settings, image=person, pose_video=motion))
    computed = sum(map(len, made.made_with["steps_computed"] or [range(options.steps)]))
    return made.frames, made.stage_seconds["denoise"], 1 - computed / options.steps


def shortened(clip: MarionetteClip, count: int) -> MarionetteClip:
    return replace(clip, frames=clip.frames[:count], pose=clip.pose.frames(slice(0, count)))


def measure(
    frames: NDArray[np.uint8], exact: NDArray[np.uint8], clip: MarionetteClip, estimator: PoseEstimator
) -> dict[str, float]:
    found, aspect = estimator(frames), frames.shape[2] / frames.shape[1]
    return {
        "ssim": metrics.ssim(frames, exact),
        "psnr": metrics.psnr(frames, exact),
        "psnr_to_truth": metrics.psnr(frames[1:], clip.frames[1:]),
        "pck_error": 1 - metrics.pck(found, clip.pose, 0.2, aspect_ratio=aspect),
        "pck_error_fine": 1 - metrics.pck(found, clip.pose, 0.05, aspect_ratio=aspect),
        "distance": distance(found, clip.pose, aspect),
    }


def distance(found: PoseSequence, truth: PoseSequence, aspect: float) -> float:
    """Mean distance of body keypoints that both see, in frame heights; of the first person."""
    if found.keypoints.shape[1] == 0:
        return float("nan")
    stretch = np.array([aspect, 1.0])
    seen = (truth.scores[:, 0, BODY] > VISIBLE) & (found.scores[:, 0, BODY] > VISIBLE)
    gap = np.linalg.norm((found.keypoints[:, 0, BODY] - truth.keypoints[:, 0, BODY]) * stretch, axis=-1)
    return float(gap[seen].mean()) if seen.any() else float("nan")


def report(rows: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    means = {
        name: {key: float(np.nanmean([row[key] for row in found])) for key in found[0]} for name, found in rows.items()
    }
    exact = means["exact"]
    print(f"\n{'tier':<9} {'SSIM':>7} {'worst':>7} {'PSNR':>6} {'truth':>6} {'1-PCK.2':>8} {'1-PCK.05':>9} "
          f"{'distance':>9} {'growth':>8} {'left out':>8} {'DiT s':>7} {'times':>6}")  # fmt: skip
    for name, mean in means.items():
        worst = min(row["ssim"] for row in rows[name])
        cells = (
            f"{mean['ssim']:>7.4f}", f"{worst:>7.4f}", f"{mean['psnr']:>6.2f}", f"{mean['psnr_to_truth']:>6.2f}",
            f"{mean['pck_error']:>8.4f}", f"{mean['pck_error_fine']:>9.4f}", f"{mean['distance']:>9.5f}",
            f"{mean['distance'] / exact['distance'] - 1:>8.2%}", f"{mean['left_out']:>8.0%}",
            f"{mean['seconds']:>7.2f}", f"{exact['seconds'] / mean['seconds']:>6.2f}"
        )  # fmt: skip
        print(f"{name:<9}", *cells)
    for name, (least, most) in GATE.items() if not options.thresholds else ():
        growth = means[name]["distance"] / exact["distance"] - 1
        passed = means[name]["ssim"] >= least and growth <= most
        print(f"{name}: {'passes' if passed else 'FAILS'} (SSIM >= {least}, pose error at most +{most:.0%})")
    if options.out:
        about: dict[str, Any] = {"tiers": {name: tiers.said(of) for name, of in tiers.TIERS.items()}, "rows": rows}
        options.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
