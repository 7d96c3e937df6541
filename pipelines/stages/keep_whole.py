"""Refuses clips in which the main person is cut off by the picture's border."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.limits import LimitStage, Rule


@dataclass(frozen=True)
class KeepWhole(LimitStage):
    """Refuses clips whose main person leaves the picture: `head_cut_off`, `body_cut_off`.

    Scores of `keep_person`: a joint at the border, or a box that ends there with the joint behind it not seen. It
    cannot tell a leg behind a table from one below the picture when the box reaches the bottom. Defaults: heads must be
    in the picture most of the time; bodies may be cut, because half-length videos teach faces and hands: `most_body` is
    1, and 0.2 keeps whole bodies only (one marionette in eight is a close-up with 1, the others have at most 0.64).
    """

    most_head: float = 0.2
    """Share of the frames with the head at or over the border."""
    most_body: float = 1.0
    """Share of the frames with any limb at or over the border."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (
            Rule("head_cut", "head_cut_off", "of the frames cut the head off", most=self.most_head, share=True),
            Rule("cut_off", "body_cut_off", "of the frames cut a limb off", most=self.most_body, share=True),
        )
