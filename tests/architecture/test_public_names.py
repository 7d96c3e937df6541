"""What users import by name stays where it is: model_index.json stores module paths (house rules, trap 2)."""

import pytest

import dynamictrl
from dynamictrl.animation import DynamiCtrlPipeline
from dynamictrl.errors import ConfigError, InputError, MediaError
from dynamictrl.transformer import DynamiCtrlTransformer3DModel


def test_public_names_are_loaded_from_the_package():
    assert dynamictrl.DynamiCtrlPipeline is DynamiCtrlPipeline
    assert dynamictrl.DynamiCtrlTransformer3DModel is DynamiCtrlTransformer3DModel
    assert dynamictrl.errors.InputError is InputError


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(AttributeError, match="DynamiCtrlPipeline"):
        dynamictrl.DynamiCtrlPipelin  # noqa: B018


def test_model_classes_stay_in_the_modules_that_saved_folders_name():
    assert DynamiCtrlTransformer3DModel.__module__ == "dynamictrl.transformer"
    assert DynamiCtrlPipeline.__module__ == "dynamictrl.animation"


def test_errors_survive_a_trip_between_processes():
    import pickle

    problem = pickle.loads(pickle.dumps(MediaError("broken", code="decode_error", param="image")))
    assert (type(problem), str(problem), problem.code, problem.param) == (
        MediaError,
        "broken",
        "decode_error",
        "image",
    )
    assert issubclass(ConfigError, ValueError)
