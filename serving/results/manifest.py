"""A clip's manifest: all that is needed to render the same frames again, and a hash that tells whether they are."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dynamictrl
from dynamictrl.errors import InputError
from serving.jobs.job import Settings

SCHEMA = 1
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "av", "opencv-python-headless", "onnxruntime", "scipy")
"""Packages whose arithmetic or decoding the frames depend on."""


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """What was rendered, from what, by what."""

    video_id: str
    model: str
    model_version: str
    is_mini: bool
    settings: Settings
    inputs: Mapping[str, str]
    """Medium -> sha256 in hex."""
    engine: Mapping[str, Any]
    """How the engine ran: device, dtype, threads, kernels; JSON-able."""
    frames: NDArray[np.uint8]
    """[F, H, W, 3] RGB as rendered: without a clip that it was joined to, before any mark."""


def to_manifest(rendering: Rendering) -> dict[str, Any]:
    """The manifest as JSON-able words."""
    return {
        "schema": SCHEMA,
        "video": rendering.video_id,
        "model": {"name": rendering.model, "version": rendering.model_version, "mini": rendering.is_mini},
        "settings": rendering.settings.to_dict(),
        "inputs_sha256": dict(rendering.inputs),
        "engine": dict(rendering.engine),
        "software": software(),
        "frames": {"sha256": frames_hash(rendering.frames), "shape": list(rendering.frames.shape)},
    }


@dataclass(frozen=True)
class Recipe:
    """A manifest that was read back."""

    model: str
    model_version: str
    settings: Settings
    inputs: dict[str, str]
    engine: dict[str, Any]
    software: dict[str, str]
    frames_sha256: str

    def check_input(self, medium: str, path: Path) -> None:
        """Refuses a file that is not the one the clip was made from."""
        if medium not in self.inputs:
            raise InputError(
                f"the clip was made without {medium}; leave {path} out", code="manifest_input", param=medium
            )
        found = file_hash(path)
        if found != self.inputs[medium]:
            raise InputError(
                f"{path} is not the {medium} that the clip was made from: its sha256 is {found} and the manifest says "
                f"{self.inputs[medium]}",
                code="manifest_input",
                param=medium,
            )

    def differences(self) -> list[str]:
        """Where the software here is not what the manifest names: the likeliest reasons for other frames."""
        here = software()
        return [
            f"{name} is {here.get(name, 'missing')} here and was {was}"
            for name, was in self.software.items()
            if here.get(name) != was
        ]


def read_manifest(path: Path) -> Recipe:
    """Reads a manifest; InputError where it is none."""
    try:
        told = json.loads(path.read_text())
        if told["schema"] != SCHEMA:
            raise ValueError(f"its schema is {told['schema']!r}; this version reads {SCHEMA}")
        known = {item.name for item in fields(Settings)}
        unknown = sorted(set(told["settings"]) - known)
        if unknown:
            raise ValueError(f"its settings {', '.join(unknown)} are not known here; use a later version")
        return Recipe(
            model=told["model"]["name"],
            model_version=told["model"]["version"],
            settings=Settings(**told["settings"]),
            inputs=dict(told["inputs_sha256"]),
            engine=dict(told["engine"]),
            software=dict(told["software"]),
            frames_sha256=told["frames"]["sha256"],
        )
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputError(
            f"{path} is no manifest of a clip ({type(problem).__name__}: {problem}); "
            "GET /v1/videos/ID/content?variant=manifest gives one",
            code="manifest",
            param="manifest",
        ) from problem


def frames_hash(frames: NDArray[np.uint8]) -> str:
    """sha256 of [F, H, W, 3] RGB bytes and their shape."""
    digest = hashlib.sha256(str(frames.shape).encode())
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def software() -> dict[str, str]:
    """Versions of what the frames depend on, as installed here."""
    found = {"dynamictrl": dynamictrl.__version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
