"""What a wish comes to, and what is refused before anything is opened."""

import math
from pathlib import Path

import pytest

from dynamictrl.errors import ConfigError, InputError
from serving.config import Defaults, Limits, Service
from serving.jobs.job import AnimationJob, Settings, VideoFacts, Wish, check_wish, settle
from serving.recipes import RECIPES

DEFAULTS, LIMITS = Defaults(width=128, height=192, num_frames=25, num_inference_steps=7), Limits()
CLIP = VideoFacts(width=512, height=768, fps=30.0, frames=83, duration=83 / 30)


def settled(wish: Wish, facts: VideoFacts = CLIP, is_pose_video: bool = True) -> Settings:
    return settle(wish, facts, is_pose_video=is_pose_video, defaults=DEFAULTS, limits=LIMITS)


def test_a_pose_video_gives_its_own_size_and_rate():
    settings = settled(Wish(prompt="p"))
    assert (settings.size, settings.fps, settings.num_frames) == ("512x768", 30.0, 25)
    assert settings.seconds == "0.833"
    assert settings.num_inference_steps == 7


def test_a_driving_video_leaves_the_size_to_the_service():
    assert settled(Wish(prompt="p"), is_pose_video=False).size == "128x192"


def test_a_short_video_gives_as_many_frames_as_are_legal():
    short = VideoFacts(64, 96, 12.0, 12, 1.0)
    assert settled(Wish(prompt="p"), short).num_frames == 9


def test_seconds_become_the_nearest_legal_count_at_the_rate():
    assert settled(Wish(prompt="p", seconds=2)).num_frames == 61
    assert settled(Wish(prompt="p", seconds=2, fps=12)).num_frames == 25


def test_more_frames_than_there_are_is_refused_with_the_largest_legal_count():
    with pytest.raises(InputError, match="at most 81") as refused:
        settled(Wish(prompt="p", num_frames=101))
    assert (refused.value.code, refused.value.param) == ("too_few_frames", "num_frames")


def test_resampling_gives_more_or_fewer_frames():
    assert CLIP.available(None) == 83
    assert CLIP.available(15) == 42
    assert VideoFacts(64, 64, 30, 0, 2.0).available(None) == 60
    assert VideoFacts(64, 64, 30, 0, 0.0).available(None) is None


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        (Wish(prompt="p" * 5000), "prompt_too_long"),
        (Wish(prompt="p", quality="sloppy"), "quality"),
        (Wish(prompt="p", width=100, height=96), "bad_size"),
        (Wish(prompt="p", width=16 * 500, height=16 * 500), "size_too_large"),
        (Wish(prompt="p", num_frames=8), "bad_num_frames"),
        (Wish(prompt="p", num_frames=4001), "bad_num_frames"),
        (Wish(prompt="p", num_inference_steps=0), "bad_num_inference_steps"),
        (Wish(prompt="p", guidance_scale=math.nan), "bad_guidance_scale"),
        (Wish(prompt="p", seed=-1), "bad_seed"),
        (Wish(prompt="p", fps=math.inf), "bad_fps"),
        (Wish(prompt="p", seconds=2, num_frames=25), "seconds_and_num_frames"),
    ],
)
def test_a_wish_out_of_bounds_is_refused_with_its_code(wish: Wish, code: str):
    with pytest.raises(InputError) as refused:
        check_wish(wish, LIMITS)
    assert refused.value.code == code
    assert refused.value.param


def test_a_seed_is_drawn_where_none_is_given_and_kept_where_one_is():
    assert settled(Wish(prompt="p", seed=0)).seed == 0
    assert settled(Wish(prompt="p")).seed != settled(Wish(prompt="p")).seed


def test_a_job_has_exactly_one_video():
    settings, path = settled(Wish(prompt="p")), Path("x")
    with pytest.raises(InputError, match="no motion"):
        AnimationJob(settings=settings, image=path)
    with pytest.raises(InputError, match="both given"):
        AnimationJob(settings=settings, image=path, driving_video=path, pose_video=path)


def test_every_recipe_makes_a_service():
    assert {name: recipe().device for name, recipe in RECIPES.items()} == {"production": "auto", "mini": "cpu"}


def test_a_host_that_others_reach_needs_keys():
    with pytest.raises(ConfigError, match="--api-key-hashes"):
        Service(host="0.0.0.0")
    assert Service(host="0.0.0.0", api_key_hashes=("a" * 64,)).host == "0.0.0.0"
    with pytest.raises(ConfigError, match="sha256"):
        Service(api_key_hashes=("secret",))
