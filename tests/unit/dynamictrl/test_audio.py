"""The driving video's sound on the clip: in step with the picture to the sample, of exactly its length."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from dynamictrl.errors import InputError, MediaError
from dynamictrl.media.audio import Sound, add_sound, keep_sound, read_sound
from dynamictrl.media.video import iter_frames, probe, read_video, write_video

FLASH = 1.0
"""Second of the picture at which it flashes and the sound clicks."""


def film(
    path: Path,
    *,
    fps: Fraction = Fraction(25),
    seconds: float = 2.0,
    rate: int = 48000,
    layout: str = "stereo",
    codec: str = "pcm_s16le",
    sound_until: float | None = None,
    sound_shift: float = 0.0,
    clicks: tuple[float, ...] = (FLASH,),
) -> Path:
    """A dark film that is white for one frame at each click; its sound clicks for 2 ms at the same times.

    `sound_shift` starts the sound that much later than the picture on the container's clock, clicks in place.
    """
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("libx264", rate=fps)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        voice: Any = out.add_stream(codec, rate=rate, layout=layout)
        for index in range(round(seconds * fps)):
            lit = any(abs(index / fps - click) < 1e-6 for click in clicks)
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 255 if lit else 20, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, 1 / fps
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        total = round((seconds if sound_until is None else sound_until) * rate)
        samples = np.zeros((voice.layout.nb_channels, total), np.int16)
        for click in clicks:
            first = round((click - sound_shift) * rate)
            samples[:, first : first + rate // 500] = 20000
        resampler = av.AudioResampler(format=voice.format, layout=layout, rate=rate)
        whole = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), format="s16", layout=layout)
        whole.sample_rate, whole.pts, whole.time_base = rate, round(sound_shift * rate), Fraction(1, rate)
        for frame in resampler.resample(whole):
            out.mux(voice.encode(frame))
        out.mux(voice.encode(None))
    return path


def rendered(path: Path, driving: Path, *, fps: float | None = None, start: float = 0.0, frames: int = 40) -> Path:
    """What serving does: the driving frames at their rate (here shown as they are), with their sound."""
    video = read_video(driving, start=start, fps=fps, num_frames=frames)
    write_video(path, video.frames, video.fps)
    assert keep_sound(driving, path, start=start, seconds=len(video.frames) / video.fps)
    return path


def heard(path: Path) -> tuple[NDArray[np.float32], int]:
    """The sound as a player has it, by the file's own clock: [channels, samples] from second 0."""
    with av.open(str(path)) as container:
        pieces: list[NDArray[np.float32]] = []
        rate = 0
        for frame in container.decode(audio=0):
            rate = frame.sample_rate
            assert frame.pts is not None
            assert frame.time_base is not None
            if not pieces:
                begin = round(float(frame.pts * frame.time_base) * rate)
                assert begin >= 0, "lead-in must be cut by the edit list"
                pieces.append(np.zeros((frame.layout.nb_channels, begin), np.float32))
            pieces.append(frame.to_ndarray())
    return np.concatenate(pieces, axis=1), rate


def click_at(path: Path) -> float:
    samples, rate = heard(path)
    loud = np.abs(samples).max(0)
    return float(np.argmax(loud > 0.5 * loud.max())) / rate


def flash_at(path: Path) -> float:
    return next(time for time, picture in iter_frames(path) if picture.mean() > 128)


@pytest.mark.parametrize("layout", ["mono", "stereo"])
@pytest.mark.parametrize("rate", [48000, 44100, 16000, 8000])
def test_click_and_flash_stay_together_within_a_millisecond(tmp_path: Path, rate: int, layout: str):
    driving = film(tmp_path / "driving.mov", rate=rate, layout=layout)
    clip = rendered(tmp_path / "clip.mp4", driving)

    assert flash_at(clip) == pytest.approx(FLASH)
    assert click_at(clip) == pytest.approx(FLASH, abs=1e-3)
    samples, kept = heard(clip)
    assert kept == (48000 if rate == 8000 else rate)
    assert len(samples) == (1 if layout == "mono" else 2)
    assert samples.shape[1] / kept == pytest.approx(40 / 25, abs=1024 / kept)


@pytest.mark.parametrize("name", ["driving.mov", "driving.mkv", "driving.mp4"])
def test_a_start_within_the_film_and_another_rate_keep_them_together(tmp_path: Path, name: str):
    codec = "aac" if name.endswith("mp4") else "pcm_s16le"
    clicks = (1.0, 3.0, 4.0)
    driving = film(tmp_path / name, seconds=5.0, codec=codec, clicks=clicks, fps=Fraction(24))
    clip = rendered(tmp_path / "clip.mp4", driving, fps=16.0, start=2.5, frames=33)

    assert flash_at(clip) == pytest.approx(0.5, abs=1 / 16)
    assert click_at(clip) == pytest.approx(0.5, abs=2e-3)
    assert probe(clip).duration == pytest.approx(33 / 16, abs=1e-3)


