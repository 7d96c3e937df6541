"""An output folder belongs to one recipe, one set of settings and one run at a time."""

import json
from pathlib import Path

import pytest

from dynamictrl.errors import ConfigError
from pipelines.files.run_folder import BusyError, opened

SETTINGS = {"cut": {"stage": "cut_clips", "fps": 12.0}}


def test_a_new_folder_is_made_and_an_interrupted_one_continued(tmp_path: Path):
    for _ in range(2):
        with opened(tmp_path / "out", "mini", SETTINGS) as work:
            assert work.is_dir()


def test_half_written_files_are_swept_and_whole_ones_stay(tmp_path: Path):
    with opened(tmp_path / "out", "mini", SETTINGS) as work:
        (work / "clips" / "k").mkdir(parents=True)
        (work / "clips" / "k" / ".clip.pose.npz.77.tmp").write_bytes(b"half")
        (work / "clips" / "k" / "clip.mp4.77.part").write_bytes(b"half")
        (work / "clips" / "k" / "clip.mp4").write_bytes(b"whole")
    with opened(tmp_path / "out", "mini", SETTINGS) as work:
        assert [p.name for p in (work / "clips" / "k").iterdir()] == ["clip.mp4"]


def test_two_runs_at_once_are_refused(tmp_path: Path):
    with (
        opened(tmp_path / "out", "mini", SETTINGS),
        pytest.raises(BusyError, match="another run"),
        opened(tmp_path / "out", "mini", SETTINGS),
    ):
        pass


def test_another_recipe_is_refused(tmp_path: Path):
    with opened(tmp_path / "out", "mini", SETTINGS) as work:
        (work / "results").mkdir()
    with (
        pytest.raises(ConfigError, match="made by recipe mini and this is curate"),
        opened(tmp_path / "out", "curate", SETTINGS),
    ):
        pass


def test_other_settings_are_said_and_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with opened(tmp_path / "out", "mini", SETTINGS) as work:
        (work / "results").mkdir()
    caplog.set_level("INFO")
    with opened(tmp_path / "out", "mini", {"cut": {"stage": "cut_clips", "fps": 24.0}}) as work:
        assert json.loads((work / "run.json").read_text())["settings"]["cut"]["fps"] == 24.0
    assert "cut.fps was 12.0, is 24.0" in caplog.text


def test_two_work_folders_cannot_write_to_one_data_set_at_once(tmp_path: Path):
    with (
        opened(tmp_path / "out", "mini", SETTINGS, work=tmp_path / "one"),
        pytest.raises(BusyError, match="another run"),
        opened(tmp_path / "out", "mini", SETTINGS, work=tmp_path / "two"),
    ):
        pass


def test_a_run_that_decided_nothing_binds_nobody(tmp_path: Path):
    with opened(tmp_path / "out", "mini", SETTINGS):
        pass
    with opened(tmp_path / "out", "curate", {}) as work:
        assert json.loads((work / "run.json").read_text())["recipe"] == "curate"


def test_a_data_set_of_another_schema_is_refused_and_left_as_it_is(tmp_path: Path):
    content = json.dumps({"schema_version": 99})
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ConfigError, match="schema version 99"), opened(tmp_path, "mini", SETTINGS):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["dataset.json"]


def test_a_file_and_a_folder_of_something_else_are_refused(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="is a file"), opened(tmp_path / "thesis.txt", "mini", SETTINGS):
        pass
    with pytest.raises(ConfigError, match="no data set"), opened(tmp_path, "mini", SETTINGS):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
