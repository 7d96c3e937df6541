"""How near driving poses come to what the person of the reference image would do: a table, on marionettes.

    python tests/benchmarks/pose_alignment.py [--scenes 60]

A's motion drives B's photo; the truth is the same motion performed by B in the same place. The photo shows B in
another pose, as photos do. Errors are the mean distance of B's visible body joints from the truth, in hundredths of
B's body height (nose to ankles' extent in the photo); PCK is `metrics.pck` at 0.2 of the trunk.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from dynamictrl.errors import InputError
from dynamictrl.metrics import pck
from dynamictrl.mini.marionettes import MarionetteScene
from dynamictrl.mini.marionettes.character import Character
from dynamictrl.pose import BODY, VISIBLE, PoseSequence
from dynamictrl.pose_alignment import ALIGNMENTS, align

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


def poses(kind: type[MarionetteScene], character: int, motion: int, place: int, persons: int) -> PoseSequence:
    scene = kind(character, motion, place, persons=persons, close_up=False)
    return scene.render(FRAMES, HEIGHT, WIDTH, FPS, supersampling=1).pose


def errors(found: PoseSequence, truth: PoseSequence) -> float:
    """Mean over persons, frames and joints seen in the truth, in pixels."""
    size = np.array([WIDTH, HEIGHT])
    seen = truth.scores[..., BODY] > VISIBLE
    away = np.linalg.norm((found.keypoints[..., BODY, :] - truth.keypoints[..., BODY, :]) * size, axis=-1)
    return float(away[seen].mean())


def body_height(pose: PoseSequence) -> float:
    seen = pose.scores[0, 0, BODY] > VISIBLE
    return float(np.ptp(pose.keypoints[0, 0, BODY, 1][seen]) * HEIGHT)


def measure(kind: type[MarionetteScene], persons: int, scenes: int) -> dict[str, list[tuple[float, float]]]:
    results = defaultdict(list)
    for seed in range(scenes):
        driver, model, motion = 2 * seed, 2 * seed + 1, 5000 + seed
        driving = poses(kind, driver, motion, seed, persons)
        truth = poses(kind, model, motion, seed, persons)
        photo = poses(kind, model, 9000 + seed, seed, persons).frames(slice(0, 1))
        for name in ALIGNMENTS:
            try:
                size = (HEIGHT, WIDTH)
                moved = align(driving, photo, driving_size=size, reference_size=size, alignment=name)
            except InputError:
                continue
            score = pck(moved, truth, 0.2, aspect_ratio=WIDTH / HEIGHT)
            results[name].append((100 * errors(moved, truth) / body_height(photo), score))
    return results


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--scenes", type=int, default=60)
    scenes = arguments.parse_args().scenes
    print("| people | alignment | scenes | mean joint error, % of height | 90th percentile | PCK@0.2 |")
    print("|---|---|---|---|---|---|")
    for label, kind, persons in (
        ("one, as drawn", MarionetteScene, 1),
        ("one, unlike builds", UnlikeScene, 1),
        ("two, as drawn", MarionetteScene, 2),
        ("two, unlike builds", UnlikeScene, 2),
    ):
        for name, rows in measure(kind, persons, scenes).items():
            error, score = np.array(rows).T
            print(
                f"| {label} | {name} | {len(rows)} | {error.mean():.2f} | {np.percentile(error, 90):.2f} | "
                f"{score.mean():.3f} |"
            )


if __name__ == "__main__":
    main()
