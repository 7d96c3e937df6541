"""`python -m pipelines`: exit codes, and errors in one line that name the value and the way out."""

from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.recipes import RECIPES, curate, curate_mini


def error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["curate-mni"], "did you mean curate-mini?"),
        (["frobnicate"], "there are curate, curate-mini, encode, plan, report"),
        (["plan", "curat"], "plan takes a recipe, not 'curat'"),
        (["curate-mini", "--videos", "x", "--out", "y", "--pose.modle", "z"], "did you mean --pose.model?"),
        (["curate-mini", "--videos", "x", "--out", "y", "--cut.fps", "abc"], "--cut.fps"),
        (["curate-mini", "--videos", "x", "--out", "y", "--cut.fps", "0"], "fps 0.0"),
        (["curate-mini", "--videos", "x", "--out", "y", "--cut.longest", "1"], "cut.longest is 1.0"),
        (["curate-mini", "--out", "y"], "--videos"),
        (["curate-mini", "--videos", "/nowhere/at/all", "--out", "y"], "/nowhere/at/all does not exist"),
        (["curate-mini", "--videos", "x", "--out", "y", "--pose.model", "/no/weights"], "/no/weights"),
        (["curate-mini", "--videos", "x", "--out", "y", "--pose.model", "mini/pose"], "mini/dwpose"),
        (["encode", "--videos", "/nowhere", "--out", "y", "--latents.num-frames", "36"], "4k + 1"),
        (["verify", "--dataset", "/nowhere"], "no data set"),
        (["report", "--dataset", "/nowhere"], "no data set"),
        (["marionettes", "--out", "y", "--count", "0"], "at least 1"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert expected in error(capsys)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_of_videos_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "in").mkdir()
    assert main(["curate-mini", "--videos", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    assert "holds no file" in error(capsys)
    assert not (tmp_path / "out").exists()


def test_verify_ends_with_1_and_a_list(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "dataset.json").write_text('{"schema_version": 1, "counts": {}, "shards": []}')
    assert main(["verify", "--dataset", str(tmp_path)]) == 1
    assert "manifest.parquet is missing" in capsys.readouterr().out


def test_a_run_ends_with_its_counts_and_where_to_look(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.mp4").write_bytes(b"")
    words = ["curate-mini", "--videos", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--local"]
    assert main(words) == 0
    assert "1 sources quarantined" in capsys.readouterr().out
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("nothing to do")


def test_help_lists_recipes_and_commands(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in (*RECIPES, "report", "verify", "marionettes"))


def test_the_real_recipe_names_the_real_models_and_the_mini_one_does_not():
    real, mini = curate(), curate_mini()
    assert real.pose.model == "yzd-v/DWPose"
    assert real.caption.captioner == "Qwen/Qwen2-VL-7B-Instruct"
    assert real.masks.tracker == "facebook/sam2.1-hiera-small"
    assert (mini.pose.model, mini.masks.tracker, mini.caption.captioner) == (
        "mini/dwpose",
        "skeleton-seeded",
        "mini/captioner",
    )
    assert all(stage.num_gpus == 0 for stage in mini.stages("clip"))
