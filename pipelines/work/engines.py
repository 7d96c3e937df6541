"""Captions by an engine that is no worker of ours: asked for all clips at once, recorded as a stage's results are.

The operator that the caption stage belongs to then finds them on record and goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from pipelines.clip import Clip
from pipelines.stages.caption import Caption
from pipelines.work.clip_operator import ClipOperator
from pipelines.work.operators import Operator

Ask = Callable[[Sequence[Clip], Caption], Iterable[Clip]]
"""Clips to captioned clips, in order: `vllm_captions.caption_clips`."""


def engine_stage(operator: Operator) -> Caption | None:
    """The stage of an operator that vLLM runs; it is the operator's first, as what holds a model begins one."""
    first = operator.stages[0]
    return first if isinstance(first, Caption) and first.engine == "vllm" else None


def caption_all(operator: ClipOperator, stage: Caption, clips: Sequence[Clip], ask: Ask) -> int:
    """Captions those clips that have none on record under these settings; how many."""
    todo = operator.lacking(stage, clips)
    began = time.perf_counter()
    results = list(ask(todo, stage)) if todo else []
    share = (time.perf_counter() - began) / max(1, len(results))
    for clip, result in zip(todo, results, strict=True):
        operator.take(stage, clip, result, share)
    return len(results)
