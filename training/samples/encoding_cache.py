"""What was encoded online, kept for the next visit."""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from pathlib import Path
from secrets import token_hex
from threading import Lock
from typing import NamedTuple

from safetensors import SafetensorError

from dynamictrl.errors import DatasetError
from dynamictrl.samples import encodings
from dynamictrl.samples.encodings import EncodedBy, Encodings

logger = logging.getLogger(__name__)


class CacheKey(NamedTuple):
    """One clip has one size in a run; a window of it and what is blacked out differ."""

    clip: str
    start: int
    masked: str


class EncodingCache:
    """Encodings by clip and window, in memory and, where a folder is named, on disk for all workers.

    The least recently used leave the memory when its limit is passed. Threads may share it.
    """

    def __init__(self, limit_bytes: int, folder: Path | None = None):
        self._limit = limit_bytes
        self._folder = folder
        self._bytes = 0
        self._kept: OrderedDict[CacheKey, Encodings] = OrderedDict()
        self._lock = Lock()

    def get(self, key: CacheKey) -> Encodings | None:
        """What is kept under a key, if anything is."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = self._read(key)
        if value is not None:
            self._keep(key, value)
        return value

    def put(self, key: CacheKey, value: Encodings, encoded_by: EncodedBy) -> None:
        """Keeps a value where it fits."""
        if self._folder is not None:
            self._write(self._path(self._folder, key), encodings.to_bytes(value, encoded_by))
        self._keep(key, value)

    def _write(self, path: Path, content: bytes) -> None:
        # A name of its own: workers in containers often have one and the same process number.
        temporary = path.with_name(f".{path.name}.{token_hex(4)}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as problem:  # as on a full disk: the clip is encoded again when it comes again
            logger.warning("an encoded clip could not be kept for the other workers: %s", problem)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _keep(self, key: CacheKey, value: Encodings) -> None:
        with self._lock:
            if value.nbytes > self._limit or key in self._kept:
                return
            self._kept[key] = value
            self._bytes += value.nbytes
            while self._bytes > self._limit:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes

    def _read(self, key: CacheKey) -> Encodings | None:
        if self._folder is None:
            return None
        try:
            return encodings.from_bytes(self._path(self._folder, key).read_bytes())
        except FileNotFoundError:
            return None
        except (DatasetError, SafetensorError) as problem:  # as a power cut leaves a file: the clip itself is whole
            logger.warning("kept encodings of %s cannot be read and are made again: %s", key.clip, problem)
            return None

    @staticmethod
    def _path(folder: Path, key: CacheKey) -> Path:
        return folder / f"{key.clip}-{key.start}-{key.masked}.safetensors"
