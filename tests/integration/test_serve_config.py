"""What a Serve config file hands to `serving.cluster.app:build` becomes the service it says."""

import pytest

from dynamictrl.errors import ConfigError
from serving.cluster.app import build


def test_a_config_files_words_become_an_application():
    application = build({"recipe": "mini", "data_folder": "/data", "port": "9000", "api_key_hashes": "a" * 64})
    assert application._bound_deployment.name == "ingress"


def test_a_field_of_a_group_is_named_with_a_dot():
    application = build({"recipe": "mini", "max_engines": "3", "scaling.shrink_after_s": "7", "canary.follow": "false"})
    dispatcher = application._bound_deployment.init_args[1]._bound_deployment
    service = dispatcher.init_args[0]
    assert (service.max_engines, service.scaling.shrink_after_s, service.canary.follow) == (3, 7.0, False)


def test_only_a_followed_alias_has_somebody_who_follows_it():
    def deployments(model: str) -> list[str]:
        ingress = build({"recipe": "mini", "model": model})._bound_deployment
        return [other._bound_deployment.name for other in ingress.init_args[1:]]

    assert deployments("models:/dynamictrl@champion") == ["dispatcher", "rollout"]
    assert deployments("models:/dynamictrl/3") == ["dispatcher"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"recipe": "maxi"}, "maxi"),
        ({"colour": "red"}, "colour"),
        ({"limits": "1"}, "limits"),
        ({"scaling.colour": "1"}, "colour"),
        ({"max_engines": "many"}, "many"),
        ({"canary.follow": "perhaps"}, "perhaps"),
    ],
)
def test_an_unknown_recipe_or_field_is_named(words: dict[str, str], named: str):
    with pytest.raises(ConfigError, match=named):
        build(words)
