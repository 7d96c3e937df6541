"""Pictures that the page carries in it: clips with mask and pose drawn over them, and strips of single clips."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynamictrl.errors import DynamiCtrlError
from pipelines.datasets.dataset_view import DatasetView
from pipelines.report.cases import Cases, spread
from pipelines.work.previews import preview_path, strip, tinted, with_skeleton

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dynamictrl.samples.shards import Sample

SAMPLES = 9
SAMPLE_FRAMES = 48
SAMPLE_HEIGHT = 240
"""Pixels."""
VIDEO_BYTES = 3 * 2**20
"""Together, before base64 adds a third: with the strips the page stays below 8 MB."""
STRIP_BYTES = 2 * 2**20
MOMENTS = (1 / 6, 1 / 2, 5 / 6)


def sample_cards(view: DatasetView, kept: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Kept clips from as many sources as there are, each as its row and its `video` as a data URL."""
    cards, used = [], 0
    for row in spread(kept, SAMPLES):
        content = _video(view, row)
        used += len(content)
        if used > VIDEO_BYTES and cards:
            break
        if content:
            cards.append({**row, "video": _url("video/mp4", content)})
    return cards


def strips(view: DatasetView, groups: Sequence[Cases]) -> dict[str, str]:
    """A data URL by key for the clips of `groups` that there is a picture of."""
    found: dict[str, str] = {}
    used = 0
    for case in (case for cases in groups for _, group in cases.groups for case in group):
        key = case.row["key"]
        if key in found or used > STRIP_BYTES:
            continue
        content = _kept_strip(view, case.row) if not case.row["reason"] else _refused_strip(view, key)
        if content:
            used += len(content)
            found[key] = _url("image/jpeg", content)
    return found


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _refused_strip(view: DatasetView, key: str) -> bytes:
    path = preview_path(view.work, key) if view.work and key else None
    return path.read_bytes() if path and path.is_file() else b""


def _kept_strip(view: DatasetView, row: Mapping[str, Any]) -> bytes:
    try:
        members = view.sample(row).members
        length = row["end"] - row["start"]
        times = [share * length for share in MOMENTS]
        return strip(members["mp4"], times, row["fps"], members["pose.npz"], members["mask.npz"])
    except (DynamiCtrlError, OSError, ValueError, KeyError):
        # `verify` is the command that says what is wrong with a shard; a page without one picture is still a page.
        return b""


def _video(view: DatasetView, row: Mapping[str, Any]) -> bytes:
    from dynamictrl.media.video import encode_video

    try:
        return encode_video(_side_by_side(view.sample(row)), row["fps"], crf=28)
    except (DynamiCtrlError, OSError, ValueError, KeyError):
        return b""


def _side_by_side(sample: Sample) -> NDArray[np.uint8]:
    """[F, H, 2 W, 3], shrunk for the page: the clip, and the clip with mask and pose drawn over it."""
    import numpy as np
    from PIL import Image

    from dynamictrl.geometry import cover_crop
    from dynamictrl.media.video import read_video

    frames = read_video(sample.video, num_frames=SAMPLE_FRAMES).frames
    count, height, width = frames.shape[:3]
    scale = min(1.0, SAMPLE_HEIGHT / height)
    size = (max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2))
    small = np.asarray(cover_crop(frames, *size))
    masks = np.asarray(cover_crop(sample.person_mask[:count], *size, resample=Image.Resampling.NEAREST))
    drawn = with_skeleton(tinted(small, masks), sample.pose, range(count))
    return np.concatenate([small, drawn], axis=2)
