"""Strangers' media: whatever is in a file, the caller gets facts or a coded refusal, and the guard lives on."""

import ast
import io
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from dynamictrl.errors import InputError, StoreError
from dynamictrl.media.audio import Sound, add_sound
from serving.config import Limits
from serving.jobs.job import VideoFacts
from serving.media.decoding import OwnFiles
from serving.media.media_guard import ImageFacts, MediaGuard
from serving.media.remembering import Remembered
from serving.media.tone_mapping import HLG, PQ, to_sdr
from serving.watching import metrics
from tests.unit.serving.malformed import pictures

LIMITS = Limits(image_pixels=200 * 200, frame_pixels=100 * 100, video_seconds=30.0)


@pytest.fixture(scope="module")
def guard() -> Iterator[MediaGuard]:
    guard = MediaGuard(LIMITS, "mini/none", probers=1)
    yield guard
    guard.close()


def written(folder: Path, data: bytes) -> Path:
    path = folder / "medium"
    path.write_bytes(data)
    return path


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_and_a_video_give_their_facts(guard: MediaGuard, person_and_pose: tuple[Path, Path]):
    person, pose = person_and_pose
    assert guard.image(person, "input_reference") == ImageFacts(64, 96)
    facts = guard.video(pose, "pose_video")
    assert facts == VideoFacts(64, 96, 12.0, 17, pytest.approx(17 / 12, abs=0.01))


@pytest.mark.parametrize("data", [b"", b"not an image", png(64, 64)[:60], b"GIF89a" + b"\0" * 20])
def test_what_is_no_image_is_refused_with_its_parameter(guard: MediaGuard, tmp_path: Path, data: bytes):
    with pytest.raises(InputError) as refused:
        guard.image(written(tmp_path, data), "mask")
    assert refused.value.param == "mask"
    assert refused.value.code
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"not a video", png(64, 64), b"\0\0\0\x18ftypmp42" + b"\0" * 100])
def test_what_is_no_video_is_refused(guard: MediaGuard, tmp_path: Path, data: bytes):
    with pytest.raises(InputError) as refused:
        guard.video(written(tmp_path, data), "driving_video")
    assert refused.value.param == "driving_video"


def test_a_picture_that_unpacks_to_too_many_pixels_is_refused(guard: MediaGuard, tmp_path: Path):
    with pytest.raises(InputError, match="more than 40000") as refused:
        guard.image(written(tmp_path, png(3000, 3000)), "input_reference")
    assert refused.value.code == "image_too_large"


def test_a_prober_that_does_not_answer_in_time_is_killed_and_replaced(
    tmp_path: Path, person_and_pose: tuple[Path, Path]
):
    person, pose = person_and_pose
    hasty = MediaGuard(replace(LIMITS, probe_seconds=0.0), "mini/none", probers=1)
    try:
        with pytest.raises(InputError) as refused:
            hasty.video(pose, "pose_video")
        assert refused.value.code == "media_timeout"
        hasty.limits = LIMITS
        assert hasty.image(person, "input_reference") == ImageFacts(64, 96)
    finally:
        hasty.close()


def test_a_prober_that_was_killed_is_started_again(guard: MediaGuard, person_and_pose: tuple[Path, Path]):
    guard.warm()
    assert guard.prober._process is not None
    guard.prober._process.kill()
    guard.prober._process.wait(10)
    assert guard.image(person_and_pose[0], "mask") == ImageFacts(64, 96)


def test_pixels_and_sound_are_those_of_an_unguarded_reading(
    guard: MediaGuard, person_and_pose: tuple[Path, Path], tmp_path: Path
):
    person, pose = person_and_pose
    own = OwnFiles()
    assert guard.picture(person, "mask").tobytes() == own.picture(person, "mask").tobytes()
    for wish in ({"num_frames": 5}, {"fps": 30.0, "num_frames": 9, "max_pixels": 32 * 48}):
        guarded, plain = guard.frames(pose, "pose_video", **wish), own.frames(pose, "pose_video", **wish)
        assert np.array_equal(guarded.frames, plain.frames)
        assert np.array_equal(guarded.timestamps, plain.timestamps)
        assert guarded.fps == plain.fps
    guarded.frames[0] = 7  # ours alone
    assert guard.sound(pose, seconds=1) is None
    heard = shutil.copy(pose, tmp_path / "heard.mp4")
    add_sound(Path(heard), Sound(np.sin(np.arange(48_000, dtype=np.float32) / 20)[None], 48_000))
    guarded, plain = guard.sound(Path(heard), seconds=0.5), own.sound(Path(heard), seconds=0.5)
    assert guarded is not None
    assert plain is not None
    assert np.array_equal(guarded.samples, plain.samples)
    assert guarded.rate == plain.rate


def test_a_video_gives_its_first_and_last_frame(guard: MediaGuard, person_and_pose: tuple[Path, Path]):
    frames = OwnFiles().frames(person_and_pose[1], "pose_video").frames
    for last in (False, True):
        picture = Image.open(io.BytesIO(guard.frame(person_and_pose[1], "video", last=last)))
        assert np.array_equal(np.asarray(picture), frames[-1 if last else 0])


