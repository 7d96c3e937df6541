"""Small real videos, and a pipeline without weights that runs over them."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dynamictrl.media.video import write_video
from dynamictrl.poses.pose import NUM_KEYPOINTS, PoseSequence
from dynamictrl.samples.shards import pack_mask
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.pipeline import Pipeline
from pipelines.stage import Stage
from pipelines.stages.cut_clips import CutClips
from pipelines.stages.fetch import Fetch
from pipelines.stages.find_videos import FindVideos
from pipelines.stages.keep_duration import KeepDuration
from pipelines.stages.probe import Probe
from pipelines.stages.split_shots import SplitShots
from pipelines.stages.write_shards import WriteShards

HEIGHT, WIDTH, FPS = 96, 128, 12


@pytest.fixture
def bucket(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix of a bucket that this environment can reach."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_EC2_METADATA_DISABLED": "true",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    request = urllib.request.Request(f"{s3_server}/tests", method="PUT")
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=10).close()
    return f"s3://tests/{uuid.uuid4().hex}/set"


def shot(seed: int, frames: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Coarse coloured blocks, sliding: every seed looks different, so a change of seed is a cut."""
    blocks = np.random.default_rng(seed).integers(0, 255, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    picture = np.kron(blocks, np.ones((16, 16, 1), np.uint8))[:height, :width]
    return np.stack([np.roll(picture, 2 * i, axis=1) for i in range(frames)])


def still_person(frames: int, x: float = 0.5) -> PoseSequence:
    """Someone who stands upright at `x`, every point seen."""
    keypoints = np.full((frames, 1, NUM_KEYPOINTS, 2), (x, 0.5), np.float32)
    keypoints[:, 0, :18, 1] = np.linspace(0.15, 0.85, 18)
    box = np.tile(np.array([x - 0.1, 0.1, x + 0.1, 0.9], np.float32), (frames, 1, 1))
    return PoseSequence(keypoints, np.ones((frames, 1, NUM_KEYPOINTS), np.float32), box, np.array([1], np.int32))


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    """Writes a video of shots, each given as (seed, frames), and returns its path."""

    def make(name: str, *shots: tuple[int, int], fps: float = FPS, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
        path = tmp_path / "videos" / name
        path.parent.mkdir(exist_ok=True)
        write_video(path, np.concatenate([shot(seed, frames, *size) for seed, frames in shots]), fps)
        return path

    return make


@pytest.fixture
def cut_clip(tmp_path: Path) -> Callable[..., Clip]:
    """A clip as the stages after the cut see it, with its mp4 in the work folder."""

    def make(frames: NDArray[np.uint8] | None = None, **fields: object) -> Clip:
        frames = shot(1, 24) if frames is None else frames
        count, height, width = frames.shape[:3]
        clip = Clip(source_sha256="ab" * 32, work=str(tmp_path / "work"), fps=FPS, frames=count)
        clip = replace(clip, width=width, height=height, **fields).at(0.0, count / FPS)  # type: ignore[arg-type]
        clip.folder.mkdir(parents=True)
        write_video(clip.file("mp4"), frames, FPS)
        return clip.with_file("mp4")

    return make


@dataclass(frozen=True)
class StandStill(Stage):
    """In place of pose, masks and captions: says that someone stands in the middle. For tests that need no model."""

    caption: str = "someone stands still"

    def process(self, clip: Clip) -> Iterable[Clip]:
        storage.write_bytes(clip.file("pose.npz"), still_person(clip.frames).to_npz())
        mask = np.zeros((clip.frames, clip.height, clip.width), np.uint8)
        mask[:, clip.height // 8 : -clip.height // 8, clip.width * 2 // 5 : clip.width * 3 // 5] = 1
        storage.write_bytes(clip.file("mask.npz"), pack_mask(mask))
        said = replace(clip, caption=self.caption).with_file("pose.npz").with_file("mask.npz")
        yield said.with_scores(brightness=float(clip.start)).with_models(pose="stand-still")


@dataclass(frozen=True, kw_only=True)
class Weightless(Pipeline):
    """A whole pipeline that needs no weights."""

    find: FindVideos = field(default_factory=FindVideos)
    fetch: Fetch = field(default_factory=Fetch)
    probe: Probe = field(default_factory=Probe)
    shots: SplitShots = field(default_factory=SplitShots)
    duration: KeepDuration = field(default_factory=lambda: KeepDuration(shortest=1.0))
    cut: CutClips = field(default_factory=lambda: CutClips(longest=2.5, fps=FPS, width=WIDTH, height=HEIGHT))
    person: StandStill = field(default_factory=StandStill)
    shards: WriteShards = field(default_factory=lambda: WriteShards(size=0.05))


@pytest.fixture
def weightless(tmp_path: Path) -> Callable[..., Weightless]:
    """The pipeline over `tmp_path/videos` into `tmp_path/out`, in this process."""

    def make(**fields: object) -> Weightless:
        # Without a time limit nothing is decoded in a process of its own, which takes a second to start.
        settings: dict[str, object] = {
            "videos": (str(tmp_path / "videos"),),
            "out": tmp_path / "out",
            "time_limit": 0.0,
        }
        return Weightless(**{"local": True, **settings, **fields})  # type: ignore[arg-type]

    return make
