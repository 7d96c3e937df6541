"""Greedy answers of a Qwen2-VL model to many clips at once.

`generate` of transformers launches some thousand small kernels a word from Python and grows its cache with each: at a
dozen clips the GPU waits for Python most of the time. Here the cache is one room of fixed size, a word is one recorded
CUDA graph, and Python looks in every few words. Answers are those of `generate` with greedy decoding.

Shape suffixes: R rows of the room, B clips of a batch, S prompt tokens, L tokens that the room holds, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynamictrl.captions.caption_attention import FrameAttention, group_heads

logger = logging.getLogger(__name__)

_LOOK_EVERY = 8
"""Words between two looks at whether all answers have ended; each look makes Python wait for the GPU."""
_LENGTH_STEP = 256
"""Tokens by which the room grows, so that a little more text needs no other graph."""
_WARM_UPS = 3


@dataclass(frozen=True)
class Limits:
    """How an answer is decoded."""

    max_new_tokens: int = 128
    least_new_tokens: int = 0
    """Tokens before which the answer may not end."""
    repetition_penalty: float = 1.0
    """Above 1: what the answer has said already becomes less likely (Keskar et al. 2019)."""


@dataclass(frozen=True)
class Asked:
    """A batch of prompts with their frames, on the model's device, padded on the left."""

    input_ids_BS: Tensor
    mask_BS: Tensor | None
    """False where padding is; None where there is none."""
    position_3BS: Tensor
    next_position_B: Tensor
    """Of the first word of each answer."""
    pixels: Tensor
    """All clips' patches, one after the other."""
    grid_B3: Tensor
    runs: tuple[tuple[int, int], ...]
    """(frames, patches of each) as `FrameAttention` takes them."""

    @property
    def rows(self) -> int:
        return self.input_ids_BS.shape[0]

    @property
    def length(self) -> int:
        return self.input_ids_BS.shape[1]


class GreedyDecoder:
    """Answers batches of one model; changes how the model attends, and nothing of what it computes."""

    def __init__(self, model: Any, ends: Sequence[int], padding: int, *, rows: int = 1, graphs: bool = True):  # noqa: ANN401
        """`ends`: tokens that end an answer; `rows`: clips at once on a GPU; `graphs`: whether to record there."""
        self._model = model
        self._ends, self._padding, self._rows = tuple(ends), padding, rows
        self._device: torch.device = model.device
        self._graphs = graphs and self._device.type == "cuda"
        self._vision = FrameAttention(model)
        group_heads(model)
        self._room: _Room | None = None

    @torch.inference_mode()
    def __call__(self, asked: Asked, limits: Limits) -> list[list[int]]:
        """The tokens of each answer, without the one that ends it."""
        # The room comes first: recording a graph needs memory that the prompts would take.
        room = self._room_for(asked, limits)
        cache, logits_BV = self._read(asked)
        room.enter(cache, asked, limits)
        del cache
        room.choose(logits_BV)
        for said in range(1, limits.max_new_tokens):
            if said % (_LOOK_EVERY if self._device.type == "cuda" else 1) == 0 and room.all_ended():
                break
            room.say()
        return [self._trimmed(row) for row in room.answers[: asked.rows].tolist()]

    def _read(self, asked: Asked) -> tuple[Any, Tensor]:
        """The prompts and frames through the model: their cache, and what it would say first."""
        from transformers import DynamicCache

        self._vision.runs = asked.runs
        try:
            seen = self._model.model(
                input_ids=asked.input_ids_BS,
                attention_mask=asked.mask_BS,
                position_ids=asked.position_3BS,
                pixel_values_videos=asked.pixels,
                video_grid_thw=asked.grid_B3,
                past_key_values=DynamicCache(config=self._model.config.get_text_config()),
                use_cache=True,
            )
        finally:
            self._vision.runs = ()
        return seen.past_key_values, self._model.lm_head(seen.last_hidden_state[:, -1])

    def _room_for(self, asked: Asked, limits: Limits) -> _Room:
        length = asked.length + limits.max_new_tokens
        if not self._graphs:
            return _Room(self._model, asked.rows, length, limits.max_new_tokens, self._ends, self._padding)
        old = self._room
        if old and old.rows >= asked.rows and old.length >= length and old.most >= limits.max_new_tokens:
            return old
        self._room = None  # frees the old one's memory before the new one takes its own
        length = -(-length // _LENGTH_STEP) * _LENGTH_STEP
        most = max(limits.max_new_tokens, old.most if old else 0)
        rows, length = max(self._rows, asked.rows), max(length, old.length if old else 0)
        self._room = _Room(self._model, rows, length, most, self._ends, self._padding)
        self._room.record()
        return self._room

    def _trimmed(self, tokens: list[int]) -> list[int]:
        for place, token in enumerate(tokens):
            if token in self._ends or token < 0:
                return tokens[:place]
        return tokens


class _Cache:
    """Keys and values of fixed size; what transformers' text model needs of a cache."""

    is_compileable = True

    def __init__(self, shape: tuple[int, ...], layers: int, place: Tensor, dtype: torch.dtype):
        self.place = place
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype, device=place.device) for _ in range(layers)] for _ in range(2)
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys.index_copy_(2, self.place, key_states)
        values.index_copy_(2, self.place, value_states)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        del layer_idx
        return self.keys[0].shape[2]


