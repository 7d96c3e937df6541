"""Which pixel belongs to which person, all through a clip: two trackers that take their prompts from the poses.

`SkeletonMaskTracker` needs no weights: it is an outline drawn around the skeleton and snapped to colour edges. It is
what its model id says, "skeleton-seeded", good where clothes and ground differ in colour and honest nowhere else.
`Sam2MaskTracker` is SAM 2 video through transformers.

Shape suffixes: F frames, P persons, J joints, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import InputError
from dynamictrl.pose import BODY, LEFT_HIP, NECK, NOSE, RIGHT_HIP, VISIBLE, PoseSequence
from dynamictrl.silhouette import nearest_person, silhouettes

if TYPE_CHECKING:
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoSegmentationOutput

logger = logging.getLogger(__name__)

_TRUNK = (NOSE, NECK, RIGHT_HIP, LEFT_HIP)


def _check_same_length(frames: NDArray[np.uint8], pose: PoseSequence) -> None:
    if len(frames) != pose.num_frames:
        raise InputError(
            f"{len(frames)} frames and poses of {pose.num_frames}; masks need one pose a frame", code="pose_length"
        )


def share_on_masks(persons_FHW: NDArray[np.uint8], pose: PoseSequence) -> NDArray[np.float64]:
    """[F, P]: share of a person's visible body points that lie on the person's own mask; nan where none is visible.

    Low where a tracker has drifted, or where the poses are wrong: either way the two disagree.
    """
    _check_same_length(persons_FHW, pose)
    height, width = persons_FHW.shape[1:]
    seen_FPJ = pose.scores[:, :, BODY] > VISIBLE
    xy_FPJ2 = np.floor(pose.keypoints[:, :, BODY] * np.array([width, height])).astype(np.int64)
    x_FPJ, y_FPJ = (np.clip(xy_FPJ2[..., axis], 0, size - 1) for axis, size in ((0, width), (1, height)))
    frame_F11 = np.arange(len(persons_FHW))[:, None, None]
    label_FPJ = persons_FHW[frame_F11, y_FPJ, x_FPJ]
    own_FPJ = label_FPJ == np.arange(1, pose.num_persons + 1)[None, :, None]
    visible_FP = seen_FPJ.sum(axis=-1)
    inside_FP = (own_FPJ & seen_FPJ).sum(axis=-1)
    return np.where(visible_FP > 0, inside_FP / np.maximum(visible_FP, 1), np.nan)


class SkeletonMaskTracker:
    """Persons' masks from poses and colours alone, without weights.

    Around each skeleton three outlines are drawn: surely inside, likely, and possible. GrabCut (Rother et al. 2004)
    decides the rest from colours, at a low resolution; its colour models are carried from frame to frame. Pixels near
    several persons go to the one whose limbs are nearest.
    """

    model_id = "skeleton-seeded"

    def __init__(self, *, work_height: int = 256):
        """`work_height`: pixels on which colours are compared; masks come back at full size."""
        self.work_height = work_height

    def __call__(self, frames: NDArray[np.uint8], pose: PoseSequence) -> NDArray[np.uint8]:
        """[F, H, W, 3] RGB and its poses -> [F, H, W], 0 background, i = person i of `pose.track_ids` (from 1)."""
        _check_same_length(frames, pose)
        height, width = frames.shape[1:3]
        labels = np.zeros((len(frames), height, width), np.uint8)
        scale = min(1.0, self.work_height / height)
        work_size = (max(8, round(width * scale)), max(8, round(height * scale)))
        models = (np.zeros((1, 65)), np.zeros((1, 65)))
        for index, picture in enumerate(frames):
            small = np.asarray(cv2.resize(picture, work_size, interpolation=cv2.INTER_AREA), np.uint8)
            person_HW = _snap(small, pose.keypoints[index], pose.scores[index], models)
            if person_HW is not None:
                labels[index] = _enlarged(person_HW, width, height)
        return labels


def _snap(
    picture: NDArray[np.uint8],
    keypoints_PJ2: NDArray[np.float32],
    scores_PJ: NDArray[np.float32],
    models: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> NDArray[np.uint8] | None:
    """[H, W] labels of one frame; `models` (background, persons) are refined in place. None where nobody is."""
    height, width = picture.shape[:2]
    outlines = silhouettes(keypoints_PJ2, scores_PJ, height, width)
    if not outlines.likely.any():
        return None
    trimap = np.full((height, width), cv2.GC_BGD, np.uint8)
    trimap[outlines.possible] = cv2.GC_PR_BGD
    trimap[outlines.likely] = cv2.GC_PR_FGD
    trimap[outlines.sure] = cv2.GC_FGD
    rows, columns = _window(outlines.possible)
    part = np.ascontiguousarray(trimap[rows, columns])
    _grab_cut(np.ascontiguousarray(picture[rows, columns]), part, models)
    inside = np.zeros((height, width), bool)
    inside[rows, columns] = (part == cv2.GC_FGD) | (part == cv2.GC_PR_FGD)
    return np.where(inside, nearest_person(keypoints_PJ2, scores_PJ, height, width), 0).astype(np.uint8)


def _window(possible: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The part of the picture worth looking at: around the persons, with ground enough to know its colours."""
    found = []
    for axis, size in ((1, possible.shape[0]), (0, possible.shape[1])):
        places = np.nonzero(possible.any(axis=axis))[0]
        margin = max(4, (places[-1] - places[0]) // 8)
        found.append(slice(max(0, places[0] - margin), min(size, places[-1] + 1 + margin)))
    return found[0], found[1]


def _grab_cut(
    picture: NDArray[np.uint8], trimap: NDArray[np.uint8], models: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> None:
    """Decides the undecided pixels of `trimap` in place; leaves the likely outline where colours cannot be learnt."""
    decided_in, decided_out = np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD)).sum(), (trimap == cv2.GC_BGD).sum()
    if min(decided_in, decided_out) < 16:
        return
    background, persons = models
    learnt = bool(persons.any())
    cv2.setRNGSeed(0)  # the colour models start from k-means: the same clip must give the same masks
    try:
        how = cv2.GC_EVAL if learnt else cv2.GC_INIT_WITH_MASK
        cv2.grabCut(picture, trimap, None, background, persons, 3, how)  # pyright: ignore[reportCallIssue, reportArgumentType]
    except cv2.error:
        logger.warning("colours could not be separated in one frame; its outline is kept as drawn")


