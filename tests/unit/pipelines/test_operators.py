"""How stages are bundled into workers, and what a bundle remembers."""

from pathlib import Path

import pytest

from dynamictrl.errors import CheckpointError
from pipelines.clip import Clip
from pipelines.ledger import Ledger, chain_digest
from pipelines.operators import Operator, clip_operators
from pipelines.recipes import curate, curate_mini
from pipelines.stage import Stage
from pipelines.stages.caption import Caption
from pipelines.stages.keep_duration import KeepDuration


def names(operator: Operator) -> list[str]:
    return [stage.name for stage in operator.stages]


def test_models_on_gpus_get_workers_of_their_own_with_the_light_stages_behind_them(tmp_path: Path):
    pipeline = curate()
    operators = clip_operators(pipeline.stages("clip"), pipeline.stages("source"), tmp_path)
    assert [names(o) for o in operators] == [
        ["keep_sharp"],
        ["estimate_pose", "keep_person"],
        ["track_masks"],
        ["caption", "write_shards"],
    ]


def test_on_the_cpu_all_stages_of_a_clip_share_a_worker(tmp_path: Path):
    pipeline = curate_mini()
    assert len(clip_operators(pipeline.stages("clip"), pipeline.stages("source"), tmp_path)) == 1


def test_a_changed_prompt_renames_the_captions_results_and_no_earlier_ones(tmp_path: Path):
    pipeline = curate()
    stages, before = pipeline.stages("clip"), pipeline.stages("source")
    changed = [Caption(prompt="What is worn?") if isinstance(s, Caption) else s for s in stages]
    old = [o.ledger.digest for o in clip_operators(stages, before, tmp_path)]
    new = [o.ledger.digest for o in clip_operators(changed, before, tmp_path)]
    assert old[:-1] == new[:-1]
    assert old[-1] != new[-1]


def test_speed_does_not_enter_a_digest():
    assert chain_digest([Caption(gpu_share=0.1)]) == chain_digest([Caption(gpu_share=0.9)])
    assert chain_digest([Caption(max_new_tokens=1)]) != chain_digest([Caption(max_new_tokens=2)])


def test_a_result_is_recalled_only_while_its_files_are_there(tmp_path: Path):
    operator = Operator("clips", (KeepDuration(shortest=1),), Ledger(tmp_path, "clips", "d" * 64))
    clip = Clip(key="k", end=3, work=str(tmp_path)).with_file("mp4")
    clip.folder.mkdir(parents=True)
    clip.file("mp4").write_bytes(b"x")
    assert operator.run(clip) == operator.recall(clip) == [clip]
    clip.file("mp4").unlink()
    assert operator.recall(clip) is None


def test_a_stage_that_cannot_load_its_weights_stops_the_run_with_a_reason(tmp_path: Path):
    class Broken(Stage):
        def setup(self) -> None:
            raise RuntimeError("bad magic number")

    with pytest.raises(CheckpointError, match=r"broken cannot load .*bad magic number"):
        Operator("clips", (Broken(),), Ledger(tmp_path, "clips", "d")).setup()
