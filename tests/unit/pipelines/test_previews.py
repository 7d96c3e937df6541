"""What is kept of a refused clip to look at, and what a description says of its stages' limits."""

import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.clip import Clip
from pipelines.datasets.stage_list import Limit, limits, listed, stage_list
from pipelines.files import storage
from pipelines.recipes import curate_mini
from pipelines.stage import Stage
from pipelines.work.previews import MOST_BYTES, preview_path, write_preview
from tests.unit.pipelines.conftest import shot, still_person

Make = Callable[..., Clip]


@dataclass(frozen=True)
class KeepBright(Stage):
    """A filter by one score."""

    darkest: float = 20.0

    @property
    def limits(self) -> Mapping[str, tuple[float, float]]:
        return {"brightness": (self.darkest, math.inf)}

    def process(self, clip: Clip) -> Iterable[Clip]:
        yield clip


def test_a_refused_clip_leaves_three_small_pictures(cut_clip: Make, tmp_path: Path):
    clip = cut_clip(np.kron(shot(1, 24, 96, 160), np.ones((1, 8, 8, 1), np.uint8)))
    path = write_preview(clip.reject("blurred"))
    assert path is not None
    assert path == preview_path(tmp_path / "work", clip.key)
    content = path.read_bytes()
    assert len(content) <= MOST_BYTES
    # 144 high, three times 240 wide.
    assert Image.open(io.BytesIO(content)).size == (720, 144)


def test_the_pictures_are_of_three_different_moments(cut_clip: Make):
    frames = np.stack([np.full((96, 128, 3), 8 * i, np.uint8) for i in range(24)])
    path = write_preview(cut_clip(frames))
    assert path is not None
    strip = np.asarray(Image.open(path)).astype(int)
    left, middle, right = (strip[:, start + 40 : start + 80].mean() for start in (0, 128, 256))
    assert (left, middle, right) == pytest.approx((8 * 4, 8 * 12, 8 * 20), abs=6)


def test_the_skeleton_is_drawn_where_it_is_known(cut_clip: Make):
    plain = cut_clip(np.zeros((24, 96, 128, 3), np.uint8))
    before = write_preview(plain)
    assert before is not None
    assert np.asarray(Image.open(before)).max() < 10
    storage.write_bytes(plain.file("pose.npz"), still_person(24).to_npz())
    after = write_preview(plain.with_file("pose.npz"))
    assert after is not None
    assert np.asarray(Image.open(after)).max() > 100


def test_noise_still_fits_in_the_limit(cut_clip: Make):
    noise = np.random.default_rng(0).integers(0, 255, (4, 720, 1280, 3), dtype=np.uint8)
    path = write_preview(cut_clip(noise))
    assert path is not None
    assert path.stat().st_size <= MOST_BYTES


def test_a_clip_that_cannot_be_shown_costs_nothing(cut_clip: Make, tmp_path: Path):
    clip = cut_clip()
    clip.file("mp4").write_bytes(b"no video")
    assert write_preview(clip) is None
    assert write_preview(replace(clip, files=())) is None
    assert write_preview(Clip(work=str(tmp_path)).with_file("mp4")) is None
    assert not (tmp_path / "work" / "previews").exists()


def test_a_stage_names_its_limits_and_the_description_keeps_them_in_order():
    stages = stage_list({"bright": KeepBright(darkest=12), "plain": Stage()})
    text = json.loads(json.dumps({"stages": stages, "settings": {}}))
    assert [entry["field"] for entry in listed(text)] == ["bright", "plain"]
    assert limits(text) == [Limit("keep_bright", "brightness", 12.0, None)]


def test_an_older_description_is_put_in_the_order_of_its_recipe():
    settings = curate_mini().settings()
    shuffled = {name: settings[name] for name in sorted(settings)}
    fields = [entry["field"] for entry in listed({"recipe": "curate-mini", "settings": shuffled})]
    assert fields == list(settings)


@pytest.mark.parametrize(
    ("low", "high", "value", "expected"),
    [(20.0, None, 30.0, 0.5), (20.0, None, 10.0, -0.5), (None, 4.0, 5.0, -0.25), (1.0, 2.0, 1.5, 0.25)],
)
def test_a_distance_to_a_limit_is_positive_inside(low: float | None, high: float | None, value: float, expected: float):
    assert Limit("s", "x", low, high).distance(value) == pytest.approx(expected)
