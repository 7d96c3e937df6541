"""How well the detector and the pose model do on marionettes that they have not seen.

AP50 is average precision at IoU 0.5. PCK@0.1 is the share of seen joints found within a tenth of the torso (the longer
of shoulder to opposite hip). Shape suffixes: N crops, J joints (133).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamictrl.mini.whole_body.held_out import Batch, HeldOut
from dynamictrl.poses.dwpose_networks import open_session
from dynamictrl.poses.dwpose_pictures import crop_person, decode_simcc, letterbox, person_boxes
from dynamictrl.poses.pose_tracking import box_overlap

Array = NDArray[np.float64]
Network = Callable[[NDArray[np.float32]], Sequence[NDArray[Any]]]
"""A model's outputs for one input."""

GROUPS = {"body": slice(0, 17), "feet": slice(17, 23), "face": slice(23, 91), "hands": slice(91, 133)}


def onnx_network(path: Path) -> Network:
    """A model file, run on the CPU."""
    session = open_session(path, "cpu", None)
    name = session.get_inputs()[0].name
    return lambda pictures: [np.asarray(output) for output in session.run(None, {name: pictures})]


def detector_quality(network: Network, scenes: HeldOut) -> dict[str, float]:
    """AP50 and AP75, AP50 where two people are, where someone is cut off and where all are small, and false boxes.

    AP50 and AP75 are of the scenes with people and the empty ones; the small ones count for themselves.
    """
    small = _tally(network, scenes.small).summary()
    quality = _tally(network, [*scenes.people, *scenes.empty]).summary()
    return {**quality, "ap50_small": small["ap50"]} if scenes.small else quality


def _tally(network: Network, scenes: Iterable[Batch]) -> Tally:
    tally = Tally()
    for batch in scenes:
        for frame, boxes in zip(batch["frames"], batch["boxes"], strict=True):
            picture, ratio = letterbox(frame)
            seen, scores = person_boxes(network(picture)[0][0].astype(np.float64), ratio)
            there = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 4]
            tally.add(seen, scores, there, frame.shape[:2])
    return tally


class Tally:
    """Boxes found and true, frame by frame."""

    def __init__(self):
        self.found: list[tuple[int, float, Array]] = []
        self.truths: list[Array] = []
        self.cut: list[bool] = []

    def add(self, seen: Array, scores: Array, truth: Array, size: tuple[int, ...]) -> None:
        """One frame of `size` (height, width): boxes found, their scores, and true boxes."""
        self.found += [(len(self.truths), float(s), b) for s, b in zip(scores, seen, strict=True)]
        self.truths.append(truth)
        self.cut.append(bool(len(truth)) and bool((truth[:, 1] <= 0.5).any() or (truth[:, 3] >= size[0] - 0.5).any()))

    def summary(self) -> dict[str, float]:
        """All numbers by name; a kind of frame that did not occur is left out."""
        empty = [len(truth) == 0 for truth in self.truths]
        false = sum(empty[frame] for frame, _, _ in self.found)
        wrong = len({frame for frame, _, _ in self.found if empty[frame]})
        result: dict[str, float] = {"frames": len(self.truths), "empty_frames": sum(empty)}
        result |= {f"ap{round(100 * least)}": self._precision(least, [True] * len(empty)) for least in (0.5, 0.75)}
        for name, chosen in (("two", [len(t) > 1 for t in self.truths]), ("cut_off", self.cut)):
            if any(chosen):
                result[f"ap50_{name}"] = self._precision(0.5, chosen)
        if any(empty):
            result["false_boxes_per_empty_frame"] = false / sum(empty)
            result["empty_frames_with_a_box"] = wrong / sum(empty)
        return result

    def _precision(self, least: float, chosen: Sequence[bool]) -> float:
        truths = [truth if keep else truth[:0] for truth, keep in zip(self.truths, chosen, strict=True)]
        return average_precision([item for item in self.found if chosen[item[0]]], truths, least)


def average_precision(found: list[tuple[int, float, Array]], truths: list[Array], least: float) -> float:
    """Area under the precision-recall curve; `found` holds (frame, score, box)."""
    taken = [np.zeros(len(boxes), bool) for boxes in truths]
    hits = []
    for frame, _, box in sorted(found, key=lambda item: -item[1]):
        overlaps = [box_overlap(box, truth) if not used else 0.0 for truth, used in zip(truths[frame], taken[frame])]  # noqa: B905
        best = int(np.argmax(overlaps)) if overlaps else -1
        hit = best >= 0 and overlaps[best] >= least
        if hit:
            taken[frame][best] = True
        hits.append(hit)
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    recall = right / max(sum(len(boxes) for boxes in truths), 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision)) if hits else 0.0


def pose_quality(network: Network, scenes: Iterable[Batch]) -> dict[str, float]:
    """PCK@0.1 of seen joints by group, with true boxes, and how well scores tell seen from hidden joints."""
    near: dict[str, list[NDArray[np.bool_]]] = {group: [] for group in GROUPS}
    agree = []
    for batch in scenes:
        for index, person in np.argwhere((batch["boxes"][..., 2:] - batch["boxes"][..., :2]).min(axis=-1) > 8):
            crop, place = crop_person(batch["frames"][index], batch["boxes"][index, person].astype(np.float64))
            simcc_x, simcc_y = network(crop[None])
            points, scores = decode_simcc(simcc_x, simcc_y)
            points = (points[0] / (288, 384) - 0.5) * place[1] + place[0] + 0.5
            truth, seen = batch["keypoints"][index, person], batch["scores"][index, person]
            away = np.linalg.norm(points - truth, axis=-1) / torso(truth)
            for group, part in GROUPS.items():
                near[group].append(away[part][seen[part] > 0.9] < 0.1)
            agree.append((scores[0] > 0.3) == (seen > 0.3))
    quality = {f"pck_{group}": float(np.mean(np.concatenate(hits))) for group, hits in near.items()}
    return {**quality, "visibility_agreement": float(np.mean(agree)), "crops": len(agree)}


def torso(points_J2: NDArray[np.floating]) -> float:
    """The longer way from a shoulder to the opposite hip."""
    return max(
        float(np.linalg.norm(points_J2[5] - points_J2[12])), float(np.linalg.norm(points_J2[6] - points_J2[11])), 1.0
    )
