"""Tars written member by member: the bytes that Python's own tarfile would write, found again by their headers."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from dynamictrl.errors import DatasetError
from dynamictrl.samples.shards import (
    BLOCK,
    LATENTS,
    MEMBERS,
    SCHEMA_VERSION,
    Sample,
    ShardWriter,
    index_shard,
    iter_members,
    iter_shard,
    open_dataset,
    sample_bytes,
    shard_bytes,
    write_json,
    write_shard,
)


def samples(count: int = 5) -> list[Sample]:
    """Members of all lengths around a block."""
    names = (*MEMBERS, LATENTS)
    return [Sample(f"k{i}", {m: os.urandom(i * 255 + n) for n, m in enumerate(names)}) for i in range(count)]


def test_a_shard_has_the_bytes_that_tarfile_writes(tmp_path: Path):
    made, expected = samples(), io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in made:
            for extension in (*MEMBERS, LATENTS):
                header = tarfile.TarInfo(f"{sample.key}.{extension}")
                header.size, header.mode = len(sample.members[extension]), 0o644
                tar.addfile(header, io.BytesIO(sample.members[extension]))
    write_shard(tmp_path / "a.tar", made)
    assert (tmp_path / "a.tar").read_bytes() == expected.getvalue()


def test_sizes_are_known_before_anything_is_written(tmp_path: Path):
    made = samples()
    offsets = write_shard(tmp_path / "a.tar", made)
    sizes = [sample_bytes(len(content) for content in sample.members.values()) for sample in made]
    assert list(offsets.values()) == [sum(sizes[:i]) for i in range(len(made))]
    assert shard_bytes(sum(sizes)) == (tmp_path / "a.tar").stat().st_size
    assert index_shard(tmp_path / "a.tar") == offsets


def test_a_sample_is_copied_as_it_lies_and_hashed_on_the_way(tmp_path: Path):
    import hashlib

    made = samples()
    offsets = write_shard(tmp_path / "a.tar", made)
    write_shard(tmp_path / "wanted.tar", [made[3], made[1]])
    target = io.BytesIO()
    writer = ShardWriter(target)
    with (tmp_path / "a.tar").open("rb") as stream:
        for number in (3, 1):
            stream.seek(offsets[f"k{number}"])
            writer.copy(f"k{number}", stream, sample_bytes(map(len, made[number].members.values())))
    writer.close()
    wanted = (tmp_path / "wanted.tar").read_bytes()
    assert target.getvalue() == wanted
    assert (writer.sha256, writer.md5) == (hashlib.sha256(wanted).hexdigest(), hashlib.md5(wanted).hexdigest())


def test_a_copy_from_the_wrong_place_or_past_the_end_is_refused(tmp_path: Path):
    made = samples(2)
    write_shard(tmp_path / "a.tar", made)
    with (tmp_path / "a.tar").open("rb") as stream, pytest.raises(DatasetError, match="k1 is not where"):
        ShardWriter(io.BytesIO()).copy("k1", stream, BLOCK)
    with (tmp_path / "a.tar").open("rb") as stream, pytest.raises(DatasetError, match="too early"):
        ShardWriter(io.BytesIO()).copy("k0", stream, 2**20)


def test_a_member_shorter_than_it_was_said_to_be_is_refused():
    writer = ShardWriter(io.BytesIO())
    writer.begin("k")
    with pytest.raises(DatasetError, match="ends 3 bytes too early"):
        writer.add("mp4", io.BytesIO(b"1234567"), 10)


def test_members_are_found_by_their_headers_and_damage_is_said(tmp_path: Path):
    made = samples(2)
    write_shard(tmp_path / "a.tar", made)
    content = bytearray((tmp_path / "a.tar").read_bytes())
    found = list(iter_members(io.BytesIO(content)))
    assert [(m.key, m.extension) for m in found] == [(s.key, e) for s in made for e in (*MEMBERS, LATENTS)]
    for member in found:
        start = member.start + BLOCK
        sample = made[int(member.key[1:])]
        assert bytes(content[start : start + member.size]) == sample.members[member.extension]
    content[found[1].start + 10] ^= 1
    with pytest.raises(DatasetError, match=f"no member at byte {found[1].start}"):
        list(iter_members(io.BytesIO(content)))


def test_a_key_that_comes_twice_leaves_no_shard(tmp_path: Path):
    (sample,) = samples(1)
    with pytest.raises(DatasetError, match="comes twice"):
        write_shard(tmp_path / "a.tar", [sample, sample])
    assert list(tmp_path.iterdir()) == []


def test_readers_see_the_shards_that_the_description_names_and_no_others(tmp_path: Path):
    for number, sample in enumerate(samples(3)):
        write_shard(tmp_path / "shards" / f"train-{number:06d}.tar", [sample])
    write_json(tmp_path / "dataset.json", {"schema_version": SCHEMA_VERSION, "shards": [{"name": "train-000001.tar"}]})
    (shard,) = open_dataset(tmp_path).shards
    assert [sample.key for sample in iter_shard(shard)] == ["k1"]
