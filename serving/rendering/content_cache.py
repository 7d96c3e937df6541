"""What was computed before, found again by the content it came from; bounded in bytes, the least used leaves first."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from serving.watching.metrics import cache_looked_up

Found = TypeVar("Found")


@dataclass
class Counts:
    """How often one kind of thing was asked for."""

    hits: int = 0
    misses: int = 0


class ContentCache:
    """Values by kind and key. Safe to use from several threads; two that miss one key at once both compute it."""

    def __init__(self, limit_bytes: int):
        """Holds nothing, and counts misses alone, where the limit is 0."""
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self.counts: dict[str, Counts] = {}
        self._values: OrderedDict[tuple[str, str], tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, kind: str, key: str, make: Callable[[], Found], size: Callable[[Found], int]) -> Found:
        """The value of a key, made where it is not there; `size` says its bytes. What `make` raises is not kept."""
        with self._lock:
            counts = self.counts.setdefault(kind, Counts())
            found = self._values.get((kind, key))
            if found is not None:
                self._values.move_to_end((kind, key))
                counts.hits += 1
                cache_looked_up(kind, hit=True)
                return found[0]
            counts.misses += 1
            cache_looked_up(kind, hit=False)
        value = make()
        self._keep((kind, key), value, size(value))
        return value

    def clear(self) -> None:
        """Forgets every value; the counts stay."""
        with self._lock:
            self._values.clear()
            self.bytes = 0

    def _keep(self, place: tuple[str, str], value: object, size: int) -> None:
        with self._lock:
            if size > self.limit_bytes or place in self._values:
                return
            self._values[place] = (value, size)
            self.bytes += size
            while self.bytes > self.limit_bytes:
                _, (_, gone) = self._values.popitem(last=False)
                self.bytes -= gone


def content_key(*parts: object) -> str:
    """One word for the content of all parts: arrays by shape, type and bytes, files (paths) by their bytes, the rest by
    their repr, which must say all there is."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"array {part.dtype} {part.shape}\n".encode())
            digest.update(np.ascontiguousarray(part).data)
        elif isinstance(part, Path):
            with part.open("rb") as stream:
                digest.update(b"file " + hashlib.file_digest(stream, "sha256").digest())
        else:
            digest.update(f"{part!r}\n".encode())
    return digest.hexdigest()
