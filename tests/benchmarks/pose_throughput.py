"""Whole-body pose, frames per second: ours in batches against rtmlib frame by frame, same device, files and frames.

    PYTHONPATH=. python tests/benchmarks/pose_throughput.py --device cuda --out pose.json
    PYTHONPATH=. python tests/benchmarks/pose_throughput.py --device cpu --width 0.25 --frames 16

The files have the arithmetic of YOLOX-L and DWPose-l and the answers of `mini/dwpose` (`pose_networks`). The frames are
marionettes at 1280x720, a third of them each with one, two and three persons, in memory for both. rtmlib is taken as it
comes (`Wholebody`, onnxruntime), its detector's score limit set to ours. Ours does what it does in a pipeline, tracking
included. Both take turns; medians over rounds. Needs onnx, rtmlib, and for cuda onnxruntime-gpu; nvidia-ml-py for how
busy the GPU is.

How far joints lie apart is measured between the same joints of the same persons, where they are seen. SimCC picks the
highest of some hundred bins: where two are equal but for rounding, a joint lies elsewhere. rtmlib against itself with
its boxes moved by a hundredth of a pixel says how often that is. Convolutions in TF32 round to ten bits, so joints are
compared once more with TF32 turned off.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from pose_agreement import FPS, HEIGHT, WIDTH, Clips, People, compare, draw_clips, people_of

from dynamictrl.poses.dwpose import PoseEstimator
from dynamictrl.poses.dwpose_networks import Acceleration, load_cuda_libraries, open_session
from dynamictrl.poses.dwpose_pictures import CROP_HEIGHT, CROP_WIDTH

PASSES = 4
"""Times that our rounds go through the clips: a stream has no end at which batches are part full."""


class Rtmlib:
    """rtmlib's whole-body solution, one frame at a time."""

    def __init__(self, folder: Path, device: str):
        from rtmlib import Wholebody

        self.solution = Wholebody(
            det=str(folder / "yolox_l.onnx"), pose=str(folder / "dw-ll_ucoco_384.onnx"), pose_input_size=(288, 384),
            backend="onnxruntime", device=device,
        )  # fmt: skip
        self.solution.det_model.score_thr = 0.3
        ran_on = self.solution.det_model.session.get_providers()[0]
        assert ran_on == {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device], ran_on

    def __call__(self, clips: Clips) -> People:
        return [[list(zip(*self.solution(frame), strict=True)) for frame in clip] for clip in clips]

    def moved(self, clips: Clips, by: float) -> People:
        """With its own boxes moved by this many pixels: how much of a difference is nobody's fault."""
        find, place = self.solution.det_model, self.solution.pose_model
        return [[list(zip(*place(f, bboxes=find(f) + by), strict=True)) for f in clip] for clip in clips]


class Busy:
    """Samples how busy the GPU is (NVML: the share of time with a kernel running) while it is entered."""

    def __init__(self, device: str):
        self.samples: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True) if device == "cuda" else None

    def _watch(self) -> None:
        with suppress(Exception):
            import pynvml

            pynvml.nvmlInit()
            card = pynvml.nvmlDeviceGetHandleByIndex(0)
            while not self._stop.wait(0.1):
                self.samples.append(pynvml.nvmlDeviceGetUtilizationRates(card).gpu)

    def __enter__(self) -> Busy:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def share(self) -> float | None:
        """Per cent, median, the first second left out, over which the counter is a mean."""
        return statistics.median(self.samples[10:]) if len(self.samples) > 12 else None


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def busy_share(device: str, seconds: float, work: Callable[[], object]) -> float | None:
    with Busy(device) as busy:
        end = time.perf_counter() + seconds
        while device == "cuda" and time.perf_counter() < end:
            work()
    return busy.share()


