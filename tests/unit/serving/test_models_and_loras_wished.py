"""What clients say of models and LoRAs, and what /v1/models tells them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynamictrl.errors import InputError
from serving.jobs.database import open_database
from serving.jobs.job import Settings
from serving.jobs.presence import Presence, ServedModel
from serving.web.answers import to_model
from serving.web.requests import VideoRequest

STYLE = [{"name": "ink", "weight": 0.5}, {"name": "wash"}]


@pytest.mark.parametrize("given", [STYLE, json.dumps(STYLE)])
def test_loras_come_as_a_list_or_as_its_text(given: object):
    wish = VideoRequest.model_validate({"prompt": "p", "loras": given}).to_wish()
    assert wish.loras == (("ink", 0.5), ("wash", 1.0))


@pytest.mark.parametrize("given", ["ink", "{}", '[{"name": "ink", "weight": 9}]', '[{"name": "a"}, {"name": "a"}]'])
def test_loras_that_mean_nothing_are_refused(given: str):
    with pytest.raises(InputError) as refusal:
        VideoRequest.model_validate({"prompt": "p", "loras": given}).to_wish()
    assert (refusal.value.code, refusal.value.param) == ("bad_loras", "loras")


def test_a_model_is_listed_with_what_it_may_wear():
    listed = to_model(ServedModel("dynamictrl", "1", False), ["ink", "wash"])
    assert (listed.id, listed.version, listed.loras) == ("dynamictrl", "1", ["ink", "wash"])


def test_settings_come_back_from_the_store_as_they_went():
    settings = Settings(
        prompt="p", width=64, height=96, num_frames=9, fps=12.0, resample=False, num_inference_steps=3,
        guidance_scale=3.0, seed=1, loras=(("ink", 0.5),)
    )  # fmt: skip
    assert Settings(**json.loads(json.dumps(settings.to_dict()))) == settings


def test_a_workers_further_models_are_listed_and_are_no_workers(tmp_path: Path):
    presence = Presence(open_database(f"sqlite:///{tmp_path / 'jobs.db'}"))
    first, second = ServedModel("dynamictrl", "1", False), ServedModel("clothes", "2", False)
    presence.beat("worker_1", first, second)
    presence.beat("worker_2", first, second)
    assert presence.models() == [second, first]
    assert presence.count() == 2
    assert presence.readiness(may_sleep=False, jobs_wait=False).workers == 2
    presence.leave("worker_1")
    assert (presence.count(), presence.models()) == (1, [second, first])
    presence.leave("worker_2")
    assert (presence.count(), presence.models()) == (0, [second, first])  # known for as long as the service sleeps
