"""Whole-body poses from frames: DWPose's two ONNX models, run in batches, with floats kept.

    estimate = PoseEstimator("yzd-v/DWPose", provider="cuda")
    pose = estimate(frames)                     # uint8 [F, H, W, 3] -> PoseSequence

`yolox_l.onnx` finds persons (images [1, 3, 640, 640] -> [1, 8400, 85]), `dw-ll_ucoco_384.onnx` finds 133 joints of each
([N, 3, 384, 288] -> SimCC [N, 133, 576] and [N, 133, 768]). What is done around the models follows DWPose's published
behaviour, except that a frame without a person gives none, where the original takes the whole image for one.

Shape suffixes: F frames, H W frame size, N crops, J joints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl import weights
from dynamictrl.errors import ConfigError, InputError
from dynamictrl.pose import BODY, VISIBLE, PoseSequence
from dynamictrl.pose_tracking import Sighting, likeness, track

if TYPE_CHECKING:
    import onnxruntime

DETECTOR, POSE = "yolox_l.onnx", "dw-ll_ucoco_384.onnx"

DETECTOR_SIDE = 640
CROP_WIDTH, CROP_HEIGHT = 288, 384
_PERSON = 0
_SCORE_KEPT, _SCORE_SHOWN, _OVERLAP = 0.1, 0.3, 0.45
_PADDING = 1.25
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375], np.float32)
_SPLIT = 2.0
"""SimCC bins per pixel."""
_SAME_PERSON = 0.85
"""Likeness from which two sightings in one frame are the same person seen twice."""

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

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


class PoseEstimator:
    """Finds, measures and tracks all persons of a clip."""

    def __init__(
        self,
        folder_or_name: str | Path = "yzd-v/DWPose",
        *,
        provider: str = "cpu",
        num_threads: int | None = None,
        batch_size: int = 8,
        shortest_track: int = 3,
        longest_gap: int = 8,
        fewest_joints: int = 3,
    ):
        """`folder_or_name` holds both models: a folder, a hub id, or `mini/dwpose`; `provider` is cpu or cuda.

        `num_threads` is per model, None leaves it to onnxruntime. `batch_size` counts crops. `shortest_track` and
        `longest_gap` count frames (see `pose_tracking.track`). A box in which fewer than `fewest_joints` of the body's
        18 joints are seen holds no person: the second model's say on what the first one found. Raises ConfigError for a
        provider that is not there, CheckpointError for weights that are not.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1", param="batch_size")
        check_provider(provider)
        folder = weights.resolve(folder_or_name, (DETECTOR, POSE))
        self.model_id = str(folder_or_name)
        self.weights_sha256 = {name: weights.file_hash(folder / name) for name in (DETECTOR, POSE)}
        """By file name."""
        self.shortest_track, self.longest_gap = shortest_track, longest_gap
        self.fewest_joints = fewest_joints
        self._detector = open_session(folder / DETECTOR, provider, num_threads)
        self._pose = open_session(folder / POSE, provider, num_threads)
        fixed = self._pose.get_inputs()[0].shape[0]
        self.batch_size = fixed if isinstance(fixed, int) else batch_size

    def __call__(self, frames_FHWC: Image) -> PoseSequence:
        """All persons of a clip, tracked; frames uint8 RGB [F, H, W, 3]. Raises InputError for another shape."""
        if frames_FHWC.ndim != 4 or frames_FHWC.shape[-1] != 3 or frames_FHWC.dtype != np.uint8:
            raise InputError(
                f"frames are {frames_FHWC.dtype} of shape {frames_FHWC.shape}; they must be uint8 [frames, height, "
                f"width, 3]",
                code="frames_shape",
                param="frames",
            )
        found: list[list[Sighting]] = [[] for _ in frames_FHWC]
        for frame, sighting in self._measure(self._crops(frames_FHWC)):
            if (sighting.scores[BODY] > VISIBLE).sum() >= self.fewest_joints:
                found[frame].append(sighting)
        height, width = frames_FHWC.shape[1:3]
        return track(
            [distinct(people) for people in found],
            height=height,
            width=width,
            longest_gap=self.longest_gap,
            shortest_track=self.shortest_track,
        )

    def detect(self, frame_HWC: Image) -> tuple[Array, Array]:
        """Boxes of the persons in one frame, best first: [N, 4] as x1, y1, x2, y2 in pixels, and scores [N]."""
        image, ratio = letterbox(frame_HWC)
        inputs = {self._detector.get_inputs()[0].name: image}
        raw = np.asarray(self._detector.run(None, inputs)[0])[0]
        return person_boxes(raw.astype(np.float64), ratio)

    def _crops(self, frames_FHWC: Image) -> Iterator[tuple[int, Array, NDArray[np.float32], Array]]:
        """Frame index, box, model input [3, 384, 288], and the crop's centre and size [2, 2], person by person."""
        for index, frame in enumerate(frames_FHWC):
            for box in self.detect(frame)[0]:
                yield index, box, *crop_person(frame, box)

    def _measure(
        self, crops: Iterable[tuple[int, Array, NDArray[np.float32], Array]]
    ) -> Iterator[tuple[int, Sighting]]:
        """Runs the pose model on full batches of crops, whichever frames they are from."""
        for batch in _batches(crops, self.batch_size):
            images = np.stack([image for _, _, image, _ in batch])
            outputs = self._pose.run(None, {self._pose.get_inputs()[0].name: images})
            simcc_x, simcc_y = (np.asarray(output) for output in outputs)
            points, scores = decode_simcc(simcc_x, simcc_y)
            for (frame, box, _, place), crop_points, crop_scores in zip(batch, points, scores, strict=True):
                # Crop pixels to frame pixels.
                keypoints = (crop_points / (CROP_WIDTH, CROP_HEIGHT) - 0.5) * place[1] + place[0]
                yield frame, Sighting(box, *to_layout(keypoints, crop_scores))


