"""A copy of a video is known again whatever was done to it, and another take in the same room is none."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dynamictrl.errors import InputError
from dynamictrl.media.video import crop_to_even, encode_video
from dynamictrl.media.video_copies import candidates
from dynamictrl.media.video_groups import find_copies, find_known
from dynamictrl.media.video_hash import RATE, VideoHash, hash_video
from dynamictrl.media.video_likeness import Track, compare
from dynamictrl.mini.marionettes import MarionetteScene

Frames = NDArray[np.uint8]
FPS = 16.0
LIKE = 0.83


def scene(person: int, motion: int, place: int, action: str | None = None, frames: int = 72) -> Frames:
    shot = MarionetteScene(person, motion, place, persons=1, action=action, close_up=False)
    return shot.render(frames, 144, 112, FPS, supersampling=1).frames


def hashed(frames: Frames, fps: float = FPS, crf: int = 23) -> VideoHash:
    return hash_video(encode_video(crop_to_even(np.ascontiguousarray(frames)), fps, crf=crf))


def similarity(one: VideoHash, other: VideoHash) -> float:
    found = compare(Track(one), Track(other))
    return found.similarity if found else 0.0


def alike(_: int, __: int) -> float:
    return LIKE


@pytest.fixture(scope="module")
def take() -> Frames:
    return scene(1, 5, 1, "jumping_jacks")


@pytest.fixture(scope="module")
def original(take: Frames) -> VideoHash:
    return hashed(take)


def scaled(frames: Frames) -> Frames:
    return np.stack([cv2.resize(frame, (168, 216), interpolation=cv2.INTER_CUBIC) for frame in frames])


CHANGES: dict[str, Callable[[Frames], tuple[Frames, float, int]]] = {
    "encoded badly": lambda f: (f, FPS, 38),
    "scaled": lambda f: (scaled(f), FPS, 23),
    "a tenth of each side cropped": lambda f: (f[:, 7:-7, 6:-6], FPS, 23),
    "a tenth cropped at one corner": lambda f: (f[:, 14:, 11:], FPS, 23),
    "mirrored": lambda f: (f[:, :, ::-1], FPS, 23),
    "half the frame rate": lambda f: (f[::2], FPS / 2, 23),
    "brighter": lambda f: (np.clip(f * 1.1 + 10, 0, 255).astype(np.uint8), FPS, 23),
    "warmer": lambda f: (np.clip(f * np.array([1.1, 1, 0.9]), 0, 255).astype(np.uint8), FPS, 23),
    "letterboxed": lambda f: (np.pad(f, ((0, 0), (20, 20), (0, 0), (0, 0))), FPS, 23),
    "pillarboxed": lambda f: (np.pad(f, ((0, 0), (0, 0), (40, 40), (0, 0))), FPS, 23),
    "begun later": lambda f: (f[15:], FPS, 23),
    "begun later and ended earlier": lambda f: (f[9:-13], FPS, 23),
    "mirrored, cropped and scaled": lambda f: (scaled(f[:, 7:-7, -6:5:-1]), FPS, 30),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_copy_is_a_candidate_and_alike(name: str, take: Frames, original: VideoHash):
    copy = hashed(*CHANGES[name](take))
    assert candidates([original, copy]).tolist() == [[0, 1]]
    assert similarity(original, copy) >= LIKE


@pytest.mark.parametrize(
    ("person", "motion", "action"), [(1, 6, "squat"), (1, 7, "wave"), (1, 8, "turn"), (2, 9, "kick")]
)
def test_another_take_in_the_same_room_is_no_copy(person: int, motion: int, action: str, original: VideoHash):
    assert similarity(original, hashed(scene(person, motion, 1, action))) < LIKE - 0.1


def test_two_takes_under_one_sway_of_the_camera_are_no_copies_but_in_doubt():
    takes = [MarionetteScene(1, motion, 1, action=a, close_up=False) for motion, a in ((107, "box"), (109, "wave"))]
    box, wave = [Track(hashed(t.render(96, 192, 144, 24.0, supersampling=1).frames, 24.0, 20)) for t in takes]
    assert compare(box, wave) is None
    in_doubt = compare(box, wave, lenient=True)
    assert in_doubt is not None
    assert in_doubt.similarity >= LIKE


@pytest.mark.parametrize("cut", [(0, 0, 0.07, 0.02), (0.08, 0, 0.03, 0.07)])
def test_edges_cut_off_unevenly_are_made_out(cut: tuple[float, ...], take: Frames, original: VideoHash):
    rows, columns = take.shape[1:3]
    top, bottom, left, right = cut
    part = take[:, round(top * rows) : round((1 - bottom) * rows), round(left * columns) : round((1 - right) * columns)]
    assert similarity(original, hashed(part)) >= LIKE
    assert similarity(hashed(part), original) >= LIKE


def test_two_clips_that_follow_one_another_are_no_copies():
    long = scene(3, 4, 3, "walk", frames=140)
    assert similarity(hashed(long[:70]), hashed(long[70:])) < LIKE


def test_what_is_shared_and_when_is_said(take: Frames, original: VideoHash):
    like = compare(Track(original), Track(hashed(take[16:, :, ::-1])))
    assert like is not None
    assert (like.mirrored, like.shift) == (True, pytest.approx(1.0, abs=0.07))
    assert like.seconds == pytest.approx((72 - 16) / FPS, abs=0.2)


def test_a_hash_is_small_text_that_comes_back_as_it_went(original: VideoHash):
    text = original.to_text()
    assert len(text) < 400 + 230 * original.seconds
    back = VideoHash.from_text(text)
    assert back.to_text() == text
    assert np.array_equal(back.levels, original.levels)
    assert original.seconds == pytest.approx(72 / FPS, abs=1 / RATE)


@pytest.mark.parametrize("text", ["", "not a hash!", "0" * 40])
def test_what_is_no_hash_is_refused(text: str):
    with pytest.raises(InputError, match="no video hash of version 1"):
        VideoHash.from_text(text)


def test_stillness_is_a_copy_only_of_the_same_pictures():
    still = np.repeat(scene(1, 1, 1, frames=1), 40, axis=0)
    other = np.repeat(scene(1, 2, 1, frames=1), 40, axis=0)
    hashes = [hashed(still), hashed(other), hashed(still)]
    (copy,) = find_copies(hashes, lambda place: place, alike, overlap=0.5)
    assert (copy.video, copy.keeper, copy.likeness.similarity) == (2, 0, 1.0)


def test_videos_too_short_to_compare_are_left_alone(take: Frames):
    short = [hashed(take[:12]), hashed(take[1:12])]
    assert candidates(short).tolist() == []
    assert compare(Track(short[0]), Track(short[1])) is None


def test_in_a_chain_of_overlaps_each_copy_is_like_its_own_keeper():
    long = scene(5, 6, 5, "talk", frames=176)
    chain = [hashed(long[begin : begin + 80]) for begin in (0, 32, 64, 96)]
    copies = find_copies(chain, lambda place: place, alike, overlap=0.5)
    # The first and the third share 1 s of 5: too little to be one, though the second is like both.
    assert [(copy.video, copy.keeper) for copy in copies] == [(1, 0), (3, 2)]


def test_a_known_video_is_found_inside_a_longer_one(take: Frames, original: VideoHash):
    others = [hashed(scene(7, 1, 7, "walk")), hashed(np.concatenate([scene(2, 2, 2, "clap"), take]))]
    (found,) = find_known([original], others, similarity=LIKE, overlap=0.5)
    assert (found.video, found.keeper) == (1, 0)
    assert find_known([], others, similarity=LIKE, overlap=0.5) == []
