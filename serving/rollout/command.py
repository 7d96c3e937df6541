"""`python -m serving rollout status | promote | rollback`: what people decide while services run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dynamictrl.errors import ConfigError
from serving.tenants.commands import Store

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from serving.rollout.state import Rollout
    from serving.rollout.store import Rollouts


@dataclass(frozen=True, kw_only=True)
class _Rollout(Store):
    model: str = ""
    """Name of the registered model; may be left out where the store knows only one."""

    def found(self, engine: Engine) -> tuple[Rollouts, Rollout]:
        """The rollout that is meant; ConfigError where that is not clear."""
        from serving.rollout.store import Rollouts, models

        names = models(engine)
        name = self.model or (names[0] if len(names) == 1 else "")
        if name not in names:
            known = f"it knows {', '.join(names)}" if names else "no service has followed an alias from it yet"
            raise ConfigError(
                f"the job store has no rollout of {name or 'a model that you name with --model'!r}; {known}",
                code="no_rollout",
                param="model",
            )
        rollouts = Rollouts(engine, name)
        state = rollouts.get()
        assert state is not None
        return rollouts, state

    def go(self, engine: Engine, rollouts: Rollouts, old: Rollout, new: Rollout, action: str) -> Iterator[str]:
        if not rollouts.step(old, new, action):
            raise ConfigError("the rollout has gone on meanwhile; look at its status again", code="rollout_moved")
        self.record(engine, f"rollout.{action}.by_hand", tenant="operator", target=new.stable)
        yield from self.shown(rollouts, new)

    def shown(self, rollouts: Rollouts, state: Rollout) -> Iterator[str]:
        candidate, others = rollouts.tallies(state)
        row: dict[str, Any] = asdict(state)
        if state.candidate:
            row |= {
                "candidate_completed": candidate.completed,
                "candidate_failed": candidate.failed,
                "others_completed": others.completed,
                "others_failed": others.failed,
            }
        if self.json:
            yield from self.told([row])
            return
        yield f"{state.model}: {state.phase.value} for {time.time() - state.since:.0f} s ({state.why})"
        yield f"  serves      {state.stable}{'' if state.proven else '   (no engine has come up with it yet)'}"
        if state.candidate:
            yield f"  candidate   {state.candidate}, for {state.percent} % of the tenants"
            yield f"              {candidate.completed} completed, {candidate.failed} failed"
            yield f"  the others  {others.completed} completed, {others.failed} failed"
        if state.previous:
            yield f"  before      {state.previous}"
        if state.rejected:
            yield f"  rejected    {state.rejected}; tried again once the alias has named another version"


@dataclass(frozen=True, kw_only=True)
class RolloutStatus(_Rollout):
    """Shows which version serves whom, and what led there."""

    def run(self) -> Iterator[str]:
        from serving.tenants.audit import AuditLog

        with self.opened() as engine:
            yield from self.shown(*self.found(engine))
            if not self.json:
                for entry in AuditLog(engine).read(action="rollout.", limit=10):
                    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at))
                    yield f"  {stamp}  {entry.action.removeprefix('rollout.'):<12} {entry.target}"


@dataclass(frozen=True, kw_only=True)
class RolloutPromote(_Rollout):
    """Lets the new version serve everybody, whatever its canary has shown so far."""

    def run(self) -> Iterator[str]:
        from serving.rollout.state import promoted

        with self.opened() as engine:
            rollouts, state = self.found(engine)
            if state.candidate is None:
                raise ConfigError(f"there is no new version beside {state.stable} to promote", code="no_candidate")
            new = promoted(state, time.time(), "promoted by hand")
            yield from self.go(engine, rollouts, state, new, "promoted")


@dataclass(frozen=True, kw_only=True)
class RolloutRollback(_Rollout):
    """Takes the new version away; or, where none is being tried, goes back to the version before."""

    def run(self) -> Iterator[str]:
        from serving.rollout.state import rolled_back

        with self.opened() as engine:
            rollouts, state = self.found(engine)
            if state.candidate is None and state.previous is None:
                raise ConfigError(f"there is no version before {state.stable} to go back to", code="no_previous")
            new = rolled_back(state, time.time(), "rolled back by hand")
            yield from self.go(engine, rollouts, state, new, "rolled_back")


COMMANDS: dict[str, dict[str, type[Any]]] = {
    "rollout": {"status": RolloutStatus, "promote": RolloutPromote, "rollback": RolloutRollback}
}
