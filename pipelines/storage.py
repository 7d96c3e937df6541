"""Where sources lie: local disks, object stores (pyarrow) and web servers (fsspec); and files written whole."""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from dynamictrl.errors import InputError, MediaError

if TYPE_CHECKING:
    from pipelines.clip import Clip

REMOTE = ("s3://", "gs://", "gcs://", "http://", "https://")


def is_remote(uri: str) -> bool:
    return uri.lower().startswith(REMOTE)


def file_name(uri: str) -> str:
    """The last part of a URI, without a query."""
    return posixpath.basename(uri.split("?")[0].rstrip("/")) or "source"


def downloads(clip: Clip) -> Path:
    """Where the bytes of a remote source lie while it is worked on."""
    return Path(clip.work) / "downloads" / clip.fingerprint


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def list_remote(prefix: str) -> list[tuple[str, int, str]]:
    """(URI, bytes, change mark) of every object under a prefix, in order; raises InputError if it cannot be reached."""
    try:
        found = _list_web(prefix) if prefix.lower().startswith("http") else _list_bucket(prefix)
    except Exception as problem:
        raise InputError(
            f"{prefix} cannot be listed ({type(problem).__name__}: {str(problem)[:200]}). Check the name, the network "
            f"and the credentials in this environment.",
            code="unreachable",
            param="videos",
        ) from problem
    return sorted(found)


def _list_bucket(prefix: str) -> list[tuple[str, int, str]]:
    from pyarrow import fs

    scheme = prefix.split("://")[0]
    system, path = fs.FileSystem.from_uri(prefix)
    one = system.get_file_info(path)
    infos = [one] if one.type == fs.FileType.File else system.get_file_info(fs.FileSelector(path, recursive=True))
    return [(f"{scheme}://{i.path}", i.size, str(i.mtime_ns or "")) for i in infos if i.type == fs.FileType.File]


def _list_web(prefix: str) -> list[tuple[str, int, str]]:
    """One file, or the links below an index page that ends in a slash."""
    if not prefix.endswith("/"):
        return [(prefix, 0, "")]
    import fsspec

    system = fsspec.filesystem("https")
    # `find` takes a server that does not answer for an empty folder; `ls` raises.
    system.ls(prefix)
    found = cast("dict[str, Any]", system.find(prefix, detail=True))
    return [(uri, int(entry.get("size") or 0), "") for uri, entry in found.items()]


def download(uri: str, path: Path) -> None:
    """Copies a remote object to a local file, whole or not at all; raises MediaError if it cannot be reached."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open_remote(uri) as source, part.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        part.replace(path)
    except Exception as problem:
        raise MediaError(
            f"{uri} cannot be downloaded ({type(problem).__name__}: {str(problem)[:200]})", code="unreachable"
        ) from problem
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def open_remote(uri: str) -> Iterator[BinaryIO]:
    """A remote object's bytes as a stream."""
    if uri.lower().startswith("http"):
        import fsspec

        with fsspec.open(uri, "rb") as stream:
            yield cast("BinaryIO", stream)
    else:
        from pyarrow import fs

        system, path = fs.FileSystem.from_uri(uri)
        with system.open_input_stream(path) as stream:
            yield cast("BinaryIO", stream)


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A file on this machine with the bytes of `uri`; a downloaded copy is removed afterwards."""
    if not is_remote(uri):
        yield Path(uri.removeprefix("file://")).expanduser()
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file_name(uri)
        download(uri, path)
        yield path
