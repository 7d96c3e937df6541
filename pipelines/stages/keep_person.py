"""Refuses clips in which nobody, or too many, or only somebody small can be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipelines.clip import Clip
from pipelines.limits import LimitStage, Rule


@dataclass(frozen=True)
class KeepPerson(LimitStage):
    """Refuses clips without a person (`no_person`), with too many (`too_many_persons`), or whose main person is away
    (`person_often_absent`), small (`person_too_small`), one among equals (`person_not_main`) or mostly hidden
    (`body_hidden`).

    The main person is the one whose box covers most of the picture over the clip. All scores about people are written
    here, for the filters after it: see `dynamictrl.quality.people`. It sees what the detector saw: a statue, a poster
    or a printed face may count as a person. Defaults: marionettes have one or two persons, `presence` 1,
    `person_height` 0.37 to 0.91, `dominance` 0.53 to 1; a third of the height leaves a face about 20 pixels at 512.
    """

    reads: ClassVar[tuple[str, ...] | None] = ("pose.npz",)

    most_persons: int = 4
    """Tracked persons that are present in at least a tenth of the frames."""
    least_presence: float = 0.8
    """Share of the frames in which the main person must be seen."""
    least_height: float = 0.3
    """Height of the main person's box as a share of the frame's, mean over the frames in which they are seen."""
    least_dominance: float = 0.3
    """The main person's share of all persons' boxes, mean over the same frames: three equals pass, four do not."""
    least_body: float = 0.5
    """Share of the 18 body points that must be visible on the main person, mean over the same frames."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        absent = "person_often_absent"
        return (
            Rule("persons", "too_many_persons", "persons", most=self.most_persons),
            Rule("presence", "no_person", "of the frames show a person", least=1e-9, share=True),
            Rule("presence", absent, "of the frames show the main person", least=self.least_presence, share=True),
            Rule("person_height", "person_too_small", "of the frame's height", least=self.least_height, share=True),
            Rule("dominance", "person_not_main", "of all persons' area", least=self.least_dominance, share=True),
            Rule("body_visible", "body_hidden", "of the body points are visible", least=self.least_body, share=True),
        )

    def measure(self, clip: Clip) -> Clip:
        from dynamictrl.poses.pose import PoseSequence
        from dynamictrl.quality.people import measure_people

        return clip.with_scores(**measure_people(PoseSequence.from_npz(clip.file("pose.npz").read_bytes())))
