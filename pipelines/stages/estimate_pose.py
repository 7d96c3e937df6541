"""Finds every person's whole-body pose in every frame of a clip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from pipelines import storage
from pipelines.clip import Clip
from pipelines.stage import Stage, check_weights, resource

if TYPE_CHECKING:
    from dynamictrl.dwpose import PoseEstimator


@dataclass(frozen=True)
class EstimatePose(Stage):
    """Runs a person detector and a whole-body pose model over every frame; persons are tracked over the clip."""

    weights: str = "yzd-v/DWPose"
    """Hub id or local folder with `yolox_l.onnx` and `dw-ll_ucoco_384.onnx`; `mini/dwpose` ships with the project."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where the model runs."""
    gpu_share: float = resource(0.25)
    """Share of one GPU that a worker takes, where `device` is cuda."""

    @property
    def num_gpus(self) -> float:
        return self.gpu_share if self.device == "cuda" else 0.0

    @cached_property
    def estimator(self) -> PoseEstimator:
        from dynamictrl.dwpose import PoseEstimator

        # One thread: as many workers as cores run, and sums in one order give the same bits on any machine size.
        return PoseEstimator(self.weights, provider=self.device, num_threads=1)

    def check(self) -> None:
        check_weights(self.weights, ["yolox_l.onnx", "dw-ll_ucoco_384.onnx"])

    def setup(self) -> None:
        _ = self.estimator

    def process(self, clip: Clip) -> Iterable[Clip]:
        from dynamictrl.video import read_video

        pose = self.estimator(read_video(clip.file("mp4")).frames)
        storage.write_bytes(clip.file("pose.npz"), pose.to_npz())
        hashes = {f"{name} sha256": sha256 for name, sha256 in self.estimator.weights_sha256.items()}
        yield (
            clip.with_file("pose.npz")
            .with_models(pose=self.estimator.model_id, **hashes)
            .with_scores(persons=pose.num_persons)
        )