def check_provider(provider: str) -> None:
    """Raises ConfigError where onnxruntime cannot run on the device asked for; nothing falls back in silence."""
    import onnxruntime

    if provider not in _PROVIDERS:
        raise ConfigError(f"provider is {provider!r}; it must be one of {sorted(_PROVIDERS)}", param="provider")
    there = onnxruntime.get_available_providers()
    if _PROVIDERS[provider] not in there:
        raise ConfigError(
            f"provider is {provider!r}, but this onnxruntime offers {there}. Install onnxruntime-gpu on a machine with "
            f"CUDA, or choose provider='cpu'.",
            code="provider_missing",
            param="provider",
        )


def open_session(path: Path, provider: str, num_threads: int | None) -> onnxruntime.InferenceSession:
    """An onnxruntime session that runs on the provider asked for, or ConfigError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    wanted = _PROVIDERS[provider]
    session = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
    if session.get_providers()[0] != wanted:
        raise ConfigError(
            f"{path.name} was to run on {wanted}, but onnxruntime chose {session.get_providers()}; check the CUDA and "
            f"cuDNN libraries, or choose provider='cpu'.",
            code="provider_missing",
            param="provider",
        )
    return session


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def letterbox(frame_HWC: Image) -> tuple[NDArray[np.float32], float]:
    """The frame in the upper left of a grey square: [1, 3, 640, 640] of 0..255, and the scale used."""
    height, width = frame_HWC.shape[:2]
    ratio = min(DETECTOR_SIDE / height, DETECTOR_SIDE / width)
    size = (max(int(width * ratio), 1), max(int(height * ratio), 1))
    square = np.full((DETECTOR_SIDE, DETECTOR_SIDE, 3), 114, np.uint8)
    square[: size[1], : size[0]] = cv2.resize(frame_HWC, size, interpolation=cv2.INTER_LINEAR)
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


def person_boxes(raw: Array, ratio: float) -> tuple[Array, Array]:
    """YOLOX's raw output [8400, 85] as boxes of persons in frame pixels [N, 4] and scores [N], best first."""
    scores = raw[:, 4] * raw[:, 5 + _PERSON]
    chosen = scores > _SCORE_KEPT
    raw, scores = raw[chosen], scores[chosen]
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


def crop_person(frame_HWC: Image, box: Array) -> tuple[NDArray[np.float32], Array]:
    """The pose model's input for one box: [3, 384, 288] normalised, and the crop's centre and size [2, 2]."""
    centre = (box[:2] + box[2:]) / 2
    width, height = np.maximum(box[2:] - box[:2], 1.0) * _PADDING
    aspect = CROP_WIDTH / CROP_HEIGHT
    size = np.array([width, width / aspect] if width > height * aspect else [height * aspect, height])
    scale = CROP_WIDTH / size[0]
    move = np.array([CROP_WIDTH, CROP_HEIGHT]) / 2 - scale * centre
    matrix = np.array([[scale, 0, move[0]], [0, scale, move[1]]])
    crop = cv2.warpAffine(frame_HWC, matrix, (CROP_WIDTH, CROP_HEIGHT), flags=cv2.INTER_LINEAR)
    normal = (crop.astype(np.float32) - _MEAN) / _STD
    return np.ascontiguousarray(normal.transpose(2, 0, 1)), np.stack([centre, size])


def decode_simcc(simcc_x: NDArray[np.float32], simcc_y: NDArray[np.float32]) -> tuple[Array, Array]:
    """Peaks of SimCC [N, 133, 576] and [N, 133, 768] as crop pixels [N, 133, 2] and scores [N, 133]."""
    place = np.stack([simcc_x.argmax(axis=-1), simcc_y.argmax(axis=-1)], axis=-1).astype(np.float64)
    scores = np.minimum(simcc_x.max(axis=-1), simcc_y.max(axis=-1)).astype(np.float64)
    place[scores <= 0] = -1
    return place / _SPLIT, np.clip(scores, 0, None)


def to_layout(points_133: Array, scores_133: Array) -> tuple[Array, Array]:
    """133 COCO-WholeBody joints to the 134 of `dynamictrl.pose`: neck put in, body in OpenPose's order."""
    neck = (points_133[5] + points_133[6]) / 2
    # The neck is as sure as its two shoulders are: DWPose makes it 1 or 0.
    seen = float(scores_133[5] > VISIBLE and scores_133[6] > VISIBLE)
    points = np.insert(points_133, _NECK, neck, axis=0)
    scores = np.insert(scores_133, _NECK, seen)
    points[:18], scores[:18] = points[_OPENPOSE], scores[_OPENPOSE]
    return points, scores


def distinct(people: list[Sighting]) -> list[Sighting]:
    """The persons of one frame, each once; where two sightings are one person the better one stays."""
    kept: list[Sighting] = []
    for person in people:
        if all(likeness(person, other) < _SAME_PERSON for other in kept):
            kept.append(person)
    return kept
