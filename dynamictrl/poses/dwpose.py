"""Whole-body poses from frames: DWPose's two ONNX models, run in batches, with floats kept.

    estimate = PoseEstimator("yzd-v/DWPose", provider="cuda")
    pose = estimate(frames)                     # uint8 [F, H, W, 3] -> PoseSequence
    poses = estimate.many(clips)                # clip by clip, frames as they come

`yolox_l.onnx` finds persons (images [1, 3, 640, 640] -> [1, 8400, 85]), `dw-ll_ucoco_384.onnx` finds 133 joints of each
([N, 3, 384, 288] -> SimCC [N, 133, 576] and [N, 133, 768]). What is done around the models (`dwpose_pictures`) follows
DWPose's published behaviour, except that a frame without a person gives none, where the original takes the whole image
for one. `dwpose_networks` is how they are run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from dynamictrl import weights
from dynamictrl.errors import ConfigError, InputError
from dynamictrl.lookahead import ahead, grouped
from dynamictrl.poses.dwpose_networks import Acceleration, Crop, Frame, check_provider, open_detector, open_pose_model
from dynamictrl.poses.dwpose_pictures import Array, Image, distinct
from dynamictrl.poses.pose import BODY, VISIBLE, PoseSequence
from dynamictrl.poses.pose_tracking import Sighting, track

DETECTOR, POSE = "yolox_l.onnx", "dw-ll_ucoco_384.onnx"


@dataclass(frozen=True)
class _ClipEnd:
    """Behind a clip's last frame, so that what comes out can be told apart again."""

    frames: int
    height: int
    width: int


T = TypeVar("T")
R = TypeVar("R")


class _Of(NamedTuple, Generic[T]):
    """Something of one frame: its pixels, its persons' boxes, a crop, a sighting."""

    frame: int
    what: T


_Stream = Iterator[_Of[T] | _ClipEnd]


class _Pools(NamedTuple):
    """Threads for the three kinds of work; None = here and now."""

    pictures: Executor | None = None
    detector: Executor | None = None
    pose: Executor | None = None


