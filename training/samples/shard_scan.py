"""What lies in a data set's shards, from their headers and descriptions; no video is touched.

Reading it takes a few small reads a sample. A run keeps the result in its folder, by each shard's size and time, so
that a restart and every worker read one file in its stead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

from dynamictrl.errors import DatasetError
from dynamictrl.samples.shards import BLOCK, LATENTS, MEMBERS, DatasetFolder, write_json

KEPT = ".clips.json"
"""In the run folder."""
KEPT_VERSION = 1
READ_BYTES = 8192
"""Of one read: a header with what follows it, often the next headers too."""
MASK_TAIL = 1024
"""Bytes at the end of a mask in which its arrays' names stand (a zip's directory)."""
THREADS = 8
"""Shards read at once: a shared disk answers late, and many at a time."""


@dataclass(frozen=True)
class Scanned:
    """One sample of a shard."""

    key: str
    offset: int
    """Byte offset in the shard."""
    fps: float
    """0 where the description does not say."""
    frames: int
    """0 where the description does not say."""
    height: int
    """Pixels; 0 where the description does not say."""
    width: int
    """Pixels; 0 where the description does not say."""
    has_clothes: bool
    latents_start: int = 0
    """Byte in the shard at which the content of the latents file begins; 0 where there is none."""
    latents_bytes: int = 0
    encoded_by: str = ""
    """The latents' own description, JSON."""


ScannedShards = Mapping[Path, tuple[Scanned, ...]]


def scan(dataset: DatasetFolder, kept: Path | None = None) -> ScannedShards:
    """Every shard's samples, in the data set's order; what `kept` knows is not read again.

    Raises DatasetError for shards that are missing, cut off or damaged, and for samples that lack a member.
    """
    sizes = _sizes(dataset)
    known = _known(kept)
    stamps = {path: _stamp(path) for path in dataset.shards}
    unread = [path for path in dataset.shards if known.get(path.name, ("", ()))[0] != stamps[path]]
    with ThreadPoolExecutor(THREADS) as pool:
        read = dict(zip(unread, pool.map(lambda path: scan_shard(path, sizes.get(path.name)), unread), strict=True))
    return {path: read[path] if path in read else known[path.name][1] for path in dataset.shards}


def keep(scanned: ScannedShards, path: Path) -> None:
    """Writes what was scanned where later starts look for it."""
    shards = {shard.name: [_stamp(shard), [astuple(s) for s in samples]] for shard, samples in scanned.items()}
    if {name: stamp for name, (stamp, _) in _known(path).items()} != {
        name: stamp for name, (stamp, _) in shards.items()
    }:
        write_json(path, {"version": KEPT_VERSION, "shards": shards})


def _known(path: Path | None) -> dict[str, tuple[str, tuple[Scanned, ...]]]:
    try:
        values = json.loads(path.read_bytes()) if path is not None else {}
        if values.get("version") != KEPT_VERSION:
            return {}
        return {name: (stamp, tuple(Scanned(*s) for s in rows)) for name, (stamp, rows) in values["shards"].items()}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _sizes(dataset: DatasetFolder) -> dict[str, int]:
    """The bytes that the description says each shard has; DatasetError where shards are not there."""
    missing = [path.name for path in dataset.shards if not path.is_file()]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(dataset.shards)} shards that {dataset.root / 'dataset.json'} names are not there, "
            f"the first {missing[0]}; copy the folder again, or see what is wrong with `python -m pipelines verify "
            f"--dataset {dataset.root}`",
            code="shard_missing",
        )
    named = dataset.description.get("shards") or ()
    return {shard["name"]: int(shard["bytes"]) for shard in named if "bytes" in shard}


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


