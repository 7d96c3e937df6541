"""A worker follows a rollout between its jobs: real weights in a real registry, no restart."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.backend import Backend, open_backend
from serving.config import Defaults
from serving.jobs.job import Settings
from serving.jobs.store import new_video_id
from serving.recipes import mini
from serving.rendering.worker import Worker
from serving.rollout.registry import uri_of, version_by_alias
from serving.rollout.smoke import fault_of
from serving.rollout.state import Rollout, alias_names, passed, promoted

SETTINGS = Settings(
    prompt="p", width=64, height=96, num_frames=5, fps=12.0, resample=False, num_inference_steps=2, guidance_scale=1.0,
    seed=1
)  # fmt: skip


def another(model: Path, target: Path, factor: float) -> Path:
    """The same text encoder and VAE, another transformer."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, target)
    (weights,) = (target / "transformer").glob("*.safetensors")
    save_file({name: tensor * factor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    return target


@pytest.fixture(scope="module")
def worker(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """A worker on version 1 of `tiny`; 2 is other weights, 3 is no numbers, 4 is no model."""
    import mlflow

    folder = tmp_path_factory.mktemp("registry")
    tracking = f"sqlite:///{folder / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking, registry_uri=tracking)
    client.create_registered_model("tiny")
    empty = folder / "empty"
    empty.mkdir()
    for place in (
        tiny_model, another(tiny_model, folder / "two", 1.05), another(tiny_model, folder / "nan", float("nan")), empty
    ):  # fmt: skip
        client.create_model_version("tiny", str(place))
    client.set_registered_model_alias("tiny", "champion", "1")
    service = replace(
        mini(), model="models:/tiny@champion", data_folder=folder / "data", threads=1,
        defaults=Defaults(width=64, height=96, guidance_scale=1.0)
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking)
        backend = open_backend(service)
        assert backend.rollouts is not None
        state = backend.rollouts.begin(version_by_alias(service.model))
        worker = Worker(replace(backend, service=replace(service, model=uri_of(state.stable))))
        yield worker
        worker.leave()


def now(backend: Backend) -> Rollout:
    assert backend.rollouts is not None
    backend.rollouts.forget()
    state = backend.rollouts.get()
    assert state is not None
    return state


def go(backend: Backend, new: Rollout) -> None:
    assert backend.rollouts is not None
    assert backend.rollouts.step(now(backend), new, "test")
    backend.rollouts.forget()


def rendered_by(worker: Worker, media: tuple[Path, Path]) -> tuple[str | None, str | None]:
    """The version that a new job is pinned to, and the one that renders it."""
    backend, video_id = worker.backend, new_video_id()
    backend.blobs.keep_media(video_id, {"input_reference": media[0], "pose_video": media[1]})
    backend.store.add(
        video_id=video_id, model="tiny", settings=SETTINGS, content_hash=video_id,
        inputs={"input_reference": "0", "pose_video": "0"}
    )  # fmt: skip
    lease = backend.store.lease("test", 60.0, 3)
    assert lease is not None
    assert worker.render(video_id, lease.token) == "completed"
    video = backend.store.get(video_id)
    assert video is not None
    return video.target_version, video.model_version


def test_a_worker_goes_from_one_version_to_the_next(worker: Worker, person_and_pose: tuple[Path, Path]):
    backend = worker.backend
    assert now(backend).proven
    assert rendered_by(worker, person_and_pose) == (None, "tiny/1")

    checking = alias_names(now(backend), "tiny/2", 1.0)
    go(backend, checking)
    smoke = worker.try_out("tiny/2")
    assert smoke.ok, smoke.what
    assert rendered_by(worker, person_and_pose) == (None, "tiny/1")

    canary = passed(checking, 100, 2.0, "")
    go(backend, canary)
    assert rendered_by(worker, person_and_pose) == ("tiny/2", "tiny/2")
    assert [(model.name, model.version) for model in worker.models] == [("tiny", "tiny/1")]

    go(backend, promoted(canary, 3.0, ""))
    assert rendered_by(worker, person_and_pose) == (None, "tiny/2")
    assert worker.following is not None
    worker.following.catch_up()
    assert [(model.name, model.version) for model in worker.models] == [("tiny", "tiny/2")]
    assert worker.engine.residents.names == ["tiny/2"]


@pytest.mark.parametrize(("version", "why"), [("tiny/3", "is a blank"), ("tiny/4", "cannot be used")])
def test_a_broken_version_is_found_out_and_leaves_nothing_behind(
    worker: Worker, person_and_pose: tuple[Path, Path], version: str, why: str
):
    before = worker.engine.residents.names
    smoke = worker.try_out(version)
    assert not smoke.ok
    assert why in smoke.what
    assert worker.engine.residents.names == before
    assert rendered_by(worker, person_and_pose)[1] == now(worker.backend).stable


def test_a_version_that_cannot_be_loaded_here_leaves_the_jobs_to_the_one_that_is(
    worker: Worker, person_and_pose: tuple[Path, Path]
):
    backend, old = worker.backend, now(worker.backend)
    go(backend, replace(old, stable="tiny/4"))
    assert rendered_by(worker, person_and_pose)[1] == old.stable
    go(backend, old)


@pytest.mark.parametrize(
    ("frames", "fault"),
    [
        (np.zeros((5, 96, 64, 3), np.uint8), "is a blank"),
        (np.full((5, 96, 64, 3), 120, np.uint8), "is a blank"),
        (np.zeros((4, 96, 64, 3), np.uint8), "has the shape"),
    ],
)
def test_a_smoke_clip_is_looked_at(frames: np.ndarray, fault: str):
    assert fault in (fault_of(frames, SETTINGS) or "")
    fine = np.random.default_rng(0).integers(0, 255, (5, 96, 64, 3), np.uint8)
    assert fault_of(fine, SETTINGS) is None