class PoseEstimator:
    """Finds, measures and tracks all persons of a clip."""

    def __init__(
        self,
        folder_or_name: str | Path = "yzd-v/DWPose",
        *,
        provider: str = "cpu",
        num_threads: int | None = None,
        batch_size: int = 8,
        acceleration: Acceleration | None = None,
        shortest_track: int = 3,
        longest_gap: int = 8,
        fewest_joints: int = 3,
    ):
        """`folder_or_name` holds both models: a folder, a hub id, or `mini/dwpose`; `provider` is cpu or cuda.

        `num_threads` is per model, None leaves it to onnxruntime. `batch_size` counts crops; where there is an
        `acceleration` (as always with cuda) that counts instead. `shortest_track` and `longest_gap` count frames (see
        `pose_tracking.track`). A box in which fewer than `fewest_joints` of the body's 18 joints are seen holds no
        person: the second model's say on what the first one found. Raises ConfigError for a provider that is not there,
        CheckpointError for weights that are not.
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
        how = acceleration or (Acceleration() if provider == "cuda" else None)
        self._acceleration = how
        self._detector = open_detector(folder / DETECTOR, provider, num_threads, how)
        self._pose = open_pose_model(folder / POSE, provider, num_threads, how, batch_size)

    def __call__(self, frames_FHWC: Image) -> PoseSequence:
        """All persons of a clip, tracked; frames uint8 RGB [F, H, W, 3]. Raises InputError for another shape."""
        if frames_FHWC.ndim != 4 or frames_FHWC.shape[-1] != 3 or frames_FHWC.dtype != np.uint8:
            raise _wrong_shape(frames_FHWC, "[frames, height, width, 3]")
        if not len(frames_FHWC):
            return PoseSequence.empty(0)
        (pose,) = self.many([frames_FHWC])
        return pose

    def many(self, clips: Iterable[Iterable[Image]]) -> Iterator[PoseSequence]:
        """One result per clip, in order, as they get ready; a clip is its frames, uint8 RGB [H, W, 3] of one size.

        Frames are taken as they are needed and let go when their persons are cut out: memory does not grow with the
        length of a clip. On a GPU batches reach over the ends of clips, so more clips are begun than are finished.
        """
        found: list[list[Sighting]] = []
        with ExitStack() as stack:
            for item in self._sightings(_marked(clips), self._pools(stack)):
                if isinstance(item, _ClipEnd):
                    yield self._tracked(found, item)
                    found = []
                    continue
                found.extend([] for _ in range(item.frame + 1 - len(found)))
                if (item.what.scores[BODY] > VISIBLE).sum() >= self.fewest_joints:
                    found[item.frame].append(item.what)

    def detect(self, frame_HWC: Image) -> tuple[Array, Array]:
        """Boxes of the persons in one frame, best first: [N, 4] as x1, y1, x2, y2 in pixels, and scores [N]."""
        return self._detector.run([self._detector.prepare(frame_HWC)])[0]

    def _pools(self, stack: ExitStack) -> _Pools:
        if self._acceleration is None:
            return _Pools()
        how = self._acceleration
        return _Pools(*(stack.enter_context(ThreadPoolExecutor(n)) for n in (how.threads, how.at_once, how.at_once)))

    def _sightings(self, frames: _Stream[Image], pools: _Pools) -> _Stream[Sighting]:
        """Persons, frame after frame, and the ends of clips. Work is done ahead; nothing changes its place."""
        detector, pose = self._detector, self._pose
        # On the CPU a clip's batches are its own: its bits then depend on no neighbour.
        apart = self._acceleration is None
        depth = self._acceleration.at_once if self._acceleration else 0
        ready = ahead(_each(detector.prepare), frames, pools.pictures, detector.batch_size)
        groups = grouped(ready, detector.batch_size, rides=_is_end, ends=apart)
        boxed = _flat(ahead(_all(self._boxes), groups, pools.detector, depth))
        crops = ahead(_each(self._cut), _box_by_box(boxed), pools.pictures, pose.batch_size)
        groups = grouped(crops, pose.batch_size, rides=_is_end, ends=apart)
        return _flat(ahead(_all(pose.run), groups, pools.pose, depth))

    def _boxes(self, frames: Sequence[Frame]) -> list[tuple[Image, Array]]:
        """Each frame's pixels, which are still to be cut, and its persons' boxes."""
        found = self._detector.run(frames)
        return [(frame.pixels, boxes) for frame, (boxes, _) in zip(frames, found, strict=True)]

    def _cut(self, boxed: tuple[Image, Array]) -> Crop:
        return self._pose.prepare(*boxed)

    def _tracked(self, found: list[list[Sighting]], end: _ClipEnd) -> PoseSequence:
        found.extend([] for _ in range(end.frames - len(found)))
        return track(
            [distinct(people) for people in found],
            height=end.height,
            width=end.width,
            longest_gap=self.longest_gap,
            shortest_track=self.shortest_track,
        )


def _is_end(item: object) -> bool:
    return isinstance(item, _ClipEnd)


def _each(function: Callable[[T], R]) -> Callable[[_Of[T] | _ClipEnd], _Of[R] | _ClipEnd]:
    """The function of what an item holds; ends of clips pass through."""
    return lambda item: item if isinstance(item, _ClipEnd) else _Of(item.frame, function(item.what))


def _all(function: Callable[[list[T]], list[R]]) -> Callable[[list[_Of[T] | _ClipEnd]], list[_Of[R] | _ClipEnd]]:
    """The function of all that a group holds; ends of clips keep their places."""

    def over(group: list[_Of[T] | _ClipEnd]) -> list[_Of[R] | _ClipEnd]:
        held = [item.what for item in group if not isinstance(item, _ClipEnd)]
        answers = iter(function(held) if held else [])
        return [item if isinstance(item, _ClipEnd) else _Of(item.frame, next(answers)) for item in group]

    return over


def _flat(groups: Iterable[list[T]]) -> Iterator[T]:
    for group in groups:
        yield from group


def _marked(clips: Iterable[Iterable[Image]]) -> _Stream[Image]:
    """All frames of all clips, numbered within each, with an end behind each clip."""
    for clip in clips:
        count, shape = 0, (0, 0, 3)
        for pixels in clip:
            if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
                raise _wrong_shape(pixels, "[height, width, 3]")
            yield _Of(count, pixels)
            count, shape = count + 1, pixels.shape
        yield _ClipEnd(count, shape[0], shape[1])


def _box_by_box(boxed: _Stream[tuple[Image, Array]]) -> _Stream[tuple[Image, Array]]:
    for item in boxed:
        if isinstance(item, _ClipEnd):
            yield item
        else:
            pixels, boxes = item.what
            yield from (_Of(item.frame, (pixels, box)) for box in boxes)


def _wrong_shape(frames: Image, wanted: str) -> InputError:
    return InputError(
        f"frames are {frames.dtype} of shape {frames.shape}; they must be uint8 {wanted}",
        code="frames_shape",
        param="frames",
    )
