"""Says in words what a clip shows.

| reason | meaning |
|---|---|
| empty_caption | no words |
| caption_refusal | the model declines instead of describing |
| caption_loop | the same words over and over |
| (codes of `dynamictrl.media.video`) | the clip's frames cannot be decoded |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from dynamictrl.errors import ConfigError, InputError
from pipelines.clip import Clip
from pipelines.stage import Stage, check_weights, resource

if TYPE_CHECKING:
    from dynamictrl.captions.caption_frames import Footage
    from dynamictrl.captions.captioning import Answer, Manner
    from dynamictrl.captions.qwen_captioning import Qwen2VLCaptioner

SIDECAR = "sidecar"
LEAST_TOKENS_AGAIN = 12
PENALTY_AGAIN = 1.1
"""Of a second try: an answer must say something, and not the same thing again."""


@dataclass(frozen=True)
class Caption(Stage):
    """Captions a clip with a vision-language model, or takes the text that lies beside its source.

    What comes out as no caption (nothing, a refusal, a loop) is asked for once more in other words and with repetition
    damped. `scores` say how many frames, tokens and tries a caption took; `models` which weights, prompt and frames.
    """

    reads: ClassVar[tuple[str, ...] | None] = ("mp4",)
    version: ClassVar[int] = 2
    seconds_per_frame: ClassVar[float] = 0.002

    captioner: str = "Qwen/Qwen2-VL-7B-Instruct"
    """Hub id or local folder of a Qwen2-VL model, or `mini/captioner`; `sidecar` reads `<video stem>.json` beside a
    local source."""
    prompt: str = "Describe the person and the background."
    """What the model is asked (the paper's wording)."""
    second_prompt: str = (
        "What does the person in this video wear and do, and what is around them? Answer in a few sentences."
    )
    """What it is asked where the first answer is no caption; empty = it is not asked again."""
    max_new_tokens: int = 128
    """Tokens after which the model is cut short."""
    max_frames: int = 16
    """Frames shown of each clip, spread evenly over it."""
    max_pixels: int = 360 * 640
    """Pixels of each frame that is shown; larger ones are shrunk."""
    required: bool = True
    """Refuse clips that get no caption to train on (none, a refusal, a loop); otherwise they are kept with an empty one
    and the reason as their `message`."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What runs the model: `vllm` needs a GPU cluster with ray[llm] installed, and is faster still for many clips."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where the model runs."""
    gpu_share: float = resource(0.5)
    """Share of one GPU that a worker takes, where `device` is cuda."""
    batch: int = field(default=16, metadata={"resource": True})
    """Clips described at once where `device` is cuda; more are faster until the GPU's memory is full."""
    readers: int = field(default=4, metadata={"resource": True})
    """Threads that decode the next clips meanwhile; also the processor cores that a worker takes."""

    def __post_init__(self):
        small = min(self.max_new_tokens, self.max_frames, self.batch, self.readers)
        if small < 1 or self.max_pixels < 28 * 28:
            raise ConfigError(
                f"max_new_tokens is {self.max_new_tokens}, max_frames {self.max_frames}, batch {self.batch}, readers "
                f"{self.readers} (each at least 1), max_pixels {self.max_pixels} (at least 784)",
                param="caption",
            )
        if self.engine == "vllm" and (self.device == "cpu" or self.captioner == SIDECAR):
            raise ConfigError(
                f"engine vllm runs a model on GPUs; with captioner {self.captioner} on {self.device} take engine "
                "transformers",
                param="engine",
            )

    @property
    def weights(self) -> tuple[str, ...]:
        return () if self.captioner == SIDECAR else (self.captioner,)

    @property
    def num_cpus(self) -> float:
        return float(self.readers) if self.num_gpus else 1.0

    @property
    def num_gpus(self) -> float:
        """None for vLLM, whose engines are not our workers."""
        own = self.device == "cuda" and self.captioner != SIDECAR and self.engine == "transformers"
        return self.gpu_share if own else 0.0

    @property
    def memory_gib(self) -> float:
        """Frames of three batches, and weights on their way to the GPU."""
        return 8.0 if self.num_gpus else 0.0

    def check(self) -> None:
        if self.captioner != SIDECAR:
            check_weights(self.captioner, ["config.json"])

    def setup(self) -> None:
        if self.captioner != SIDECAR and self.engine == "transformers":
            _ = self.model

    @cached_property
    def model(self) -> Qwen2VLCaptioner:
        """The captioner that runs in this worker; not for `sidecar`."""
        from dynamictrl.captions.qwen_captioning import Qwen2VLCaptioner

        return Qwen2VLCaptioner(
            self.captioner,
            self.device,
            prompt=self.prompt,
            max_new_tokens=self.max_new_tokens,
            max_frames=self.max_frames,
            max_pixels=self.max_pixels,
            # Sums over a batch cost a processor as much as one by one.
            batch=self.batch if self.device == "cuda" else 1,
            readers=self.readers,
        )

    def process(self, clip: Clip) -> Iterable[Clip]:
        return self.process_many([clip])

    def process_many(self, clips: Sequence[Clip]) -> Iterable[Clip]:
        """Describes clips in batches, joined to their answers by key."""
        if self.captioner == SIDECAR:
            yield from (self._from_beside(clip) for clip in clips)
            return
        answers = self.model.describe([footage_of(clip) for clip in clips])
        again = [clip for clip in clips if self.second_prompt and _is_no_caption(answers[clip.key])]
        seconds = self.model.describe([footage_of(clip) for clip in again], self.second_manner) if again else {}
        yield from self.joined(clips, answers, seconds, self.model.weights_sha256)

    @property
    def second_manner(self) -> Manner:
        """How a clip is asked about again."""
        from dynamictrl.captions.captioning import Manner

        least = min(LEAST_TOKENS_AGAIN, self.max_new_tokens)
        return Manner(self.second_prompt, self.max_new_tokens, least, PENALTY_AGAIN)

    def joined(
        self,
        clips: Sequence[Clip],
        answers: Mapping[str, Answer | InputError],
        seconds: Mapping[str, Answer | InputError],
        weights_sha256: str,
    ) -> Iterable[Clip]:
        """The clips with what was said of each: the second answer where there is one. Whatever ran the model."""
        for clip in clips:
            said = seconds.get(clip.key, answers[clip.key])
            if isinstance(said, InputError):
                yield clip.reject(said.code, str(said))
                continue
            known = clip.with_models(
                caption=self.captioner,
                **{
                    "caption sha256": weights_sha256,
                    "caption prompt": said.manner.prompt,
                    "caption decoding": said.manner.decoding,
                    "caption frames": " ".join(map(str, said.indices)),
                },
            )
            tries = 1 + (clip.key in seconds)
            known = known.with_scores(caption_frames=len(said.indices), caption_tokens=said.tokens, caption_tries=tries)
            yield self._decided(known, said.text)

    def _from_beside(self, clip: Clip) -> Clip:
        from dynamictrl.captions.captioning import SidecarCaptioner

        text = SidecarCaptioner().caption(Path(clip.path), clip.start, clip.end) or ""
        return self._decided(clip.with_models(caption=SIDECAR), text)

    def _decided(self, clip: Clip, said: str) -> Clip:
        from dynamictrl.captions.captioning import caption_problem

        # Line breaks would split a caption where it is listed one a line.
        text = " ".join(said.split())
        problem = caption_problem(text)
        clip = replace(clip, caption="" if problem else text)
        clip = clip.with_scores(caption_words=len(clip.caption.split()))
        if problem is None:
            return clip
        told = f"said {_excerpt(text)}" if text else "gave no text"
        reason = f"{problem}: {self.captioner} {told}"
        return clip.reject(problem, reason) if self.required else replace(clip, message=reason)


def footage_of(clip: Clip) -> Footage:
    """A clip as a captioner knows it."""
    from dynamictrl.captions.caption_frames import Footage

    return Footage(clip.key, clip.file("mp4"), clip.frames, clip.height, clip.width)


def _is_no_caption(answer: Answer | InputError) -> bool:
    from dynamictrl.captions.captioning import caption_problem

    return not isinstance(answer, InputError) and caption_problem(answer.text) is not None


def _excerpt(text: str, longest: int = 80) -> str:
    return repr(text if len(text) <= longest else f"{text[:longest]}...")
