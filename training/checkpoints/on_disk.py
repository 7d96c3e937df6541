"""Checkpoints as they lie on disk: which are whole, which are damaged, which are left over.

```
RUN/checkpoints/step-00000100/
  COMPLETE      written last: step, workers, ZeRO stage, and every file with its size and CRC-32
  state/        DeepSpeed's shards
  average/      one file a worker, where a moving average is kept
  universal/    the same states whole by parameter, made where another number of workers went on; has its own COMPLETE
RUN/checkpoints/.step-*       half-written, replaced or damaged: passed by, and removed at the next start or save
```
Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamictrl.errors import CheckpointError, ConfigError
from training.checkpoints import leases

logger = logging.getLogger(__name__)

COMPLETE = "COMPLETE"
STATE = "state"
AVERAGE = "average"
PARTS = "parts"
"""One small file a worker: what it has written, said once that is safe."""
READ_BYTES = 2**22


@dataclass(frozen=True)
class Written:
    """A file as it must be."""

    size: int
    """Bytes."""
    crc32: int

    def damage(self, path: Path) -> str:
        """What is wrong with the file, in words; empty where nothing is."""
        try:
            size = path.stat().st_size
            if size != self.size:
                return f"{path.name} has {size} bytes of {self.size}"
            return "" if checksum(path) == self.crc32 else f"{path.name} holds other bytes than were written"
        except OSError as problem:
            return f"{path.name} cannot be read ({problem.strerror or problem})"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint that was written whole."""

    folder: Path
    step: int
    """Optimizer steps done."""
    workers: int
    """How many workers wrote it."""
    zero_stage: int
    """DeepSpeed's, which says how its files are cut."""
    files: Mapping[str, Written]
    """By path in the folder."""

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """Raises CheckpointError where the marker is missing or cannot be read."""
        try:
            marker = json.loads((folder / COMPLETE).read_text())
            files = {name: Written(int(size), int(crc32)) for name, (size, crc32) in marker["files"].items()}
            return cls(folder, int(marker["step"]), int(marker["workers"]), int(marker["zero_stage"]), files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise CheckpointError(
                f"{folder / COMPLETE} cannot be read ({problem})", code="checkpoint_damaged"
            ) from None

    def damage(self, share: int = 0, shares: int = 1) -> str:
        """What is wrong with one of so many shares of its files, in words; empty where nothing is.

        Sizes first: a truncated file is found without reading the others.
        """
        mine = sorted(self.files)[share::shares]
        for name in mine:
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != self.files[name].size:
                return self.files[name].damage(path)
        return next(filter(None, (self.files[name].damage(self.folder / name) for name in mine)), "")


def checksum(path: Path) -> int:
    """CRC-32 of a file's bytes: it finds what disks and networks do by accident, at the speed of reading."""
    value = 0
    with path.open("rb") as stream:
        while chunk := stream.read(READ_BYTES):
            value = zlib.crc32(chunk, value)
    return value


def name_of(step: int) -> str:
    """A checkpoint's folder."""
    return f"step-{step:08d}"


def folders(root: Path) -> list[Path]:
    """All that claim to be checkpoints, the newest first."""
    return sorted((path for path in root.glob("step-*") if path.is_dir()), reverse=True)


def whole(root: Path) -> list[Checkpoint]:
    """Those with a marker that can be read, the newest first; their bytes are not looked at."""
    return list(_readable(folders(root)))


def newest(root: Path) -> Checkpoint | None:
    """The last one written whole, if there is one."""
    return next(_readable(folders(root)), None)


def _readable(claimed: Iterable[Path]) -> Iterator[Checkpoint]:
    for folder in claimed:
        try:
            yield Checkpoint.read(folder)
        except CheckpointError:
            continue


def check_layout(found: Checkpoint | None, zero_stage: int) -> None:
    """Refuses to go on with another ZeRO stage; another number of workers is taken up by `elastic`.

    The stages cut and name their files in different ways, and DeepSpeed's universal checkpoints carry the optimizer's
    common state in a form of the stage that wrote it.
    """
    if found is not None and found.zero_stage != zero_stage:
        raise ConfigError(
            f"{found.folder} was written with zero_stage {found.zero_stage} and this run has {zero_stage}; go on with "
            f"--zero-stage {found.zero_stage}",
            code="setting_conflict",
            param="zero_stage",
        )


def seal(temporary: Path, folder: Path, facts: Mapping[str, Any], files: Mapping[str, Written]) -> None:
    """Makes a half-written checkpoint a whole one: marker, everything down to the disk, then its name."""
    shutil.rmtree(temporary / PARTS, ignore_errors=True)
    marker = dict(facts) | {"files": {name: [written.size, written.crc32] for name, written in sorted(files.items())}}
    write_safely(temporary / COMPLETE, marker)
    for inner in (*filter(Path.is_dir, temporary.iterdir()), temporary):
        sync_folder(inner)
    if folder.exists():
        set_aside(folder)
    temporary.rename(folder)
    sync_folder(folder.parent)


def write_safely(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON file, whole or not at all, down to the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as stream:
        stream.write(json.dumps(value, indent=1) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def sync_folder(folder: Path) -> None:
    """Brings a folder's entries down to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_files(folder: Path) -> None:
    """Brings all files of a folder down to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def set_aside(folder: Path) -> Path:
    """Takes a checkpoint out of those that count, in one move; what is left is removed by `collect`."""
    aside = folder.with_name(f".{folder.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    return aside


def prune(root: Path, kept: int) -> None:
    """Removes all but the newest so many whole checkpoints, and those that somebody reads.

    A folder loses its name first, so that a kill in between leaves no checkpoint with files missing.
    """
    good = {found.folder for found in whole(root)[:kept]}
    for folder in folders(root):
        if folder not in good and not leases.is_held(folder):
            shutil.rmtree(set_aside(folder), ignore_errors=True)


def collect(root: Path) -> None:
    """Removes what counts for nothing: half-written, replaced, damaged, half-removed."""
    for left_over in root.glob(".step-*"):
        shutil.rmtree(left_over, ignore_errors=True)
