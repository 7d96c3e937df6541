"""What is done around DWPose's two models: pictures made ready for them, and their answers read.

As in DWPose's published code, bit for bit on the CPU. Shape suffixes: F frames, H W frame size, N crops, J joints.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.poses.pose import VISIBLE
from dynamictrl.poses.pose_tracking import Sighting, likenesses

DETECTOR_SIDE = 640
CROP_WIDTH, CROP_HEIGHT = 288, 384
_PERSON = 0
_SCORE_KEPT, _SCORE_SHOWN, _OVERLAP = 0.1, 0.3, 0.45
_PADDING = 1.25
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
"""Of the pose model's input, by colour, as ImageNet's."""
BOX_CHANNELS = 6
"""Of the detector's 85 numbers a cell, those that persons need: box, objectness, the class person."""
_SPLIT = 2.0
"""SimCC bins per pixel."""
_SAME_PERSON = 0.85
"""Likeness from which two sightings in one frame are the same person seen twice."""

# Where OpenPose's 18 body joints are among the 133 with the neck put in at 17.
_OPENPOSE = np.array([0, 17, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3])
_NECK = 17


def _joints_of_layout() -> NDArray[np.int64]:
    body = [int(np.flatnonzero(joint == _OPENPOSE)[0]) for joint in range(17)]
    return np.array([*body, *range(18, 134)])


JOINTS_OF_LAYOUT = _joints_of_layout()
"""Where the models' 133 joints are in the 134-point layout (the neck is ours)."""

Array = NDArray[np.float64]
Image = NDArray[np.uint8]


def letterbox_bytes(frame_HWC: Image) -> tuple[Image, float]:
    """The frame in the upper left of a grey square [640, 640, 3], and the scale used."""
    height, width = frame_HWC.shape[:2]
    ratio = min(DETECTOR_SIDE / height, DETECTOR_SIDE / width)
    size = (max(int(width * ratio), 1), max(int(height * ratio), 1))
    square = np.full((DETECTOR_SIDE, DETECTOR_SIDE, 3), 114, np.uint8)
    square[: size[1], : size[0]] = cv2.resize(frame_HWC, size, interpolation=cv2.INTER_LINEAR)
    return square, ratio


def letterbox(frame_HWC: Image) -> tuple[NDArray[np.float32], float]:
    """As `letterbox_bytes`, as the detector takes it: [1, 3, 640, 640] of 0..255."""
    square, ratio = letterbox_bytes(frame_HWC)
    return np.ascontiguousarray(square.transpose(2, 0, 1), np.float32)[None], ratio


def _grid() -> tuple[Array, Array]:
    """The 8400 cells of strides 8, 16, 32: their column and row [8400, 2] and stride [8400, 1]."""
    cells, strides = [], []
    for stride in (8, 16, 32):
        count = DETECTOR_SIDE // stride
        row, column = np.mgrid[:count, :count]
        cells.append(np.stack([column, row], axis=-1).reshape(-1, 2))
        strides.append(np.full((count * count, 1), stride))
    return np.concatenate(cells).astype(np.float64), np.concatenate(strides).astype(np.float64)


_CELLS, _STRIDES = _grid()


def person_boxes(raw: NDArray[np.floating], ratio: float) -> tuple[Array, Array]:
    """YOLOX's raw output [8400, 6 or more] as boxes of persons in frame pixels [N, 4] and scores [N], best first."""
    scores = raw[:, 4].astype(np.float64) * raw[:, 5 + _PERSON]
    chosen = scores > _SCORE_KEPT
    raw, scores = raw[chosen, :4].astype(np.float64), scores[chosen]
    centre = (raw[:, :2] + _CELLS[chosen]) * _STRIDES[chosen]
    half = np.exp(raw[:, 2:4]) * _STRIDES[chosen] / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1) / ratio
    # Scores between the two limits still suppress their neighbours, as in the original.
    kept = [index for index in suppress(boxes, scores) if scores[index] > _SCORE_SHOWN]
    return boxes[kept], scores[kept]


