"""A driving person's motion on the body of another: the reference person's bone lengths, the driver's bone directions.

A bone's length in a picture says little: it shortens as it turns towards the camera. So each person is measured
robustly: in every frame a body unit is taken from the bone that looks longest for its kind, each bone's length is told
in that unit, and of these the clip's high percentile counts (both sides pooled). Where a bone is short for its kind in
either person's pictures it is taken to be seen at an angle, and the persons' general ratio is used instead; the more
so, the more the detector's noise (measured in the clip) could have made the difference.

Each bone is stretched by ONE factor for the whole clip, so nothing jitters that did not before, and keeps its
direction, so what is foreshortened stays so. Feet stay on the ground: in each frame the figure is lowered or lifted to
stand as deep as the driver did, and the clip as a whole to stand where the reference does.

Shape suffixes: F frames, J joints (135: DWPose's 134 and the middle of the hips), all coordinates in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dynamictrl.poses.pose import (
    BODY,
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
    "shoulders": Bone(((RIGHT_SHOULDER, LEFT_SHOULDER),), 0.234),
    "upper_arm": Bone(((RIGHT_SHOULDER, RIGHT_ELBOW), (LEFT_SHOULDER, LEFT_ELBOW)), 0.170),
    "forearm": Bone(((RIGHT_ELBOW, RIGHT_WRIST), (LEFT_ELBOW, LEFT_WRIST)), 0.148),
    "spine": Bone(((NECK, PELVIS),), 0.300),
    "hips": Bone(((RIGHT_HIP, LEFT_HIP),), 0.120),
    "thigh": Bone(((RIGHT_HIP, RIGHT_KNEE), (LEFT_HIP, LEFT_KNEE)), 0.238),
    "shin": Bone(((RIGHT_KNEE, RIGHT_ANKLE), (LEFT_KNEE, LEFT_ANKLE)), 0.228),
    "neck": Bone(((NECK, NOSE),), 0.110),
    "ears": Bone(((RIGHT_EAR, LEFT_EAR),), 0.125),
    "eyes": Bone(((RIGHT_EYE, LEFT_EYE),), 0.046),
    "jaw": Bone(((_FACE, _FACE + 16),), 0.120),
    "chin": Bone(((_FACE + 8, _FACE + 27),), 0.092),
    # Not bones: the longer a stretch, the less noise matters, where a person happens to hold it straight.
    "arm": Bone(((RIGHT_SHOULDER, RIGHT_WRIST), (LEFT_SHOULDER, LEFT_WRIST)), 0.315),
    "leg": Bone(((RIGHT_HIP, RIGHT_ANKLE), (LEFT_HIP, LEFT_ANKLE)), 0.462),
    "stature": Bone(((NECK, RIGHT_ANKLE), (NECK, LEFT_ANKLE)), 0.765),
}
_TELL_SIZE = (
    ("spine", "thigh", "shin", "leg", "stature", "arm"),
    ("shoulders", "upper_arm", "forearm", "arm"),
    tuple(BONES),
)
"""What the body unit is taken from: the first of these groups that both persons show something of."""
_HEAD = ("ears", "eyes", "jaw", "chin")
"""What the size of a head is taken from, all of it."""

# Each joint's bone, in an order in which a joint comes after the one it hangs on.
_TREE: tuple[tuple[int, int, str], ...] = (
    *((joint, NECK, "shoulders") for joint in (RIGHT_SHOULDER, LEFT_SHOULDER)),
    *((end, start, name) for name in ("upper_arm", "forearm") for start, end in BONES[name].pairs),
    (PELVIS, NECK, "spine"),
    *((joint, PELVIS, "hips") for joint in (RIGHT_HIP, LEFT_HIP)),
    *((end, start, name) for name in ("thigh", "shin") for start, end in BONES[name].pairs),
    (NOSE, NECK, "neck"),
    *((joint, NOSE, "head") for joint in (RIGHT_EYE, LEFT_EYE, RIGHT_EAR, LEFT_EAR, *range(FACE.start, FACE.stop))),
    *((joint, LEFT_WRIST, "forearm") for joint in range(LEFT_HAND.start, LEFT_HAND.stop)),
    *((joint, RIGHT_WRIST, "forearm") for joint in range(RIGHT_HAND.start, RIGHT_HAND.stop)),
    *((joint, LEFT_ANKLE, "shin") for joint in range(FEET.start, FEET.start + 3)),
    *((joint, RIGHT_ANKLE, "shin") for joint in range(FEET.start + 3, FEET.stop)),
)

_TELLING = 75
"""Percentile over time of how many kinds of bones a frame shows: as many, or more, and its unit is its own."""
_STEADIED = 5
"""Frames over which a length is steadied before it is judged."""
_LEAST_DOUBT = 0.02
"""Of a person's height: no detector places a joint better, whatever its tremble."""
_VARIETY = 0.2
"""By how much people's proportions differ, roughly (a standard deviation of the logarithm)."""
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


