"""Who of a driving clip drives whom of a reference image, where there are several of either.

The rules, in this order:
* A person of the image counts if its body is at least a third as large as the largest one's; the others are bystanders.
* The clip's persons (tracks) are taken from the largest and longest seen downwards. One that appears where another had
  vanished, or who is never seen beside somebody who already has a role while no role is free, continues that role:
  people leave and come back, and trackers lose them. Otherwise a new role begins, as long as the image has persons
  left. The rest are left out: there is nobody in the image for them to move.
* Roles are given from left to right: the order in which the clip's persons stand when they are first seen together is
  the order in which the image's persons stand. Crossing later on changes nothing.
* With fewer persons in the clip than in the image, the image's largest are driven; the others keep their pose.

Shape suffixes: F frames, P persons, J joints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import InputError
from dynamictrl.poses.pose import BODY, VISIBLE, PoseSequence

_BYSTANDER = 1 / 3
_SEEN_TWICE = 2
"""Frames in which two tracks of one person may overlap: a tracker now and then sees the same person twice."""
_NEAR = 0.5
"""Of a body's extent: a track that begins as near as this to where another ended continues it."""


@dataclass
class Role:
    """One person of the image and the clip's persons that drive it, one after the other."""

    tracks: list[int] = field(default_factory=list)
    """Indices of persons in the clip; none drives a person that keeps its pose."""
    model: int = -1
    """Index of the person in the image."""


@dataclass(frozen=True)
class _Seen:
    """Where the persons of a clip are, by their bodies."""

    extent_FP: NDArray[np.float64]
    """Diagonal of the visible body in shares of the frame, 0 where it is not seen."""
    middle_FP2: NDArray[np.float64]

    @classmethod
    def of(cls, pose: PoseSequence) -> _Seen:
        seen = pose.scores[..., BODY] > VISIBLE
        xy = np.where(seen[..., None], pose.keypoints[..., BODY, :], np.nan).astype(np.float64)
        with np.errstate(invalid="ignore"):
            highest, lowest = np.fmax.reduce(xy, axis=2), np.fmin.reduce(xy, axis=2)
        extent = np.nan_to_num(np.linalg.norm(highest - lowest, axis=-1))
        # A single joint has no extent and is seen all the same.
        return cls(extent + 1e-6 * seen.any(-1), np.nan_to_num((highest + lowest) / 2))

    def frames(self, person: int) -> NDArray[np.intp]:
        return np.nonzero(self.extent_FP[:, person])[0]


def main_person(pose: PoseSequence) -> int | None:
    """Index of the person who is seen largest and longest; None where nobody's body is seen."""
    weight_P = _Seen.of(pose).extent_FP.sum(axis=0)
    return int(weight_P.argmax()) if weight_P.size and weight_P.max() > 0 else None


def assign_roles(driving: PoseSequence, reference: PoseSequence) -> list[Role]:
    """One role for each person of the image (one frame) that counts, in the image's order.

    Raises InputError: "no_person_in_image", "no_person_in_video".
    """
    if main_person(reference) is None:
        raise InputError(
            "no person was found in the reference image; give one that shows a person, the head and shoulders at least",
            code="no_person_in_image",
            param="image",
        )
    require_someone(driving)
    shown = _Seen.of(reference)
    size_P = shown.extent_FP[0]
    models = [int(person) for person in np.argsort(-size_P) if size_P[person] >= _BYSTANDER * size_P.max()]
    seen = _Seen.of(driving)
    roles = _tracks_to_roles(seen, len(models))
    driven = sorted(models[: len(roles)], key=lambda person: shown.middle_FP2[0, person, 0])
    for role, model in zip(_left_to_right(roles, seen), driven, strict=True):
        role.model = model
    roles += [Role(model=model) for model in models[len(roles) :]]
    return sorted(roles, key=lambda role: role.model)


def require_someone(driving: PoseSequence) -> None:
    """Refuses a clip in which nobody's body is ever seen; InputError "no_person_in_video"."""
    if main_person(driving) is None:
        raise InputError(
            "no person was found in any frame of the driving video; give one that shows a person",
            code="no_person_in_video",
            param="driving_video",
        )


