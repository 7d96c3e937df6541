"""`python -m serving`: exit codes and one-line reasons, and one clip without a server."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynamictrl.media.audio import Sound, add_sound, read_sound
from dynamictrl.media.video import read_video
from serving.__main__ import main

COMMON = ["--prompt", "a figure", "--num-inference-steps", "2"]


def animate(model: Path | str, image: Path, out: Path, *words: object) -> int:
    return main(["animate", "--model", str(model), "--image", str(image), "--out", str(out), *COMMON, *map(str, words)])


def reason(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_one_clip_without_a_server(tiny_model: Path, person_and_pose: tuple[Path, Path], tmp_path: Path):
    person, pose = person_and_pose
    assert animate(tiny_model, person, tmp_path / "o.mp4", "--pose-video", pose, "--num-frames", 9) == 0
    video = read_video(tmp_path / "o.mp4")
    assert (video.frames.shape, video.fps) == ((9, 96, 64, 3), 12.0)


def test_the_videos_sound_is_kept_on_request(
    tiny_model: Path, person_and_pose: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    person, pose = person_and_pose
    words = ["--pose-video", pose, "--num-frames", 9, "--keep-audio"]
    assert animate(tiny_model, person, tmp_path / "silent.mp4", *words) == 0
    assert "pose.mp4 has no sound in its first 0.75 s: the clip is silent" in reason(capsys)

    spoken = tmp_path / "spoken.mp4"
    spoken.write_bytes(pose.read_bytes())
    add_sound(spoken, Sound(np.ones((2, 48000), np.float32) / 4, 48000))
    words[1] = spoken
    assert animate(tiny_model, person, tmp_path / "o.mp4", *words) == 0
    sound = read_sound(tmp_path / "o.mp4", seconds=9 / 12)
    assert sound is not None
    assert sound.samples.shape == (2, 36000)
    assert read_video(tmp_path / "o.mp4").frames.shape == (9, 96, 64, 3)


def test_a_lora_acts_as_strongly_as_asked(
    tiny_model: Path, person_and_pose: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from safetensors.torch import save_file

    person, pose = person_and_pose
    name = "transformer.transformer_blocks.1.ff.net.2"
    noise = torch.Generator().manual_seed(0)
    update = {"lora_A": torch.randn(2, 128, generator=noise), "lora_B": torch.randn(32, 2, generator=noise)}
    save_file({f"{name}.{side}.weight": value for side, value in update.items()}, tmp_path / "lora.safetensors")
    frames = []
    for words in ([], ["--lora-scale", 0.0], ["--lora-scale", 1.0]):
        lora = ["--lora", tmp_path / "lora.safetensors", *words] if words else []
        assert animate(tiny_model, person, tmp_path / "o.mp4", "--pose-video", pose, "--num-frames", 5, *lora) == 0
        frames.append(read_video(tmp_path / "o.mp4").frames)
    np.testing.assert_array_equal(frames[0], frames[1])
    assert (frames[0] != frames[2]).any()

    assert animate(tiny_model, person, tmp_path / "o.mp4", "--pose-video", pose, "--lora", tmp_path / "none") == 2
    assert "does not exist" in reason(capsys)


def test_a_real_image_follows_a_real_pose_rendering(tiny_model: Path, shared_data: Path, tmp_path: Path):
    image = shared_data / "images" / "moore__anyone-3.png"
    pose = shared_data / "pose_videos" / "moore__anyone-video-2_kps.mp4"
    words = ["--pose-video", pose, "--num-frames", 13, "--size", "64x96"]
    assert animate(tiny_model, image, tmp_path / "o.mp4", *words) == 0
    video = read_video(tmp_path / "o.mp4")
    assert (video.frames.shape, video.fps) == ((13, 96, 64, 3), 30.0)


def test_bad_input_is_refused_before_a_model_is_loaded(
    tiny_model: Path, person_and_pose: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    person, pose = person_and_pose
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    Image.new("L", (10, 10)).save(tmp_path / "mask.png")
    out = tmp_path / "o.mp4"
    cases: list[tuple[list[object], str]] = [
        (["--pose-video", tmp_path / "none.mp4"], "there is no such file"),
        (["--pose-video", text], "text.mp4"),
        (["--pose-video", pose, "--driving", pose], "one of --driving"),
        ([], "one of --driving"),
        (["--pose-video", pose, "--size", "65x96"], "64x96"),
        (["--pose-video", pose, "--size", "big"], "WIDTHxHEIGHT"),
        (["--pose-video", pose, "--num-frames", 8], "5 and 9"),
        (["--pose-video", pose, "--num-frames", 81], "17"),
        (["--pose-video", pose, "--mask", tmp_path / "mask.png"], "10x10"),
    ]
    for words, expected in cases:
        assert animate(tiny_model, person, out, *words) == 2, words
        last = reason(capsys)
        assert last.startswith("error:"), words
        assert expected in last
    assert animate(tmp_path, person, out, "--pose-video", pose) == 2
    assert "model_index.json" in reason(capsys)
    assert animate("mini/none", person, out, "--pose-video", pose) == 2
    assert animate(tiny_model, person, tmp_path / "nowhere" / "o.mp4", "--pose-video", pose) == 2
    assert not out.exists()


def test_up_refuses_what_cannot_be_served(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["up", "mini", "--model", str(tmp_path), "--port", "18431"]) == 2
    assert "model_index.json" in reason(capsys)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["up", "mini", "--model", str(tiny_model), "--port", str(port)]) == 2
    assert f"port {port}" in reason(capsys)


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert main(["upp"]) == 2
    for words in (["up", "nothing"], ["up", "mini", "--prot", "1"], ["up", "mini", "--host", "0.0.0.0"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2, words
    assert main(["--help"]) == 0


def test_a_key_is_printed_with_the_hash_to_configure(capsys: pytest.CaptureFixture[str]):
    import hashlib

    assert main(["key"]) == 0
    secret, digest = (line.split()[-1] for line in capsys.readouterr().out.splitlines())
    assert hashlib.sha256(secret.encode()).hexdigest() == digest