def tremble(points_FJ2: Points, seen_FJ: Seen) -> float:
    """How far a detector is off from frame to frame, pixels (one standard deviation); 0 for fewer than three frames.

    Second differences leave out what moves evenly; their median leaves out what does not.
    """
    body = slice(0, BODY.stop)
    bend = points_FJ2[2:, body] - 2 * points_FJ2[1:-1, body] + points_FJ2[:-2, body]
    known = seen_FJ[2:, body] & seen_FJ[1:-1, body] & seen_FJ[:-2, body]
    return 1.4826 / math.sqrt(6) * float(np.median(np.abs(bend[known]))) if known.any() else 0.0


@dataclass(frozen=True)
class Lengths:
    """How long a person's bones look in each frame, pixels."""

    bones: Mapping[str, Points]
    """By kind, [F, sides], NaN where an end is not seen; kinds that are never seen are missing."""
    doubt: float
    """Standard deviation of a length."""

    @classmethod
    def of(cls, points_FJ2: Points, seen_FJ: Seen, noise: float | None = None) -> Lengths:
        """`noise` is the joints' (`tremble`); None measures it."""
        noise = tremble(points_FJ2, seen_FJ) if noise is None else noise
        bones = {}
        for name, bone in BONES.items():
            start, end = np.array(bone.pairs).T
            squared = ((points_FJ2[:, start] - points_FJ2[:, end]) ** 2).sum(axis=-1)
            both = seen_FJ[:, start] & seen_FJ[:, end] & (squared > 0)
            if both.any():
                # Noise lengthens: its square is in the squared length.
                honest = np.sqrt(np.maximum(squared - 4 * noise**2, 0.01 * squared))
                bones[name] = _steady(np.where(both, honest, np.nan))
        smoothed = len(points_FJ2) >= _STEADIED
        return cls(bones, math.sqrt(2) * noise * (0.55 if smoothed else 1.0))

    def rough_unit(self, kinds: tuple[str, ...]) -> float:
        """Pixels: size by all the bones at once, foreshortened or not."""
        return sum(float(np.nanmedian(self.bones[k])) for k in kinds) / sum(BONES[k].length for k in kinds)


def _steady(length: Points) -> Points:
    """Medians over five frames; NaN stays NaN."""
    if len(length) < _STEADIED:
        return length
    half = _STEADIED // 2
    padded = np.concatenate(
        [np.full((half, *length.shape[1:]), np.nan), length, np.full((half, *length.shape[1:]), np.nan)]
    )
    around = np.moveaxis(np.lib.stride_tricks.sliding_window_view(padded, _STEADIED, axis=0), -1, 0)
    # A frame's own value stands in for missing neighbours, so that no window is empty where there is one.
    return np.where(
        np.isfinite(length), np.nanmedian(np.where(np.isfinite(around), around, np.nan_to_num(length)), axis=0), np.nan
    )


@dataclass(frozen=True)
class Measure:
    """A person's size and proportions."""

    unit: float
    """Pixels: how tall an average person of this size stands; the clip's median."""
    bones: Mapping[str, float]
    """Length in that unit, by kind; as long as it was mostly seen."""


