"""Says in words what a clip shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines.clip import Clip
from pipelines.stage import Stage, check_weights, resource

if TYPE_CHECKING:
    from dynamictrl.captioning import Qwen2VLCaptioner

SIDECAR = "sidecar"


@dataclass(frozen=True)
class Caption(Stage):
    """Captions a clip with a vision-language model, or takes the text that lies beside its source."""

    captioner: str = "Qwen/Qwen2-VL-7B-Instruct"
    """Hub id or local folder of a Qwen2-VL model, or `mini/captioner`; `sidecar` reads `<video stem>.json` beside a
    local source."""
    prompt: str = "Describe the person and the background."
    """What the model is asked (the paper's wording)."""
    max_new_tokens: int = 128
    """Tokens after which the model is cut short."""
    required: bool = True
    """Refuse clips that get no caption to train on (none, a refusal, a loop); otherwise they are kept with an empty one
    and the reason as their `message`."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where the model runs."""
    gpu_share: float = resource(0.5)
    """Share of one GPU that a worker takes, where `device` is cuda."""

    @property
    def num_gpus(self) -> float:
        return self.gpu_share if self.device == "cuda" and self.captioner != SIDECAR else 0.0

    @cached_property
    def _model(self) -> Qwen2VLCaptioner:
        from dynamictrl.captioning import Qwen2VLCaptioner

        return Qwen2VLCaptioner(self.captioner, self.device, prompt=self.prompt, max_new_tokens=self.max_new_tokens)

    @property
    def _say(self) -> Callable[[Clip], str]:
        return _read_sidecar if self.captioner == SIDECAR else self._look

    def _look(self, clip: Clip) -> str:
        from dynamictrl.video import read_video

        return self._model(read_video(clip.file("mp4")).frames)

    @property
    def _models(self) -> dict[str, str]:
        if self.captioner == SIDECAR:
            return {"caption": SIDECAR}
        return {"caption": self._model.model_id, "caption sha256": self._model.weights_sha256}

    def check(self) -> None:
        if self.captioner != SIDECAR:
            check_weights(self.captioner, ["config.json"])

    def setup(self) -> None:
        if self.captioner != SIDECAR:
            _ = self._model

    def process(self, clip: Clip) -> Iterable[Clip]:
        from dynamictrl.captioning import caption_problem

        # Line breaks would split a caption where it is listed one a line.
        text = " ".join(self._say(clip).split())
        problem = caption_problem(text)
        said = replace(clip, caption="" if problem else text).with_models(**self._models)
        said = said.with_scores(caption_words=len(said.caption.split()))
        if problem is None:
            yield said
            return
        reason = (
            f"{problem}: {self.captioner} said {_excerpt(text)}"
            if text
            else f"{problem}: {self.captioner} gave no text"
        )
        yield said.reject(problem, reason) if self.required else replace(said, message=reason)


def _excerpt(text: str, longest: int = 80) -> str:
    return repr(text if len(text) <= longest else f"{text[:longest]}...")


def _read_sidecar(clip: Clip) -> str:
    from dynamictrl.captioning import SidecarCaptioner

    return SidecarCaptioner().caption(Path(clip.path), clip.start, clip.end) or ""
