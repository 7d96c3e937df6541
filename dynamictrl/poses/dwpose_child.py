"""The other side of `dwpose_package`: a process of its own that imports the published `dwpose` and nothing of ours.

    python dwpose_child.py DETECTOR.onnx POSE.onnx FRAMES.npy OUT.npz

Importing `dwpose` fetches a file from the network and, where that fails, turns off TLS verification for the process. So
the file is put where it is looked for, in a folder that goes away with the process.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

_FETCHED_AT_IMPORT = "mobilenet_v2-b0353104.pth"


def main(detector: str, pose: str, frames: str, out: str) -> None:
    """Writes the keypoints of each frame as `frame_000000` and so on, float32 [N, 134, 3] of x, y, score in pixels."""
    # A script's own folder is searched first, and ours holds a dwpose.py of another kind.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    with tempfile.TemporaryDirectory() as home:
        _stay_offline(Path(home))
        from dwpose.wholebody import Wholebody  # noqa: TID251 # pyright: ignore[reportMissingImports]

        # The package prints for every frame; results travel by file.
        with open(os.devnull, "w") as nowhere:
            sys.stdout = nowhere
            estimate = Wholebody()
            _give_models(estimate, detector, pose)
            found = {}
            for index, frame in enumerate(np.load(frames)):
                people = estimate(frame)
                people = np.zeros((0, 134, 3)) if people is None else people
                found[f"frame_{index:06d}"] = np.asarray(people, np.float32)
            sys.stdout = sys.__stdout__
    np.savez(out, **found)


def _give_models(
    estimate: Any,  # noqa: ANN401 (a class of a package that is not installed)
    detector: str,
    pose: str,
) -> None:
    """Sets what the package's constructor would, which on a CPU would choose OpenCV's engine over onnxruntime."""
    import onnxruntime

    estimate.det, estimate.pose = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (detector, pose)
    )
    estimate.det_filename, estimate.pose_filename = Path(detector).name, Path(pose).name
    estimate.pose_input_size = (288, 384)


def _stay_offline(home: Path) -> None:
    import torch

    checkpoints = home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save({}, checkpoints / _FETCHED_AT_IMPORT)
    os.environ["TORCH_HOME"] = str(home)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["AUX_USE_SYMLINKS"] = "False"


if __name__ == "__main__":
    main(*sys.argv[1:5])
