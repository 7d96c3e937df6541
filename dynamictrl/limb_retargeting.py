"""A driving person's motion on the body of another: the reference person's bone lengths, the driver's bone directions.

A bone's length in a picture says little: it shortens as it turns towards the camera. So each person is measured
robustly: in every frame a body unit is taken from the bones that look longest for their kind, each bone's length is
told in that unit, and of these the clip's high percentile counts (both sides pooled). Where a bone is short for its
kind in either person's pictures it is taken to be seen at an angle, and the persons' general ratio is used instead.

Each bone is stretched by ONE factor for the whole clip, so nothing jitters that did not before, and keeps its
direction, so what is foreshortened stays so. Feet stay on the ground: in each frame the figure is lowered or lifted to
stand as deep as the driver did, and the clip as a whole to stand where the reference does.

Shape suffixes: F frames, J joints (135: DWPose's 134 and the middle of the hips), all coordinates in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamictrl.pose import (
    FACE,
    FEET,
    LEFT_ANKLE,
    LEFT_EAR,
    LEFT_ELBOW,
    LEFT_EYE,
    LEFT_HAND,
    LEFT_HIP,
    LEFT_KNEE,
    LEFT_SHOULDER,
    LEFT_WRIST,
    NECK,
    NOSE,
    NUM_KEYPOINTS,
    RIGHT_ANKLE,
    RIGHT_EAR,
    RIGHT_ELBOW,
    RIGHT_EYE,
    RIGHT_HAND,
    RIGHT_HIP,
    RIGHT_KNEE,
    RIGHT_SHOULDER,
    RIGHT_WRIST,
)

Points = NDArray[np.float64]
Seen = NDArray[np.bool_]

PELVIS = NUM_KEYPOINTS
"""The middle of the hips, which the 134 points lack."""


@dataclass(frozen=True)
class Bone:
    """One kind of bone: where it is in the figure, and how long it is in an average person."""

    pairs: tuple[tuple[int, int], ...]
    """From the joint nearer to the neck to the other; the left and the right one count as one kind."""
    length: float
    """In units in which an average person is 1 tall."""


_FACE = FACE.start
BONES: Mapping[str, Bone] = {
    "shoulder": Bone(((NECK, RIGHT_SHOULDER), (NECK, LEFT_SHOULDER)), 0.117),
    "upper_arm": Bone(((RIGHT_SHOULDER, RIGHT_ELBOW), (LEFT_SHOULDER, LEFT_ELBOW)), 0.170),
    "forearm": Bone(((RIGHT_ELBOW, RIGHT_WRIST), (LEFT_ELBOW, LEFT_WRIST)), 0.148),
    "spine": Bone(((NECK, PELVIS),), 0.300),
    "hip": Bone(((PELVIS, RIGHT_HIP), (PELVIS, LEFT_HIP)), 0.060),
    "thigh": Bone(((RIGHT_HIP, RIGHT_KNEE), (LEFT_HIP, LEFT_KNEE)), 0.238),
    "shin": Bone(((RIGHT_KNEE, RIGHT_ANKLE), (LEFT_KNEE, LEFT_ANKLE)), 0.228),
    "neck": Bone(((NECK, NOSE),), 0.110),
    "ears": Bone(((RIGHT_EAR, LEFT_EAR),), 0.125),
    "eyes": Bone(((RIGHT_EYE, LEFT_EYE),), 0.046),
    "jaw": Bone(((_FACE, _FACE + 16),), 0.120),
    "chin": Bone(((_FACE + 8, _FACE + 27),), 0.092),
}
_LONG = ("shoulder", "upper_arm", "forearm", "spine", "thigh", "shin")
"""What the body unit is taken from."""
_HEAD = ("ears", "eyes", "jaw", "chin")
"""What the size of a head is taken from, all of it."""

# Each joint's bone, in an order in which a joint comes after the one it hangs on.
_TREE: tuple[tuple[int, int, str], ...] = (
    *((end, start, name) for name in ("shoulder", "upper_arm", "forearm") for start, end in BONES[name].pairs),
    (PELVIS, NECK, "spine"),
    *((end, start, name) for name in ("hip", "thigh", "shin") for start, end in BONES[name].pairs),
    (NOSE, NECK, "neck"),
    *((joint, NOSE, "head") for joint in (RIGHT_EYE, LEFT_EYE, RIGHT_EAR, LEFT_EAR, *range(FACE.start, FACE.stop))),
    *((joint, LEFT_WRIST, "forearm") for joint in range(LEFT_HAND.start, LEFT_HAND.stop)),
    *((joint, RIGHT_WRIST, "forearm") for joint in range(RIGHT_HAND.start, RIGHT_HAND.stop)),
    *((joint, LEFT_ANKLE, "shin") for joint in range(FEET.start, FEET.start + 3)),
    *((joint, RIGHT_ANKLE, "shin") for joint in range(FEET.start + 3, FEET.stop)),
)

_TELLING = 75
"""Percentile over time of how many kinds of bones a frame shows: as many, or more, and its unit is its own."""
_LONGEST = 85
"""Percentile over the bones of a frame: those that look longest for their kind lie in the picture's plane."""
_UNFOLDED = 90
"""Percentile over the frames of a clip of how long a bone looks."""
_FULL_LENGTH, _AT_AN_ANGLE = 0.92, 0.68
"""Shares of a bone's usual length from which its measure is believed in full, and below which not at all."""
_MOST_UNLIKE = 1.8
"""A bone's ratio differs from the persons' general one by this factor at most: beyond it a joint was mistaken."""
_STANDING = 75
"""Percentile over time of how deep the lowest foot is: jumps and steps do not count."""


