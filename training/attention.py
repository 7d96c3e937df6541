"""`python -m training attention`: the paper's figure 3 of any model, and where its words, points and frames look.

Renders one clip while `dynamictrl.attention_maps` records, then writes PNGs, the clip, `maps.npz` and `attention.json`.
A second model renders the same clip, so that variants can be compared side by side.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dynamictrl import weights
from dynamictrl.errors import ConfigError, InputError
from training.settings.workers import Device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from dynamictrl.animation import DynamiCtrlPipeline
    from dynamictrl.attention_maps import AttentionMap, Grid, Point, Wanted

SPREAD = 4
"""Blocks and steps that are shown where none are named."""


@dataclass(frozen=True, kw_only=True)
class AttentionStudy:
    """What is rendered, and which attention is recorded."""

    model: str
    """Model folder, such as RUN/model, or `mini/NAME`."""
    image: Path
    """The person: any image file."""
    prompt: str
    """What the clip shows."""
    out: Path
    """Folder for the pictures, maps.npz, attention.json and the clip."""
    driving_video: Path | None = None
    """A video of a person whose motion is taken over."""
    pose_video: Path | None = None
    """A ready-made DWPose rendering of the motion, instead of --driving-video."""
    against: str = ""
    """A second model that renders the same clip, for figure 3 side by side."""
    blocks: tuple[int, ...] = ()
    """Blocks of the transformer, from 0. Default: four, evenly spread from the first to the last."""
    steps: tuple[int, ...] = ()
    """Denoising steps, from 0. Default: four, evenly spread from the first to the last."""
    points: tuple[str, ...] = ()
    """FRAME,X,Y in pixels of the clip: where the token there looks. Default: the middle of the middle frame."""
    words: tuple[str, ...] = ()
    """Words of the prompt: which places look at them. Default: the first eight of more than three letters."""
    share: float = 0.1
    """Of each row of figure 3 the share of entries that is drawn white."""
    pose_model: str = ""
    """DWPose folder, hub id or mini/dwpose; empty means the one that goes with the model."""
    height: int = 0
    """Pixels; 0 takes the size that the model was trained at."""
    width: int = 0
    """Pixels; 0 takes the size that the model was trained at."""
    num_frames: int = 0
    """Frames; 0 takes the number that the model was trained at."""
    num_inference_steps: int = 25
    """Denoising steps."""
    guidance_scale: float = 3.0
    """Classifier-free guidance on the prompt; the half that sees the prompt is recorded."""
    seed: int = 42
    """Of the initial noise."""
    device: Device = "cpu"
    """Where the models run."""

    def __post_init__(self):
        if (self.driving_video is None) == (self.pose_video is None):
            raise ConfigError("give one of --driving-video (a video of a person) and --pose-video (a DWPose rendering)")
        if not 0 < self.share <= 1:
            raise ConfigError(f"share is {self.share}; it must be above 0 and at most 1", param="share")
        outside = [step for step in self.steps if not 0 <= step < self.num_inference_steps]
        if outside:
            raise ConfigError(f"there is no step {outside[0]}; the run has steps 0 to {self.num_inference_steps - 1}")


@dataclass(frozen=True)
class Recorded:
    """One model's run."""

    title: str
    frames: NDArray[np.uint8]
    maps: list[AttentionMap]
    words: tuple[str, ...]
    points: tuple[Point, ...]
    patch_size_t: int | None


