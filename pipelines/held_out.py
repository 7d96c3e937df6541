"""Videos that no training set may hold: hashed once, and kept as lists that travel without the videos.

A list (.jsonl or .parquet) has one row per video with the columns `name`, `sha256` and `video_hash`; the command
`fingerprint` writes one. Folders, files and globs of videos are hashed here, in an isolated child, and what was hashed
is found again by the content of the file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dynamictrl.errors import ConfigError, InputError
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.stages.fetch import Fetch
from pipelines.stages.find_videos import FindVideos
from pipelines.stages.fingerprint import Fingerprint
from pipelines.work.isolation import Child

LISTS = (".jsonl", ".parquet")
COLUMNS = ("name", "sha256", "video_hash")
TIME_LIMIT, MEMORY_GIB = 600.0, 8.0
"""Seconds and GiB that hashing one held-out video may take."""


@dataclass(frozen=True)
class HeldOut:
    """One video to keep out."""

    name: str
    sha256: str
    """Of its bytes; "" = not known."""
    video_hash: str
    """`VideoHash.to_text`; "" = not known, then only the same bytes are found."""


def read_held_out(
    names: Iterable[str], cache: Path | None = None, advance: Callable[[int], None] = lambda _: None
) -> list[HeldOut]:
    """The held-out videos that `names` name, each content once, in order of name.

    Raises InputError where a name is nothing, a list is malformed, or a held-out video cannot be read: a leak check
    that leaves some out would be none.
    """
    found: list[HeldOut] = []
    for name in names:
        found += _read_list(name) if name.lower().endswith(LISTS) else _hashed(name, cache, advance)
    once = {(video.sha256, video.video_hash): video for video in sorted(found, key=lambda v: v.name, reverse=True)}
    return sorted(once.values(), key=lambda v: v.name)


def write_held_out(path: Path, videos: Sequence[HeldOut]) -> None:
    """Writes a list, .jsonl or .parquet by its name, whole or not at all."""
    if path.suffix == ".parquet":
        import io

        import pyarrow as pa
        import pyarrow.parquet as pq

        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([asdict(video) for video in videos]), stream)
        storage.write_bytes(path, stream.getvalue())
        return
    storage.write_bytes(path, "".join(json.dumps(asdict(v), ensure_ascii=False) + "\n" for v in videos).encode())


def count(names: Iterable[str]) -> int:
    """How many videos are to be hashed; raises InputError where a name is nothing."""
    videos = [name for name in names if not name.lower().endswith(LISTS)]
    return sum(1 for name in videos for _ in FindVideos().process(Clip(source=name)))


def check_names(names: Iterable[str]) -> None:
    """Raises ConfigError where a name is no file, folder or glob on this machine and no remote one."""
    for name in names:
        here = storage.is_remote(name) or any(c in name for c in "*?[") or Path(name).expanduser().exists()
        if not here:
            raise ConfigError(
                f"held-out {name!r} does not exist; give files or folders of videos, or a .jsonl or .parquet list that "
                f"`python -m pipelines fingerprint` wrote",
                param="held_out",
            )


def _read_list(name: str) -> list[HeldOut]:
    with storage.local_copy(name) as path:
        try:
            if path.suffix == ".parquet":
                import pyarrow.parquet as pq

                rows = pq.read_table(path).to_pylist()
            else:
                rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (ValueError, OSError) as problem:
            raise InputError(f"the held-out list {name} cannot be read: {problem}", code="list_unreadable") from problem
    return [_row(name, number, row) for number, row in enumerate(rows, start=1)]


def _row(name: str, number: int, row: object) -> HeldOut:
    if not isinstance(row, dict) or not (row.get("sha256") or row.get("video_hash")):
        raise InputError(
            f"row {number} of the held-out list {name} has neither sha256 nor video_hash; its columns are "
            f"{', '.join(COLUMNS)}. `python -m pipelines fingerprint` writes such lists.",
            code="list_columns",
        )
    video = HeldOut(*(str(row.get(column) or "") for column in COLUMNS))
    if video.video_hash:
        from dynamictrl.media.video_hash import VideoHash

        VideoHash.from_text(video.video_hash)
    return video


def _hashed(name: str, cache: Path | None, advance: Callable[[int], None]) -> list[HeldOut]:
    child = Child((Fetch(), Fingerprint()), TIME_LIMIT, MEMORY_GIB)
    with tempfile.TemporaryDirectory() as work:
        try:
            found = []
            for source in FindVideos().process(Clip(source=name, work=work)):
                found.append(_known(source, cache) or _one(source, cache, child))
                advance(1)
            return found
        finally:
            child.stop()


def _one(source: Clip, cache: Path | None, child: Child) -> HeldOut:
    (result,) = child.apply([source]).clips
    if result.rejected:
        raise InputError(
            f"the held-out video {source.source} cannot be read ({result.rejected}: {result.message}). Leave it out or "
            f"replace it: what is not hashed cannot be kept out.",
            code="held_out_unreadable",
        )
    if storage.is_remote(source.source):
        shutil.rmtree(storage.downloads(source), ignore_errors=True)
    if cache is not None:
        content = {"version": Fingerprint.version, "video_hash": result.video_hash}
        storage.write_bytes(cache / f"{result.source_sha256}.json", json.dumps(content).encode())
    return HeldOut(source.source, result.source_sha256, result.video_hash)


def _known(source: Clip, cache: Path | None) -> HeldOut | None:
    """What was hashed before of a file with these bytes."""
    if cache is None or storage.is_remote(source.source) or not Path(source.path).is_file():
        return None
    with Path(source.path).open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    path = cache / f"{sha256}.json"
    content = json.loads(path.read_bytes()) if path.is_file() else {}
    if content.get("version") != Fingerprint.version:
        return None
    return HeldOut(source.source, sha256, content["video_hash"])
