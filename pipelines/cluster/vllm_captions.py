"""Captions by vLLM through Ray Data, for clusters with GPUs: the stage `Caption` with another engine under it.

What Ray and vLLM were seen to do, and what is done about it:

* Every column rides through the processor: rows hold a key, a path and the frames, never a clip's bytes.
* Ray's multimodal stage fails a whole batch over one bad file: frames are decoded here, handed over as
  `multimodal_data` under the clip's key, and that stage is left out. A file that cannot be decoded is marked as Ray
  marks failed requests, and passes the engine by.
* Answers come in any order: they are joined to clips by key. One too many, one too few or one unknown is an error.
* A whole number of workers means "from one up to": a fixed number is said as a pair.
* A dead engine is started again without end: here a few times.

Needs ray[llm] on the cluster. The other file of this folder that imports Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.data
from ray.data import Dataset

from dynamictrl.captions.caption_frames import Footage, FrameRules
from dynamictrl.captions.captioning import Answer, Manner, caption_problem
from dynamictrl.errors import ConfigError, InputError, MediaError
from pipelines.clip import Clip
from pipelines.stages.caption import Caption, footage_of

if TYPE_CHECKING:
    from ray.data.llm import vLLMEngineProcessorConfig

ERROR = "__inference_error__"
"""Ray's column for why a row has no answer; "" = it has one."""
UNREADABLE = "unreadable: "
"""Begins our own message there, with a reason code: `unreadable: CODE: message`."""
RETRIES = 2
CLIPS_AT_ONCE = 32
"""In a batch of Ray's; several batches are in the engine at a time."""
_TEXT_TOKENS = 128
"""Room for a question in words."""

Process = Callable[[Dataset], Dataset]
"""Adds answers to asked rows; in production vLLM's processor."""


@dataclass(frozen=True)
class Question:
    """What every clip is asked: makes vLLM's request of a row that names a clip. Travels to Ray's workers."""

    text: str
    """The prompt in the model's chat template, with one place for a video."""
    manner: Manner
    rules: FrameRules

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The request of one clip; never raises over a clip's file."""
        footage = Footage(row["key"], Path(row["path"]), row["frames"], row["height"], row["width"])
        try:
            look = self.rules.read(footage)
        except InputError as problem:
            return {"key": footage.key, ERROR: f"{UNREADABLE}{problem.code}: {problem}"}
        return {
            "key": footage.key,
            "prompt": self.text,
            "multimodal_data": {"video": [look.pixels_FHW3]},
            # Otherwise vLLM hashes every frame, to look for clips that it has seen before.
            "multimodal_uuids": {"video": [footage.key]},
            "sampling_params": {
                "temperature": 0.0,
                "max_tokens": self.manner.max_new_tokens,
                "min_tokens": self.manner.least_new_tokens,
                "repetition_penalty": float(self.manner.repetition_penalty),
            },
            "indices": list(look.indices),
            "times": list(look.times),
            ERROR: "",
        }


def answer_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of a row that the engine has answered, what is kept."""
    return {
        "key": row["key"],
        "text": row["generated_text"],
        "tokens": int(row["num_generated_tokens"]),
        "indices": list(row["indices"]),
        "times": list(row["times"]),
    }


def question_of(stage: Caption, manner: Manner) -> Question:
    """The stage's question; raises CheckpointError where the model's preparation cannot be had."""
    from transformers import AutoProcessor

    from dynamictrl.captions.caption_asking import question_text
    from dynamictrl.captions.qwen_captioning import frame_rules
    from dynamictrl.weights import resolve

    preparation: Any = AutoProcessor.from_pretrained(resolve(stage.captioner, ["config.json"]), local_files_only=True)
    rules = frame_rules(preparation, stage.max_frames, stage.max_pixels)
    return Question(question_text(preparation, manner.prompt), manner, rules)


def engine_config(stage: Caption, question: Question, engines: int) -> vLLMEngineProcessorConfig:
    """Ray's configuration of the engine: one GPU each, `engines` of them from the first clip to the last."""
    from ray.data.llm import vLLMEngineProcessorConfig

    from dynamictrl.weights import resolve

    local = stage.captioner.startswith("mini/") or Path(stage.captioner).expanduser().is_dir()
    rules = question.rules
    longest = -(-rules.max_frames // 2) * (rules.max_pixels // rules.factor**2)
    return vLLMEngineProcessorConfig(
        model_source=str(resolve(stage.captioner)) if local else stage.captioner,
        engine_kwargs={
            "limit_mm_per_prompt": {"video": 1, "image": 0},
            "max_model_len": longest + _TEXT_TOKENS + stage.max_new_tokens,
            # No clip comes twice.
            "mm_processor_cache_gb": 0,
            "enable_prefix_caching": False,
            "dtype": "bfloat16",
        },
        batch_size=CLIPS_AT_ONCE,
        concurrency=(engines, engines),
        should_continue_on_error=True,
        # The question is in its template already, the engine splits it into tokens and puts the answer together.
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        prepare_multimodal_stage=False,
    )


def vllm_processor(stage: Caption, question: Question, *, engines: int = 1, cpus: float = 1.0) -> Process:
    """vLLM's processor for one question; `cpus`: cores of each task that decodes. Raises ConfigError without vLLM."""
    import importlib.util

    from ray.data.llm import build_processor

    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "engine vllm needs vLLM, which is not installed: install ray[llm] on every node of the cluster, or take "
            "engine transformers",
            param="engine",
        )
    processor = build_processor(
        engine_config(stage, question, engines),
        preprocess=question,
        postprocess=answer_row,
        preprocess_map_kwargs={"num_cpus": cpus},
    )
    for part in processor.stages.values():
        part.map_batches_kwargs |= {"max_restarts": RETRIES, "max_task_retries": RETRIES}
    return processor


