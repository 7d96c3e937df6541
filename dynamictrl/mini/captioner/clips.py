"""The pool's clips, and the captions that the captioner should give them, on the training device."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from dynamictrl.mini.captioner.tokenizer import END, token_id
from dynamictrl.mini.captioner.wording import canonical_caption, mirrored
from dynamictrl.mini.stream import CLOTHES, PERSON, Pool

LONGEST_ANSWER = 44
"""Tokens, the end included; a test holds it against the longest caption there can be."""
_AT_ONCE = 32


def answer_ids(tokenizer: PreTrainedTokenizerFast, attributes: Mapping[str, Any]) -> list[int]:
    """The canonical caption's tokens and the end, padded with the end."""
    end = token_id(tokenizer, END)
    ids = tokenizer(canonical_caption(attributes))["input_ids"]
    assert len(ids) < LONGEST_ANSWER, (len(ids), LONGEST_ANSWER)
    return [*ids, *[end] * (LONGEST_ANSWER - len(ids))]


REGIONS = 5
"""Nobody; the first person's body, the first person's clothes; the second's."""


def regions_of(masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Masks as the pool keeps them, as numbers of REGIONS."""
    person, clothed = masks & PERSON, masks >= CLOTHES
    return np.where(person == 0, 0, np.minimum(2 * person - 1 + clothed, REGIONS - 1)).astype(np.uint8)


class CaptionedClips:
    """Every second frame of each complete clip, with its answer and its mirror image's answer.

    `grow` takes up what workers finished since; `keep_growing` does so beside the training, from a thread.
    """

    def __init__(self, pool: Pool, tokenizer: PreTrainedTokenizerFast, device: str, most: int | None = None):
        """`most` clips at the most: 1.04 MB of the device's memory each."""
        self.pool, self.tokenizer, self.device = pool, tokenizer, device
        count = min(pool.count, most or pool.count)
        frames, height, width, _ = pool.video[0, ::2].shape
        self.video = torch.empty((count, frames, height, width, 3), dtype=torch.uint8, device=device)
        self.regions = torch.empty((count, frames, height // 2, width // 2), dtype=torch.uint8, device=device)
        """What every second pixel of every second row shows, see `regions_of`."""
        self.people_N = torch.ones(count, dtype=torch.long, device=device)
        self.answers_N2A = torch.zeros((count, 2, LONGEST_ANSWER), dtype=torch.long, device=device)
        self.available = 0
        self.count = torch.zeros((), device=device)
        """As `available`, where a CUDA graph sees it change."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def grow(self, least: int = 1) -> int:
        """Takes up every clip that is complete; waits until there are `least`. Returns how many there are."""
        while True:
            prefix = min(self.pool.complete(), len(self.video))
            for start in range(self.available, prefix, _AT_ONCE):
                if self._stop.is_set():
                    return self.available
                self._take(slice(start, min(start + _AT_ONCE, prefix)))
            if self.available >= min(least, len(self.video)):
                return self.available
            time.sleep(1.0)

    def _take(self, part: slice) -> None:
        self.video[part] = torch.from_numpy(np.ascontiguousarray(self.pool.video[part, ::2])).to(self.device)
        regions = regions_of(np.ascontiguousarray(self.pool.masks[part, ::2, ::2, ::2]))
        self.regions[part] = torch.from_numpy(regions).to(self.device)
        attributes = [self.pool.attributes(index) for index in range(part.start, part.stop)]
        answers = [[answer_ids(self.tokenizer, seen) for seen in (a, mirrored(a))] for a in attributes]
        self.answers_N2A[part] = torch.tensor(answers, device=self.device)
        self.people_N[part] = torch.tensor([a["count"] for a in attributes], device=self.device)
        self.available = part.stop
        self.count.fill_(part.stop)

    def keep_growing(self) -> None:
        """Grows from now on, beside the caller. To be started after a CUDA graph is captured, never during that."""
        self._thread = threading.Thread(target=self._grow_on, daemon=True)
        self._thread.start()

    def _grow_on(self) -> None:
        # A stream of its own: the copies need not wait for the training's queue, nor it for them.
        own = torch.cuda.Stream() if self.device.startswith("cuda") else None
        with torch.cuda.stream(own):
            while not self._stop.wait(1.0) and self.available < len(self.video):
                self.grow()

    def stop(self) -> None:
        """Ends `keep_growing`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        self._stop = threading.Event()
