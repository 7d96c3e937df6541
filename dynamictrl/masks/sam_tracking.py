"""Persons' masks by a video model of the SAM 2 kind, prompted by the poses and checked against them.

Shape suffixes: F frames, P persons, H W pixels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import InputError
from dynamictrl.masks.mask_tracking import check_same_length, drifted, share_on_masks
from dynamictrl.poses.pose import BODY, LEFT_HIP, NECK, NOSE, RIGHT_HIP, VISIBLE, PoseSequence

if TYPE_CHECKING:
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoSegmentationOutput

logger = logging.getLogger(__name__)

_TRUNK = (NOSE, NECK, RIGHT_HIP, LEFT_HIP)
_SHORTEST_DRIFT = 3
"""Frames; a shorter one may be the pose's own slip."""
_CLASSES = {"edgetam_video": "EdgeTamVideoModel"}
"""By a folder's model type; all others are SAM 2 video. They share calls and preparation."""


class Sam2MaskTracker:
    """Persons' masks by SAM 2 video (Ravi et al. 2024), prompted with box and joints on each one's clearest frame.

    Runs forward and backward from there, so a person need not be seen in the first frame. Where the pose then says that
    a mask has left its person, that stretch is tracked anew from its own clearest frame, and the better one is kept.
    Give one shot at a time: the model's memory does not survive a cut.

    Long clips are cut into windows, each prompted for itself: memory grows with the window and not with the clip. Poses
    say who is who, so nobody changes number at a border.
    """

    def __init__(
        self,
        folder: str | Path = "facebook/sam2.1-hiera-small",
        device: str = "cuda",
        *,
        window: int = 120,
        state_device: str = "",
    ):
        """`folder`: local folder or hub id of a `Sam2VideoModel` (or `EdgeTamVideoModel`); `window`: frames tracked at
        once; `state_device`: where the model's memory of earlier frames is kept, "" = `device`, "cpu" saves GPU memory.

        Raises CheckpointError where the weights cannot be had, InputError for a window without frames.
        """
        if window < 1:
            raise InputError(f"window is {window} frames; it must be at least 1", code="bad_mask_setting")
        import torch
        import transformers

        from dynamictrl.weights import resolve

        path = resolve(folder, ("config.json", "*.safetensors"))
        self.model_id = str(folder)
        self.device, self.window, self.state_device = device, window, state_device or device
        self.dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self.preparation: Any = transformers.Sam2VideoProcessor.from_pretrained(path, local_files_only=True)
        kind = json.loads((path / "config.json").read_text()).get("model_type", "")
        model_class: Any = getattr(transformers, _CLASSES.get(kind, "Sam2VideoModel"))
        model = model_class.from_pretrained(path, local_files_only=True, dtype=self.dtype)
        self.model: Any = model.to(device).eval()

    def __call__(self, frames: NDArray[np.uint8], pose: PoseSequence) -> NDArray[np.uint8]:
        """[F, H, W, 3] RGB and its poses -> [F, H, W], 0 background, i = person i of `pose.track_ids` (from 1)."""
        check_same_length(frames, pose)
        labels = np.zeros(frames.shape[:3], np.uint8)
        for span in windows(len(frames), self.window):
            labels[span] = self._window(frames[span], pose.frames(span))
        return labels

    def _window(self, frames: NDArray[np.uint8], pose: PoseSequence) -> NDArray[np.uint8]:
        labels = np.zeros(frames.shape[:3], np.uint8)
        best = np.zeros(frames.shape[:3], np.float16)
        for frame, persons in _prompt_frames(pose).items():
            for index, logits_PHW in self._track(frames, pose, frame, persons):
                for person, logits_HW in zip(persons, logits_PHW, strict=True):
                    _claim(labels[index], best[index], person, logits_HW)
        for person, span in stretches(drifted(labels, pose)):
            self._mend(frames[span], pose.frames(span), person, labels[span], best[span])
        return labels

    def _mend(
        self,
        frames: NDArray[np.uint8],
        pose: PoseSequence,
        person: int,
        labels: NDArray[np.uint8],
        best: NDArray[np.float16],
    ) -> None:
        """Tracks one person anew through frames where the mask has drifted; keeps what the pose agrees with more."""
        tried, surest = labels.copy(), best.copy()
        left = tried == person + 1
        tried[left], surest[left] = 0, 0
        frame = int(_clarity(pose)[:, person].argmax())
        for index, logits_PHW in self._track(frames, pose, frame, [person]):
            _claim(tried[index], surest[index], person, logits_PHW[0])
        # All persons count: what one wins back must not be another's.
        before, after = (np.nanmean(share_on_masks(masks, pose)) for masks in (labels, tried))
        logger.debug("person %d drifted for %d frames: %.2f on pose, %.2f anew", person, len(frames), before, after)
        if after > before:
            labels[...], best[...] = tried, surest

    def _track(
        self, frames: NDArray[np.uint8], pose: PoseSequence, prompted: int, persons: list[int]
    ) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """Yields (frame, [persons, H, W] logits) for every frame, the prompted one once."""
        session = self.preparation.init_video_session(
            video=frames,
            inference_device=self.device,
            inference_state_device=self.state_device,
            # Frames wait in ordinary memory: a clip of 1024 x 1024 floats would crowd out the model.
            video_storage_device="cpu",
            dtype=self.dtype,
        )
        height, width = frames.shape[1:3]
        boxes, points = zip(*(prompt_of(pose, prompted, person, height, width) for person in persons), strict=True)
        # All persons in one call: a second call for the same frame would leave the first one's prompt unused.
        self.preparation.add_inputs_to_inference_session(
            session,
            frame_idx=prompted,
            obj_ids=[person + 1 for person in persons],
            input_boxes=[list(boxes)],
            input_points=[list(points)],
            input_labels=[[[1] * len(of_person) for of_person in points]],
        )
        for backward in (False, True):
            for output in self.model.propagate_in_video_iterator(session, start_frame_idx=prompted, reverse=backward):
                if not (backward and output.frame_idx == prompted):
                    yield output.frame_idx, self._logits(output, [p + 1 for p in persons], height, width)

    def _logits(
        self, output: Sam2VideoSegmentationOutput, labels: list[int], height: int, width: int
    ) -> NDArray[np.float16]:
        full = self.preparation.post_process_masks([output.pred_masks], [(height, width)], binarize=False)[0]
        order = [list(output.object_ids or ()).index(label) for label in labels]
        return full[order, 0].float().cpu().numpy().astype(np.float16)


