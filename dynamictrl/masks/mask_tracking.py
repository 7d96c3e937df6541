"""Which pixel belongs to which person, all through a clip: how far masks agree with poses, and masks without weights.

`SkeletonMaskTracker` is an outline drawn around the skeleton and snapped to colour edges. It is what its model id says,
"skeleton-seeded", good where clothes and ground differ in colour and honest nowhere else. `sam_tracking` has the
tracker with weights.

Shape suffixes: F frames, P persons, J joints, H W pixels.
"""

from __future__ import annotations

import logging

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import InputError
from dynamictrl.masks.silhouette import nearest_person, silhouettes
from dynamictrl.poses.pose import BODY, VISIBLE, PoseSequence

logger = logging.getLogger(__name__)

DRIFTED = 0.5
"""A mask with less of its person's visible points on it than this has drifted off that person."""
_POINTS_TO_JUDGE = 5
"""Visible points below which a pose is no judge of a mask."""


def check_same_length(frames: NDArray[np.uint8], pose: PoseSequence) -> None:
    """Raises InputError where frames or masks and poses are not of one clip."""
    if len(frames) != pose.num_frames:
        raise InputError(
            f"{len(frames)} frames and poses of {pose.num_frames}; masks need one pose a frame", code="pose_length"
        )


def share_on_masks(persons_FHW: NDArray[np.uint8], pose: PoseSequence) -> NDArray[np.float64]:
    """[F, P]: share of a person's visible body points that lie on the person's own mask; nan where none is visible.

    Low where a tracker has drifted, or where the poses are wrong: either way the two disagree.
    """
    check_same_length(persons_FHW, pose)
    height, width = persons_FHW.shape[1:]
    seen_FPJ = pose.scores[:, :, BODY] > VISIBLE
    xy_FPJ2 = np.floor(pose.keypoints[:, :, BODY] * np.array([width, height])).astype(np.int64)
    x_FPJ, y_FPJ = (np.clip(xy_FPJ2[..., axis], 0, size - 1) for axis, size in ((0, width), (1, height)))
    frame_F11 = np.arange(len(persons_FHW))[:, None, None]
    label_FPJ = persons_FHW[frame_F11, y_FPJ, x_FPJ]
    own_FPJ = label_FPJ == np.arange(1, pose.num_persons + 1)[None, :, None]
    visible_FP = seen_FPJ.sum(axis=-1)
    inside_FP = (own_FPJ & seen_FPJ).sum(axis=-1)
    return np.where(visible_FP > 0, inside_FP / np.maximum(visible_FP, 1), np.nan)


def drifted(persons_FHW: NDArray[np.uint8], pose: PoseSequence, limit: float = DRIFTED) -> NDArray[np.bool_]:
    """[F, P]: where a person is clearly seen and the mask of that person lies elsewhere."""
    enough_FP = (pose.scores[:, :, BODY] > VISIBLE).sum(axis=-1) >= _POINTS_TO_JUDGE
    return enough_FP & (np.nan_to_num(share_on_masks(persons_FHW, pose), nan=1.0) < limit)


class SkeletonMaskTracker:
    """Persons' masks from poses and colours alone, without weights.

    Around each skeleton three outlines are drawn: surely inside, likely, and possible. GrabCut (Rother et al. 2004)
    decides the rest from colours, at a low resolution; its colour models are carried from frame to frame. Pixels near
    several persons go to the one whose limbs are nearest.
    """

    model_id = "skeleton-seeded"

    def __init__(self, *, work_height: int = 256):
        """`work_height`: pixels on which colours are compared; masks come back at full size."""
        self.work_height = work_height

    def __call__(self, frames: NDArray[np.uint8], pose: PoseSequence) -> NDArray[np.uint8]:
        """[F, H, W, 3] RGB and its poses -> [F, H, W], 0 background, i = person i of `pose.track_ids` (from 1)."""
        check_same_length(frames, pose)
        height, width = frames.shape[1:3]
        labels = np.zeros((len(frames), height, width), np.uint8)
        scale = min(1.0, self.work_height / height)
        work_size = (max(8, round(width * scale)), max(8, round(height * scale)))
        models = (np.zeros((1, 65)), np.zeros((1, 65)))
        for index, picture in enumerate(frames):
            small = np.asarray(cv2.resize(picture, work_size, interpolation=cv2.INTER_AREA), np.uint8)
            person_HW = _snap(small, pose.keypoints[index], pose.scores[index], models)
            if person_HW is not None:
                labels[index] = _enlarged(person_HW, width, height)
        return labels


def _snap(
    picture: NDArray[np.uint8],
    keypoints_PJ2: NDArray[np.float32],
    scores_PJ: NDArray[np.float32],
    models: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> NDArray[np.uint8] | None:
    """[H, W] labels of one frame; `models` (background, persons) are refined in place. None where nobody is."""
    height, width = picture.shape[:2]
    outlines = silhouettes(keypoints_PJ2, scores_PJ, height, width)
    if not outlines.likely.any():
        return None
    trimap = np.full((height, width), cv2.GC_BGD, np.uint8)
    trimap[outlines.possible] = cv2.GC_PR_BGD
    trimap[outlines.likely] = cv2.GC_PR_FGD
    trimap[outlines.sure] = cv2.GC_FGD
    rows, columns = _window(outlines.possible)
    part = np.ascontiguousarray(trimap[rows, columns])
    _grab_cut(np.ascontiguousarray(picture[rows, columns]), part, models)
    inside = np.zeros((height, width), bool)
    inside[rows, columns] = (part == cv2.GC_FGD) | (part == cv2.GC_PR_FGD)
    return np.where(inside, nearest_person(keypoints_PJ2, scores_PJ, height, width), 0).astype(np.uint8)


def _window(possible: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The part of the picture worth looking at: around the persons, with ground enough to know its colours."""
    found = []
    for axis, size in ((1, possible.shape[0]), (0, possible.shape[1])):
        places = np.nonzero(possible.any(axis=axis))[0]
        margin = max(4, (places[-1] - places[0]) // 8)
        found.append(slice(max(0, places[0] - margin), min(size, places[-1] + 1 + margin)))
    return found[0], found[1]


def _grab_cut(
    picture: NDArray[np.uint8], trimap: NDArray[np.uint8], models: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> None:
    """Decides the undecided pixels of `trimap` in place; leaves the likely outline where colours cannot be learnt."""
    decided_in, decided_out = np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD)).sum(), (trimap == cv2.GC_BGD).sum()
    if min(decided_in, decided_out) < 16:
        return
    background, persons = models
    learnt = bool(persons.any())
    cv2.setRNGSeed(0)  # the colour models start from k-means: the same clip must give the same masks
    try:
        how = cv2.GC_EVAL if learnt else cv2.GC_INIT_WITH_MASK
        cv2.grabCut(picture, trimap, None, background, persons, 3, how)  # pyright: ignore[reportCallIssue, reportArgumentType]
    except cv2.error:
        logger.warning("colours could not be separated in one frame; its outline is kept as drawn")


def _enlarged(labels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Labels at full size with smooth edges: each person's mask is enlarged as a grey picture and halved."""
    full, best = np.zeros((height, width), np.uint8), np.full((height, width), 127, np.uint8)
    for label in range(1, int(labels.max()) + 1):
        grey = cv2.resize(np.where(labels == label, 255, 0).astype(np.uint8), (width, height))
        nearer = grey > best
        full[nearer], best[nearer] = label, np.asarray(grey)[nearer]
    return full
