"""How well a clip's persons can be seen, from their poses alone.

The main person is the one whose box covers most of the picture over the clip. What none of this can see: persons whom
the detector missed, and poses that are wrong with a high score.

Shape suffixes: F frames, P persons, J joints.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dynamictrl.poses.pose import (
    BODY,
    FACE,
    LEFT_ANKLE,
    LEFT_HAND,
    LEFT_HIP,
    LEFT_SHOULDER,
    NECK,
    NOSE,
    RIGHT_ANKLE,
    RIGHT_HAND,
    RIGHT_HIP,
    RIGHT_SHOULDER,
    VISIBLE,
    PoseSequence,
)

PART_OF_THE_CLIP = 0.1
"""Share of the frames from which somebody counts as being in the clip."""
_BORDER = 0.01
"""Share of the picture next to its border in which a joint counts as cut off."""
TRUNK = [NECK, RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP]

Array = NDArray[np.float64]


def main_person(pose: PoseSequence) -> int:
    """Index of the person whose box covers most of the picture over the clip; raises ValueError where nobody is."""
    return int(np.argmax(_areas(pose).mean(axis=0)))


def _areas(pose: PoseSequence) -> Array:
    """[F, P], share of the picture that each box covers, 0 where the person is absent."""
    sides_FP2 = np.clip(pose.boxes[..., 2:].astype(np.float64) - pose.boxes[..., :2], 0, 1)
    return sides_FP2.prod(axis=-1) * pose.present()


def measure_people(pose: PoseSequence) -> dict[str, float]:
    """Who is there and how well the main person is seen; all shares are means over the frames with that person.

    `persons` in at least a tenth of the frames; `presence` share of the frames; `person_height` of the picture's;
    `dominance` the main person's share of all boxes' area; `body_visible`, `hands_visible`, `face_visible` share of the
    points seen; `hand_seen` share of the frames in which most of one hand is; `cut_off` share of the picture's frames
    in which a limb leaves the picture; `head_cut` share in which the head does; `jitter` see `jitter`.
    """
    present_FP = pose.present()
    persons = int((present_FP.mean(axis=0) >= PART_OF_THE_CLIP).sum()) if pose.num_frames else 0
    if not present_FP.any():
        names = ("presence", "person_height", "dominance", "body_visible", "hands_visible", "face_visible", "hand_seen")
        return {"persons": persons, **dict.fromkeys((*names, "cut_off", "head_cut", "jitter"), 0.0)}
    main = main_person(pose)
    seen_F = present_FP[:, main]
    areas_FP = _areas(pose)[seen_F]
    visible_FJ = pose.scores[seen_F, main] > VISIBLE
    height = np.clip(pose.boxes[seen_F, main, 3] - pose.boxes[seen_F, main, 1], 0, 1)
    return {
        "persons": persons,
        "presence": float(seen_F.mean()),
        "person_height": float(height.mean()),
        "dominance": float((areas_FP[:, main] / np.maximum(areas_FP.sum(axis=1), 1e-9)).mean()),
        **_visibility(visible_FJ),
        **_truncation(pose.keypoints[seen_F, main], visible_FJ, pose.boxes[seen_F, main]),
        "jitter": jitter(pose, main),
    }


def _visibility(visible_FJ: NDArray[np.bool_]) -> dict[str, float]:
    left_F, right_F = visible_FJ[:, LEFT_HAND].mean(axis=1), visible_FJ[:, RIGHT_HAND].mean(axis=1)
    return {
        "body_visible": float(visible_FJ[:, BODY].mean()),
        "hands_visible": float((left_F + right_F).mean() / 2),
        "hand_seen": float((np.maximum(left_F, right_F) > 0.5).mean()),
        "face_visible": float(visible_FJ[:, FACE].mean()),
    }


def _truncation(
    points_FJ2: NDArray[np.float32], visible_FJ: NDArray[np.bool_], boxes_F4: NDArray[np.float32]
) -> dict[str, float]:
    """Joints at or over the border; and a body whose box reaches the bottom with no ankle to be seen.

    Detectors place a joint outside the picture with a low score or none, so a box that ends at the border stands in.
    """
    at_border_FJ = ((points_FJ2 <= _BORDER) | (points_FJ2 >= 1 - _BORDER)).any(axis=-1)
    over_F = (at_border_FJ & visible_FJ)[:, BODY].any(axis=1)
    touches_F4 = np.stack([*(boxes_F4[:, :2] <= _BORDER).T, *(boxes_F4[:, 2:] >= 1 - _BORDER).T], axis=1)
    hidden_FJ = ~visible_FJ
    # A leg is cut where the box ends at the bottom and the ankle is not seen.
    legs_F = touches_F4[:, 3] & hidden_FJ[:, [RIGHT_ANKLE, LEFT_ANKLE]].any(axis=1)
    head_F = touches_F4[:, 1] & hidden_FJ[:, NOSE] | (at_border_FJ & visible_FJ)[:, [NOSE, NECK]].any(axis=1)
    return {"cut_off": float((over_F | legs_F | head_F).mean()), "head_cut": float(head_F.mean())}


def jitter(pose: PoseSequence, person: int) -> float:
    """How far the body's joints jump off their smooth way, in hundredths of the person's height; median over joints.

    A joint's distance from the middle between its places one frame before and one after. A smooth motion leaves only
    its acceleration: at 24 frames per second a fast kick stays below 2.
    """
    points_FJ2, visible_FJ = pose.keypoints[:, person, BODY], pose.scores[:, person, BODY] > VISIBLE
    if len(points_FJ2) < 3:
        return 0.0
    height = _body_height(pose, person)
    away_FJ = np.linalg.norm(points_FJ2[1:-1] - (points_FJ2[:-2] + points_FJ2[2:]) / 2, axis=-1)
    together_FJ = visible_FJ[1:-1] & visible_FJ[:-2] & visible_FJ[2:]
    return 100 * float(np.median(away_FJ[together_FJ])) / height if together_FJ.any() else 0.0


def _body_height(pose: PoseSequence, person: int) -> float:
    seen_F = pose.present()[:, person]
    return max(1e-3, float(np.median(pose.boxes[seen_F, person, 3] - pose.boxes[seen_F, person, 1])))


def pose_jump(pose: PoseSequence, frame: float, reach: float = 0.5) -> float:
    """What persons do at a moment (a fractional frame index, give or take `reach`): 0 = they go on, 1 = nobody does.

    How much more the main person's joints shift there than in the frames just before and after (mean over the body, in
    the person's heights, at most 1); 1 where that person is not there any more; 0 where nobody is seen at all.
    """
    steps = pose.num_frames - 1
    first, last = int(np.floor(frame - reach)), int(np.ceil(frame + reach)) - 1
    moments = range(max(0, first), min(steps, last + 1))
    return max((_sudden_shift(pose, moment, steps) for moment in moments), default=0.0)


def _sudden_shift(pose: PoseSequence, frame: int, steps: int) -> float:
    across = _shift(pose, frame)
    beside = [_shift(pose, at) for at in (frame - 1, frame + 1) if 0 <= at < steps]
    return max(0.0, across - max(beside, default=0.0)) if across < 1 else 1.0


def _shift(pose: PoseSequence, frame: int) -> float:
    """How far the body's joints of the largest person go from one frame to the next, in their heights; at most 1."""
    here_P, next_P = _areas(pose.frames(slice(frame, frame + 2)))
    if not here_P.any() or not next_P.any():
        return float(bool(here_P.any()) != bool(next_P.any()))
    person = int(np.argmax(here_P))
    both_J = (pose.scores[frame : frame + 2, person, BODY] > VISIBLE).all(axis=0)
    if not both_J.any():
        return 1.0
    away_J = np.linalg.norm(np.diff(pose.keypoints[frame : frame + 2, person, BODY], axis=0)[0], axis=-1)
    return float(min(1.0, away_J[both_J].mean() / _body_height(pose, person)))