def with_pelvis(points_FJ2: Points, seen_FJ: Seen) -> tuple[Points, Seen]:
    """Adds the middle of the hips as point 134; seen where both hips are."""
    middle_F2 = (points_FJ2[:, RIGHT_HIP] + points_FJ2[:, LEFT_HIP]) / 2
    both_F = seen_FJ[:, RIGHT_HIP] & seen_FJ[:, LEFT_HIP]
    return np.concatenate([points_FJ2, middle_F2[:, None]], axis=1), np.concatenate([seen_FJ, both_F[:, None]], axis=1)


def lengths(points_FJ2: Points, seen_FJ: Seen) -> dict[str, Points]:
    """Each kind of bone's lengths [F, sides], NaN where an end is not seen; kinds that are never seen are left out."""
    found = {}
    for name, bone in BONES.items():
        start, end = np.array(bone.pairs).T
        length = np.linalg.norm(points_FJ2[:, start] - points_FJ2[:, end], axis=-1)
        both = seen_FJ[:, start] & seen_FJ[:, end] & (length > 0)
        if both.any():
            found[name] = np.where(both, length, np.nan)
    return found


@dataclass(frozen=True)
class Measure:
    """A person's size and proportions."""

    unit: float
    """Pixels: how tall an average person of this size stands; the clip's median."""
    bones: Mapping[str, float]
    """Length in that unit, by kind; as long as it was mostly seen."""


def measure(found: Mapping[str, Points], kinds: tuple[str, ...]) -> Measure | None:
    """Sizes a person up by `lengths`; `kinds` are the ones that the unit may be taken from. None where none is seen."""
    if not kinds:
        return None
    shares = np.stack([np.fmax.reduce(found[name], axis=1) / BONES[name].length for name in kinds], axis=1)
    kinds_F = np.isfinite(shares).sum(axis=1)
    # A frame that shows few bones would judge by others than the rest: it takes its neighbours' unit.
    telling = np.nonzero(kinds_F >= max(1, np.percentile(kinds_F, _TELLING)))[0]
    unit_F = np.interp(np.arange(len(shares)), telling, np.nanpercentile(shares[telling], _LONGEST, axis=1))
    bones = {}
    for name, length in found.items():
        relative = length / unit_F[:, None]
        if np.isfinite(relative).any():
            bones[name] = float(np.nanpercentile(relative, _UNFOLDED))
    return Measure(float(np.median(unit_F[telling])), bones)


def factors(driver: Mapping[str, Points], model: Mapping[str, Points]) -> dict[str, float] | None:
    """How much longer each kind of bone is in the reference person: pixels to pixels, "all" for what is not measured.

    None where the two have no bone in common.
    """
    common = tuple(name for name in BONES if name in driver and name in model)
    kinds = tuple(name for name in common if name in _LONG) or common
    one, other = measure(driver, kinds), measure(model, kinds)
    if one is None or other is None:
        return None
    general = other.unit / one.unit
    ratios = {}
    for name in common:
        share = min(one.bones[name], other.bones[name]) / BONES[name].length
        belief = float(np.clip((share - _AT_AN_ANGLE) / (_FULL_LENGTH - _AT_AN_ANGLE), 0, 1))
        ratio = np.clip(other.bones[name] / one.bones[name], 1 / _MOST_UNLIKE, _MOST_UNLIKE)
        ratios[name] = (float(np.log(ratio)) * belief, belief)
    result = {name: general * float(np.exp(power)) for name, (power, _) in ratios.items()}
    beliefs = sum(ratios[name][1] for name in _HEAD if name in ratios)
    powers = sum(ratios[name][0] for name in _HEAD if name in ratios)
    return {**result, "head": general * float(np.exp(powers / max(beliefs, 1.0))), "all": general}