def study(settings: AttentionStudy) -> Path:
    """Renders, records and writes; returns the folder. Raises ConfigError, CheckpointError or InputError."""
    for path in (settings.image, settings.driving_video, settings.pose_video):
        if path is not None and not path.is_file():
            raise InputError(f"{path}: there is no such file", code="not_found")
    for model in filter(None, (settings.model, settings.against)):
        weights.resolve(model, ["model_index.json"])
    shape = _shape(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    image, poses, fps = _inputs(settings, shape)
    runs = [_record(model, settings, image, poses) for model in (settings.model, settings.against) if model]
    _write(settings, runs, fps)
    return settings.out


def _shape(settings: AttentionStudy) -> dict[str, int]:
    from training.evaluate import trained_at
    from training.planning.plan import check_shape

    trained = trained_at(weights.resolve(settings.model))
    asked = {"height": settings.height, "width": settings.width, "num_frames": settings.num_frames}
    shape = {name: value or int(trained[name]) for name, value in asked.items()}
    check_shape(shape["height"], shape["width"], shape["num_frames"])
    return shape


def _inputs(settings: AttentionStudy, shape: dict[str, int]) -> tuple[Image.Image, NDArray[np.uint8], float]:
    """The person's picture, and the drawn poses with their rate."""
    from dynamictrl.media.images import read_image
    from dynamictrl.media.video import read_video
    from dynamictrl.poses import driving

    image = read_image(settings.image)
    path = settings.driving_video or settings.pose_video
    assert path is not None  # AttentionStudy has checked it
    video, size = read_video(path, num_frames=shape["num_frames"]), cast("dict[str, Any]", shape)
    if settings.pose_video is not None:
        found = driving.from_pose_video(video, **size, fps=None)
    else:
        from dynamictrl.poses.dwpose import PoseEstimator

        named = settings.pose_model or ("mini/dwpose" if _is_mini(settings.model) else "yzd-v/DWPose")
        found = driving.from_driving_video(video, image, PoseEstimator(named), **size, fps=None)
    return image, found.pose_video, found.fps


def _is_mini(model: str) -> bool:
    facts = weights.resolve(model) / "training.json"
    return model.startswith("mini/") or (facts.is_file() and bool(json.loads(facts.read_text())["facts"].get("mini")))


def _record(model: str, settings: AttentionStudy, image: Image.Image, poses: NDArray[np.uint8]) -> Recorded:
    import numpy as np
    import torch

    from dynamictrl.attention_maps import record_attention
    from training.evaluate import load_pipeline

    pipeline = load_pipeline(model, settings.device)
    config = pipeline.transformer.config
    title = f"{model.rstrip('/')} ({config['pose_control']})"
    words, wanted = _wanted(pipeline, settings, poses.shape[:3])
    with record_attention(pipeline.transformer, wanted) as maps:
        frames = pipeline(
            image,
            poses,
            settings.prompt,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            generator=torch.Generator().manual_seed(settings.seed),
            output_type="np",
            callback_on_step_end=_told(title, settings.num_inference_steps),
        ).frames[0]  # pyright: ignore[reportAttributeAccessIssue]
    clip = np.rint(np.clip(frames, 0, 1) * 255).astype(np.uint8)
    return Recorded(title, clip, maps, words, tuple(wanted.points), config["patch_size_t"])


def _told(title: str, steps: int) -> Callable[..., dict[str, Any]]:
    import logging

    def after_step(_pipeline: object, index: int, _timestep: object, _tensors: object) -> dict[str, Any]:
        if index == 0 or (index + 1) % 5 == 0 or index + 1 == steps:
            logging.getLogger(__name__).info("%s: step %d of %d", title, index + 1, steps)
        return {}

    return after_step


def _wanted(
    pipeline: DynamiCtrlPipeline, settings: AttentionStudy, shape: Sequence[int]
) -> tuple[tuple[str, ...], Wanted]:
    """The words shown, and what is recorded: every text token of theirs, in order."""
    from dynamictrl.attention_maps import Wanted

    config = pipeline.transformer.config
    tokens = words_of(pipeline.tokenizer, settings.prompt, config["max_text_seq_length"])
    chosen = _chosen_words(tokens, settings.words)
    wanted = Wanted(
        blocks=settings.blocks or spread(len(pipeline.transformer.transformer_blocks)),
        steps=settings.steps or spread(settings.num_inference_steps),
        points=_points(settings.points, shape, config),
        words=[token for word in chosen for token in tokens[word]],
    )
    return tuple(word for word in chosen for _ in tokens[word]), wanted


def spread(count: int) -> tuple[int, ...]:
    """Up to four numbers of 0 to `count` - 1, evenly spread from the first to the last."""
    shown = min(SPREAD, count)
    return tuple(round(i * (count - 1) / max(1, shown - 1)) for i in range(shown))


def words_of(tokenizer: Any, prompt: str, max_length: int) -> dict[str, list[int]]:  # noqa: ANN401 - a tokenizer
    """The prompt's words, each with the places of its tokens; a word said twice has both."""
    ids = tokenizer(prompt, truncation=True, max_length=max_length, add_special_tokens=True).input_ids
    words: dict[str, list[int]] = {}
    word, places = "", list[int]()
    for place, token in enumerate([*tokenizer.convert_ids_to_tokens(ids), "</s>"]):
        starts = token.startswith("\N{LOWER ONE EIGHTH BLOCK}") or token == tokenizer.eos_token
        if starts and places:
            words.setdefault(word, []).extend(places)
        if starts:
            word, places = "", []
        if token != tokenizer.eos_token:
            word += re.sub(r"\W", "", token.lstrip("\N{LOWER ONE EIGHTH BLOCK}")).lower()
            places.append(place)
    return {word: places for word, places in words.items() if word}


def _chosen_words(tokens: dict[str, list[int]], asked: Sequence[str]) -> list[str]:
    unknown = [word for word in asked if word.lower() not in tokens]
    if unknown:
        raise InputError(f"the prompt has no word {unknown[0]!r}; it has {', '.join(tokens)}", param="words")
    return [word.lower() for word in asked] or [word for word in tokens if len(word) > 3][:8]


def _points(asked: Sequence[str], shape: Sequence[int], config: Any) -> list[Point]:  # noqa: ANN401 - a config
    from dynamictrl.attention_figures import token_frame

    frames, height, width = shape
    cell = 8 * config["patch_size"]
    points = []
    for text in asked or (f"{frames // 2},{width // 2},{height // 2}",):
        match = re.fullmatch(r"(\d+),(\d+),(\d+)", text.replace(" ", ""))
        frame, x, y = map(int, match.groups()) if match else (-1, 0, 0)
        if not (0 <= frame < frames and x < width and y < height):
            raise InputError(
                f"the point {text!r} is none of this clip; write FRAME,X,Y with a frame below {frames} and a place "
                f"within {width}x{height} pixels",
                param="points",
            )
        points.append((token_frame(frame, frames, config["patch_size_t"]), y // cell, x // cell))
    return points


def _write(settings: AttentionStudy, runs: Sequence[Recorded], fps: float) -> None:
    from dynamictrl.attention_figures import block_figure, save_maps, step_figure
    from dynamictrl.media.video import write_video
    from dynamictrl.samples.shards import write_json

    out, titled = settings.out, {run.title: run.maps for run in runs}
    block_figure(titled, share=settings.share).save(out / "figure3.png")
    block_figure(titled, share=None).save(out / "figure3-colour.png")
    for number, run in enumerate(runs):
        prefix = "against-" if number else ""
        write_video(out / f"{prefix}clip.mp4", run.frames, fps)
        save_maps(out / f"{prefix}maps.npz", run.maps)
        step_figure(run.maps, "mass").save(out / f"{prefix}mass.png")
        for name, picture in _overlays(run).items():
            picture.save(out / f"{prefix}{name}.png")
    write_json(out / "attention.json", _summary(settings, runs))


def _overlays(run: Recorded) -> dict[str, Image.Image]:
    """Maps over the clip's frames, averaged over steps and blocks."""
    import numpy as np

    from dynamictrl.attention_figures import overlay_figure, stacked

    def shown(name: str) -> NDArray[np.float32]:
        return np.mean([getattr(m, name) for m in run.maps], axis=0)

    def laid(values: NDArray[np.float32], title: str, mark: Point | None = None) -> Image.Image:
        return overlay_figure(values, run.frames, run.patch_size_t, title, mark=mark)

    pictures = {"received": laid(shown("received"), "attention that each place receives")}
    sent = [laid(v, f"where the circled place looks, {p}", p) for v, p in zip(shown("sent"), run.points, strict=True)]
    pictures["points"] = stacked(sent)
    by_word = shown("words")
    if run.words:
        sums = {w: sum(by_word[i] for i, other in enumerate(run.words) if other == w) for w in dict.fromkeys(run.words)}
        pictures["words"] = stacked([laid(np.asarray(v), f"who looks at {w!r}") for w, v in sums.items()])
    return pictures


def _summary(settings: AttentionStudy, runs: Sequence[Recorded]) -> dict[str, Any]:
    from dynamictrl.attention_figures import binarized, diagonal_share, mean_over_steps

    def row(run: Recorded, block: int) -> dict[str, float]:
        spatial, temporal, mass = (mean_over_steps(run.maps, n, block) for n in ("spatial", "temporal", "mass"))
        return {
            "block": block,
            "spatial_diagonal_share": diagonal_share(binarized(spatial, settings.share)),
            "temporal_diagonal_share": diagonal_share(binarized(temporal, settings.share)),
            "own_frame_mass": float(mass[1:, 1:].diagonal().mean()),
            "text_mass": float(mass[1:, 0].mean()),
        }

    return {
        "prompt": settings.prompt,
        "share": settings.share,
        "runs": [
            {"title": run.title, "grid": _grid(run.maps[0].grid), "blocks": [row(run, b) for b in _blocks(run)]}
            for run in runs
        ],
    }


def _blocks(run: Recorded) -> list[int]:
    return sorted({m.block for m in run.maps})


def _grid(grid: Grid) -> dict[str, int]:
    return {"frames": grid.frames, "rows": grid.rows, "columns": grid.columns}
