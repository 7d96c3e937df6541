"""Reads what stands at global sample indices, ahead in threads; encodes where nothing was encoded beforehand."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from dynamictrl.errors import DatasetError, DynamiCtrlError
from dynamictrl.samples import encodings
from dynamictrl.samples.encodings import EncodedBy, Encodings
from dynamictrl.samples.shards import Sample, read_sample
from dynamictrl.samples.windows import WindowPixels, mask_encoded_reference, read_window
from training.samples.encoding_cache import CacheKey, EncodingCache
from training.samples.frozen_models import FrozenModels
from training.samples.order import Draw, Order
from training.samples.skipped_samples import SkippedSamples
from training.settings.clips import Clips

MOST_ATTEMPTS = 64
"""Clips tried for one sample; the limit of bad clips is reached long before, or the bucket is all bad."""
BAD_CONTENT = (
    DynamiCtrlError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, tarfile.TarError, SafetensorError,
)  # fmt: skip
"""What broken bytes raise. A disk that fails does not: it may be read again after a restart."""


@dataclass(frozen=True)
class _Masked:
    """Encodings whose reference was blacked out after it had been encoded."""

    encodings: Encodings


_Found = WindowPixels | Encodings | _Masked | None


class Loader:
    """Gives the encodings of the samples one worker takes, in order; threads read ahead while the device works."""

    def __init__(
        self,
        order: Order,
        frozen: FrozenModels,
        clips: Clips,
        shared: Path | None = None,
        skipped: SkippedSamples | None = None,
    ):
        """`shared` is a folder that all workers see, for encodings that each of them may need."""
        self._order = order
        self._frozen = frozen
        self._clips = clips
        self._cache = EncodingCache(int(clips.cache_gib * 2**30), shared)
        self._skipped = skipped or SkippedSamples(None, clips.max_bad_samples)
        self._pool = ThreadPoolExecutor(clips.loader_threads, "loader") if clips.loader_threads else None
        self._ahead: dict[int, Future[_Found]] = {}

    def prefetch(self, positions: Iterable[int]) -> None:
        """Starts reading samples that will be asked for."""
        if self._pool is not None:
            for position in positions:
                if position not in self._ahead:
                    self._ahead[position] = self._pool.submit(self._read, self._order.draw(position))

    def load(self, positions: Iterable[int]) -> Iterator[tuple[Draw, Encodings]]:
        """The samples at global indices; in place of one that cannot be read comes the next of its bucket."""
        for position in positions:
            yield self._loaded(position)

    def close(self) -> None:
        """Stops the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _loaded(self, position: int) -> tuple[Draw, Encodings]:
        future = self._ahead.pop(position, None)
        for attempt in range(MOST_ATTEMPTS):
            draw = self._order.draw(position, attempt)
            try:
                found = future.result() if future is not None and attempt == 0 else self._read(draw)
                return draw, self._encoded(draw, found)
            except FileNotFoundError as problem:
                raise _gone(draw) from problem
            except BAD_CONTENT as problem:
                self._skipped.note(draw, f"{type(problem).__name__}: {problem}")
        raise DatasetError(f"none of {MOST_ATTEMPTS} clips tried for sample {position} can be read", code="run_failed")

    def _read(self, draw: Draw) -> _Found:
        """What must be read from the shard; None where the cache has it."""
        if draw.entry.latents is not None:
            return self._precomputed(draw, draw.entry.latents)
        if self._cache.get(_key(draw)) is not None:
            return None
        return read_window(_sample(draw), draw.window, draw.masked)

    def _precomputed(self, draw: Draw, latents: tuple[int, int]) -> Encodings | _Masked:
        start, length = latents
        with draw.entry.shard.open("rb", buffering=0) as stream:
            content = os.pread(stream.fileno(), length, start)
        value = encodings.from_bytes(content)
        if not all(torch.isfinite(moments).all() for moments in (value.video, value.pose, value.prompt)):
            raise DatasetError(f"the encodings of {draw.entry.key} are not finite", code="latents")
        if draw.masked == draw.entry.encoded_mask:
            return value
        image = value.reference_pixels.permute(1, 2, 0).numpy()
        masked = mask_encoded_reference(_sample(draw), draw.window, image, draw.masked)
        return _Masked(replace(value, reference_pixels=torch.tensor(masked).permute(2, 0, 1).contiguous()))

    def _encoded(self, draw: Draw, found: _Found) -> Encodings:
        if isinstance(found, Encodings):
            return found  # the page cache keeps files better than we could
        if isinstance(found, _Masked):
            return self._with_reference(found.encodings)
        key = _key(draw)
        kept = self._cache.get(key)
        if kept is not None:
            return kept
        # The cache may have let go of it since a thread looked.
        pixels = found if found is not None else read_window(_sample(draw), draw.window, draw.masked)
        value = self._frozen.encode(pixels)
        self._cache.put(key, value, EncodedBy(draw.window, "", "", draw.masked))  # the run stands for the weights
        return value

    def _with_reference(self, value: Encodings) -> Encodings:
        if self._clips.image_noise:
            return value  # encoded with its noise, when the batch is made
        pixels = value.reference_pixels.permute(1, 2, 0).numpy()
        return replace(value, reference=self._frozen.posterior(pixels[None]))


def _sample(draw: Draw) -> Sample:
    sample = read_sample(draw.entry.shard, draw.entry.offset)
    if sample.key != draw.entry.key:
        raise _gone(draw)
    return sample


def _key(draw: Draw) -> CacheKey:
    return CacheKey(draw.entry.key, draw.window.start, draw.masked)


def _gone(draw: Draw) -> DatasetError:
    shard = draw.entry.shard
    return DatasetError(
        f"shard {shard} is no longer what it was when the run began: a takedown, `reshard` or another curation changed "
        f"the data set. Put the shard back and run the same command to go on; or, where clips were taken down, begin "
        "another run in another --out on the data set as it is now, with --base set to a model exported from this run",
        code="run_failed",
    )
