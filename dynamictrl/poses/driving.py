"""From what a user gives to drive a person, to the pose video the model takes: shared by serving, CLI and training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynamictrl.errors import InputError
from dynamictrl.geometry import cover_crop, legal_frames_below
from dynamictrl.media.video import Video
from dynamictrl.poses.pose import PoseSequence
from dynamictrl.poses.pose_alignment import Alignment, align
from dynamictrl.poses.pose_drawing import Style, draw_pose

logger = logging.getLogger(__name__)

EstimatePose = Callable[[NDArray[np.uint8]], PoseSequence]
"""uint8 frames [F, H, W, 3] -> poses; `dynamictrl.poses.dwpose.PoseEstimator` is one."""

_DARK = 40
"""Of 255; below it a pixel of a rendering counts as its black ground (video compression leaves some noise)."""
_MOST_LIT = 0.6
"""A pose rendering is black for the most part; a picture brighter than this in the median frame is none."""


@dataclass(frozen=True)
class Driving:
    """A pose video of the size, count and rate to be rendered."""

    pose_video: NDArray[np.uint8]
    """[F, H, W, 3] RGB, DWPose's drawing on black."""
    fps: float


def from_driving_video(
    video: Video,
    image: Image.Image,
    estimator: EstimatePose,
    *,
    height: int,
    width: int,
    num_frames: int,
    fps: float | None,
    style: Style = "scaled",
    alignment: Alignment | None = None,
) -> Driving:
    """Finds the poses of the persons in `video` and moves them onto the persons of `image`.

    `alignment` says how (`pose_alignment.align`): "limbs" by default, "released" with the released style of drawing.
    The released style begins with the image's own pose, as the published inference does, and takes one frame less of
    the video. `fps` is the rate of the result; the video is resampled to it by its time stamps (None keeps its own).
    Raises InputError: "no_person_in_image", "no_person_in_video", "no_single_person", "too_few_frames".
    """
    index, rate = frames_at(video, num_frames - (style == "released"), fps)
    picture = np.asarray(cover_crop(image.convert("RGB"), height, width))
    reference = estimator(picture[None])
    # A slow video resampled to a high rate repeats frames: each is looked at once.
    unique, inverse = np.unique(index, return_inverse=True)
    poses = estimator(video.frames[unique]).frames(inverse)
    aligned = align(
        poses,
        reference,
        driving_size=(video.height, video.width),
        reference_size=(height, width),
        alignment=alignment or ("released" if style == "released" else "limbs"),
    )
    seen = float(poses.present().any(axis=1).mean())
    if seen < 1:
        logger.warning(
            "a person was found in %.0f %% of the driving frames; the others are driven by nothing", 100 * seen
        )
    drawn = draw_pose(aligned, height, width, style=style)
    if style == "released":
        drawn = np.concatenate([draw_pose(reference.frames(slice(0, 1)), height, width, style=style), drawn])
    return Driving(drawn, rate)


def from_pose_video(video: Video, *, height: int, width: int, num_frames: int, fps: float | None) -> Driving:
    """Takes a ready-made DWPose rendering, resampled in time as in `from_driving_video` and fitted to the size.

    Fitted whole, with black bars where the shapes differ: black is what such a rendering stands on, so the bars are
    invisible, while covering the frame would cut off hands and feet. Renderings of other tools, whose red and blue are
    the other way round, are brought to the order the model knows (`in_released_colours`).
    Raises InputError: "too_few_frames", "not_a_pose_video" (an ordinary video), "no_person_in_video" (all black).
    """
    index, rate = frames_at(video, num_frames, fps)
    frames = video.frames[index]
    _check_rendering(frames)
    return Driving(letterbox(in_released_colours(frames), height, width), rate)


def in_released_colours(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[F, H, W, 3] with red and blue exchanged where the hands say that another tool drew them.

    The released drawing swaps the channels at its end: its hand points are red, everyone else's (OpenPose, ControlNet,
    ComfyUI) are blue. Forty-two dots outvote the few joints of the same hue; without hands nothing is changed.
    """
    darkest, brightest = 70, 170  # limbs are at most 153, so only points vote
    red, green, blue = (frames[..., channel] for channel in range(3))
    red_points = np.count_nonzero((red > brightest) & (green < darkest) & (blue < darkest))
    blue_points = np.count_nonzero((blue > brightest) & (green < darkest) & (red < darkest))
    if blue_points < max(3 * red_points, 10 * len(frames)):
        return frames
    logger.info("the pose video's hands are blue: red and blue are exchanged to the order the model was trained on")
    return np.ascontiguousarray(frames[..., ::-1])


def frames_at(video: Video, num_frames: int, fps: float | None) -> tuple[NDArray[np.int64], float]:
    """Indices of the frames nearest in time to the ticks k / fps, and the rate; InputError where there are too few."""
    rate = video.fps if fps is None else fps
    if not rate > 0:
        raise InputError(f"fps is {rate}; it must be positive", code="bad_fps", param="fps")
    count = len(video.frames)
    times = video.timestamps - (video.timestamps[0] if count else 0.0)
    # The last frame lasts one mean step.
    length = times[-1] * count / (count - 1) if count > 1 else 1 / rate if count else 0.0
    available = int(np.ceil(length * rate - 1e-2))
    if available < num_frames:
        _refuse_too_few(num_frames, available, length, rate)
    ticks = np.arange(num_frames) / rate
    after = np.clip(np.searchsorted(times, ticks - 1e-6), 0, count - 1)
    before = np.maximum(after - 1, 0)
    return np.where(ticks - times[before] <= times[after] - ticks, before, after), rate


def _refuse_too_few(asked: int, available: int, length: float, rate: float) -> None:
    most = legal_frames_below(available)
    way_out = f"ask for at most {most}, or give a longer video" if most else "give a longer video"
    raise InputError(
        f"num_frames is {asked}, but the video's {length:.2f} s hold {available} at {rate:g} fps; {way_out}",
        code="too_few_frames",
        param="num_frames",
    )


def letterbox(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """[F, H, W, 3] -> [F, height, width, 3]: the whole picture, as large as fits, in the middle of black."""
    if frames.shape[1:3] == (height, width):
        return frames
    scale = min(height / frames.shape[1], width / frames.shape[2])
    inner_height, inner_width = max(1, round(frames.shape[1] * scale)), max(1, round(frames.shape[2] * scale))
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    # Averaging keeps thin limbs that bilinear shrinking would skip.
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    fitted = np.zeros((len(frames), height, width, 3), np.uint8)
    for index, picture in enumerate(frames):
        inner = cv2.resize(picture, (inner_width, inner_height), interpolation=how)
        fitted[index, top : top + inner_height, left : left + inner_width] = inner
    return fitted


def _check_rendering(frames: NDArray[np.uint8]) -> None:
    lit = (frames[:, ::4, ::4].max(axis=-1) >= _DARK).mean(axis=(1, 2))
    if np.median(lit) > _MOST_LIT:
        raise InputError(
            f"the pose video is no pose rendering: {np.median(lit):.0%} of its picture is not black (at most "
            f"{_MOST_LIT:.0%}); give an ordinary video of a person as the driving video instead",
            code="not_a_pose_video",
            param="pose_video",
        )
    if (frames.max(axis=(1, 2, 3)) < _DARK).all():
        raise InputError(
            "the pose video is black: no pose is drawn in it", code="no_person_in_video", param="pose_video"
        )
