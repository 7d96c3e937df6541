"""What a clip shows, in the words of a Qwen2-VL model: many clips at once, the next ones decoded meanwhile."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamictrl.captions.caption_asking import Asking
from dynamictrl.captions.caption_decoding import Asked, GreedyDecoder, Limits
from dynamictrl.captions.caption_frames import LEAST_TOKENS, Footage, FrameRules, Look
from dynamictrl.captions.captioning import DEFAULT_PROMPT, Answer, Manner
from dynamictrl.errors import InputError
from dynamictrl.read_ahead import ahead

logger = logging.getLogger(__name__)

BATCHES_AHEAD = 2
"""Batches that are decoded and laid out while one is answered."""


class Qwen2VLCaptioner:
    """Captions by a Qwen2-VL model, decoded greedily: the same clip gives the same words.

    On a GPU sums are in bf16, and the clips of a batch may move a word's likelihood in the last digit.
    """

    def __init__(
        self,
        folder: str | Path = "Qwen/Qwen2-VL-7B-Instruct",
        device: str = "cuda",
        *,
        prompt: str = DEFAULT_PROMPT,
        max_new_tokens: int = 128,
        max_frames: int = 16,
        max_pixels: int = 360 * 640,
        batch: int = 1,
        readers: int = 4,
        loaded: tuple[Any, Any] | None = None,
    ):
        """`folder`: local folder or hub id; `max_frames`: frames shown, spread over the clip; `max_pixels`: of each;
        `batch`: clips answered at once; `readers`: threads that decode ahead; `loaded`: model and preparation that are
        in memory already, `folder` is then their name.

        The folder's own preparation may set smaller limits.
        Raises CheckpointError where the weights cannot be had, InputError for a setting out of range.
        """
        self.manner = Manner(prompt, max_new_tokens)
        if min(max_frames, batch, readers) < 1:
            raise InputError(
                f"max_frames is {max_frames}, batch {batch} and readers {readers}; each must be at least 1",
                code="bad_caption_setting",
            )
        self.model_id, self.device, self.batch, self.readers = str(folder), device, batch, readers
        self._folder = None if loaded else _weights(folder)
        model, self.preparation = loaded or _load(self._folder, device)
        self.model = model.to(device).eval()
        self.rules = frame_rules(self.preparation, max_frames, max_pixels)
        self._asking = Asking(self.model, self.preparation)
        ends = self.model.generation_config.eos_token_id
        ends = (
            ends if isinstance(ends, list) else [ends if ends is not None else self.preparation.tokenizer.eos_token_id]
        )
        self._decoder = GreedyDecoder(self.model, ends, self._asking.padding, rows=batch)
        self._turn = threading.Lock()

    @property
    def max_frames(self) -> int:
        return self.rules.max_frames

    @property
    def max_pixels(self) -> int:
        return self.rules.max_pixels

    @cached_property
    def weights_sha256(self) -> str:
        """One hash over the weight files and the preparation, for the record of what shaped a caption; "" where the
        model came from memory."""
        from dynamictrl.samples.encodings import folder_hash

        return folder_hash(self._folder) if self._folder else ""

    def __call__(self, frames: NDArray[np.uint8]) -> str:
        """[F, H, W, 3] RGB -> the caption, stripped; see `caption_problem` before trusting it."""
        return self.answer([self.rules.look("", frames)])[0].text

    def describe(self, footage: Iterable[Footage], manner: Manner | None = None) -> dict[str, Answer | InputError]:
        """Every clip's answer by its key, or why its frames cannot be shown.

        The next batches are decoded and laid out on the GPU by other threads while one is answered. Batches are of
        clips that take equally many tokens, and depend on nothing but the clips. May run in several threads at once:
        answering is then one's turn after the other's.
        """
        manner = manner or self.manner
        batches = self._batches(list(footage))
        found: dict[str, Answer | InputError] = {}
        with ThreadPoolExecutor(self.readers) as readers, ThreadPoolExecutor(1) as layers:

            def lay_out(batch: list[Footage]) -> Future[_Batch]:
                reading = [readers.submit(self._read, clip) for clip in batch]
                return layers.submit(lambda: self._laid_out([look.result() for look in reading], manner))

            for batch in ahead(batches, lay_out, BATCHES_AHEAD):
                found |= batch.unseen | {answer.key: answer for answer in self._answered(batch, manner)}
        return found

    def answer(self, looks: Sequence[Look], manner: Manner | None = None) -> list[Answer]:
        """Answers to clips that are decoded already, in their order."""
        manner = manner or self.manner
        return self._answered(self._laid_out(looks, manner), manner)

    def _batches(self, footage: list[Footage]) -> list[list[Footage]]:
        """Clips of equal length in tokens together: nothing is then padded."""
        order = sorted(footage, key=lambda clip: (self.rules.tokens(clip), clip.height, clip.width, clip.key))
        return [order[start : start + self.batch] for start in range(0, len(order), self.batch)]

    def _read(self, clip: Footage) -> Look | tuple[str, InputError]:
        try:
            return self.rules.read(clip)
        except InputError as problem:
            return clip.key, problem

    def _laid_out(self, found: Sequence[Look | tuple[str, InputError]], manner: Manner) -> _Batch:
        looks = [look for look in found if isinstance(look, Look)]
        asked = self._asking(looks, manner.prompt) if looks else None
        return _Batch(looks, asked, dict(pair for pair in found if not isinstance(pair, Look)))

    def _answered(self, batch: _Batch, manner: Manner) -> list[Answer]:
        if batch.asked is None:
            return []
        import torch

        limits = Limits(manner.max_new_tokens, manner.least_new_tokens, manner.repetition_penalty)
        try:
            with self._turn:
                said = self._decoder(batch.asked, limits)
        except torch.OutOfMemoryError:
            if len(batch.looks) == 1:
                raise
            half = len(batch.looks) // 2
            logger.warning("%d clips at once do not fit in the GPU's memory; halving", len(batch.looks))
            batch.asked = None
            parts = (batch.looks[:half], batch.looks[half:])
            return [answer for part in parts for answer in self.answer(part, manner)]
        texts = self.preparation.tokenizer.batch_decode(said, skip_special_tokens=True)
        return [
            Answer(look.key, text.strip(), len(tokens), manner, look.indices, look.times)
            for look, text, tokens in zip(batch.looks, texts, said, strict=True)
        ]

    def _inputs(self, frames: NDArray[np.uint8]) -> dict[str, Any]:
        """What the model's class takes for one clip, as transformers' own preparation gives it."""
        asked = self._asking([self.rules.look("", frames)], self.manner.prompt)
        return {
            "input_ids": asked.input_ids_BS,
            "attention_mask": asked.input_ids_BS.new_ones(asked.input_ids_BS.shape),
            "mm_token_type_ids": self._asking.kinds(asked.input_ids_BS),
            "pixel_values_videos": asked.pixels,
            "video_grid_thw": asked.grid_B3,
        }


@dataclass
class _Batch:
    """Clips whose frames lie on the GPU, and those that could not be read."""

    looks: list[Look]
    asked: Asked | None
    unseen: dict[str, InputError]


def _weights(folder: str | Path) -> Path:
    from dynamictrl.weights import resolve

    return resolve(folder, ("config.json", "*.safetensors"))


def _load(path: Path | None, device: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    assert path
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    preparation: Any = AutoProcessor.from_pretrained(path, local_files_only=True)
    return Qwen2VLForConditionalGeneration.from_pretrained(path, local_files_only=True, dtype=dtype), preparation


def frame_rules(preparation: Any, max_frames: int, max_pixels: int) -> FrameRules:  # noqa: ANN401
    """What a model is shown, within limits; one made for fewer or smaller frames says so in its folder."""
    shown = preparation.video_processor
    factor = shown.patch_size * shown.merge_size
    most = min(max_pixels, shown.size["longest_edge"])
    least = LEAST_TOKENS * factor**2
    if most < least:
        least = min(shown.size["shortest_edge"], most)
    return FrameRules(min(max_frames, shown.max_frames), most, least, factor)
