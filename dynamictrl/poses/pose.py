"""Whole-body poses: the 134-point layout and what a clip's poses are.

The order is DWPose's after its neck has been inserted (contract section 2): body 18 in OpenPose order, feet 6,
face 68, left hand 21, right hand 21.

Shape suffixes: F frames, P persons, J joints (134).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import DatasetError

NUM_KEYPOINTS = 134

BODY = slice(0, 18)
FEET = slice(18, 24)
FACE = slice(24, 92)
LEFT_HAND = slice(92, 113)
RIGHT_HAND = slice(113, 134)

NOSE, NECK = 0, 1
RIGHT_SHOULDER, RIGHT_ELBOW, RIGHT_WRIST = 2, 3, 4
LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST = 5, 6, 7
RIGHT_HIP, RIGHT_KNEE, RIGHT_ANKLE = 8, 9, 10
LEFT_HIP, LEFT_KNEE, LEFT_ANKLE = 11, 12, 13
RIGHT_EYE, LEFT_EYE, RIGHT_EAR, LEFT_EAR = 14, 15, 16, 17

BODY_NAMES = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye", "left_eye",
    "right_ear", "left_ear",
)  # fmt: skip

VISIBLE = 0.3
"""Score from which a keypoint counts as seen (DWPose's own threshold)."""


@dataclass(frozen=True)
class PoseSequence:
    """Every person's pose in every frame of one clip; a person absent from a frame has scores 0 there."""

    keypoints: NDArray[np.float32]
    """[F, P, 134, 2] as x, y in [0, 1] of the frame."""
    scores: NDArray[np.float32]
    """[F, P, 134], detector confidence; 0 where the person is absent."""
    boxes: NDArray[np.float32]
    """[F, P, 4] as x1, y1, x2, y2 in [0, 1] of the frame."""
    track_ids: NDArray[np.int32]
    """[P], stable over the clip, counted from 1."""

    def __post_init__(self):
        frames, persons = self.scores.shape[:2]
        expected = {
            "keypoints": (frames, persons, NUM_KEYPOINTS, 2),
            "scores": (frames, persons, NUM_KEYPOINTS),
            "boxes": (frames, persons, 4),
            "track_ids": (persons,),
        }
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise DatasetError(f"pose {name} has shape {found}; it must be {shape}", code="pose_shape", param=name)

    @property
    def num_frames(self) -> int:
        return self.scores.shape[0]

    @property
    def num_persons(self) -> int:
        return self.scores.shape[1]

    def frames(self, index: slice | NDArray[np.integer]) -> PoseSequence:
        """The same persons in some of the frames."""
        return PoseSequence(self.keypoints[index], self.scores[index], self.boxes[index], self.track_ids)

    def present(self) -> NDArray[np.bool_]:
        """[F, P], whether a person has any visible keypoint in a frame."""
        return np.any(self.scores > VISIBLE, axis=-1)

    @classmethod
    def empty(cls, frames: int) -> PoseSequence:
        """A clip in which nobody is seen."""
        return cls(
            np.zeros((frames, 0, NUM_KEYPOINTS, 2), np.float32),
            np.zeros((frames, 0, NUM_KEYPOINTS), np.float32),
            np.zeros((frames, 0, 4), np.float32),
            np.zeros((0,), np.int32),
        )

    def to_npz(self) -> bytes:
        """The content of `KEY.pose.npz`."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, keypoints=self.keypoints, scores=self.scores, boxes=self.boxes, track_ids=self.track_ids
        )
        return buffer.getvalue()

    @classmethod
    def from_npz(cls, data: bytes | BinaryIO) -> PoseSequence:
        """Reads `KEY.pose.npz`; raises DatasetError where a member or a shape is not the contract's."""
        with np.load(io.BytesIO(data) if isinstance(data, bytes) else data, allow_pickle=False) as arrays:
            missing = {"keypoints", "scores", "boxes", "track_ids"} - set(arrays.files)
            if missing:
                raise DatasetError(f"pose.npz lacks {sorted(missing)}", code="pose_members")
            return cls(arrays["keypoints"], arrays["scores"], arrays["boxes"], arrays["track_ids"])
