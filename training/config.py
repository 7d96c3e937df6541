"""What a training run is, as frozen dataclasses: the command line, the recipe files and `run.json` are all this.

Nothing heavy is imported here. Values that can never work are refused at construction with a ConfigError.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from dynamictrl.errors import ConfigError
from training.lora import Lora
from training.settings.checkpoints import Checkpoints
from training.settings.clips import Clips
from training.settings.fields import not_negative
from training.settings.model import Model
from training.settings.optimization import Optimization
from training.settings.records import Records
from training.settings.speed import Speed
from training.settings.validation import Validation
from training.settings.watch import Watch
from training.settings.workers import Workers


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every setting of a run but its data and its place; a named run is a function that returns one."""

    seed: int = 42
    """Everything random is drawn from (seed, global sample index)."""
    model: Model = field(default_factory=Model)
    lora: Lora = field(default_factory=Lora)
    clips: Clips = field(default_factory=Clips)
    optimization: Optimization = field(default_factory=Optimization)
    workers: Workers = field(default_factory=Workers)
    speed: Speed = field(default_factory=Speed)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    validation: Validation = field(default_factory=Validation)
    watch: Watch = field(default_factory=Watch)
    records: Records = field(default_factory=Records)

    def __post_init__(self):
        not_negative(self, "seed")
        if self.lora.lora_rank and self.model.pose_encoding == "expert":
            raise ConfigError(
                "an expert pose encoder learns whole, and a LoRA run trains an adapter alone; leave lora_rank 0",
                code="setting_conflict",
                param="lora_rank",
            )
        if self.lora.lora_rank and not self.model.learn_pose and "pose_control" in self.lora.lora_parts:
            raise ConfigError(
                "lora_parts has pose_control and learn_pose is off; leave one of them",
                code="setting_conflict",
                param="lora_parts",
            )
        self.accumulation_of(max(self.workers.num_workers, 1))

    def accumulation_of(self, workers: int) -> int:
        """Micro-batches that each of so many workers passes through before each optimizer step.

        Raises ConfigError where the batch does not divide, or the workers do not share clips evenly.
        """
        share, micro, batch = self.speed.sequence_parallel, self.optimization.micro_batch_size, self.optimization
        if workers % share:
            raise ConfigError(
                f"{workers} workers cannot share each clip by sequence_parallel {share}; choose a multiple of {share}",
                code="setting_conflict",
                param="sequence_parallel",
            )
        per_pass = workers // share * micro
        if batch.batch_size % per_pass:
            raise ConfigError(
                f"batch_size {batch.batch_size} does not divide into {workers} workers x micro_batch_size {micro}"
                f"{f' / sequence_parallel {share}' if share > 1 else ''}; choose a multiple of {per_pass}",
                code="setting_conflict",
                param="batch_size",
            )
        return batch.batch_size // per_pass


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run, whole: given the same Run and data, the same model."""

    name: str
    """The recipe's name."""
    data: Path
    """Data set folder written by `python -m pipelines`."""
    out: Path
    """Run folder; the exported model is `out/model`."""
    recipe: Recipe

    def to_dict(self) -> dict[str, Any]:
        """The run as JSON can hold it."""
        return {
            "name": self.name,
            "data": str(self.data.resolve()),
            "out": str(self.out.resolve()),
            "recipe": json.loads(json.dumps(dataclasses.asdict(self.recipe), default=str)),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Run:
        """The inverse of `to_dict`; raises ConfigError for a field this release does not know."""
        return cls(
            name=values["name"],
            data=Path(values["data"]),
            out=Path(values["out"]),
            recipe=_build(Recipe, values["recipe"]),
        )


def differences(first: Recipe, second: Recipe) -> list[str]:
    """Settings that shape the trained model and differ, as `name: old -> new`; those made by `free` shape nothing."""
    old, new = _shaping(first), _shaping(second)
    return [f"{name}: {old[name]} -> {new[name]}" for name in old if old[name] != new[name]]


def _shaping(settings: Any) -> dict[str, object]:  # noqa: ANN401 - a recipe or one of its parts
    values: dict[str, object] = {}
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        if dataclasses.is_dataclass(value):
            values |= _shaping(value)
        elif not entry.metadata.get("free"):
            values[entry.name] = value
    return values


def _build(kind: type, values: dict[str, Any]) -> Any:  # noqa: ANN401 - one of the dataclasses above
    hints = get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise ConfigError(
            f"{kind.__name__} has no field {sorted(unknown)}; it has {sorted(hints)}", code="setting_unknown"
        )
    filled = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _build(hints[name], value)
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str) and hints[name] == Path | None:
            value = Path(value)
        filled[name] = value
    return kind(**filled)
