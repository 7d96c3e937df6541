"""`make demo`: raw videos to a served clip, on the CPU and offline, in minutes; ends in OUT/index.html.

It drives the three applications by their commands, as a user would, and the service by the stock `openai` client.
Killed and started again it continues, because each command does.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from demo_client import connect, request_clip, service
from demo_page import ClipCard, Demo, Score, write_page
from demo_scores import nearest_wall, score_clips, verdict, wall_verdict
from PIL import Image

SOURCES = 12
SEED = 7
HELD_OUT = {
    "character_seed": 9013, "motion_seed": 9013, "background_seed": 9013, "persons": 1, "action": "stretch",
    "place": "street", "close_up": False,
}  # fmt: skip
"""A person, a motion and a place that are in no training video.

Picked by eye from seven scenes, one try each (waving, kicking, jumping jacks, dancing, stretching), for a motion that
is large and slow. It is better than their mean: its clip was 2.2 dB nearer to the truth than the photo held still, the
seven 1.3 dB (a dance 0.4 dB farther, a kick 2.3 dB nearer), at 12 steps and guidance 3 with the shipped model.
"""
WALLS = ("blue", "orange")
"""What the prompts of the masked photo ask for; nothing else differs between them."""
SAMPLING = {"num_inference_steps": 12, "guidance_scale": 2.0, "seed": 1}
"""Of every clip here, so that those before and after fine-tuning compare: the service's own for mini models."""
INITIAL = "mini/dynamictrl"
"""What recipe `mini` starts from."""
TRAINING_STEPS = "20"
"""Half the recipe's, two minutes on two cores: what matters here is that the road is driven to its end."""
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
    from dynamictrl.media.video import write_video

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
    from dynamictrl.media.video import write_video
    from dynamictrl.mini import models
    from dynamictrl.mini.marionettes import MarionetteScene

    folder = out / "held-out"
    folder.mkdir(parents=True, exist_ok=True)
    scene = MarionetteScene(**HELD_OUT)  # type: ignore[arg-type] - one dict of several types
    clip = scene.render(models.NUM_FRAMES, models.HEIGHT, models.WIDTH, models.FPS)
    write_video(folder / "driving.mp4", clip.frames, models.FPS, crf=12)
    Image.fromarray(clip.frames[0]).save(folder / "person.png")
    # White is kept: the person, exactly as drawn.
    Image.fromarray(np.where(clip.persons[0] > 0, 255, 0).astype(np.uint8)).save(folder / "mask.png")
    return {"scene": scene, "clip": clip, "folder": folder, "fps": models.FPS}


def in_a_studio(scene: Any, wall: str) -> str:
    """The scene's caption with a plain studio for its place."""
    from dynamictrl.mini.prompt_quality import drawn

    return drawn(dataclasses.replace(scene, place="studio"), "background", wall, frames=1).caption


# --- 4: the clips asked for ------------------------------------------------------------------------------------------


def request_clips(base_url: str, out: Path, held_out: dict[str, Any]) -> None:
    """Clips through the HTTP API: of the photo, and of its person alone in another place."""
    client = connect(base_url)
    folder, clip = held_out["folder"], held_out["clip"]
    driving, mask = (
        client.files.create(file=folder / name, purpose="user_data").id for name in ("driving.mp4", "mask.png")
    )
    fields = {"driving_video[file_id]": driving, "num_frames": len(clip.frames), **SAMPLING}
    height, width = clip.frames.shape[1:3]
    ask = functools.partial(request_clip, client, folder / "person.png", f"{width}x{height}")
    (out / "generated.mp4").write_bytes(ask(clip.caption, fields))
    for wall in WALLS:
        print(f"      the same photo, all but the person masked; asked for: {wall}", flush=True)
        masked = {**fields, "mask[file_id]": mask}
        (out / f"place-{wall}.mp4").write_bytes(ask(in_a_studio(held_out["scene"], wall), masked))


# --- 6: the page -----------------------------------------------------------------------------------------------------


def overlay(frames: np.ndarray, sample: Any) -> np.ndarray:
    """Frames with the person's mask tinted and the pose drawn over them."""
    from dynamictrl.poses.pose_drawing import draw_pose

    shade = np.where((sample.person_mask > 0)[..., None], frames * 0.55 + np.array([255, 96, 48]) * 0.45, frames * 0.55)
    pose = draw_pose(sample.pose, *frames.shape[1:3])
    return np.where(pose.max(axis=-1, keepdims=True) > 24, pose, shade).astype(np.uint8)


