"""Where bytes lie: local disks, object stores (pyarrow) and web servers (fsspec); and files written whole.

A data set's root is a `Store`: a local folder, or a prefix `s3://bucket/prefix` or `gs://bucket/prefix`. Credentials
come from the environment. Another endpoint than the cloud's own is named by AWS_ENDPOINT_URL, or in the URI:
`s3://bucket/prefix?endpoint_override=localhost:9000&scheme=http`.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from dynamictrl.errors import ConfigError, DatasetError, DynamiCtrlError, InputError, MediaError
from pipelines.files.object_store import filesystem

if TYPE_CHECKING:
    from pyarrow import fs

    from pipelines.clip import Clip

BUCKETS = ("s3://", "gs://", "gcs://")
REMOTE = (*BUCKETS, "http://", "https://")
CHUNK = 2**20
"""Bytes held at once while something is copied."""


def is_remote(uri: str) -> bool:
    return uri.lower().startswith(REMOTE)


def is_bucket(uri: str) -> bool:
    """Whether a URI names an object store, which can be written as well as read."""
    return uri.lower().startswith(BUCKETS)


def file_name(uri: str) -> str:
    """The last part of a URI, without a query."""
    return posixpath.basename(uri.split("?")[0].rstrip("/")) or "source"


def local_size(place: str) -> int:
    """Bytes of a file on this machine; 0 where it lies elsewhere."""
    if not is_remote(place):
        with contextlib.suppress(OSError, ValueError):
            return os.stat(os.path.expanduser(place.removeprefix("file://"))).st_size
    return 0


def downloads(clip: Clip) -> Path:
    """Where the bytes of a remote source lie while it is worked on."""
    return Path(clip.work) / "downloads" / clip.fingerprint


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, and onto the disk, so that a lost power does not undo it; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    move_whole(temporary, path)


def move_whole(temporary: Path, path: Path) -> None:
    """Gives a finished file its name: its bytes reach the disk before the name does, and the name before this ends."""
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Store:
    """The files of one data set, by name below its root. Pickles, and opens its connection where it is used.

    Every method raises DatasetError (`unreachable`) where the root cannot be reached or a file cannot be read.
    """

    root: str
    """A local folder, or an `s3://` or `gs://` prefix."""

    def __post_init__(self):
        root = str(self.root)
        if is_remote(root) and not is_bucket(root):
            raise ConfigError(f"{root} cannot be written; name a local folder, s3://... or gs://...", param="out")
        local = not is_bucket(root)
        object.__setattr__(self, "root", str(Path(root.removeprefix("file://")).expanduser()) if local else root)

    @property
    def remote(self) -> bool:
        return is_bucket(self.root)

    @property
    def folder(self) -> Path:
        """The root where it is a local folder."""
        assert not self.remote, f"{self.root} is no folder"
        return Path(self.root)

    def uri(self, name: str) -> str:
        """Where a file lies, as people and other programs name it."""
        base, mark, query = self.root.partition("?")
        return f"{base.rstrip('/')}/{name}{mark}{query}"

    def exists(self, name: str) -> bool:
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """Bytes; None where there is no such file."""
        from pyarrow import fs

        with self._told("asked for", name):
            system, path = self._place(name)
            info = system.get_file_info(path)
            return info.size if info.type == fs.FileType.File else None

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """(name, bytes) of every file below a folder of the root, in order; the work folder is none of them."""
        if not self.remote:
            return sorted(self._walk(prefix))
        from pyarrow import fs

        with self._told("listed", prefix):
            system, base = self._place(prefix)
            infos = system.get_file_info(fs.FileSelector(base, allow_not_found=True, recursive=True))
            start = len(self._place("")[1].rstrip("/")) + 1
            return sorted((i.path[start:], i.size) for i in infos if i.type == fs.FileType.File)

    def _walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        for folder, folders, names in os.walk(self.folder / prefix):
            # A work folder may hold a hundred thousand files, and none of them is the data set's.
            folders[:] = [name for name in folders if name != ".work"]
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    yield path.relative_to(self.folder).as_posix(), path.stat().st_size

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """A file's bytes from `start`, all or `length` of them."""
        with self.open(name) as stream:
            stream.seek(start)
            return stream.read() if length is None else stream.read(length)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A file to read from, at any place of it."""
        with self._told("opened", name):
            stream = self._opened(name)
        with stream:
            yield cast("BinaryIO", stream)

    def _opened(self, name: str) -> Any:  # noqa: ANN401 (pyarrow has no type for it)
        if not self.remote:
            return (self.folder / name).open("rb")
        system, path = self._place(name)
        return system.open_input_file(path)

    def put(self, name: str, content: bytes) -> None:
        """Writes a file whole or not at all: a rename on a disk, one request (or a completed upload) elsewhere."""
        with self._told("written", name):
            if not self.remote:
                write_bytes(self.folder / name, content)
                return
            system, path = self._place(name)
            with system.open_output_stream(path) as stream:
                stream.write(content)

    def put_file(self, name: str, path: Path) -> None:
        """Moves a finished local file here, whole or not at all; `path` is gone afterwards."""
        with self._told("written", name):
            if self.remote:
                self._upload(name, path)
                path.unlink()
            else:
                _move(path, self.folder / name)

    def _upload(self, name: str, path: Path) -> None:
        system, target = self._place(name)
        with path.open("rb") as source, system.open_output_stream(target) as stream:
            shutil.copyfileobj(source, cast("BinaryIO", stream), 8 * CHUNK)

    def delete(self, name: str) -> None:
        """Removes a file; nothing happens where there is none."""
        if not self.remote:
            (self.folder / name).unlink(missing_ok=True)
        elif self.exists(name):
            with self._told("deleted", name):
                system, path = self._place(name)
                system.delete_file(path)

    def check(self) -> None:
        """Raises DatasetError where the root cannot be reached, before any work is done."""
        from pyarrow import fs

        if not self.remote:
            return
        with self._told("reached", ""):
            system, base = self._place("")
            bucket = base.split("/")[0]
            if system.get_file_info(bucket).type == fs.FileType.NotFound:
                raise FileNotFoundError(f"there is no bucket {bucket}")

    def _place(self, name: str) -> tuple[fs.FileSystem, str]:
        from pyarrow import fs

        if not self.remote:
            return fs.LocalFileSystem(), str(self.folder / name)
        system, base = filesystem(self.root)
        return system, posixpath.join(base, name) if name else base

    @contextlib.contextmanager
    def _told(self, what: str, name: str) -> Iterator[None]:
        """Says in a sentence what could not be done. A local disk speaks for itself: a full one is not the set's."""
        try:
            yield
        except DynamiCtrlError:
            raise
        except Exception as problem:
            if not self.remote and not isinstance(problem, FileNotFoundError):
                raise
            hint = "Check the name, the network and the credentials in this environment." if self.remote else ""
            raise DatasetError(
                f"{self.uri(name)} cannot be {what} ({type(problem).__name__}: {str(problem)[:200]}). {hint}".rstrip(),
                code="file_missing" if isinstance(problem, FileNotFoundError) else "unreachable",
            ) from problem


def _move(path: Path, target: Path) -> None:
    """Renames, or copies and renames where the two lie on different disks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.stat().st_dev == target.parent.stat().st_dev:
        move_whole(path, target)
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:6]}.tmp")
    try:
        shutil.copyfile(path, temporary)
        move_whole(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    path.unlink()


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

    scheme, (_, mark, query) = prefix.split("://")[0], prefix.partition("?")
    system, path = filesystem(prefix)
    one = system.get_file_info(path)
    infos = [one] if one.type == fs.FileType.File else system.get_file_info(fs.FileSelector(path, recursive=True))
    files = [i for i in infos if i.type == fs.FileType.File]
    return [(f"{scheme}://{i.path}{mark}{query}", i.size, str(i.mtime_ns or "")) for i in files]


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
            shutil.copyfileobj(source, target, CHUNK)
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
        system, path = filesystem(uri)
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
