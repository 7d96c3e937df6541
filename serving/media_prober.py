"""The child process that opens strangers' files; `media_guard.py` starts it, feeds it and kills it.

One JSON object a line on standard input, {"question", "path"}; one JSON object a line on standard output: facts, or
{"code", "message"}. It ends when its input does.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from functools import cache
from pathlib import Path
from typing import Any

from dynamictrl.errors import CheckpointError, DynamiCtrlError, MediaError

logger = logging.getLogger(__name__)


def probe_image(path: Path, image_pixels: int) -> dict[str, int]:
    """Decodes a still picture whose header promises no more than `image_pixels`."""
    from PIL import Image

    from dynamictrl.images import read_image

    with path.open("rb") as stream:
        try:
            with Image.open(stream) as header:
                width, height = header.size
        except (OSError, ValueError, SyntaxError):
            width = height = 0  # read_image says what is wrong with it, and in its own words
    if width * height > image_pixels:
        raise MediaError(
            f"the image is {width}x{height}, {width * height} pixels; at most {image_pixels} are taken",
            code="image_too_large",
        )
    image = read_image(path)
    return {"width": image.width, "height": image.height}


def probe_video(path: Path, frame_pixels: int, video_seconds: float) -> dict[str, float]:
    """Opens a video and decodes one frame of it."""
    from dynamictrl.video import probe

    info = probe(path)
    if info.width * info.height > frame_pixels:
        raise MediaError(
            f"a frame is {info.width}x{info.height}, {info.width * info.height} pixels; at most {frame_pixels} are "
            "taken: scale the video down",
            code="frame_too_large",
        )
    if info.duration > video_seconds:
        raise MediaError(
            f"the video lasts {info.duration:.1f} s; at most {video_seconds:g} s are taken: cut it",
            code="video_too_long",
        )
    if not 0 < info.fps <= 1000:
        raise MediaError(
            f"the video states a frame rate of {info.fps:g}; encode it again at a constant one", code="bad_frame_rate"
        )
    return {"width": info.width, "height": info.height, "fps": info.fps, "frames": info.frames,
            "duration": info.duration}  # fmt: skip


def count_persons(path: Path, pose_model: str) -> dict[str, int]:
    """How many persons the pose model sees in an image."""
    import numpy as np

    from dynamictrl.images import read_image

    pose = _estimator(pose_model)(np.asarray(read_image(path))[None])
    return {"persons": int(pose.present().any(axis=0).sum())}


@cache
def _estimator(pose_model: str) -> Any:  # noqa: ANN401 - a light signature: the class is imported on first use
    from dynamictrl.dwpose import PoseEstimator

    return PoseEstimator(pose_model, num_threads=1)


def answer(question: dict[str, str], words: list[str]) -> dict[str, Any]:
    """Facts about one file, or a code and a message; never an exception."""
    image_pixels, frame_pixels, video_seconds, pose_model = int(words[0]), int(words[1]), float(words[2]), words[3]
    path = Path(question["path"])
    try:
        if question["question"] == "image":
            return probe_image(path, image_pixels)
        if question["question"] == "video":
            return probe_video(path, frame_pixels, video_seconds)
        return count_persons(path, pose_model)
    except CheckpointError:
        logger.exception("the pose model cannot be loaded")
        return {"code": "no_pose_model", "message": "this service has no pose model; send a pose_video instead"}
    except DynamiCtrlError as problem:
        # Our own path stands in some messages; it is nothing that a client should see.
        return {"code": problem.code, "message": str(problem).replace(str(path), "the file")}
    except MemoryError:
        return {"code": "media_too_heavy", "message": "decoding it takes more memory than is allowed"}
    except Exception as problem:  # noqa: BLE001 - whatever a decoder throws at a hostile file is the file's fault
        return {"code": "not_media", "message": f"it cannot be decoded ({type(problem).__name__})"}


def limit_resources(memory: int) -> None:
    """Address space, no new files, no core dumps."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    # Native libraries may write to standard output: keep it for answers and give them standard error.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    limit_resources(int(sys.argv[1]))
    answers.write(b'{"ready": true}\n')
    for line in sys.stdin.buffer:
        answers.write(json.dumps(answer(json.loads(line), sys.argv[2:])).encode() + b"\n")


if __name__ == "__main__":
    main()
