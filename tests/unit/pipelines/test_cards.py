"""What a data set says of itself to others, and that others can read it: webdataset, wids, Ray, datasets, Croissant."""

import hashlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dynamictrl.media.video import write_video
from pipelines import cards, job
from pipelines.cards.facts import details, is_research_only, model_fact, model_roles
from pipelines.cards.readme import readme, size_category
from pipelines.cards.rights import Rights, hub_name
from pipelines.datasets.dataset_view import DatasetView, open_view
from tests.unit.pipelines.conftest import FPS, Weightless, shot


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DatasetView:
    """Five clips in a few small shards, with their cards."""
    root = tmp_path_factory.mktemp("cards")
    (root / "videos").mkdir()
    for number in range(5):
        write_video(root / "videos" / f"{number}.mp4", shot(number, 24 + number), FPS)
    lines = [{"uri": f"videos/{n}.mp4", "licence": "CC BY 4.0", "consent": "signed" if n else ""} for n in range(5)]
    (root / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    job.run("weightless", Weightless(videos=(str(root / "list.jsonl"),), out=str(root / "set"), local=True))
    view = open_view(root / "set")
    description = with_sums(view)
    for name, content in cards.files(description, view.rows, "five <clips>").items():
        view.store.put(name, content)
    return DatasetView(view.root, description)


def with_sums(view: DatasetView) -> dict[str, Any]:
    """The description with what the publication knows of its files."""
    manifest = hashlib.sha256(view.store.read("manifest.parquet")).hexdigest()
    shards = [
        {**shard, "md5": hashlib.md5(view.store.read(f"shards/{shard['name']}")).hexdigest()}
        for shard in view.description["shards"]
    ]
    return {**view.description, "files": {"manifest.parquet": {"sha256": manifest}}, "shards": shards}


def keys(view: DatasetView) -> list[str]:
    return [row["key"] for row in view.rows if not row["reason"]]


def shard_paths(view: DatasetView) -> list[str]:
    return [str(view.store.folder / "shards" / shard["name"]) for shard in view.description["shards"]]


def test_the_same_data_set_makes_the_same_cards(made: DatasetView):
    assert len(made.description["shards"]) > 1
    again = cards.files(made.description, made.rows[::-1], "five <clips>")
    assert {name: made.store.read(name) for name in again} == again
    assert sorted(again) == ["README.md", "croissant.json", "shards/index.json"]


def test_the_card_begins_with_yaml_that_the_hub_reads(made: DatasetView):
    head = yaml.safe_load(made.store.read("README.md").decode().split("---")[1])
    assert head["license"] == "cc-by-4.0"
    assert head["size_categories"] == ["n<1K"]
    assert head["pretty_name"] == "five <clips>"
    (config,) = head["configs"]
    assert config["data_files"] == [{"split": "train", "path": "shards/train-*.tar"}]
    assert {"image-to-video", "keypoint-detection"} <= set(head["task_categories"])


def test_the_card_counts_licences_and_consents(made: DatasetView):
    text = made.store.read("README.md").decode()
    assert "| CC BY 4.0 | 5 |" in text
    assert "| signed | 4 |" in text
    assert "| not stated | 1 |" in text


def test_several_licences_are_other_and_named():
    rows = [{"source": n, "licence": n, "consent": "", "start": 0.0, "end": 1.0} for n in ("CC0-1.0", 'x": |<b>')]
    rights = Rights.of(rows)
    assert (rights.hub_licence, rights.is_stated) == ("other", True)
    text = readme("n", {"recipe": "r", "settings": {}, "shards": [], "models": {}, **counted(2)}, rights)
    assert yaml.safe_load(text.split("\n---\n")[0])["license_details"] == 'per source: CC0-1.0, x": |<b>'
    # A stranger's words are no markup.
    assert '| x": /(b) |' in text


def counted(kept: int) -> dict[str, Any]:
    counts = {"sources": kept, "clips": kept, "kept": kept, "rejected": {}, "quarantined": {}}
    return {"counts": counts, "seconds": {"kept": 1.0, "rejected": 0.0}, "schema_version": 1}


def test_a_data_set_without_clips_has_cards_too():
    description = {"recipe": "r", "settings": {}, "shards": [], "models": {}, "packages": {}, **counted(0)}
    made = cards.files(description, [])
    assert json.loads(made["shards/index.json"])["shardlist"] == []
    assert b"None of 0 clips was refused" in made["README.md"]


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("yzd-v/DWPose", "Apache-2.0"),
        ("/models/DWPose", "Apache-2.0"),
        ("mini/dwpose", "this project's"),
        ("facebook/sam2.1-hiera-small", "Apache-2.0"),
        ("somebody/else", None),
    ],
)
def test_a_models_licence_is_known_by_its_id_or_its_folder(name: str, licence: str | None):
    fact = model_fact(name)
    assert (fact.licence if fact else None) == licence


