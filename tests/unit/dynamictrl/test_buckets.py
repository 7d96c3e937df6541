"""A clip goes to the size that keeps most of it."""

from __future__ import annotations

import pytest

from dynamictrl.errors import ConfigError
from dynamictrl.samples.buckets import Bucket, ClipShape, parse_bucket, ranked

NAMES = ("49x480x720", "25x480x720", "37x768x1360", "25x720x480")
BUCKETS = [parse_bucket(name) for name in NAMES]


@pytest.mark.parametrize(
    ("clip", "name"),
    [
        (ClipShape(200, 24.0, 1080, 1920), "49x480x720"),
        # Half as long, but upright as the clip is.
        (ClipShape(200, 24.0, 1920, 1080), "25x720x480"),
        (ClipShape(111, 24.0, 1080, 1920), "37x768x1360"),
        (ClipShape(40, 12.0, 480, 640), "25x480x720"),
    ],
)
def test_a_clip_goes_where_most_of_its_pictures_and_time_is_kept(clip: ClipShape, name: str):
    found, reason = ranked(BUCKETS, clip, 8.0, 2.0)

    assert (str(found[0]), reason) == (name, "")


def test_clips_that_suit_no_size_are_told_apart():
    assert ranked(BUCKETS, ClipShape(10, 24.0, 2000, 3000), 8.0, 2.0) == ([], "too short")
    assert ranked(BUCKETS, ClipShape(200, 24.0, 200, 300), 8.0, 2.0) == ([], "too small")
    assert len(ranked(BUCKETS, ClipShape(200, 24.0, 200, 300), 8.0, 0.0)[0]) == 4


def test_the_limit_of_enlargement_holds_for_the_larger_side():
    assert [str(b) for b in ranked(BUCKETS, ClipShape(200, 24.0, 480, 720), 8.0, 1.0)[0]] == NAMES_AT_480


NAMES_AT_480 = ["49x480x720", "25x480x720"]


def test_a_bucket_is_written_frames_height_width():
    assert parse_bucket("49x480x720") == Bucket(49, 480, 720)
    with pytest.raises(ConfigError, match="FRAMESxHEIGHTxWIDTH"):
        parse_bucket("480x720")
    with pytest.raises(ConfigError, match=r"bucket 48x480x720: 48 frames .* nearest are 45 and 49"):
        parse_bucket("48x480x720")
    with pytest.raises(ConfigError, match=r"bucket 49x470x720: .* 720x464"):
        parse_bucket("49x470x720")
