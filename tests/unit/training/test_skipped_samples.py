"""Clips that cannot be read are counted, whatever the disk says."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dynamictrl.errors import DatasetError
from dynamictrl.samples.buckets import Bucket
from dynamictrl.samples.windows import Window
from training.samples.order import Draw, Entry
from training.samples.skipped_samples import NAME, SkippedSamples


def draw_of(key: str) -> Draw:
    entry = Entry(key, Path("set/shards/train-00000.tar"), 0, 12.0, (0,), Bucket(9, 32, 48))
    return Draw(0, entry, Window(0, 9, 32, 48, 12.0), drops_caption=False, drops_image=False, noise_seed=0)


def test_a_full_disk_costs_the_record_of_a_bad_clip_and_not_its_count(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / NAME).symlink_to("/dev/full")
    skipped = SkippedSamples(tmp_path, 1)
    with caplog.at_level(logging.WARNING):
        skipped.note(draw_of("clip0001"), "broken")

    assert "clip clip0001 is not in" in caplog.text
    with pytest.raises(DatasetError, match="2 clips could not be read"):
        skipped.note(draw_of("clip0002"), "broken")
