"""Two processes, one clip: the frames of one, stopped together, and what happens when one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.jobs.job import AnimationJob, Settings
from serving.rendering import tiers
from serving.rendering.engine import Engine, EngineLost, Stopped
from serving.rendering.model_source import locate

SETTINGS = Settings(
    prompt="a figure", width=64, height=96, num_frames=5, fps=12.0, resample=False, num_inference_steps=3,
    guidance_scale=3.0, seed=5
)  # fmt: skip


@pytest.fixture(scope="module")
def pair(tiny_model: Path) -> Iterator[Engine]:
    engine = Engine(locate(str(tiny_model)), "mini/dwpose", device="cpu", threads=1, parallel=2)
    yield engine
    engine.close()


@pytest.fixture
def job(person_and_pose: tuple[Path, Path]) -> AnimationJob:
    person, pose = person_and_pose
    return AnimationJob(settings=SETTINGS, image=person, pose_video=pose)


def test_two_processes_make_the_clip_of_one(pair: Engine, tiny_model: Path, job: AnimationJob):
    alone = Engine(locate(str(tiny_model)), "mini/dwpose", device="cpu", threads=1)
    for settings in (SETTINGS, replace(SETTINGS, guidance_scale=1.0)):
        asked = replace(job, settings=settings)
        one, two = alone.animate(asked), pair.animate(asked)
        # Half the batch rounds otherwise; a level of 255 is the most that shows.
        assert np.abs(one.frames.astype(int) - two.frames).max() <= 1
        assert np.array_equal(two.frames, pair.animate(asked).frames)
    assert two.gpus == 2
    assert two.gpu_seconds == pytest.approx(2 * sum(two.stage_seconds.values()))
    assert two.made_with["parallel"] == 2


def test_both_leave_out_the_same_steps(
    pair: Engine, tiny_model: Path, job: AnimationJob, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(tiers.TIERS, "fast", tiers.Tier(step_cache=10.0))
    quick = replace(job, settings=replace(SETTINGS, num_inference_steps=5, quality="fast"))
    one = Engine(locate(str(tiny_model)), "mini/dwpose", device="cpu", threads=1).animate(quick)
    two = pair.animate(quick)
    assert two.made_with["steps_computed"] == one.made_with["steps_computed"] == [[0, 2, 4]]
    assert np.abs(one.frames.astype(int) - two.frames).max() <= 1


def test_both_stop_together_and_render_on(pair: Engine, job: AnimationJob):
    whole, done = pair.animate(job), []
    with pytest.raises(Stopped):
        pair.animate(job, lambda _, n, __: done.append(n), lambda: bool(done[-1:] >= [2]))
    assert max(done) == 2
    assert np.array_equal(pair.animate(job).frames, whole.frames)


def test_a_dead_follower_ends_the_job_and_the_engine_says_so(pair: Engine, job: AnimationJob):
    assert pair.is_healthy
    follower = pair._team._followers[0]  # pyright: ignore
    long = replace(job, settings=replace(SETTINGS, num_inference_steps=200))

    def kill_after_two(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("denoising", 2):
            os.kill(follower.pid, signal.SIGKILL)

    started = time.monotonic()
    with pytest.raises(EngineLost):
        pair.animate(long, kill_after_two)
    assert time.monotonic() - started < 30
    assert not pair.is_healthy
    with pytest.raises(EngineLost):
        pair.animate(job)


def test_followers_end_with_their_leader(tiny_model: Path):
    program = (
        "import sys, time\n"
        "from serving.rendering.team import Team\n"
        "setting = {'dtype': 'float32', 'threads': 1, 'acceleration': {}, 'size': None, 'models': [], 'loras': []}\n"
        "team = Team(2, 'cpu', setting)\n"
        "print(team._followers[0].pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    leader = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert leader.stdout is not None
    follower = int(leader.stdout.readline())
    leader.kill()
    leader.wait()
    deadline = time.monotonic() + 120
    while Path(f"/proc/{follower}").exists() and _state(follower) != "Z":
        assert time.monotonic() < deadline, "the follower lives on"
        time.sleep(0.2)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
