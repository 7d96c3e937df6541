"""Requests taken apart: the traps of the stock SDK, and what is no usable reference to a medium."""

import pytest

from serving.config import Limits
from serving.web.http_body import Body, DataUrl, FileId, Url, sort_fields
from serving.web.http_errors import ApiError
from serving.web.intake import decode_data_url

LIMITS = Limits(data_url_bytes=1000)
FILE = "file_" + "0" * 32


def sorted_out(**fields: object) -> Body:
    return sort_fields(fields.items(), LIMITS)


def refused(**fields: object) -> ApiError:
    with pytest.raises(ApiError) as problem:
        sorted_out(**fields)
    return problem.value


def test_bracket_keys_are_one_reference():
    body = sorted_out(**{"prompt": "p", "pose_video[file_id]": FILE})
    assert body.media == {"pose_video": FileId(FILE)}
    assert body.fields == {"prompt": "p"}


def test_a_reference_may_be_an_object_an_id_or_a_data_url():
    data = "data:image/png;base64,AAAA"
    body = sorted_out(input_reference={"image_url": data}, driving_video={"file_id": FILE}, mask=FILE)
    assert body.media == {"input_reference": DataUrl(data), "driving_video": FileId(FILE), "mask": FileId(FILE)}


def test_a_url_is_kept_for_the_fetcher_which_knows_what_may_be_called():
    body = sorted_out(driving_video={"url": "https://example.com/a.mp4"}, mask="file:///etc/passwd")
    assert body.media == {"driving_video": Url("https://example.com/a.mp4"), "mask": Url("file:///etc/passwd")}


def test_other_servers_names_are_understood():
    body = sorted_out(control_reference=FILE, control_type="pose", video_reference={"file_id": FILE})
    assert set(body.media) == {"pose_video", "driving_video"}
    assert body.fields == {}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"mask": "b'\\x89PNG'"}, "bytes_as_text", "mask"),
        ({"pose_video": "<_io.BufferedReader name='x'>"}, "bytes_as_text", "pose_video"),
        ({"driving_video": "/etc/passwd"}, "bad_media_reference", "driving_video"),
        ({"driving_video": "../../etc/passwd"}, "bad_media_reference", "driving_video"),
        ({"driving_video": ["a"]}, "bad_media_reference", "driving_video"),
        ({"driving_video": {"file_id": FILE, "url": "x"}}, "bad_media_reference", "driving_video"),
        ({"driving_video": {"path": "x"}}, "bad_media_reference", "driving_video"),
        ({"mask": "data:image/png;base64," + "A" * 2000}, "data_url_too_long", "mask"),
        ({"webhook_secret": "whsec_x"}, "not_offered", "webhook_secret"),
        ({"num_steps": 3}, "unknown_parameter", "num_steps"),
        ({"control_type": "depth"}, "control_type", "control_type"),
        ({"control_reference": FILE, "pose_video": FILE}, "repeated_parameter", "pose_video"),
    ],
)
def test_what_cannot_be_used_is_refused_with_code_and_parameter(fields: dict[str, object], code: str, param: str):
    problem = refused(**fields)
    assert (problem.status, problem.code, problem.param) == (400, code, param)


def test_a_misspelt_field_is_told_its_name():
    assert "did you mean guidance_scale?" in str(refused(guidance_scal=3))


def test_a_field_given_twice_is_refused():
    with pytest.raises(ApiError, match="more than once"):
        sort_fields([("seed", "1"), ("seed", "2")], LIMITS)


@pytest.mark.parametrize("url", ["data:image/png;base64", "data:image/png;base64,###", "data:image/png;base64,"])
def test_a_broken_data_url_is_refused(url: str):
    with pytest.raises(ApiError):
        decode_data_url(url, "mask")


def test_a_data_url_is_decoded_both_ways():
    assert decode_data_url("data:text/plain;base64,aGk=", "mask") == b"hi"
    assert decode_data_url("data:,h%69", "mask") == b"hi"
