"""What one attempt leaves behind: the clip, a thumbnail, and a sprite sheet with its WebVTT for a player's seek bar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynamictrl.media.audio import Sound, add_sound
from dynamictrl.media.video import write_video
from serving.results.blobs import RESULTS

THUMBNAIL_SIDE = 640
"""Pixels of a thumbnail's longer side, at most."""
SHEET_COLUMNS, SHEET_ROWS, SHEET_SIDE = 4, 4, 240
"""A sprite sheet: up to 16 frames in rows, the longer side of each this many pixels, or its own where that is less."""


def write_results(
    folder: Path, frames: NDArray[np.uint8], fps: float, sound: Sound | None = None, *, thumbnail_at: float = 0.5
) -> None:
    """Writes every variant of a clip ([F, H, W, 3] RGB), with its sound where it shall have one."""
    folder.mkdir(parents=True, exist_ok=True)
    clip = folder / RESULTS["video"][0]
    write_video(clip, frames, fps)
    if sound is not None:
        add_sound(clip, sound)
    thumbnail = Image.fromarray(frames[int((len(frames) - 1) * thumbnail_at)])
    thumbnail.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    thumbnail.save(folder / RESULTS["thumbnail"][0], "WEBP", quality=85)
    shown = shown_frames(len(frames))
    sheet, cell = sprite_sheet(frames, shown)
    sheet.save(folder / RESULTS["spritesheet"][0], "JPEG", quality=85)
    (folder / RESULTS["spritesheet_vtt"][0]).write_text(sprite_cues(shown, len(frames), fps, cell))


def shown_frames(count: int) -> list[int]:
    """Which of `count` frames a sheet shows: up to 16, evenly spread from the first to the last."""
    places = np.linspace(0, count - 1, min(count, SHEET_COLUMNS * SHEET_ROWS)).round().astype(int)
    return [int(place) for place in places]


def sprite_sheet(frames: NDArray[np.uint8], shown: list[int]) -> tuple[Image.Image, tuple[int, int]]:
    """The frames in rows from the top left, and the width and height of each."""
    height, width = frames.shape[1:3]
    scale = min(1.0, SHEET_SIDE / max(height, width))
    cell = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = min(len(shown), SHEET_COLUMNS)
    sheet = Image.new("RGB", (cell[0] * columns, cell[1] * -(-len(shown) // columns)))
    for place, index in enumerate(shown):
        picture = Image.fromarray(frames[index]).resize(cell, Image.Resampling.LANCZOS)
        sheet.paste(picture, (place % columns * cell[0], place // columns * cell[1]))
    return sheet, cell


def sprite_cues(shown: list[int], count: int, fps: float, cell: tuple[int, int]) -> str:
    """WebVTT: which part of the sheet goes with which time, as players read it (`URL#xywh=`)."""
    lines = ["WEBVTT", ""]
    columns = min(len(shown), SHEET_COLUMNS)
    for place, index in enumerate(shown):
        end = shown[place + 1] if place + 1 < len(shown) else count
        x, y = place % columns * cell[0], place // columns * cell[1]
        lines += [
            f"{_time(index / fps)} --> {_time(end / fps)}",
            f"content?variant=spritesheet#xywh={x},{y},{cell[0]},{cell[1]}",
            "",
        ]
    return "\n".join(lines)


def _time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"
