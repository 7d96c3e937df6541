"""What watches a run without touching its loop: one file each, called on the first worker only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class Callback:
    """Hears what happens in a run; a callback overrides what it cares for."""

    def on_start(self, step: int) -> None:
        """Before the first step of this session; `step` are done already."""

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """After an optimizer step, the `step`-th of the run counted from 1."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """When a checkpoint is whole."""

    def on_export(self, step: int, model: Path) -> None:
        """When the model folder is whole."""

    def on_artifact(self, path: Path) -> None:
        """When a file is whole that belongs to the run's record, such as a trace."""

    def on_close(self) -> None:
        """At the end of this session, also after a failure."""
