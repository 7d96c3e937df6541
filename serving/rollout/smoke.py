"""A smoke clip: the smallest clip that a new version has to render before anybody's job goes to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynamictrl.media.video import write_video
from dynamictrl.poses.pose import NUM_KEYPOINTS, RIGHT_WRIST, PoseSequence
from dynamictrl.poses.pose_drawing import draw_pose
from serving.config import Defaults
from serving.jobs.job import AnimationJob, Settings

FRAMES, FPS, STEPS = 5, 8.0, 2
LEAST_CONTRAST = 1.0
"""Standard deviation of the pixels, of 255, below which a clip is a blank; a NaN anywhere makes it black."""


def smoke_job(folder: Path, defaults: Defaults) -> AnimationJob:
    """A picture of coloured bands and a figure that moves its arm, at the service's own size, in a few steps."""
    width, height = defaults.width, defaults.height
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1).astype(np.uint8)
    Image.fromarray(picture).save(folder / "person.png")
    keypoints = np.tile(np.random.default_rng(0).uniform(0.3, 0.7, (NUM_KEYPOINTS, 2)), (FRAMES, 1, 1, 1))
    keypoints[:, 0, RIGHT_WRIST, 0] = np.linspace(0.1, 0.9, FRAMES)
    boxes = np.tile(np.array([0.1, 0.1, 0.9, 0.9], np.float32), (FRAMES, 1, 1))
    scores = np.ones((FRAMES, 1, NUM_KEYPOINTS), np.float32)
    pose = PoseSequence(keypoints.astype(np.float32), scores, boxes, np.array([1], np.int32))
    write_video(folder / "pose.mp4", draw_pose(pose, height, width), FPS)
    settings = Settings(
        prompt="a person dances", width=width, height=height, num_frames=FRAMES, fps=FPS, resample=False,
        num_inference_steps=STEPS, guidance_scale=defaults.guidance_scale, seed=0
    )  # fmt: skip
    return AnimationJob(settings=settings, image=folder / "person.png", pose_video=folder / "pose.mp4")


def fault_of(frames: NDArray[np.uint8], settings: Settings) -> str | None:
    """What is wrong with a rendered smoke clip; None where nothing is."""
    expected = (settings.num_frames, settings.height, settings.width, 3)
    if frames.shape != expected:
        return f"its clip has the shape {frames.shape}, not {expected}"
    contrast = float(frames.std(axis=(1, 2)).mean())
    if contrast < LEAST_CONTRAST:
        return f"its clip is a blank (contrast {contrast:.2f} of 255): its numbers are constant or no numbers"
    return None
