"""A shard read once from end to end: its samples with their places, and the hash of every byte."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, cast

from dynamictrl.errors import DatasetError
from dynamictrl.samples.shards import Sample
from pipelines.files.storage import CHUNK


class HashingStream:
    """Hashes what is read through it."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size)
        self._sha256.update(block)
        return block

    def sha256(self) -> str:
        """Of the whole stream: what was not read yet is read now."""
        while self.read(CHUNK):
            pass
        return self._sha256.hexdigest()


def located_samples(stream: HashingStream, name: str) -> Iterator[tuple[int, Sample]]:
    """(byte offset, sample) one after the other, a sample in memory at a time; raises DatasetError where it is cut."""
    place, key, members = 0, None, {}
    try:
        with tarfile.open(fileobj=cast("BinaryIO", stream), mode="r|") as tar:
            for header in tar:
                found, _, extension = header.name.partition(".")
                if key is not None and found != key:
                    yield place, Sample(key, members)
                if found != key:
                    place, key, members = header.offset, found, {}
                content = tar.extractfile(header)
                members[extension] = content.read() if content else b""
                # A tar keeps every header it has seen; a shard may hold hundred thousands.
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
    except (tarfile.TarError, EOFError) as problem:
        raise DatasetError(f"shard {name}: {problem}", code="shard_damaged") from problem
    if key is not None:
        yield place, Sample(key, members)
