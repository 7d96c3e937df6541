"""The published dwpose package and our runner, on the same ONNX files."""

import os
from pathlib import Path

import numpy as np
import pytest

from dynamictrl.errors import ConfigError
from dynamictrl.mini.marionettes import MarionetteScene
from dynamictrl.poses.dwpose import PoseEstimator
from dynamictrl.poses.dwpose_package import is_installed, package_keypoints


@pytest.fixture(scope="module")
def package_python() -> Path | None:
    """An interpreter that has the package: DYNAMICTRL_DWPOSE_PYTHON, or the one the tests run in."""
    named = os.environ.get("DYNAMICTRL_DWPOSE_PYTHON")
    python = Path(named) if named else None
    if not is_installed(python):
        pytest.skip("the package dwpose is not installed (extra `dwpose`, or name an env in DYNAMICTRL_DWPOSE_PYTHON)")
    return python


def test_the_package_finds_the_same_keypoints_as_our_runner(package_python):
    frames = MarionetteScene(3, 4, 5, persons=2, close_up=False).render(4, 360, 640, 6).frames
    size = np.array([640, 360])
    ours = PoseEstimator("mini/dwpose", num_threads=1)(frames)
    theirs = package_keypoints(frames, "mini/dwpose", python=package_python)
    assert [len(people) for people in theirs] == [2] * 4
    for frame, people in enumerate(theirs):
        for person in people:
            gap = np.abs(ours.keypoints[frame] * size - person[None, :, :2]).max(axis=-1)
            same = gap[gap.mean(axis=-1).argmin()], ours.scores[frame, gap.mean(axis=-1).argmin()]
            # One SimCC bin is under a pixel here; a tie between two bins may fall either way.
            assert (same[0] < 0.05).mean() > 0.97
            assert same[0].max() < 3
            np.testing.assert_allclose(same[1], person[:, 2], atol=0.02)


def test_an_empty_picture_has_nobody_in_it_for_the_package_too(package_python):
    found = package_keypoints(np.zeros((2, 64, 64, 3), np.uint8), "mini/dwpose", python=package_python)
    assert [people.shape for people in found] == [(0, 134, 3)] * 2


def test_a_missing_package_is_said_with_the_way_to_get_it(tmp_path):
    if is_installed():
        pytest.skip("the package is installed here")
    with pytest.raises(ConfigError, match="extra `dwpose`"):
        package_keypoints(np.zeros((1, 64, 64, 3), np.uint8), "mini/dwpose")