def test_equal_bytes_are_looked_at_once(guard: MediaGuard, person_and_pose: tuple[Path, Path], tmp_path: Path):
    assert guard.image(person_and_pose[0], "mask", sha256="a") == ImageFacts(64, 96)
    assert guard.image(tmp_path / "not there", "mask", sha256="a") == ImageFacts(64, 96)
    for param in ("mask", "input_reference"):
        with pytest.raises(InputError, match=param) as refused:
            guard.image(written(tmp_path, b"no image"), param, sha256="b")
        assert refused.value.param == param
    with pytest.raises(InputError) as gone:
        guard.image(tmp_path / "not there", "mask")
    assert gone.value.code == "media_gone"
    counted = metrics.PROCESS.get_sample_value
    labels = {"question": "image", "outcome": "not_media"}
    before = counted("dynamictrl_media_opened_total", labels) or 0
    with pytest.raises(InputError):
        guard.image(written(tmp_path, b"still no image"), "mask")
    assert counted("dynamictrl_media_opened_total", labels) == before + 1


@pytest.mark.parametrize(
    "limits",
    [{"probe_resident": 2**26}, {"probe_memory": 600 * 2**20}],  # the prober itself has 435 MiB of addresses
    ids=str,
)
def test_a_file_that_breaks_a_limit_ends_its_process_and_nothing_else(
    limits: dict[str, float], tmp_path: Path, person_and_pose: tuple[Path, Path]
):
    guard = MediaGuard(replace(Limits(), **limits), "mini/none", probers=1)
    try:
        guard.warm()
        assert guard.prober._process is not None
        prober = guard.prober._process.pid
        with pytest.raises(InputError) as refused:
            guard.image(written(tmp_path, pictures.bomb(7000, 7000)), "mask", sha256="heavy")
        assert refused.value.code == "media_too_heavy"
        assert not Path(f"/proc/{prober}/task/{prober}/children").read_text().split()
        assert guard.image(person_and_pose[0], "mask", sha256="light") == ImageFacts(64, 96)
        guard.limits = Limits()
        assert guard.image(tmp_path / "medium", "mask", sha256="heavy") == ImageFacts(7000, 7000)  # not remembered
        assert guard.prober._process.pid == prober
    finally:
        guard.close()


def test_a_file_that_takes_too_long_is_given_up_and_not_remembered(tmp_path: Path):
    """Some 0.8 s of decoding, for which 0.05 s are given: whoever waits may be late himself on a busy machine."""
    guard = MediaGuard(replace(Limits(), probe_seconds=0.05), "mini/none", probers=1)
    slow = written(tmp_path, pictures.png(7000, 7000, pixels=(b"\4" + bytes(3 * 7000)) * 7000))
    try:
        guard.warm()
        assert guard.prober._process is not None
        prober = guard.prober._process.pid
        with pytest.raises(InputError) as refused:
            guard.image(slow, "mask", sha256="slow")
        assert refused.value.code == "media_timeout"
        assert not Path(f"/proc/{prober}/task/{prober}/children").read_text().split()
        guard.limits = Limits()
        assert guard.image(slow, "mask", sha256="slow") == ImageFacts(7000, 7000)
        assert guard.prober._process.pid == prober
    finally:
        guard.close()


def test_who_finds_every_prober_busy_is_asked_to_come_again(person_and_pose: tuple[Path, Path]):
    guard = MediaGuard(replace(LIMITS, probe_seconds=0.1), "mini/none", probers=1)
    guard._places.acquire()
    with pytest.raises(StoreError) as later:
        guard.image(person_and_pose[0], "mask")
    assert later.value.code == "media_busy"


