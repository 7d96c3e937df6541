"""`make demo`: raw videos to a served clip, on the CPU and offline, in minutes; ends in OUT/index.html.

It drives the three applications by their commands, as a user would, and the service by the stock `openai` client.
Killed and started again it continues, because each command does.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from demo_page import ClipCard, Demo, Score, write_page
from PIL import Image

SOURCES = 12
SEED = 7
HELD_OUT = {"character_seed": 9002, "motion_seed": 9002, "background_seed": 9007, "persons": 1, "action": "wave"}
"""A person, a motion and a place that are in no training video."""
INITIAL = "mini/dynamictrl"
"""What recipe `mini` starts from."""
STEPS = 6


def step(number: int, text: str) -> None:
    print(f"\n[{number}/{STEPS}] {text}", flush=True)


def run(*words: str | Path, **environment: str) -> None:
    """Runs one of the project's own commands, its progress on this terminal; stops the demo where it fails."""
    command = [sys.executable, "-m", *map(str, words)]
    print("      $ python -m " + " ".join(map(str, words)), flush=True)
    done = subprocess.run(command, env={**os.environ, **environment}, check=False)
    if done.returncode:
        sys.exit(f"demo: `python -m {' '.join(map(str, words[:2]))}` ended with exit code {done.returncode}")


# --- 1: sources ------------------------------------------------------------------------------------------------------