class _Room:
    """A batch being answered: all that one word reads and writes, at addresses that do not move."""

    def __init__(self, model: Any, rows: int, length: int, most: int, ends: Sequence[int], padding: int):  # noqa: ANN401
        self.rows, self.length, self.most = rows, length, most
        self._text, self._head = model.model.language_model, model.lm_head
        config, self._device = self._text.config, model.device

        def filled(shape: tuple[int, ...], value: float, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=self._device)

        self._ends, self._padding = torch.tensor(ends, device=self._device), filled((1,), padding)
        self._place = filled((1,), 0)
        heads, channels = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
        self._cache = _Cache((rows, heads, length, channels), config.num_hidden_layers, self._place, model.dtype)
        self._visible = filled((rows, 1, 1, length), 0, torch.bool)
        self._word, self._position = filled((rows, 1), padding), filled((3, rows, 1), 0)
        self._said = filled((rows, config.vocab_size), 0, torch.bool)
        self._ended = filled((rows,), 0, torch.bool)
        self._count, self._least = filled((1,), 0), filled((1,), 0)
        self._penalty = filled((1,), 1.0, torch.float)
        self.answers = filled((rows, max(most, _WARM_UPS + 2)), -1)
        self._graph: torch.cuda.CUDAGraph | None = None

    def enter(self, cache: Any, asked: Asked, limits: Limits) -> None:  # noqa: ANN401
        """Takes in a batch that the model has read; rows that it leaves empty have ended before they begin."""
        rows, length = asked.rows, asked.length
        for layer, given in enumerate(cache.layers):
            self._cache.keys[layer][:rows, :, :length] = given.keys
            self._cache.values[layer][:rows, :, :length] = given.values
        self._visible.zero_()
        self._visible[:rows, 0, 0, :length] = True if asked.mask_BS is None else asked.mask_BS.bool()
        self._position.zero_()
        self._position[:, :rows, 0] = asked.next_position_B
        self._ended.fill_(True)
        self._ended[:rows] = False
        self._place.fill_(length)
        self._said.zero_()
        self._count.zero_()
        self._least.fill_(limits.least_new_tokens)
        self._penalty.fill_(limits.repetition_penalty)
        self.answers.fill_(-1)

    def choose(self, logits_BV: Tensor) -> None:
        """Says the likeliest word of each row, from logits of all rows or of the first few."""
        rows = len(logits_BV)
        logits, said = logits_BV.float(), self._said[:rows]
        dampened = torch.where(logits > 0, logits / self._penalty, logits * self._penalty)
        logits = torch.where(said, dampened, logits)
        early = logits.index_select(1, self._ends).masked_fill(self._count < self._least, float("-inf"))
        logits.index_copy_(1, self._ends, early)
        word_B = torch.where(self._ended[:rows], self._padding, logits.argmax(dim=-1))
        self.answers[:rows].index_copy_(1, self._count, word_B[:, None])
        self._ended[:rows] |= (word_B[:, None] == self._ends).any(dim=1)
        said.scatter_(1, word_B[:, None], True)
        self._word[:rows, 0] = word_B
        self._count += 1

    def say(self) -> None:
        """One more word of every row."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._say()

    def _say(self) -> None:
        self._visible.index_fill_(3, self._place, True)
        hidden = self._text(
            inputs_embeds=self._text.embed_tokens(self._word),
            position_ids=self._position,
            attention_mask={"full_attention": self._visible},
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        self._place += 1
        self._position += 1
        self.choose(self._head(hidden[:, -1]))

    def all_ended(self) -> bool:
        return bool(self._ended.all())

    def record(self) -> None:
        """Records one word as a CUDA graph; where that fails, words are launched one by one as before."""
        if self._device.type != "cuda":
            return
        ready = torch.cuda.Stream()
        ready.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(ready):
            for _ in range(_WARM_UPS):
                self._say()
        torch.cuda.current_stream().wait_stream(ready)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads upload the next batch meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._say()
        except RuntimeError as problem:
            torch.cuda.synchronize()
            logger.warning("decoding could not be recorded as a CUDA graph (%s); it will be slower", problem)
            return
        self._graph = graph
