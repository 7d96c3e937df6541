"""A clip on its way through stages, with its record: what is known, under which keys, and who made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.clip import PLACES, Clip
from pipelines.records import keys
from pipelines.records.ledger import Record, Result, change_between, with_change
from pipelines.stage import Stage

CAPTION = "caption"
"""The field that stages may say they read."""


class ClipState:
    """One clip, its record, and the keys of what made its files so far."""

    def __init__(self, clip: Clip, record: Record):
        self.clip, self.record = clip, record
        self.dirty = False
        first = next(iter(clip.lineage.values()), "")
        self._producers = dict.fromkeys((*clip.files, CAPTION), first)
        for result in record.results.values():
            if clip.lineage.get(result.stage) == result.key:
                self._note(result)

    def key(self, stage: Stage, stage_key: str) -> str:
        """What names the stage's result on this clip as it stands."""
        return keys.result_key(stage, stage_key, self._producers, self.clip)

    def recall(self, stage: Stage, key: str) -> bool:
        """Takes a stage's result from the record; False where there is none under this key."""
        known = self.record.find(stage.name, key)
        if known is None:
            return False
        self.clip = with_change(self.clip, known)
        self._note(known)
        return True

    def put(self, stage: Stage, key: str, after: Clip, seconds: float, cpu_seconds: float) -> None:
        """Records what a stage made of the clip."""
        change = change_between(self.clip, after)
        result = Result(stage.name, key, change, seconds=round(seconds, 4), cpu_seconds=round(cpu_seconds, 4))
        self.record.put(result)
        self.clip = with_change(self.clip, result)
        self._note(result)
        self.dirty = True

    def _note(self, result: Result) -> None:
        for name in (*result.change.get("files", ()), *([CAPTION] if CAPTION in result.change else ())):
            self._producers[name] = result.key


def stored(clip: Clip) -> Mapping[str, Any]:
    """A source's row as it is recorded: without what tells only where things lie, and without what is not known."""
    blank = Clip().to_row()
    kept = {name: value for name, value in clip.to_row().items() if value != blank[name]}
    return {name: value for name, value in kept.items() if name not in (*PLACES, "lineage") or name == "path"}
