"""Measures a model on a data set's clips: metrics.json, and a page with the clips side by side.

Each clip gives its first frame as reference, its drawn poses, its caption, and the truth. Two controls stand beside the
model: the reference image copied into every frame, and, where named, another model (such as the one before
fine-tuning). The reference frame itself is not scored.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynamictrl import weights
from dynamictrl.errors import CheckpointError, ConfigError
from dynamictrl.samples.shards import read_sample, write_json
from dynamictrl.samples.windows import Window, WindowPixels, read_window
from training.planning.plan import check_shape
from training.samples.data import Entry, build_index
from training.settings.clips import Clips
from training.settings.evaluation import Evaluation
from training.settings.workers import Device

if TYPE_CHECKING:
    from dynamictrl.animation import DynamiCtrlPipeline

logger = logging.getLogger(__name__)

Scores = dict[str, dict[str, float]]
"""What is scored, to metric, to value."""
Scored = dict[str, Scores]
"""A clip's key to its scores."""


def evaluate(settings: Evaluation) -> Path:
    """Scores a model and returns the page; clips scored by an earlier, stopped call are not rendered again.

    Raises ConfigError, CheckpointError or DatasetError for what cannot be measured.
    """
    clips = _clips(settings)
    check_shape(clips.height, clips.width, clips.num_frames)
    index = build_index(settings.data, clips)
    entries = index.entries[: settings.samples or None]
    models = {"model": settings.model} | ({"against": settings.against} if settings.against else {})
    _check_models(models.values())
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "clips").mkdir(exist_ok=True)
    identity = _identity(settings, clips)
    pipelines: dict[str, DynamiCtrlPipeline] = {}
    records: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(_shown(entries), 1):
        record = settings.out / "clips" / f"{entry.key}.json"
        known = _known(record, identity)
        if known is None:
            pipelines = pipelines or {name: load_pipeline(model, settings.device) for name, model in models.items()}
            video = settings.out / "clips" / f"{entry.key}.mp4"
            known = score_clip(entry, clips, pipelines, settings, video)
            known["identity"] = identity
            write_json(record, known)
        records[entry.key] = known
        logger.info("clip %d of %d: %s", number, len(entries), _line(known["scores"]["model"]))
    scores: Scored = {key: known["scores"] for key, known in records.items()}
    captions: dict[str, str] = {key: known["caption"] for key, known in records.items()}
    result = {
        "settings": {name: str(value) for name, value in dataclasses.asdict(settings).items()},
        "eval_size": {"height": clips.height, "width": clips.width, "num_frames": clips.num_frames, "fps": clips.fps},
        "crop": f"covering the size, centred on the {clips.crop}",
        "clips": len(entries),
        "mean": mean_scores(scores.values()),
        "per_clip": scores,
    }
    write_json(settings.out / "metrics.json", result)
    page = settings.out / "index.html"
    page.write_text(_page(result["mean"], scores, captions, list(models.values())), encoding="utf-8")
    return page


def _clips(settings: Evaluation) -> Clips:
    """The size to measure at: what is asked for, else what the model was trained at."""
    trained = trained_at(weights.resolve(settings.model))
    return Clips(
        height=settings.height or int(trained["height"]),
        width=settings.width or int(trained["width"]),
        num_frames=settings.num_frames or int(trained["num_frames"]),
        fps=settings.fps if settings.fps >= 0 else float(trained["fps"]),
        windows_per_clip=1,
        largest_upscale=0.0,
    )


def trained_at(folder: Path) -> dict[str, float]:
    """What a model of ours says of its training; of another, its transformer's own size and each clip's own rate."""
    try:
        if (folder / "training.json").is_file():
            return json.loads((folder / "training.json").read_text())["recipe"]["clips"]
        config = json.loads((folder / "transformer" / "config.json").read_text())
    except (OSError, ValueError, KeyError) as problem:
        raise CheckpointError(f"{folder} is no model folder ({problem})", code="weights_missing") from problem
    height, width = config["sample_height"] * 8, config["sample_width"] * 8
    return {"height": height, "width": width, "num_frames": config["sample_frames"], "fps": 0.0}


def _check_models(models: Iterable[str]) -> None:
    for model in models:
        weights.resolve(model, ["model_index.json"])


def _identity(settings: Evaluation, clips: Clips) -> str:
    shaping = dataclasses.asdict(settings) | dataclasses.asdict(clips)
    kept = {name: str(value) for name, value in shaping.items() if name not in ("out", "samples", "device")}
    stamps = [_stamp(weights.resolve(model)) for model in (settings.model, settings.against) if model]
    return hashlib.sha256(json.dumps([kept, stamps], sort_keys=True).encode()).hexdigest()[:16]


def _stamp(folder: Path) -> list[str]:
    return [
        f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}"
        for path in sorted(folder.glob("*/*.safetensors"))
    ]


def _known(record: Path, identity: str) -> dict[str, Any] | None:
    try:
        found = json.loads(record.read_text())
    except (OSError, ValueError):
        return None
    return found if found.get("identity") == identity and record.with_suffix(".mp4").is_file() else None


