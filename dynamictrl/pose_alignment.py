"""Moves a driving clip's poses onto the person of the reference image: one scale and one shift for the whole clip.

The released recipe: the vertical scale is the least-squares slope of the reference's joint heights on the clip's, the
horizontal one follows from it so that shapes are kept, and the shift puts the clip's first nose on the reference's
nose and agrees in mean x. No limb is retargeted. Where that recipe breaks (joints unseen in the clip, several
persons, a person upside down, a single joint) ours goes on; where it works both give the same numbers.

Shape suffixes: F frames, P persons, J joints, K the joints that the fit uses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import InputError
from dynamictrl.pose import (
    BODY,
    LEFT_ANKLE,
    LEFT_EAR,
    LEFT_EYE,
    LEFT_HIP,
    LEFT_KNEE,
    LEFT_SHOULDER,
    NECK,
    NOSE,
    RIGHT_ANKLE,
    RIGHT_EAR,
    RIGHT_EYE,
    RIGHT_HIP,
    RIGHT_KNEE,
    RIGHT_SHOULDER,
    VISIBLE,
    PoseSequence,
)

FIT_JOINTS = (
    NOSE, NECK, RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP, RIGHT_KNEE, LEFT_KNEE, RIGHT_ANKLE, LEFT_ANKLE,
    RIGHT_EYE, LEFT_EYE, RIGHT_EAR, LEFT_EAR,
)  # fmt: skip
"""What moves little while a person acts: no elbows, wrists or hands."""

_BONES = (
    (NECK, RIGHT_SHOULDER), (NECK, LEFT_SHOULDER), (NECK, RIGHT_HIP), (NECK, LEFT_HIP), (RIGHT_HIP, RIGHT_KNEE),
    (LEFT_HIP, LEFT_KNEE), (RIGHT_KNEE, RIGHT_ANKLE), (LEFT_KNEE, LEFT_ANKLE), (NECK, NOSE),
)  # fmt: skip

_TRUSTED_RATIO = 2.0
"""A least-squares scale farther than this from the ratio of bone lengths is a misfit (a handstand gives < 0)."""

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Placement:
    """x, y in [0, 1] of the driving frame -> scale * (x, y) + shift in [0, 1] of the reference frame."""

    scale: NDArray[np.float64]
    """[2] for x and y."""
    shift: NDArray[np.float64]
    """[2] for x and y."""

    def apply(self, pose: PoseSequence) -> PoseSequence:
        keypoints = pose.keypoints * self.scale + self.shift
        boxes = pose.boxes * np.tile(self.scale, 2) + np.tile(self.shift, 2)
        # An absent person keeps its zeros.
        present = pose.present()[..., None]
        return PoseSequence(
            np.where(present[..., None], keypoints, pose.keypoints).astype(np.float32),
            pose.scores,
            np.where(present, boxes, pose.boxes).astype(np.float32),
            pose.track_ids,
        )


def align(driving: PoseSequence, reference: PoseSequence, *, driving_size: Size, reference_size: Size) -> PoseSequence:
    """The driving poses in the frame of the reference image, as large and in the place of its main person.

    `reference` is one frame, of the image as it is rendered (already cropped). The main persons are fitted on each
    other; others in the clip move with theirs. Raises InputError: "no_person_in_image", "no_person_in_video".
    """
    return place(driving, reference, driving_size=driving_size, reference_size=reference_size).apply(driving)


def place(driving: PoseSequence, reference: PoseSequence, *, driving_size: Size, reference_size: Size) -> Placement:
    """Finds the placement that `align` applies."""
    model, target = main_person(reference), main_person(driving)
    if model is None:
        raise InputError(
            "no person was found in the reference image; give one that shows a person, the head and shoulders at least",
            code="no_person_in_image",
            param="image",
        )
    if target is None:
        raise InputError(
            "no person was found in any frame of the driving video; give one that shows a person",
            code="no_person_in_video",
            param="driving_video",
        )
    reference_J2 = reference.keypoints[0, model, BODY].astype(np.float64)
    clip_FJ2 = driving.keypoints[:, target, BODY].astype(np.float64)
    seen_FJ = (driving.scores[:, target, BODY] > VISIBLE) & (reference.scores[0, model, BODY] > VISIBLE)
    return _fit(reference_J2, clip_FJ2, seen_FJ, driving_size, reference_size)


def main_person(pose: PoseSequence) -> int | None:
    """Index of the person who is seen largest and longest; None where nobody's body is seen."""
    if pose.num_persons == 0:
        return None
    seen = pose.scores[..., BODY] > VISIBLE
    xy = np.where(seen[..., None], pose.keypoints[..., BODY, :], np.nan)
    with np.errstate(invalid="ignore"):
        highest, lowest = np.fmax.reduce(xy, axis=2), np.fmin.reduce(xy, axis=2)
    extent_FP = np.nan_to_num(np.linalg.norm(highest - lowest, axis=-1))
    weight_P = (extent_FP + 1e-6 * seen.any(-1)).sum(axis=0)
    return int(weight_P.argmax()) if weight_P.max() > 0 else None