def make_sources(out: Path) -> Path:
    """Marionette videos, one broken download and one video without anyone in it: what a crawl brings."""
    from dynamictrl.video import write_video

    folder = out / "videos"
    run("pipelines", "marionettes", "--out", folder, "--count", str(SOURCES), "--seed", str(SEED))
    whole = sorted(folder.glob("*.mp4"))[0].read_bytes()
    (folder / "broken-download.mp4").write_bytes(whole[: len(whole) // 50])
    write_video(folder / "nobody-home.mp4", drifting_hills(), 12.0)
    return folder


def drifting_hills(frames: int = 40, height: int = 240, width: int = 320) -> np.ndarray:
    """A landscape that drifts by, uint8 [frames, height, width, 3]: sharp, moving, and nobody in it."""
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(SEED)
    grain = rng.integers(0, 18, (height, width, 1))
    pictures = []
    for i in range(frames):
        ridge = 130 + 25 * np.sin((x + 4 * i) / 35) + 8 * np.sin((x + 4 * i) / 9)
        land = (y > ridge)[..., None]
        sky = np.stack([120 + y // 3, 170 + y // 4, np.full_like(y, 235)], axis=-1)
        field = np.stack([60 + y // 6, 120 + y // 8, np.full_like(y, 60)], axis=-1)
        pictures.append(np.where(land, field, sky) + np.roll(grain, -4 * i, axis=1) * land)
    return np.clip(np.stack(pictures), 0, 255).astype(np.uint8)


def make_held_out(out: Path) -> dict[str, Any]:
    """A scene no model has seen: its video drives, its first frame is the photo, its frames are the truth."""
    from dynamictrl.mini import models
    from dynamictrl.mini.marionettes import MarionetteScene
    from dynamictrl.video import write_video

    folder = out / "held-out"
    folder.mkdir(parents=True, exist_ok=True)
    clip = MarionetteScene(**HELD_OUT).render(models.NUM_FRAMES, models.HEIGHT, models.WIDTH, models.FPS)
    write_video(folder / "driving.mp4", clip.frames, models.FPS, crf=12)
    Image.fromarray(clip.frames[0]).save(folder / "person.png")
    return {"clip": clip, "folder": folder, "fps": models.FPS}


# --- 4: the service --------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def service(model: str, out: Path) -> Iterator[str]:
    """The Videos API in a process of its own; drained with Ctrl-C at the end."""
    port = free_port()
    words = ["serving", "up", "mini", "--model", model, "--port", str(port), "--data-folder", str(out / "serving")]
    print("      $ python -m " + " ".join(words), flush=True)
    with (out / "serving.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", *words], stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}/readyz", process, out / "serving.log")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"demo: the service stopped; its log is {log}:\n" + "\n".join(log.read_text().splitlines()[-15:]))
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.5)
    sys.exit(f"demo: the service was not ready within {seconds:.0f} s; its log is {log}")


def request_clip(base_url: str, held_out: dict[str, Any]) -> bytes:
    """One clip through the HTTP API with the stock client: upload the driving video, create, poll, download."""
    import warnings

    from openai import OpenAI

    # The client announces the end of its own vendor's service; the API lives on in services like this one.
    warnings.filterwarnings("ignore", message="The Sora API", category=DeprecationWarning)
    client = OpenAI(base_url=base_url, api_key="not-needed-on-loopback")
    folder, clip = held_out["folder"], held_out["clip"]
    driving = client.files.create(file=folder / "driving.mp4", purpose="user_data")
    height, width = clip.frames.shape[1:3]
    job = client.videos.create(
        prompt=clip.caption,
        input_reference=folder / "person.png",
        size=f"{width}x{height}",  # type: ignore[arg-type] - any size is accepted by our service
        extra_body={"driving_video[file_id]": driving.id, "num_frames": len(clip.frames), "seed": 1},
    )
    started = time.monotonic()
    while job.status in ("queued", "in_progress"):
        print(f"\r      {job.id}: {job.status} {job.progress} % ({time.monotonic() - started:.0f} s)  ", end="")
        sys.stdout.flush()
        time.sleep(1)
        job = client.videos.retrieve(job.id)
    print(f"\r      {job.id}: {job.status} after {time.monotonic() - started:.0f} s          ")
    if job.status != "completed":
        sys.exit(f"demo: the job {job.status}: {job.error}")
    return client.videos.download_content(job.id).read()


# --- 5: scores -------------------------------------------------------------------------------------------------------


def score(name: str, frames: np.ndarray, held_out: dict[str, Any], estimator: Any) -> Score:
    """PSNR* and SSIM against the true frames, and how far the pose found in `frames` follows the driving one."""
    from dynamictrl import metrics

    truth = held_out["clip"].frames
    found = estimator(frames)
    return Score(
        name,
        float(metrics.psnr(frames, truth)),
        float(metrics.ssim(frames, truth)),
        float(metrics.pck(found, held_out["clip"].pose, threshold=0.2)),
    )


def scores(out: Path, held_out: dict[str, Any]) -> list[Score]:
    from dynamictrl.dwpose import PoseEstimator
    from dynamictrl.video import read_video

    estimator = PoseEstimator("mini/dwpose")
    truth = held_out["clip"].frames
    rows = [
        score("after fine-tuning, served", read_video(out / "generated.mp4").frames, held_out, estimator),
        score("before fine-tuning", read_video(out / "before.mp4").frames, held_out, estimator),
        score("control: the photo, held still", np.repeat(truth[:1], len(truth), axis=0), held_out, estimator),
    ]
    (out / "scores.json").write_text(json.dumps([vars(r) for r in rows], indent=2) + "\n")
    return rows


# --- 6: the page -----------------------------------------------------------------------------------------------------


def overlay(frames: np.ndarray, sample: Any) -> np.ndarray:
    """Frames with the person's mask tinted and the pose drawn over them."""
    from dynamictrl.pose_drawing import draw_pose

    shade = np.where((sample.person_mask > 0)[..., None], frames * 0.55 + np.array([255, 96, 48]) * 0.45, frames * 0.55)
    pose = draw_pose(sample.pose, *frames.shape[1:3])
    return np.where(pose.max(axis=-1, keepdims=True) > 24, pose, shade).astype(np.uint8)


def sample_cards(dataset: Path, count: int = 4) -> list[ClipCard]:
    from dynamictrl.shards import iter_shard, open_dataset
    from dynamictrl.video import encode_video, read_video

    cards = []
    for shard in open_dataset(dataset).shards:
        for sample in iter_shard(shard):
            if len(cards) < count:
                video = read_video(sample.video)
                side_by_side = np.concatenate([video.frames, overlay(video.frames, sample)], axis=2)
                cards.append(ClipCard(sample.key, encode_video(side_by_side, video.fps), sample.caption))
    return cards


def source_cards(folder: Path, count: int = 5) -> list[ClipCard]:
    paths = sorted(folder.glob("marionette*.mp4"))
    cards = [ClipCard(p.name, p.read_bytes(), f"{p.stat().st_size // 1024} KiB") for p in paths[:count]]
    broken = folder / "broken-download.mp4"
    rest = len(paths) - len(cards)
    empty = folder / "nobody-home.mp4"
    cards.append(ClipCard(empty.name, empty.read_bytes(), "nobody in it, on purpose"))
    cards.append(ClipCard(broken.name, b"", f"{broken.stat().st_size} bytes of an mp4: broken on purpose"))
    return [*cards, ClipCard(f"and {rest} more", b"")] if rest else cards


def outcomes(dataset: Path) -> list[tuple[str, int]]:
    import pyarrow.parquet as parquet

    reasons = parquet.read_table(dataset / "manifest.parquet", columns=["reason"]).column("reason").to_pylist()
    counts = collections.Counter(reasons)
    kept = counts.pop("", 0) + counts.pop(None, 0)
    return [("kept", kept), *((f"rejected: {r}", n) for r, n in counts.most_common())]


def read_quarantine(dataset: Path) -> list[dict[str, Any]]:
    path = dataset / "quarantine.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{**row, "reason": row.get("reason") or row.get("code", "")} for row in rows]


def read_losses(run_folder: Path) -> list[tuple[int, float]]:
    """The run's loss curve, from the MLflow store."""
    from mlflow import MlflowClient

    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(run_folder / 'mlflow.db').resolve()}"
    client = MlflowClient(uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], order_by=["start_time DESC"])
    history = client.get_metric_history(runs[0].info.run_id, "loss")
    return sorted((m.step, m.value) for m in history)


def result_cards(out: Path, held_out: dict[str, Any]) -> list[ClipCard]:
    from dynamictrl.pose_drawing import draw_pose
    from dynamictrl.video import encode_video

    clip, fps = held_out["clip"], held_out["fps"]
    still = np.repeat(clip.frames[:1], len(clip.frames), axis=0)
    driving = draw_pose(clip.pose, *clip.frames.shape[1:3])
    return [
        ClipCard("the photo", encode_video(still, fps), clip.caption),
        ClipCard("driving motion", encode_video(driving, fps), "its pose, as the model sees it"),
        ClipCard("generated", (out / "generated.mp4").read_bytes(), "by the service, after fine-tuning"),
        ClipCard("the truth", encode_video(clip.frames, fps), "never shown to any model"),
        ClipCard("before fine-tuning", (out / "before.mp4").read_bytes(), f"the same request to {INITIAL}"),
    ]


def page(out: Path, videos: Path, held_out: dict[str, Any], rows: Sequence[Score], seconds: float) -> Path:
    losses = read_losses(out / "run")
    counts = outcomes(out / "dataset")
    quarantine = read_quarantine(out / "dataset")
    facts = [
        ("source videos", str(len(list(videos.glob("*.mp4"))))),
        ("clips kept", str(counts[0][1])),
        ("clips rejected", str(sum(n for _, n in counts[1:]))),
        ("files quarantined", str(len(quarantine))),
        ("training steps", str(losses[-1][0] if losses else 0)),
        ("this run", f"{seconds / 60:.1f} min"),
    ]
    commands = [
        f"python -m pipelines report --dataset {out}/dataset      # every clip, kept or not, and why",
        f"python -m serving up mini --model {out}/run/model       # the service and its playground",
        "python -m training plan dynamictrl-5b                   # what the real model needs",
    ]
    demo = Demo(
        source_cards(videos), [*counts, ("quarantined files", len(quarantine))], quarantine,
        sample_cards(out / "dataset"), losses, result_cards(out, held_out), rows, facts, commands,
    )  # fmt: skip
    write_page(demo, out / "index.html")
    return out / "index.html"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1", MLFLOW_DISABLE_TELEMETRY="true")
    started = time.monotonic()

    step(1, f"make {SOURCES} source videos, one empty, one broken, and a held-out person")
    videos = make_sources(out)
    held_out = make_held_out(out)
    step(2, "curate them into shards (Ray Data)")
    run("pipelines", "curate-mini", "--videos", videos, "--out", out / "dataset")
    step(3, "fine-tune the mini model on two workers (Ray Train, DeepSpeed, MLflow)")
    run("training", "mini", "--data", out / "dataset", "--out", out / "run")
    step(4, "serve it and ask for a clip (Ray Serve, the stock openai client)")
    with service(str(out / "run" / "model"), out) as url:
        (out / "generated.mp4").write_bytes(request_clip(url, held_out))
    step(5, "render the same request with the model before fine-tuning, and score both")
    folder = held_out["folder"]
    run(
        "serving", "animate", "--model", INITIAL, "--image", folder / "person.png", "--driving", folder / "driving.mp4",
        "--prompt", held_out["clip"].caption, "--num-frames", str(len(held_out["clip"].frames)), "--seed", "1",
        "--out", out / "before.mp4",
    )  # fmt: skip
    rows = scores(out, held_out)
    step(6, "write the page")
    path = page(out, videos, held_out, rows, time.monotonic() - started)

    for row in rows:
        print(f"      {row.name:32s} PSNR* {row.psnr:6.2f} dB   SSIM {row.ssim:.3f}   PCK@0.2 {row.pck:.2f}")
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} min. Look at: {path}")
    print(f"Next: python -m serving up mini --model {out}/run/model     (then open the URL it prints)")


if __name__ == "__main__":
    main()