def retarget(
    driver_FJ2: Points, seen_FJ: Seen, model_J2: Points, model_seen_J: Seen, placed_F: Seen | None = None
) -> Points | None:
    """The driver's 134 points [F, 134, 2] with the reference person's bones, standing where that person does.

    `model_J2` [134, 2] is the reference picture's; `placed_F` [F] says which frames count for the place across (all by
    default). None where the two have no bone in common.
    """
    points_FJ2, seen_FJ = with_pelvis(driver_FJ2, seen_FJ)
    reference_FJ2, reference_seen_FJ = with_pelvis(model_J2[None], model_seen_J[None])
    scale = factors(lengths(points_FJ2, seen_FJ), lengths(reference_FJ2, reference_seen_FJ))
    if scale is None:
        return None
    built_FJ2 = _build(points_FJ2, seen_FJ, scale)
    built_FJ2 += _keep_the_ground(points_FJ2 * scale["all"], built_FJ2, seen_FJ)[:, None]
    if placed_F is None or not (seen_FJ & reference_seen_FJ)[placed_F].any():
        placed_F = np.ones(len(points_FJ2), np.bool_)
    built_FJ2 += _place(built_FJ2, seen_FJ, reference_FJ2[0], reference_seen_FJ[0], placed_F)
    return built_FJ2[:, :NUM_KEYPOINTS]


def _build(points_FJ2: Points, seen_FJ: Seen, scale: Mapping[str, float]) -> Points:
    """Every joint hung on the nearest seen joint above it, its bone stretched; without one, the general scale."""
    built_FJ2 = points_FJ2 * scale["all"]
    above = {joint: (parent, name) for joint, parent, name in _TREE}
    for joint in above:
        left_F = np.ones(len(points_FJ2), np.bool_)
        for ancestor, name in _chain(joint, above):
            here_F = left_F & seen_FJ[:, ancestor]
            offset_F2 = scale.get(name, scale["all"]) * (points_FJ2[:, joint] - points_FJ2[:, ancestor])
            built_FJ2[here_F, joint] = (built_FJ2[:, ancestor] + offset_F2)[here_F]
            left_F &= ~here_F
    return built_FJ2


def _chain(joint: int, above: Mapping[int, tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The joints above a joint up to the neck, each with the longest bone that lies between."""
    kept = ""
    while joint in above:
        joint, name = above[joint]
        if not kept or (name in BONES and kept in BONES and BONES[name].length > BONES[kept].length):
            kept = name
        yield joint, kept


def _keep_the_ground(scaled_FJ2: Points, built_FJ2: Points, seen_FJ: Seen) -> Points:
    """[F, 2] by which each frame's figure must move for its lowest foot to be as deep as it is in the scaled clip.

    Frames that show no foot take what their neighbours in time do.
    """
    shift_F2 = np.zeros((len(scaled_FJ2), 2))
    before_F, after_F = (lowest_foot(points, seen_FJ) for points in (scaled_FJ2, built_FJ2))
    known = np.isfinite(before_F)
    if known.any():
        frames = np.arange(len(before_F))
        shift_F2[:, 1] = np.interp(frames, frames[known], (before_F - after_F)[known])
    return shift_F2


def lowest_foot(points_FJ2: Points, seen_FJ: Seen) -> Points:
    """[F]: how far down the lower ankle is; NaN where none is seen."""
    ankles = [RIGHT_ANKLE, LEFT_ANKLE]
    depth = np.where(seen_FJ[:, ankles], points_FJ2[:, ankles, 1], -np.inf).max(axis=1)
    return np.where(np.isfinite(depth), depth, np.nan)


def _place(built_FJ2: Points, seen_FJ: Seen, model_J2: Points, model_seen_J: Seen, placed_F: Seen) -> Points:
    """[2]: from where the clip stands to where the reference does; the trunk decides across, the feet in depth."""
    trunk = [NECK, RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP]
    common_FJ = seen_FJ & model_seen_J & placed_F[:, None]
    used = trunk if common_FJ[:, trunk].any() else list(range(PELVIS))
    away = np.where(common_FJ[:, used, None], model_J2[used] - built_FJ2[:, used], np.nan)
    with np.errstate(invalid="ignore"):
        shift = np.nanmean(away, axis=(0, 1))
    stands, model_stands = lowest_foot(built_FJ2, seen_FJ), lowest_foot(model_J2[None], model_seen_J[None])[0]
    if np.isfinite(model_stands) and np.isfinite(stands).any():
        shift[1] = model_stands - np.nanpercentile(stands, _STANDING)
    else:
        shift[1] = np.nanmedian(away[..., 1])
    return shift
