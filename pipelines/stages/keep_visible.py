"""Refuses clips in which the main person's face or hands are hidden, where that is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.limits import LimitStage, Rule


@dataclass(frozen=True)
class KeepVisible(LimitStage):
    """Refuses clips whose main person shows too little: `face_hidden`, `hands_hidden`.

    Scores of `keep_person`: points whose score says they are seen; a pose model may be sure of a hand behind a back.
    Defaults: a person who shows neither face nor hands at any time teaches only half of what is drawn, so a little of
    each is asked for; people seen from behind for half of the clip pass. Marionettes have `face_visible` 0.65 to 1 and
    `hand_seen` 0.97 to 1.
    """

    least_face: float = 0.2
    """Share of the 68 face points that are seen, mean over the frames; 0 refuses none."""
    least_hands: float = 0.2
    """Share of the frames in which more than half of one hand is seen; 0 refuses none."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (
            Rule("face_visible", "face_hidden", "of the face points are seen", least=self.least_face, share=True),
            Rule("hand_seen", "hands_hidden", "of the frames show a hand", least=self.least_hands, share=True),
        )