def windows(frames: int, longest: int) -> list[slice]:
    """Consecutive stretches that cover a clip, none longer than `longest` and all nearly equal."""
    count = -(-frames // longest)
    edges = [round(index * frames / count) for index in range(count + 1)] if count else []
    return [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


def stretches(drifted_FP: NDArray[np.bool_]) -> list[tuple[int, slice]]:
    """(person, frames) of each run of drifted frames that is long enough to be believed."""
    found = []
    for person, drifted_F in enumerate(drifted_FP.T):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], drifted_F.astype(np.int8), [0]])))
        runs = edges.reshape(-1, 2).tolist()
        found += [(person, slice(start, stop)) for start, stop in runs if stop - start >= _SHORTEST_DRIFT]
    return found


def _claim(
    labels_HW: NDArray[np.uint8], best_HW: NDArray[np.float16], person: int, logits_HW: NDArray[np.float16]
) -> None:
    """Gives a person the pixels of which the model is surer than of any other's claim: nobody overlaps."""
    surer = logits_HW > best_HW
    labels_HW[surer], best_HW[surer] = person + 1, logits_HW[surer]


def _clarity(pose: PoseSequence) -> NDArray[np.float32]:
    """[F, P], how much of a person's body is seen, and how surely."""
    return np.where(pose.scores[..., BODY] > VISIBLE, pose.scores[..., BODY], 0).sum(axis=-1)


def _prompt_frames(pose: PoseSequence) -> dict[int, list[int]]:
    """Which persons are prompted on which frame: each on a clear one, as few frames as that allows."""
    clarity_FP = _clarity(pose)
    waiting = [person for person in range(pose.num_persons) if clarity_FP[:, person].max() > 0]
    groups: dict[int, list[int]] = {}
    while waiting:
        clear_FP = clarity_FP[:, waiting] >= 0.9 * clarity_FP[:, waiting].max(axis=0)
        # Most persons clear at once; among such frames the one that shows them best.
        frame = int(np.lexsort((-clarity_FP[:, waiting].sum(axis=1), -clear_FP.sum(axis=1)))[0])
        groups[frame] = [person for person, clear in zip(waiting, clear_FP[frame], strict=True) if clear]
        waiting = [person for person in waiting if person not in groups[frame]]
    return groups


def prompt_of(
    pose: PoseSequence, frame: int, person: int, height: int, width: int
) -> tuple[list[float], list[list[float]]]:
    """Box (x1, y1, x2, y2) and four points (x, y) in pixels: trunk joints, which lie on a body and not beside it."""
    size = np.array([width, height], np.float64)
    seen = pose.scores[frame, person, BODY] > VISIBLE
    points_J2 = pose.keypoints[frame, person, BODY] * size
    box = pose.boxes[frame, person].reshape(2, 2) * size
    if not np.all(box[1] > box[0]):
        box = np.stack([points_J2[seen].min(axis=0), points_J2[seen].max(axis=0)])
    trunk = [joint for joint in _TRUNK if seen[joint]] or np.nonzero(seen)[0].tolist()
    trunk = (trunk * len(_TRUNK))[: len(_TRUNK)]
    limits = np.maximum(size - 1, 0)
    return np.clip(box, 0, limits).ravel().tolist(), np.clip(points_J2[trunk], 0, limits).tolist()
