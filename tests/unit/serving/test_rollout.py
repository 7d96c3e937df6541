"""A new version of the model: followed, checked, tried on a few, promoted or rolled back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dynamictrl.errors import CheckpointError, ConfigError
from serving.config import Canary
from serving.jobs.database import open_database
from serving.jobs.job import Settings
from serving.jobs.store import JobStore, new_video_id
from serving.rollout.command import RolloutPromote, RolloutRollback, RolloutStatus
from serving.rollout.judging import Decision, Tally, judge
from serving.rollout.lead import Lead, Smoke
from serving.rollout.registry import followed_name
from serving.rollout.state import Phase, Rollout, alias_names, first, passed, promoted, rolled_back, version_for
from serving.rollout.store import Rollouts
from tests.unit.serving.conftest import Clock

RULES = Canary(percent=50, jobs=4, seconds=100.0)
STABLE = replace(first("m", "m/1", 0.0), proven=True)


# The steps


def test_a_version_is_checked_then_tried_then_serves_everybody():
    state = alias_names(STABLE, "m/2", 1.0)
    assert (state.phase, state.candidate, state.wanted) == (Phase.CHECKING, "m/2", ("m/1", "m/2"))
    state = passed(state, 10, 2.0, "fine")
    assert (state.phase, state.percent) == (Phase.CANARY, 10)
    state = promoted(state, 3.0, "20 jobs")
    assert (state.stable, state.candidate, state.previous, state.percent) == ("m/2", None, "m/1", 0)


def test_a_version_that_was_rolled_back_is_not_tried_again_until_the_alias_has_moved():
    state = rolled_back(alias_names(STABLE, "m/2", 1.0), 2.0, "bad")
    assert (state.stable, state.rejected, state.phase) == ("m/1", "m/2", Phase.STEADY)
    assert alias_names(state, "m/2", 3.0) == state
    moved = alias_names(state, "m/1", 4.0)
    assert alias_names(moved, "m/2", 5.0).phase is Phase.CHECKING
    assert alias_names(state, "m/3", 4.0).candidate == "m/3"


def test_an_alias_that_goes_back_takes_the_candidate_away():
    state = alias_names(passed(alias_names(STABLE, "m/2", 1.0), 10, 2.0, ""), "m/1", 3.0)
    assert (state.phase, state.candidate, state.rejected) == (Phase.STEADY, None, None)


def test_a_first_version_that_never_came_up_is_replaced_at_once():
    state = alias_names(first("m", "m/1", 0.0), "m/2", 1.0)
    assert (state.stable, state.candidate, state.rejected) == ("m/2", None, "m/1")


def test_a_rollback_by_hand_goes_to_the_version_before():
    state = promoted(passed(alias_names(STABLE, "m/2", 1.0), 10, 2.0, ""), 3.0, "")
    back = rolled_back(state, 4.0, "by hand")
    assert (back.stable, back.rejected) == ("m/1", "m/2")
    assert alias_names(back, "m/2", 5.0) == back


def test_a_rollback_by_hand_does_not_bring_a_rejected_version_back():
    state = promoted(passed(alias_names(STABLE, "m/2", 1.0), 10, 2.0, ""), 3.0, "")
    state = rolled_back(alias_names(state, "m/3", 4.0), 5.0, "broken")
    back = rolled_back(state, 6.0, "by hand")
    assert back.stable == "m/1"
    assert alias_names(back, "m/3", 7.0) == back


# Who gets it


def test_about_its_share_of_the_tenants_get_a_canary_and_each_always_the_same():
    canary = passed(alias_names(STABLE, "m/2", 1.0), 20, 2.0, "")
    tenants = [f"tenant-{number}" for number in range(1000)]
    chosen = [tenant for tenant in tenants if version_for(canary, tenant, "video_1") == "m/2"]
    assert 150 < len(chosen) < 250
    assert chosen == [tenant for tenant in tenants if version_for(canary, tenant, "video_2") == "m/2"]
    # Another version meets other tenants first.
    other = replace(canary, candidate="m/3")
    assert chosen != [tenant for tenant in tenants if version_for(other, tenant, "video_1") == "m/3"]


def test_a_service_without_keys_goes_by_the_job():
    canary = passed(alias_names(STABLE, "m/2", 1.0), 20, 2.0, "")
    pinned = [version_for(canary, "local", f"video_{number}") for number in range(500)]
    assert 60 < pinned.count("m/2") < 140


@pytest.mark.parametrize("state", [None, STABLE, alias_names(STABLE, "m/2", 1.0)])
def test_nobody_gets_a_version_that_has_not_passed(state: Rollout | None):
    assert {version_for(state, f"t{number}", "v") for number in range(200)} == {None}


# What it has shown


@pytest.mark.parametrize(
    ("candidate", "stable", "seconds", "decision"),
    [
        (Tally(3, 0), Tally(), 10, Decision.WAIT),
        (Tally(4, 0), Tally(), 10, Decision.PROMOTE),
        (Tally(0, 1), Tally(9, 0), 10, Decision.WAIT),
        (Tally(3, 2), Tally(9, 0), 10, Decision.ROLL_BACK),
        (Tally(4, 3), Tally(4, 3), 10, Decision.PROMOTE),  # no worse than before
        (Tally(5, 0, 2.0), Tally(5, 0, 1.0), 10, Decision.ROLL_BACK),
        (Tally(3, 0, 9.0), Tally(5, 0, 1.0), 10, Decision.WAIT),  # too few to compare
        (Tally(0, 0), Tally(), 101, Decision.PROMOTE),
        (Tally(1, 1), Tally(9, 0), 101, Decision.ROLL_BACK),
    ],
)
def test_a_canary_is_judged_by_failures_and_time(candidate: Tally, stable: Tally, seconds: float, decision: Decision):
    found, why = judge(candidate, stable, seconds, RULES)
    assert found is decision
    assert bool(why) == (decision is not Decision.WAIT)


# In the store


@pytest.fixture
def rollouts(tmp_path: Path, clock: Clock) -> Rollouts:
    return Rollouts(open_database(f"sqlite:///{tmp_path / 'jobs.db'}"), "m", clock=clock)


def test_one_of_two_leads_until_it_falls_silent(rollouts: Rollouts, clock: Clock):
    rollouts.begin("m/1")
    assert rollouts.lead("a", 30)
    assert not rollouts.lead("b", 30)
    assert rollouts.lead("a", 30)
    clock.now += 31
    assert rollouts.lead("b", 30)
    assert not rollouts.lead("a", 30)


def test_a_step_from_an_outdated_state_is_not_taken(rollouts: Rollouts):
    old = rollouts.begin("m/1")
    assert rollouts.begin("m/7") == old
    new = alias_names(replace(old, proven=True), "m/2", 1.0)
    assert rollouts.step(old, new, "alias")
    assert not rollouts.step(old, alias_names(replace(old, proven=True), "m/3", 1.0), "alias")
    assert rollouts.get() == new


def test_an_engine_that_is_warm_proves_its_version(rollouts: Rollouts):
    rollouts.begin("m/1")
    rollouts.prove("m/0")
    assert rollouts.get() == replace(first("m", "m/1", 1000.0), proven=False)
    rollouts.prove("m/1")
    state = rollouts.get()
    assert state is not None
    assert state.proven


# Led


class World:
    """A registry, engines and jobs, as a lead meets them."""

    def __init__(self, rollouts: Rollouts, clock: Clock):
        self.rollouts, self.clock = rollouts, clock
        self.alias: str | Exception = "m/1"
        self.smoke: Smoke | Exception = Smoke(True, "fine")
        self.tried: list[str] = []
        self.store = JobStore(rollouts.engine, clock=clock, pin=rollouts.pin)
        self.lead = Lead(rollouts, RULES, self.look_up, self.try_out)

    def look_up(self) -> str:
        if isinstance(self.alias, Exception):
            raise self.alias
        return self.alias

    async def try_out(self, version: str) -> Smoke:
        self.tried.append(version)
        if isinstance(self.smoke, Exception):
            raise self.smoke
        return self.smoke

    def tick(self) -> Rollout:
        asyncio.run(self.lead.tick())
        self.rollouts.forget()
        state = self.rollouts.get()
        assert state is not None
        return state

    def jobs(self, count: int, *, seconds: float = 10.0, fail: str | None = None) -> list[str | None]:
        """Renders `count` jobs, each with the version it was pinned to."""
        pins = []
        for _ in range(count):
            settings = Settings(
                prompt="", width=64, height=96, num_frames=5, fps=12.0, resample=False, num_inference_steps=2,
                guidance_scale=1.0, seed=0
            )  # fmt: skip
            self.store.add(
                video_id=new_video_id(), model="m", settings=settings, inputs={}, content_hash="h",
                gpu_seconds_estimate=10.0
            )  # fmt: skip
            lease = self.store.lease("d", 1000.0, 3)
            assert lease is not None
            video, pinned = lease.video, lease.video.target_version
            self.clock.now += seconds if pinned else 10.0
            if pinned and fail:
                self.store.fail(video.id, lease.token, code=fail, message="")
            else:
                self.store.complete(video.id, lease.token, model_version=pinned or "m/1", expires_at=1e12)
            pins.append(pinned)
        return pins


@pytest.fixture
def world(rollouts: Rollouts, clock: Clock) -> World:
    world = World(rollouts, clock)
    world.tick()
    rollouts.prove("m/1")
    world.alias = "m/2"
    return world


def test_a_good_version_is_led_from_the_alias_to_everybody(world: World):
    assert world.tick().phase is Phase.CANARY
    assert world.tried == ["m/2"]
    pins = world.jobs(20)
    assert {None, "m/2"} == set(pins)
    state = world.tick()
    assert (state.stable, state.phase, state.previous) == ("m/2", Phase.STEADY, "m/1")
    assert world.jobs(5) == [None] * 5


def test_a_broken_version_never_has_a_job(world: World):
    world.smoke = Smoke(False, "it cannot be loaded: weights_missing")
    state = world.tick()
    assert (state.stable, state.rejected, state.why) == ("m/1", "m/2", "it cannot be loaded: weights_missing")
    assert world.jobs(10) == [None] * 10
    assert world.tick() == state
    assert world.tried == ["m/2"]


@pytest.mark.parametrize("trouble", [{"fail": "internal_error"}, {"seconds": 40.0}])
def test_a_version_that_fails_or_drags_is_rolled_back_by_itself(world: World, trouble: dict[str, Any]):
    world.lead._rules = replace(RULES, jobs=1000)
    world.tick()
    world.jobs(30, **trouble)
    state = world.tick()
    assert (state.stable, state.rejected, state.phase) == ("m/1", "m/2", Phase.STEADY)
    assert world.jobs(10) == [None] * 10


def test_what_is_wrong_with_the_jobs_themselves_speaks_against_no_version(world: World):
    world.tick()
    world.jobs(9, fail="no_person_in_image")
    state = world.tick()
    assert (state.phase, state.rejected) == (Phase.CANARY, None)


def test_a_registry_that_is_away_changes_nothing(world: World):
    before = world.rollouts.get()
    world.alias = CheckpointError("away")
    assert world.tick() == before


def test_an_engine_lost_over_the_smoke_clip_is_no_verdict(world: World):
    world.smoke = RuntimeError("the actor died")
    assert world.tick().phase is Phase.CHECKING
    world.smoke = Smoke(True, "fine")
    assert world.tick().phase is Phase.CANARY


def test_a_restart_goes_on_where_the_rollout_was(world: World):
    world.tick()
    again = World(world.rollouts, world.clock)
    again.alias = "m/2"
    world.clock.now += 50  # the lease of the one before has run out
    assert again.tick().phase is Phase.CANARY
    assert again.tried == []
    world.clock.now += 100
    assert again.tick().stable == "m/2"


# By hand


def test_a_person_promotes_and_goes_back(world: World):
    at: Any = {"database": str(world.rollouts.engine.url)}
    world.tick()
    assert any("candidate   m/2, for 50 %" in line for line in RolloutStatus(**at).run())
    assert any("serves      m/2" in line for line in RolloutPromote(**at).run())
    with pytest.raises(ConfigError, match="no new version"):
        list(RolloutPromote(**at).run())
    assert any("serves      m/1" in line for line in RolloutRollback(**at, model="m").run())
    assert any("rolled_back.by_hand" in line for line in RolloutStatus(**at).run())
    assert world.tick().stable == "m/1"
    with pytest.raises(ConfigError, match="no version before"):
        list(RolloutRollback(**at).run())
    with pytest.raises(ConfigError, match="it knows m"):
        list(RolloutStatus(**at, model="n").run())


@pytest.mark.parametrize(
    ("model", "name"), [("models:/m@champion", "m"), ("models:/m/3", None), ("mini/dynamictrl", None), ("a/b@c", None)]
)
def test_only_an_alias_is_followed(model: str, name: str | None):
    assert followed_name(model) == name
    assert followed_name(model, follow=False) is None