def per_run(folder: Path, device: str, estimator: PoseEstimator) -> dict[str, float]:
    """Milliseconds a run: the files as they are on one picture, the small networks alone, and ours on a batch."""
    mini = Path(__file__).parents[2] / "dynamictrl/mini/weights/dwpose"
    rng = np.random.default_rng(0)
    found: dict[str, float] = {}
    for what, place in (("published", folder), ("mini", mini)):
        for name, shape in (("yolox_l.onnx", (1, 3, 640, 640)), ("dw-ll_ucoco_384.onnx", (1, 3, 384, 288))):
            session = open_session(place / name, device, None)
            feed = {session.get_inputs()[0].name: rng.standard_normal(shape, np.float32)}
            found[f"{what} {name}, 1 picture"] = run_ms(lambda s=session, f=feed: s.run(None, f))
    for name, network in (("detector", estimator._detector), ("pose", estimator._pose)):
        side = (640, 640) if name == "detector" else (CROP_HEIGHT, CROP_WIDTH)
        pictures = list(rng.integers(0, 256, (network.batch_size, *side, 3), np.uint8))
        found[f"ours {name}, {network.batch_size} pictures"] = run_ms(lambda n=network, p=pictures: n._network.run(p))
    return found


def run_ms(work: Callable[[], object], most: float = 1.0) -> float:
    work()
    work()
    times = []
    while sum(times) < most and len(times) < 30:
        times.append(timed(work))
    return 1000 * statistics.median(times)


def sweep(folder: Path, clips: Clips, start: Acceleration, end: float) -> list[dict[str, Any]]:
    """Frames per second with other settings, until the time is up."""
    several = [
        replace(start, at_once=3, threads=10),
        replace(start, at_once=1),
        replace(start, tf32=False),
        replace(start, frames=32, crops=64),
        replace(start, frames=8, crops=16),
        replace(start, search="EXHAUSTIVE"),
        replace(start, channels_last=True),
    ]
    found = []
    total = sum(map(len, clips))
    for how in several:
        if time.perf_counter() > end:
            break
        row: dict[str, Any] = asdict(how)
        try:
            began = time.perf_counter()
            estimator = PoseEstimator(folder, provider="cuda", acceleration=how)
            list(estimator.many(clips))
            row["first_pass_s"] = time.perf_counter() - began
            row["frames_per_second"] = total / statistics.median(
                timed(lambda e=estimator: list(e.many(clips))) for _ in range(3)
            )
        except Exception as problem:  # noqa: BLE001 - one setting that fails is a result
            row["failed"] = str(problem)[:300]
        print("  ", row, flush=True)
        found.append(row)
    return found


def through_the_stage(folder: Path, clips: Clips, device: str) -> dict[str, float]:
    """Frames per second of the pipeline's stage: H.264 files in, `pose.npz` files out, each clip three times."""
    from dynamictrl.media.video import write_video
    from pipelines.clip import Clip
    from pipelines.stage import step
    from pipelines.stages.estimate_pose import EstimatePose

    with tempfile.TemporaryDirectory() as work:
        rows = []
        for index in range(3 * len(clips)):
            frames = clips[index % len(clips)]
            clip = Clip(source_sha256=f"{index}" * 64, work=work, fps=FPS, frames=len(frames)).at(0, len(frames) / FPS)
            clip.folder.mkdir(parents=True)
            if index < len(clips):
                write_video(clip.file("mp4"), np.stack(frames), FPS)
            else:
                clip.file("mp4").write_bytes(rows[index - len(clips)].file("mp4").read_bytes())
            rows.append(clip.with_file("mp4"))
        stage = EstimatePose(model=str(folder), device="cuda" if device == "cuda" else "cpu")
        stage.setup()
        step(stage, rows[:1])
        done = []
        seconds = [timed(lambda: done.extend(step(stage, rows))) for _ in range(3)]
        assert not any(clip.rejected for clip in done), [clip.message for clip in done if clip.rejected]
        return {"frames_per_second": sum(clip.frames for clip in rows) / statistics.median(seconds), "clips": len(rows)}


