"""Models and LoRAs in memory by name: switched at once, off again for the next job, refused where they do not fit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dynamictrl import DynamiCtrlPipeline, lora
from dynamictrl.errors import CheckpointError, ConfigError, InputError
from dynamictrl.mini.tiny import write_tiny_model
from serving.config import Service
from serving.jobs.job import AnimationJob, Settings
from serving.rendering.engine import Clip, Engine, Stopped
from serving.rendering.memory_plan import check_memory, plan_memory
from serving.rendering.model_source import locate, locate_all, model_names

SETTINGS = Settings(
    prompt="a figure", width=64, height=96, num_frames=5, fps=12.0, resample=False, num_inference_steps=2,
    guidance_scale=3.0, seed=5
)  # fmt: skip


@pytest.fixture(scope="module")
def masked(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lone transformer, as the released masked models are."""
    folder = tmp_path_factory.mktemp("masked")
    shutil.copytree(write_tiny_model(folder / "whole", pose_control="padaln_residual") / "transformer", folder / "lone")
    return folder / "lone"


@pytest.fixture(scope="module")
def style(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that does something."""
    transformer = DynamiCtrlPipeline.from_pretrained(tiny_model).transformer
    lora.add_lora(transformer, rank=2)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in transformer.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return lora.save_lora(transformer, tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def engine(tiny_model: Path, masked: Path, style: Path) -> Engine:
    first, *others = locate_all(str(tiny_model), "", {"clothes-mask": str(masked)})
    files = {"style.1": style, "same": style}
    return Engine(first, "mini/dwpose", device="cpu", threads=1, models=others, loras=files)


@pytest.fixture
def job(person_and_pose: tuple[Path, Path]) -> AnimationJob:
    person, pose = person_and_pose
    return AnimationJob(settings=SETTINGS, image=person, pose_video=pose)


def wearing(job: AnimationJob, *loras: tuple[str, float]) -> AnimationJob:
    return replace(job, settings=replace(job.settings, loras=loras))


def test_exact_is_the_plain_pipelines_clip_to_the_bit(engine: Engine, tiny_model: Path, job: AnimationJob):
    from dynamictrl.media.images import read_image
    from dynamictrl.media.video import read_video
    from dynamictrl.poses import driving

    assert job.pose_video is not None
    plain = DynamiCtrlPipeline.from_pretrained(tiny_model)
    shape = {"height": 96, "width": 64, "num_frames": 5}
    poses = driving.from_pose_video(read_video(job.pose_video, num_frames=5), **shape, fps=None)
    frames = plain(
        read_image(job.image), poses.pose_video, "a figure", num_inference_steps=2, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5), output_type="np"
    ).frames[0]  # fmt: skip
    assert np.array_equal(engine.animate(job).frames, (np.clip(frames, 0, 1) * 255 + 0.5).astype(np.uint8))


def test_a_job_names_its_model_and_gets_what_that_model_alone_would_give(
    engine: Engine, tiny_model: Path, masked: Path, job: AnimationJob
):
    assert engine.residents.names == ["dynamictrl", "clothes-mask"]
    lone = locate(str(tiny_model), str(masked))
    alone = Engine(lone, "mini/dwpose", device="cpu", threads=1).animate(job)
    clip = engine.animate(replace(job, model="clothes-mask"))
    assert np.array_equal(clip.frames, alone.frames)
    assert clip.model_version == lone.version
    assert not np.array_equal(clip.frames, engine.animate(job).frames)
    with pytest.raises(InputError, match="is not served"):
        engine.animate(replace(job, model="nobody"))


def test_a_lora_is_worn_by_its_own_job_alone(engine: Engine, job: AnimationJob):
    bare = engine.animate(job)
    styled = engine.animate(wearing(job, ("style.1", 0.7)))
    assert not np.array_equal(styled.frames, bare.frames)
    assert np.array_equal(engine.animate(job).frames, bare.frames)
    assert np.array_equal(engine.animate(wearing(job, ("same", 0.7))).frames, styled.frames)
    assert not np.array_equal(engine.animate(wearing(job, ("style.1", 0.2))).frames, styled.frames)


@pytest.mark.parametrize("trouble", [Stopped, ValueError])
def test_a_lora_is_off_after_a_job_that_ended_badly(engine: Engine, job: AnimationJob, trouble: type[Exception]):
    bare = engine.animate(job)

    def break_off(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("denoising", 1):
            raise trouble

    with pytest.raises(trouble):
        engine.animate(wearing(job, ("style.1", 1.0)), on_step=break_off)
    assert np.array_equal(engine.animate(job).frames, bare.frames)


def test_switching_takes_a_tenth_of_a_second_at_most(engine: Engine):
    def seconds(switch: Callable[[], None]) -> float:
        started = time.process_time()
        switch()
        return time.process_time() - started

    def there_and_back() -> None:
        with engine.residents.in_use("clothes-mask", [("style.1", 0.5)]):
            pass
        with engine.residents.in_use("dynamictrl", [("same", 0.5)]):
            pass

    assert min(seconds(there_and_back) for _ in range(3)) < 0.2


def test_a_lora_that_is_not_served_is_refused(engine: Engine, job: AnimationJob):
    with pytest.raises(InputError, match="it has same, style"):
        engine.animate(wearing(job, ("nobody", 1.0)))


def test_a_model_with_another_vae_has_no_place_beside_this_one(engine: Engine, tiny_model: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    weights = next((other / "vae").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ConfigError, match="another vae"):
        engine.add_model(replace(locate(str(other)), name="other"))
    assert engine.residents.names == ["dynamictrl", "clothes-mask"]


def test_models_come_and_go(engine: Engine, tiny_model: Path, job: AnimationJob):
    engine.add_model(replace(locate(str(tiny_model)), name="again"))
    clip: Clip = engine.animate(replace(job, model="again"))
    assert np.array_equal(clip.frames, engine.animate(job).frames)
    engine.remove_model("again")
    assert "again" not in engine.residents.names
    with pytest.raises(ConfigError, match="default"):
        engine.remove_model("dynamictrl")


def test_what_does_not_fit_is_said_before_it_is_loaded(tiny_model: Path, style: Path):
    sources = [locate(str(tiny_model))]
    plan = plan_memory(sources, [style], dtype="float32", free_bytes=2**33, float8=False)
    check_memory(plan, "cpu")
    files = [p for part in ("vae", "text_encoder", "transformer") for p in (tiny_model / part).glob("*.safetensors")]
    on_disk = (sum(file.stat().st_size for file in files) + style.stat().st_size) / 2**30
    assert plan.total_gib == pytest.approx(on_disk, rel=0.1)  # float32 as they lie, but for the headers
    assert set(plan.parts) == {"text_encoder", "vae", "transformer dynamictrl", "loras"}
    with pytest.raises(ConfigError, match="do not fit on cpu: weights"):
        check_memory(plan_memory(sources, [], dtype="float32", free_bytes=2**16, float8=False), "cpu")


def test_names_are_checked_before_a_folder_is_looked_at(tiny_model: Path):
    assert model_names(Service(model="./m", models=("a=./a", "b/c=./b"))) == ["dynamictrl", "a", "b/c"]
    for wrong in ("a", "=x", "a=", "a b=x"):
        with pytest.raises(ConfigError, match="NAME=PLACE"):
            Service(models=(wrong,))
    with pytest.raises(ConfigError, match="each name once"):
        Service(loras=("a=x", "a=y"))
    with pytest.raises(CheckpointError, match="two models"):
        locate_all(str(tiny_model), "", {"dynamictrl": str(tiny_model)})