def measure(found: Lengths, kinds: tuple[str, ...]) -> Measure:
    """Sizes a person up; `kinds` are those that the unit may be taken from."""
    # What is surely as long: a short bone that noise has stretched must not speak for the whole body.
    doubt = max(found.doubt, _LEAST_DOUBT * found.rough_unit(kinds))
    shares = np.stack(
        [(np.fmax.reduce(found.bones[name], axis=1) - doubt) / BONES[name].length for name in kinds], axis=1
    )
    kinds_F = np.isfinite(shares).sum(axis=1)
    # A frame that shows few bones would judge by others than the rest: it takes its neighbours' unit.
    telling = np.nonzero(kinds_F >= max(1, np.percentile(kinds_F, _TELLING)))[0]
    unit_F = np.interp(np.arange(len(shares)), telling, np.fmax.reduce(shares[telling], axis=1))
    unit_F = np.maximum(unit_F, 0.2 * found.rough_unit(kinds))
    bones = {name: float(np.nanpercentile(length / unit_F[:, None], _UNFOLDED)) for name, length in found.bones.items()}
    return Measure(float(np.median(unit_F[telling])), bones)


def factors(driver: Lengths, model: Lengths) -> dict[str, float] | None:
    """How much longer each kind of bone is in the reference person: pixels to pixels, "all" for what is not measured.

    None where the two have no bone in common.
    """
    common = tuple(name for name in BONES if name in driver.bones and name in model.bones)
    if not common:
        return None
    kinds = next(group for group in (_shared(group, common) for group in _TELL_SIZE) if group)
    # One picture does not tell its noise: the same detector looked at both.
    doubt = driver.doubt * model.rough_unit(kinds) / driver.rough_unit(kinds)
    model = replace(model, doubt=max(model.doubt, doubt / 0.55))
    one, other = measure(driver, kinds), measure(model, kinds)
    general = other.unit / one.unit
    powers, beliefs = {}, {}
    for name in common:
        ratio = np.clip(other.bones[name] / one.bones[name], 1 / _MOST_UNLIKE, _MOST_UNLIKE)
        beliefs[name] = _belief(name, one, other, max(model.doubt / other.unit, _LEAST_DOUBT))
        powers[name] = float(np.log(ratio)) * beliefs[name]
    result = {name: general * math.exp(power) for name, power in powers.items()}
    head = [name for name in _HEAD if name in common]
    power = sum(powers[name] for name in head) / max(1.0, sum(beliefs[name] for name in head))
    return {**result, "head": general * math.exp(power), "all": general}


def _shared(group: tuple[str, ...], common: tuple[str, ...]) -> tuple[str, ...]:
    """A bent arm alone tells no size: it counts beside others only."""
    shared = tuple(name for name in common if name in group)
    return shared if shared != ("arm",) else ()


def _belief(name: str, one: Measure, other: Measure, doubt: float) -> float:
    """0..1: none for a bone that either person shows at an angle, little for one that noise may have made."""
    share = min(one.bones[name], other.bones[name]) / BONES[name].length
    in_plane = float(np.clip((share - _AT_AN_ANGLE) / (_FULL_LENGTH - _AT_AN_ANGLE), 0, 1))
    return in_plane / (1 + (doubt / BONES[name].length / _VARIETY) ** 2)


def retarget(
    driver_FJ2: Points, seen_FJ: Seen, model_J2: Points, model_seen_J: Seen, placed_F: Seen | None = None
) -> Points | None:
    """The driver's 134 points [F, 134, 2] with the reference person's bones, standing where that person does.

    `model_J2` [134, 2] is the reference picture's; `placed_F` [F] says which frames count for the place across (all by
    default). None where the two have no bone in common.
    """
    points_FJ2, seen_FJ = with_pelvis(driver_FJ2, seen_FJ)
    reference_FJ2, reference_seen_FJ = with_pelvis(model_J2[None], model_seen_J[None])
    scale = factors(Lengths.of(points_FJ2, seen_FJ), Lengths.of(reference_FJ2, reference_seen_FJ))
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
