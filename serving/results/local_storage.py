"""Storage in a folder of this machine, or of a file system that all machines share."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from serving.results.storage import CHUNK, Stored, away


class LocalStorage:
    """Objects are files under `root`, at their key."""

    is_local = True

    def __init__(self, root: Path):
        self.root = root

    def path(self, key: str) -> Path:
        return self.root / key

    def adopt(self, source: Path, key: str, *, content_type: str = "") -> None:
        target = self.path(key)
        if source == target:
            return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(source, target)
        except OSError as problem:
            raise away(f"{target.name} cannot be written ({problem.strerror})") from problem

    def copy(self, key: str, to: str) -> None:
        if not self.path(key).is_file():
            raise FileNotFoundError(key)
        self.adopt(self.path(key), to)

    def fetch(self, key: str, target: Path) -> None:
        shutil.copyfile(self.path(key), target)

    def look(self, key: str) -> Stored | None:
        try:
            facts = self.path(key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as problem:
            raise away(f"the data folder cannot be read ({problem.strerror})") from problem
        return Stored(key, facts.st_size, f'"{facts.st_ino:x}-{facts.st_mtime_ns:x}-{facts.st_size:x}"', facts.st_mtime)

    def read(self, stored: Stored, start: int, end: int) -> Iterator[bytes]:
        with self.path(stored.key).open("rb") as stream:
            stream.seek(start)
            while start < end and (chunk := stream.read(min(CHUNK, end - start))):
                start += len(chunk)
                yield chunk

    def walk(self, prefix: str) -> Iterator[Stored]:
        for folder, _, names in os.walk(self.path(prefix)):
            for name in names:
                if stored := self.look(str((Path(folder) / name).relative_to(self.root))):
                    yield stored

    def drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self.path(key)
            with suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
            # A folder that holds nothing any more is nobody's.
            for parent in path.parents:
                if parent == self.root or parent.parent == self.root:
                    break
                try:
                    parent.rmdir()
                except OSError:
                    break

    def presign(self, method: str, key: str, seconds: float) -> str | None:
        return None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # There is one already, another file system, or one without hard links.
        partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        try:
            shutil.copyfile(source, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
