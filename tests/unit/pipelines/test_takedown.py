"""A source is taken down: nothing of it is left, nothing else is touched, and no later run brings it back."""

import json
from pathlib import Path

import pytest
import webdataset

from dynamictrl.errors import InputError
from dynamictrl.samples.shards import open_dataset
from pipelines.clip import Clip
from pipelines.datasets.takedown import take_down
from pipelines.files import run_folder
from pipelines.files.lease import BusyError
from pipelines.files.storage import Store
from pipelines.publishing import dataset_files, purge, tombstones
from pipelines.publishing.publication import Publication
from tests.unit.pipelines.killing import readable, stopped
from tests.unit.pipelines.made_clips import files, made_clip, published

SMALL = 0.04


@pytest.fixture(params=["disk", "bucket"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a data set goes."""
    return str(tmp_path / "set") if request.param == "disk" else request.getfixturevalue("bucket")


@pytest.fixture(autouse=True)
def _one_moment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.datasets.takedown._now", lambda: "2026-09-21T14:13:20Z")


def made(out: str, count: int = 12) -> list[Clip]:
    """A data set of two clips per source; the sixth clip's message names the third, which goes."""
    work = run_folder.work_folder(out)
    clips = [made_clip(work, number) for number in range(count)]
    clips[5] = clips[5].reject("near_duplicate", f"looks like {clips[2].key} of {clips[2].source}")
    broken = Clip(source="/videos/broken.mp4", fingerprint="b").quarantine("not_media", "no video")
    publication = Publication(out, work)
    published(publication, [*clips, broken], SMALL)
    publication.store.put("notes.txt", f"see {clips[2].key}".encode())
    record = work / "results" / "sources" / "ab" / "abcdef.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps([{"rows": [clips[2].to_row(), clips[3].to_row()]}]))
    (work / "previews").mkdir(exist_ok=True)
    (work / "previews" / f"{clips[3].key}.jpg").write_bytes(b"picture")
    return clips


def everything(out: str) -> bytes:
    """All bytes that are left of a data set, its work folder included; the tombstones aside."""
    folder = run_folder.work_folder(out)
    work = b"".join(str(p).encode() + (p.read_bytes() if p.is_file() else b"") for p in sorted(folder.rglob("*")))
    kept = files(Publication(out, folder))
    rows = repr(dataset_files.parse_manifest(kept.pop("manifest.parquet"))).encode()
    return work + rows + b"".join(name.encode() + kept[name] for name in kept if name != tombstones.NAME)


def test_nothing_is_left_of_a_source_and_only_its_shards_are_written_anew(out: str):
    clips = made(out)
    store = Store(out)
    before, places = files(Publication(out, Path("w"))), Publication(out, run_folder.work_folder(out)).committed()
    touched = {f"shards/{places[clip.key].shard}" for clip in clips[2:4]}
    assert clips[2].key.encode() in everything(out)
    removal = take_down(out, clips[2].source, "asked by its author")
    left = everything(out)
    for word in (clips[2].key, clips[3].key, clips[2].source, clips[2].source_sha256):
        assert word.encode() not in left, word
    after = {name: content for name, content in files(Publication(out, Path("w"))).items() if name.endswith(".tar")}
    assert {name for name in before if name.endswith(".tar")} - after.keys() == touched
    assert all(after[name] == before[name] for name in before.keys() & after.keys())
    assert (removal.clips, removal.shards) == (2, len(touched))
    assert readable(store)
    counts = json.loads(store.read("dataset.json"))["counts"]
    assert (counts["sources"], counts["kept"], counts["rejected"]) == (6, 9, {"near_duplicate": 1})


def test_the_tombstone_remembers_when_and_why_and_no_name(out: str):
    clips = made(out)
    take_down(out, clips[2].source_sha256, "asked by its author")
    (stone,) = tombstones.read(Store(out))
    assert (stone.source_sha256, stone.reason) == (clips[2].source_sha256, "asked by its author")
    assert (stone.time, stone.clips) == ("2026-09-21T14:13:20Z", 2)
    assert clips[2].source.encode() not in Store(out).read(tombstones.NAME)
    assert tombstones.uri_hash(clips[2].source) in Publication(out, Path("w")).tombstones()


def test_a_later_run_does_not_bring_it_back(out: str, tmp_path: Path):
    clips = made(out)
    take_down(out, clips[2].source)
    work = tmp_path / "later"
    again = [made_clip(work, number) for number in range(13)]
    again[5] = again[5].reject("near_duplicate")
    outcome = published(Publication(out, work), again, SMALL)
    keys = {row["key"] for row in dataset_files.parse_manifest(Store(out).read("manifest.parquet"))}
    assert keys == {clip.key for clip in again} - {clips[2].key, clips[3].key}
    assert outcome.description["counts"]["kept"] == 10


def test_it_works_where_the_work_folder_is_gone_and_from_another(out: str, tmp_path: Path):
    clips = made(out)
    take_down(out, clips[0].source, work=tmp_path / "elsewhere")
    keys = Publication(out, tmp_path / "new").committed().keys()
    assert clips[0].key not in keys
    assert len(keys) == 9


def test_a_source_that_could_not_be_read_goes_too(out: str):
    made(out)
    take_down(out, "/videos/broken.mp4")
    assert Store(out).read("quarantine.jsonl") == b""
    assert json.loads(Store(out).read("dataset.json"))["counts"]["quarantined"] == {}


def test_again_it_does_nothing_and_says_so(out: str):
    clips = made(out)
    take_down(out, clips[2].source)
    before = files(Publication(out, Path("w")))
    removal = take_down(out, clips[2].source)
    assert (removal.clips, removal.shards, len(removal.tombstones)) == (0, 0, 1)
    assert files(Publication(out, Path("w"))) == before


def test_an_unknown_source_is_refused_with_the_name_that_was_meant(tmp_path: Path):
    made(str(tmp_path / "set"))
    with pytest.raises(InputError, match=r"did you mean /videos/001\.mp4"):
        take_down(str(tmp_path / "set"), "/videos/001.mp")
    assert not (tmp_path / "set" / tombstones.NAME).exists()


@pytest.mark.parametrize("out", ["disk", pytest.param("bucket", marks=pytest.mark.exhaustive)], indirect=True)
def test_a_takedown_killed_at_any_step_and_repeated_ends_with_the_same_bytes(out: str, monkeypatch: pytest.MonkeyPatch):
    whole, step = None, 0
    while True:
        here = f"{out}-{step}/set"
        clips = made(here, 8)
        before = Store(here).list("shards")
        killed = stopped(
            lambda o=here, c=clips: take_down(o, c[2].source), step - 1, monkeypatch, bucket=out.startswith("s3")
        )
        assert readable(Store(here)), step
        # Whatever has begun can be completed by any run, for the tombstone is there.
        assert Store(here).list("shards") == before or tombstones.hashes(Store(here)), step
        take_down(here, clips[2].source)
        found = files(Publication(here, Path("w")))
        whole = whole or found
        assert found == whole, step
        assert clips[2].key.encode() not in everything(here), step
        if step and not killed:
            break
        step += 1
    assert step > (4 if out.startswith("s3") else 8)


def test_what_an_interrupted_run_has_committed_is_kept_for_it_unless_it_holds_the_source(out: str):
    clips = made(out)
    work = run_folder.work_folder(out)
    new = [made_clip(work, number) for number in range(20, 30)]
    # One more clip of the source that goes, and seven of others.
    new.append(clips[2].at(0.0, 1.0))
    publication = Publication(out, work)
    for extension in clips[0].files:
        new[-1].folder.mkdir(parents=True, exist_ok=True)
        new[-1].file(extension).write_bytes(b"more")
    kept = [clip for clip in [*clips, *new] if not clip.rejected]
    for shard in publication.plan(kept, SMALL):
        publication.commit(shard)
    committed = {shard: list(publication.plans.shard(shard).samples) for shard in publication.plans.load().shards}
    take_down(out, clips[2].source)
    waiting = publication.plans.load().shards
    assert 0 < len(waiting) < len(committed)
    assert all(s.key != new[-1].key for shard in waiting for s in committed[shard])
    redone = [made_clip(work, number) for number in range(20, 30)]
    rest = [clip for clip in clips if clip.key not in (clips[2].key, clips[3].key)]
    outcome = published(publication, [*rest, *redone], SMALL)
    assert outcome.description["counts"]["kept"] == 19
    assert set(waiting) <= {shard["name"] for shard in outcome.description["shards"]}
    assert readable(Store(out))


def test_it_waits_for_no_run(tmp_path: Path, bucket: str):
    for out in (str(tmp_path / "set"), bucket):
        clips = made(out)
        with run_folder.claimed(out, tmp_path / "a-run"), pytest.raises(BusyError, match="another run is writing"):
            take_down(out, clips[2].source, work=tmp_path / "mine")


def test_a_lease_that_was_left_is_taken_over_by_its_own_work_folder(bucket: str, tmp_path: Path):
    clips = made(bucket)
    with run_folder.claimed(bucket, tmp_path / "mine"):
        left = Store(bucket).read(".lease.json")
    Store(bucket).put(".lease.json", left)
    with pytest.raises(BusyError, match="runs out at"):
        take_down(bucket, clips[2].source, work=tmp_path / "other")
    take_down(bucket, clips[2].source, work=tmp_path / "mine")
    assert not Store(bucket).exists(".lease.json")


def test_stock_webdataset_reads_what_is_left(tmp_path: Path):
    clips = made(str(tmp_path / "set"))
    take_down(str(tmp_path / "set"), clips[2].source)
    shards = [str(path) for path in open_dataset(tmp_path / "set").shards]
    keys = {sample["__key__"] for sample in webdataset.WebDataset(shards, shardshuffle=False)}
    assert keys == {clip.key for clip in clips} - {clips[2].key, clips[3].key, clips[5].key}


def test_the_words_of_a_source_are_found_in_any_file_beside_the_shards(tmp_path: Path):
    store = Store(str(tmp_path / "set"))
    store.put("report/index.html", b"<p>abc</p>")
    store.put("README.md", b"nothing")
    assert purge.naming(store, [b"abc"]) == ["report/index.html"]
