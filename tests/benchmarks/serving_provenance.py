"""What signing and marking cost, and what they withstand: signatures valid, marks found, false alarms.

python tests/benchmarks/serving_provenance.py [--clips 24] [--drawn N] [--media FOLDER_OF_VIDEOS]

Clips are rendered by the model (mini by default) from marionettes, finished as a worker does, and read from the files
as `python -m serving verify` does. `--media` adds real videos, cut to 37 frames and to at most 640x360 pixels.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynamictrl.media import invisible_mark
from dynamictrl.media.video import crop_to_even, encode_video, read_video, write_video
from dynamictrl.mini.marionettes import sample_clip
from dynamictrl.poses.pose_drawing import draw_pose
from serving.jobs.job import AnimationJob, Settings
from serving.recipes import mini
from serving.results.blobs import new_id
from serving.results.certificates import open_mark_key
from serving.results.finishing import Finisher, payload_of
from serving.results.manifest import Rendering
from serving.results.provenance import Claim, Notary, read_credentials
from serving.results.verification import Verify, verify

Frames = NDArray[np.uint8]


@dataclass
class Tally:
    """Counts and times over all clips."""

    clips: int = 0
    valid: int = 0
    tampered_noticed: int = 0
    tampered: int = 0
    finish_sign_s: list[float] = field(default_factory=list)
    mark_s: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    found: dict[str, list[bool]] = field(default_factory=dict)
    null: list[float] = field(default_factory=list)


def rendered(model: str, count: int) -> Iterator[tuple[str, Frames]]:
    """Clips of the model, each of another marionette, prompt and motion."""
    from serving.rendering.engine import Engine
    from serving.rendering.model_source import locate

    engine = Engine(locate(model), "mini/dwpose", device="auto", threads=2)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(count):
            source = sample_clip(np.random.default_rng(1000 + seed), num_frames=25, height=192, width=128, fps=12)
            Image.fromarray(source.frames[0]).save(Path(folder) / "person.png")
            write_video(Path(folder) / "pose.mp4", draw_pose(source.pose, 192, 128), 12)
            settings = Settings(
                prompt=source.caption, width=128, height=192, num_frames=25, fps=12.0, resample=False,
                num_inference_steps=6, guidance_scale=2.0, seed=seed
            )  # fmt: skip
            job = AnimationJob(
                settings=settings, image=Path(folder) / "person.png", pose_video=Path(folder) / "pose.mp4"
            )
            yield f"{model} {seed}", engine.animate(job).frames


def drawn(count: int) -> Iterator[tuple[str, Frames]]:
    """Marionettes as they are drawn: pictures of the mini model's size without the model."""
    for seed in range(count):
        clip = sample_clip(np.random.default_rng(2000 + seed), num_frames=25, height=192, width=128, fps=12)
        yield f"marionette {seed}", clip.frames


def real(folder: Path) -> Iterator[tuple[str, Frames]]:
    for path in sorted(folder.rglob("*.mp4")):
        yield path.stem, crop_to_even(read_video(path, num_frames=37, max_pixels=640 * 360).frames)