def suppress(boxes: Array, scores: Array) -> list[int]:
    """Greedy non-maximum suppression; widths count one pixel more, as YOLOX's published code does."""
    order = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    kept: list[int] = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.prod(np.clip(high - low + 1, 0, None), axis=1)
        order = rest[shared / (areas[best] + areas[rest] - shared) <= _OVERLAP]
    return kept


def crop_bytes(frame_HWC: Image, box: Array) -> tuple[Image, Array]:
    """What the pose model sees of one box: [384, 288, 3], and the crop's centre and size [2, 2] in frame pixels."""
    centre = (box[:2] + box[2:]) / 2
    width, height = np.maximum(box[2:] - box[:2], 1.0) * _PADDING
    aspect = CROP_WIDTH / CROP_HEIGHT
    size = np.array([width, width / aspect] if width > height * aspect else [height * aspect, height])
    scale = CROP_WIDTH / size[0]
    move = np.array([CROP_WIDTH, CROP_HEIGHT]) / 2 - scale * centre
    matrix = np.array([[scale, 0, move[0]], [0, scale, move[1]]])
    crop = cv2.warpAffine(frame_HWC, matrix, (CROP_WIDTH, CROP_HEIGHT), flags=cv2.INTER_LINEAR)
    return np.asarray(crop, np.uint8), np.stack([centre, size])


def crop_person(frame_HWC: Image, box: Array) -> tuple[NDArray[np.float32], Array]:
    """As `crop_bytes`, as the pose model takes it: [3, 384, 288], normalised."""
    crop, place = crop_bytes(frame_HWC, box)
    normal = (crop.astype(np.float32) - MEAN) / STD
    return np.ascontiguousarray(normal.transpose(2, 0, 1)), place


def decode_simcc(simcc_x: NDArray[np.float32], simcc_y: NDArray[np.float32]) -> tuple[Array, Array]:
    """Peaks of SimCC [N, 133, 576] and [N, 133, 768] as crop pixels [N, 133, 2] and scores [N, 133]."""
    places = np.stack([simcc_x.argmax(axis=-1), simcc_y.argmax(axis=-1)], axis=-1)
    return decode_peaks(places, np.minimum(simcc_x.max(axis=-1), simcc_y.max(axis=-1)))


def decode_peaks(places: NDArray[np.int64], peaks: NDArray[np.float32]) -> tuple[Array, Array]:
    """Bins of peaks [N, 133, 2] and the lower of the two heights [N, 133] as `decode_simcc` gives them."""
    points, scores = places.astype(np.float64), peaks.astype(np.float64)
    points[scores <= 0] = -1
    return points / _SPLIT, np.clip(scores, 0, None)


def sighting(box: Array, place: Array, crop_points: Array, scores: Array) -> Sighting:
    """One person of one crop [133, 2] and [133], in frame pixels and the 134-point layout."""
    keypoints = (crop_points / (CROP_WIDTH, CROP_HEIGHT) - 0.5) * place[1] + place[0]
    return Sighting(box, *to_layout(keypoints, scores))


def to_layout(points_133: Array, scores_133: Array) -> tuple[Array, Array]:
    """133 COCO-WholeBody joints to the 134 of `dynamictrl.poses.pose`: neck put in, body in OpenPose's order."""
    neck = (points_133[5] + points_133[6]) / 2
    # The neck is as sure as its two shoulders are: DWPose makes it 1 or 0.
    seen = float(scores_133[5] > VISIBLE and scores_133[6] > VISIBLE)
    points = np.insert(points_133, _NECK, neck, axis=0)
    scores = np.insert(scores_133, _NECK, seen)
    points[:18], scores[:18] = points[_OPENPOSE], scores[_OPENPOSE]
    return points, scores


def distinct(people: list[Sighting]) -> list[Sighting]:
    """The persons of one frame, each once; where two sightings are one person the better one stays."""
    if len(people) < 2:
        return people
    alike = likenesses(people, people) >= _SAME_PERSON
    kept: list[int] = []
    for index in range(len(people)):
        if not alike[index, kept].any():
            kept.append(index)
    return [people[index] for index in kept]
