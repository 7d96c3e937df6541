"""Cuts break the texture of a picture; lights and flashes do not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from dynamictrl.errors import CheckpointError
from dynamictrl.media.shots import AdaptiveShots, TransNet, TransNetShots, continuity, texture
from dynamictrl.media.video import iter_frames
from dynamictrl.media.video_damage import Span
from tests.benchmarks.shot_cuts import FPS, Labelled, found_by, scene, tally, videos

DEFAULTS = {"threshold": 2.0, "window": 3, "least_change": 6.0, "shortest": 0.6}


@pytest.fixture(scope="module")
def labelled() -> list[Labelled]:
    return list(videos(1))


def adaptive(same_shot: float = 0.4) -> AdaptiveShots:
    return AdaptiveShots(**DEFAULTS, same_shot=same_shot)


def test_hard_cuts_and_fades_are_found_and_nothing_else_is(labelled: list[Labelled]):
    for video in labelled:
        hit, false = tally(found_by(adaptive(), video), video.changes)
        assert false == 0, video.kind
        # Dissolves are left to the network.
        assert video.kind == "dissolve" or hit == len(video.changes), video.kind


def test_without_the_second_opinion_flashes_and_lights_are_taken_for_cuts(labelled: list[Labelled]):
    lit = [video for video in labelled if video.kind in ("flash", "lights change")]
    assert sum(tally(found_by(adaptive(same_shot=2.0), video), [])[1] for video in lit) >= 2


def test_texture_survives_other_light_and_no_cut():
    rng = np.random.default_rng(3)
    one, other = scene(rng, 3), scene(rng, 1)
    relit = np.clip(one[1] * np.array([0.5, 0.8, 1.1]) + 20, 0, 255).astype(np.uint8)
    assert continuity(texture(one[0]), texture(relit)) > 0.5
    assert continuity(texture(one[0]), texture(other[0])) < 0.3


def test_pictures_without_texture_prove_nothing():
    assert continuity(texture(np.zeros((144, 256, 3), np.uint8)), texture(np.zeros((144, 256, 3), np.uint8))) == 0


def test_stage_lights_are_no_cut_in_a_real_clip(shared_data: Path):
    detector, end = adaptive(), 0.0
    for time, frame in islice(iter_frames(shared_data / "clips/dynamictrl__motion1.mp4", max_pixels=256 * 144), 60):
        detector.add(time, frame)
        end = time
    assert len(detector.shots(end)) == 1


# TransNetV2.


def chances_at(*marked: int) -> Callable[[np.ndarray], np.ndarray]:
    """In place of the network: pictures carry their number, and those marked are transitions."""

    def network(frames: np.ndarray) -> np.ndarray:
        assert frames.shape == (100, 27, 48, 3)
        return np.isin(frames[:, 0, 0, 0], marked).astype(np.float32)

    return network


def shots_of(count: int, *marked: int) -> list[Span]:
    detector = TransNetShots(chances_at(*marked), threshold=0.5, shortest=0.3)  # type: ignore[arg-type]
    for index in range(count):
        detector.add(index / FPS, np.full((54, 96, 3), index, np.uint8))
    return detector.shots(count / FPS)


def test_a_hard_cut_is_the_last_frame_of_its_shot():
    # A cut between frames 59 and 60.
    assert shots_of(130, 59) == [Span(0, 60 / FPS), Span(60 / FPS, 130 / FPS)]


def test_frames_inside_a_dissolve_belong_to_no_shot():
    assert shots_of(230, *range(70, 80)) == [Span(0, 71 / FPS), Span(80 / FPS, 230 / FPS)]


@pytest.mark.parametrize("count", [1, 24, 50, 51, 99, 100, 101, 225])
def test_every_frame_is_looked_at_once_whatever_the_length(count: int):
    last = count - 10
    shots = shots_of(count, last) if last > 8 else shots_of(count)
    assert shots[-1].end == count / FPS
    assert len(shots) == (2 if last > 8 else 1)


def _field(number: int, content: bytes | int | str) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    content = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _tensor(name: str, dtype: int, shape: list[int]) -> bytes:
    dims = b"".join(_field(1, _field(1, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, dtype) + _field(2, dims)))


def tiny_network(path: Path, shape: list[int], dtype: int = 1) -> Path:
    """TransNetV2's signature in ONNX's own bytes: the answer is the mean brightness less 128, as a logit."""
    nodes = [
        _field(1, "frames") + _field(2, "float") + _field(4, "Cast") + _field(5, _int("to", 1)),
        _field(1, "float") + _field(2, "mean") + _field(4, "ReduceMean") + _field(5, _ints("axes", [2, 3, 4])),
        _field(1, "mean") + _field(1, "middle") + _field(2, "flat") + _field(4, "Sub"),
    ]
    middle = _field(1, 1) + _field(2, 1) + _field(8, "middle") + _field(9, np.float32([128]).tobytes())
    flat = _tensor("flat", 1, [1, 100, 1, 1, 1])
    graph = b"".join(_field(1, node) for node in nodes)
    graph += _field(2, "tiny") + _field(5, middle) + _field(11, _tensor("frames", dtype, shape)) + _field(12, flat)
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13)))
    return path


def _int(name: str, value: int) -> bytes:
    return _field(1, name) + _field(3, value) + _field(20, 2)


def _ints(name: str, values: list[int]) -> bytes:
    return _field(1, name) + b"".join(_field(8, value) for value in values) + _field(20, 7)


@pytest.mark.parametrize("dtype", [1, 2], ids=["float32", "uint8"])
def test_an_onnx_file_of_its_signature_runs_whatever_type_it_takes(tmp_path: Path, dtype: int):
    network = TransNet(tiny_network(tmp_path / "transnetv2.onnx", [1, 100, 27, 48, 3], dtype))
    frames = np.zeros((100, 27, 48, 3), np.uint8)
    frames[40] = 255
    chances = network(frames)
    assert chances.shape == (100,)
    assert chances[40] > 0.99
    assert np.delete(chances, 40).max() < 0.01


def test_another_network_is_refused_and_so_is_a_missing_one(tmp_path: Path):
    with pytest.raises(CheckpointError, match="takes pictures of shape"):
        TransNet(tiny_network(tmp_path / "other.onnx", [1, 50, 27, 48, 3]))
    with pytest.raises(CheckpointError, match="is no file"):
        TransNet(tmp_path / "gone.onnx")
