"""Captions through Ray Data's processor for language models: all but vLLM itself is the real one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynamictrl.errors import ConfigError
from dynamictrl.media.video import write_video
from pipelines.clip import Clip
from pipelines.stages.caption import Caption
from pipelines.work.clip_operator import ClipOperator
from pipelines.work.engines import caption_all, engine_stage

ray = pytest.importorskip("ray")
vllm_captions = pytest.importorskip("pipelines.cluster.vllm_captions")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Clips of one grey each, and of three sizes, so that a caption can say whose it is."""
    made = []
    for index in range(12):
        width = (96, 128, 160)[index % 3]
        clip = Clip(source_sha256=f"{index:02x}" * 32, work=str(tmp_path), fps=12, frames=12, height=96, width=width)
        clip = clip.at(0.0, 1.0)
        clip.folder.mkdir(parents=True)
        write_video(clip.file("mp4"), np.full((12, 96, width, 3), grey_of(index), np.uint8), 12)
        made.append(clip.with_file("mp4"))
    return made


def grey_of(index: int) -> int:
    return 20 + 18 * index


def stand_in(question: Any) -> Any:
    """Ray's own processor around an engine that tells a clip's grey, out of order, and fails where it is told to."""
    from ray.llm._internal.batch.processor.base import OfflineProcessorConfig, Processor
    from ray.llm._internal.batch.stages.base import StatefulStage, StatefulStageUDF

    class TellGrey(StatefulStageUDF):
        async def udf(self, rows: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
            for done in asyncio.as_completed([self.told(row) for row in random.sample(rows, len(rows))]):
                yield await done

        async def told(self, row: dict[str, Any]) -> dict[str, Any]:
            await asyncio.sleep(random.uniform(0, 0.02))
            place = {self.IDX_IN_BATCH_COLUMN: row[self.IDX_IN_BATCH_COLUMN]}
            frames = row.pop("multimodal_data")["video"][0]
            assert isinstance(frames, np.ndarray), f"frames come as {type(frames)}"
            assert frames.dtype == np.uint8
            assert frames.ndim == 4
            assert row["multimodal_uuids"] == {"video": [row["key"]]}
            assert row["sampling_params"]["temperature"] == 0.0
            assert row["prompt"].count("<|video_pad|>") == 1
            grey = round((float(frames.mean()) - 20) / 18)
            again = row["sampling_params"]["min_tokens"] > 0
            if grey == 5:
                return {
                    **place,
                    "generated_text": "",
                    "num_generated_tokens": 0,
                    "__inference_error__": "ValueError: no",
                }
            text = "I'm sorry, I cannot." if grey == 7 and not again else f"Someone in grey {grey} walks."
            return {**place, "generated_text": text, "num_generated_tokens": 6, "__inference_error__": ""}

    config = OfflineProcessorConfig(model_source="none", should_continue_on_error=True, batch_size=4)
    stage = StatefulStage(fn=TellGrey, map_batches_kwargs={"compute": ray.data.ActorPoolStrategy(size=2)})
    return Processor(config, [stage], preprocess=question, postprocess=vllm_captions.answer_row)


def test_answers_find_their_clips_whatever_order_they_come_in(clips: list[Clip]):
    clips[3].file("mp4").write_bytes(b"no video")
    stage = Caption("mini/captioner", engine="vllm", max_frames=4)
    done = list(vllm_captions.caption_clips(clips, stage, processor=stand_in))
    assert [clip.key for clip in done] == [clip.key for clip in clips]
    for index, clip in enumerate(done):
        if index == 3:
            assert clip.rejected == "not_media"
        elif index == 5:
            assert (clip.rejected, "ValueError: no" in clip.message) == ("caption_failed", True)
        else:
            assert clip.caption == f"Someone in grey {index} walks."
            assert clip.scores["caption_tries"] == (2 if index == 7 else 1)
            assert clip.models["caption frames"] == "0 4 7 11"
            assert len(clip.models["caption sha256"]) == 64
    assert done[7].models["caption prompt"] == stage.second_prompt
    assert done[8].models["caption prompt"] == stage.prompt


def test_what_the_engine_said_is_on_record_for_the_workers_that_go_on(clips: list[Clip], tmp_path: Path):
    stage = Caption("mini/captioner", engine="vllm", max_frames=4)
    operator = ClipOperator("caption", (stage,), tmp_path)
    ask = partial(vllm_captions.caption_clips, processor=stand_in)
    assert engine_stage(operator) is stage
    assert caption_all(operator, stage, clips[:4], ask) == 4
    assert caption_all(operator, stage, clips[:4], ask) == 0
    # The engine's process is gone; what it said is not.
    done = operator.run_many(clips[:4])
    assert [clip.caption for clip in done] == [f"Someone in grey {index} walks." for index in range(4)]
    assert operator.meter.stages == {}


def test_the_engine_is_configured_without_rays_own_decoding_and_with_a_fixed_number_of_workers():
    stage = Caption("mini/captioner", engine="vllm")
    question = vllm_captions.question_of(stage, stage.second_manner)
    config = vllm_captions.engine_config(stage, question, engines=3)
    assert config.get_concurrency() == {"min_size": 3, "max_size": 3}
    assert config.should_continue_on_error
    stages = (config.prepare_multimodal_stage, config.chat_template_stage, config.tokenize_stage)
    assert not any(stages)
    longest = 12 // 2 * 192 * 128 // 16**2
    assert longest < config.engine_kwargs["max_model_len"] <= longest + 512


def test_without_vllm_the_way_out_is_named():
    stage = Caption("mini/captioner", engine="vllm")
    with pytest.raises(ConfigError, match=r"install ray\[llm\]"):
        vllm_captions.vllm_processor(stage, vllm_captions.question_of(stage, stage.second_manner))


def test_a_doubled_a_foreign_and_a_missing_answer_are_errors(clips: list[Clip]):
    manner = Caption("mini/captioner").second_manner
    row = {"key": clips[0].key, "text": "a", "tokens": 1, "indices": [0], "times": [0.0]}
    asked = [clip.key for clip in clips[:2]]
    with pytest.raises(ConfigError, match="answered twice"):
        vllm_captions.answers([row, row], asked, manner)
    with pytest.raises(ConfigError, match="never asked about"):
        vllm_captions.answers([replace_key(row, "elsewhere")], asked, manner)
    with pytest.raises(ConfigError, match="1 clips got no answer"):
        vllm_captions.answers([row], asked, manner)
    both = vllm_captions.answers([replace_key(row, asked[1]), row], asked, manner)
    assert set(both) == set(asked)


def replace_key(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {**row, "key": key}


def test_a_model_that_runs_on_no_gpu_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="engine vllm runs a model on GPUs"):
        replace(Caption("mini/captioner"), engine="vllm", device="cpu")
