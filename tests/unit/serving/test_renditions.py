"""What an attempt leaves behind: every variant, of the right size, and a sheet that says what it shows."""

from pathlib import Path

import numpy as np
from PIL import Image

from dynamictrl.media.video import read_video
from serving.results.blobs import RESULTS
from serving.results.renditions import shown_frames, sprite_cues, write_results


def test_results_are_a_clip_a_thumbnail_and_a_sprite_sheet_with_cues(tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 255, (9, 96, 64, 3), dtype=np.uint8)
    write_results(tmp_path / "1", frames, 12.0)
    assert {path.name for path in (tmp_path / "1").iterdir()} == {name for name, _ in RESULTS.values()}
    video = read_video(tmp_path / "1" / "video.mp4")
    assert (video.frames.shape, video.fps) == ((9, 96, 64, 3), 12.0)
    assert Image.open(tmp_path / "1" / "thumbnail.webp").size == (64, 96)
    assert Image.open(tmp_path / "1" / "spritesheet.jpg").size == (4 * 64, 3 * 96)
    cues = (tmp_path / "1" / "spritesheet.vtt").read_text().split("\n\n")
    assert (cues[0], len(cues) - 1) == ("WEBVTT", 9 + 0)
    assert cues[6] == "00:00:00.417 --> 00:00:00.500\ncontent?variant=spritesheet#xywh=64,96,64,96"


def test_a_large_clips_pictures_are_shrunk_and_each_cue_points_at_its_own_frame(tmp_path: Path):
    # Frame number n has the grey value 5 n, so that a cell says which frame it came from.
    frames = np.stack([np.full((768, 1360, 3), 5 * n, np.uint8) for n in range(37)])
    write_results(tmp_path, frames, 10.0)
    assert Image.open(tmp_path / "thumbnail.webp").size == (640, 361)
    sheet = np.asarray(Image.open(tmp_path / "spritesheet.jpg")).astype(int)
    for cue in (tmp_path / "spritesheet.vtt").read_text().split("\n\n")[1:-1]:
        times, link = cue.split("\n")
        start = float(times[6:12])
        x, y, width, height = map(int, link.split("xywh=")[1].split(","))
        assert abs(sheet[y + height // 2, x + width // 2].mean() - 5 * round(start * 10)) <= 2
    assert shown_frames(3) == [0, 1, 2]
    assert "01:02:03.000" in sprite_cues([3723], 4000, 1.0, (10, 10))
