"""Who takes the next step of a rollout. Plain Python; `serving.cluster` gives it engines and a clock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serving.config import Canary
from serving.results.blobs import new_id
from serving.rollout.judging import Decision, judge
from serving.rollout.state import Phase, Rollout, alias_names, passed, promoted, rolled_back
from serving.rollout.store import Rollouts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Smoke:
    """What became of a smoke clip."""

    ok: bool
    what: str
    """For people: what is wrong with it, or how long it took."""


class Lead:
    """Follows one alias. Several may run; one of them leads at a time."""

    def __init__(
        self,
        rollouts: Rollouts,
        rules: Canary,
        look_up: Callable[[], str],
        try_out: Callable[[str], Awaitable[Smoke]],
    ):
        """`look_up` says which version the alias names; `try_out` loads one on an engine and renders a smoke clip."""
        self.id = new_id("lead")
        self._rollouts, self._rules = rollouts, rules
        self._look_up, self._try_out = look_up, try_out

    async def tick(self) -> None:
        """One look at the registry and at the canary, and the step that follows, if one does."""
        state = await asyncio.to_thread(self._rollouts.get)
        if state is None:
            state = self._rollouts.begin(await asyncio.to_thread(self._look_up))
        if not await asyncio.to_thread(self._rollouts.lead, self.id, max(30.0, 3 * self._rules.poll_s)):
            return
        state = await self._follow(state)
        if state.phase is Phase.CHECKING:
            state = await self._check(state)
        if state.phase is Phase.CANARY:
            await asyncio.to_thread(self._judge, state)

    async def _follow(self, state: Rollout) -> Rollout:
        try:
            version = await asyncio.to_thread(self._look_up)
        except Exception as problem:
            # A registry that is away changes nothing.
            logger.warning("the registry could not be asked: %s", problem)
            return state
        return await self._go(state, alias_names(state, version, self._rollouts.clock()), "alias")

    async def _check(self, state: Rollout) -> Rollout:
        assert state.candidate is not None
        try:
            smoke = await self._with_lead(self._try_out(state.candidate))
        except Exception as problem:
            # The engine was lost over it, or none is there; the next tick tries again.
            logger.warning("the smoke clip of %s came to nothing: %s", state.candidate, problem)
            return state
        now = self._rollouts.clock()
        if smoke.ok:
            return await self._go(state, passed(state, self._rules.percent, now, smoke.what), "canary")
        return await self._go(state, rolled_back(state, now, smoke.what), "rolled_back")

    def _judge(self, state: Rollout) -> None:
        now = self._rollouts.clock()
        decision, why = judge(*self._rollouts.tallies(state), now - state.since, self._rules)
        if decision is Decision.PROMOTE:
            self._rollouts.step(state, promoted(state, now, why), "promoted")
        elif decision is Decision.ROLL_BACK:
            self._rollouts.step(state, rolled_back(state, now, why), "rolled_back")

    async def _with_lead(self, work: Awaitable[Smoke]) -> Smoke:
        """Stays the leader however long the work takes."""
        task = asyncio.ensure_future(work)
        while not task.done():
            await asyncio.wait([task], timeout=10.0)
            await asyncio.to_thread(self._rollouts.lead, self.id, 30.0)
        return task.result()

    async def _go(self, old: Rollout, new: Rollout, action: str) -> Rollout:
        if new == old:
            return old
        if await asyncio.to_thread(self._rollouts.step, old, new, action):
            return new
        return await asyncio.to_thread(self._rollouts.get) or old
