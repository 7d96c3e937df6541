"""How settings are declared and checked."""

from __future__ import annotations

import dataclasses
from typing import Any

from dynamictrl.errors import ConfigError


def free(default: Any) -> Any:  # noqa: ANN401 - a default of any type stands for its field, as in dataclasses
    """A setting that does not shape the trained model (beyond the order of sums): a run may go on with another."""
    return dataclasses.field(default=default, metadata={"free": True})


def positive(settings: object, *names: str) -> None:
    """ConfigError where one of these settings is 0 or less."""
    for name in names:
        value = getattr(settings, name)
        if value <= 0:
            raise ConfigError(f"{name} is {value}; it must be above 0", code="setting_range", param=name)


def share(settings: object, *names: str) -> None:
    """ConfigError where one of these settings does not lie in [0, 1]."""
    for name in names:
        value = getattr(settings, name)
        if not 0.0 <= value <= 1.0:
            raise ConfigError(
                f"{name} is {value}; it is a share and must lie in [0, 1]", code="setting_range", param=name
            )


def not_negative(settings: object, *names: str) -> None:
    """ConfigError where one of these settings is below 0."""
    for name in names:
        value = getattr(settings, name)
        if value < 0:
            raise ConfigError(f"{name} is {value}; it must be 0 or more", code="setting_range", param=name)
