"""The frozen HTTP surface: it is the code's own, and whatever would break a client of it is seen."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from serving.web.breaking_changes import breaking_changes
from serving.web.openapi import FROZEN, document

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def current() -> dict[str, Any]:
    return json.loads(document())


def frozen() -> dict[str, Any]:
    return json.loads(FROZEN.read_text())


def test_the_frozen_surface_is_not_broken(current: dict[str, Any]):
    assert breaking_changes(frozen(), current) == []


def test_the_frozen_surface_is_the_code_as_it_is(current: dict[str, Any]):
    assert frozen() == current, "the surface has grown: python -m serving openapi > serving/openapi.json"


def video(now: dict[str, Any]) -> dict[str, Any]:
    return now["components"]["schemas"]["VideoObject"]


def sent(now: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return now["paths"]["/v1/videos"]["post"]["requestBody"]["content"][kind]["schema"]


def listed(now: dict[str, Any], name: str) -> dict[str, Any]:
    parameters = now["paths"]["/v1/videos"]["get"]["parameters"]
    return next(parameter for parameter in parameters if parameter["name"] == name)


BREAKS: list[tuple[Change, str]] = [
    (lambda now: now["paths"].pop("/v1/videos/{video_id}/cancel"), "POST /v1/videos/{video_id}/cancel is gone"),
    (lambda now: now["paths"]["/v1/videos"].pop("get"), "GET /v1/videos is gone"),
    # what is taken
    (lambda now: listed(now, "after").update(name="behind"), "parameter after is gone"),
    (lambda now: listed(now, "after").update(required=True), "parameter after is newly required"),
    (lambda now: listed(now, "order")["schema"].update(enum=["desc"]), "parameter order no longer takes 'asc'"),
    (lambda now: listed(now, "limit")["schema"].update(maximum=50), "parameter limit: maximum is 50 now"),
    (lambda now: listed(now, "limit")["schema"].update(minimum=2), "parameter limit: minimum is 2 now"),
    (lambda now: sent(now)["properties"].pop("seed"), "field seed is no longer taken"),
    (lambda now: sent(now, "multipart/form-data")["properties"].pop("mask"), "field mask is no longer taken"),
    (lambda now: sent(now)["required"].append("seed"), "field seed is newly required"),
    (lambda now: sent(now)["properties"]["fps"].update(anyOf=[{"type": "integer"}]), "field fps no longer takes"),
    (lambda now: sent(now)["properties"]["prompt"].update(maxLength=9), "field prompt: maxLength is 9 now"),
    (lambda now: sent(now)["properties"]["prompt"].update(pattern="a"), "field prompt: its pattern is 'a' now"),
    (lambda now: sent(now)["properties"]["quality"].update(enum=["exact"]), "field quality takes only ['exact'] now"),
    (
        lambda now: now["paths"]["/v1/videos"]["post"]["requestBody"]["content"].pop("application/json"),
        "body application/json is no longer taken",
    ),
    # what is answered
    (lambda now: video(now)["properties"].pop("seed"), "field seed is gone"),
    (lambda now: video(now)["properties"]["seed"].update(type="string"), "field seed may now be string"),
    (lambda now: video(now)["properties"]["seed"].pop("type"), "field seed may now be anything"),
    (lambda now: video(now)["required"].remove("seed"), "field seed is no longer sure to be there"),
    (
        lambda now: video(now)["properties"]["model"].update(anyOf=[{"type": "string"}, {"type": "null"}]),
        "field model may now be null",
    ),
    (lambda now: video(now)["properties"]["status"]["enum"].append("lost"), "field status may now be 'lost'"),
    (lambda now: video(now)["properties"]["status"].pop("enum"), "field status may be anything now"),
    (lambda now: now["components"]["schemas"]["VideoError"]["properties"].pop("code"), "field code is gone"),
    (lambda now: now["components"]["schemas"]["ErrorBody"]["properties"].pop("param"), "field param is gone"),
    (lambda now: now["paths"]["/v1/videos"]["post"]["responses"].pop("429"), "status 429 is gone"),
    (lambda now: now["paths"]["/v1/videos"]["post"]["responses"].pop("200"), "status 200 is gone"),
    (
        lambda now: now["paths"]["/v1/videos"]["get"]["responses"]["200"]["content"].pop("application/json"),
        "status 200 no longer answers application/json",
    ),
]


@pytest.mark.parametrize(("change", "found"), BREAKS, ids=[found for _, found in BREAKS])
def test_a_breaking_change_is_seen(change: Change, found: str):
    now = frozen()
    change(now)
    assert any(found in line for line in breaking_changes(frozen(), now)), breaking_changes(frozen(), now)


GROWTH: list[Change] = [
    lambda now: now["paths"].update({"/v1/new": {"get": {"responses": {}}}}),
    lambda now: sent(now)["properties"].update(mood={"type": "string"}),
    lambda now: video(now)["properties"].update(mood={"type": "string"}),
    lambda now: listed(now, "order")["schema"]["enum"].append("random"),
    lambda now: listed(now, "limit")["schema"].update(maximum=1000),
    lambda now: video(now)["properties"]["error"].update(anyOf=[{"$ref": "#/components/schemas/VideoError"}]),
    lambda now: now["paths"]["/v1/videos"]["post"]["responses"].update({"418": {"description": "a teapot"}}),
]


@pytest.mark.parametrize("change", GROWTH)
def test_growth_breaks_nobody(change: Change):
    now = frozen()
    change(now)
    assert now != frozen()
    assert breaking_changes(frozen(), now) == []


def test_every_call_says_how_it_refuses(current: dict[str, Any]):
    for path, methods in current["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/v1/"):
                answers = operation["responses"]
                assert {"400", "401", "403", "404", "413", "429", "500", "503"} <= set(answers), (method, path)
                schema = answers["400"]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}
    assert "HTTPValidationError" not in current["components"]["schemas"]
