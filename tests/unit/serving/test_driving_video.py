"""A driving video of a person, read by the shipped mini pose model: taken, or refused where nobody is to be seen."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from dynamictrl.errors import InputError
from dynamictrl.media.video import read_video, write_video
from dynamictrl.mini.marionettes import sample_clip
from dynamictrl.poses.pose_drawing import draw_pose
from serving.__main__ import main
from serving.jobs.job import AnimationJob, Settings
from serving.recipes import mini
from serving.rendering.engine import Engine
from serving.rendering.model_source import locate
from serving.web.api import build_api

SETTINGS = Settings(
    prompt="a figure", width=128, height=192, num_frames=5, fps=12.0, resample=False, num_inference_steps=1,
    guidance_scale=1.0, seed=5
)  # fmt: skip


@dataclass(frozen=True)
class Media:
    person: Path
    driving: Path
    nobody: Path


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    """A marionette's picture, another one's dance, and a picture of nothing."""
    folder = tmp_path_factory.mktemp("marionettes")
    media = Media(folder / "person.png", folder / "driving.mp4", folder / "nobody.png")
    generator = np.random.default_rng(3)
    person, dance = (sample_clip(generator, 9, 192, 128, 12.0, persons=1) for _ in range(2))
    Image.fromarray(person.frames[0]).save(media.person)
    write_video(media.driving, dance.frames, 12.0)
    Image.new("RGB", (128, 192), (90, 120, 90)).save(media.nobody)
    return media


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine(locate(str(tiny_model)), "mini/dwpose", device="cpu", threads=1)


def poses_of(engine: Engine, job: AnimationJob, image: Image.Image) -> NDArray[np.uint8]:
    return engine._motions.of(job, image, lambda: engine.estimator).pose_video


def test_a_persons_image_follows_another_persons_video(engine: Engine, media: Media):
    clip = engine.animate(AnimationJob(settings=SETTINGS, image=media.person, driving_video=media.driving))
    assert clip.frames.shape == (5, 192, 128, 3)


def test_the_released_way_draws_and_aligns_as_published(tiny_model: Path, media: Media):
    engine = Engine(locate(str(tiny_model)), "mini/dwpose", device="cpu", threads=1, compatibility="released")
    job = AnimationJob(settings=SETTINGS, image=media.person, driving_video=media.driving)
    image = Image.open(media.person)
    own = draw_pose(engine.estimator(np.asarray(image)[None]), 192, 128, style="released")
    assert np.array_equal(poses_of(engine, job, image)[0], own[0])
    assert engine.animate(job).frames.shape == (5, 192, 128, 3)


def test_the_alignment_can_be_chosen_and_limbs_are_the_default(tiny_model: Path, media: Media, engine: Engine):
    job = AnimationJob(settings=SETTINGS, image=media.person, driving_video=media.driving)
    image = Image.open(media.person)
    drawn = {"auto": poses_of(engine, job, image)}
    for name in ("limbs", "affine", "none"):
        other = Engine(locate(str(tiny_model)), "mini/dwpose", device="cpu", threads=1, alignment=name)
        other._estimator = engine.estimator
        drawn[name] = poses_of(other, job, image)
    assert np.array_equal(drawn["auto"], drawn["limbs"])
    assert not np.array_equal(drawn["limbs"], drawn["affine"])
    # Both videos are 192x128: where nothing is aligned, poses lie where the estimator found them.
    frames = read_video(media.driving, num_frames=5).frames
    assert np.array_equal(drawn["none"], draw_pose(engine.estimator(frames), 192, 128))


def test_an_image_without_a_person_is_refused(engine: Engine, media: Media):
    with pytest.raises(InputError) as refused:
        engine.animate(AnimationJob(settings=SETTINGS, image=media.nobody, driving_video=media.driving))
    assert refused.value.code == "no_person_in_image"


def test_the_command_line_exits_with_2_where_there_is_nobody(
    tiny_model: Path, media: Media, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["animate", "--model", tiny_model, "--image", media.nobody, "--driving", media.driving, "--prompt", "p"]
    assert main([*map(str, words), "--out", str(tmp_path / "o.mp4"), "--num-frames", "5"]) == 2
    assert "person" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "o.mp4").exists()


@pytest.fixture(scope="module")
def http(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    service = replace(mini(), model=str(tiny_model), data_folder=tmp_path_factory.mktemp("data"))
    with TestClient(build_api(service), base_url="http://127.0.0.1") as client:
        yield client


def test_the_service_refuses_a_job_without_a_person_at_once(http: TestClient, media: Media):
    def post(image: Path, path: str = "/v1/videos"):
        files = {"input_reference": image.open("rb"), "driving_video": media.driving.open("rb")}
        return http.post(path, data={"prompt": "p"}, files=files)

    refused = post(media.nobody)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_person_in_image")
    assert refused.json()["error"]["param"] == "input_reference"
    accepted = post(media.person)
    assert (accepted.status_code, accepted.json()["size"]) == (200, "128x192")
    assert post(media.person, "/v1/videos/preflight").json()["persons_in_image"] == 1
    assert post(media.nobody, "/v1/videos/preflight").json()["persons_in_image"] == 0
