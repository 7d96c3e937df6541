"""One engine's side of a rollout: what is wanted is in its memory, and each job gets the version that it is due."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from serving.config import Service
from serving.jobs.record import Video
from serving.rendering.model_source import ModelSource, locate
from serving.rollout.lead import Smoke
from serving.rollout.registry import uri_of
from serving.rollout.smoke import fault_of, smoke_job
from serving.rollout.state import Phase, Rollout
from serving.rollout.store import Rollouts

if TYPE_CHECKING:
    from serving.rendering.engine import Engine

logger = logging.getLogger(__name__)

AGAIN_S = 30.0
"""Seconds after which a version that could not be loaded is tried again."""


class Following:
    """The versions of the followed model in one engine. Not for several threads: called between jobs.

    Whatever goes wrong with a version that is not in memory yet, the one that is goes on rendering.
    """

    def __init__(self, rollouts: Rollouts, service: Service, engine: Engine, warm: Callable[[str], None]):
        """`engine` came up with the stable version; `warm` renders what a model, by its name in the
        engine, has to have rendered once."""
        self.engine, self._warm = engine, warm
        self._rollouts, self._service = rollouts, service
        self._names = {engine.model.version: engine.model.name}  # version -> the engine's name for it
        self._not_before: dict[str, float] = {}
        rollouts.prove(engine.model.version)

    def shown(self) -> ModelSource:
        """What the engine serves by default, under the name that clients know."""
        return replace(self.engine.model, name=self._rollouts.model)

    def others(self) -> list[ModelSource]:
        """Models of other names that are served beside it."""
        residents, mine = self.engine.residents, set(self._names.values())
        return [residents.source(name) for name in residents.names if name not in mine]

    def name_for(self, video: Video) -> str:
        """The engine's name of the model that a job is due; loads its version where need be."""
        if video.model != self._rollouts.model:
            return video.model
        state = self._rollouts.get()
        if state is not None:
            pinned = video.target_version if video.target_version in state.wanted else None
            for version in filter(None, (pinned, state.stable)):
                if self._have(version):
                    return self._names[version]
        return self.engine.model.name

    def catch_up(self) -> None:
        """Loads what is wanted and forgets what is not."""
        state = self._rollouts.get()
        if state is None:
            return
        if state.phase is Phase.CANARY and state.candidate is not None:
            self._have(state.candidate)
        if self._have(state.stable):
            self._serve_by_default(state)

    def try_out(self, version: str) -> Smoke:
        """Loads a version and renders a smoke clip with it; a version that fails is out of the memory again."""
        started = time.monotonic()
        try:
            self._load(version)
            fault = self._smoke_clip(version)
        except Exception as problem:
            logger.exception("the version %s cannot be used", version)
            fault = f"it cannot be used ({type(problem).__name__}: {problem})"
        if fault is not None:
            self._forget(version)
            return Smoke(False, fault)
        return Smoke(True, f"its smoke clip was fine, {time.monotonic() - started:.1f} s with loading")

    def _smoke_clip(self, version: str) -> str | None:
        with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
            job = replace(smoke_job(Path(folder), self._service.defaults), model=self._names[version])
            return fault_of(self.engine.animate(job).frames, job.settings)

    def _serve_by_default(self, state: Rollout) -> None:
        name = self._names[state.stable]
        if self.engine.residents.default != name:
            logger.info("%s serves from now on", state.stable)
            self.engine.residents.default = name
        for version in [version for version in self._names if version not in state.wanted]:
            self._forget(version)

    def _have(self, version: str) -> bool:
        if version in self._names:
            return True
        if time.monotonic() < self._not_before.get(version, 0.0):
            return False
        try:
            self._load(version)
        except Exception:
            self._not_before[version] = time.monotonic() + AGAIN_S
            logger.exception("the version %s could not be loaded; tried again in %.0f s", version, AGAIN_S)
            return False
        return True

    def _load(self, version: str) -> None:
        if version in self._names:
            return
        source: ModelSource = replace(locate(uri_of(version), self._service.transformer), name=version)
        self.engine.add_model(source)
        self._names[version] = version
        self._warm(version)

    def _forget(self, version: str) -> None:
        name = self._names.get(version)
        if name is not None and name != self.engine.residents.default:
            self.engine.remove_model(name)
            del self._names[version]
            logger.info("%s is out of the memory", version)
