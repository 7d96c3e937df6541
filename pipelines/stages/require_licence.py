"""Refuses sources that the lists do not say may be used, before a byte of them is fetched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pipelines.clip import Clip
from pipelines.licences import CONFLICT, consents, covers, refused, spdx
from pipelines.stage import Per, Stage


@dataclass(frozen=True)
class RequireLicence(Stage):
    """Lets pass what has a licence, one of those allowed, and the consent of those shown, as far as that is asked for.

    Stands before `Fetch`. What the lists state is taken as they state it; a source of which two rows state different
    rights is refused, whatever is asked for.

    Codes: `rights_conflict`, `no_licence`, `licence_not_allowed`, `no_consent`.
    """

    per: ClassVar[Per] = "source"
    reads: ClassVar[tuple[str, ...] | None] = ("rights",)

    require: bool = False
    """Refuse sources of which no list states a licence."""
    allowed: tuple[str, ...] = ()
    """Licences that may be used, as SPDX writes them (CC-BY-4.0) or in words (CC BY 4.0); one without its version
    covers all versions. Empty allows all. A licence must then be stated."""
    require_consent: bool = False
    """Refuse sources of which no list states that those shown agreed (yes, true, given, signed, ...)."""

    def process(self, clip: Clip) -> Iterable[Clip]:
        if CONFLICT in clip.rights:
            yield refused(clip, "rights_conflict", f"{clip.rights[CONFLICT]}; keep the row that holds")
        elif (self.require or self.allowed) and not clip.licence.strip():
            yield refused(clip, "no_licence", "no list states a licence for it")
        elif self.allowed and not covers(self.allowed, clip.licence):
            yield refused(
                clip,
                "licence_not_allowed",
                f"its licence is {clip.licence!r} ({spdx(clip.licence)}); allowed are {', '.join(self.allowed)}",
            )
        elif self.require_consent and not consents(clip.consent):
            stated = f"consent is {clip.consent!r}" if clip.consent else "no list states consent"
            yield refused(clip, "no_consent", f"{stated}; those shown must have agreed")
        else:
            yield clip
