"""What a worker is fed: of several sizes, ahead or not, masked or not, with bad samples among them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dynamictrl.conditioning import PromptEncoder
from dynamictrl.errors import ConfigError, DatasetError
from dynamictrl.media.video import encode_video
from dynamictrl.mini.marionettes import sample_clip
from dynamictrl.samples import encodings, shards
from dynamictrl.samples.encodings import EncodedBy
from dynamictrl.samples.windows import read_window
from training.config import Recipe, Run
from training.engine import starting_weights
from training.engine.parallel import Place
from training.recipes import tiny_on_cpu
from training.samples.batches import Batch
from training.samples.data import Index, build_index, index_of
from training.samples.feed import Feed
from training.samples.frozen_models import FrozenModels, image_scale
from training.samples.order import Order
from training.samples.skipped_samples import NAME

CPU = torch.device("cpu")
BUCKETS = ("9x32x48", "5x48x32")


@pytest.fixture(scope="module")
def several_sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five wide clips and six upright ones, every third without a clothes mask."""
    root = tmp_path_factory.mktemp("sizes") / "set"
    samples = []
    for number in range(11):
        height, width = (64, 96) if number < 5 else (96, 64)
        clip = sample_clip(np.random.default_rng(number), num_frames=12, height=height, width=width, fps=12)
        info = {"schema_version": shards.SCHEMA_VERSION, "fps": 12.0, "frames": 12, "height": height, "width": width}
        members = {
            "mp4": encode_video(clip.frames, 12),
            "pose.npz": clip.pose.to_npz(),
            "mask.npz": shards.pack_mask(clip.persons, clip.clothes if number % 3 else None),
            "txt": clip.caption.encode(),
            "json": json.dumps(info).encode(),
        }
        samples.append(shards.Sample(f"clip{number:04d}", members))
    for number, part in enumerate((samples[:6], samples[6:])):
        shards.write_shard(root / "shards" / shards.SHARD_NAME.format(number), part)
    shards.write_json(root / "dataset.json", {"schema_version": shards.SCHEMA_VERSION, "recipe": "tests"})
    return root


@pytest.fixture
def recipe(tiny_model: Path) -> Recipe:
    small = tiny_on_cpu()
    return replace(
        small,
        model=replace(small.model, base=str(tiny_model)),
        clips=replace(small.clips, buckets=BUCKETS, image_noise=True, windows_per_clip=1, share_encodings=False),
        optimization=replace(small.optimization, batch_size=4, micro_batch_size=2),
    )


def run_of(recipe: Recipe, data: Path, out: Path) -> Run:
    out.mkdir(exist_ok=True)
    return Run(name="tiny-on-cpu", data=data, out=out, recipe=recipe)


def fed(run: Run, steps: int, *, ahead: int = 0, rank: int = 0, workers: int = 1) -> list[list[Batch]]:
    feed = Feed(run, Place(rank, workers, CPU), starting_weights.load(run.recipe), 1000, batches_ahead=ahead)
    made = [list(feed.batches(step)) for step in range(steps)]
    feed.close()
    return made


def same(one: list[list[Batch]], other: list[list[Batch]]) -> bool:
    pairs = zip([b for step in one for b in step], [b for step in other for b in step], strict=True)
    return all(torch.equal(x, y) for a, b in pairs for x, y in zip(a.tensors(), b.tensors(), strict=True))


def test_micro_batches_are_of_one_size_and_making_them_ahead_changes_no_bit(
    recipe: Recipe, several_sizes: Path, tmp_path: Path
):
    threaded = replace(recipe, clips=replace(recipe.clips, loader_threads=2, cache_gib=0.0))
    here = fed(run_of(recipe, several_sizes, tmp_path / "here"), 4)
    ahead = fed(run_of(threaded, several_sizes, tmp_path / "ahead"), 4, ahead=2)

    shapes = {tuple(batch.video.shape) for step in here for batch in step}
    assert shapes == {(2, 3, 16, 4, 6), (2, 2, 16, 6, 4)}
    assert all(len({tuple(batch.video.shape) for batch in step}) == 1 for step in here)
    assert same(here, ahead)


def test_asking_for_another_step_begins_anew_there(recipe: Recipe, several_sizes: Path, tmp_path: Path):
    run = run_of(recipe, several_sizes, tmp_path / "run")
    feed = Feed(run, Place(0, 1, CPU), starting_weights.load(recipe), 1000, batches_ahead=2)

    first = list(feed.batches(2))
    again = list(feed.batches(2))
    feed.close()
    assert same([first], [again])


