"""What is read of the shards before a run: headers, descriptions, and what a run has kept of an earlier look."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from dynamictrl.errors import DatasetError
from dynamictrl.samples import shards
from dynamictrl.samples.shards import DatasetFolder, open_dataset
from training.samples import shard_scan
from training.samples.shard_scan import KEPT, keep, scan


@pytest.fixture
def copy(small_dataset: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_dataset, tmp_path / "set")


def first_shard(root: Path) -> Path:
    return root / "shards" / "train-000000.tar"


def test_offsets_sizes_and_masks_are_those_of_the_samples(small_dataset: Path):
    scanned = scan(open_dataset(small_dataset))

    assert [len(samples) for samples in scanned.values()] == [4, 3]
    for shard, samples in scanned.items():
        assert {s.key: s.offset for s in samples} == shards.index_shard(shard)
        for found in samples:
            sample = shards.read_sample(shard, found.offset)
            assert (found.fps, found.frames) == (sample.info["fps"], sample.info["frames"])
            assert (found.height, found.width, found.has_clothes, found.latents_bytes) == (96, 64, True, 0)


def test_latents_are_found_byte_for_byte_with_their_description(copy: Path):
    shard = first_shard(copy)
    header = json.dumps({"__metadata__": {"encoded_by": "by someone"}}).encode()
    content = len(header).to_bytes(8, "little") + header + b"12345"
    samples = [
        shards.Sample(s.key, {**s.members, shards.LATENTS: content if s.key == "clip0001" else b"rubbish"})
        for s in shards.iter_shard(shard)
    ]
    shards.write_shard(shard, samples)

    found = {s.key: s for s in scan(open_dataset(copy))[shard]}
    one = found["clip0001"]
    assert shard.read_bytes()[one.latents_start : one.latents_start + one.latents_bytes] == content
    assert one.encoded_by == "by someone"
    assert found["clip0000"].encoded_by == ""
    assert found["clip0000"].latents_bytes == len(b"rubbish")


def test_what_was_kept_is_used_until_a_shard_changes(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept, looked = tmp_path / KEPT, []
    whole = scan(open_dataset(copy), kept)
    keep(whole, kept)
    real = shard_scan.scan_shard
    monkeypatch.setattr(shard_scan, "scan_shard", lambda path, size: looked.append(path.name) or real(path, size))

    assert scan(open_dataset(copy), kept) == whole
    assert looked == []
    os.utime(first_shard(copy), ns=(1, 1))
    assert scan(open_dataset(copy), kept) == whole
    assert looked == ["train-000000.tar"]
    kept.write_text("{not json")
    assert scan(open_dataset(copy), kept) == whole


def described(root: Path) -> None:
    records = [{"name": p.name, "bytes": p.stat().st_size} for p in sorted((root / "shards").glob("*.tar"))]
    shards.write_json(root / "dataset.json", {"schema_version": shards.SCHEMA_VERSION, "shards": records})


def test_shards_that_are_missing_or_cut_off_are_named_before_anything_starts(copy: Path):
    described(copy)
    shard = first_shard(copy)
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=rf"train-000000.tar is damaged \(it has {len(content) // 2} bytes and"):
        scan(open_dataset(copy))
    shard.unlink()
    with pytest.raises(DatasetError, match="1 of 2 shards .* are not there, the first train-000000.tar") as caught:
        scan(open_dataset(copy))
    assert caught.value.code == "shard_missing"


@pytest.mark.parametrize("share", [0.3, 0.5, 0.97])
def test_a_shard_cut_off_anywhere_is_damaged_without_a_description_of_its_size_too(copy: Path, share: float):
    shard = first_shard(copy)
    content = shard.read_bytes()
    shard.write_bytes(content[: int(len(content.rstrip(b"\0")) * share)])

    with pytest.raises(DatasetError, match="train-000000.tar is damaged"):
        scan(open_dataset(copy))


def test_a_sample_that_lacks_a_member_is_named_with_what_it_lacks(copy: Path):
    shard = first_shard(copy)
    with shard.open("wb") as stream:
        writer = shards.ShardWriter(stream)
        writer.begin("clip0009")
        for extension in ("mp4", "mask.npz", "txt", "json"):
            writer.add(extension, (copy / "dataset.json").open("rb"), (copy / "dataset.json").stat().st_size)
        writer.close()

    with pytest.raises(DatasetError, match="clip0009 .* lacks pose.npz") as caught:
        scan(open_dataset(copy))
    assert caught.value.code == "sample_members"


def test_a_folder_that_is_no_data_set_or_of_a_later_schema_or_unreadable_is_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match="has no dataset.json"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"schema_version": 99}')
    with pytest.raises(DatasetError, match="schema version 99; this release reads 1"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"schema_ver')
    with pytest.raises(DatasetError, match="cannot be read as a data set's description"):
        open_dataset(tmp_path)


def test_an_empty_data_set_scans_to_nothing(tmp_path: Path):
    assert scan(DatasetFolder(tmp_path, {}, ())) == {}
