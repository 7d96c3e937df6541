"""A few small pictures of a clip that was refused: its files are gone after the run, and people want to see why."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynamictrl.errors import DynamiCtrlError
from pipelines.clip import Clip
from pipelines.files import storage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from dynamictrl.poses.pose import PoseSequence

MOMENTS = (1 / 6, 1 / 2, 5 / 6)
"""Which pictures are shown, as shares of the clip's length."""
HEIGHT = 144
"""Pixels."""
MOST_BYTES = 20 * 1024
QUALITIES = (72, 55, 40, 25)
"""JPEG qualities, tried until the strip is small enough."""


def preview_path(work: Path, key: str) -> Path:
    """Where the strip of a clip lies, whether it is there or not."""
    return work / "previews" / f"{key}.jpg"


def write_preview(clip: Clip) -> Path | None:
    """Writes `WORK/previews/KEY.jpg`: three moments side by side, with the skeleton where it is known.

    At most 20 KiB. None where the clip has no mp4, or one that cannot be shown: a picture is never worth a clip.
    """
    if not clip.key or "mp4" not in clip.files:
        return None
    try:
        times = [share * clip.duration for share in MOMENTS]
        pose = clip.file("pose.npz").read_bytes() if "pose.npz" in clip.files else b""
        content = strip(clip.file("mp4"), times, clip.fps, pose)
        path = preview_path(Path(clip.work), clip.key)
        storage.write_bytes(path, content)
    except (DynamiCtrlError, OSError, ValueError, StopIteration):
        return None
    return path


def strip(video: Path | bytes, times: Sequence[float], fps: float, pose: bytes = b"", masks: bytes = b"") -> bytes:
    """The JPEG of a clip's pictures at some seconds, side by side; `pose` and `masks` as their members' bytes.

    Raises MediaError where nothing can be decoded.
    """
    import numpy as np

    taken, pictures = [], []
    for index, picture in _pictures(video, times, fps):
        height, width = picture.shape[:2]
        scale = min(1.0, HEIGHT / height)
        taken.append(index)
        pictures.append(_resized(picture, max(1, round(height * scale)), max(1, round(width * scale))))
    shown = np.stack(pictures)
    if masks:
        shown = tinted(shown, _masks_at(masks, taken, shown.shape[1:3]))
    if pose:
        from dynamictrl.poses.pose import PoseSequence

        shown = with_skeleton(shown, PoseSequence.from_npz(pose), taken)
    return _jpeg(np.concatenate(list(shown), axis=1))


def _pictures(video: Path | bytes, times: Sequence[float], fps: float) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(number of the frame, picture) of the frame shown at each time, in one pass; the last one where it ends early."""
    from dynamictrl.media.video import iter_frames

    wanted = [max(0, int(time * (fps or 1.0))) for time in times]
    last, index = None, -1
    for index, (_, picture) in enumerate(iter_frames(video, max_pixels=512 * 512, partial=True)):
        last = picture
        while wanted and index >= wanted[0]:
            yield index, picture
            wanted.pop(0)
        if not wanted:
            return
    for _ in wanted if last is not None else ():
        yield index, last  # pyright: ignore[reportReturnType]


def _resized(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


PERSON_COLOURS = ((255, 120, 60), (70, 150, 255), (120, 220, 100), (240, 200, 60))
"""RGB, by person; a fifth person takes the first one's again."""


def tinted(frames: NDArray[np.uint8], masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames [F, H, W, 3] dimmed, with each person of `masks` [F, H, W] in their colour."""
    import numpy as np

    shown = frames * 0.5
    for person in range(1, int(masks.max(initial=0)) + 1):
        colour = np.array(PERSON_COLOURS[(person - 1) % len(PERSON_COLOURS)], np.float64)
        shown = np.where((masks == person)[..., None], frames * 0.55 + colour * 0.45, shown)
    return shown.astype(np.uint8)


def with_skeleton(frames: NDArray[np.uint8], pose: PoseSequence, indexes: Sequence[int]) -> NDArray[np.uint8]:
    """Frames [F, H, W, 3] with the pose of frames `indexes` drawn over them."""
    import numpy as np

    from dynamictrl.poses.pose_drawing import draw_pose

    known = np.minimum(np.array(indexes), pose.num_frames - 1)
    drawn = draw_pose(pose.frames(known), *frames.shape[1:3])
    return np.where(drawn.max(axis=-1, keepdims=True) > 0, np.maximum(drawn, frames // 3), frames)


def _masks_at(content: bytes, indexes: Sequence[int], size: tuple[int, int]) -> NDArray[np.uint8]:
    import numpy as np
    from PIL import Image

    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        persons = arrays["persons"]
    height, width = size
    chosen = [persons[min(i, len(persons) - 1)] for i in indexes]
    return np.stack([np.asarray(Image.fromarray(m).resize((width, height), Image.Resampling.NEAREST)) for m in chosen])


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    image, content = Image.fromarray(picture), b""
    for quality in QUALITIES:
        content = _encoded(image, quality)
        if len(content) <= MOST_BYTES:
            return content
    # Noise that no quality makes small: half the size does.
    while len(content) > MOST_BYTES and min(image.size) > 16:
        image = image.resize((image.width // 2, image.height // 2))
        content = _encoded(image, QUALITIES[-1])
    return content


def _encoded(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
