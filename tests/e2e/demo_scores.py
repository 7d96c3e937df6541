"""How near the demo's clips are to the truth, and what can be said of them: every sentence follows from the numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from demo_page import Score
from numpy.typing import NDArray

REACH = 0.2
"""Trunk lengths within which a keypoint counts as found."""
LIGHTS = 8
"""In how many lights each wall is drawn to compare with."""


def score_clips(out: Path, truth: Any) -> list[Score]:
    """The served clip, the same request before fine-tuning, and the photo held still, against a MarionetteClip."""
    from dynamictrl.media.video import read_video
    from dynamictrl.poses.dwpose import PoseEstimator

    estimator = PoseEstimator("mini/dwpose")
    still = np.repeat(truth.frames[:1], len(truth.frames), axis=0)
    return [
        score("after fine-tuning, served", read_video(out / "generated.mp4").frames, truth, estimator),
        score("before fine-tuning", read_video(out / "before.mp4").frames, truth, estimator),
        score("control: the photo, held still", still, truth, estimator),
    ]


def score(name: str, frames: NDArray[np.uint8], truth: Any, estimator: Any) -> Score:
    """Pictures and poses compared; the first frame was given to the model, so it counts for none."""
    from dynamictrl import metrics

    height, width = truth.frames.shape[1:3]
    found = estimator(frames)
    return Score(
        name,
        float(metrics.psnr(frames[1:], truth.frames[1:])),
        float(metrics.ssim(frames[1:], truth.frames[1:])),
        float(metrics.pck(found, truth.pose, REACH, aspect_ratio=width / height)),
        moved_share(found, truth.pose, width / height),
    )


def moved_share(found: Any, truth: Any, aspect_ratio: float) -> float:
    """Of the body keypoints of the only person that left their place in frame 0, the share found where they went.

    A still photo has about none of these, however many of the others it has.
    """
    from dynamictrl.poses.pose import BODY, LEFT_HIP, LEFT_SHOULDER, RIGHT_HIP, RIGHT_SHOULDER, VISIBLE

    stretch = np.array([aspect_ratio, 1.0])
    true_FJ2, found_FPJ2 = truth.keypoints[:, 0] * stretch, found.keypoints * stretch
    middle = [true_FJ2[:, pair].mean(axis=1) for pair in ([LEFT_SHOULDER, RIGHT_SHOULDER], [LEFT_HIP, RIGHT_HIP])]
    reach_F1 = REACH * np.linalg.norm(middle[0] - middle[1], axis=-1)[:, None]
    went_FJ = np.linalg.norm(true_FJ2 - true_FJ2[:1], axis=-1) > reach_F1
    moved_FJ = (went_FJ & (truth.scores[:, 0] > VISIBLE))[:, BODY]
    gap_FPJ = np.linalg.norm(found_FPJ2 - true_FJ2[:, None], axis=-1)
    right_FPJ = (gap_FPJ <= reach_F1[:, None]) & (found.scores > VISIBLE)
    right_FJ = right_FPJ.any(axis=1)[:, BODY]
    return float(right_FJ[moved_FJ].mean()) if moved_FJ.any() else float("nan")


def verdict(rows: Sequence[Score]) -> str:
    """What the rows of `score_clips` say, in words."""
    served, before, still = rows
    gain, learnt = served.psnr - still.psnr, served.psnr - before.psnr
    parts = [
        f"The served clip is {abs(gain):.1f} dB PSNR* {'nearer to' if gain > 0 else 'farther from'} the true frames "
        f"than the photo held still. Of the joints that moved away from where the photo has them, the pose model finds "
        f"{100 * served.moved:.0f} % where the driving motion took them, and {100 * still.moved:.0f} % in the photo.",
    ]
    if served.pck < still.pck:
        parts.append(
            f"Over all joints the photo has more in place ({100 * still.pck:.0f} % against {100 * served.pck:.0f} %): "
            "those at rest never leave theirs in it."
        )
    if abs(learnt) < 0.3:
        parts.append(
            f"These few steps of fine-tuning changed little ({learnt:+.2f} dB): the shipped model has learnt from many "
            "more marionettes, and the demo shows the way, not a gain."
        )
    else:
        parts.append(
            f"These few steps of fine-tuning {'gained' if learnt > 0 else 'lost'} {abs(learnt):.1f} dB on this clip."
        )
    return " ".join(parts)


def nearest_wall(frames: NDArray[np.uint8], scene: Any) -> str:
    """Of the studios that could have been asked for, each drawn in several lights, the wall that `frames` are nearest to.

    Compared is the mean colour around the person. A prompt names no light, so any may come; `prompt_quality` draws one.
    """
    from dynamictrl.mini import prompt_quality
    from dynamictrl.mini.prompt_quality import drawn

    around = scene.render(len(frames), *frames.shape[1:3], prompt_quality.FPS).persons == 0
    seen = frames[around].mean(axis=0)
    gaps = {}
    for wall in prompt_quality.WALL_COLOURS:
        for light in range(LIGHTS):
            studio = dataclasses.replace(scene, place="studio", background_seed=light)
            known = drawn(studio, "background", wall, frames=1)
            gaps[wall, light] = float(np.linalg.norm(known.frames[known.persons == 0].mean(axis=0) - seen))
    return min(gaps, key=lambda known: gaps[known])[0]


def wall_verdict(asked: Sequence[str], found: Sequence[str]) -> str:
    """Which of the walls that could have been asked for are nearest to what came."""
    from dynamictrl.mini.marionettes.scene import WALL_COLOURS

    right = sum(a == b for a, b in zip(asked, found, strict=True))
    told = "; ".join(f"asked for {a}, nearest is {b}" for a, b in zip(asked, found, strict=True))
    return (
        f"Measured around the person, over all frames, among {len(WALL_COLOURS)} wall colours in {LIGHTS} lights each: {told} ({right} of "
        f"{len(asked)} right)."
    )
