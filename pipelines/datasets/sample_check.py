"""Whether a sample is what its manifest row says, and whole in itself: as many poses and masks as frames, in time."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

from dynamictrl.errors import DynamiCtrlError
from dynamictrl.samples.shards import Sample

EARLY_OR_LATE = 0.25
"""Share of a frame by which a frame's time may miss i / fps: times are stored in ticks of the container."""


def misfit(sample: Sample, row: Mapping[str, Any], offset: int) -> str:
    """How a sample differs from its manifest row or in itself; "" where it does not."""
    if offset != row["offset"]:
        return f"begins at byte {offset} and not at {row['offset']}"
    try:
        return _of_members(sample, row)
    except (DynamiCtrlError, ValueError, KeyError, OSError, zipfile.BadZipFile, io.UnsupportedOperation) as problem:
        return f"cannot be read: {problem}"


def _of_members(sample: Sample, row: Mapping[str, Any]) -> str:
    from dynamictrl.media.video import iter_frames

    times, size = [], (row["height"], row["width"])
    for time, frame in iter_frames(sample.video):
        times.append(time)
        size = frame.shape[:2]
    masks = sample.person_mask.shape
    counts = {"manifest": row["frames"], "pose": sample.pose.num_frames, "mask": masks[0]}
    wrong = [f"{n} in the {name}" for name, n in counts.items() if n != len(times)]
    if wrong:
        return f"has {len(times)} frames but {', '.join(wrong)}"
    if not size == masks[1:] == (row["height"], row["width"]):
        return f"has frames of {size}, masks of {masks[1:]} and says {(row['height'], row['width'])}"
    # Pose and mask have a row per frame and no times of their own: equal timestamps means one frame every 1 / fps.
    late = [i for i, time in enumerate(times) if abs(time - i / row["fps"]) > EARLY_OR_LATE / row["fps"]]
    if late:
        return f"shows frame {late[0]} at {times[late[0]]:.3f} s and not at {late[0] / row['fps']:.3f} s"
    if sample.info["key"] != sample.key or sample.caption != row["caption"]:
        return "has another description than the manifest"
    return ""
