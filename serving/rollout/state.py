"""Where a rollout stands, and the steps from there. Pure: no database, no registry, no clock of its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum

LOCAL = "local"


class Phase(StrEnum):
    """steady -> checking -> canary -> steady, with the new version or without it."""

    STEADY = "steady"
    CHECKING = "checking"
    """The new version is loaded beside the old one and renders a smoke clip; it has no job yet."""
    CANARY = "canary"
    """A share of the tenants get the new version."""


@dataclass(frozen=True)
class Rollout:
    """Which versions of one registered model serve whom."""

    model: str
    stable: str
    """The version that serves everybody whom no canary decision concerns, such as `dynamictrl/3`."""
    proven: bool = False
    """Whether an engine has ever been warm with `stable`."""
    candidate: str | None = None
    previous: str | None = None
    """What `stable` replaced: where a rollback by hand goes to."""
    rejected: str | None = None
    """The version that was rolled back last; it is not tried again until the alias has named another one."""
    phase: Phase = Phase.STEADY
    since: float = 0.0
    """When the phase began, Unix seconds."""
    percent: int = 0
    """Share of the tenants whom the candidate serves."""
    why: str = ""
    """What led here, for people."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """Versions that engines should hold."""
        return (self.stable,) if self.candidate is None else (self.stable, self.candidate)


def first(model: str, version: str, now: float) -> Rollout:
    """The version that a service begins with: there is none that it could be compared with."""
    return Rollout(model, version, since=now, why="the service's first version")


def alias_names(state: Rollout, version: str, now: float) -> Rollout:
    """The registry's alias names `version`."""
    if version in (state.candidate, state.rejected):
        return state
    if version == state.stable:
        if state.candidate is None:
            return state if state.rejected is None else replace(state, rejected=None)
        why = f"the alias names {version} again"
        return _steady(state, now, why)
    if not state.proven:
        why = f"no engine ever came up with {state.stable}, and the alias names {version} now"
        return replace(first(state.model, version, now), rejected=state.stable, why=why)
    return replace(
        state, candidate=version, rejected=None, phase=Phase.CHECKING, since=now, percent=0,
        why=f"the alias names {version}"
    )  # fmt: skip


def passed(state: Rollout, percent: int, now: float, why: str) -> Rollout:
    """The smoke clip was fine."""
    return replace(state, phase=Phase.CANARY, percent=percent, since=now, why=why)


def promoted(state: Rollout, now: float, why: str) -> Rollout:
    """The candidate serves everybody from now on."""
    assert state.candidate is not None
    return replace(_steady(state, now, why), stable=state.candidate, proven=True, previous=state.stable)


def rolled_back(state: Rollout, now: float, why: str) -> Rollout:
    """The candidate is out; or, without one, the version before the stable one is back."""
    if state.candidate is not None:
        return replace(_steady(state, now, why), rejected=state.candidate)
    assert state.previous is not None
    # What was rejected before is what the alias names still.
    back = replace(_steady(state, now, why), stable=state.previous, previous=None)
    return replace(back, rejected=state.rejected or state.stable)


def _steady(state: Rollout, now: float, why: str) -> Rollout:
    return replace(state, candidate=None, phase=Phase.STEADY, since=now, percent=0, why=why)


def version_for(state: Rollout | None, tenant: str, video_id: str) -> str | None:
    """The version that a new job is pinned to; None leaves it to the stable one of the day.

    A tenant's jobs all go one way, and each version meets other tenants first. A service without keys has one tenant
    only: there it goes by the job.
    """
    if state is None or state.phase is not Phase.CANARY or state.candidate is None:
        return None
    who = video_id if tenant == LOCAL else tenant
    share = int.from_bytes(hashlib.sha256(f"{state.candidate} {who}".encode()).digest()[:4]) % 100
    return state.candidate if share < state.percent else None
