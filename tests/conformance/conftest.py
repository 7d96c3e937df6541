"""One service for all conformance tests; a run in a process of its own, of another release, uses its parent's."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import openai
import pytest

# The SDK loads it late, and pytest would rewrite it while the service compiles in threads: CPython 3.11.7 breaks then.
assert anyio.Path

PARENT = "DYNAMICTRL_TEST_SERVED"
"""Environment variable: the parent's service, as JSON."""


@pytest.fixture(scope="module")
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("conformance_served", Path(__file__).with_name("served.py"))
    if PARENT in os.environ:
        from types import SimpleNamespace

        yield SimpleNamespace(**json.loads(os.environ[PARENT]))
        return
    from dynamictrl.media.video import write_video
    from dynamictrl.mini.marionettes import sample_clip

    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("conformance")
    person, pose = request.getfixturevalue("person_and_pose")
    figure = sample_clip(np.random.default_rng(3), num_frames=9, height=192, width=128, fps=12)
    write_video(folder / "figure.mp4", figure.frames, 12)
    with module.served(request.getfixturevalue("tiny_model"), folder, person, pose, folder / "figure.mp4") as found:
        yield found


class Either:
    """The synchronous or the asynchronous client, driven alike: `c(lambda client: client.videos.list())`."""

    def __init__(self, is_async: bool, url: str, key: str, **options: Any):
        self._loop = asyncio.new_event_loop() if is_async else None
        kind = openai.AsyncOpenAI if is_async else openai.OpenAI
        self.client: Any = kind(base_url=url, api_key=key, **options)

    def __call__(self, call: Callable[[Any], Any]) -> Any:
        value = call(self.client)
        if self._loop is not None and inspect.isawaitable(value):
            return self._loop.run_until_complete(self._awaited(value))
        return value

    async def _awaited(self, value: Any) -> Any:
        return await value

    def all(self, call: Callable[[Any], Any]) -> list[Any]:
        """Every item of every page."""
        if self._loop is None:
            return list(call(self.client))

        async def collect() -> list[Any]:
            return [item async for item in call(self.client)]

        return self._loop.run_until_complete(collect())

    def read(self, content: Any) -> bytes:
        """The bytes of a download."""
        value = content.read()
        return self._loop.run_until_complete(value) if self._loop and inspect.isawaitable(value) else value

    def close(self) -> None:
        self(lambda client: client.close())
        if self._loop is not None:
            self._loop.close()


@pytest.fixture(scope="module", params=["sync", "async"])
def connect(request: pytest.FixtureRequest, service: Any) -> Iterator[Callable[..., Either]]:
    """Makes clients of one kind: of the service and its main key, unless told otherwise."""
    made: list[Either] = []

    def make(**options: Any) -> Either:
        wish = {"url": service.url, "key": service.key, "max_retries": 0, **options}
        made.append(Either(request.param == "async", **wish))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture(scope="module")
def api(connect: Callable[..., Either]) -> Either:
    return connect()
