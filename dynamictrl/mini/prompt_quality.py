"""Whether what a mask frees becomes what the prompt says (multi-level control, paper section 3.3), by colour.

A marionette is drawn once for every colour that could have been asked for. The clip made under the mask counts as
right when, of all these, the one that the prompt named is nearest to it where the mask was: patterns, light and folds
are in the pictures compared with, so no rule about colours is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynamictrl.conditioning import mask_reference
from dynamictrl.mini.marionettes import MarionetteClip, MarionetteScene
from dynamictrl.mini.marionettes.character import CLOTH_COLOURS
from dynamictrl.mini.marionettes.scene import WALL_COLOURS
from dynamictrl.mini.stream import FPS, HEIGHT, HELD_OUT_SEED, NUM_FRAMES, WIDTH
from dynamictrl.poses.pose import LEFT_HIP, RIGHT_HIP
from dynamictrl.poses.pose_drawing import draw_pose

logger = logging.getLogger(__name__)
Frames = NDArray[np.uint8]
Kind = Literal["background", "clothes"]


def follows_prompt(
    make: Callable[[Frames, Frames, str, int], Frames], kind: Kind, count: int
) -> tuple[float, list[Image.Image]]:
    """The share of `count` held-out prompts that were followed, and a picture of each: masked reference and frames."""
    right, pictures = [], []
    for index in range(count):
        scene, asked = _task(kind, index)
        wanted = drawn(scene, kind, asked)
        given = _masked(drawn(scene, kind, _another(kind, asked)), kind)
        made = make(given, draw_pose(wanted.pose, HEIGHT, WIDTH), wanted.caption, index)
        found = _nearest(made, scene, kind)
        right.append(found == asked)
        logger.info("%s: asked for %s, got %s", kind, asked, found)
        frames = [given, *made[:: NUM_FRAMES // 4], *wanted.frames[:1]]
        pictures.append(Image.fromarray(np.concatenate(frames, axis=1)))
    return float(np.mean(right)), pictures


def _task(kind: Kind, index: int) -> tuple[MarionetteScene, str]:
    rng = np.random.default_rng([HELD_OUT_SEED, 1, index])
    seeds = [int(seed) for seed in rng.integers(0, 2**31, 3)]
    scene = MarionetteScene(*seeds, persons=1, close_up=False, place="studio" if kind == "background" else None)
    return scene, str(rng.choice(_choices(kind)))


def _choices(kind: Kind) -> tuple[str, ...]:
    return WALL_COLOURS if kind == "background" else tuple(CLOTH_COLOURS)


def _another(kind: Kind, asked: str) -> str:
    """What the reference shows under its mask: something else than is asked for."""
    choices = _choices(kind)
    return choices[(choices.index(asked) + len(choices) // 2) % len(choices)]


def drawn(scene: MarionetteScene, kind: Kind, colour: str, frames: int = NUM_FRAMES) -> MarionetteClip:
    """The scene with its wall, or the first person's top, in another colour; only places with a wall show one."""
    changed = replace(scene, wall=colour) if kind == "background" else replace(scene, top=colour)
    return changed.render(frames, HEIGHT, WIDTH, FPS)


def _masked(clip: MarionetteClip, kind: Kind) -> Frames:
    if kind == "background":
        return mask_reference(clip.frames[0], clip.persons[0] > 0, keep="inside")
    return mask_reference(clip.frames[0], clip.clothes[0] > 0, keep="outside")


def _nearest(made: Frames, scene: MarionetteScene, kind: Kind) -> str:
    """The colour whose drawing is nearest to the clip where it was free to choose, by the mean over that place."""
    distances = {}
    for colour in _choices(kind):
        known = drawn(scene, kind, colour)
        where = known.persons == 0 if kind == "background" else _tops(known)
        gap = made[where].astype(np.float64).mean(axis=0) - known.frames[where].mean(axis=0)
        distances[colour] = float(np.linalg.norm(gap))
    return min(distances, key=lambda colour: distances[colour])


def _tops(clip: MarionetteClip) -> NDArray[np.bool_]:
    """Clothes above the hips, [F, H, W]."""
    hips_F = clip.pose.keypoints[:, 0, [RIGHT_HIP, LEFT_HIP], 1].mean(axis=1) * HEIGHT
    return (clip.clothes > 0) & (np.arange(HEIGHT)[None, :, None] < hips_F[:, None, None] - 2)
