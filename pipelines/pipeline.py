"""What a whole pipeline is: its stages, in the order of its fields, and where it reads and writes.

Each recipe in `recipes.py` is a function that returns one; the fields are its command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dynamictrl.errors import ConfigError
from pipelines.files import storage
from pipelines.records.keys import settings_of
from pipelines.stage import Per, Stage
from pipelines.stages.write_shards import WriteShards


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One run, whole. Fields that are stages shape the data set; the others say where and how fast.

    `find` turns what `videos` names into one row per source.
    """

    find: Stage = field(default_factory=Stage)
    videos: tuple[str, ...] = ()
    """Files, folders, globs, s3://, gs:// or https:// prefixes, or .csv, .jsonl or .parquet lists of URIs."""
    out: str = "dataset"
    """Data set to write: a folder, or an s3:// or gs:// prefix. A run that was stopped continues there."""
    work: str = ""
    """Folder for what is not finished, on a disk that all workers share; "" = `.work` in a local data set."""
    dry_run: bool = False
    """Only plan: read and split the sources, write OUT/plan.json, say what the run would cost."""
    local: bool = False
    """Run in this process instead of on Ray; the result is the same."""
    workers: int = 0
    """Processes per step; 0 = as many as the cluster's cores and GPUs allow."""
    metrics_port: int = 0
    """Port on which this machine serves the run's Prometheus metrics; 0 = only the file `metrics.prom` in the work
    folder."""
    time_limit: float = 1800.0
    """Seconds that one source may take before it is quarantined; 0 = none, and no process of its own for decoding."""
    cpu_limit: float = 0.0
    """Seconds of processor time that one source may take before it is quarantined; 0 = no limit of its own."""
    memory_gib: float = 16.0
    """GiB that one source's decoding may hold before it is quarantined; 0 = no limit."""

    def __post_init__(self):
        if isinstance(self.out, Path):
            object.__setattr__(self, "out", str(self.out))
        if min(self.workers, self.time_limit, self.cpu_limit, self.memory_gib) < 0:
            raise ConfigError(
                f"workers is {self.workers} (at least 0), time_limit {self.time_limit} s (at least 0), memory_gib "
                f"{self.memory_gib} (at least 0)"
            )

    @property
    def root(self) -> str:
        """Where the data set lies, whatever folder a worker runs in."""
        return self.out if storage.is_remote(self.out) else str(Path(self.out).expanduser().absolute())

    def named_stages(self) -> dict[str, Stage]:
        """The stages that are at work, by field and in order; `find` is none of them."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "find"}
        return {name: stage for name, stage in found.items() if isinstance(stage, Stage) and stage.active}

    def all_stages(self) -> list[Stage]:
        """The stages that are at work, in order."""
        return list(self.named_stages().values())

    def stages(self, per: Per) -> list[Stage]:
        """The stages that see whole sources, those that see clips, or those that see all clips at once, in order."""
        return [stage for stage in self.all_stages() if stage.per == per]

    @property
    def shard_size(self) -> float:
        """MiB."""
        return next(s.size for s in self.stages("clip") if isinstance(s, WriteShards))

    def settings(self) -> dict[str, Any]:
        """All that shapes the result, by field: what a rerun must agree with."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: settings_of(value) for name, value in found.items() if isinstance(value, Stage)}
