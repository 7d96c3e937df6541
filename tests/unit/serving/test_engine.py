"""A job to a clip with a tiny real model: counts, seeds, stopping, masks; and which folders are models."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynamictrl.errors import CheckpointError, ConfigError, InputError
from serving.jobs.job import AnimationJob, Settings
from serving.media.decoding import OwnFiles
from serving.rendering.engine import Engine, Stopped, masked_image
from serving.rendering.model_source import locate, public_name

SETTINGS = Settings(
    prompt="a figure", width=64, height=96, num_frames=9, fps=12.0, resample=False, num_inference_steps=3,
    guidance_scale=3.0, seed=5
)  # fmt: skip


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine(locate(str(tiny_model)), "mini/dwpose", device="cpu", threads=1)


@pytest.fixture
def job(person_and_pose: tuple[Path, Path]) -> AnimationJob:
    person, pose = person_and_pose
    return AnimationJob(settings=SETTINGS, image=person, pose_video=pose)


def test_a_clip_has_the_asked_frames_size_and_rate(engine: Engine, job: AnimationJob):
    steps: list[tuple[str, int, int]] = []
    clip = engine.animate(job, on_step=lambda *step: steps.append(step))
    assert (clip.frames.shape, clip.frames.dtype) == ((9, 96, 64, 3), np.uint8)
    assert (clip.fps, clip.seed, clip.model_version) == (12.0, 5, engine.model.version)
    assert steps[0] == ("preparing", 0, 3)
    assert [step for step in steps if step[0] == "denoising"] == [("denoising", n, 3) for n in range(4)]
    assert steps[-1] == ("decoding", 3, 3)
    assert set(clip.stage_seconds) == {"prepare", "text", "encode", "denoise", "decode"}


def test_the_same_job_gives_the_same_frames_and_another_seed_others(engine: Engine, job: AnimationJob):
    first, again = engine.animate(job), engine.animate(job)
    other = engine.animate(replace(job, settings=replace(SETTINGS, seed=6)))
    assert np.array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, other.frames)


def test_it_stops_within_one_step(engine: Engine, job: AnimationJob):
    done: list[int] = []
    long_job = replace(job, settings=replace(SETTINGS, num_inference_steps=50))
    with pytest.raises(Stopped):
        engine.animate(long_job, on_step=lambda _, n, __: done.append(n), should_stop=lambda: bool(done[-1:] >= [2]))
    assert max(done) == 2
    assert len(engine.animate(job).frames) == 9  # and is whole afterwards


def test_a_video_is_resampled_to_a_wished_rate(engine: Engine, job: AnimationJob):
    clip = engine.animate(replace(job, settings=replace(SETTINGS, fps=6.0, resample=True, num_frames=5)))
    assert (len(clip.frames), clip.fps) == (5, 6.0)


def test_too_few_frames_are_refused_with_what_there_is(engine: Engine, job: AnimationJob):
    with pytest.raises(InputError, match="17"):
        engine.animate(replace(job, settings=replace(SETTINGS, num_frames=33)))


def test_a_mask_blacks_out_what_is_dark_in_it(job: AnimationJob, tmp_path: Path):
    mask = np.zeros((96, 64), np.uint8)
    mask[:48] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    masked = np.asarray(masked_image(replace(job, mask=tmp_path / "mask.png"), OwnFiles()))
    whole = np.asarray(masked_image(job, OwnFiles()))
    assert np.array_equal(masked[:48], whole[:48])
    assert masked[48:].max() == 0


def test_a_gpu_that_is_not_there_is_a_config_error(tiny_model: Path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="--device cpu"):
        Engine(locate(str(tiny_model)), "mini/dwpose", device="cuda")


def test_a_model_is_named_and_versioned_by_its_weights(tiny_model: Path, tmp_path: Path):
    source = locate(str(tiny_model))
    assert (source.name, source.mini) == ("dynamictrl", True)
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert locate(str(copy)).version == source.version
    weights = next((copy / "transformer").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert locate(str(copy)).version != source.version


def test_a_lone_transformer_is_served_with_its_bases_folder(tiny_model: Path, tmp_path: Path):
    from dynamictrl.mini.tiny import write_tiny_model

    other = write_tiny_model(tmp_path / "other", pose_control="padaln_residual")
    masked = tmp_path / "Dynamictrl-Mask_B01"
    shutil.copytree(other / "transformer", masked)
    source = locate(str(tiny_model), str(masked))
    assert source.version.startswith(locate(str(tiny_model)).version + "+")
    assert Engine(source, "mini/dwpose", device="cpu").pipeline.transformer.config["pose_control"] == "padaln_residual"
    with pytest.raises(CheckpointError, match="holds no transformer"):
        locate(str(tiny_model), str(tmp_path))


def test_the_released_way_reaches_the_pipeline(tiny_model: Path, job: AnimationJob):
    job = replace(job, settings=replace(SETTINGS, num_frames=5))
    ours, theirs = (
        Engine(locate(str(tiny_model)), "mini/dwpose", device="cpu", compatibility=way).animate(job).frames
        for way in ("none", "released")
    )
    assert ours.shape == theirs.shape
    assert not np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("models:/dynamictrl@champion", "dynamictrl"),
        ("models:/mine/3", "mine"),
        ("mini/dynamictrl", "mini/dynamictrl"),
        ("owner/name", "owner/name"),
        ("./runs/model", "dynamictrl"),
        ("/runs/model", "dynamictrl"),
    ],
)
def test_clients_know_a_model_by_a_name_without_paths(model: str, name: str):
    assert public_name(model) == name


def test_a_folder_that_is_no_model_is_refused_with_what_it_lacks(tiny_model: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        locate(str(tmp_path))
    with pytest.raises(CheckpointError, match="does not exist"):
        locate(str(tmp_path / "nowhere"))
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    shutil.rmtree(copy / "vae")
    with pytest.raises(CheckpointError, match="lacks vae"):
        locate(str(copy))
    (copy / "model_index.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        locate(str(copy))


def test_the_registry_needs_an_address_and_a_uri_it_understands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(CheckpointError, match="MLFLOW_TRACKING_URI is not set"):
        locate("models:/dynamictrl@champion")
    with pytest.raises(CheckpointError, match="not understood"):
        locate("models:/dynamictrl")


def test_the_registrys_champion_is_followed(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client.create_registered_model("dynamictrl")
    client.create_model_version("dynamictrl", str(tmp_path))  # not the champion
    version = client.create_model_version("dynamictrl", str(tiny_model))
    client.set_registered_model_alias("dynamictrl", "champion", version.version)
    source = locate("models:/dynamictrl@champion")
    assert (source.name, source.version) == ("dynamictrl", "dynamictrl/2")
    assert json.loads((source.folder / "model_index.json").read_text())["_class_name"] == "DynamiCtrlPipeline"
    with pytest.raises(CheckpointError, match="could not be had"):
        locate("models:/dynamictrl@nobody")
