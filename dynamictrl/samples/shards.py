"""How samples lie on disk: one file for the side that writes and the side that reads (contract section 2).

A data set folder holds `dataset.json`, `shards/train-000000.tar ...` (WebDataset), `manifest.parquet`,
`quarantine.jsonl` and a report. Tar headers are fixed, so equal samples make equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import DatasetError
from dynamictrl.poses.pose import PoseSequence

SCHEMA_VERSION = 1
SHARD_NAME = "train-{:06d}.tar"

MEMBERS = ("mp4", "pose.npz", "mask.npz", "txt", "json")
"""What every sample has; `latents.safetensors` may follow."""
LATENTS = "latents.safetensors"

BLOCK = tarfile.BLOCKSIZE
"""Bytes: a tar's header, and what contents are padded to."""
CHUNK = 2**20
"""Bytes held at once while a member is copied."""


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


class ShardWriter:
    """Writes one tar to a stream and hashes it on the way; holds a block of a member at a time, never a whole one.

    Samples are written in the order given, headers are fixed, so equal members make equal bytes.
    """

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._key = ""
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self.bytes = 0
        """Written so far."""
        self.offsets: dict[str, int] = {}
        """Where each sample begins, by key."""

    def begin(self, key: str) -> None:
        """Starts a sample; a key that comes twice raises DatasetError."""
        if key in self.offsets:
            raise DatasetError(f"sample {key} comes twice in a shard", code="sample_doubled")
        self._key, self.offsets[key] = key, self.bytes

    def add(self, extension: str, content: BinaryIO, size: int) -> None:
        """One member of the sample begun last, `size` bytes long."""
        header = tarfile.TarInfo(f"{self._key}.{extension}")
        header.size, header.mode, header.mtime = size, 0o644, 0
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        self._copy(content, size)
        self._write(bytes(-size % BLOCK))

    def copy(self, key: str, content: BinaryIO, size: int) -> None:
        """A whole sample as it lies in another shard, headers and padding included."""
        self.begin(key)
        first = content.read(BLOCK)
        if not first.startswith(f"{key}.".encode()):
            raise DatasetError(f"sample {key} is not where the manifest says it is", code="shard_damaged")
        self._write(first)
        self._copy(content, size - BLOCK)

    def close(self) -> None:
        """The end of the tar; the stream stays open."""
        self._write(bytes(shard_bytes(self.bytes) - self.bytes))

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        """What wids indices ask for."""
        return self._md5.hexdigest()

    def _copy(self, content: BinaryIO, size: int) -> None:
        while size > 0:
            block = content.read(min(size, CHUNK))
            if not block:
                raise DatasetError(f"sample {self._key} ends {size} bytes too early", code="shard_damaged")
            self._write(block)
            size -= len(block)

    def _write(self, block: bytes) -> None:
        self._stream.write(block)
        self._sha256.update(block)
        self._md5.update(block)
        self.bytes += len(block)


def sample_bytes(sizes: Iterable[int]) -> int:
    """Bytes that a sample with members of these sizes takes in a tar: a header each, contents padded to blocks."""
    return sum(BLOCK + size + -size % BLOCK for size in sizes)


def shard_bytes(samples: int) -> int:
    """Bytes of a whole tar whose samples take so many: two empty blocks at the end, padded to a record."""
    end = samples + 2 * BLOCK
    return end + -end % tarfile.RECORDSIZE


def write_shard(path: Path, samples: Iterable[Sample]) -> dict[str, int]:
    """Writes one shard whole or not at all; returns each key's byte offset in the tar.

    Samples are written in the order given; a key that comes twice raises DatasetError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            writer = ShardWriter(stream)
            for sample in samples:
                writer.begin(sample.key)
                for extension in member_order(sample.members):
                    content = sample.members[extension]
                    writer.add(extension, io.BytesIO(content), len(content))
            writer.close()
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return writer.offsets


def member_order(extensions: Iterable[str]) -> tuple[str, ...]:
    """The members of a sample as they follow each other in a shard."""
    return (*MEMBERS, *sorted(set(extensions) - set(MEMBERS)))


@dataclass(frozen=True)
class Member:
    """One file in a tar."""

    key: str
    extension: str
    start: int
    """Byte at which its header begins."""
    size: int
    """Bytes of its content, which begins `BLOCK` bytes later."""

    @property
    def end(self) -> int:
        """The byte after its padding."""
        return self.start + BLOCK + self.size + -self.size % BLOCK


def iter_members(stream: BinaryIO, offset: int = 0) -> Iterator[Member]:
    """The members of a tar from a byte on, read from their headers alone; raises DatasetError where it is damaged.

    The stream must be seekable; where it stands between two members is the caller's to use.
    """
    while True:
        stream.seek(offset)
        header = stream.read(BLOCK)
        if header == bytes(BLOCK):
            return
        try:
            entry = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except tarfile.HeaderError as problem:
            raise DatasetError(f"no member at byte {offset} of the shard: {problem}", code="shard_damaged") from problem
        key, _, extension = entry.name.partition(".")
        member = Member(key, extension, offset, entry.size)
        yield member
        offset = member.end


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
    with path.open("rb") as stream:
        for member in iter_members(stream):
            offsets.setdefault(member.key, member.start)
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
    try:
        description = json.loads(path.read_text())
        version = description.get("schema_version")
    except (ValueError, AttributeError) as problem:
        raise DatasetError(
            f"{path} cannot be read as a data set's description ({problem}); copy the folder again",
            code="dataset_damaged",
        ) from problem
    if version != SCHEMA_VERSION:
        raise DatasetError(
            f"{root} has schema version {version}; this release reads {SCHEMA_VERSION}. Curate it again with this "
            f"release, or install the release that wrote it.",
            code="dataset_schema",
        )
    # The description says which shards there are: while a run writes, others lie beside them.
    named = description.get("shards")
    paths = (root / "shards").glob("*.tar") if named is None else (root / "shards" / s["name"] for s in named)
    return DatasetFolder(root, description, tuple(sorted(paths)))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    temporary.replace(path)