def attacks(clip: Frames) -> dict[str, Frames]:
    """What people do to a clip, from the file's own frames."""
    height, width = clip.shape[1:3]
    size = (round(width * 0.9) // 2 * 2, round(height * 0.9) // 2 * 2)
    smaller = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in clip]).astype(np.uint8)
    cropped = crop_to_even(clip[:, height // 20 : -height // 25, width // 25 : -width // 20])
    both = crop_to_even(smaller[:, 3:-5, 5:-3])
    return {
        "the file itself (CRF 18)": clip,
        "encoded again at CRF 18": _again(clip, 18),
        "encoded again at CRF 23": _again(clip, 23),
        "encoded again at CRF 28": _again(clip, 28),
        "90 % size, CRF 23": _again(smaller, 23),
        "9 % cropped, CRF 23": _again(cropped, 23),
        "90 % size and cropped, CRF 23": _again(both, 23),
    }


def _again(frames: Frames, crf: int) -> Frames:
    return read_video(encode_video(frames, 12.0, crf=crf)).frames


def measure(name: str, frames: Frames, finisher: Finisher, key: bytes, folder: Path, tally: Tally) -> None:
    video_id = new_id("video")
    settings = Settings(
        prompt=name, width=frames.shape[2], height=frames.shape[1], num_frames=len(frames), fps=12.0, resample=False,
        num_inference_steps=6, guidance_scale=2.0, seed=1
    )  # fmt: skip
    told = Rendering(
        video_id=video_id, model="m", model_version="v", is_mini=True, settings=settings, frames=frames,
        inputs={"input_reference": secrets.token_hex(32)}, engine={"device": "cpu"}
    )  # fmt: skip
    done = finisher.finish(folder, frames, 12.0, None, told)
    tally.clips += 1
    tally.finish_sign_s.append(done.seconds["sign"])
    tally.mark_s.append(done.seconds["mark"])
    file = folder / "video.mp4"
    tally.valid += verify(Verify(file=file)).is_good
    _tamper(file, tally)
    marked = invisible_mark.mark(frames, payload_of(video_id), key)
    tally.psnr.append(10 * np.log10(255**2 / np.mean((marked.astype(np.float32) - frames) ** 2)))
    shape = f"{frames.shape[2]}x{frames.shape[1]}"
    for attack, seen in attacks(read_video(file).frames).items():
        mark = invisible_mark.find(seen, key)
        tally.found.setdefault(f"{'mini' if shape == '128x192' else 'real'}: {attack}", []).append(
            mark is not None and mark.payload == payload_of(video_id)
        )
    tally.null.append(invisible_mark.strongest(frames, key).score)  # never marked
    tally.null.append(invisible_mark.strongest(read_video(file).frames, secrets.token_bytes(32)).score)  # another key


def _tamper(file: Path, tally: Tally) -> None:
    whole = file.read_bytes()
    for place in np.random.default_rng(len(whole)).integers(whole.index(b"mdat") + 8, len(whole), 4):
        changed = bytearray(whole)
        changed[int(place)] ^= 1
        (file.parent / "changed.mp4").write_bytes(changed)
        found = read_credentials(file.parent / "changed.mp4")
        tally.tampered += 1
        tally.tampered_noticed += found is None or not found.is_intact
    (file.parent / "changed.mp4").unlink()


def large_file(finisher_folder: Path) -> tuple[float, float]:
    """Seconds to sign one clip of 37 noisy frames 1360x768, and its MB."""
    from serving.results.certificates import open_identity

    frames = np.random.default_rng(0).integers(0, 255, (37, 768 // 4, 1360 // 4, 3), dtype=np.uint8)
    frames = frames.repeat(4, axis=1).repeat(4, axis=2)
    path = finisher_folder / "large.mp4"
    write_video(path, frames, 24.0)
    notary = Notary(open_identity("", "", finisher_folder / "signing"))
    start = time.perf_counter()
    notary.sign(path, Claim("large", {"seed": 1}, {"input_reference": "0" * 64}))
    return time.perf_counter() - start, path.stat().st_size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--model", default="mini/dynamictrl")
    parser.add_argument("--drawn", type=int, default=0)
    parser.add_argument("--media", type=Path)
    wish = parser.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as text:
        data = Path(text)
        service = mini()
        finisher = Finisher(type(service)(**{**vars(service), "invisible_mark": True}), data)
        key = open_mark_key("", data)
        sources = [rendered(wish.model, wish.clips)] if wish.clips else []
        sources += [drawn(wish.drawn)] + ([real(wish.media)] if wish.media else [])
        with suppress(KeyboardInterrupt):  # what was measured until then is worth showing
            for number, (name, frames) in enumerate(chain.from_iterable(sources)):
                print(f"{name}: {len(frames)} frames {frames.shape[2]}x{frames.shape[1]}", file=sys.stderr)
                measure(name, frames, finisher, key, data / f"{tally.clips}-{number}", tally)
        seconds, megabytes = large_file(data)
    print(f"clips                          {tally.clips}")
    print(f"signature valid                {tally.valid}/{tally.clips}")
    print(f"changed byte noticed           {tally.tampered_noticed}/{tally.tampered}")
    print(f"signing, 3 files a clip        median {median(tally.finish_sign_s) * 1e3:.1f} ms, "
          f"most {max(tally.finish_sign_s) * 1e3:.1f} ms")  # fmt: skip
    print(f"signing one clip of {megabytes:.0f} MB     {seconds * 1e3:.0f} ms")
    print(f"marking                        median {median(tally.mark_s):.2f} s, most {max(tally.mark_s):.2f} s")
    print(f"PSNR of the mark               least {min(tally.psnr):.1f} dB, median {median(tally.psnr):.1f} dB")
    for attack, found in tally.found.items():
        print(f"mark found, {attack:40} {sum(found)}/{len(found)}")
    print(f"false alarms                   {sum(s >= invisible_mark.FOUND for s in tally.null)}/{len(tally.null)}, "
          f"highest score {max(tally.null):.1f} (found from {invisible_mark.FOUND:g})")  # fmt: skip


if __name__ == "__main__":
    main()