def without_tf32(folder: Path, frames: int) -> dict[str, Any]:
    """The comparison of joints in a process of its own in which CUDA's libraries keep 23 bits."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "exact.json"
        command = [sys.executable, __file__, "--device", "cuda", "--frames", str(frames), "--out", str(out)]
        subprocess.run(
            [*command, "--onnx", str(folder), "--compare-only"],
            env={**os.environ, "NVIDIA_TF32_OVERRIDE": "0"}, check=True, timeout=90, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return json.loads(out.read_text())["joints"]


def write_files(folder: Path, width: float) -> None:
    from pose_networks import PUBLISHED, counts, write_detector, write_pose_model

    for name, (weights, multiply_adds) in counts().items():
        published = PUBLISHED[name]
        off = weights / published[0] - 1, multiply_adds / published[1] - 1
        print(f"{name}: {weights / 1e6:.2f} M weights ({off[0]:+.1%} of published), "
              f"{2 * multiply_adds / 1e9:.1f} GFLOP ({off[1]:+.1%})")  # fmt: skip
        assert max(map(abs, off)) < 0.02, "not the published network"
    write_detector(folder, width)
    write_pose_model(folder, width)


def machine(device: str) -> dict[str, Any]:
    import onnxruntime

    name = "cpu"
    if device == "cuda":
        load_cuda_libraries()
        with suppress(Exception):
            import pynvml

            pynvml.nvmlInit()
            name = str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))
    return {"device": name, "cores": os.cpu_count(), "onnxruntime": onnxruntime.__version__}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--frames", type=int, default=144, help="a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=float, default=1.0, help="channels over the published ones'; for quick tries")
    parser.add_argument("--seconds", type=float, default=140, help="after which no other settings are tried")
    parser.add_argument("--onnx", type=Path, default=None, help="folder with files written before")
    parser.add_argument("--compare-only", action="store_true")
    parser.add_argument("--out", type=Path, default=None, help="JSON")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    end = time.perf_counter() + options.seconds
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.onnx or Path(scratch)
        if options.onnx is None:
            write_files(folder, options.width)
        measure(options, folder, end)


def measure(options: argparse.Namespace, folder: Path, end: float) -> None:
    result: dict[str, Any] = {"on": machine(options.device)}

    def say(name: str, value: Any) -> None:
        result[name] = value
        print(f"{name}: {json.dumps(value)}", flush=True)
        if options.out:
            options.out.write_text(json.dumps(result, indent=1))

    say("frames", {"a_round": options.frames, "size": [WIDTH, HEIGHT], "channels_share": options.width})
    clips = draw_clips(options.frames)
    total = sum(map(len, clips))
    how = Acceleration() if options.device == "cuda" else Acceleration(frames=2, crops=4, threads=2)
    rtmlib = Rtmlib(folder, options.device)
    say("our_load_s", timed(lambda: PoseEstimator(folder, provider=options.device, acceleration=how)))
    ours = PoseEstimator(folder, provider=options.device, acceleration=how)
    say("settings", {**asdict(how), "detector_note": ours._detector.note, "detector_batch": ours._detector.batch_size})
    assert ours._detector.batch_size == how.frames, "the detector was not freed of its batch of 1"
    rtmlib([clip[:2] for clip in clips])
    list(ours.many(clips))
    them = rtmlib(clips)
    say("joints", compare(them, people_of(list(ours.many(clips)))))
    say("joints_of_rtmlib_with_boxes_moved_by_0.01_px", compare(them, rtmlib.moved(clips, 0.01)))
    if options.compare_only:
        return
    theirs_s, ours_s = [], []
    for _ in range(options.rounds):
        theirs_s.append(timed(lambda: rtmlib(clips)))
        ours_s.append(timed(lambda: list(ours.many(PASSES * clips))) / PASSES)
    theirs, mine = statistics.median(theirs_s), statistics.median(ours_s)
    say("rtmlib_frames_per_second", total / theirs)
    say("our_frames_per_second", total / mine)
    say("times_as_fast", theirs / mine)
    say("all_rounds_s", {"rtmlib": theirs_s, "ours": ours_s})
    say("gpu_busy_percent", {
        "rtmlib": busy_share(options.device, 3, lambda: rtmlib(clips)),
        "ours": busy_share(options.device, 5, lambda: list(ours.many(10 * clips))),
    })  # fmt: skip
    runs = per_run(folder, options.device, ours)
    say("ms_a_run", runs)
    persons = sum(len(people) for clip in rtmlib([clip[:1] for clip in clips]) for people in clip) / 3
    small = (runs["mini yolox_l.onnx, 1 picture"] + persons * runs["mini dw-ll_ucoco_384.onnx, 1 picture"]) / 1000
    # What rtmlib would gain were the small networks, which it runs one by one, free.
    say("times_as_fast_less_small_networks", (theirs / total - small) / (mine / total))
    say("stage_from_files", through_the_stage(folder, clips, options.device))
    if options.device == "cuda":
        say("joints_without_tf32", without_tf32(folder, 36))
        say("other_settings", sweep(folder, PASSES * clips, how, end))


if __name__ == "__main__":
    main()
