"""One clip without a server: `python -m serving animate`. Bad input is refused before a model is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynamictrl.errors import InputError

if TYPE_CHECKING:
    from serving.jobs import AnimationJob

Show = Callable[[str, int, int], None]
"""Told of each stage: its name, the steps done, the steps in all."""


@dataclass(frozen=True, kw_only=True)
class Animate:
    """Renders one clip: the person of an image, moving as a video does."""

    model: str
    """Model folder, hub id, `mini/dynamictrl`, or an MLflow URI such as models:/dynamictrl@champion."""
    image: Path
    """The person: any image file."""
    prompt: str
    """What the clip shows."""
    out: Path
    """The mp4 to write."""
    driving: Path | None = None
    """A video of a person whose motion is taken over."""
    pose_video: Path | None = None
    """A ready-made DWPose rendering of the motion, instead of --driving."""
    mask: Path | None = None
    """An image of the person image's size: white is kept, the rest is drawn anew from the prompt."""
    transformer: str = ""
    """Folder or hub id whose transformer takes the place of the model's own, as released masked models need it."""
    compatibility: Literal["none", "released"] = "none"
    """`released` renders as the published inference does, its lag of three frames included (docs/method.md)."""
    alignment: Literal["auto", "limbs", "affine", "released", "none"] = "auto"
    """How a driving video's poses are brought onto the person: `auto` is `limbs`, the person's own bone lengths, or
    `released` with that compatibility (docs/driving.md)."""
    pose_model: str = ""
    """DWPose folder, hub id or mini/dwpose; empty means the one that goes with the model."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels, multiples of 16. Default: the pose video's own size, or the model's with --driving."""
    num_frames: int | None = None
    """5, 9, 13, ... Default: as many as the video has, up to the model's length."""
    num_inference_steps: int = 25
    """Denoising steps."""
    guidance_scale: float = 3.0
    """Strength of the prompt; 1 turns guidance off."""
    seed: int = 0
    """The same seed and inputs give the same clip."""
    fps: float | None = None
    """Frames per second of the clip; the video is resampled to it. Default: the video's own."""
    lora: str = ""
    """A LoRA file, folder or hub id to put on the model, such as RUN/model/lora."""
    lora_scale: float = 1.0
    """How strongly the LoRA acts; 0 is not at all."""
    keep_audio: bool = False
    """The clip keeps the video's sound, cut to exactly its frames; where there is none it is silent, with a note."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it is rendered; auto takes a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights; auto is bfloat16 on a GPU and float32 elsewhere."""


def animate_one(request: Animate, show: Show) -> str:
    """Renders one clip and writes it, whole or not at all; returns a note for people, empty as a rule.

    Raises InputError and CheckpointError for what is wrong with the request; before the weights are loaded, except
    for what only the pose model can see (no person).
    """
    from serving.model_source import locate

    _check_paths(request)
    source = locate(request.model, request.transformer)
    job = _job(request, source.mini)
    show("loading", 0, 1)
    # From here on it takes long: torch, then the weights.
    import torch

    from dynamictrl.audio import keep_sound
    from dynamictrl.video import write_video
    from serving.engine import Engine

    on_gpu = request.device == "cuda" or (request.device == "auto" and torch.cuda.is_available())
    dtype = request.dtype if request.dtype != "auto" else "bfloat16" if on_gpu else "float32"
    pose_model = request.pose_model or ("mini/dwpose" if source.mini else "yzd-v/DWPose")
    ways: dict[str, Any] = {"compatibility": request.compatibility, "alignment": request.alignment}
    engine = Engine(source, pose_model, device=request.device, dtype=dtype, **ways)
    if request.lora:
        engine.pipeline.load_lora_weights(request.lora, adapter_name="lora")
        engine.pipeline.set_adapters("lora", request.lora_scale)
    clip = engine.animate(job, on_step=show)
    write_video(request.out, clip.frames, clip.fps)
    seconds, note = len(clip.frames) / clip.fps, ""
    if job.sound_source is not None and not keep_sound(job.sound_source, request.out, seconds=seconds):
        note = f"{job.sound_source} has no sound in its first {seconds:.2f} s: the clip is silent"
    show("written", len(clip.frames), len(clip.frames))
    return note


def _job(request: Animate, mini: bool) -> AnimationJob:
    """The request with every bound checked against the files themselves."""
    from dynamictrl.errors import MediaError
    from dynamictrl.images import read_image
    from dynamictrl.video import probe
    from serving.config import Limits
    from serving.jobs import AnimationJob, VideoFacts, Wish, check_media, check_wish, settle
    from serving.recipes import mini as mini_recipe
    from serving.recipes import production

    # Limits are for strangers; whoever runs this owns the machine.
    limits = Limits(output_pixels=2**40, num_frames=2**20, video_seconds=1e9, num_inference_steps=1000)
    width, height = _size(request.size)
    wish = Wish(
        prompt=request.prompt, width=width, height=height, num_frames=request.num_frames, fps=request.fps,
        num_inference_steps=request.num_inference_steps, guidance_scale=request.guidance_scale, seed=request.seed,
        keep_audio=request.keep_audio,
    )  # fmt: skip
    check_wish(wish, limits)
    motion = {"driving_video": request.driving, "pose_video": request.pose_video}
    check_media({"input_reference": request.image, **motion})
    image = read_image(request.image)
    if request.mask is not None and (mask := read_image(request.mask)).size != image.size:
        raise InputError(
            f"the mask {request.mask} is {mask.width}x{mask.height} and the image {image.width}x{image.height} pixels; "
            "give a mask of the image's size",
            code="mask_size",
            param="mask",
        )
    path = request.driving or request.pose_video
    assert path is not None  # check_media has seen to it
    info = probe(path)
    if not 0 < info.fps <= 1000:
        raise MediaError(f"{path} states a frame rate of {info.fps:g}; encode it again at a constant one")
    facts = VideoFacts(info.width, info.height, info.fps, info.frames, info.duration)
    defaults = (mini_recipe() if mini else production()).defaults
    settings = settle(wish, facts, is_pose_video=request.pose_video is not None, defaults=defaults, limits=limits)
    return AnimationJob(settings=settings, image=request.image, mask=request.mask, **motion)


def _check_paths(request: Animate) -> None:
    """Refuses inputs that are not there and an output that could not be written, in an instant."""
    if (request.driving is None) == (request.pose_video is None):
        raise InputError("give one of --driving (a video of a person) and --pose-video (a DWPose rendering)")
    for name in ("image", "driving", "pose_video", "mask"):
        path = getattr(request, name)
        if path is not None and not path.is_file():
            raise InputError(f"--{name.replace('_', '-')} {path}: there is no such file", code="not_found", param=name)
    if request.out.suffix.lower() != ".mp4":
        raise InputError(f"--out {request.out}: the clip is written as .mp4; give a name that ends so", param="out")
    if request.out.is_dir() or not request.out.absolute().parent.is_dir():
        raise InputError(f"--out {request.out}: its folder does not exist; make it first", param="out")


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise InputError(f"--size {text}: write WIDTHxHEIGHT in pixels, such as 512x768", code="bad_size", param="size")
    return int(match[1]), int(match[2])
