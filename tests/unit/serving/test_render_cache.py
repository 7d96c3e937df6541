"""What is found again by its content, what memory allows, and stopping while the VAE works."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynamictrl.errors import ConfigError, InputError
from serving.jobs.job import QUALITIES, AnimationJob, Settings
from serving.rendering import tiers, warm_up
from serving.rendering.content_cache import ContentCache, content_key
from serving.rendering.engine import Engine, Stopped
from serving.rendering.model_source import locate

SETTINGS = Settings(
    prompt="a figure", width=64, height=96, num_frames=9, fps=12.0, resample=False, num_inference_steps=2,
    guidance_scale=3.0, seed=5
)  # fmt: skip


@pytest.fixture
def engine(tiny_engine: Engine) -> Engine:
    tiny_engine.cache.clear()
    tiny_engine.cache.counts.clear()
    return tiny_engine


@pytest.fixture(scope="module")
def tiny_engine(tiny_model: Path) -> Engine:
    return Engine(locate(str(tiny_model)), "mini/dwpose", device="cpu", threads=1)


@pytest.fixture
def job(person_and_pose: tuple[Path, Path]) -> AnimationJob:
    person, pose = person_and_pose
    return AnimationJob(settings=SETTINGS, image=person, pose_video=pose)


def hits(engine: Engine) -> dict[str, tuple[int, int]]:
    return {kind: (found.hits, found.misses) for kind, found in engine.cache.counts.items()}


def test_the_same_content_is_encoded_once_and_gives_the_same_frames(engine: Engine, job: AnimationJob, tmp_path: Path):
    first = engine.animate(job)
    expected = {"poses": (0, 1), "prompts": (0, 2), "reference_latents": (0, 1), "pose_latents": (0, 1)}
    assert hits(engine) == expected
    assert job.pose_video is not None
    copied = replace(job, pose_video=Path(shutil.copy(job.pose_video, tmp_path / "other name.mp4")))
    again = engine.animate(copied)
    assert hits(engine) == {kind: (misses, misses) for kind, (_, misses) in expected.items()}
    assert np.array_equal(first.frames, again.frames)
    reseeded = engine.animate(replace(job, settings=replace(SETTINGS, seed=6, prompt="two figures")))
    assert hits(engine)["prompts"] == (3, 3)  # the empty one was known
    engine.pipeline.cache = ContentCache(0)
    try:
        cold = engine.animate(replace(job, settings=replace(SETTINGS, seed=6, prompt="two figures")))
    finally:
        engine.pipeline.cache = engine.cache
    assert np.array_equal(reseeded.frames, cold.frames)


def test_another_person_in_a_known_motion_is_another_reference(engine: Engine, job: AnimationJob, tmp_path: Path):
    engine.animate(job)
    Image.effect_noise((64, 96), 50).convert("RGB").save(tmp_path / "other.png")
    engine.animate(replace(job, image=tmp_path / "other.png"))
    found = hits(engine)
    assert found["pose_latents"] == (1, 1)
    assert found["reference_latents"] == (0, 2)


def test_a_cache_keeps_to_its_bytes_and_lets_the_longest_unused_go():
    cache = ContentCache(100)

    def get(key: str, size: int = 40) -> str:
        return cache.get("kind", key, lambda: key.upper(), lambda _: size)

    assert [get("a"), get("b"), get("a"), get("c")] == ["A", "B", "A", "C"]
    assert cache.bytes == 80
    assert (get("a"), cache.counts["kind"].hits) == ("A", 2)  # b went, not a
    get("d", 101)
    assert cache.bytes == 80


def test_a_key_is_the_content_whatever_the_file_is_called(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert content_key(tmp_path / "a", 1) == content_key(tmp_path / "b", 1)
    zeros = np.zeros((2, 3), np.uint8)
    assert len({content_key(zeros), content_key(zeros.T), content_key(zeros.astype(np.int8)), content_key(0)}) == 4


def test_it_stops_while_the_vae_works(engine: Engine, job: AnimationJob):
    stages: list[str] = []
    with pytest.raises(Stopped):
        engine.animate(job, lambda stage, *_: stages.append(stage), lambda: stages[-1:] == ["decoding"])
    assert stages[-1] == "decoding"
    assert len(engine.animate(job).frames) == 9


def failing(engine: Engine, when: Callable[[], bool]):  # noqa: ANN201 - torch's handle
    def refuse(*_: object) -> None:
        if when():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    return engine.pipeline.vae.decoder.register_forward_pre_hook(refuse)


def test_a_clip_that_does_not_fit_is_tried_once_more_in_tiles(engine: Engine, job: AnimationJob):
    whole = engine.animate(job)
    handle = failing(engine, lambda: not engine.pipeline.vae.use_tiling)
    try:
        tiled = engine.animate(job)
    finally:
        handle.remove()
    assert (whole.made_with["vae"], tiled.made_with["vae"]) == ("whole", "tiled")
    assert tiled.frames.shape == whole.frames.shape
    assert np.array_equal(engine.animate(job).frames, whole.frames)
    assert np.array_equal(engine.animate(replace(job, vae="tiled")).frames, tiled.frames)


def test_a_clip_that_fits_in_no_way_is_refused_and_the_engine_lives_on(engine: Engine, job: AnimationJob):
    handle = failing(engine, lambda: True)
    try:
        with pytest.raises(InputError, match="fewer pixels") as refusal:
            engine.animate(job)
    finally:
        handle.remove()
    assert refusal.value.code == "out_of_memory"
    assert len(engine.animate(job).frames) == 9


def test_warming_renders_each_shape_and_leaves_no_trace(engine: Engine, caplog: pytest.LogCaptureFixture):
    shapes = [warm_up.parse("64x96x5"), warm_up.parse("32x48x5")]
    with caplog.at_level("INFO", "serving.rendering.warm_up"):
        warm_up.all_shapes(engine, shapes, ("exact",), 3.0)
    said = [record.message for record in caplog.records if record.name == "serving.rendering.warm_up"]
    assert [message.split(",")[0] for message in said] == ["warm: 64x96x5", "warm: 32x48x5"]
    assert engine.cache.counts == {}
    for wrong in ("64x96", "64x96x6", "63x96x5", "x"):
        with pytest.raises(ConfigError):
            warm_up.parse(wrong)


def test_a_quality_takes_its_shortcuts_and_leaves_none_on(
    engine: Engine, job: AnimationJob, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(tiers.TIERS, "balanced", tiers.Tier(step_cache=10.0))
    settings = replace(SETTINGS, num_inference_steps=4)
    exact = engine.animate(replace(job, settings=settings))
    quick = engine.animate(replace(job, settings=replace(settings, quality="balanced")))
    assert exact.made_with["steps_computed"] is None
    assert quick.made_with["steps_computed"] == [[0, 2, 3]]  # one in a row is left out, and never the last
    assert not np.array_equal(quick.frames, exact.frames)
    assert np.array_equal(engine.animate(replace(job, settings=settings)).frames, exact.frames)


def test_every_quality_on_offer_is_a_tier():
    assert set(tiers.TIERS) == set(QUALITIES)
    assert tiers.TIERS["exact"] == tiers.Tier()


def test_stage_seconds_add_up_and_cost_is_said(engine: Engine, job: AnimationJob):
    clip = engine.animate(job)
    assert list(clip.stage_seconds) == ["prepare", "text", "encode", "denoise", "decode"]
    assert clip.gpu_seconds == pytest.approx(sum(clip.stage_seconds.values()))
    assert clip.made_with["model_version"] == engine.model.version
