"""The evaluation's numbers, its page, and that a second call renders nothing again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.__main__ import main

SIZE = ["--height", "32", "--width", "32", "--num-frames", "5", "--fps", "12", "--num-inference-steps", "2"]


def test_a_model_is_scored_beside_its_controls_and_only_once(
    tiny_model: Path, small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "evaluation"
    command = [
        "evaluate", "--model", str(tiny_model), "--against", str(tiny_model), "--data", str(small_dataset),
        "--out", str(out), "--samples", "2", *SIZE,
    ]  # fmt: skip

    assert main(command) == 0
    rendered = [path.stat().st_mtime_ns for path in sorted((out / "clips").iterdir())]
    first = (out / "metrics.json").read_bytes()
    assert main(command) == 0

    assert [path.stat().st_mtime_ns for path in sorted((out / "clips").iterdir())] == rendered
    assert (out / "metrics.json").read_bytes() == first
    result = json.loads(first)
    assert result["clips"] == 2
    assert result["mean"]["model"] == result["mean"]["against"]
    assert result["mean"]["copied_reference"]["psnr"] > result["mean"]["model"]["psnr"]
    page = (out / "index.html").read_text()
    assert all(f"clips/{key}.mp4" in page for key in result["per_clip"])
    assert str(out / "index.html") in capsys.readouterr().out


def test_the_clip_shows_reference_poses_truth_and_both_models(tiny_model: Path, small_dataset: Path, tmp_path: Path):
    from dynamictrl.media.video import read_video

    out = tmp_path / "evaluation"
    main(
        [
            "evaluate",
            "--model",
            str(tiny_model),
            "--data",
            str(small_dataset),
            "--out",
            str(out),
            "--samples",
            "1",
            *SIZE,
        ]
    )

    video = read_video(next((out / "clips").glob("*.mp4")))
    assert video.frames.shape == (5, 32, 4 * 32, 3)
    assert video.fps == 12


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--model", "/nowhere/model"], "/nowhere/model does not exist"),
        (["--data", "/nowhere/data"], "no dataset.json"),
        (["--num-frames", "6"], "4k + 1"),
        (["--num-frames", "97"], "too short"),
        (["--device", "cuda"], "--device cpu"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    changed: list[str], said: str, tiny_model: Path, small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    import torch

    if "cuda" in changed and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    places = ["--model", str(tiny_model), "--data", str(small_dataset), "--out", str(tmp_path / "out")]
    code = main(["evaluate", *places, *SIZE, *changed])

    (line,) = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert said in line
