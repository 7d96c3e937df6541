"""What a run's record says of where it came from: every setting, and the machine and code it ran with."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from dynamictrl.samples.shards import write_json
from training.config import Recipe

PACKAGES = ("torch", "deepspeed", "ray", "diffusers", "transformers", "peft", "mlflow", "triton")
ENVIRONMENT = "environment.json"


def settings(recipe: Recipe) -> dict[str, str]:
    """Every setting under its part's name, such as `clips.height`; those of the recipe itself stand alone."""
    values: dict[str, str] = {}
    for entry in dataclasses.fields(recipe):
        part = getattr(recipe, entry.name)
        if dataclasses.is_dataclass(part):
            values |= {f"{entry.name}.{name}": str(value) for name, value in vars(part).items()}
        else:
            values[entry.name] = str(part)
    return values


def environment() -> dict[str, Any]:
    """Python, packages, code and machine of this process; its GPUs where torch is loaded and sees some."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count() or 0,
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "code": code_commit(),
        **_gpus(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def code_commit() -> str:
    """The commit of this checkout, with `+` where files differ from it; empty outside a checkout (an image)."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return os.environ.get("DYNAMICTRL_COMMIT", "")
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return commit + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _gpus() -> dict[str, Any]:
    import sys

    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"gpus": names, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def write_environment(folder: Path) -> None:
    """Leaves this process's environment in the run folder: the first worker's is the one that trained."""
    write_json(folder / ENVIRONMENT, environment())
