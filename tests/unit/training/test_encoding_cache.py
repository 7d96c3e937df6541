"""Encodings that workers keep for each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dynamictrl.samples.encodings import TENSORS, EncodedBy, Encodings
from dynamictrl.samples.windows import Window
from training.samples.encoding_cache import CacheKey, EncodingCache

KEY = CacheKey("clip0001", 3, "none")
MADE_BY = EncodedBy(Window(3, 9, 32, 48, 12.0), "", "", "none")


@pytest.mark.parametrize("kept", [0, 40])
def test_a_kept_file_that_was_cut_short_is_made_again(tmp_path: Path, kept: int):
    value = Encodings(**{name: torch.full((2, 3), 5.0) for name in TENSORS})
    EncodingCache(0, tmp_path).put(KEY, value, MADE_BY)
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:kept])

    another = EncodingCache(2**20, tmp_path)
    assert another.get(KEY) is None
    another.put(KEY, value, MADE_BY)
    found = EncodingCache(0, tmp_path).get(KEY)
    assert found is not None
    assert torch.equal(found.video, value.video)
    assert list(tmp_path.iterdir()) == [file]
