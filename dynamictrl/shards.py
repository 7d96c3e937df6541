"""How samples lie on disk: one file for the side that writes and the side that reads (contract section 2).

A data set folder holds `dataset.json`, `shards/train-000000.tar ...` (WebDataset), `manifest.parquet`,
`quarantine.jsonl` and a report. Tar headers are fixed, so equal samples make equal bytes.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import DatasetError
from dynamictrl.pose import PoseSequence

SCHEMA_VERSION = 1
SHARD_NAME = "train-{:06d}.tar"

MEMBERS = ("mp4", "pose.npz", "mask.npz", "txt", "json")
"""What every sample has; `latents.safetensors` may follow."""
LATENTS = "latents.safetensors"


@dataclass(frozen=True)
class Sample:
    """One clip with what is known about it, as its members' bytes; properties decode them on demand."""

    key: str
    members: Mapping[str, bytes]
    """Extension (`mp4`, `pose.npz`, ...) to content."""

    def __post_init__(self):
        missing = [name for name in MEMBERS if name not in self.members]
        if missing:
            raise DatasetError(f"sample {self.key} lacks {missing}", code="sample_members")
        if "." in self.key or "/" in self.key:
            raise DatasetError(f"sample key {self.key!r} may hold no dot and no slash", code="sample_key")

    @property
    def video(self) -> bytes:
        """The clip: H.264 mp4."""
        return self.members["mp4"]

    @property
    def pose(self) -> PoseSequence:
        return PoseSequence.from_npz(self.members["pose.npz"])

    @property
    def person_mask(self) -> NDArray[np.uint8]:
        """[frames, height, width], 0 background, i = person i of the pose's track_ids."""
        return self._mask("persons")

    @property
    def clothes_mask(self) -> NDArray[np.uint8] | None:
        """[frames, height, width] 0/1, or None where no parser was configured."""
        try:
            return self._mask("clothes")
        except DatasetError:
            return None

    @property
    def caption(self) -> str:
        return self.members["txt"].decode()

    @property
    def info(self) -> dict[str, Any]:
        """`KEY.json`: source, times, fps, frames, width, height, scores, model ids, licence, consent."""
        return json.loads(self.members["json"])

    def _mask(self, name: str) -> NDArray[np.uint8]:
        with np.load(io.BytesIO(self.members["mask.npz"]), allow_pickle=False) as arrays:
            if name not in arrays.files:
                raise DatasetError(f"sample {self.key} has no {name} mask", code="sample_mask")
            return arrays[name]


def pack_mask(persons: NDArray[np.uint8], clothes: NDArray[np.uint8] | None = None) -> bytes:
    """The content of `KEY.mask.npz`; both are [frames, height, width]."""
    buffer = io.BytesIO()
    if clothes is None:
        np.savez_compressed(buffer, persons=persons)
    else:
        np.savez_compressed(buffer, persons=persons, clothes=clothes)
    return buffer.getvalue()


def write_shard(path: Path, samples: Iterable[Sample]) -> dict[str, int]:
    """Writes one shard whole or not at all; returns each key's byte offset in the tar.

    Samples are written in the order given; a key that comes twice raises DatasetError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    offsets: dict[str, int] = {}
    try:
        with temporary.open("wb") as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                if sample.key in offsets:
                    raise DatasetError(f"sample {sample.key} comes twice in {path.name}", code="sample_doubled")
                offsets[sample.key] = tar.offset
                _add(tar, sample)
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return offsets


def _add(tar: tarfile.TarFile, sample: Sample) -> None:
    extras = sorted(set(sample.members) - set(MEMBERS))
    for extension in (*MEMBERS, *extras):
        content = sample.members[extension]
        header = tarfile.TarInfo(f"{sample.key}.{extension}")
        header.size = len(content)
        header.mode = 0o644
        header.mtime = 0
        tar.addfile(header, io.BytesIO(content))


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def iter_shard(path: Path) -> Iterator[Sample]:
    """The samples of one shard in order; raises DatasetError where the tar is damaged."""
    key, members = None, {}
    try:
        with tarfile.open(path) as tar:
            for header in tar:
                name, _, extension = header.name.partition(".")
                if key is not None and name != key:
                    yield Sample(key, members)
                    members = {}
                key = name
                content = tar.extractfile(header)
                members[extension] = content.read() if content else b""
    except tarfile.TarError as problem:
        raise DatasetError(f"shard {path} is damaged: {problem}", code="shard_damaged") from problem
    if key is not None:
        yield Sample(key, members)


def read_sample(shard: Path, offset: int) -> Sample:
    """The one sample that starts at a byte offset of a shard (an offset of `write_shard` or `index_shard`)."""
    with shard.open("rb") as stream:
        stream.seek(offset)
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            key, members = None, {}
            for header in tar:
                name, _, extension = header.name.partition(".")
                if key is not None and name != key:
                    break
                key = name
                content = tar.extractfile(header)
                members[extension] = content.read() if content else b""
    if key is None:
        raise DatasetError(f"shard {shard} holds no sample at byte {offset}", code="shard_damaged")
    return Sample(key, members)


def index_shard(path: Path) -> dict[str, int]:
    """Each key's byte offset, read from the tar's headers alone."""
    offsets: dict[str, int] = {}
    try:
        with tarfile.open(path) as tar:
            for header in tar:
                offsets.setdefault(header.name.partition(".")[0], header.offset)
    except tarfile.TarError as problem:
        raise DatasetError(f"shard {path} is damaged: {problem}", code="shard_damaged") from problem
    return offsets


@dataclass(frozen=True)
class DatasetFolder:
    """A data set on disk, opened: its description and its shards in order."""

    root: Path
    description: Mapping[str, Any]
    """`dataset.json`."""
    shards: tuple[Path, ...]


def open_dataset(root: Path) -> DatasetFolder:
    """Opens a data set folder; raises DatasetError naming what is missing or of another schema version."""
    path = root / "dataset.json"
    if not path.is_file():
        raise DatasetError(
            f"{root} is no data set: it has no dataset.json. Make one with `python -m pipelines RECIPE --videos SRC "
            f"--out {root}`.",
            code="dataset_missing",
        )
    description = json.loads(path.read_text())
    version = description.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DatasetError(
            f"{root} has schema version {version}; this release reads {SCHEMA_VERSION}. Curate it again with this "
            f"release, or install the release that wrote it.",
            code="dataset_schema",
        )
    return DatasetFolder(root, description, tuple(sorted((root / "shards").glob("*.tar"))))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    temporary.replace(path)