def scan_shard(path: Path, expected_bytes: int | None = None) -> tuple[Scanned, ...]:
    """The samples of one shard in order; DatasetError where it is damaged or a sample lacks a member."""
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        if expected_bytes is not None and size != expected_bytes:
            raise _damaged(path, f"it has {size} bytes and dataset.json says {expected_bytes}")
        members = _members(path, _Blocks(stream.fileno()), size)
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        for key, extension, start, length in members:
            samples.setdefault(key, {})[extension] = (start, length)
        blocks = _Blocks(stream.fileno())
        try:
            return tuple(_scanned(path, blocks, key, found) for key, found in samples.items())
        except (ValueError, TypeError) as problem:
            raise _damaged(path, str(problem)) from problem


class _Blocks:
    """Small reads from a file, each answered from the last block that was read where it lies in it."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._start, self._block = 0, b""

    def read(self, start: int, length: int) -> bytes:
        if not self._start <= start <= start + length <= self._start + len(self._block):
            self._start, self._block = start, os.pread(self._descriptor, max(length, READ_BYTES), start)
        return self._block[start - self._start : start - self._start + length]


def _members(path: Path, blocks: _Blocks, size: int) -> Iterable[tuple[str, str, int, int]]:
    """Key, extension, first byte and length of each member's content."""
    at = 0
    while at < size:
        header = blocks.read(at, BLOCK)
        if header == bytes(BLOCK):
            return
        name, length = _parse_header(path, header, at)
        key, _, extension = name.partition(".")
        if at + BLOCK + length > size:
            raise _damaged(path, f"it ends within {name}")
        yield key, extension, at + BLOCK, length
        at += BLOCK + length + -length % BLOCK
    raise _damaged(path, "its end is missing")


def _parse_header(path: Path, header: bytes, at: int) -> tuple[str, int]:
    # tarfile's own parser takes 30 us, which is most of a scan where all is in memory.
    try:
        checksum = int(header[148:156].rstrip(b"\0 "), 8)
        whole = header[257:262] == b"ustar" and sum(header) - sum(header[148:156]) + 8 * 32 == checksum
        if whole:
            return header[:100].rstrip(b"\0").decode(), int(header[124:136].rstrip(b"\0 "), 8)
    except ValueError:
        pass
    raise _damaged(path, f"no member begins at byte {at}")


def _scanned(path: Path, blocks: _Blocks, key: str, found: Mapping[str, tuple[int, int]]) -> Scanned:
    missing = [name for name in MEMBERS if name not in found]
    if missing:
        raise DatasetError(
            f"sample {key} of {path} lacks {', '.join(missing)}: this is no shard of `python -m pipelines`, or it is "
            f"damaged; see `python -m pipelines verify --dataset {path.parent.parent}`",
            code="sample_members",
        )
    start, length = found["mask.npz"]
    tail = min(MASK_TAIL, length)
    has_clothes = b"clothes.npy" in blocks.read(start + length - tail, tail)
    info = json.loads(blocks.read(*found["json"]))
    latents_start, latents_bytes = found.get(LATENTS, (0, 0))
    return Scanned(
        key,
        min(first for first, _ in found.values()) - BLOCK,
        _number(info.get("fps")),
        int(_number(info.get("frames"))),
        int(_number(info.get("height"))),
        int(_number(info.get("width"))),
        has_clothes,
        latents_start,
        latents_bytes,
        _description(blocks, latents_start) if latents_bytes else "",
    )


def _description(blocks: _Blocks, start: int) -> str:
    """The latents' description; "" where the file does not hold one."""
    length = int.from_bytes(blocks.read(start, 8), "little")
    try:
        return json.loads(blocks.read(start + 8, min(length, 2**20)))["__metadata__"]["encoded_by"]
    except (KeyError, TypeError, ValueError):
        return ""


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return 0.0


def _damaged(path: Path, why: str) -> DatasetError:
    return DatasetError(
        f"shard {path} is damaged ({why}); find what is wrong with `python -m pipelines verify --dataset "
        f"{path.parent.parent}`",
        code="shard_damaged",
    )
