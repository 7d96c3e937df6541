"""Rows keep every value through JSON and Arrow."""

import json
from dataclasses import fields

import pytest

from pipelines.clip import Clip, arrow_schema, from_table, to_table

FULL = Clip(
    source="/a/ä.mp4",
    source_sha256="0123456789abcdef" * 4,
    fps=12,
    scores={"presence": 0.5},
    models={"pose": "mini/dwpose"},
    files=("mp4", "pose.npz"),
    licence="CC BY 4.0",
).at(1.0, 3.5)


@pytest.mark.parametrize("clip", [Clip(), FULL, FULL.reject("too_short", "0.2 s"), FULL.quarantine("crashed", "x")])
def test_a_row_comes_back_from_arrow_as_it_went(clip: Clip):
    assert from_table(to_table([clip, clip])) == [clip, clip]


@pytest.mark.parametrize("clip", [Clip(), FULL])
def test_a_row_comes_back_from_json_as_it_went(clip: Clip):
    assert Clip.from_row(json.loads(json.dumps(clip.to_row()))) == clip


def test_a_kept_clip_among_rejected_ones_is_still_kept_after_arrow():
    # Ray's numpy batches turn None into nan, which is truthy: nothing here may ever be None.
    kept, refused = from_table(to_table([FULL, FULL.reject("too_short")]))
    assert (bool(kept.rejected), bool(refused.rejected)) == (False, True)


def test_the_arrow_schema_has_every_field_of_a_clip_in_order():
    assert arrow_schema().names == [f.name for f in fields(Clip)]


def test_a_key_names_content_and_place_and_holds_no_dot():
    assert FULL.key == "0123456789abcdef-00001000-00003500"
    assert FULL.duration == 2.5


def test_the_same_place_reached_by_other_sums_has_the_same_key():
    assert FULL.at(0.1 + 0.2, 1.0).key == FULL.at(0.3, 1.0).key


def test_a_rate_given_as_a_whole_number_makes_the_same_text_as_one_that_has_been_through_arrow():
    assert json.dumps(FULL.to_row()) == json.dumps(from_table(to_table([FULL]))[0].to_row())
