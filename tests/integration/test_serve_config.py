"""What a Serve config file hands to `serving.app:build` becomes the service it says."""

import pytest

from dynamictrl.errors import ConfigError
from serving.app import build


def test_a_config_files_words_become_an_application():
    application = build({"recipe": "mini", "data_folder": "/data", "port": "9000", "api_key_hashes": "a" * 64})
    assert application._bound_deployment.name == "ingress"


@pytest.mark.parametrize(
    ("words", "named"), [({"recipe": "maxi"}, "maxi"), ({"colour": "red"}, "colour"), ({"limits": "1"}, "limits")]
)
def test_an_unknown_recipe_or_field_is_named(words: dict[str, str], named: str):
    with pytest.raises(ConfigError, match=named):
        build(words)