def _enlarged(labels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Labels at full size with smooth edges: each person's mask is enlarged as a grey picture and halved."""
    full, best = np.zeros((height, width), np.uint8), np.full((height, width), 127, np.uint8)
    for label in range(1, int(labels.max()) + 1):
        grey = cv2.resize(np.where(labels == label, 255, 0).astype(np.uint8), (width, height))
        nearer = grey > best
        full[nearer], best[nearer] = label, np.asarray(grey)[nearer]
    return full


class Sam2MaskTracker:
    """Persons' masks by SAM 2 video (Ravi et al. 2024), prompted with box and joints on each one's clearest frame.

    Runs forward and backward from there, so a person need not be seen in the first frame. Give one shot at a time:
    the model's memory does not survive a cut.
    """

    def __init__(self, folder: str | Path = "facebook/sam2.1-hiera-small", device: str = "cuda"):
        """`folder`: local folder or hub id of a `Sam2VideoModel`; raises CheckpointError where it cannot be had."""
        import torch
        from transformers import Sam2VideoModel, Sam2VideoProcessor

        from dynamictrl.weights import resolve

        path = resolve(folder, ("config.json", "*.safetensors"))
        self.model_id = str(folder)
        self.device = device
        self.dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self.preparation: Any = Sam2VideoProcessor.from_pretrained(path, local_files_only=True)
        model: Any = Sam2VideoModel.from_pretrained(path, local_files_only=True, dtype=self.dtype)
        self.model = model.to(device).eval()

    def __call__(self, frames: NDArray[np.uint8], pose: PoseSequence) -> NDArray[np.uint8]:
        """[F, H, W, 3] RGB and its poses -> [F, H, W], 0 background, i = person i of `pose.track_ids` (from 1)."""
        _check_same_length(frames, pose)
        height, width = frames.shape[1:3]
        labels = np.zeros((len(frames), height, width), np.uint8)
        best = np.zeros((len(frames), height, width), np.float16)
        for frame, persons in _prompt_frames(pose).items():
            for index, logits_PHW in self._track(frames, pose, frame, persons):
                for person, logits_HW in zip(persons, logits_PHW, strict=True):
                    surer = logits_HW > best[index]
                    labels[index][surer], best[index][surer] = person + 1, logits_HW[surer]
        return labels

    def _track(
        self, frames: NDArray[np.uint8], pose: PoseSequence, prompted: int, persons: list[int]
    ) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """Yields (frame, [persons, H, W] logits) for every frame, the prompted one once."""
        session = self.preparation.init_video_session(
            video=frames,
            inference_device=self.device,
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


def _prompt_frames(pose: PoseSequence) -> dict[int, list[int]]:
    """Which persons are prompted on which frame: each on a clear one, as few frames as that allows."""
    clarity_FP = np.where(pose.scores[..., BODY] > VISIBLE, pose.scores[..., BODY], 0).sum(axis=-1)
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