def caption_dataset(clips: Dataset, process: Process) -> Dataset:
    """Rows of clips (`Clip.to_row`) to rows of answers, in any order: key and path go through, and nothing else."""

    def named(row: dict[str, Any]) -> dict[str, Any]:
        footage = footage_of(Clip.from_row(row))
        sizes = {"frames": footage.frames, "height": footage.height, "width": footage.width}
        return {"key": footage.key, "path": str(footage.source), **sizes}

    return process(clips.map(named))


def answers(rows: Iterable[Mapping[str, Any]], asked: Iterable[str], manner: Manner) -> dict[str, Answer | InputError]:
    """Rows of answers by key; raises ConfigError where they are not exactly those asked for."""
    waiting, found = set(asked), {}
    for row in rows:
        key = row["key"]
        if key not in waiting:
            trouble = "answered twice" if key in found else "was never asked about"
            raise ConfigError(f"clip {key} {trouble}: the engine's answers cannot be trusted", code="caption_join")
        waiting.remove(key)
        found[key] = _answer(row, manner)
    if waiting:
        raise ConfigError(
            f"{len(waiting)} clips got no answer and no error, {min(waiting)} among them; run again to ask for them",
            code="caption_join",
        )
    return found


def _answer(row: Mapping[str, Any], manner: Manner) -> Answer | InputError:
    problem: str = row.get(ERROR) or ""
    if problem.startswith(UNREADABLE):
        code, _, message = problem.removeprefix(UNREADABLE).partition(": ")
        return MediaError(message, code=code)
    if problem:
        return InputError(f"the engine failed on this clip: {problem}", code="caption_failed")
    indices, times = tuple(map(int, row["indices"])), tuple(map(float, row["times"]))
    return Answer(row["key"], row["text"].strip(), int(row["tokens"]), manner, indices, times)


def caption_clips(
    clips: Sequence[Clip],
    stage: Caption,
    *,
    engines: int = 1,
    cpus: float = 1.0,
    processor: Callable[[Question], Process] | None = None,
) -> Iterator[Clip]:
    """What `Caption.process_many` yields for the same clips, by vLLM: in the clips' order, joined by key.

    `engines`: GPUs; `cpus`: cores of each decoding task; `processor`: another engine than vLLM's.
    """
    from dynamictrl.samples.encodings import folder_hash
    from dynamictrl.weights import resolve

    process = processor or (lambda question: vllm_processor(stage, question, engines=engines, cpus=cpus))

    def ask(some: Sequence[Clip], manner: Manner) -> dict[str, Answer | InputError]:
        if not some:
            return {}
        dataset = ray.data.from_items([clip.to_row() for clip in some])
        said = caption_dataset(dataset, process(question_of(stage, manner)))
        return answers(said.iter_rows(), (clip.key for clip in some), manner)

    first = ask(clips, Manner(stage.prompt, stage.max_new_tokens))
    again = [clip for clip in clips if stage.second_prompt and _is_no_caption(first[clip.key])]
    yield from stage.joined(clips, first, ask(again, stage.second_manner), folder_hash(resolve(stage.captioner)))


def _is_no_caption(answer: Answer | InputError) -> bool:
    return not isinstance(answer, InputError) and caption_problem(answer.text) is not None