def test_two_workers_take_what_one_takes(recipe: Recipe, several_sizes: Path, tmp_path: Path):
    single = replace(recipe, optimization=replace(recipe.optimization, micro_batch_size=1))
    alone = fed(run_of(single, several_sizes, tmp_path / "alone"), 2)
    parts = [fed(run_of(single, several_sizes, tmp_path / "parts"), 2, rank=r, workers=2) for r in range(2)]

    for step in range(2):
        together = [batch for turn in zip(parts[0][step], parts[1][step], strict=True) for batch in turn]
        assert same([alone[step]], [together])
        assert all(
            mine.video.shape == theirs.video.shape for mine, theirs in zip(parts[0][step], parts[1][step], strict=True)
        )


def frozen_of(recipe: Recipe) -> FrozenModels:
    pipeline = starting_weights.load(recipe)
    prompts = PromptEncoder(
        pipeline.tokenizer, pipeline.text_encoder, pipeline.transformer.config["max_text_seq_length"]
    )
    return FrozenModels(pipeline.vae, prompts, image_scale(pipeline.vae, pipeline.config["image_latent_rule"]))


def write_encoded(
    recipe: Recipe, data: Path, out: Path, described: Callable[[EncodedBy], dict[str, object]] | None = None
) -> Path:
    """The data set with encodings of each clip's first window, in the bucket that the run shows it in."""
    frozen, base = frozen_of(recipe), Path(recipe.model.base)
    row = recipe.clips.samples_in_a_row(recipe.optimization.batch_size)
    index = build_index(data, recipe.clips, row=row)
    order = Order(recipe.seed, recipe.clips, index.entries)
    windows = {entry.key: order.window(0, entry.bucket) for entry in index.entries}
    vae, text = encodings.folder_hash(base / "vae"), encodings.folder_hash(base / "text_encoder")
    shutil.copytree(data, out)
    for shard in sorted((out / "shards").glob("*.tar")):
        samples = []
        for sample in shards.iter_shard(shard):
            by = EncodedBy(windows[sample.key], vae, text)
            content = encodings.to_bytes(frozen.encode(read_window(sample, by.window)), by)
            if described is not None:
                old = json.dumps(json.dumps(encodings.dataclasses.asdict(by), sort_keys=True)).encode()[1:-1]
                assert old in content
                header = json.dumps(json.dumps(described(by), sort_keys=True)).encode()[1:-1]
                content = content.replace(old, header.ljust(len(old)))
            samples.append(shards.Sample(sample.key, {**sample.members, shards.LATENTS: content}))
        shards.write_shard(shard, samples)
    return out


@pytest.mark.parametrize(("masked", "image_noise"), [("none", True), ("mixed", True), ("mixed", False)])
def test_precomputed_encodings_give_what_encoding_on_the_way_gives_masked_or_not(
    recipe: Recipe, several_sizes: Path, tmp_path: Path, masked, image_noise: bool
):
    clips = replace(
        recipe.clips, masked_reference=masked, mixed_background=0.4, mixed_clothes=0.4, image_noise=image_noise
    )
    online = replace(recipe, clips=replace(clips, encodings="online"))
    precomputed = replace(recipe, clips=replace(clips, encodings="precomputed", loader_threads=2))
    data = write_encoded(recipe, several_sizes, tmp_path / "encoded")

    on_the_way = fed(run_of(online, several_sizes, tmp_path / "online"), 3)
    beforehand = fed(run_of(precomputed, data, tmp_path / "precomputed"), 3)
    assert same(on_the_way, beforehand)


def test_demanded_encodings_that_are_not_there_are_refused_with_the_command_that_makes_them(
    recipe: Recipe, several_sizes: Path, tmp_path: Path
):
    demanding = replace(recipe, clips=replace(recipe.clips, encodings="precomputed"))

    with pytest.raises(DatasetError, match=r"11 of 11 clips .*11 without encodings") as caught:
        index_of(run_of(demanding, several_sizes, tmp_path / "run"))
    assert f"python -m pipelines encode --videos {several_sizes} --out {several_sizes}-encoded" in str(caught.value)
    assert "--latents.buckets 5x48x32 9x32x48" in str(caught.value)
    expert = replace(demanding, model=replace(demanding.model, pose_encoding="expert"))
    with pytest.raises(ConfigError, match="--encodings online"):
        index_of(run_of(expert, several_sizes, tmp_path / "run"))


def test_encodings_of_another_cut_are_told_and_never_mixed_in(recipe: Recipe, several_sizes: Path, tmp_path: Path):
    def before_cuts_were_described(by: EncodedBy) -> dict[str, object]:
        values = encodings.dataclasses.asdict(by)
        del values["window"]["crop"]
        return values

    data = write_encoded(recipe, several_sizes, tmp_path / "encoded", before_cuts_were_described)
    run = run_of(replace(recipe, clips=replace(recipe.clips, encodings="auto")), data, tmp_path / "run")
    index = index_of(run)
    assert index.has_encodings
    assert not any(entry.latents for entry in index.entries)
    assert index.unused_encodings == {"encoded with another crop": 11}

    centred = replace(recipe, clips=replace(recipe.clips, crop="centre"))
    assert index_of(run_of(centred, data, tmp_path / "centred")).all_encoded


