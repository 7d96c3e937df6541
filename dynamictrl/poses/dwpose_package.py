"""The published `dwpose` package as another way to the same keypoints, kept in a process of its own.

Opt-in (extra `dwpose`): at import the package calls the network, turns off TLS verification for its process when that
fails, and prints for every frame; its own source says non-commercial. `dynamictrl.poses.dwpose` is the default
everywhere; this is what it is compared with.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynamictrl import weights
from dynamictrl.errors import ConfigError
from dynamictrl.poses.dwpose import DETECTOR, POSE

_CHILD = Path(__file__).with_name("dwpose_child.py")
_PROBE = "import importlib.util, sys; sys.exit(importlib.util.find_spec('dwpose') is None)"


def is_installed(python: Path | None = None) -> bool:
    """Whether an interpreter (default: this one) has the package; it is not imported."""
    return subprocess.run([str(python or sys.executable), "-c", _PROBE], check=False).returncode == 0


def package_keypoints(
    frames_FHWC: NDArray[np.uint8],
    folder_or_name: str | Path = "yzd-v/DWPose",
    *,
    python: Path | None = None,
    timeout: float = 600.0,
) -> list[NDArray[np.float32]]:
    """Keypoints of each frame by the package's own code, on the same ONNX files: [N, 134, 3] as x, y, score in pixels.

    Persons are not tracked. `python` is an interpreter that has the package, None is this one; `timeout` in seconds is
    for all frames. Raises ConfigError where the package is not installed or its process fails.
    """
    if not is_installed(python):
        raise ConfigError(
            f"{python or sys.executable} has no package dwpose. Install the extra `dwpose`, or name an "
            f"interpreter that has it.",
            code="dwpose_missing",
        )
    folder = weights.resolve(folder_or_name, (DETECTOR, POSE)).resolve()
    with tempfile.TemporaryDirectory() as place:
        given, found = Path(place) / "frames.npy", Path(place) / "keypoints.npz"
        np.save(given, frames_FHWC)
        files = (folder / DETECTOR, folder / POSE, given, found)
        command = [str(python or sys.executable), str(_CHILD), *(str(file) for file in files)]
        _run(command, timeout)
        with np.load(found, allow_pickle=False) as arrays:
            return [arrays[name] for name in sorted(arrays.files)]


def _run(command: list[str], timeout: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as late:
        raise ConfigError(
            f"the dwpose package took more than {timeout:g} s; give fewer frames or more seconds", param="timeout"
        ) from late
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ConfigError(
            f"the dwpose package's process ended with {done.returncode}: {last[0]}. Check its installation (it needs "
            f"matplotlib and scikit-image beside the library), or use dynamictrl.poses.dwpose.",
            code="dwpose_failed",
        )
