"""Whether the person moves, or only the camera: the main person's motion set against the scene's.

Shape suffixes: F sampled frames, J joints.
"""

from __future__ import annotations

import numpy as np

from dynamictrl.poses.pose import BODY, VISIBLE, PoseSequence
from dynamictrl.quality.camera import CameraPath, camera_path
from dynamictrl.quality.overlay import overlay
from dynamictrl.quality.people import TRUNK, Array, main_person
from dynamictrl.quality.samples import Samples

_LIMBS = [joint for joint in range(18) if joint not in TRUNK]
_MOST_MOVING = 4
"""Joints by which a motion is judged: a wave of one arm is a motion, though nothing else moves."""
_APART = 0.25
"""Seconds between two places of a joint whose distance makes its speed: shorter, and the pose's trembling counts."""
_NOTHING = {"body_motion": 0.0, "body_travel": 0.0, "body_speed": 0.0, "camera_share": 0.0}


def measure_motion(samples: Samples, pose: PoseSequence) -> dict[str, float]:
    """What the camera does (see `CameraPath.scores`, `overlay`) and what the main person does.

    `body_motion`: how far the most moving limbs go to and fro against the trunk (standard deviation); `body_travel`:
    how far the trunk goes through the scene, both in heights of the person. `body_speed`: all of it per second, in
    shares of the picture's shorter side as `camera_speed` is; `camera_share`: the camera's part of both speeds, 1 = all
    of it.
    """
    chosen = pose.frames(np.minimum(samples.indices_F, pose.num_frames - 1))
    camera = camera_path(samples.small_FHW, samples.times_F, chosen.boxes)
    scores = camera.scores()
    scores["overlay"] = overlay(samples.small_FHW, scores["camera_travel"])
    if not chosen.present().any():
        return {**scores, **_NOTHING}
    body = _body(samples, chosen, camera)
    both = scores["camera_speed"] + body["body_speed"]
    return {**scores, **body, "camera_share": scores["camera_speed"] / both if both else 0.0}


def _body(samples: Samples, pose: PoseSequence, camera: CameraPath) -> dict[str, float]:
    main = main_person(pose)
    height, width = samples.small_FHW.shape[1:]
    in_sides = np.array([width, height]) / min(height, width)
    seen_FJ = pose.scores[:, main, BODY] > VISIBLE
    points_FJ2 = np.where(seen_FJ[..., None], pose.keypoints[:, main, BODY] * in_sides, np.nan).astype(np.float64)
    boxes_F4 = pose.boxes[pose.present()[:, main], main]
    tall = max(1e-3, float(np.median(boxes_F4[:, 3] - boxes_F4[:, 1])) * in_sides[1])
    trunk_F2 = _nan_mean(points_FJ2[:, TRUNK], axis=1)
    limbs_FJ2 = points_FJ2[:, _LIMBS] - trunk_F2[:, None]
    way_F2 = trunk_F2 - camera.shift_F2
    spans = int(np.clip(round(_APART * (len(way_F2) - 1) / max(samples.seconds, 1e-6)), 1, max(1, len(way_F2) - 1)))
    seconds_S = samples.times_F[spans:] - samples.times_F[:-spans]
    limb_speed_S = _nan_mean(np.linalg.norm(limbs_FJ2[spans:] - limbs_FJ2[:-spans], axis=-1), axis=1)
    trunk_speed_S = np.linalg.norm(way_F2[spans:] - way_F2[:-spans], axis=-1)
    speeds_S = (np.nan_to_num(limb_speed_S) + np.nan_to_num(trunk_speed_S)) / np.maximum(seconds_S, 1e-6)
    return {
        "body_motion": _swing(limbs_FJ2) / tall,
        "body_travel": _reach(way_F2) / tall,
        "body_speed": float(speeds_S.mean()) if len(speeds_S) else 0.0,
    }


def _swing(limbs_FJ2: Array) -> float:
    """Mean standard deviation of the joints that move most, of those seen in at least half of the frames."""
    often_J = np.isfinite(limbs_FJ2[..., 0]).mean(axis=0) >= 0.5
    if not often_J.any():
        return 0.0
    away_FJ2 = limbs_FJ2[:, often_J] - _nan_mean(limbs_FJ2[:, often_J], axis=0)
    deviation_J = np.sqrt(_nan_mean((away_FJ2**2).sum(axis=-1), axis=0))
    return float(np.sort(deviation_J)[-_MOST_MOVING:].mean())


def _reach(way_F2: Array) -> float:
    """The farthest from the middle of the way, twice: jumps of a bad pose (above the 95th percentile) left out."""
    there_F2 = way_F2[np.isfinite(way_F2[:, 0])]
    if len(there_F2) < 2:
        return 0.0
    return 2 * float(np.percentile(np.linalg.norm(there_F2 - np.median(there_F2, axis=0), axis=1), 95))


def _nan_mean(values: Array, axis: int) -> Array:
    """Mean of what is known, nan where nothing is; numpy's own warns of that."""
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
