"""Many clips at once get the answers that each would get alone, and that transformers' own `generate` gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dynamictrl.captions.caption_attention import frame_runs
from dynamictrl.captions.caption_frames import Footage, Look
from dynamictrl.captions.captioning import Answer, Manner
from dynamictrl.captions.qwen_captioning import Qwen2VLCaptioner
from dynamictrl.errors import InputError, MediaError
from dynamictrl.media.video import write_video
from dynamictrl.mini.stream import draw_example
from dynamictrl.weights import MINI

LENGTHS = (25, 7, 13, 25, 4)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small products on a busy machine are slower on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def captioner() -> Qwen2VLCaptioner:
    return Qwen2VLCaptioner("mini/captioner", "cpu", batch=2, readers=2)


@pytest.fixture(scope="module")
def videos() -> list[np.ndarray]:
    """Marionettes, of several lengths."""
    return [draw_example(31, index).video[:count] for index, count in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def looks(captioner: Qwen2VLCaptioner, videos: list[np.ndarray]) -> list[Look]:
    return [captioner.rules.look(f"clip {index}", video) for index, video in enumerate(videos)]


@pytest.fixture(scope="module")
def alone(captioner: Qwen2VLCaptioner, looks: list[Look]) -> list[Answer]:
    return [captioner.answer([look])[0] for look in looks]


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory, videos: list[np.ndarray]) -> list[Footage]:
    folder, found = tmp_path_factory.mktemp("footage"), []
    for index, video in enumerate(videos):
        path = folder / f"{index}.mp4"
        write_video(path, video, 12, crf=1)
        found.append(Footage(f"clip {index}", path, *video.shape[:3]))
    return found


def test_one_clips_answer_is_that_of_generate(captioner: Qwen2VLCaptioner, videos: list[np.ndarray]):
    from transformers import Qwen2VLForConditionalGeneration

    # A model of its own, that no attention of ours has touched.
    untouched: Any = Qwen2VLForConditionalGeneration.from_pretrained(MINI / "captioner", dtype=torch.float32).eval()
    inputs = captioner._inputs(videos[0])
    with torch.inference_mode():
        ids = untouched.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = captioner.preparation.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert len(expected.split()) > 5
    assert captioner(videos[0]) == expected


def test_clips_of_different_lengths_in_one_batch_keep_their_own_answers(
    captioner: Qwen2VLCaptioner, looks: list[Look], alone: list[Answer]
):
    assert len({answer.text for answer in alone}) > 3
    assert captioner.answer(looks) == alone
    assert captioner.answer(looks[::-1]) == alone[::-1]


def test_a_room_larger_than_its_batch_changes_no_answer(
    captioner: Qwen2VLCaptioner, looks: list[Look], alone: list[Answer], monkeypatch: pytest.MonkeyPatch
):
    # As on a GPU, where batches take turns in one room; without one nothing is recorded in it.
    monkeypatch.setattr(captioner._decoder, "_graphs", True)
    monkeypatch.setattr(captioner._decoder, "_rows", 4)
    rooms = set()
    for group in ([0, 1, 2], [3], [4, 2, 1, 0], [1]):
        assert captioner.answer([looks[index] for index in group]) == [alone[index] for index in group]
        rooms.add(id(captioner._decoder._room))
    assert len(rooms) == 1


def test_files_are_described_by_key_with_what_was_shown_of_each(
    captioner: Qwen2VLCaptioner, footage: list[Footage], alone: list[Answer]
):
    found = captioner.describe(footage)
    assert found.keys() == {answer.key for answer in alone}
    for answer in alone:
        mine = found[answer.key]
        assert isinstance(mine, Answer)
        assert (mine.text, mine.indices, mine.tokens) == (answer.text, answer.indices, answer.tokens)
        assert mine.times == pytest.approx([index / 12 for index in mine.indices], abs=1e-3)
    assert captioner.describe(footage[::-1]) == found


def test_clips_that_finish_decoding_in_any_order_are_not_mixed_up(
    captioner: Qwen2VLCaptioner, footage: list[Footage], monkeypatch: pytest.MonkeyPatch
):
    import time

    expected, delays = captioner.describe(footage), iter([0.2, 0.0, 0.1, 0.0, 0.05])
    read = type(captioner.rules).read

    def slow(rules: Any, clip: Footage) -> Look:
        time.sleep(next(delays))
        return read(rules, clip)

    monkeypatch.setattr(type(captioner.rules), "read", slow)
    assert captioner.describe(footage) == expected


def test_a_file_that_cannot_be_read_costs_no_other(captioner: Qwen2VLCaptioner, footage: list[Footage], tmp_path: Path):
    (tmp_path / "broken.mp4").write_bytes(b"broken")
    broken = replace(footage[1], key="broken", source=tmp_path / "broken.mp4")
    found = captioner.describe([footage[0], broken, footage[1]])
    assert isinstance(found["broken"], MediaError)
    assert {key for key, answer in found.items() if isinstance(answer, Answer)} == {"clip 0", "clip 1"}
    assert captioner.describe([broken]).keys() == {"broken"}


def test_an_answer_ends_no_sooner_and_no_later_than_asked(captioner: Qwen2VLCaptioner, looks: list[Look]):
    short = captioner.answer(looks[:1], Manner(max_new_tokens=3))[0]
    long = captioner.answer(looks[:1], Manner(max_new_tokens=40, least_new_tokens=40))[0]
    assert (short.tokens, long.tokens) == (3, 40)
    assert long.text.startswith(short.text)
    assert long.manner.decoding == "greedy, 40 tokens at most, 40 at least"


def test_a_penalty_keeps_an_answer_from_saying_the_same_again(captioner: Qwen2VLCaptioner, looks: list[Look]):
    plain = captioner.answer(looks[:1], Manner(max_new_tokens=60, least_new_tokens=60))[0]
    damped = captioner.answer(looks[:1], Manner(max_new_tokens=60, least_new_tokens=60, repetition_penalty=2.0))[0]
    assert len(set(damped.text.split())) > len(set(plain.text.split()))


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"max_new_tokens": 4, "least_new_tokens": 5}])
def test_limits_that_contradict_each_other_are_refused(wrong: dict[str, Any]):
    with pytest.raises(InputError, match="max_new_tokens is"):
        Manner(**wrong)


def test_frames_of_one_size_are_attended_to_together():
    assert frame_runs([(2, 4, 6), (3, 6, 4), (1, 4, 4)]) == [(5, 24), (1, 16)]
