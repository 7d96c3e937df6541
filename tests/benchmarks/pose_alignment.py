"""How near driving poses come to what the person of the reference image would do: a table, on marionettes.

    python tests/benchmarks/pose_alignment.py [--scenes 60] [--seed 2000]

A's motion drives B's photo; the truth is the same motion performed by B in the same place. Photos show B standing and
talking, or in the middle of any action (a squat, a jump ...), which says less of B's size. Errors are the mean distance
of B's visible body joints from the truth, in hundredths of how tall B stands; PCK is `metrics.pck` at 0.2 of the trunk.
"noisy" poses are off by 1 % of the frame's height and miss every twentieth joint. "trembling" is how much of such noise
is in the result, against what there was in the clip at the result's size.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import InputError
from dynamictrl.metrics import pck
from dynamictrl.mini.marionettes import MarionetteScene
from dynamictrl.mini.marionettes.character import Character
from dynamictrl.poses.pose import BODY, LEFT_SHOULDER, NECK, RIGHT_SHOULDER, VISIBLE, PoseSequence
from dynamictrl.poses.pose_alignment import ALIGNMENTS, align

HEIGHT, WIDTH, FRAMES, FPS = 192, 128, 25, 12.0


@dataclass(frozen=True)
class UnlikeScene(MarionetteScene):
    """A scene of people who differ in build as a child and a lanky adult do, by `character_seed`'s parity."""

    def people(self) -> list[Character]:
        odd = self.character_seed % 2
        change = (
            {"leg": 0.84, "head": 1.5, "shoulder": 0.1, "hip": 0.055, "height": 0.8}
            if odd
            else {"leg": 1.12, "head": 1.0, "shoulder": 0.14, "hip": 0.068, "height": 1.0}
        )
        return [replace(who, **change) for who in super().people()]


def poses(
    kind: type[MarionetteScene], character: int, motion: int, place: int, persons: int, **options
) -> PoseSequence:  # noqa: ANN003
    scene = kind(character, motion, place, persons=persons, close_up=False, **options)
    return scene.render(FRAMES, HEIGHT, WIDTH, FPS, supersampling=1).pose


def noisy(pose: PoseSequence, seed: int) -> PoseSequence:
    rng = np.random.default_rng(seed)
    shake = rng.normal(0, 0.01, pose.keypoints.shape) * (HEIGHT / WIDTH, 1)
    keypoints = pose.keypoints + shake
    # As DWPose makes it.
    keypoints[..., NECK, :] = (keypoints[..., RIGHT_SHOULDER, :] + keypoints[..., LEFT_SHOULDER, :]) / 2
    missed = rng.uniform(size=pose.scores.shape) < 0.05
    scores = np.where(missed, 0, pose.scores).astype(np.float32)
    return PoseSequence(keypoints.astype(np.float32), scores, pose.boxes, pose.track_ids)


def errors(found: PoseSequence, truth: PoseSequence, driving: PoseSequence) -> NDArray[np.float64]:
    """Pixels, of the joints seen in the truth and in the driving clip."""
    seen = (truth.scores[..., BODY] > VISIBLE) & (driving.scores[..., BODY] > VISIBLE)
    away = (found.keypoints[..., BODY, :] - truth.keypoints[..., BODY, :]) * (WIDTH, HEIGHT)
    return np.linalg.norm(away, axis=-1)[seen]


def body_height(pose: PoseSequence) -> float:
    """Pixels, at the tallest of the clip."""
    seen = pose.scores[:, 0, BODY] > VISIBLE
    y = np.where(seen, pose.keypoints[:, 0, BODY, 1], np.nan) * HEIGHT
    return float(np.nanmax(np.fmax.reduce(y, axis=1) - np.fmin.reduce(y, axis=1)))


def trembling(shaken: PoseSequence, smooth: PoseSequence) -> float:
    """Size of what differs from frame to frame between two clips, pixels."""
    away = (shaken.keypoints[..., BODY, :] - smooth.keypoints[..., BODY, :]) * (WIDTH, HEIGHT)
    return float(np.diff(away, axis=0)[(shaken.scores[1:, :, BODY] > 0) & (shaken.scores[:-1, :, BODY] > 0)].std())


def measure(row: Row, scenes: int, first: int) -> dict[str, list[tuple[float, ...]]]:
    results = defaultdict(list)
    for seed in range(first, first + scenes):
        driver, model, motion = 2 * seed, 2 * seed + 1, 5000 + seed
        clean = poses(row.kind, driver, motion, seed, row.persons)
        truth = poses(row.kind, model, motion, seed, row.persons)
        photo = poses(row.kind, model, 9000 + seed, seed, row.persons, action=row.photo).frames(slice(0, 1))
        driving = noisy(clean, seed) if row.noise else clean
        photo = noisy(photo, seed + 1) if row.noise else photo
        for name in ALIGNMENTS:
            given = {"driving_size": (HEIGHT, WIDTH), "reference_size": (HEIGHT, WIDTH), "alignment": name}
            try:
                found = align(driving, photo, **given)
            except InputError:
                continue
            score = pck(found, truth, 0.2, aspect_ratio=WIDTH / HEIGHT)
            away = float(errors(found, truth, driving).mean())
            tremble = math.nan
            if row.noise:
                size = body_height(truth) / body_height(clean)
                tremble = trembling(found, align(clean, photo, **given)) / trembling(driving, clean) / size
            results[name].append((100 * away / body_height(truth), score, tremble))
    return results


@dataclass(frozen=True)
class Row:
    label: str
    kind: type[MarionetteScene]
    persons: int
    photo: str | None = "talk"
    noise: bool = False


ROWS = (
    Row("one, natural variety, standing photo", MarionetteScene, 1),
    Row("one, natural variety, photo of any action", MarionetteScene, 1, None),
    Row("one, unlike builds, standing photo", UnlikeScene, 1),
    Row("one, unlike builds, photo of any action", UnlikeScene, 1, None),
    Row("one, unlike builds, standing photo, noisy", UnlikeScene, 1, "talk", True),
    Row("two, natural variety, standing photo", MarionetteScene, 2),
    Row("two, unlike builds, standing photo", UnlikeScene, 2),
    Row("two, unlike builds, standing photo, noisy", UnlikeScene, 2, "talk", True),
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--scenes", type=int, default=60)
    arguments.add_argument("--seed", type=int, default=2000)
    given = arguments.parse_args()
    print("| people | alignment | scenes | mean joint error, % of height | 90th percentile | PCK@0.2 | trembling |")
    print("|---|---|---|---|---|---|---|")
    for row in ROWS:
        for name, scores in measure(row, given.scenes, given.seed).items():
            error, score, tremble = np.array(scores).T
            shown = f"{tremble.mean():.2f}" if row.noise else "-"
            print(
                f"| {row.label} | {name} | {len(scores)} | {error.mean():.2f} | {np.percentile(error, 90):.2f} | "
                f"{score.mean():.3f} | {shown} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
