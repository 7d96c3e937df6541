"""What a run leaves on disk; `checkpoints` writes and reads the checkpoints, `export` the model folder.

```
RUN/
  run.json                     the settings, written first; a rerun must agree with them
  checkpoints/step-00000100/   one folder a checkpoint (`checkpoints.on_disk`)
  model/                       the exported model folder, there only when it is whole
```
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from dynamictrl.errors import ConfigError
from dynamictrl.samples.shards import write_json
from training.checkpoints import on_disk
from training.config import Recipe, Run, differences


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what."""

    root: Path

    @property
    def settings(self) -> Path:
        """The resolved run."""
        return self.root / "run.json"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The exported model folder."""
        return self.root / "model"

    @property
    def metrics(self) -> Path:
        """One JSON object a step, as they are reached."""
        return self.root / "metrics.jsonl"

    @property
    def encodings(self) -> Path:
        """Encoded clips that the workers share; gone when the run is done."""
        return self.root / "encodings"

    @property
    def failure(self) -> Path:
        """Why a worker gave up, where trying again would not help."""
        return self.root / "failure.json"

    def claim(self, run: Run, data_fingerprint: str) -> None:
        """Writes run.json, or raises ConfigError where the folder holds another run or the data has changed."""
        mine = run.to_dict() | {"data_fingerprint": data_fingerprint}
        if self.settings.is_file():
            self._compare(run, data_fingerprint)
        elif self.root.is_dir() and any(not entry.name.startswith(".") for entry in self.root.iterdir()):
            raise ConfigError(
                f"{self.root} is not empty and holds no run; choose another --out", code="out_taken", param="out"
            )
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(self.settings, mine)

    def _compare(self, run: Run, data_fingerprint: str) -> None:
        try:
            values = json.loads(self.settings.read_text())
            theirs, fingerprint = Run.from_dict(values), values["data_fingerprint"]
        except (ValueError, KeyError, TypeError) as problem:
            raise ConfigError(
                f"{self.settings} cannot be read ({problem}); choose another --out, or delete {self.root}",
                code="out_taken",
                param="out",
            ) from problem
        changed = differences(self._with_steps_of(run.recipe, theirs.recipe), run.recipe)
        if fingerprint != data_fingerprint:
            changed.append(f"clips of the data set: {fingerprint} -> {data_fingerprint}")
        if changed:
            raise ConfigError(
                f"{self.root} holds a run with other settings ({'; '.join(changed)}); choose another --out, or use "
                "the settings it was started with",
                code="out_taken",
                param="out",
            )

    def _with_steps_of(self, mine: Recipe, theirs: Recipe) -> Recipe:
        """Their recipe with my number of steps: a run may be made longer where its steps so far stay what they were.

        They do under a constant learning rate, and during the warm-up. Raises ConfigError where they would not.
        """
        new, old = mine.optimization, theirs.optimization
        if new.steps == old.steps:
            return theirs
        found = on_disk.newest(self.checkpoints)
        done = found.step if found else 0
        if done > new.steps:
            raise ConfigError(
                f"{self.root} has done {done} steps already and this run has {new.steps}; give --steps {done} or more",
                code="setting_conflict",
                param="steps",
            )
        if old.schedule != "constant" and done > old.warmup_steps:
            raise ConfigError(
                f"{self.root} has done {done} steps of {old.steps} under a {old.schedule} learning rate, which depends "
                f"on the number of steps: with {new.steps} they would have been other steps. To train its model "
                f"further, start a run from it: --base {self.model} --out ANOTHER (--schedule constant can be made "
                f"longer at any time); to go on with this one, give --steps {old.steps}",
                code="setting_conflict",
                param="steps",
            )
        return replace(theirs, optimization=replace(old, steps=new.steps))