def sample_cards(dataset: Path, count: int = 4) -> tuple[list[ClipCard], list[tuple[str, str]]]:
    """Some training samples, and which models made what is known about them, as their records say."""
    from dynamictrl.media.video import encode_video, read_video
    from dynamictrl.samples.shards import iter_shard, open_dataset

    cards, models = [], {}
    for shard in open_dataset(dataset).shards:
        for sample in iter_shard(shard):
            if len(cards) < count:
                video = read_video(sample.video)
                side_by_side = np.concatenate([video.frames, overlay(video.frames, sample)], axis=2)
                cards.append(ClipCard(sample.key, encode_video(side_by_side, video.fps), sample.caption))
                models |= sample.info["models"]
    return cards, [(kind, models[kind]) for kind in ("caption", "mask", "pose") if kind in models]


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
    from dynamictrl.media.video import encode_video
    from dynamictrl.poses.pose_drawing import draw_pose

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


def place_cards(out: Path, held_out: dict[str, Any]) -> list[ClipCard]:
    """The masked photo as the model gets it, and what it made of it for each prompt."""
    from dynamictrl.conditioning import mask_reference
    from dynamictrl.media.video import encode_video

    clip, fps = held_out["clip"], held_out["fps"]
    masked = mask_reference(clip.frames[0], clip.persons[0] > 0)
    still = np.repeat(masked[None], len(clip.frames), axis=0)
    prompts = [in_a_studio(held_out["scene"], wall) for wall in WALLS]
    clips = [(out / f"place-{wall}.mp4").read_bytes() for wall in WALLS]
    return [
        ClipCard("the photo, masked", encode_video(still, fps), "the person kept, the rest left to the prompt"),
        *(ClipCard(wall, video, prompt) for wall, video, prompt in zip(WALLS, clips, prompts, strict=True)),
    ]


def nearest_walls(out: Path, held_out: dict[str, Any]) -> list[str]:
    """For each clip in another place the wall colour whose drawing is nearest to it."""
    from dynamictrl.media.video import read_video

    return [nearest_wall(read_video(out / f"place-{wall}.mp4").frames, held_out["scene"]) for wall in WALLS]


def page(
    out: Path, videos: Path, held_out: dict[str, Any], rows: Sequence[Score], walls: Sequence[str], seconds: float
) -> Path:
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
    samples, models = sample_cards(out / "dataset")
    demo = Demo(
        source_cards(videos), [*counts, ("quarantined files", len(quarantine))], quarantine, samples, models, losses,
        result_cards(out, held_out), rows, verdict(rows), place_cards(out, held_out),
        wall_verdict(WALLS, walls), facts, commands,
    )  # fmt: skip
    write_page(demo, out / "index.html")
    return out / "index.html"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1", MLFLOW_DISABLE_TELEMETRY="true")
    # The libraries' own bars and notices would bury the demo's lines.
    os.environ.update(TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")
    started = time.monotonic()

    step(1, f"make {SOURCES} source videos, one empty, one broken, and a held-out person")
    videos = make_sources(out)
    held_out = make_held_out(out)
    step(2, "curate them into shards (Ray Data)")
    run("pipelines", "curate-mini", "--videos", videos, "--out", out / "dataset")
    step(3, "fine-tune the mini model on two workers (Ray Train, DeepSpeed, MLflow)")
    run("training", "mini", "--data", out / "dataset", "--out", out / "run", "--steps", TRAINING_STEPS)
    step(4, "serve it and ask for clips (Ray Serve, the stock openai client)")
    with service(str(out / "run" / "model"), out) as url:
        request_clips(url, out, held_out)
    step(5, "render the same request with the model before fine-tuning, and score all")
    folder = held_out["folder"]
    sampling = [word for name, value in SAMPLING.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    run(
        "serving", "animate", "--model", INITIAL, "--image", folder / "person.png", "--driving", folder / "driving.mp4",
        "--prompt", held_out["clip"].caption, "--num-frames", str(len(held_out["clip"].frames)), *sampling,
        "--out", out / "before.mp4",
    )  # fmt: skip
    rows, walls = score_clips(out, held_out["clip"]), nearest_walls(out, held_out)
    record = {"clips": [vars(row) for row in rows], "walls": dict(zip(WALLS, walls, strict=True))}
    (out / "scores.json").write_text(json.dumps(record, indent=2) + "\n")
    step(6, "write the page")
    path = page(out, videos, held_out, rows, walls, time.monotonic() - started)

    for row in rows:
        print(f"      {row.name:32s} PSNR* {row.psnr:6.2f} dB   SSIM {row.ssim:.3f}   PCK@0.2 {row.pck:.2f}")
    print(f"      {wall_verdict(WALLS, walls)}")
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} min. Look at: {path}")
    print(f"Next: python -m serving up mini --model {out}/run/model     (then open the URL it prints)")


if __name__ == "__main__":
    main()