def test_a_prober_that_cannot_start_is_the_machines_fault_and_not_the_files(
    person_and_pose: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serving.media.prober_process.sys.executable", "/bin/false")
    guard = MediaGuard(LIMITS, "mini/none", probers=1)
    with pytest.raises(StoreError) as away:
        guard.image(person_and_pose[0], "mask")
    assert away.value.code == "media_prober_away"


def test_what_is_remembered_is_bounded_and_waited_for():
    known, asked = Remembered[int](2, lambda answer: answer != 13), list[int]()

    def find(value: int) -> int:
        asked.append(value)
        time.sleep(0.05)
        return value

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: known.get("same", lambda: find(5)), range(8)))
    assert (answers, asked) == ([5] * 8, [5])
    for key in ("a", "b", "c"):
        known.get(key, lambda: find(1))
    assert len(known) == 2
    for _ in range(2):
        assert known.get("odd", lambda: find(13)) == 13
        with pytest.raises(ZeroDivisionError):
            known.get("bad", lambda: 1 // 0)
    assert asked.count(13) == 2


SHUT_IN = """
import os, socket, subprocess, sys, threading
from pathlib import Path
from serving.media.confinement import confine
seen = os.memfd_create("seen")
open_before = open(sys.argv[1], "rb")
missing = confine(memory=4 * 2**30, cpu_seconds=2, output_bytes=1000)
def fails(do):
    try:
        do()
    except OSError:
        return True
    return False
told = {
    "missing": missing,
    "read": open_before.read() == b"kept open",
    "open": fails(lambda: open(sys.argv[1])),
    "write": fails(lambda: open(sys.argv[1] + "2", "w")),
    "remove": fails(lambda: os.unlink(sys.argv[1])),
    "pair": fails(socket.socketpair),
    "socket": fails(socket.socket),
    "start": fails(lambda: subprocess.run(["/bin/true"])),
    "fork": fails(os.fork),
    "kill": fails(lambda: os.kill(os.getppid(), 0)),
    "own user": os.geteuid() != 0,
    "flood": fails(lambda: [os.write(seen, b"a" * 600) for _ in range(3)]),
}
done = []
thread = threading.Thread(target=lambda: done.append(1)); thread.start(); thread.join()
told["threads"] = done == [1]
try:
    bytearray(8 * 2**30)
    told["memory"] = False
except MemoryError:
    told["memory"] = True
print(told, flush=True)
if sys.argv[2] == "spin":
    while True:
        pass
"""


def test_a_confined_process_can_open_call_start_and_harm_nothing(tmp_path: Path):
    (tmp_path / "kept").write_bytes(b"kept open")
    words = [sys.executable, "-c", SHUT_IN, str(tmp_path / "kept")]
    done = subprocess.run([*words, ""], capture_output=True, text=True, timeout=60)
    told = ast.literal_eval(done.stdout)
    if told.pop("missing"):
        pytest.skip("the kernel here takes no system call filter")
    assert all(told.values()), told
    assert (tmp_path / "kept").exists()
    spinning = subprocess.run([*words, "spin"], capture_output=True, timeout=60)
    assert spinning.returncode == -signal.SIGXCPU


def test_a_stricter_machine_keeps_its_limit():
    program = (
        "import resource; from serving.media.confinement import confine\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31)); resource.setrlimit(resource.RLIMIT_CPU, (9, 9))\n"
        "confine(memory=2**40, cpu_seconds=60, output_bytes=10)\n"
        "print(resource.getrlimit(resource.RLIMIT_AS)[0] == 2**31, resource.getrlimit(resource.RLIMIT_CPU)[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "9"], done.stderr


def test_the_prober_has_one_thread_and_ends_with_its_service():
    program = (
        "import time; from serving.config import Limits; from serving.media.media_guard import MediaGuard\n"
        "guard = MediaGuard(Limits(), 'mini/none'); guard.warm(); print(guard.prober._process.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        prober = Path(f"/proc/{int(service.stdout.readline())}")
        # More would make its forks unsafe: another thread's lock would stay locked for ever.
        assert len(list((prober / "task").iterdir())) == 1
        service.kill()
    deadline = time.monotonic() + 10
    while prober.exists() and "Z" not in (prober / "stat").read_text().split()[2] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not prober.exists() or (prober / "stat").read_text().split()[2] == "Z"


def test_a_video_of_high_dynamic_range_is_given_as_a_screen_shows_it(guard: MediaGuard, tmp_path: Path):
    path = tmp_path / "pq.mp4"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 64, "yuv420p10le", {"qp": "0"}
        stream.codec_context.color_trc = PQ
        for level in (20, 128, 200):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), format="rgb24")
            out.mux(stream.encode(frame.reformat(format="yuv420p10le")))
        out.mux(stream.encode(None))
    plain, shown = OwnFiles().frames(path, "video").frames, guard.frames(path, "video").frames
    assert np.array_equal(shown, np.stack([to_sdr(frame, PQ) for frame in plain]))
    assert not np.array_equal(shown, plain)


def test_high_dynamic_range_is_shown_as_a_screen_would():
    greys = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    for transfer in (PQ, HLG):
        shown = to_sdr(greys, transfer)[0]
        assert (np.diff(shown[:, 0].astype(int)) >= 0).all()
        assert np.ptp(shown.astype(int), axis=1).max() <= 2  # grey stays grey
        assert (shown[0, 0], shown[-1, 0]) == (0, 255)
    # BT.2408's white of a page, 203 nits, is code 0.58 in PQ; it comes out bright, and no longer grey.
    assert 170 < to_sdr(greys, PQ)[0, round(0.58 * 255), 0] < 200


def test_a_file_over_the_limit_is_not_even_opened(tmp_path: Path):
    guard = MediaGuard(replace(LIMITS, media_bytes=10), "mini/none", probers=1)
    with pytest.raises(InputError) as refused:
        guard.image(written(tmp_path, b"12345678901"), "mask")
    assert refused.value.code == "too_large"


def test_real_broken_media_are_refused_with_a_code_and_real_ones_taken(shared_data: Path):
    guard = MediaGuard(Limits(), "mini/none", probers=1)
    try:
        assert guard.video(shared_data / "clips" / "dynamictrl__motion1.mp4", "driving_video").width == 1080
        for name in ("moviepy__result.webm", "screenpipe__selah.mp4", "androidx__sample_audio_only.mp4",
                     "mp4parse__invalid_userdata.mp4"):  # fmt: skip
            with pytest.raises(InputError) as refused:
                guard.video(shared_data / "odd" / name, "driving_video")
            assert refused.value.code
    finally:
        guard.close()
