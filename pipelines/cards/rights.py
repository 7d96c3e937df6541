"""Under what terms the kept clips' sources stand: counted, never guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

NOT_STATED = "not stated"

HUB_LICENCES = {
    "apache-2.0", "mit", "openrail", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "pddl",
    "odc-by", "odbl", "cdla-permissive-2.0", "cdla-sharing-1.0", "unlicense",
}  # fmt: skip
"""Identifiers that the Hugging Face Hub knows and a video may carry."""


@dataclass(frozen=True)
class Rights:
    """Clips and seconds by licence and by consent."""

    licences: Mapping[str, tuple[int, float]]
    """(clips, seconds) by the licence as the source list states it."""
    consents: Mapping[str, tuple[int, float]]
    sources: int
    """That clips were kept of."""

    @classmethod
    def of(cls, kept: Iterable[Mapping[str, Any]]) -> Rights:
        """Counts the rows of kept clips."""
        rows = list(kept)
        return cls(_counted(rows, "licence"), _counted(rows, "consent"), len({row["source"] for row in rows}))

    @property
    def hub_licence(self) -> str:
        """The one identifier that covers all clips, as the Hub writes it; "other" where there is none."""
        names = {hub_name(name) for name in self.licences}
        (name,) = names if len(names) == 1 else ("",)
        return name if name in HUB_LICENCES else "other"

    @property
    def is_stated(self) -> bool:
        """Whether every kept clip's source states a licence."""
        return bool(self.licences) and NOT_STATED not in self.licences


def hub_name(licence: str) -> str:
    """A licence as the Hub spells it: `CC BY 4.0` is cc-by-4.0."""
    return "-".join(licence.lower().replace("_", " ").replace("-", " ").split())


def _counted(rows: Iterable[Mapping[str, Any]], name: str) -> dict[str, tuple[int, float]]:
    clips: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    for row in rows:
        value = row.get(name) or NOT_STATED
        clips[value] += 1
        seconds[value] = seconds.get(value, 0.0) + row["end"] - row["start"]
    order = sorted(clips, key=lambda value: (-clips[value], value))
    return {value: (clips[value], round(seconds[value], 3)) for value in order}
