"""Follows each person's silhouette through a clip, and their clothes where a model for them is named.

| reason | meaning |
|---|---|
| mask_drift | masks and poses disagree: too few of the persons' visible points lie on their own masks |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.stage import Stage, check_weights, resource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dynamictrl.masks.clothes_masks import Segment
    from dynamictrl.masks.mask_tracking import SkeletonMaskTracker
    from dynamictrl.masks.sam_tracking import Sam2MaskTracker
    from dynamictrl.poses.pose import PoseSequence

SKELETON_SEEDED = "skeleton-seeded"


@dataclass(frozen=True)
class TrackMasks(Stage):
    """Labels every pixel with the person it belongs to, prompted by the poses and checked against them.

    Scores: `mask_on_pose` is the share of visible body points that lie on their own person's mask, `mask_on_pose_worst`
    the same of the person with the least, `mask_drifted` the share of persons and frames where the mask lies elsewhere.
    """

    reads: ClassVar[tuple[str, ...] | None] = ("mp4", "pose.npz")
    version: ClassVar[int] = 2
    seconds_per_frame: ClassVar[float] = 0.03

    tracker: str = "facebook/sam2.1-hiera-small"
    """Hub id or local folder of a SAM 2 video model (or EdgeTAM); `skeleton-seeded` needs no weights and is rougher."""
    window: int = 120
    """Frames tracked at once: memory grows with it and not with the clip."""
    state_device: Literal["", "cpu", "cuda"] = field(default="", metadata={"resource": True})
    """Where the tracker remembers earlier frames; empty = where the model runs, cpu saves GPU memory."""
    least_on_pose: float = 0.5
    """Share of visible body points that must lie on their own person's mask, for every person; 0 = any."""
    clothes: str = ""
    """Hub id or local folder of a model of clothes: a parser of people (SegFormer), or SAM 3, whose weights are gated;
    empty = no clothes masks."""
    clothes_labels: tuple[str, ...] = ("Upper-clothes", "Skirt", "Pants", "Dress", "Belt", "Scarf")
    """A parser's labels that count as clothes."""
    clothes_prompt: str = "clothes"
    """What SAM 3 is asked for."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where the models run."""
    gpu_share: float = resource(0.25)
    """Share of one GPU that a worker takes, where `device` is cuda."""

    def __post_init__(self):
        if self.window < 1 or not 0 <= self.least_on_pose <= 1:
            raise ConfigError(
                f"window is {self.window} frames (at least 1), least_on_pose {self.least_on_pose} (from 0 to 1)",
                param="masks",
            )

    @property
    def weights(self) -> tuple[str, ...]:
        tracker = () if self.tracker == SKELETON_SEEDED else (self.tracker,)
        return (*tracker, *([self.clothes] if self.clothes else []))

    @property
    def num_gpus(self) -> float:
        return self.gpu_share if self.device == "cuda" and self.weights else 0.0

    @property
    def memory_gib(self) -> float:
        """Frames of a window at the model's size, and the whole clip with its masks."""
        return 4.0 if self.weights else 0.0

    @cached_property
    def tracking(self) -> Sam2MaskTracker | SkeletonMaskTracker:
        from dynamictrl.masks.mask_tracking import SkeletonMaskTracker

        if self.tracker == SKELETON_SEEDED:
            return SkeletonMaskTracker()
        from dynamictrl.masks.sam_tracking import Sam2MaskTracker

        return Sam2MaskTracker(self.tracker, self.device, window=self.window, state_device=self.state_device)

    @cached_property
    def clothing(self) -> Segment | None:
        """Finds clothes, worn by whomever; None where no model is named."""
        from dynamictrl.masks.clothes_masks import clothes_model

        if not self.clothes:
            return None
        return clothes_model(self.clothes, self.device, labels=self.clothes_labels, prompt=self.clothes_prompt)

    def check(self) -> None:
        for name in self.weights:
            check_weights(name, ["config.json"])

    def setup(self) -> None:
        _ = self.tracking, self.clothing

    def process(self, clip: Clip) -> Iterable[Clip]:
        from dynamictrl.media.video import read_video
        from dynamictrl.poses.pose import PoseSequence
        from dynamictrl.samples.shards import pack_mask

        pose = PoseSequence.from_npz(clip.file("pose.npz").read_bytes())
        frames = read_video(clip.file("mp4")).frames
        persons_FHW = self.tracking(frames, pose)
        scores = {"mask_area": float((persons_FHW > 0).mean()), **_agreement(persons_FHW, pose)}
        found = clip.with_models(mask=self.tracking.model_id, **({"clothes": self.clothes} if self.clothes else {}))
        if scores["mask_on_pose_worst"] < self.least_on_pose:
            yield found.with_scores(**scores).reject(
                "mask_drift",
                f"{scores['mask_on_pose_worst']:.2f} of a person's visible points lie on that person's mask; at least "
                f"{self.least_on_pose} must (least_on_pose)",
            )
            return
        clothes_FHW = self._clothes(frames, persons_FHW)
        if clothes_FHW is not None:
            scores["clothes_area"] = float(clothes_FHW.mean())
        storage.write_bytes(clip.file("mask.npz"), pack_mask(persons_FHW, clothes_FHW))
        yield found.with_file("mask.npz").with_scores(**scores)

    def _clothes(self, frames: NDArray[np.uint8], persons_FHW: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        if self.clothing is None:
            return None
        # Clothes on a rack are part of the background.
        return (self.clothing(frames) & (persons_FHW > 0)).astype(persons_FHW.dtype)


def _agreement(persons_FHW: NDArray[np.uint8], pose: PoseSequence) -> dict[str, float]:
    """How far masks and poses agree: over all persons and frames, for the worst person, and where they do not."""
    import numpy as np

    from dynamictrl.masks.mask_tracking import drifted, share_on_masks

    share_FP = share_on_masks(persons_FHW, pose)
    seen_P = ~np.isnan(share_FP).all(axis=0)
    if not seen_P.any():
        return {"mask_on_pose": 0.0, "mask_on_pose_worst": 0.0, "mask_drifted": 0.0}
    return {
        "mask_on_pose": float(np.nanmean(share_FP)),
        "mask_on_pose_worst": float(np.nanmean(share_FP[:, seen_P], axis=0).min()),
        "mask_drifted": float(drifted(persons_FHW, pose).mean()),
    }
