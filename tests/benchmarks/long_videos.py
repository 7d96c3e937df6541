"""What long clips cost, and whether their windows show: a table, on marionettes driven by their own true poses.

    python tests/benchmarks/long_videos.py [--frames 25 49 97] [--steps 25] [--model mini/dynamictrl] [--device cuda]

Every length is rendered in windows and, up to --at-once frames, in one. Peak memory is torch's on a GPU and the
process's growth on a CPU. The seam contrast is `metrics.seam_contrast` at the windows' borders (1: none to be told),
with the same of the true clip beside it; PSNR is against the true clip, over all and over its last quarter (drift).
"""

from __future__ import annotations

import argparse
import os
import threading
import time

import numpy as np
import torch

from dynamictrl import DynamiCtrlPipeline
from dynamictrl.long_videos import WindowPlan, plan_windows
from dynamictrl.metrics import psnr, seam_contrast
from dynamictrl.mini.marionettes import MarionetteClip, MarionetteScene
from dynamictrl.poses.pose_drawing import draw_pose

HEIGHT, WIDTH, FPS = 192, 128, 12.0
MIB = 2**20


class PeakMemory:
    """The most that was held while it ran, MiB: torch's own count on a GPU, the process's pages on a CPU."""

    def __init__(self, device: str):
        self.device, self.peak, self._done = device, 0.0, threading.Event()

    def __enter__(self) -> PeakMemory:
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / MIB
        else:
            self.before = _resident()
            self._watch = threading.Thread(target=self._sample, daemon=True)
            self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            self.peak = torch.cuda.max_memory_allocated() / MIB - self.before
            return
        self._done.set()
        self._watch.join()
        self.peak -= self.before

    def _sample(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, _resident())


def _resident() -> float:
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def render(pipeline: DynamiCtrlPipeline, clip: MarionetteClip, steps: int, window: int | None) -> np.ndarray:
    from PIL import Image

    made = pipeline(
        Image.fromarray(clip.frames[0]),
        draw_pose(clip.pose, HEIGHT, WIDTH),
        clip.caption,
        num_inference_steps=steps,
        generator=torch.Generator("cpu").manual_seed(0),
        output_type="np",
        window_frames=window,
    ).frames[0]
    return (np.clip(made, 0, 1) * 255 + 0.5).astype(np.uint8)


def report(clip: MarionetteClip, made: np.ndarray, plan: WindowPlan, label: str, seconds: float, peak: float) -> None:
    last = len(made) * 3 // 4
    seams = [f"{seam_contrast(frames, plan.borders()):.2f}" for frames in (made, clip.frames)]
    print(
        f"| {len(made)} | {label} | {plan.count} | {seconds:.1f} | {peak:.0f} | {seams[0]} | {seams[1]} | "
        f"{psnr(made, clip.frames):.2f} | {psnr(made[last:], clip.frames[last:]):.2f} |",
        flush=True,
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--frames", type=int, nargs="+", default=[25, 49, 97])
    arguments.add_argument("--at-once", type=int, default=97, help="longest clip that is rendered in one window, too")
    arguments.add_argument("--steps", type=int, default=25)
    arguments.add_argument("--scenes", type=int, default=1)
    arguments.add_argument("--model", default="mini/dynamictrl")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = arguments.parse_args()
    pipeline = DynamiCtrlPipeline.from_pretrained(given.model, dtype=torch.float32).to(given.device)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.transformer.config
    warm = MarionetteScene(1, 1, 1, persons=1).render(9, HEIGHT, WIDTH, FPS, supersampling=1)
    render(pipeline, warm, 1, None)
    print("| frames | rendered | windows | seconds | peak MiB | seam | true clip's | PSNR | its last quarter |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seed in range(given.scenes):
        for frames in given.frames:
            scene = MarionetteScene(901 + seed, 902 + seed, 903 + seed, persons=1, action="dance", close_up=False)
            clip = scene.render(frames, HEIGHT, WIDTH, FPS)
            ways = {"in windows": None} | ({"at once": 0} if frames <= given.at_once else {})
            plan = plan_windows(frames, config)
            for label, window in ways.items():
                started = time.perf_counter()
                with PeakMemory(given.device) as memory:
                    made = render(pipeline, clip, given.steps, window)
                # At once there are no borders: the same places are looked at, to compare.
                report(clip, made, plan, label, time.perf_counter() - started, memory.peak)


if __name__ == "__main__":
    main()