def test_the_card_says_that_poses_from_dwpose_are_for_research(made: DatasetView):
    assert is_research_only({"pose": ["yzd-v/DWPose"]})
    assert not is_research_only({"pose": ["mini/dwpose"]})
    description = {**made.description, "models": {"pose": ["yzd-v/DWPose"]}}
    assert b"COCO-WholeBody" in cards.files(description, made.rows)["README.md"]
    assert b"COCO-WholeBody" in cards.files(description, made.rows)["croissant.json"]
    assert b"COCO-WholeBody" not in made.store.read("README.md")


def test_what_is_said_about_a_model_is_no_model(made: DatasetView):
    models = {"caption": ["mini/captioner"], "caption prompt": ["Describe."], "caption sha256": ["ab"], "pose": ["p"]}
    assert model_roles(models) == ["caption", "pose"]
    assert details(models, "caption") == {"prompt": ["Describe."]}
    said = cards.files({**made.description, "models": models}, made.rows)
    assert json.loads(said["croissant.json"])["rai:machineAnnotationTools"] == ["mini/captioner", "p"]
    assert b"Describe." not in said["README.md"]


@pytest.mark.parametrize(("samples", "words"), [(0, "n<1K"), (1000, "1K<n<10K"), (60_000, "10K<n<100K")])
def test_sizes_fall_into_the_hubs_classes(samples: int, words: str):
    assert size_category(samples) == words


def test_licences_are_spelt_as_on_the_hub():
    assert [hub_name(n) for n in ("CC BY 4.0", "cc_by-sa 4.0", "Apache 2.0")] == [
        "cc-by-4.0",
        "cc-by-sa-4.0",
        "apache-2.0",
    ]


@pytest.mark.filterwarnings("ignore")
def test_croissant_is_valid_and_reads_the_manifest(made: DatasetView):
    mlcroissant = pytest.importorskip("mlcroissant")
    logging.getLogger("absl").setLevel(logging.ERROR)
    dataset = mlcroissant.Dataset(jsonld=str(made.store.folder / "croissant.json"))
    assert dataset.metadata.ctx.issues.errors == set()
    records = list(dataset.records(record_set="clips"))
    assert [record["clips/key"].decode() for record in records] == [row["key"] for row in made.rows]
    said = json.loads(made.store.read("croissant.json"))
    assert said["license"] == ["https://creativecommons.org/licenses/by/4.0/"]
    assert "signed: 4 clips" in said["rai:personalSensitiveInformation"][0]
    shards = [entry for entry in said["distribution"] if entry["@id"].endswith(".tar")]
    assert [entry["sha256"] for entry in shards] == [shard["sha256"] for shard in made.description["shards"]]


def test_the_wids_index_says_what_lies_in_the_shards(made: DatasetView):
    index = json.loads(made.store.read("shards/index.json"))
    assert (index["__kind__"], index["wids_version"]) == ("wids-shard-index-v1", 1)
    for entry in index["shardlist"]:
        content = made.store.read(f"shards/{entry['url']}")
        assert (len(content), hashlib.md5(content).hexdigest()) == (entry["filesize"], entry["md5sum"])
    assert sum(entry["nsamples"] for entry in index["shardlist"]) == 5


@pytest.mark.filterwarnings("ignore")
def test_wids_opens_the_index(made: DatasetView, tmp_path: Path):
    # Up to webdataset 0.2 `wids` came with it.
    wids = pytest.importorskip("wids")
    index = str(made.store.folder / "shards" / "index.json")
    dataset = wids.ShardListDataset(index, cache_dir=str(tmp_path))
    assert sorted(dataset[i]["__key__"] for i in range(len(dataset))) == keys(made)


@pytest.mark.filterwarnings("ignore")
def test_stock_webdataset_reads_the_shards(made: DatasetView):
    import webdataset

    samples = list(webdataset.WebDataset(shard_paths(made), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == keys(made)
    assert_sample(samples[0])


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_datasets_streams_the_shards(made: DatasetView):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("webdataset", data_files=shard_paths(made), split="train", streaming=True)
    samples = list(loaded.decode(False))
    assert [sample["__key__"] for sample in samples] == keys(made)
    assert samples[0]["json"]["licence"] == "CC BY 4.0"
    assert samples[0]["txt"] == "someone stands still"


def assert_sample(sample: dict[str, Any]) -> None:
    """The members are there under the names that every reader gives them."""
    assert sample["txt"].decode() == "someone stands still"
    assert json.loads(sample["json"])["frames"] >= 24
    assert arrays(sample["pose.npz"])["keypoints"].shape[1:] == (1, 134, 2)
    assert arrays(sample["mask.npz"])["persons"].dtype == np.uint8
    assert sample["mp4"][4:8] == b"ftyp"


def arrays(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content)) as found:
        return dict(found)


def test_a_view_reads_single_members(made: DatasetView):
    row = next(row for row in made.rows if not row["reason"])
    members: Iterator[tuple[str, bytes]] = made.members(row)
    assert [name for name, _ in members] == ["mp4", "pose.npz", "mask.npz", "txt", "json"]
    assert made.sample(row).info["key"] == row["key"]
