"""Every setting with what differs from the recipe's own, and the command line that asks for the same again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.datasets.stage_list import default_settings, listed


@dataclass(frozen=True)
class Setting:
    """One field of one stage."""

    name: str
    value: Any
    default: Any
    """What the recipe has when nothing is said."""
    changed: bool


@dataclass(frozen=True)
class StageSettings:
    """One stage as it was asked for."""

    field: str
    """As the command line calls it."""
    stage: str
    settings: Sequence[Setting]


def all_settings(description: Mapping[str, Any]) -> list[StageSettings]:
    """The settings of each stage in order of work."""
    recipe = description.get("recipe", "")
    defaults = {field: _plain(values) for field, values in default_settings(recipe).items()}
    order = [entry["field"] for entry in listed(description)]
    # `find` and stages left out have settings and do no work of their own.
    order += [field for field in description["settings"] if field not in order]
    return [
        _stage_settings(field, description["settings"][field], defaults.get(field))
        for field in order
        if field in description["settings"]
    ]


def command(description: Mapping[str, Any]) -> str:
    """The command that makes a data set like this one from the same sources."""
    words = [f"python -m pipelines {description.get('recipe', 'RECIPE')} --videos SRC --out DATASET"]
    for stage in all_settings(description):
        for setting in stage.settings:
            if setting.changed:
                words.append(_flag(stage.field, setting))
    return " \\\n    ".join(words)


def _stage_settings(field: str, values: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> StageSettings:
    settings = []
    for name, value in values.items():
        if name == "stage":
            continue
        known = defaults is not None and name in defaults
        default = defaults[name] if defaults is not None and known else value
        settings.append(Setting(name, value, default, known and default != value))
    return StageSettings(field, values["stage"], settings)


def _flag(field: str, setting: Setting) -> str:
    name = f"{field}.{setting.name}".replace("_", "-")
    if isinstance(setting.value, bool):
        return f"--{name}" if setting.value else f"--{field.replace('_', '-')}.no-{setting.name.replace('_', '-')}"
    values = setting.value if isinstance(setting.value, list) else [setting.value]
    return " ".join([f"--{name}", *(shlex.quote(str(value)) for value in values)])


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists, paths are text."""
    import json

    return json.loads(json.dumps(values, default=str))