def _fit(
    reference_J2: NDArray[np.float64],
    clip_FJ2: NDArray[np.float64],
    seen_FJ: NDArray[np.bool_],
    driving_size: Size,
    reference_size: Size,
) -> Placement:
    """`seen_FJ`: the joint is visible in that frame and in the reference."""
    joints = np.array(FIT_JOINTS)
    used_FK = seen_FJ[:, joints]
    if not used_FK.any():
        # Nothing in common (a close-up of a face, a clip of legs): the clip keeps its place and its shape.
        return _centred(driving_size, reference_size)
    reference_K2, clip_FK2 = reference_J2[joints], clip_FJ2[:, joints]
    scale_y = _vertical_scale(reference_J2, clip_FJ2, seen_FJ, driving_size, reference_size)
    shape = (driving_size[0] / driving_size[1]) * (reference_size[1] / reference_size[0])
    scale = np.array([scale_y / shape, scale_y])
    # Vertically the first frame decides: a jump later on must not lift the standing person.
    first = int(used_FK.any(axis=1).argmax())
    anchor = int(used_FK[first].argmax())
    shift_y = reference_K2[anchor, 1] - scale_y * clip_FK2[first, anchor, 1]
    frames, index = np.nonzero(used_FK)
    shift_x = float(np.mean(reference_K2[index, 0] - scale[0] * clip_FK2[frames, index, 0]))
    return Placement(scale, np.array([shift_x, shift_y]))


def _vertical_scale(
    reference_J2: NDArray[np.float64],
    clip_FJ2: NDArray[np.float64],
    seen_FJ: NDArray[np.bool_],
    driving_size: Size,
    reference_size: Size,
) -> float:
    by_bones = _bone_ratio(reference_J2, clip_FJ2, seen_FJ, driving_size, reference_size)
    joints = np.array(FIT_JOINTS)
    frames, index = np.nonzero(seen_FJ[:, joints])
    clip_y, reference_y = clip_FJ2[frames, joints[index], 1], reference_J2[joints[index], 1]
    spread = float(np.var(clip_y))
    slope = float(np.mean((clip_y - clip_y.mean()) * (reference_y - reference_y.mean()))) / spread if spread else 0.0
    if by_bones is None:
        return slope if slope > 0 else driving_size[0] / reference_size[0]
    return slope if by_bones / _TRUSTED_RATIO < slope < by_bones * _TRUSTED_RATIO else by_bones


def _bone_ratio(
    reference_J2: NDArray[np.float64],
    clip_FJ2: NDArray[np.float64],
    seen_FJ: NDArray[np.bool_],
    driving_size: Size,
    reference_size: Size,
) -> float | None:
    """Vertical scale by bone lengths in pixels, the clip's at their longest (a bone shortens as it turns away)."""
    in_pixels_reference = reference_J2 * np.array(reference_size[::-1])
    in_pixels_clip = clip_FJ2 * np.array(driving_size[::-1])
    ratios = []
    for start, end in _BONES:
        frames = seen_FJ[:, start] & seen_FJ[:, end]
        if frames.any():
            lengths = np.linalg.norm(in_pixels_clip[frames, start] - in_pixels_clip[frames, end], axis=-1)
            length = float(np.percentile(lengths, 90))
            if length > 0:
                ratios.append(float(np.linalg.norm(in_pixels_reference[start] - in_pixels_reference[end])) / length)
    if not ratios or np.median(ratios) == 0:
        return None
    return float(np.median(ratios)) * driving_size[0] / reference_size[0]


def _centred(driving_size: Size, reference_size: Size) -> Placement:
    """The driving frame scaled to fit inside the reference frame, in its middle."""
    scale_px = min(reference_size[0] / driving_size[0], reference_size[1] / driving_size[1])
    scale = np.array([driving_size[1] / reference_size[1], driving_size[0] / reference_size[0]]) * scale_px
    return Placement(scale, (1 - scale) / 2)
