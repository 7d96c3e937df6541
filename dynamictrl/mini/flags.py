"""Command line flags from a dataclass of settings, for the mini family's trainers."""

from __future__ import annotations

import argparse
from typing import Any


def add_settings(parser: argparse.ArgumentParser, settings: Any) -> None:  # noqa: ANN401 - any dataclass
    """One flag per field of `settings`, which holds the defaults."""
    for name, default in vars(settings).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        else:
            parser.add_argument(flag, type=type(default), default=default)