def _shown(entries: tuple[Entry, ...]) -> Iterable[Entry]:
    if not sys.stderr.isatty():
        return entries
    from tqdm import tqdm

    return tqdm(entries, unit="clip", desc="evaluating")


def load_pipeline(model: str, device: Device) -> DynamiCtrlPipeline:
    """A model to measure, in bfloat16 on a GPU; ConfigError where there is no such device."""
    import torch

    from dynamictrl.animation import DynamiCtrlPipeline
    from training.engine.starting_weights import quiet_loading

    quiet_loading()
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda and this machine has no CUDA device; use --device cpu", param="device")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    pipeline = DynamiCtrlPipeline.from_pretrained(model, dtype=dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def score_clip(
    entry: Entry, clips: Clips, pipelines: Mapping[str, DynamiCtrlPipeline], settings: Evaluation, video: Path
) -> dict[str, Any]:
    """Renders a clip with each pipeline; returns `scores` and `caption`, and writes all side by side to `video`.

    Of the settings the number of steps, guidance and seed are taken.
    """
    from dynamictrl.media.video import write_video

    sample = read_sample(entry.shard, entry.offset)
    window = Window(entry.starts[0], clips.num_frames, clips.height, clips.width, clips.fps, clips.crop)
    pixels = read_window(sample, window)
    made = {name: _render(pipeline, pixels, settings) for name, pipeline in pipelines.items()}
    copied = np.repeat(pixels.reference[None], clips.num_frames, axis=0)
    scores = {name: _scores(frames, pixels.video) for name, frames in (made | {"copied_reference": copied}).items()}
    columns = [copied, pixels.pose, pixels.video, *made.values()]
    write_video(video, np.concatenate(columns, axis=2), clips.fps or entry.fps)
    return {"scores": scores, "caption": pixels.caption}


def _render(pipeline: DynamiCtrlPipeline, pixels: WindowPixels, settings: Evaluation) -> NDArray[np.uint8]:
    import torch
    from PIL import Image

    frames = pipeline(
        image=Image.fromarray(pixels.reference),
        pose_video=pixels.pose,
        prompt=pixels.caption,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        generator=torch.Generator().manual_seed(settings.seed),
        output_type="np",
    ).frames[0]  # pyright: ignore[reportAttributeAccessIssue]
    return np.rint(frames * 255).astype(np.uint8)


def _scores(made: NDArray[np.uint8], truth: NDArray[np.uint8]) -> dict[str, float]:
    from dynamictrl import metrics

    made, truth = made[1:], truth[1:]  # the first frame was given
    return {
        "psnr": metrics.psnr(made, truth),
        "ssim": metrics.ssim(made, truth),
        "mean_absolute_error": metrics.mean_absolute_error(made, truth),
        "l1_disco": metrics.l1_disco(made, truth),
    }


def mean_scores(scores: Iterable[Scores]) -> Scores:
    """Each metric's mean over clips."""
    every = list(scores)
    return {
        name: {metric: float(np.mean([clip[name][metric] for clip in every])) for metric in values}
        for name, values in every[0].items()
    }


def _line(scores: Mapping[str, float]) -> str:
    error = scores["mean_absolute_error"]
    return f"PSNR* {scores['psnr']:.2f} dB, SSIM {scores['ssim']:.3f}, mean absolute error {error:.2f}"


NAMES = {"model": "the model", "against": "the other model", "copied_reference": "control: reference copied"}


def _page(mean: Scores, scores: Mapping[str, Scores], captions: Mapping[str, str], models: list[str]) -> str:
    columns = [
        "reference",
        "driving poses",
        "truth",
        *("generated" if i == 0 else f"by {m}" for i, m in enumerate(models)),
    ]
    clips = "\n".join(
        f'<figure><video src="clips/{html.escape(key)}.mp4" autoplay loop muted playsinline controls></video>'
        f"<figcaption><b>{' | '.join(map(html.escape, columns))}</b><br>{html.escape(captions[key])}<br>"
        f"{_line(values['model'])}</figcaption></figure>"
        for key, values in scores.items()
    )
    rows = "\n".join(
        f"<tr><td>{NAMES[name]}</td><td>{v['psnr']:.2f}</td><td>{v['ssim']:.3f}</td>"
        f"<td>{v['mean_absolute_error']:.2f}</td><td>{v['l1_disco']:.2e}</td></tr>"
        for name, v in mean.items()
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Evaluation of {html.escape(models[0])}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: 1rem 0 }} td, th {{ border: 1px solid #ccc; padding: .3rem .7rem }}
td + td {{ text-align: right }} figure {{ margin: 2rem 0 }} video {{ width: 100%; background: #000 }}
</style>
<h1>Evaluation</h1>
<p>Model <code>{html.escape(models[0])}</code> on {len(scores)} clips. The first frame is given and not scored.</p>
<table><tr><th></th><th>PSNR* (dB)</th><th>SSIM</th><th>mean absolute error (0 to 255)</th><th>L1 (DisCo)</th></tr>
{rows}
</table>
{clips}
</html>
"""
