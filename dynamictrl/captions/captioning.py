"""What a clip shows, in words: how a model is asked, what is no caption, and captions that lie beside a source.

The model itself is in `qwen_captioning`; this file loads nothing heavy.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Manner:
    """How a model is asked: what shapes an answer besides frames and weights."""

    prompt: str = DEFAULT_PROMPT
    max_new_tokens: int = 128
    least_new_tokens: int = 0
    """Tokens before which the answer may not end."""
    repetition_penalty: float = 1.0
    """Above 1: words said already become less likely."""

    def __post_init__(self):
        if self.max_new_tokens < 1 or not 0 <= self.least_new_tokens <= self.max_new_tokens:
            raise InputError(
                f"max_new_tokens is {self.max_new_tokens} and least_new_tokens {self.least_new_tokens}; the first must "
                f"be at least 1 and at least the second",
                code="bad_caption_setting",
            )

    @property
    def decoding(self) -> str:
        """In words, for the record."""
        parts = ["greedy", f"{self.max_new_tokens} tokens at most"]
        parts += [f"{self.least_new_tokens} at least"] if self.least_new_tokens else []
        parts += [f"repetition penalty {self.repetition_penalty:g}"] if self.repetition_penalty != 1 else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Answer:
    """What a model said of one clip, and what of the clip it had seen."""

    key: str
    text: str
    tokens: int
    """Of the answer."""
    manner: Manner
    indices: tuple[int, ...]
    """Of the frames shown, in the clip."""
    times: tuple[float, ...]
    """Seconds, of the same."""


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