def _tracks_to_roles(seen: _Seen, most: int) -> list[Role]:
    roles: list[Role] = []
    weight_P = seen.extent_FP.sum(axis=0)
    for track in (int(person) for person in np.argsort(-weight_P, kind="stable") if weight_P[person] > 0):
        open_roles = [role for role in roles if not _beside(seen, role, track)]
        distances = [_apart(seen, role, track) for role in open_roles]
        nearest = int(np.argmin(distances)) if distances else -1
        if nearest >= 0 and (distances[nearest] < _NEAR or len(roles) == most):
            open_roles[nearest].tracks.append(track)
        elif len(roles) < most:
            roles.append(Role([track]))
    return roles


def _beside(seen: _Seen, role: Role, track: int) -> bool:
    """Whether the track is seen together with the role's."""
    taken = (seen.extent_FP[:, role.tracks] > 0).any(axis=1)
    return int((taken & (seen.extent_FP[:, track] > 0)).sum()) > _SEEN_TWICE


def _apart(seen: _Seen, role: Role, track: int) -> float:
    """How far a track begins (or ends) from where the role's was last (or is next) seen, in body extents."""
    frames = seen.frames(track)
    distances = []
    for other in role.tracks:
        known = seen.frames(other)
        # Whichever comes first hands over to the other.
        here, there = (frames[0], known[-1]) if frames[0] > known[0] else (frames[-1], known[0])
        away = float(np.linalg.norm(seen.middle_FP2[here, track] - seen.middle_FP2[there, other]))
        distances.append(away / max(float(seen.extent_FP[there, other]), 1e-6))
    return min(distances)


def _left_to_right(roles: list[Role], seen: _Seen) -> list[Role]:
    """As the roles stand in the first frame that shows most of them together; latecomers by where they enter."""
    present_RF = np.array([(seen.extent_FP[:, role.tracks] > 0).any(axis=1) for role in roles])
    together = int(present_RF.sum(axis=0).argmax())

    def across(index: int) -> float:
        own = np.nonzero(present_RF[index])[0]
        frame = together if present_RF[index, together] else int(own[np.abs(own - together).argmin()])
        track = next(t for t in roles[index].tracks if seen.extent_FP[frame, t] > 0)
        return float(seen.middle_FP2[frame, track, 0])

    return [roles[index] for index in sorted(range(len(roles)), key=across)]


def frames_in_order(roles: list[Role], driving: PoseSequence) -> NDArray[np.bool_]:
    """[F]: whether the persons with a role stand from left to right as their counterparts in the image do.

    Places are compared there: people who cross must be brought to the image's places as they stood before. A frame that
    does not show two of them together counts as in order, and so do all where no frame is.
    """
    seen, driven = _Seen.of(driving), [role for role in roles if role.tracks]
    across_RF = np.full((len(driven), driving.num_frames), np.nan)
    for index, role in enumerate(_left_to_right(driven, seen)):
        for track in reversed(role.tracks):
            frames = seen.frames(track)
            across_RF[index, frames] = seen.middle_FP2[frames, track, 0]
    in_order_F = np.ones(driving.num_frames, np.bool_)
    for left_F, right_F in combinations(across_RF, 2):
        in_order_F &= ~(left_F > right_F)
    return in_order_F if in_order_F.any() else ~in_order_F


def driver_of(role: Role, driving: PoseSequence) -> PoseSequence:
    """The persons that drive a role as one [F, 1, ...]; where two are seen at once the more prominent one counts."""
    chosen = driving.scores[:, role.tracks[0]] * 0
    keypoints, boxes = driving.keypoints[:, role.tracks[0]] * 0, driving.boxes[:, role.tracks[0]] * 0
    # Tracks are in order of prominence: later ones fill what is left.
    for track in role.tracks:
        empty_F = ~(chosen > 0).any(axis=1) & (driving.scores[:, track] > 0).any(axis=1)
        keypoints[empty_F], chosen[empty_F] = driving.keypoints[empty_F, track], driving.scores[empty_F, track]
        boxes[empty_F] = driving.boxes[empty_F, track]
    return PoseSequence(keypoints[:, None], chosen[:, None], boxes[:, None], np.array([1], np.int32))
