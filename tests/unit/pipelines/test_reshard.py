"""The samples of a data set in other shards: the same bytes, other places."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import webdataset

from dynamictrl.errors import ConfigError, DatasetError
from dynamictrl.samples.shards import iter_shard, open_dataset
from pipelines.clip import Clip
from pipelines.datasets.resharding import bucket_of, reshard
from pipelines.files import run_folder
from pipelines.files.storage import Store
from pipelines.publishing import dataset_files
from pipelines.publishing.publication import Publication
from tests.unit.pipelines.killing import readable, stopped
from tests.unit.pipelines.made_clips import files, made_clip, published

SMALL = 0.04
SIZES = {"16:9": (1920, 1080), "9:16": (576, 1024), "1:1": (100, 101), "4:3": (640, 480), "21:9": (2560, 1080)}


@pytest.fixture(params=["disk", "bucket"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a data set goes."""
    return str(tmp_path / "set") if request.param == "disk" else request.getfixturevalue("bucket")


def made(out: str, count: int = 16) -> list[Clip]:
    work = run_folder.work_folder(out)
    clips = [made_clip(work, number, portrait=number % 3 == 0) for number in range(count)]
    published(Publication(out, work), clips, SMALL)
    return clips


def samples(out: str) -> dict[str, dict[str, bytes]]:
    """Every sample's members, by key, through the offsets of the manifest."""
    store = Store(out)
    found = {}
    for row in dataset_files.parse_manifest(store.read("manifest.parquet")):
        content = store.read(f"shards/{row['shard']}", row["offset"], row["bytes"])
        found[row["key"]] = {"head": content[:100], "sha256": hashlib.sha256(content).digest()}
    return found


def test_samples_are_the_same_in_larger_shards(out: str, tmp_path: Path):
    made(out)
    before, names = samples(out), {name for name, _ in Store(out).list("shards")}
    done = reshard(out, 1.0, work=tmp_path / "another")
    assert (done.shards, done.written) == (1, 1)
    assert samples(out) == before
    assert not names & {name for name, _ in Store(out).list("shards") if name.endswith(".tar")}
    assert readable(Store(out))
    assert (done.shards, 0) == tuple(vars(reshard(out, 1.0)).values())


def test_shards_hold_one_kind_of_clip_where_that_is_asked_for(out: str):
    clips = {clip.key: clip for clip in made(out)}
    before = samples(out)
    reshard(out, SMALL, "aspect")
    assert samples(out) == before
    described = json.loads(Store(out).read("dataset.json"))["shards"]
    bucket = {shard["name"]: shard["bucket"] for shard in described}
    assert set(bucket.values()) == {"16:9", "9:16"}
    for key, place in Publication(out, run_folder.work_folder(out)).committed().items():
        assert bucket[place.shard] == ("9:16" if clips[key].width < clips[key].height else "16:9")


def test_back_in_the_first_size_the_shards_have_their_first_bytes(tmp_path: Path):
    out = str(tmp_path / "set")
    made(out)
    first = [path.read_bytes() for path in open_dataset(tmp_path / "set").shards]
    reshard(out, 1.0)
    reshard(out, SMALL)
    assert [path.read_bytes() for path in open_dataset(tmp_path / "set").shards] == first


def test_a_run_after_it_leaves_the_shards_as_they_are(out: str, tmp_path: Path):
    clips = made(out)
    reshard(out, SMALL, "size")
    before = files(Publication(out, Path("w")))
    outcome = published(Publication(out, run_folder.work_folder(out)), clips, SMALL)
    assert {n: c for n, c in before.items() if n.endswith(".tar")}.items() <= files(Publication(out, Path("w"))).items()
    assert {shard.get("bucket") for shard in outcome.description["shards"]} == {"576x1024", "1024x576"}


@pytest.mark.parametrize("out", ["disk", pytest.param("bucket", marks=pytest.mark.exhaustive)], indirect=True)
def test_killed_at_any_step_and_repeated_it_ends_with_the_same_bytes(out: str, monkeypatch: pytest.MonkeyPatch):
    whole, step = None, 0
    while True:
        here = f"{out}-{step}/set"
        made(here, 8)
        killed = stopped(
            lambda o=here: reshard(o, 2 * SMALL, "aspect"), step - 1, monkeypatch, bucket=out.startswith("s3")
        )
        assert readable(Store(here)), step
        reshard(here, 2 * SMALL, "aspect")
        whole = whole or files(Publication(here, Path("w")))
        assert files(Publication(here, Path("w"))) == whole, step
        if step and not killed:
            break
        step += 1
    assert step > (4 if out.startswith("s3") else 8)


def test_a_run_that_was_interrupted_comes_first(tmp_path: Path):
    out = str(tmp_path / "set")
    clips = made(out)
    work = run_folder.work_folder(out)
    Publication(out, work).plan([*clips, made_clip(work, 90)], SMALL)
    with pytest.raises(DatasetError, match="was interrupted"):
        reshard(out, 1.0)


def test_a_lost_shard_is_named_before_anything_is_written(tmp_path: Path):
    out = str(tmp_path / "set")
    made(out)
    lost = open_dataset(tmp_path / "set").shards[0]
    lost.unlink()
    with pytest.raises(DatasetError, match=f"{lost.name} of .* is lost"):
        reshard(out, 1.0)


def test_a_size_of_nothing_and_a_folder_of_nothing_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="must be positive"):
        reshard(str(tmp_path), 0)
    with pytest.raises(DatasetError, match="is no data set"):
        reshard(str(tmp_path / "nothing"), 1.0)


@pytest.mark.parametrize("aspect", SIZES)
def test_the_usual_ratio_nearest_to_a_clip_names_its_shard(aspect: str):
    width, height = SIZES[aspect]
    assert bucket_of({"width": width, "height": height}, "aspect") == aspect
    assert bucket_of({"width": width, "height": height}, "size") == f"{width}x{height}"


def test_our_reader_and_stock_webdataset_agree_on_rewritten_shards(tmp_path: Path):
    made(str(tmp_path / "set"))
    reshard(str(tmp_path / "set"), SMALL, "aspect")
    shards = open_dataset(tmp_path / "set").shards
    ours = {sample.key: sample.members["mp4"] for path in shards for sample in iter_shard(path)}
    stock = webdataset.WebDataset([str(path) for path in shards], shardshuffle=False)
    assert {sample["__key__"]: sample["mp4"] for sample in stock} == ours
    assert len(ours) == 16


GROWTH = """
import resource, sys
from pathlib import Path
from pipelines.datasets.resharding import reshard
import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reshard(sys.argv[1], 1000.0)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_does_not_grow_with_a_shard(tmp_path: Path):
    work = tmp_path / "set" / ".work"
    clips = [made_clip(work, number) for number in range(6)]
    for clip in clips:
        clip.file("mp4").write_bytes(b"x" * 40 * 2**20)
    published(Publication(str(tmp_path / "set"), work), clips, 60.0)
    command = [sys.executable, "-c", GROWTH, str(tmp_path / "set")]
    grown = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()[-1])
    assert len(open_dataset(tmp_path / "set").shards) == 1
    assert grown < 120, "MiB, while a shard of 240 MiB was written"
