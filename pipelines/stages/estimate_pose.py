"""Finds every person's whole-body pose in every frame of a clip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from dynamictrl.errors import DynamiCtrlError
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.stage import Stage, check_weights, resource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dynamictrl.poses.dwpose import PoseEstimator
    from dynamictrl.poses.pose import PoseSequence

_CLIPS_READ, _FRAMES_READ = 3, 16
"""How many clips are decoded at once ahead of a GPU, and how many frames of each wait."""


@dataclass(frozen=True)
class EstimatePose(Stage):
    """Runs a person detector and a whole-body pose model over every frame; persons are tracked over the clip.

    On a GPU several clips are decoded ahead and batches reach over their ends; on the CPU clips come one by one, and
    give the same bytes on any machine. Refuses a clip that cannot be decoded with the decoder's code, and as
    `pose_misaligned` one that has another number of frames than its row says.
    """

    reads: ClassVar[tuple[str, ...] | None] = ("mp4",)

    model: str = "yzd-v/DWPose"
    """Hub id or local folder with `yolox_l.onnx` and `dw-ll_ucoco_384.onnx`; `mini/dwpose` ships with the project."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where the models run."""
    gpu_share: float = resource(0.25)
    """Share of one GPU that a worker takes, where `device` is cuda."""
    cores: float = resource(4.0)
    """Processor cores that a worker takes to decode and cut pictures, where `device` is cuda."""

    @property
    def weights(self) -> tuple[str, ...]:
        return (self.model,)

    @property
    def num_gpus(self) -> float:
        return self.gpu_share if self.device == "cuda" else 0.0

    @property
    def num_cpus(self) -> float:
        return self.cores if self.device == "cuda" else 1.0

    @cached_property
    def estimator(self) -> PoseEstimator:
        from dynamictrl.poses.dwpose import PoseEstimator

        # One thread: as many workers as cores run, and sums in one order give the same bits on any machine size.
        return PoseEstimator(self.model, provider=self.device, num_threads=1)

    def check(self) -> None:
        check_weights(self.model, ["yolox_l.onnx", "dw-ll_ucoco_384.onnx"])

    def setup(self) -> None:
        _ = self.estimator

    def process(self, clip: Clip) -> Iterable[Clip]:
        yield from self.process_many([clip])

    def process_many(self, clips: Sequence[Clip]) -> Iterable[Clip]:
        from dynamictrl.lookahead import prefetched_in_turn

        problems: dict[str, DynamiCtrlError] = {}
        frames: Iterator[Iterable[NDArray[np.uint8]]] = (_frames(clip, problems) for clip in clips)
        if self.device == "cuda":
            frames = prefetched_in_turn(frames, _CLIPS_READ, _FRAMES_READ)
        for clip, pose in zip(clips, self.estimator.many(frames), strict=True):
            problem = problems.get(clip.key)
            yield clip.reject(problem.code, str(problem)) if problem else self._written(clip, pose)

    def _written(self, clip: Clip, pose: PoseSequence) -> Clip:
        if clip.frames and pose.num_frames != clip.frames:
            said = f"{pose.num_frames} frames were decoded of the {clip.frames} that were cut"
            return clip.reject("pose_misaligned", said)
        storage.write_bytes(clip.file("pose.npz"), pose.to_npz())
        hashes = {f"{name} sha256": sha256 for name, sha256 in self.estimator.weights_sha256.items()}
        return (
            clip.with_file("pose.npz")
            .with_models(pose=self.estimator.model_id, **hashes)
            .with_scores(persons=pose.num_persons)
        )


def _frames(clip: Clip, problems: dict[str, DynamiCtrlError]) -> Iterator[NDArray[np.uint8]]:
    """The clip's frames as they are decoded; what is wrong with them is noted and costs no other clip anything."""
    from dynamictrl.media.video import iter_frames

    try:
        for _, picture in iter_frames(clip.file("mp4")):
            yield picture
    except DynamiCtrlError as problem:
        problems[clip.key] = problem
