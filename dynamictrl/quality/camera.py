"""How the camera moves: points of the scene followed from sample to sample, and the one motion that most obey.

Sparse Lucas-Kanade flow and a RANSAC similarity, the usual way to estimate global motion without weights. Points on
persons are left out: before a plain wall they would be all there is, and a jump would pass for a shaking camera. What
it cannot see: a camera before a scene without any texture (`camera_seen` says so), and one that is carried along with
persons who fill the picture.

Shape suffixes: F sampled frames, S steps between them, P persons, N points.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.quality.samples import Grey

_MOST, _APART = 200, 8
"""Points followed at most, and pixels between two of them at least."""
_FEWEST = 8
"""Points that must be followed for a motion to be believed."""
_TOLERANCE = 1.0
"""Pixels of the small picture by which a point may miss the common motion."""
_AROUND = 0.03
"""Share of the picture by which persons' boxes are widened: hair, hands and shadows reach past them."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CameraPath:
    """What the camera did between successive samples."""

    steps_S4: Array
    """Shift across and down, and zoom and turn by what they move a point half-way to the border; in shares of the
    picture's shorter side."""
    seen_S: NDArray[np.bool_]
    """Whether enough of the scene could be followed; where not, the step is 0."""
    seconds_S: Array

    @property
    def shift_F2(self) -> Array:
        """Where what was in the picture's middle at first has moved to, in shares of the shorter side."""
        return np.concatenate([np.zeros((1, 2)), np.cumsum(self.steps_S4[:, :2], axis=0)])

    def scores(self) -> dict[str, float]:
        """`camera_seen` is a share of the steps; the others count shares of the picture's shorter side.

        `camera_speed` per second on average, `camera_travel` the farthest from the first frame, `camera_shake` how much
        the speed changes from step to step, per second: nearly 0 where the camera moves smoothly, its speed where it
        trembles.
        """
        if not len(self.steps_S4):
            return {"camera_seen": 0.0, "camera_speed": 0.0, "camera_travel": 0.0, "camera_shake": 0.0}
        speed_S4 = self.steps_S4 / self.seconds_S[:, None]
        both_S = self.seen_S[1:] & self.seen_S[:-1]
        changes = np.linalg.norm(np.diff(speed_S4[:, :2], axis=0), axis=1)[both_S]
        return {
            "camera_seen": float(self.seen_S.mean()),
            "camera_speed": float(np.linalg.norm(speed_S4, axis=1).mean()),
            "camera_travel": float(np.linalg.norm(np.cumsum(self.steps_S4, axis=0), axis=1).max()),
            "camera_shake": float(changes.mean() / 2) if len(changes) else 0.0,
        }


def camera_path(small_FHW: Grey, times_F: Array, boxes_FP4: NDArray[np.float32]) -> CameraPath:
    """Follows the scene; `boxes_FP4` are the persons' boxes at the samples, shares of the picture, 0 where absent."""
    side = min(small_FHW.shape[1:])
    scenes_FHW = [_scene(box_P4, small_FHW.shape[1:]) for box_P4 in boxes_FP4]
    steps = [_step(small_FHW[i], small_FHW[i + 1], scenes_FHW[i]) for i in range(len(small_FHW) - 1)]
    seen_S = np.array([step is not None for step in steps], bool)
    steps_S4 = np.array([step or (0.0, 0.0, 0.0, 0.0) for step in steps], np.float64).reshape(-1, 4) / side
    return CameraPath(steps_S4, seen_S, np.diff(times_F))


def _scene(boxes_P4: NDArray[np.float32], size: tuple[int, ...]) -> Grey:
    """[H, W], 255 where no person is."""
    height, width = size
    free = np.full((height, width), 255, np.uint8)
    for left, top, right, bottom in boxes_P4:
        if right <= left or bottom <= top:
            continue
        y1, y2 = (round(float(y) * height) for y in (top - _AROUND, bottom + _AROUND))
        x1, x2 = (round(float(x) * width) for x in (left - _AROUND, right + _AROUND))
        free[max(0, y1) : max(0, y2), max(0, x1) : max(0, x2)] = 0
    return free


def _step(one_HW: Grey, other_HW: Grey, scene_HW: Grey) -> tuple[float, float, float, float] | None:
    """The picture's motion in pixels (see `CameraPath.steps_S4`), None where too little can be followed."""
    corners = cv2.goodFeaturesToTrack(one_HW, maxCorners=_MOST, qualityLevel=0.01, minDistance=_APART, mask=scene_HW)
    if corners is None or len(corners) < _FEWEST:
        return None
    points_N12 = corners.reshape(-1, 1, 2)
    moved, found, _ = cv2.calcOpticalFlowPyrLK(
        one_HW, other_HW, points_N12, points_N12.copy(), winSize=(15, 15), maxLevel=3
    )
    seen = found.ravel() == 1
    if seen.sum() < _FEWEST:
        return None
    before, after = points_N12[seen, 0], moved[seen, 0]
    matrix, inliers = cv2.estimateAffinePartial2D(before, after, method=cv2.RANSAC, ransacReprojThreshold=_TOLERANCE)
    if matrix is None or inliers.sum() < _FEWEST:
        return None
    height, width = one_HW.shape
    middle = np.array([width / 2, height / 2])
    shift = matrix[:, :2] @ middle + matrix[:, 2] - middle
    reach = min(height, width) / 4
    zoom = float(np.hypot(matrix[0, 0], matrix[1, 0]) - 1) * reach
    turn = float(np.arctan2(matrix[1, 0], matrix[0, 0])) * reach
    return float(shift[0]), float(shift[1]), zoom, turn
