"""What a clip shows, in words: by Qwen2-VL, or from a text that lies beside the source."""

from __future__ import annotations

import json
import logging
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynamictrl.errors import InputError

logger = logging.getLogger(__name__)

DEFAULT_PROMPT = "Describe the person and the background."
"""The paper's wording (section 3.3)."""

_REFUSAL = re.compile(
    r"^\W*(i['\u2019]?m sorry|i am sorry|sorry\b|i apologi[sz]e|i (can(no|['\u2019])t|can not|am unable|am not able)|"
    r"i['\u2019]m (unable|not able)|as an ai\b|unfortunately,? i\b|i do(n['\u2019]t| not) (see|have))",
    re.IGNORECASE,
)
# The same few characters to the same few sentences, four times in a row.
_LOOP = re.compile(r"(.{2,160}?)\1{3,}", re.DOTALL)
_LEAST_TOKENS = 128
"""Of a frame: what qwen-vl-utils enlarges smaller frames to, unless told otherwise."""
_LONG, _LEAST_DISTINCT = 40, 0.3


def caption_problem(text: str) -> str | None:
    """Why a caption must not be trained on: "empty_caption", "caption_refusal" or "caption_loop"; None if it may."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        return "empty_caption"
    if _REFUSAL.match(text):
        return "caption_refusal"
    if _LOOP.search(text.lower()) or (len(words) >= _LONG and len(set(words)) < _LEAST_DISTINCT * len(words)):
        return "caption_loop"
    return None


class Qwen2VLCaptioner:
    """Captions by a Qwen2-VL model, decoded greedily: the same clip gives the same words."""

    def __init__(
        self,
        folder: str | Path = "Qwen/Qwen2-VL-7B-Instruct",
        device: str = "cuda",
        *,
        prompt: str = DEFAULT_PROMPT,
        max_new_tokens: int = 128,
        max_frames: int = 16,
        max_pixels: int = 360 * 640,
    ):
        """`folder`: local folder or hub id; `max_frames`: frames shown, spread over the clip; `max_pixels`: of each.

        The folder's own preparation may set smaller limits.
        Raises CheckpointError where the weights cannot be had, InputError for a setting out of range.
        """
        if min(max_new_tokens, max_frames) < 1:
            raise InputError(
                f"max_new_tokens is {max_new_tokens} and max_frames {max_frames}; both must be at least 1",
                code="bad_caption_setting",
            )
        import torch
        from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

        from dynamictrl.weights import resolve

        path = resolve(folder, ("config.json", "*.safetensors"))
        self.model_id = str(folder)
        self.prompt, self.max_new_tokens = prompt, max_new_tokens
        self.device = device
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self.preparation: Any = AutoProcessor.from_pretrained(path, local_files_only=True)
        shown: Any = self.preparation.video_processor
        # A model made for fewer or smaller frames says so in its folder.
        self.max_frames = min(max_frames, shown.max_frames)
        self.max_pixels = min(max_pixels, shown.size["longest_edge"])
        self._min_pixels: int = shown.size["shortest_edge"]
        # qwen-vl-utils knows tokens of 2 x 2 patches only, and counts in such patches.
        self._patch = shown.patch_size * shown.merge_size // 2
        model: Any = Qwen2VLForConditionalGeneration.from_pretrained(path, local_files_only=True, dtype=dtype)
        self.model = model.to(device).eval()
        self._folder = path

    @cached_property
    def weights_sha256(self) -> str:
        """One hash over the weight files and the preparation, for the record of what shaped a caption."""
        from dynamictrl.encodings import folder_hash

        return folder_hash(self._folder)

    def __call__(self, frames: NDArray[np.uint8]) -> str:
        """[F, H, W, 3] RGB -> the caption, stripped; see `caption_problem` before trusting it."""
        import torch

        if len(frames) == 0:
            raise InputError("there are no frames to describe", code="no_frames")
        inputs = self._inputs(frames)
        with torch.inference_mode():
            # Sampling settings that a checkpoint carries are switched off, or greedy decoding would warn of them.
            tokens = self.model.generate(
                **inputs, max_new_tokens=self.max_new_tokens, do_sample=False, temperature=None, top_p=None, top_k=None
            )
        answer = tokens[:, inputs["input_ids"].shape[1] :]
        return self.preparation.batch_decode(answer, skip_special_tokens=True)[0].strip()

    def _inputs(self, frames: NDArray[np.uint8]) -> Any:  # noqa: ANN401 - transformers' BatchFeature is untyped
        from qwen_vl_utils import process_vision_info

        chosen = np.linspace(0, len(frames) - 1, min(len(frames), self.max_frames)).round().astype(int)
        # Decoded by us: qwen-vl-utils would read the file again, without its rotation and time stamps.
        shown = [Image.fromarray(frames[index]) for index in chosen]
        video: dict[str, Any] = {"type": "video", "video": shown, "max_pixels": self.max_pixels}
        if self.max_pixels < _LEAST_TOKENS * (2 * self._patch) ** 2:
            video["min_pixels"] = min(self._min_pixels, self.max_pixels)
        messages = [{"role": "user", "content": [video, {"type": "text", "text": self.prompt}]}]
        text = self.preparation.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        images, videos = process_vision_info(messages, image_patch_size=self._patch)[:2]
        inputs = self.preparation(
            text=[text], images=images, videos=videos, do_sample_frames=False, padding=True, return_tensors="pt"
        )
        return inputs.to(self.device)


class SidecarCaptioner:
    """Captions that came with the videos: `<video stem>.json` beside each, as the marionettes have.

    `{"shots": [{"start": seconds, "end": seconds, "caption": text}, ...]}`, or `{"caption": text}` for the whole video.
    """

    model_id = "sidecar"

    def caption(self, source_path: Path, start: float, end: float) -> str | None:
        """The text of the shot that covers most of [start, end] seconds; None where there is none, or no such file."""
        path = Path(source_path).with_suffix(".json")
        try:
            written = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("the captions in %s cannot be read: %s", path, error)
            return None
        if not isinstance(written, dict):
            logger.warning("the captions in %s are no JSON object with `shots` or `caption`", path)
            return None
        best, longest = written.get("caption"), 0.0
        for shot in written.get("shots") or ():
            covered = min(end, float(shot.get("end", end))) - max(start, float(shot.get("start", start)))
            if covered > longest and shot.get("caption"):
                best, longest = shot["caption"], covered
        return str(best) if best else None