def test_a_broadcast_rate_drifts_by_nothing(tmp_path: Path):
    driving = film(tmp_path / "driving.mp4", codec="aac", fps=Fraction(30000, 1001), seconds=8.0, clicks=(7.007,))
    clip = rendered(tmp_path / "clip.mp4", driving, frames=221)
    assert flash_at(clip) == pytest.approx(7.007, abs=1e-3)
    assert click_at(clip) == pytest.approx(7.007, abs=2e-3)


@pytest.mark.parametrize("shift", [0.3, 0.0213, -0.25])
def test_sound_that_begins_apart_from_the_picture_stays_in_its_place(tmp_path: Path, shift: float):
    driving = film(tmp_path / "driving.mkv", sound_shift=shift)
    clip = rendered(tmp_path / "clip.mp4", driving)
    assert click_at(clip) == pytest.approx(FLASH, abs=2e-3)


def test_sound_shorter_than_the_picture_ends_in_silence(tmp_path: Path):
    driving = film(tmp_path / "driving.mov", sound_until=1.2)
    clip = rendered(tmp_path / "clip.mp4", driving)
    samples, rate = heard(clip)
    assert samples.shape[1] / rate == pytest.approx(1.6, abs=0.03)
    assert np.abs(samples[:, round(1.25 * rate) :]).max() < 1e-3
    assert click_at(clip) == pytest.approx(FLASH, abs=1e-3)


def test_the_pictures_are_not_encoded_again_and_the_bytes_are_always_the_same(tmp_path: Path):
    driving = film(tmp_path / "driving.mov")
    video = read_video(driving, num_frames=20)
    files = []
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, video.frames, video.fps)
        silent = read_video(tmp_path / name)
        keep_sound(driving, tmp_path / name, seconds=0.8)
        files.append((tmp_path / name).read_bytes())
        np.testing.assert_array_equal(read_video(tmp_path / name).frames, silent.frames)
        np.testing.assert_array_equal(read_video(tmp_path / name).timestamps, silent.timestamps)
    assert files[0] == files[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "driving.mov"]


def test_a_film_without_sound_leaves_the_clip_silent_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    frames = np.zeros((10, 64, 64, 3), np.uint8)
    write_video(tmp_path / "driving.mp4", frames, 25)
    write_video(tmp_path / "clip.mp4", frames, 25)
    before = (tmp_path / "clip.mp4").read_bytes()
    with caplog.at_level("INFO"):
        assert not keep_sound(tmp_path / "driving.mp4", tmp_path / "clip.mp4", seconds=0.4)
    assert "has no sound" in caplog.text
    assert (tmp_path / "clip.mp4").read_bytes() == before


def test_a_stretch_behind_the_sounds_end_has_none(tmp_path: Path):
    driving = film(tmp_path / "driving.mov", sound_until=1.2)
    assert read_sound(driving, start=1.3, seconds=0.5) is None


def test_what_is_read_has_exactly_the_samples_asked_for(tmp_path: Path):
    driving = film(tmp_path / "driving.mov", layout="5.1", rate=44100)
    sound = read_sound(driving, start=0.5, seconds=37 / 24)
    assert sound is not None
    assert sound.samples.shape == (2, round(37 / 24 * 44100))
    first = int(np.argmax(np.abs(sound.samples).max(0) > 0.1))
    assert first == pytest.approx(0.5 * 44100, abs=2)


def test_damaged_sound_is_kept_as_far_as_it_goes(tmp_path: Path):
    """Of a film that is cut off, as a broken download is, the picture may be used with `partial`; so may its sound."""
    driving = film(tmp_path / "driving.mkv", seconds=4.0, codec="aac")
    whole = driving.read_bytes()
    driving.write_bytes(whole[: len(whole) // 2])
    sound = read_sound(driving, seconds=4.0)
    assert sound is not None
    assert int(np.argmax(np.abs(sound.samples).max(0) > 0.1)) == pytest.approx(48000, abs=48)
    assert not sound.samples[:, 3 * 48000 :].any()


def test_mistakes_are_refused(tmp_path: Path):
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(MediaError):
        read_sound(tmp_path / "text.mp4", seconds=1.0)
    with pytest.raises(InputError, match="above 0"):
        read_sound(tmp_path / "text.mp4", seconds=0.0)
    with pytest.raises(av.error.FFmpegError):
        add_sound(tmp_path / "text.mp4", Sound(np.zeros((1, 100), np.float32), 48000))
    assert (tmp_path / "text.mp4").read_text() == "no film"
