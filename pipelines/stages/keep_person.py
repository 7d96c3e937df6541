"""Refuses clips in which nobody can be seen well enough to learn a motion from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.clip import Clip
from pipelines.stage import Stage

if TYPE_CHECKING:
    from dynamictrl.pose import PoseSequence


@dataclass(frozen=True)
class KeepPerson(Stage):
    """Refuses clips without a person, with too many, or whose main person is small, hidden or often away.

    The main person is the one whose box is largest on average.
    """

    most_persons: int = 4
    """Tracked persons that are present in at least a tenth of the frames."""
    least_presence: float = 0.8
    """Share of the frames in which the main person must be seen."""
    least_height: float = 0.3
    """Height of the main person's box as a share of the frame's, mean over the frames in which they are seen."""
    least_body: float = 0.5
    """Share of the 18 body points that must be visible on the main person, mean over the same frames."""

    def process(self, clip: Clip) -> Iterable[Clip]:
        from dynamictrl.pose import PoseSequence

        measured = clip.with_scores(**_measure(PoseSequence.from_npz(clip.file("pose.npz").read_bytes())))
        reason, message = self._verdict(measured)
        yield measured.reject(reason, message) if reason else measured

    def _verdict(self, clip: Clip) -> tuple[str, str]:
        s = clip.scores
        if s["presence"] == 0:
            return "no_person", "no person in any frame"
        if s["persons"] > self.most_persons:
            return "too_many_persons", f"{s['persons']:g} persons; at most {self.most_persons}"
        for score, limit, reason, words in (
            ("presence", self.least_presence, "person_often_absent", "of the frames show the main person"),
            ("person_height", self.least_height, "person_too_small", "of the frame's height"),
            ("body_visible", self.least_body, "body_hidden", "of the body points are visible"),
        ):
            if s[score] < limit:
                return reason, f"{s[score]:.0%} {words}; at least {limit:.0%}"
        return "", ""


def _measure(pose: PoseSequence) -> dict[str, float]:
    """Presence, height and visibility of the main person, and how many persons there are."""
    import numpy as np

    from dynamictrl.pose import BODY, FACE, LEFT_HAND, RIGHT_HAND, VISIBLE

    present_FP = pose.present()
    persons = int((present_FP.mean(axis=0) >= 0.1).sum()) if pose.num_frames else 0
    nobody = {"persons": persons, "presence": 0.0, "person_height": 0.0}
    nobody |= {"body_visible": 0.0, "hands_visible": 0.0, "face_visible": 0.0}
    if not present_FP.any():
        return nobody
    sides_FP2 = np.clip(pose.boxes[..., 2:] - pose.boxes[..., :2], 0, 1)
    main = int(np.argmax((sides_FP2.prod(axis=-1) * present_FP).mean(axis=0)))
    seen_F = present_FP[:, main]
    visible_FJ = pose.scores[seen_F, main] > VISIBLE
    hands_FJ = np.concatenate([visible_FJ[:, LEFT_HAND], visible_FJ[:, RIGHT_HAND]], axis=1)
    return {
        "persons": persons,
        "presence": float(seen_F.mean()),
        "person_height": float(sides_FP2[seen_F, main, 1].mean()),
        "body_visible": float(visible_FJ[:, BODY].mean()),
        "hands_visible": float(hands_FJ.mean()),
        "face_visible": float(visible_FJ[:, FACE].mean()),
    }
