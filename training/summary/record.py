"""What a run folder says about the run, read without loading a model; what is missing is left out."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamictrl.errors import ConfigError, DynamiCtrlError
from training.callbacks.metrics_file import read_json_lines, read_lines
from training.config import Run
from training.validating.validation_results import Result, results

if TYPE_CHECKING:
    from training.planning.plan import Plan

WARM_UP = 3
"""First steps of each session that no speed is taken from: they compile and start readers."""
SILENT_SECONDS = 120.0
"""A run that said nothing for so long, and for ten steps, has stopped."""


@dataclass(frozen=True)
class Session:
    """From a start to its end or to the next start."""

    started: float
    """Seconds since 1970."""
    ended: float
    first: int
    """Steps done at its start."""
    last: int
    """Steps done when it was last heard of."""
    reached: int
    """Steps that the session before had done; those above `first` were taken again."""
    workers: int

    @property
    def repeated(self) -> int:
        """Steps that were lost and taken again."""
        return max(0, self.reached - self.first)


@dataclass(frozen=True)
class RunRecord:
    """A run folder's content."""

    folder: Path
    name: str
    settings: Mapping[str, Any]
    """`run.json`."""
    steps: Sequence[Mapping[str, float]]
    """`metrics.jsonl`."""
    events: Sequence[Mapping[str, Any]]
    """`sessions.jsonl`."""
    told: Sequence[Mapping[str, Any]]
    """`skipped_steps.jsonl`: steps left out, and spikes."""

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Raises ConfigError where the folder is no run's."""
        found = _json(folder / "run.json")
        if not found:
            raise ConfigError(
                f"{folder} is not a run folder (it has no run.json); give what a run's --out was", param="run"
            )
        return cls(
            folder=folder,
            name=str(found["name"]),
            settings=found,
            steps=read_lines(folder / "metrics.jsonl"),
            events=read_json_lines(folder / "sessions.jsonl"),
            told=read_json_lines(folder / "skipped_steps.jsonl"),
        )

    def values(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of a metric wherever it was recorded, NaN included."""
        return [(int(line["step"]), line[metric]) for line in self.steps if metric in line]

    def typical(self, metric: str) -> float | None:
        """The median over all steps but the first of each session."""
        starts = {session.first for session in self.sessions} or {0}
        cold = {start + number for start in starts for number in range(1, WARM_UP + 1)}
        every = [(step, value) for step, value in self.values(metric) if math.isfinite(value)]
        warm = [value for step, value in every if step not in cold] or [value for _, value in every]
        return statistics.median(warm) if warm else None

    def last(self, metric: str) -> float | None:
        """The newest value."""
        found = self.values(metric)
        return found[-1][1] if found else None

    @property
    def metric_names(self) -> list[str]:
        """In the order in which they first came."""
        return list(dict.fromkeys(name for line in self.steps for name in line))

    @property
    def wanted(self) -> int:
        """Steps of the whole run."""
        return int(self.settings["recipe"]["optimization"]["steps"])

    @property
    def done(self) -> int:
        """The last step on record."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @cached_property
    def sessions(self) -> list[Session]:
        """In order."""
        starts = [index for index, event in enumerate(self.events) if event["event"] == "start"]
        found = []
        for index, following in zip(starts, [*starts[1:], len(self.events)][: len(starts)], strict=True):
            start, end = self.events[index], self.events[following - 1]
            newest = self.steps[-1] if following == len(self.events) and self.steps else end
            later = max(end, newest, key=lambda line: line["time"])
            last = int(self.events[following]["reached"]) if following < len(self.events) else int(later["step"])
            ended = float(later["time"])
            found.append(
                Session(start["time"], ended, start["step"], last, start.get("reached", 0), start.get("workers", 1))
            )
        return found

    @property
    def restarts(self) -> list[int]:
        """Steps that later sessions went on from."""
        return [session.first for session in self.sessions[1:]]

    @property
    def checkpoints(self) -> list[int]:
        """Steps whose state was saved, also those that were dropped since."""
        return [int(event["step"]) for event in self.events if event["event"] == "checkpoint"]

    @property
    def failure(self) -> str:
        """Why the run gave up, where it left word."""
        return str(_json(self.folder / "failure.json").get("message", ""))

    @property
    def state(self) -> str:
        """`finished`, `failed`, `running` or `stopped`."""
        if (self.folder / "model" / "training.json").is_file() and self.done >= self.wanted:
            return "finished"
        if self.failure:
            return "failed"
        heard = max((float(line["time"]) for line in (*self.steps[-1:], *self.events[-1:])), default=0.0)
        ended = bool(self.events) and self.events[-1]["event"] == "end"
        patience = SILENT_SECONDS + 10 * (self.typical("step_seconds") or 0.0)
        return "running" if not ended and time.time() - heard < patience else "stopped"

    @property
    def validations(self) -> list[Result]:
        """In order of their steps."""
        return results(self.folder)

    @property
    def dataset(self) -> Mapping[str, Any]:
        """The data set's own description."""
        return _json(Path(self.settings["data"]) / "dataset.json")

    @property
    def environment(self) -> Mapping[str, Any]:
        """Machine, packages and code that trained."""
        return _json(self.folder / "environment.json")

    def plan(self) -> Plan | None:
        """What was to be expected; None where the base is not at hand or of a shape that no plan knows."""
        from training.planning.plan import plan

        try:
            return plan(Run.from_dict({k: self.settings[k] for k in ("name", "data", "out", "recipe")}).recipe)
        except DynamiCtrlError:
            return None


def _json(path: Path) -> dict[str, Any]:
    """A file's object; empty where it is missing or no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
