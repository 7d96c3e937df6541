"""How a data set becomes visible, on a disk and in a bucket: planned, committed, swapped, and whole after any kill."""

import io
import json
import pickle
from collections import Counter
from pathlib import Path

import pytest
import webdataset

from dynamictrl.errors import DatasetError
from dynamictrl.samples.shards import MEMBERS, iter_shard, open_dataset
from pipelines.clip import Clip
from pipelines.publishing import dataset_files
from pipelines.publishing.publication import Publication
from tests.unit.pipelines.made_clips import SIZE, files, made_clip, published

SMALL = 0.04


@pytest.fixture(params=["disk", "bucket"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a data set goes."""
    return str(tmp_path / "set") if request.param == "disk" else request.getfixturevalue("bucket")


def clips_of(work: Path, *numbers: int) -> list[Clip]:
    return [made_clip(work, number) for number in numbers]


def keys_by_shard(publication: Publication) -> dict[str, list[str]]:
    held: dict[str, list[str]] = {}
    for key, place in sorted(Publication(publication.out, publication.work).committed().items()):
        held.setdefault(place.shard, []).append(key)
    return held


def test_what_is_kept_is_in_a_shard_once_and_what_is_refused_is_on_record(out: str, tmp_path: Path):
    clips = clips_of(tmp_path / "work", *range(40))
    clips[7] = clips[7].reject("too_dark", "it is night")
    publication = Publication(out, tmp_path / "work")
    outcome = published(publication, clips)
    counts = outcome.description["counts"]
    assert outcome.changed
    assert (counts["clips"], counts["kept"], counts["rejected"]) == (40, 39, {"too_dark": 1})
    assert counts["by_source"] == {"kept": 20, "filtered": {}, "quarantined": {}}
    places = publication.committed()
    assert places.keys() == {clip.key for clip in clips if not clip.rejected}
    rows = dataset_files.parse_manifest(publication.store.read("manifest.parquet"))
    assert {row["key"]: row["digest"] for row in rows} == {clip.key: clip.digest for clip in clips}
    assert all((row["shard"], row["offset"]) == ("", -1) for row in rows if row["reason"])
    assert all(row["lineage"] == {"cut": "a" * 16} for row in rows)
    assert publication.is_whole()
    assert not list((tmp_path / "work" / "clips").glob("*/clip.mp4")) or clips[7].file("mp4").is_file()


def test_a_bucket_holds_the_same_bytes_as_a_disk(bucket: str, tmp_path: Path):
    found = []
    for out in (bucket, str(tmp_path / "set")):
        publication = Publication(out, tmp_path / "work")
        published(publication, clips_of(tmp_path / "work", *range(30)))
        found.append(files(publication))
    assert found[0] == found[1]
    assert len(found[0]) > 5


def test_shards_come_within_a_tenth_of_their_size_but_for_the_last(tmp_path: Path):
    clips = clips_of(tmp_path / "work", *range(120))
    outcome = published(Publication(str(tmp_path / "set"), tmp_path / "work"), clips, 0.25)
    *full, last = [shard["bytes"] / (0.25 * 2**20) for shard in outcome.description["shards"]]
    assert len(full) >= 2
    assert all(0.9 <= size <= 1.1 for size in full)
    assert last <= 1.1


def test_stock_webdataset_and_our_reader_read_the_shards(tmp_path: Path):
    clips = clips_of(tmp_path / "work", *range(20))
    captions = {clip.key: clip.caption for clip in clips}
    published(Publication(str(tmp_path / "set"), tmp_path / "work"), clips)
    shards = open_dataset(tmp_path / "set").shards
    samples = list(webdataset.WebDataset([str(path) for path in shards], shardshuffle=False))
    assert {sample["__key__"]: sample["txt"].decode() for sample in samples} == captions
    assert {sample.key for shard in shards for sample in iter_shard(shard)} == captions.keys()


def test_a_second_publication_of_the_same_changes_nothing(out: str, tmp_path: Path):
    clips = clips_of(tmp_path / "work", *range(12))
    publication = Publication(out, tmp_path / "work")
    published(publication, clips, SMALL)
    before = files(publication)
    assert publication.plan(clips, SMALL) == []
    assert not published(publication, clips, SMALL).changed
    assert files(publication) == before


def test_a_changed_clip_retires_its_shard_and_no_other(out: str, tmp_path: Path):
    clips = clips_of(tmp_path / "work", *range(30))
    publication = Publication(out, tmp_path / "work")
    published(publication, clips)
    before, held = files(publication), keys_by_shard(publication)
    touched = publication.committed()[clips[4].key].shard
    clips[4] = made_clip(tmp_path / "work", 4, "someone bows")
    outcome = published(publication, clips)
    after = files(publication)
    new = [f"shards/train-{len(held):06d}.tar"]
    assert before.keys() - after.keys() == {f"shards/{touched}"}
    assert sorted(after.keys() - before.keys()) == new
    assert {n: c for n, c in after.items() if n in before and n.startswith("shards/")}.items() <= before.items()
    assert keys_by_shard(publication)[new[0].removeprefix("shards/")] == held[touched]
    assert outcome.description["next_shard"] == len(held) + 1
    assert b"someone bows" in after[new[0]]


def test_no_shard_name_is_used_twice(tmp_path: Path):
    publication = Publication(str(tmp_path / "set"), tmp_path / "work")
    seen: Counter[str] = Counter()
    for round_ in range(4):
        clips = [made_clip(tmp_path / "work", number, f"caption {round_}") for number in range(6)]
        seen.update(shard["name"] for shard in published(publication, clips, SMALL).description["shards"])
    assert set(seen.values()) == {1}


def test_clips_that_come_later_get_shards_behind_the_others(tmp_path: Path):
    publication = Publication(str(tmp_path / "set"), tmp_path / "work")
    clips = clips_of(tmp_path / "work", *range(10))
    published(publication, clips, SMALL)
    before = files(publication)
    published(publication, [*clips, *clips_of(tmp_path / "work", 90, 91)], SMALL)
    assert {n: c for n, c in files(publication).items() if n in before and n.endswith(".tar")}.items() <= before.items()
    assert len(keys_by_shard(publication)) == len([n for n in before if n.endswith(".tar")]) + 1


def test_clips_that_are_asked_for_anew_while_a_plan_is_open_are_planned_again(tmp_path: Path):
    publication = Publication(str(tmp_path / "set"), tmp_path / "work")
    clips = clips_of(tmp_path / "work", *range(12))
    first = publication.plan(clips, SMALL)
    publication.commit(first[0])
    clips[11] = made_clip(tmp_path / "work", 11, "someone bows")
    second = publication.plan(clips, SMALL)
    assert first[0] not in second
    assert not set(second) & {first[-1]}
    published(publication, clips, SMALL)
    assert publication.committed()[clips[11].key].digest == clips[11].digest
    assert len(publication.committed()) == 12


def test_a_lost_shard_is_written_again_from_the_work_files(out: str, tmp_path: Path):
    publication = Publication(out, tmp_path / "work")
    clips = clips_of(tmp_path / "work", *range(12))
    published(publication, clips, SMALL)
    lost = publication.committed()[clips[0].key].shard
    publication.store.delete(f"shards/{lost}")
    again = Publication(out, tmp_path / "work")
    assert not again.is_whole()
    gone = {clip.key for clip in clips} - again.committed().keys()
    assert clips[0].key in gone
    clips = [made_clip(tmp_path / "work", n) if clip.key in gone else clip for n, clip in enumerate(clips)]
    published(again, clips, SMALL)
    assert again.is_whole()
    assert len(again.committed()) == 12


def test_a_kept_clip_whose_files_are_gone_is_refused_by_name(tmp_path: Path):
    clip = made_clip(tmp_path / "work", 0)
    clip.file("mask.npz").unlink()
    with pytest.raises(DatasetError, match=f"work files of clip {clip.key} are gone"):
        Publication(str(tmp_path / "set"), tmp_path / "work").plan([clip], SIZE)


def test_members_are_restored_out_of_their_shard(out: str, tmp_path: Path):
    clips = clips_of(tmp_path / "work", *range(6))
    wanted = {extension: clips[3].file(extension).read_bytes() for extension in MEMBERS}
    published(Publication(out, tmp_path / "work"), clips, SMALL)
    publication = pickle.loads(pickle.dumps(Publication(out, tmp_path / "work")))
    assert not clips[3].folder.exists()
    assert all(publication.restore(clips[3], extension) for extension in MEMBERS)
    assert {extension: clips[3].file(extension).read_bytes() for extension in MEMBERS} == wanted
    assert not publication.restore(clips[3], "latents.safetensors")
    assert not publication.restore(made_clip(tmp_path / "work", 77), "mp4")


def test_blurred_faces_are_what_is_published_and_the_first_picture_does_not_come_back(tmp_path: Path):
    clip = made_clip(tmp_path / "work", 0)
    clip.file("blurred.mp4").write_bytes(b"blurred")
    clip = clip.with_file("blurred.mp4")
    publication = Publication(str(tmp_path / "set"), tmp_path / "work")
    published(publication, [clip])
    (sample,) = iter_shard(open_dataset(tmp_path / "set").shards[0])
    assert sample.video == b"blurred"
    assert not publication.restore(clip, "mp4")
    assert publication.restore(clip, "blurred.mp4")


def test_what_the_plan_does_not_hold_cannot_be_published(tmp_path: Path):
    publication = Publication(str(tmp_path / "set"), tmp_path / "work")
    clips = clips_of(tmp_path / "work", *range(4))
    publication.plan(clips, SMALL)
    content = dataset_files.description("made", {}, 2, clips, {})
    with pytest.raises(DatasetError, match="kept and in no shard"):
        publication.finish(content, clips)
    assert not publication.store.exists("dataset.json")


def test_more_files_can_be_made_from_the_description_and_come_before_it(tmp_path: Path):
    publication = Publication(str(tmp_path / "set"), tmp_path / "work")
    clips = clips_of(tmp_path / "work", *range(4))
    for shard in publication.plan(clips, SMALL):
        publication.commit(shard)

    def card(description: dict) -> dict[str, bytes]:
        assert publication.store.exists("manifest.parquet")
        assert not publication.store.exists("dataset.json")
        return {"card.json": json.dumps(description["counts"]).encode()}

    publication.finish(dataset_files.description("made", {}, 2, clips, publication.records()), clips, card)
    assert json.load(io.BytesIO(publication.store.read("card.json")))["kept"] == 4