def test_clips_without_a_clothes_mask_are_left_out_of_clothes_and_fall_back_in_mixed(
    recipe: Recipe, several_sizes: Path
):
    clothes = replace(recipe.clips, masked_reference="clothes")
    index = build_index(several_sizes, clothes, row=2)
    assert index.skipped == {"without a clothes mask": 4}
    assert len(index.entries) == 7

    mixed = replace(recipe.clips, masked_reference="mixed", mixed_background=0.3, mixed_clothes=0.5)
    entries = build_index(several_sizes, mixed, row=4).entries
    order = Order(1, mixed, entries, 4)
    draws = [order.draw(position) for position in range(600)]
    with_mask = [draw.masked for draw in draws if draw.entry.has_clothes]
    without = [draw.masked for draw in draws if not draw.entry.has_clothes]
    assert with_mask.count("background") / len(with_mask) == pytest.approx(0.3, abs=0.08)
    assert with_mask.count("clothes") / len(with_mask) == pytest.approx(0.5, abs=0.08)
    assert without.count("background") / len(without) == pytest.approx(0.8, abs=0.1)
    assert "clothes" not in without
    assert [order.draw(p) for p in range(50)] == draws[:50]


def spoilt(data: Path, out: Path, keys: set[str]) -> Path:
    """The data set with the videos of some clips broken."""
    shutil.copytree(data, out)
    for shard in sorted((out / "shards").glob("*.tar")):
        shards.write_shard(
            shard,
            [
                shards.Sample(s.key, {**s.members, "mp4": s.members["mp4"][:400]} if s.key in keys else s.members)
                for s in shards.iter_shard(shard)
            ],
        )
    return out


def test_a_clip_that_cannot_be_read_is_replaced_the_same_way_again_and_noted_once(
    recipe: Recipe, several_sizes: Path, tmp_path: Path
):
    data = spoilt(several_sizes, tmp_path / "spoilt", {"clip0001", "clip0007"})
    run = run_of(recipe, data, tmp_path / "run")

    first = fed(run, 6)
    second = fed(run, 6, ahead=2)
    assert same(first, second)
    lines = [json.loads(line) for line in (run.out / NAME).read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == ["clip0001", "clip0007"]
    assert all(line["reason"] and line["shard"].startswith("train-") for line in lines)


def test_more_bad_clips_than_allowed_end_the_run(recipe: Recipe, several_sizes: Path, tmp_path: Path):
    data = spoilt(several_sizes, tmp_path / "spoilt", {"clip0001", "clip0007"})
    strict = replace(recipe, clips=replace(recipe.clips, max_bad_samples=1))

    with pytest.raises(DatasetError, match="2 clips could not be read and max_bad_samples is 1") as caught:
        fed(run_of(strict, data, tmp_path / "run"), 6, ahead=2)
    assert caught.value.code == "run_failed"


def test_a_shard_that_is_gone_or_written_anew_ends_the_run_with_the_way_out(
    recipe: Recipe, several_sizes: Path, tmp_path: Path
):
    for name, change in (("gone", Path.unlink), ("other", lambda path: path.write_bytes(b"x" * 10_000))):
        data = shutil.copytree(several_sizes, tmp_path / name)
        run = run_of(recipe, data, tmp_path / f"run-{name}")
        feed = Feed(run, Place(0, 1, CPU), starting_weights.load(recipe), 1000)
        for shard in (data / "shards").glob("*.tar"):
            change(shard)
        if name == "gone":
            with pytest.raises(DatasetError, match="takedown") as caught:
                list(feed.batches(0))
            assert caught.value.code == "run_failed"
        else:
            with pytest.raises(DatasetError):
                list(feed.batches(0))
        feed.close()


def test_buckets_with_fewer_clips_than_a_row_are_given_up_for_the_next_best(recipe: Recipe, several_sizes: Path):
    names = (*BUCKETS, "9x48x64")
    few = replace(recipe.clips, buckets=names)

    def used(index: Index) -> dict[str, int]:
        sizes = [str(entry.bucket) for entry in index.entries]
        return {size: sizes.count(size) for size in sizes}

    assert used(build_index(several_sizes, few, row=4)) == {"9x32x48": 5, "5x48x32": 6}
    # Too few upright ones for another size; the wide ones' best is given up, then their second best.
    assert used(build_index(several_sizes, few, row=6)) == {"5x48x32": 11}
    assert used(build_index(several_sizes, replace(few, buckets=names[::2]), row=6)) == {"9x48x64": 11}
