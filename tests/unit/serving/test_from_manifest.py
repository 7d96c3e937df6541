"""A clip rendered again from its manifest, in a fresh process: the same frames, bit for bit, or the reason why not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynamictrl.media.video import read_video
from serving.__main__ import main
from serving.jobs.job import AnimationJob, Settings
from serving.rendering.engine import Engine
from serving.rendering.model_source import locate
from serving.results.manifest import Rendering, file_hash, to_manifest

SETTINGS = Settings(
    prompt="a dancer", width=64, height=96, num_frames=9, fps=12.0, resample=False, num_inference_steps=2,
    guidance_scale=3.0, seed=41
)  # fmt: skip


@pytest.fixture(scope="module")
def manifest(tiny_model: Path, person_and_pose: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a worker would have written for a clip of this process's engine."""
    person, pose = person_and_pose
    source = locate(str(tiny_model))
    engine = Engine(source, "mini/dwpose", device="cpu", threads=1)
    clip = engine.animate(AnimationJob(settings=SETTINGS, image=person, pose_video=pose))
    rendering = Rendering(
        video_id="video_" + "0" * 32, model=source.name, model_version=clip.model_version, is_mini=source.mini,
        settings=SETTINGS, inputs={"input_reference": file_hash(person), "pose_video": file_hash(pose)},
        engine=clip.made_with, frames=clip.frames
    )  # fmt: skip
    path = tmp_path_factory.mktemp("manifest") / "m.json"
    path.write_text(json.dumps(to_manifest(rendering)))
    return path


def words(model: Path, media: tuple[Path, Path], out: Path, manifest: Path) -> list[str]:
    given = {"--model": model, "--image": media[0], "--pose-video": media[1], "--out": out, "--manifest": manifest}
    return ["animate", *(str(word) for pair in given.items() for word in pair)]


def test_a_fresh_process_renders_the_frames_of_the_manifest_bit_for_bit(
    manifest: Path, tiny_model: Path, person_and_pose: tuple[Path, Path], tmp_path: Path
):
    command = [sys.executable, "-m", "serving", *words(tiny_model, person_and_pose, tmp_path / "o.mp4", manifest)]
    # With another number of threads than the manifest says, until it is read.
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "the frames are equal to those of the manifest, bit for bit (9 frames)" in done.stderr
    assert read_video(tmp_path / "o.mp4").frames.shape == (9, 96, 64, 3)


def test_other_frames_are_said_with_the_likeliest_reason_and_exit_1(
    manifest: Path, tiny_model: Path, person_and_pose: tuple[Path, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str]
):  # fmt: skip
    told = json.loads(manifest.read_text())
    told["settings"]["seed"] += 1
    told["software"]["torch"] = "1.0"
    (tmp_path / "other.json").write_text(json.dumps(told))
    assert main(words(tiny_model, person_and_pose, tmp_path / "o.mp4", tmp_path / "other.json")) == 1
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert "frames are NOT those of the manifest: torch is" in error
    assert "was 1.0" in error
    assert read_video(tmp_path / "o.mp4").frames.shape == (9, 96, 64, 3)


def test_media_and_models_that_are_not_the_manifests_are_refused_before_anything_is_loaded(
    manifest: Path, tiny_model: Path, person_and_pose: tuple[Path, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str]
):  # fmt: skip
    person, pose = person_and_pose
    (tmp_path / "p.png").write_bytes(person.read_bytes() + b"x")
    assert main(words(tiny_model, (tmp_path / "p.png", pose), tmp_path / "o.mp4", manifest)) == 2
    assert "is not the input_reference that the clip was made from" in capsys.readouterr().err
    told = json.loads(manifest.read_text())
    for place, value, message in (
        (("model", "version"), "another", "name that one with --model"),
        (("inputs_sha256", "mask"), "0" * 64, "give it with --mask"),
        (("settings", "loras"), [["style", 1.0]], "wears the LoRA style"),
    ):
        changed = json.loads(json.dumps(told))
        changed[place[0]][place[1]] = value
        (tmp_path / "m.json").write_text(json.dumps(changed))
        assert main(words(tiny_model, person_and_pose, tmp_path / "o.mp4", tmp_path / "m.json")) == 2
        assert message in capsys.readouterr().err
    assert main(["animate", "--image", str(person), "--pose-video", str(pose), "--out", str(tmp_path / "o.mp4")]) == 2
    assert "--model and --prompt" in capsys.readouterr().err
    assert not (tmp_path / "o.mp4").exists()
