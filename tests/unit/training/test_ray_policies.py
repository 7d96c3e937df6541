"""How many workers a run takes, what ends it at once, and what is started again: decided without a cluster."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ray.train import FailureConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from dynamictrl.errors import ConfigError, DatasetError, DynamiCtrlError, StoreError
from training.checkpoints import on_disk
from training.cluster.ray_policies import RESIZE, STOP, Request, Verdicts, largest
from training.cluster.worker_counts import legal_counts
from training.config import Recipe
from training.recipes import RECIPES
from training.settings.workers import Workers

ROOT = Path(__file__).parents[3]


def a_recipe(most: int, fewest: int, batch: int, micro: int = 1, share: int = 1) -> Recipe:
    recipe = RECIPES["dynamictrl-2b"]()
    return replace(
        recipe,
        workers=replace(recipe.workers, num_workers=most, min_workers=fewest),
        optimization=replace(recipe.optimization, batch_size=batch, micro_batch_size=micro),
        speed=replace(recipe.speed, sequence_parallel=share),
    )


@pytest.mark.parametrize(
    ("recipe", "counts"),
    [
        (a_recipe(8, 0, 32), (8,)),
        (a_recipe(8, 1, 32), (1, 2, 4, 8)),
        (a_recipe(8, 3, 24), (3, 4, 6, 8)),
        (a_recipe(8, 1, 32, micro=4), (1, 2, 4, 8)),
        (a_recipe(4, 1, 32, micro=8), (1, 2, 4)),
        (a_recipe(8, 1, 32, share=4), (4, 8)),
    ],
    ids=["fixed", "powers", "from three", "micro", "too large a micro-batch", "shared clips"],
)
def test_only_numbers_of_workers_that_share_the_batch_evenly_are_taken(recipe: Recipe, counts: tuple[int, ...]):
    assert legal_counts(recipe) == counts


@pytest.mark.parametrize(("offered", "taken"), [(9, 8), (8, 8), (7, 4), (3, 2), (1, 0), (0, 0)])
def test_the_largest_legal_number_that_the_cluster_offers_is_taken_and_else_waited_for(offered: int, taken: int):
    assert largest((2, 4, 8), offered) == taken


def test_fewer_than_the_fewest_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="min_workers 4 is above num_workers 2"):
        Workers(num_workers=2, min_workers=4)


@pytest.fixture
def verdicts(tmp_path: Path) -> Verdicts:
    (tmp_path / "checkpoints").mkdir()
    return Verdicts(FailureConfig(max_failures=2), tmp_path / "checkpoints", Request(tmp_path / ".leave.json"))


def failed(*errors: Exception) -> WorkerGroupError:
    return WorkerGroupError("workers failed", dict(enumerate(errors)))


def test_an_error_of_ours_ends_the_run_at_once_whatever_the_other_workers_fell_over(verdicts: Verdicts):
    error = failed(RuntimeError("Connection closed by peer"), DatasetError("no shards"))

    assert verdicts.make_decision(error) is FailureDecision.RAISE


def test_a_store_that_was_away_and_a_lost_worker_are_tried_again_so_often_as_the_recipe_says(verdicts: Verdicts):
    assert verdicts.make_decision(failed(StoreError("no answer"))) is FailureDecision.RETRY
    assert verdicts.make_decision(failed(RuntimeError("worker died"))) is FailureDecision.RETRY
    assert verdicts.make_decision(failed(RuntimeError("worker died"))) is FailureDecision.RAISE


def test_failures_are_forgotten_once_a_new_checkpoint_is_there(verdicts: Verdicts, tmp_path: Path):
    for step in (5, 10, 15, 20):
        folder = tmp_path / "checkpoints" / on_disk.name_of(step)
        folder.mkdir()
        on_disk.write_safely(folder / on_disk.COMPLETE, {"step": step, "workers": 2, "zero_stage": 2, "files": {}})
        assert verdicts.make_decision(failed(RuntimeError("worker died"))) is FailureDecision.RETRY


def test_machines_that_are_taken_away_are_not_counted(verdicts: Verdicts):
    leaving = failed(*2 * [DynamiCtrlError("stopped after step 7", code="run_stopped")])
    gone = PreemptionError(PreemptionInfo(None, {"node": [0]}), drain_timed_out=True)

    for _ in range(5):
        assert verdicts.make_decision(leaving) is FailureDecision.RETRY
        assert verdicts.make_decision(gone) is FailureDecision.RETRY


def test_workers_that_leave_because_the_command_was_stopped_are_not_started_again(verdicts: Verdicts, tmp_path: Path):
    leaving = failed(DynamiCtrlError("stopped after step 7", code="run_stopped"))
    request = Request(tmp_path / ".leave.json")

    request.make(RESIZE)
    assert verdicts.make_decision(leaving) is FailureDecision.RETRY
    request.make(STOP)
    assert verdicts.make_decision(leaving) is FailureDecision.RAISE
    request.clear()
    assert request.reason == ""


def test_a_worker_that_stands_still_is_ended_with_its_stacks_on_record(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path; from training.cluster.vigil import Vigil\n"
        "vigil = Vigil(0.2, Path(sys.argv[1])).start()\n"
        "for _ in range(5): vigil.beat(); time.sleep(0.05)\n"
        "def stands_still(): time.sleep(60)\n"
        "stands_still()\n"
    )
    stacks = tmp_path / "stalls" / "worker-0.txt"
    done = subprocess.run([sys.executable, "-c", code, str(stacks)], cwd=ROOT, timeout=50)

    assert done.returncode == 70
    assert "stands_still" in stacks.read_text()
