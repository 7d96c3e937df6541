"""A data set folder to the clips that a run can use: their sizes, windows and precomputed encodings.

In which order they come is `order.py`'s.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

from dynamictrl.errors import ConfigError, DatasetError
from dynamictrl.samples.buckets import Bucket, ClipShape, ranked
from dynamictrl.samples.encodings import EncodedBy, read_encoded_by_text
from dynamictrl.samples.shards import DatasetFolder, open_dataset
from dynamictrl.samples.windows import Masked, Window, window_starts
from training.config import Run
from training.samples import shard_scan
from training.samples.order import Entry, Order
from training.samples.shard_scan import Scanned, ScannedShards
from training.settings.clips import Clips

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Index:
    """The clips of a data set that a run can use, in the data set's order."""

    dataset: DatasetFolder
    entries: tuple[Entry, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Reason to number of clips left out."""
    unused_encodings: Mapping[str, int] = field(default_factory=dict)
    """Why clips have no encodings that may be used, and how many."""
    has_encodings: bool = False
    """Whether any clip was encoded beforehand."""
    scanned: ScannedShards = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """Changes when clips are added, removed, or reordered."""
        return hashlib.sha256("\n".join(entry.key for entry in self.entries).encode()).hexdigest()[:16]

    @property
    def all_encoded(self) -> bool:
        """Whether every clip has encodings that may be used."""
        return all(entry.encoded_start >= 0 for entry in self.entries)

    def keep(self, run_folder: Path) -> None:
        """Leaves what was scanned in the run folder, for workers and restarts."""
        shard_scan.keep(self.scanned, run_folder / shard_scan.KEPT)


def index_of(run: Run, *, encodings: bool = True) -> Index:
    """The clips that a run trains on, with precomputed encodings where they are of its own base, sizes and cut.

    `encodings` off leaves them aside unless the run demands them; the clips are the same. Raises ConfigError or
    DatasetError where the data cannot be trained on, or lacks encodings that are demanded.
    """
    clips, expert = run.recipe.clips, run.recipe.model.pose_encoding == "expert"
    demanded = clips.encodings == "precomputed"
    if demanded and expert:
        raise ConfigError(
            "encodings precomputed hold the VAE's view of the poses, which pose_encoding expert has no use for; use "
            "--encodings online",
            code="setting_conflict",
            param="encodings",
        )
    row, kept = clips.samples_in_a_row(run.recipe.optimization.batch_size), run.out / shard_scan.KEPT
    index = build_index(run.data, clips, row=row, kept=kept)
    if demanded or (encodings and index.has_encodings and clips.encodings == "auto" and not expert):
        encoded_by = _encoded_by(run) if index.has_encodings else None
        index = _build(index.dataset, index.scanned, clips, encoded_by, row)
    if demanded and not index.all_encoded:
        raise _not_encoded(run, index)
    return index


def build_index(
    root: Path, clips: Clips, encoded_by: EncodedBy | None = None, *, row: int = 1, kept: Path | None = None
) -> Index:
    """Reads every shard's headers and descriptions; no video is touched.

    `encoded_by` says of which weights, rate and cut precomputed encodings may be used; None uses none. `row` is the
    fewest clips that a bucket is used for, `kept` a file that an earlier scan may be in. Raises DatasetError where the
    folder is no data set, is empty or damaged, or holds no clip that suits.
    """
    dataset = open_dataset(root)
    return _build(dataset, shard_scan.scan(dataset, kept), clips, encoded_by, row)


def _build(
    dataset: DatasetFolder, scanned: ScannedShards, clips: Clips, encoded_by: EncodedBy | None, row: int
) -> Index:
    skipped: Counter[str] = Counter()
    suited = list(_suited(scanned, clips, skipped))
    unused: Counter[str] = Counter()
    entries = []
    used = _used_buckets([choices for _, _, choices in suited], row)
    for shard, found, choices in suited:
        bucket = next((choice for choice in choices if choice in used), None)
        if bucket is None:
            skipped["suit no size that enough clips suit"] += 1
            continue
        entry = _entry(shard, found, clips, bucket)
        entries.append(entry if encoded_by is None else _with_encodings(entry, found, encoded_by, unused))
    if not entries:
        raise _empty(dataset.root, clips, skipped)
    if skipped:
        logger.info("left out: %s", ", ".join(f"{count} clips %s" % reason for reason, count in skipped.items()))
    encoded = any(found.latents_bytes for found in _all(scanned))
    return Index(dataset, tuple(entries), dict(skipped), dict(unused), encoded, scanned)


def _suited(
    scanned: ScannedShards, clips: Clips, skipped: Counter[str]
) -> Iterator[tuple[Path, Scanned, list[Bucket]]]:
    """The clips that suit any size, with the sizes that they suit, the best first."""
    sizes = clips.sizes
    for shard, samples in scanned.items():
        for found in samples:
            if not (found.fps > 0 and found.frames > 0):
                skipped["without fps and frames"] += 1
            elif clips.masked_reference == "clothes" and not found.has_clothes:
                skipped["without a clothes mask"] += 1
            else:
                shape = ClipShape(found.frames, found.fps, found.height, found.width)
                choices, reason = ranked(sizes, shape, clips.fps, clips.largest_upscale)
                if choices:
                    yield shard, found, choices
                else:
                    skipped[reason] += 1


def _used_buckets(suited: Sequence[Sequence[Bucket]], row: int) -> set[Bucket]:
    """The buckets that at least `row` clips go to: the emptiest is given up first, and its clips go to their next."""
    used = {bucket for choices in suited for bucket in choices}
    while True:
        firsts = (next((bucket for bucket in choices if bucket in used), None) for choices in suited)
        counts = Counter(bucket for bucket in firsts if bucket is not None)
        emptiest = min(counts, key=lambda bucket: (counts[bucket], bucket), default=None)
        if emptiest is None or len(counts) == 1 or counts[emptiest] >= row:
            return used
        logger.info("the bucket %s is not used: %d clips, and a row is %d", emptiest, counts[emptiest], row)
        used.discard(emptiest)


def _entry(shard: Path, found: Scanned, clips: Clips, bucket: Bucket) -> Entry:
    starts = window_starts(found.frames, found.fps, bucket.num_frames, clips.fps, clips.windows_per_clip)
    return Entry(found.key, shard, found.offset, found.fps, starts, bucket, found.has_clothes)


def _with_encodings(entry: Entry, found: Scanned, wanted: EncodedBy, unused: Counter[str]) -> Entry:
    if not found.latents_bytes:
        unused["without encodings"] += 1
        return entry
    theirs = _parsed(found.encoded_by)
    if theirs is None:
        unused["with encodings that do not say what made them"] += 1
        return entry
    differing = replace(wanted, window=_window(entry.bucket, wanted.window)).differs_from(theirs)
    # A whole reference can still be masked, and is then encoded anew.
    if differing == ["masked_reference"] and theirs.masked_reference == "none":
        differing = []
    if differing:
        unused["encoded with another " + ", ".join(differing)] += 1
        return entry
    latents = (found.latents_start, found.latents_bytes)
    mask: Masked = theirs.masked_reference  # pyright: ignore[reportAssignmentType] - equal to a setting
    return replace(entry, latents=latents, encoded_start=theirs.window.start, encoded_mask=mask)


def _window(bucket: Bucket, like: Window) -> Window:
    return replace(like, num_frames=bucket.num_frames, height=bucket.height, width=bucket.width)


@lru_cache(maxsize=1024)
def _parsed(text: str) -> EncodedBy | None:
    try:
        return read_encoded_by_text(text)
    except DatasetError:
        return None


def _all(scanned: ScannedShards) -> Iterator[Scanned]:
    return (found for samples in scanned.values() for found in samples)


def _empty(root: Path, clips: Clips, skipped: Mapping[str, int]) -> DatasetError:
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "it holds no clips"
    sizes = ", ".join(map(str, clips.sizes))
    return DatasetError(
        f"no clip of {root} can be trained on ({reasons}); a window is {sizes} (frames x height x width) at "
        f"{clips.fps or 'the clip own'} frames per second, enlarged at most {clips.largest_upscale:g} times: curate "
        "longer or larger clips, or lower --num-frames, --height and --width",
        code="dataset_empty",
    )


def _encoded_by(run: Run) -> EncodedBy:
    from dynamictrl.samples.encodings import folder_hash
    from dynamictrl.weights import resolve

    clips = run.recipe.clips
    base = resolve(run.recipe.model.base, ("vae/*.safetensors", "text_encoder/*.safetensors"))
    window = Order(run.recipe.seed, clips, ()).window(0)
    return EncodedBy(window, folder_hash(base / "vae"), folder_hash(base / "text_encoder"), clips.masked_reference)


def _not_encoded(run: Run, index: Index) -> DatasetError:
    reasons = index.unused_encodings or {"without encodings": len(index.entries)}
    missing = sum(reasons.values())
    return DatasetError(
        f"encodings is precomputed and {missing} of {len(index.entries)} clips of {run.data} have none of this run's "
        f"({', '.join(f'{count} {reason}' for reason, count in reasons.items())}); make them with `"
        f"{encode_command(run, index)}` and give its --out as --data, or use --encodings online",
        code="latents",
    )


def encode_command(run: Run, index: Index) -> str:
    """The command that encodes a data set as this run wants it."""
    clips = run.recipe.clips
    used = sorted({entry.bucket for entry in index.entries})
    sizes = f"--latents.buckets {' '.join(map(str, used))}"
    if not clips.buckets:
        sizes = f"--latents.height {clips.height} --latents.width {clips.width} --latents.num-frames {clips.num_frames}"
    device = " --latents.device cpu" if run.recipe.workers.device == "cpu" else ""
    return (
        f"python -m pipelines encode --videos {run.data} --out {run.data}-encoded --latents.model "
        f"{run.recipe.model.base} {sizes} --latents.fps {clips.fps:g} --latents.crop {clips.crop} "
        f"--latents.largest-upscale {clips.largest_upscale:g}{device}"
    )
