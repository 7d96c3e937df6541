"""The recipe `encode`: a curated data set again, with latents that training can use."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dynamictrl.media.video import write_video
from dynamictrl.samples.encodings import from_bytes, read_encoded_by
from dynamictrl.samples.shards import LATENTS, MEMBERS, iter_shard, open_dataset
from pipelines import job
from pipelines.datasets.verify import verify
from pipelines.recipes import encode
from pipelines.stages.encode_latents import EncodeLatents
from tests.unit.pipelines.conftest import FPS, Weightless, shot


def test_every_sample_comes_again_with_its_latents_and_short_ones_without(tmp_path: Path, tiny_model: Path):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", np.concatenate([shot(1, 24), shot(2, 14)]), FPS)
    curated = Weightless(videos=(str(tmp_path / "videos"),), out=tmp_path / "set", local=True)
    job.run("weightless", curated)

    stage = EncodeLatents(model=str(tiny_model), height=32, width=48, num_frames=17, device="cpu")
    pipeline = replace(encode(), videos=(str(tmp_path / "set"),), out=tmp_path / "encoded", local=True, latents=stage)
    assert job.run("encode", pipeline).changed
    assert not job.run("encode", pipeline).changed

    assert verify(tmp_path / "encoded") == []
    before = {s.key: s for shard in open_dataset(tmp_path / "set").shards for s in iter_shard(shard)}
    after = {s.key: s for shard in open_dataset(tmp_path / "encoded").shards for s in iter_shard(shard)}
    assert before.keys() == after.keys()
    assert len(after) == 2
    for key, sample in after.items():
        unchanged = set(MEMBERS) - {"json"}
        assert {m: sample.members[m] for m in unchanged} == {m: before[key].members[m] for m in unchanged}
    encoded = [s.members[LATENTS] for s in after.values() if LATENTS in s.members]
    assert len(encoded) == 1
    latents = from_bytes(encoded[0])
    assert latents.video.shape[1:] == (5, 4, 6)
    assert latents.reference_pixels.shape == (3, 32, 48)
    assert read_encoded_by(encoded[0]).window.num_frames == 17


def test_a_folder_of_raw_videos_is_no_data_set(tmp_path: Path):
    with pytest.raises(Exception, match="is no data set"):
        job.run("encode", replace(encode(), videos=(str(tmp_path),), out=tmp_path / "out"))
