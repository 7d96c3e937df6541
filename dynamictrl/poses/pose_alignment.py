"""Moves a driving clip's poses onto the persons of the reference image, in one of four ways (`align`).

The released recipe is one scale and one shift for the whole clip: the vertical scale is the least-squares slope of the
reference's joint heights on the clip's, the horizontal one follows from it so that shapes are kept, and the shift puts
the clip's first nose on the reference's nose and agrees in mean x. Where it breaks (joints unseen in the clip, several
persons, a person upside down, a single joint) "affine" goes on; where it works both give the same numbers.

Shape suffixes: F frames, P persons, J joints, K the joints that the fit uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import ConfigError, InputError
from dynamictrl.geometry import cover_box
from dynamictrl.poses.limb_retargeting import retarget
from dynamictrl.poses.person_roles import assign_roles, driver_of, frames_in_order, main_person, require_someone
from dynamictrl.poses.pose import (
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

Alignment = Literal["affine", "limbs", "released", "none"]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)

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


def align(
    driving: PoseSequence,
    reference: PoseSequence,
    *,
    driving_size: Size,
    reference_size: Size,
    alignment: Alignment = "limbs",
) -> PoseSequence:
    """The driving poses in the frame of the reference image, each person as large and in the place of the image's.

    `reference` is one frame, of the image as it is rendered (already cropped). `alignment` is one of

    * "affine": one scale and shift for each person (`person_roles` says who drives whom);
    * "limbs": the image's persons with their own bone lengths (`limb_retargeting`; "affine" where none is in common);
    * "released": the published rule, one scale and shift for the whole clip, fitted on frames that show one person;
    * "none": poses stay where they are in their own frame, which is fitted as the image was (cover, centred).

    All but "released" and "none" give one person for each of the image's. Raises InputError: "no_person_in_image",
    "no_person_in_video", "no_single_person" ("released" only); ConfigError for another `alignment`.
    """
    if alignment not in ALIGNMENTS:
        raise ConfigError(f"alignment is {alignment!r}; it must be one of {', '.join(ALIGNMENTS)}", param="alignment")
    sizes = {"driving_size": driving_size, "reference_size": reference_size}
    if alignment == "none":
        require_someone(driving)
        return _covering(driving_size, reference_size).apply(driving)
    if alignment == "released":
        return released_placement(driving, reference, **sizes).apply(driving)
    persons, roles = [], assign_roles(driving, reference)
    placed_F = frames_in_order(roles, driving)
    for role in roles:
        model = _only(reference, role.model)
        if not role.tracks:
            persons.append(model.frames(np.zeros(driving.num_frames, np.intp)))
            continue
        driver = driver_of(role, driving)
        moved = _with_limbs_of(driver, model, driving_size, reference_size, placed_F) if alignment == "limbs" else None
        persons.append(moved or place(driver, model, **sizes, placed_F=placed_F).apply(driver))
    return _together(persons)


def place(
    driving: PoseSequence,
    reference: PoseSequence,
    *,
    driving_size: Size,
    reference_size: Size,
    placed_F: NDArray[np.bool_] | None = None,
) -> Placement:
    """The one scale and shift that bring the clip's main person onto the image's; errors as `align`'s.

    `placed_F` [F] says which frames count for the place across (all by default).
    """
    model = _only(reference, main_person(reference))
    (role,) = assign_roles(driving, model)
    driver = driver_of(role, driving)
    seen_FJ = (driver.scores[:, 0, BODY] > VISIBLE) & (model.scores[0, 0, BODY] > VISIBLE)
    reference_J2, clip_FJ2 = (points.astype(np.float64) for points in (model.keypoints[0, 0], driver.keypoints[:, 0]))
    return _fit(reference_J2[BODY], clip_FJ2[:, BODY], seen_FJ, driving_size, reference_size, placed_F)


def released_placement(
    driving: PoseSequence, reference: PoseSequence, *, driving_size: Size, reference_size: Size
) -> Placement:
    """The published rule to the letter (facts: no joint of the CLIP is asked whether it is seen).

    Used are the joints of FIT_JOINTS that the image's person shows, and the frames that show exactly one person. y: the
    least-squares slope over all of them, then shifted so that the FIRST such frame's nose lands on the first used joint
    of the image, whichever that is. x: the scale that keeps shapes, and equal mean x.
    """
    model = main_person(reference)
    if model is None:
        assign_roles(driving, reference)
    alone_F = driving.present().sum(axis=1) == 1
    if not alone_F.any():
        require_someone(driving)
        raise InputError(
            "the released alignment needs a frame with exactly one person, and every frame of the driving video shows "
            "several; use the alignment 'affine' or 'limbs'",
            code="no_single_person",
            param="driving_video",
        )
    joints = [joint for joint in FIT_JOINTS if reference.scores[0, model, joint] > VISIBLE]
    if not joints:
        return _centred(driving_size, reference_size)
    frames = np.nonzero(alone_F)[0]
    alone_FJ2 = driving.keypoints[frames, driving.present()[frames].argmax(axis=1)].astype(np.float64)
    clip_FK2 = alone_FJ2[:, joints]
    model_K2 = reference.keypoints[0, model, joints].astype(np.float64)
    model_FK2 = np.broadcast_to(model_K2, clip_FK2.shape)
    scale_y = float(np.polyfit(clip_FK2[..., 1].ravel(), model_FK2[..., 1].ravel(), 1)[0])
    scale_x = scale_y / ((driving_size[0] / driving_size[1]) * (reference_size[1] / reference_size[0]))
    shift_x = float((model_FK2[..., 0] - scale_x * clip_FK2[..., 0]).mean())
    shift_y = model_K2[0, 1] - scale_y * alone_FJ2[0, NOSE, 1]
    return Placement(np.array([scale_x, scale_y]), np.array([shift_x, shift_y]))


def _only(pose: PoseSequence, person: int | None) -> PoseSequence:
    chosen = [] if person is None else [person]
    return PoseSequence(
        pose.keypoints[:, chosen],
        pose.scores[:, chosen],
        pose.boxes[:, chosen],
        np.arange(1, len(chosen) + 1, dtype=np.int32),
    )


def _together(persons: list[PoseSequence]) -> PoseSequence:
    return PoseSequence(
        np.concatenate([person.keypoints for person in persons], axis=1),
        np.concatenate([person.scores for person in persons], axis=1),
        np.concatenate([person.boxes for person in persons], axis=1),
        np.arange(1, len(persons) + 1, dtype=np.int32),
    )


def _with_limbs_of(
    driver: PoseSequence, model: PoseSequence, driving_size: Size, reference_size: Size, placed_F: NDArray[np.bool_]
) -> PoseSequence | None:
    """One person's clip on the body of another; None where they have no bone in common."""
    from_px, to_px = np.array(driving_size[::-1], np.float64), np.array(reference_size[::-1], np.float64)
    seen_FJ, model_seen_J = driver.scores[:, 0] > VISIBLE, model.scores[0, 0] > VISIBLE
    moved_FJ2 = retarget(
        driver.keypoints[:, 0] * from_px, seen_FJ, model.keypoints[0, 0] * to_px, model_seen_J, placed_F
    )
    if moved_FJ2 is None:
        return None
    present_F = np.any(seen_FJ, axis=1)
    moved_FJ2 = np.where(present_F[:, None, None], moved_FJ2 / to_px, 0)
    shown = np.where(seen_FJ[..., None], moved_FJ2, np.nan)
    with np.errstate(invalid="ignore"):
        boxes = np.concatenate([np.fmin.reduce(shown, axis=1), np.fmax.reduce(shown, axis=1)], axis=-1)
    return PoseSequence(
        moved_FJ2[:, None].astype(np.float32),
        driver.scores,
        np.nan_to_num(boxes)[:, None].astype(np.float32),
        driver.track_ids,
    )


def _fit(
    reference_J2: NDArray[np.float64],
    clip_FJ2: NDArray[np.float64],
    seen_FJ: NDArray[np.bool_],
    driving_size: Size,
    reference_size: Size,
    placed_F: NDArray[np.bool_] | None,
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
    if placed_F is not None and used_FK[placed_F].any():
        used_FK = used_FK & placed_F[:, None]
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


def _covering(driving_size: Size, reference_size: Size) -> Placement:
    """The driving frame cropped to the reference's shape as pictures are (`geometry.cover_box`)."""
    left, top, right, bottom = cover_box(*driving_size, *reference_size)
    height, width = driving_size
    scale = np.array([width / (right - left), height / (bottom - top)])
    return Placement(scale, -np.array([left / width, top / height]) * scale)


def _centred(driving_size: Size, reference_size: Size) -> Placement:
    """The driving frame scaled to fit inside the reference frame, in its middle."""
    scale_px = min(reference_size[0] / driving_size[0], reference_size[1] / driving_size[1])
    scale = np.array([driving_size[1] / reference_size[1], driving_size[0] / reference_size[0]]) * scale_px
    return Placement(scale, (1 - scale) / 2)
