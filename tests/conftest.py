"""What several test files share: real media where it is at hand, one local Ray, tiny real models."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.postgres import LocalPostgres

# Tiny tensors gain nothing from threads, and two threads that wait for each other on cores that are busy lose much.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray's workers would give way to whatever else runs, and `make test` runs the other half of the tests beside them.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real human clips and broken media, kept outside the project (they may not be redistributed)."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real test media are not on this machine ({SHARED_DATA})")
    return SHARED_DATA


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local Ray for the whole test session, whatever other Ray a broken test left behind."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def postgres() -> Iterator[LocalPostgres]:
    """One PostgreSQL server for the whole test session; its database `fresh` has the service's tables, empty."""
    from serving.jobs.database import open_database
    from tests.postgres import LocalPostgres

    server = LocalPostgres()
    server.start()
    open_database(server.new_database("fresh")).dispose()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of a server on this machine that speaks the S3 protocol."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole DynamiCtrl folder (1.5-shaped, PadaLN) of tiny random weights: real classes, random pictures."""
    from dynamictrl.mini.tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def tiny_captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner folder of the mini captioner's classes, sizes of pictures and words, with tiny random weights."""
    import torch

    from dynamictrl.mini.captioner import models
    from dynamictrl.mini.captioner.tokenizer import build_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("captioner"), build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models.save(folder, models.captioner(tokenizer, num_hidden_layers=2, intermediate_size=64), tokenizer)
    return folder


@pytest.fixture(scope="session")
def person_and_pose(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A picture (64x96) and a drawn pose video (64x96, 12 fps, 17 frames) of a figure that moves its arm."""
    import numpy as np
    from PIL import Image

    from dynamictrl.media.video import write_video
    from dynamictrl.poses.pose import NUM_KEYPOINTS, RIGHT_WRIST, PoseSequence
    from dynamictrl.poses.pose_drawing import draw_pose

    folder = tmp_path_factory.mktemp("person_and_pose")
    frames = 17
    generator = np.random.default_rng(7)
    keypoints = np.repeat(generator.uniform(0.3, 0.7, (1, 1, NUM_KEYPOINTS, 2)), frames, axis=0).astype(np.float32)
    keypoints[:, 0, RIGHT_WRIST, 0] = np.linspace(0.1, 0.9, frames)
    scores = np.ones((frames, 1, NUM_KEYPOINTS), np.float32)
    boxes = np.tile(np.array([0.1, 0.1, 0.9, 0.9], np.float32), (frames, 1, 1))
    pose = PoseSequence(keypoints, scores, boxes, np.array([1], np.int32))
    write_video(folder / "pose.mp4", draw_pose(pose, 96, 64), 12)
    Image.fromarray(generator.integers(0, 255, (96, 64, 3), dtype=np.uint8)).save(folder / "person.png")
    return folder / "person.png", folder / "pose.mp4"


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set folder of marionettes, as curation writes it: six clips of 13 to 18 frames and one of 3."""
    import json

    import numpy as np

    from dynamictrl.media.video import encode_video
    from dynamictrl.mini.marionettes import sample_clip
    from dynamictrl.samples import shards

    root = tmp_path_factory.mktemp("data") / "set"
    samples = []
    for number, frames in enumerate([13, 14, 15, 3, 16, 17, 18]):
        clip = sample_clip(np.random.default_rng(number), num_frames=frames, height=96, width=64, fps=12)
        info = {"schema_version": shards.SCHEMA_VERSION, "fps": 12.0, "frames": frames, "height": 96, "width": 64}
        members = {
            "mp4": encode_video(clip.frames, 12),
            "pose.npz": clip.pose.to_npz(),
            "mask.npz": shards.pack_mask(clip.persons, clip.clothes),
            "txt": clip.caption.encode(),
            "json": json.dumps(info).encode(),
        }
        samples.append(shards.Sample(f"clip{number:04d}", members))
    for number, part in enumerate((samples[:4], samples[4:])):
        shards.write_shard(root / "shards" / shards.SHARD_NAME.format(number), part)
    shards.write_json(root / "dataset.json", {"schema_version": shards.SCHEMA_VERSION, "recipe": "tests"})
    return root
