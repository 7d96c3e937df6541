"""Stops what changes a data set before its nth step, as a kill would."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import pytest

from pipelines.files import storage
from pipelines.files.storage import Store

STEPS = [(Store, "put"), (Store, "put_file"), (Store, "delete"), (storage, "write_bytes")]


class Killed(BaseException):
    """Stands in for a kill: nothing catches it."""


def stopped(action: Callable[[], object], step: int, monkeypatch: pytest.MonkeyPatch, *, bucket: bool = False) -> bool:
    """Runs until the step with this number is about to happen; False where there are not so many.

    With a `bucket` only its own steps count: those in the work folder are the same as on a disk.
    """
    done = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal done
            if done == step:
                raise Killed
            done += 1
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        for target, name in STEPS[: 3 if bucket else None]:
            patch.setattr(target, name, counted(getattr(target, name)))
        try:
            action()
        except Killed:
            return True
    return False


def readable(store: Store) -> bool:
    """Whether the shards that the index names are all there, with the sha256 that it states."""
    if not store.exists("dataset.json"):
        return True
    shards = json.loads(store.read("dataset.json"))["shards"]
    return all(hashlib.sha256(store.read(f"shards/{s['name']}")).hexdigest() == s["sha256"] for s in shards)
