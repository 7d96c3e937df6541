"""How well the mini detector and pose model do on marionettes that they have not seen.

AP50 is average precision at IoU 0.5. PCK@0.1 is the share of seen joints found within a tenth of the torso (the longer
of shoulder to opposite hip). Shape suffixes: N crops, J joints (133).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynamictrl.dwpose import crop_person, decode_simcc, letterbox, open_session, person_boxes
from dynamictrl.mini.pose_stream import render_batch
from dynamictrl.pose_tracking import box_overlap

Array = NDArray[np.float64]

GROUPS = {"body": slice(0, 17), "feet": slice(17, 23), "face": slice(23, 91), "hands": slice(91, 133)}


def detector_quality(path: Path, seed: int, scenes: int) -> dict[str, float]:
    """AP50 and AP75 on held-out scenes, and boxes per frame where nobody is."""
    session = open_session(path, "cpu", None)
    name = session.get_inputs()[0].name
    found: list[tuple[int, float, Array]] = []
    truths: list[Array] = []
    nobody = false_boxes = 0
    for scene in range(scenes):
        batch = render_batch(np.random.default_rng([seed, scene]), 1, empty_share=0.15)
        for frame, boxes in zip(batch["frames"], batch["boxes"], strict=True):
            picture, ratio = letterbox(frame)
            raw = np.asarray(session.run(None, {name: picture})[0])[0].astype(np.float64)
            there = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 4]
            seen, scores = person_boxes(raw, ratio)
            found += [(len(truths), float(s), b) for s, b in zip(scores, seen, strict=True)]
            nobody, false_boxes = nobody + (len(there) == 0), false_boxes + len(seen) * (len(there) == 0)
            truths.append(there)
    return {
        "ap50": average_precision(found, truths, 0.5),
        "ap75": average_precision(found, truths, 0.75),
        "frames": len(truths),
        "false_boxes_per_empty_frame": false_boxes / max(nobody, 1),
    }


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


def pose_quality(path: Path, seed: int, scenes: int) -> dict[str, float]:
    """PCK@0.1 of seen joints by group, with true boxes, and how well scores tell seen from hidden joints."""
    session = open_session(path, "cpu", None)
    name = session.get_inputs()[0].name
    near: dict[str, list[NDArray[np.bool_]]] = {group: [] for group in GROUPS}
    agree = []
    for scene in range(scenes):
        batch = render_batch(np.random.default_rng([seed, scene]), 1)
        for index, person in np.argwhere((batch["boxes"][..., 2:] - batch["boxes"][..., :2]).min(axis=-1) > 8):
            crop, place = crop_person(batch["frames"][index], batch["boxes"][index, person].astype(np.float64))
            simcc_x, simcc_y = session.run(None, {name: crop[None]})
            points, scores = decode_simcc(np.asarray(simcc_x), np.asarray(simcc_y))
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
