"""Looks at clips, and a question, as tensors of a Qwen2-VL model on its device: one batch, padded on the left.

Shape suffixes: F frames, C channels, H W pixels, B clips, S prompt tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dynamictrl.captions.caption_attention import frame_runs
from dynamictrl.captions.caption_decoding import Asked
from dynamictrl.captions.caption_frames import Look

_VIDEO = 2
"""transformers' kind of a token that stands for a piece of video; 0 is text."""


class Asking:
    """Prepares batches for one model. Runs beside it: on a GPU in a stream of its own."""

    def __init__(self, model: Any, preparation: Any):  # noqa: ANN401 - transformers' classes are untyped
        self._model, self._preparation = model, preparation
        self._video_token: int = model.config.video_token_id
        tokenizer = preparation.tokenizer
        self.padding: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        # Sizes are decided by our own rules before; the question of transformers 5.23 does not arise.
        preparation.video_processor.cap_pixels_per_frame = False
        self._question = lru_cache(maxsize=8)(self._tokenized)
        self._stream = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None

    def __call__(self, looks: Sequence[Look], prompt: str) -> Asked:
        """At least one look; the result is complete on the device when this returns."""
        with torch.inference_mode(), torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            asked = self._laid_out(looks, prompt)
            if self._stream:
                self._stream.synchronize()
        return asked

    def kinds(self, input_ids_BS: Tensor) -> Tensor:
        """[B, S], transformers' `mm_token_type_ids`."""
        return (input_ids_BS == self._video_token).long() * _VIDEO

    def _laid_out(self, looks: Sequence[Look], prompt: str) -> Asked:
        seen = self._preparation.video_processor(
            videos=[torch.from_numpy(look.pixels_FHW3).permute(0, 3, 1, 2) for look in looks],
            do_resize=False,
            do_sample_frames=False,
            device=self._model.device,
            return_tensors="pt",
        )
        grid_B3 = seen["video_grid_thw"].cpu()
        input_ids_BS, mask_BS = self._prompts(prompt, grid_B3)
        position_3BS, past_B1 = self._model.model.get_rope_index(
            input_ids_BS, self.kinds(input_ids_BS), video_grid_thw=grid_B3, attention_mask=mask_BS
        )
        device, padded = self._model.device, not bool(mask_BS.all())
        return Asked(
            input_ids_BS=input_ids_BS.to(device),
            mask_BS=mask_BS.to(device) if padded else None,
            position_3BS=position_3BS.to(device),
            next_position_B=(mask_BS.sum(dim=1) + past_B1[:, 0]).to(device),
            pixels=seen["pixel_values_videos"].to(device),
            grid_B3=grid_B3.to(device),
            runs=tuple(frame_runs([(int(t), int(h), int(w)) for t, h, w in grid_B3])),
        )

    def _prompts(self, prompt: str, grid_B3: Tensor) -> tuple[Tensor, Tensor]:
        """The question with as many video tokens as each clip has, and where it is no padding."""
        before, after = self._question(prompt)
        merged = self._preparation.video_processor.merge_size**2
        counts = (grid_B3.prod(dim=1) // merged).tolist()
        longest = max(counts) + len(before) + len(after)
        input_ids_BS = torch.full((len(counts), longest), self.padding)
        for row, count in zip(input_ids_BS, counts, strict=True):
            told = [*before, *[self._video_token] * count, *after]
            row[longest - len(told) :] = torch.tensor(told)
        lengths_B = torch.tensor(counts) + len(before) + len(after)
        mask_BS = torch.arange(longest)[None] >= longest - lengths_B[:, None]
        return input_ids_BS, mask_BS.long()

    def _tokenized(self, prompt: str) -> tuple[list[int], list[int]]:
        """The tokens before and after the place of the frames."""
        tokens: list[int] = self._preparation.tokenizer(question_text(self._preparation, prompt))["input_ids"]
        place = tokens.index(self._video_token)
        return tokens[:place], tokens[place + 1 :]


def question_text(preparation: Any, prompt: str) -> str:  # noqa: ANN401
    """The question about one video in the model's chat template, with one token in the place of the video."""
    content = [{"type": "video"}, {"type": "text", "text": prompt}]
    return preparation.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
