"""A window of a sample: the frames that are trained on or measured, in one size, with their drawn poses.

Pipelines (recipe `encode`), training and evaluation all take their pictures from here, so they see the same ones.
Imports no torch: a launcher counts windows before anything heavy starts.

Shape suffixes: F frames, H W size in pixels, P persons, J joints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynamictrl import geometry
from dynamictrl.errors import DatasetError
from dynamictrl.geometry import CENTRE
from dynamictrl.media.video import iter_frames
from dynamictrl.poses.person_crop import Crop, crop_centre
from dynamictrl.poses.pose import PoseSequence
from dynamictrl.poses.pose_drawing import draw_pose
from dynamictrl.samples.shards import Sample

Masked = Literal["none", "background", "clothes"]


@dataclass(frozen=True)
class Window:
    """Which frames of a clip, and the size they are shown in."""

    start: int
    """First frame, counted in the clip's own frames."""
    num_frames: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    fps: float
    """Frames per second of the window; 0 keeps the clip's own."""
    crop: Crop = "persons"
    """What the cut of all its frames is centred on."""


@dataclass(frozen=True)
class WindowPixels:
    """What a window shows."""

    video: NDArray[np.uint8]
    """[F, H, W, 3] RGB."""
    pose: NDArray[np.uint8]
    """[F, H, W, 3], the drawn poses."""
    reference: NDArray[np.uint8]
    """[H, W, 3], the first frame, with a region blacked out where asked."""
    caption: str


def frame_indices(window: Window, clip_fps: float) -> NDArray[np.int64]:
    """The clip's frames nearest in time to the window's."""
    step = clip_fps / (window.fps or clip_fps)
    return window.start + np.rint(np.arange(window.num_frames) * step).astype(np.int64)


def frames_needed(num_frames: int, fps: float, clip_fps: float) -> int:
    """How many of a clip's frames a window reaches over."""
    return int(frame_indices(Window(0, num_frames, 0, 0, fps), clip_fps)[-1]) + 1


def window_starts(clip_frames: int, clip_fps: float, num_frames: int, fps: float, count: int = 0) -> Sequence[int]:
    """Frames that a window may begin at: all of them, or `count` evenly spread; empty where the clip is too short."""
    last = clip_frames - frames_needed(num_frames, fps, clip_fps)
    if count == 0 or count > last:
        return range(last + 1)
    return sorted({int(start) for start in np.rint(np.linspace(0, last, count))})


def read_window(sample: Sample, window: Window, masked: Masked = "none") -> WindowPixels:
    """Decodes a window of a sample, cropped to its size, with poses drawn at that size.

    `masked` names the region of the reference that is blacked out. Raises DatasetError where the clip is shorter than
    its description says or lacks the mask.
    """
    indices = frame_indices(window, float(sample.info["fps"]))
    frames, pose = _pick_frames(sample, indices), _pick_poses(sample, indices)
    size = (frames.shape[1], frames.shape[2], window.height, window.width)
    centre = crop_centre(pose, *size) if window.crop == "persons" else CENTRE
    video = np.asarray(geometry.cover_crop(frames, window.height, window.width, centre=centre))
    return WindowPixels(
        video=video,
        pose=draw_pose(crop_pose(pose, *size, centre), window.height, window.width),
        reference=_masked_reference(sample, video[0], int(indices[0]), masked, centre),
        caption=sample.caption,
    )


def mask_encoded_reference(
    sample: Sample, window: Window, image: NDArray[np.uint8], masked: Masked
) -> NDArray[np.uint8]:
    """A window's first frame [H, W, 3], as it was shown, with a region blacked out: what `read_window` would give."""
    indices = frame_indices(window, float(sample.info["fps"]))
    height, width = sample.person_mask.shape[1:]
    centre = CENTRE
    if window.crop == "persons":
        centre = crop_centre(_pick_poses(sample, indices), height, width, window.height, window.width)
    return _masked_reference(sample, image, int(indices[0]), masked, centre)


def crop_pose(
    pose: PoseSequence,
    height: int,
    width: int,
    target_height: int,
    target_width: int,
    centre: tuple[float, float] = CENTRE,
) -> PoseSequence:
    """The pose as it lies after `geometry.cover_crop` of its height x width frames around `centre`."""
    left, top, right, bottom = geometry.cover_box(height, width, target_height, target_width, centre)
    origin = np.array([left / width, top / height], np.float32)
    size = np.array([(right - left) / width, (bottom - top) / height], np.float32)
    return PoseSequence(
        (pose.keypoints - origin) / size,
        pose.scores,
        (pose.boxes - np.tile(origin, 2)) / np.tile(size, 2),
        pose.track_ids,
    )


def _pick_frames(sample: Sample, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    wanted, found = set(indices.tolist()), {}
    for index, (_, picture) in enumerate(iter_frames(sample.video)):
        if index in wanted:
            found[index] = picture
        if index >= indices[-1]:
            break
    missing = wanted - set(found)
    if missing:
        raise DatasetError(
            f"the clip of sample {sample.key} ends before frame {min(missing)}; its description says "
            f"{sample.info['frames']} frames",
            code="sample_short",
        )
    return np.stack([found[index] for index in indices.tolist()])


def _pick_poses(sample: Sample, indices: NDArray[np.int64]) -> PoseSequence:
    pose = sample.pose
    if pose.num_frames <= indices[-1]:
        raise DatasetError(
            f"sample {sample.key} has {pose.num_frames} frames of pose and needs {indices[-1] + 1}", code="sample_short"
        )
    return pose.frames(indices)


def _masked_reference(
    sample: Sample, image: NDArray[np.uint8], index: int, masked: Masked, centre: tuple[float, float]
) -> NDArray[np.uint8]:
    if masked == "none":
        return image
    from dynamictrl.conditioning import mask_reference

    mask = sample.person_mask if masked == "background" else sample.clothes_mask
    if mask is None:
        raise DatasetError(
            f"sample {sample.key} has no clothes mask; curate with a clothes parser, or train without "
            "masked_reference clothes",
            code="sample_mask",
        )
    height, width = image.shape[:2]
    present = (mask[index : index + 1] > 0).astype(np.uint8)
    nearest = Image.Resampling.NEAREST
    fitted = np.asarray(geometry.cover_crop(present, height, width, resample=nearest, centre=centre))[0]
    return mask_reference(image, fitted > 0, keep="inside" if masked == "background" else "outside")
