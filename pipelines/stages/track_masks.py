"""Follows each person's silhouette through a clip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from pipelines import storage
from pipelines.clip import Clip
from pipelines.stage import Stage, check_weights, resource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dynamictrl.mask_tracking import Sam2MaskTracker, SkeletonMaskTracker
    from dynamictrl.pose import PoseSequence

SKELETON_SEEDED = "skeleton-seeded"


@dataclass(frozen=True)
class TrackMasks(Stage):
    """Labels every pixel with the person it belongs to, prompted by the poses."""

    tracker: str = "facebook/sam2.1-hiera-small"
    """Hub id or local folder of a SAM 2 video model; `skeleton-seeded` needs no weights and is rougher."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where the model runs."""
    gpu_share: float = resource(0.25)
    """Share of one GPU that a worker takes, where `device` is cuda."""

    @property
    def num_gpus(self) -> float:
        return self.gpu_share if self.device == "cuda" and self.tracker != SKELETON_SEEDED else 0.0

    @cached_property
    def tracking(self) -> Sam2MaskTracker | SkeletonMaskTracker:
        from dynamictrl.mask_tracking import Sam2MaskTracker, SkeletonMaskTracker

        if self.tracker == SKELETON_SEEDED:
            return SkeletonMaskTracker()
        return Sam2MaskTracker(self.tracker, self.device)

    def check(self) -> None:
        if self.tracker != SKELETON_SEEDED:
            check_weights(self.tracker, ["config.json"])

    def setup(self) -> None:
        _ = self.tracking

    def process(self, clip: Clip) -> Iterable[Clip]:
        from dynamictrl.pose import PoseSequence
        from dynamictrl.shards import pack_mask
        from dynamictrl.video import read_video

        pose = PoseSequence.from_npz(clip.file("pose.npz").read_bytes())
        persons_FHW = self.tracking(read_video(clip.file("mp4")).frames, pose)
        storage.write_bytes(clip.file("mask.npz"), pack_mask(persons_FHW))
        scores = {"mask_area": float((persons_FHW > 0).mean()), "mask_on_pose": _agreement(persons_FHW, pose)}
        yield clip.with_file("mask.npz").with_models(mask=self.tracking.model_id).with_scores(**scores)


def _agreement(persons_FHW: NDArray[np.uint8], pose: PoseSequence) -> float:
    """How far masks and poses agree, over all persons and frames: low where the tracker drifted."""
    import numpy as np

    from dynamictrl.mask_tracking import share_on_masks

    share_FP = share_on_masks(persons_FHW, pose)
    return 0.0 if np.isnan(share_FP).all() else float(np.nanmean(share_FP))
